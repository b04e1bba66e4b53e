"""Runs ``lab up`` and kills itself with SIGKILL at the N-th call of a function of ``vxnet.lab``: ``killed.py N NAME``.

Counts instead when N is 0, and prints how many calls there were.
"""

from __future__ import annotations

import itertools
import os
import signal
import sys
import threading
from types import FrameType
from typing import Any

from tests.lab import stand_in
from vxnet.lab import operations
from vxnet.lab.state import LabState

PART = os.path.dirname(operations.__file__)


def main() -> None:
    last, name = int(sys.argv[1]), sys.argv[2]
    calls = itertools.count(1)
    counted = 0

    def profile(frame: FrameType, event: str, argument: Any) -> None:
        nonlocal counted
        if event == "call" and frame.f_code.co_filename.startswith(PART):
            # Its own: another thread may count on before this one compares.
            counted = number = next(calls)
            if number == last:
                os.kill(os.getpid(), signal.SIGKILL)

    threading.setprofile(profile)
    sys.setprofile(profile)
    lab: LabState = operations.create(
        name, hosts=2, outside=1, ipv6=True, join=False, daemon_argv=[sys.executable, stand_in.__file__]
    )
    sys.setprofile(None)
    print(counted, len(lab.hosts))


if __name__ == "__main__":
    main()
