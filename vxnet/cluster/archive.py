"""Files on their way between a container and its host, as `vxnet cp` moves them: a tar stream (POSIX pax).

::

     pack  /srv/www      ─> www, www/index.html …        unpack  to /there, a directory ─> /there/www
           /srv/www/.    ─> .,   ./index.html …                  to /new, not there     ─> /new
           /etc/motd     ─> motd

Either side may be a container that swaps directories for links while it is read or written: every name is opened step
by step below the target, and no link on the way is followed. Owners are numbers: names would be looked up.
"""

from __future__ import annotations

import contextlib
import os
import stat
import tarfile
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Final, Protocol

from vxnet.model.errors import CallerError, HostError, NotFoundError

_PIECE: Final = 1 << 16
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Sink(Protocol):
    def write(self, data: bytes, /) -> object: ...


class Source(Protocol):
    def read(self, size: int, /) -> bytes: ...


def pack(path: str, out: Sink, *, follow: bool = False) -> None:
    """``path`` and all below it; what is neither file, directory, link nor fifo is left out. ``follow``: if it is a
    link, what that leads to. Raises :class:`NotFoundError` before anything is written, and :class:`HostError`.
    """
    check(path, follow=follow)
    bare, content = _split(path)
    if follow or content or path.endswith("/"):
        bare = os.path.realpath(bare)
    name = "." if content or bare == "/" else os.path.basename(_split(path)[0])
    try:
        # A stream only needs write(); typeshed asks for a whole file.
        with tarfile.open(fileobj=_Writer(out), mode="w|", format=tarfile.PAX_FORMAT) as tar:  # type: ignore[call-overload]
            for found, member in _walk(bare, name):
                _add(tar, found, member)
    except OSError as error:
        raise HostError(f"cannot read {error.filename or path}: {error.strerror}") from None


def check(path: str, *, follow: bool = False) -> None:
    """Raises what :func:`pack` would at once."""
    bare, content = _split(path)
    directory = content or path.endswith("/")
    try:
        top = os.stat(bare) if follow or directory else os.lstat(bare)
    except OSError as error:
        raise NotFoundError(f"{path}: {error.strerror}") from None
    if directory and not stat.S_ISDIR(top.st_mode):
        raise CallerError(f"{path} is no directory")


class _Writer:
    """tarfile wants a file; this is one as far as it looks."""

    def __init__(self, out: Sink) -> None:
        self._out = out

    def write(self, data: bytes) -> int:
        self._out.write(bytes(data))
        return len(data)


def _split(path: str) -> tuple[str, bool]:
    """Without what Docker's users put behind it, and whether the content is meant: ``/srv/.``."""
    content = path == "." or path.endswith("/.")
    return os.path.normpath(path), content


def _walk(path: str, name: str) -> Iterator[tuple[str, str]]:
    waiting = [(path, name)]
    while waiting:
        path, name = waiting.pop()
        yield path, name
        with contextlib.suppress(FileNotFoundError):  # gone meanwhile
            if stat.S_ISDIR(os.lstat(path).st_mode):
                entries = sorted(os.listdir(path), reverse=True)
                waiting += [(f"{path.rstrip('/')}/{entry}", f"{name}/{entry}") for entry in entries]


def _add(tar: tarfile.TarFile, path: str, name: str) -> None:
    try:
        found = os.lstat(path)
        kind = stat.S_IFMT(found.st_mode)
        if kind == stat.S_IFREG:
            # Never a terminal's or a device's open, should it have become one.
            file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            with open(file, "rb") as content:
                found = os.fstat(file)
                if stat.S_ISREG(found.st_mode):
                    tar.addfile(_member(name, found, tarfile.REGTYPE, size=found.st_size), _Padded(content))
        elif kind == stat.S_IFDIR:
            tar.addfile(_member(name, found, tarfile.DIRTYPE))
        elif kind == stat.S_IFLNK:
            member = _member(name, found, tarfile.SYMTYPE)
            member.linkname = os.readlink(path)
            tar.addfile(member)
        elif kind == stat.S_IFIFO:
            tar.addfile(_member(name, found, tarfile.FIFOTYPE))
    except FileNotFoundError:
        return


class _Padded:
    """A file that is cut while it is read ends with NULs, for its length was told before."""

    def __init__(self, file: Source) -> None:
        self._file = file

    def read(self, size: int = -1, /) -> bytes:
        data = self._file.read(size)
        return data.ljust(size, b"\0")


def _member(name: str, found: os.stat_result, kind: bytes, *, size: int = 0) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.size, member.mode = kind, size, stat.S_IMODE(found.st_mode)
    member.uid, member.gid, member.mtime = found.st_uid, found.st_gid, int(found.st_mtime)
    return member


