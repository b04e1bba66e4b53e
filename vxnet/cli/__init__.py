"""The command ``vxnet``. Importing it is cheap: each command's module is loaded when the command is called."""

from __future__ import annotations

import gc
import os
import sys
from typing import NoReturn


def main() -> NoReturn:
    """Entry point of the script ``vxnet``."""
    _open_standard_streams()
    # What start-up allocates stays until the end: looking through it for garbage costs 5 ms and finds none.
    gc.disable()
    from vxnet.cli.root import root

    gc.freeze()
    gc.enable()
    try:
        root.main(prog_name="vxnet")
    finally:
        _leave_at_once()


def _open_standard_streams() -> None:
    """Those that were closed (``>&-``) lead to /dev/null: a socket would take their numbers, and be written to."""
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        if getattr(sys, name) is None:
            null = os.open(os.devnull, os.O_RDWR)
            if null != number:
                os.dup2(null, number)
                os.close(null)
            os.set_inheritable(number, True)
            setattr(sys, name, os.fdopen(number, mode, closefd=False))


def _leave_at_once() -> None:
    """End here with the status of the :class:`SystemExit` on its way, if nothing is left to do.

    Taking the modules down one by one takes 15 ms of a start of 80. The daemon and the lab, which have threads and
    children, end the long way.
    """
    ending = sys.exc_info()[1]
    if (
        isinstance(ending, SystemExit)
        and isinstance(ending.code, int)
        and not _MODULES_WITH_AN_END & sys.modules.keys()
    ):
        sys.stderr.flush()
        os._exit(ending.code)


_MODULES_WITH_AN_END = {"vxnet.daemon", "vxnet.lab"}
