"""The embedded store: one SQLite file, for a cluster with one manager.

::

    record  key, value, version        what is
    change  revision, key, value       what happened: for watchers, the last KEPT_REVISIONS of it
    state   revision, compacted        one row

One thread does everything that touches the file. A watcher holds nothing but its revision and reads on from ``change``,
so a slow one costs no memory.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
from collections.abc import AsyncGenerator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from pathlib import Path
from typing import TypeVar

import msgspec

from vxnet.cluster.store import (
    LEAD_KEY,
    Commit,
    Leadership,
    Snapshot,
    Versioned,
    check_commit,
    nobody_is_gone,
    refused_by,
)
from vxnet.model.errors import HostError, UnavailableError, UnsupportedError, VxnetError
from vxnet.model.store import Leader

T = TypeVar("T")

KEPT_REVISIONS = 1000
"""A watcher further behind gets a snapshot."""
_PRUNE_EVERY = 100
"""Commits."""
_READ_AT_ONCE = 200
"""Revisions a watcher reads in one turn of the thread."""
_BUSY_S = 2.0
_FORMAT = 1
"""``user_version`` of the file."""

_SCHEMA = f"""
CREATE TABLE record (key TEXT PRIMARY KEY, value BLOB NOT NULL, version INTEGER NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE change (revision INTEGER NOT NULL, key TEXT NOT NULL, value BLOB, PRIMARY KEY (revision, key))
    STRICT, WITHOUT ROWID;
CREATE TABLE state (id INTEGER PRIMARY KEY CHECK (id = 1), revision INTEGER NOT NULL, compacted INTEGER NOT NULL)
    STRICT;
INSERT INTO state VALUES (1, 0, 0);
PRAGMA user_version = {_FORMAT};
"""


class SqliteStore:
    """See :class:`vxnet.cluster.store.Store`. Made by :meth:`open`."""

    several_managers = False

    def __init__(self, path: Path) -> None:
        self.path = path
        self._loop = asyncio.get_running_loop()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="vxnet-store")
        self._file: sqlite3.Connection
        self._watchers: set[asyncio.Event] = set()
        self._closed = False

    @classmethod
    async def open(cls, path: Path) -> SqliteStore:
        """Makes the file (mode 0600) where there is none. Raises :class:`HostError`, or :class:`UnsupportedError` if a
        newer vxnet wrote it.
        """
        store = cls(path)
        try:
            await store._run(store._open)
        except BaseException:
            store._thread.shutdown(wait=False)
            raise
        return store

    async def load(self, prefix: str = "") -> Snapshot:
        return await self._run(lambda: self._load(prefix))

    async def commit(self, changes: Mapping[str, bytes | None], guards: Mapping[str, int] | None = None) -> int:
        check_commit(changes, guards)
        fixed, held = dict(changes), dict(guards or {})
        return await self._run(lambda: self._commit(fixed, held))

    async def watch(self, prefix: str = "", since: int | None = None) -> AsyncGenerator[Snapshot | Commit, None]:
        wake = asyncio.Event()
        self._watchers.add(wake)
        try:
            while True:
                # Cleared before the look: a commit during the look sets it again.
                wake.clear()
                if since is None:
                    snapshot = await self.load(prefix)
                    since = snapshot.revision
                    yield snapshot
                    continue
                start = since
                found = await self._run(lambda start=start: self._changes(prefix, start))  # type: ignore[misc]
                if found is None:
                    since = None
                    continue
                reached, commits = found
                for commit in commits:
                    yield commit
                if reached == since:
                    await wake.wait()
                since = reached
        finally:
            self._watchers.discard(wake)

    async def lead(self, holder: str, gone: Callable[[str], bool] = nobody_is_gone) -> Leadership:
        """Won at once: who opens the file last leads, and an earlier leader is deposed."""
        version = await self.commit({LEAD_KEY: msgspec.json.encode(Leader(holder=holder))})
        return Leadership(holder, version)

    async def keep(self, leadership: Leadership) -> None:
        async with aclosing(self.watch(LEAD_KEY, leadership.version)) as events:
            await anext(events)

    async def start_from(self, revision: int) -> None:
        def move() -> None:
            self._file.execute(
                "UPDATE state SET revision = max(revision, ?), compacted = max(revision, ?)", (revision,) * 2
            )

        await self._run(lambda: self._transaction(move))

    async def compact(self, revision: int) -> None:
        """Forget what happened up to ``revision``; done by itself every now and then."""
        await self._run(lambda: self._transaction(lambda: self._compact(revision)))

    async def close(self) -> None:
        """Waits for a commit that is under way. Watchers get :class:`UnavailableError`."""
        if not self._closed:
            self._closed = True
            self._wake()
            with contextlib.suppress(HostError):
                await self._loop.run_in_executor(self._thread, self._file.close)
            self._thread.shutdown(wait=False)

    # The loop's side

    async def _run(self, work: Callable[[], T]) -> T:
        if self._closed:
            raise UnavailableError("the store is closed: the daemon is stopping")
        return await self._loop.run_in_executor(self._thread, self._guarded, work)

    def _wake(self) -> None:
        for wake in self._watchers:
            wake.set()

    # The thread's side

    def _guarded(self, work: Callable[[], T]) -> T:
        try:
            return work()
        except VxnetError:
            raise
        except (sqlite3.Error, OSError) as error:
            raise self._failure(error) from error

    def _failure(self, error: sqlite3.Error | OSError) -> HostError:
        code = getattr(error, "sqlite_errorcode", None)
        if code == sqlite3.SQLITE_FULL:
            return HostError(
                f"the store {self.path} cannot be written: the disk is full",
                hint="free some space; nothing was changed",
            )
        if code in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT):
            return HostError(f"the store {self.path} is damaged ({error})", hint="restore it from a backup")
        if code is not None and code & 0xFF == sqlite3.SQLITE_BUSY:
            return HostError(f"the store {self.path} is in use by another process")
        return HostError(f"the store {self.path} cannot be used: {getattr(error, 'strerror', None) or error}")

    def _open(self) -> None:
        fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            # Also of an older file: it holds the CA's key. SQLite gives -wal and -shm the same mode.
            os.fchmod(fd, 0o600)
        finally:
            os.close(fd)
        self._file = sqlite3.connect(self.path, isolation_level=None, timeout=_BUSY_S)
        try:
            self._prepare()
        except BaseException:
            self._file.close()
            raise

    def _prepare(self) -> None:
        self._file.execute("PRAGMA journal_mode = WAL")
        self._file.execute("PRAGMA synchronous = FULL")
        (found,) = self._file.execute("PRAGMA user_version").fetchone()
        if found > _FORMAT:
            raise UnsupportedError(
                f"the store {self.path} has format {found}, this vxnet knows {_FORMAT}", hint="install the newer vxnet"
            )
        if found == 0:
            self._transaction(lambda: [self._file.execute(line) for line in _SCHEMA.split(";\n") if line])

    def _transaction(self, work: Callable[[], T]) -> T:
        self._file.execute("BEGIN IMMEDIATE")
        try:
            result = work()
            self._file.execute("COMMIT")
        except BaseException:
            # SQLite has rolled back by itself after some errors, a full disk among them, and not after others.
            if self._file.in_transaction:
                self._file.execute("ROLLBACK")
            raise
        return result

    def _state(self) -> tuple[int, int]:
        revision, compacted = self._file.execute("SELECT revision, compacted FROM state").fetchone()
        return revision, compacted

    def _load(self, prefix: str) -> Snapshot:
        def read() -> Snapshot:
            rows = self._file.execute(
                "SELECT key, value, version FROM record WHERE key >= ? AND substr(key, 1, ?) = ? ORDER BY key",
                (prefix, len(prefix), prefix),
            )
            return Snapshot(self._state()[0], {key: Versioned(value, version) for key, value, version in rows})

        return self._transaction(read)

    def _commit(self, changes: dict[str, bytes | None], guards: dict[str, int]) -> int:
        def write() -> int:
            for key, version in guards.items():
                row = self._file.execute("SELECT version FROM record WHERE key = ?", (key,)).fetchone()
                if (row[0] if row else 0) != version:
                    raise refused_by(key)
            before, _ = self._state()
            revision = before + 1
            happened = [(revision, key, value) for key, value in changes.items() if self._put(key, value, revision)]
            if not happened:
                return before
            self._file.executemany("INSERT INTO change VALUES (?, ?, ?)", happened)
            self._file.execute("UPDATE state SET revision = ?", (revision,))
            if revision % _PRUNE_EVERY == 0:
                self._compact(revision - KEPT_REVISIONS)
            return revision

        revision = self._transaction(write)
        # From here, so that watchers hear of it also when the caller was cancelled meanwhile.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._wake)
        return revision

    def _put(self, key: str, value: bytes | None, revision: int) -> bool:
        """Whether anything happened: to delete what is not there is no event (nor is it one in etcd)."""
        if value is None:
            return self._file.execute("DELETE FROM record WHERE key = ?", (key,)).rowcount > 0
        self._file.execute("INSERT OR REPLACE INTO record VALUES (?, ?, ?)", (key, value, revision))
        return True

    def _compact(self, revision: int) -> None:
        if revision > 0:
            self._file.execute("DELETE FROM change WHERE revision <= ?", (revision,))
            self._file.execute("UPDATE state SET compacted = max(compacted, ?)", (revision,))

    def _changes(self, prefix: str, since: int) -> tuple[int, list[Commit]] | None:
        """(revision reached, commits after ``since``); None if they are no longer all there."""

        def read() -> tuple[int, list[Commit]] | None:
            revision, compacted = self._state()
            if since < compacted or since > revision:
                return None
            reached = min(revision, since + _READ_AT_ONCE)
            rows = self._file.execute(
                "SELECT revision, key, value FROM change WHERE revision > ? AND revision <= ? AND substr(key, 1, ?) = ?"
                " ORDER BY revision",
                (since, reached, len(prefix), prefix),
            )
            commits: dict[int, Commit] = {}
            for at, key, value in rows:
                commits.setdefault(at, Commit(at, {})).changes[key] = value
            return reached, list(commits.values())

        return self._transaction(read)