def unpack(stream: Source, path: str, *, owners: bool = False) -> None:
    """What :func:`pack` wrote, to ``path`` as the picture above says. ``owners``: each file's as it was, else this
    process's. Raises :class:`CallerError` where that cannot be, :class:`HostError`.
    """
    try:
        with tarfile.open(fileobj=stream, mode="r|") as tar:  # type: ignore[call-overload]
            first = tar.next()
            if first is None:
                raise CallerError("nothing to copy")
            place = _Place.at(path, first)
            try:
                member: tarfile.TarInfo | None = first
                while member is not None:
                    place.put(tar, member, owners)
                    member = tar.next()
                place.finish()
            finally:
                place.close()
    except (tarfile.TarError, ValueError, OverflowError) as error:  # the library's own way with odd headers, and times
        raise CallerError(f"this is no tar archive: {error}") from None
    except OSError as error:
        raise HostError(f"cannot write {error.filename or path}: {error.strerror}") from None


class _Place:
    """A directory that is held open, and the name that the archive's first part gets in it."""

    def __init__(self, directory: int, rename: tuple[str, str] | None) -> None:
        self._directory = directory
        self._rename = rename
        self._times: list[tuple[PurePosixPath, int]] = []
        """Of directories: set at the end, as what is put in them moves them."""

    @classmethod
    def at(cls, path: str, first: tarfile.TarInfo) -> _Place:
        top = PurePosixPath(first.name).parts[:1] or (".",)
        try:
            there = os.stat(path)
        except OSError:
            there = None
        if there is not None and stat.S_ISDIR(there.st_mode):
            return cls(os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC), None)
        if there is not None and first.isdir():
            raise CallerError(f"cannot copy a directory over the file {path}")
        if there is None and path.endswith("/") and not first.isdir():
            raise NotFoundError(f"no directory {path}", hint="make it first, or leave the slash out")
        parent, name = os.path.split(os.path.normpath(path))
        if name in ("", ".", ".."):
            raise CallerError(f"cannot copy to {path!r}")
        try:
            directory = os.open(parent or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise NotFoundError(f"no directory {parent or '.'}: {error.strerror}") from None
        return cls(directory, (top[0], name))

    def close(self) -> None:
        os.close(self._directory)

    def put(self, tar: tarfile.TarFile, member: tarfile.TarInfo, owners: bool) -> None:
        name = self._name(member.name)
        with self._parent(name) as (parent, last):
            if last == ".":
                return
            if member.isdir():
                with contextlib.suppress(FileExistsError):
                    os.mkdir(last, 0o700, dir_fd=parent)
                descriptor = os.open(last, _DIRECTORY, dir_fd=parent)
                self._times.append((name, int(member.mtime)))
            elif member.isreg():
                self._clear(parent, last)
                flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
                descriptor = os.open(last, flags, 0o600, dir_fd=parent)
            elif member.issym():
                self._clear(parent, last)
                os.symlink(member.linkname, last, dir_fd=parent)
                if owners:
                    os.chown(last, member.uid, member.gid, dir_fd=parent, follow_symlinks=False)
                return
            elif member.isfifo():
                self._clear(parent, last)
                os.mkfifo(last, 0o600, dir_fd=parent)
                descriptor = os.open(last, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
            else:
                raise CallerError(f"{member.name}: cannot copy a device or a hard link")
        try:
            if member.isreg():
                _fill(descriptor, tar, member)
            if owners:
                os.fchown(descriptor, member.uid, member.gid)
            os.fchmod(descriptor, member.mode & 0o7777)
            os.utime(descriptor, (member.mtime, member.mtime))
        finally:
            os.close(descriptor)

    def finish(self) -> None:
        for name, mtime in reversed(self._times):
            with contextlib.suppress(OSError), self._parent(name) as (parent, last):
                descriptor = os.open(last, _DIRECTORY, dir_fd=parent)
                try:
                    os.utime(descriptor, (mtime, mtime))
                finally:
                    os.close(descriptor)

    def _name(self, text: str) -> PurePosixPath:
        name = PurePosixPath(text)
        if name.is_absolute() or ".." in name.parts:
            raise CallerError(f"the archive wants to write {text!r}, outside its place")
        if self._rename is not None:
            old, new = self._rename
            parts = name.parts or (".",)
            if parts[0] == old:
                name = PurePosixPath(new, *parts[1:])
            elif old == ".":
                name = PurePosixPath(new, *name.parts)
        return name

    @contextlib.contextmanager
    def _parent(self, name: PurePosixPath) -> Iterator[tuple[int, str]]:
        """Its directory, made where it is missing, and its last part."""
        held = os.dup(self._directory)
        try:
            for part in name.parts[:-1]:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(part, 0o755, dir_fd=held)
                below = os.open(part, _DIRECTORY, dir_fd=held)
                os.close(held)
                held = below
            yield held, name.parts[-1] if name.parts else "."
        finally:
            os.close(held)

    def _clear(self, parent: int, name: str) -> None:
        try:
            os.unlink(name, dir_fd=parent)
        except FileNotFoundError:
            pass
        except IsADirectoryError:
            raise CallerError(f"cannot copy over the directory {name}") from None


def _fill(descriptor: int, tar: tarfile.TarFile, member: tarfile.TarInfo) -> None:
    source = tar.extractfile(member)
    assert source is not None
    with open(descriptor, "wb", closefd=False) as file:
        while piece := source.read(_PIECE):
            file.write(piece)
