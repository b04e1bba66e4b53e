"""File systems that a test mounts on its own machine."""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

UNMOUNT_S = 20.0


@contextlib.contextmanager
def mounted(place: Path, kind: str, options: str = "defaults") -> Iterator[Path]:
    """One on ``place``, which is made. For root."""
    place.mkdir()
    subprocess.run(["mount", "-t", kind, "-o", options, kind, place], check=True)
    try:
        yield place
    finally:
        _unmount(place)


def small_disk(place: Path, size: str) -> contextlib.AbstractContextManager[Path]:
    """One that is soon full. ``size``: as ``mount`` takes it."""
    return mounted(place, "tmpfs", f"size={size}")


def _unmount(place: Path) -> None:
    """It is busy as long as a mount namespace with a copy of it is on its way out, such as that of a container that has
    just ended: the kernel takes those apart in its own time."""
    deadline = time.monotonic() + UNMOUNT_S
    while subprocess.run(["umount", place], check=False, stderr=subprocess.DEVNULL).returncode:
        assert time.monotonic() < deadline, f"{place} is still busy after {UNMOUNT_S:g} s"
        time.sleep(0.01)
