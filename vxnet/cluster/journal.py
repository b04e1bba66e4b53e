"""The rows of other nodes on disk, as they were received: what a restarted node knows before it has met anybody.

Without them the first plan after a restart would take away every path that gossip brings back a moment later. The file
is appended to before the kernel learns of a row, so that it never knows less than the kernel; it is not synced, as a
reboot leaves no path to keep. Batches are signed by their owners: the file need not be believed.

::

    length (4 octets, big endian) ── Batch ── length ── Batch …      a torn end is what a crash left: it is cut off
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Callable, Iterable
from pathlib import Path

import structlog

from vxnet.core.rows import BATCH_LIMIT, Batch
from vxnet.model.codec import from_wire, to_wire

log = structlog.get_logger()

SLACK = 1 << 20
"""Octets that a file may hold beyond twice what counts before it is written anew."""
_LENGTH = struct.Struct(">I")
_LONGEST = 2 * BATCH_LIMIT


class Journal:
    """Nothing here raises: a node without a journal works, and its restart costs packets. That is logged once."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd = -1
        self._octets = 0
        self._failed = False

    def load(self) -> list[Batch]:
        """What was kept, oldest first. Blocks for 0.1 s with 100,000 rows."""
        try:
            data = self._path.read_bytes()
        except FileNotFoundError:
            return []
        except OSError as error:
            self._fail(error)
            return []
        found: list[Batch] = []
        at = 0
        while at + _LENGTH.size <= len(data):
            (length,) = _LENGTH.unpack_from(data, at)
            packed = data[at + _LENGTH.size : at + _LENGTH.size + length]
            if length > _LONGEST or len(packed) < length:
                break
            try:
                found.append(from_wire(packed, Batch))
            except ValueError:
                break
            at += _LENGTH.size + length
        return found

    def append(self, batch: Batch) -> None:
        """Keep one more. Opens the file if :meth:`rewrite` has not."""
        if self._failed:
            return
        try:
            if self._fd < 0:
                self._open()
            framed = _framed(batch)
            written = os.write(self._fd, framed)
            self._octets += written
            if written < len(framed):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            self._fail(error)

    def tend(self, live_octets: int, live: Callable[[], Iterable[Batch]]) -> None:
        """Write the file anew with ``live`` alone when most of it no longer counts."""
        if not self._failed and self._octets > 2 * live_octets + SLACK:
            self.rewrite(live())

    def rewrite(self, batches: Iterable[Batch]) -> None:
        beside = self._path.with_name(self._path.name + ".new")
        try:
            beside.touch(mode=0o600)
            beside.write_bytes(b"".join(_framed(batch) for batch in batches))
            os.replace(beside, self._path)
            self.close()
            self._open()
        except OSError as error:
            self._fail(error)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _open(self) -> None:
        self._fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_APPEND, 0o600)
        self._octets = os.fstat(self._fd).st_size

    def _fail(self, error: OSError) -> None:
        """Half a record at the end would hide all that follow: none follow."""
        self.close()
        self._failed = True
        log.error("rows are not kept: a restart will cost packets", path=str(self._path), error=str(error))


def _framed(batch: Batch) -> bytes:
    packed = to_wire(batch)
    return _LENGTH.pack(len(packed)) + packed
