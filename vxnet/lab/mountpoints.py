"""Places on this machine that every host mounts its own things over, made when missing and removed with the last lab.

What was there before is never listed, so never removed; neither is what somebody has put something into meanwhile.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from vxnet.lab import state

_FOLDERS: Final = (Path("/var/lib/vxnet"), Path("/etc/vxnet"), state.DISKS, state.NETNS)
_FILES: Final = tuple(map(Path, ("/etc/hosts", "/etc/hostname", "/etc/machine-id", "/etc/resolv.conf")))


def ensure() -> None:
    """Call it once the lab's own folder is there: that keeps another lab's :func:`release` off."""
    with _guard():
        missing = [path for path in (*_FOLDERS, *_FILES) if not os.path.lexists(path)]
        # Written first: what is listed and was not made does no harm, the other way round it would stay for ever.
        _write(sorted({*_read(), *missing}))
        for path in missing:
            path.touch() if path in _FILES else path.mkdir(mode=0o755, parents=True)


def release() -> None:
    """Removes them unless a lab is left."""
    if not state.RUN.is_dir():
        return
    with _guard():
        if state.names():
            return
        for path in _read():
            with contextlib.suppress(OSError):
                if path not in _FILES:
                    path.rmdir()
                elif path.stat().st_size == 0:
                    path.unlink()
        _list().unlink(missing_ok=True)


@contextlib.contextmanager
def _guard() -> Iterator[None]:
    path = state.RUN / "mountpoints.lock"
    descriptor = state.lock(path)
    try:
        yield
    finally:
        if not _list().exists():
            path.unlink(missing_ok=True)
        os.close(descriptor)


def _list() -> Path:
    return state.RUN / "mountpoints.json"


def _read() -> list[Path]:
    try:
        return [Path(path) for path in json.loads(_list().read_text())]
    except (FileNotFoundError, ValueError):
        return []


def _write(paths: list[Path]) -> None:
    new = _list().with_suffix(".new")
    new.write_text(json.dumps([str(path) for path in paths]))
    new.replace(_list())
