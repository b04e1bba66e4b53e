"""Records from many threads at once."""

from __future__ import annotations

import subprocess
import sys

THREADS = """
import sys, threading
from concurrent.futures import ThreadPoolExecutor
from vxnet.model import codec
from vxnet.model.container import Container, ContainerSpec
sys.setswitchinterval(1e-6)
codec.get_ready()
container = Container(id="a", spec=ContainerSpec(name="a", argv=("true",)), created_at=0.0)
packed, together = codec.to_json(container), threading.Barrier(50)
def read(_):
    together.wait()
    return codec.from_json(packed, Container)
with ThreadPoolExecutor(50) as pool:
    assert list(pool.map(read, range(50))) == [container] * 50
"""


def test_records_are_read_for_the_first_time_by_many_threads() -> None:
    """Without ``get_ready`` the process ends by SIGSEGV, more often than not."""
    done = subprocess.run([sys.executable, "-c", THREADS], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
