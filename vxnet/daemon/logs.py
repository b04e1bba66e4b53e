"""Reading what containers wrote: the shim's files, oldest first, also while it goes on and turns them over.

::

     log.2   log.1   log ◀─ the shim            a full log becomes log.1, that log.2; what was log.2 is gone
       └───────┴──────┴──▶ pieces                (csrc/shim/log.h)
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import BinaryIO

from vxnet.model.api import LogRequest
from vxnet.model.container import Container

PIECE = 1 << 16
POLL_S = 0.1
"""How long a follower may be behind the log."""
_ROTATED_MAX = 100
_TRIES = 100


async def read_log(directory: Path, request: LogRequest, ended: asyncio.Future[Container]) -> AsyncIterator[bytes]:
    """CRI lines in pieces of any size; with ``follow`` until ``ended``. Files that are turned over meanwhile are read
    through, unless the reader is slower than the log: what is gone by then is left out.
    """
    files = await asyncio.to_thread(_open_from, directory, request)
    try:
        while files:
            over = ended.done() or not request.follow
            while piece := await asyncio.to_thread(files[0].read, PIECE):
                yield piece
            if len(files) == 1 and request.follow:
                files += await asyncio.to_thread(_newer_than, directory, files[0])
            if len(files) > 1:
                # It may have grown between its end and its turning over.
                if rest := await asyncio.to_thread(files[0].read):
                    yield rest
                files.pop(0).close()
            elif over:
                return
            else:
                await asyncio.wait([ended], timeout=POLL_S)
    finally:
        for file in files:
            file.close()


def _open_all(directory: Path) -> list[BinaryIO]:
    """Oldest first. A turning over in between shows a file twice, or hides one: then once more. A shim that was killed
    in the midst of one hides it for good.
    """
    for tries in range(_TRIES, 0, -1):
        found = [directory / "log"]
        found += [path for n in range(1, _ROTATED_MAX) if (path := directory / f"log.{n}").exists()]
        files: list[BinaryIO] = []
        for path in reversed(found):
            try:
                files.append(path.open("rb"))
            except FileNotFoundError:
                continue
        numbers = [os.fstat(file.fileno()).st_ino for file in files]
        if len(set(numbers)) == len(numbers) and (not files or len(files) == len(found) or tries == 1):
            return files
        for file in files:
            file.close()
    return []


def _newer_than(directory: Path, last: BinaryIO) -> list[BinaryIO]:
    """The files that came after ``last``."""
    own = os.fstat(last.fileno()).st_ino
    try:
        if os.stat(directory / "log").st_ino == own:
            return []
    except FileNotFoundError:  # being turned over, or removed with its container
        return []
    files = _open_all(directory)
    numbers = [os.fstat(file.fileno()).st_ino for file in files]
    old = numbers.index(own) + 1 if own in numbers else 0
    for file in files[:old]:
        file.close()
    return files[old:]


def _open_from(directory: Path, request: LogRequest) -> list[BinaryIO]:
    """The files from the first that is wanted on, each at the first line that is."""
    files = _open_all(directory)
    if request.since:
        since = request.since.encode()
        for file in files:
            file.seek(_first_since(file, since))
    if request.tail < 0:
        return files
    left = request.tail
    for index in range(len(files) - 1, -1, -1):
        start, left = _last_lines(files[index], left)
        files[index].seek(start)
        if left == 0:
            for file in files[:index]:
                file.close()
            return files[index:]
    return files


def _first_since(file: BinaryIO, since: bytes) -> int:
    """Offset of the first line that is not older, by halving: a log's times grow, and are of one length."""
    low, high = 0, os.fstat(file.fileno()).st_size
    while low < high:
        middle = (low + high) // 2
        file.seek(middle)
        if middle:
            file.readline()
        line = file.readline()
        if line and line.split(b" ", 1)[0] < since:
            low = file.tell()
        else:
            high = middle
    file.seek(low)
    return low


def _last_lines(file: BinaryIO, count: int) -> tuple[int, int]:
    """Offset behind the current one of the last ``count`` lines, and how many of them the file lacks. A line that CRI
    cut ends with the part that says F.
    """
    start = file.tell()
    data = file.read()
    end = len(data)
    while end > 0:
        begin = data.rfind(b"\n", 0, end - 1) + 1
        parts = data[begin : begin + 64].split(b" ", 3)
        if len(parts) < 3 or parts[2] == b"F":
            if count == 0:
                return start + end, 0
            count -= 1
        end = begin
    return start, count
