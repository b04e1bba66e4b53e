"""The store of several managers: etcd, three or more members of it.

::

    vxnet/<key>              the records
    vxnet:base               what is added to etcd's revisions: a restored store goes on above what anybody has seen
    vxnet:done/<who>/<slot>  the last commit of a manager's, in that slot

A request whose answer is lost is made again, by another member if need be. So each commit also writes its own number
into a slot, guarded by the slot's version: it is carried out once, and who asks again finds that it was.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from typing import Any, TypeVar

import aiohttp
import msgspec

from vxnet.cluster.etcd import MAX_LINE, Etcd, EtcdError
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
from vxnet.model.errors import ConflictError, HostError, UnavailableError
from vxnet.model.store import Leader, StoreAccess

T = TypeVar("T")
log = logging.getLogger(__name__)

LEASE_S = 5
"""A leader that is silent for so long leads no more; one whose host is known to be dead is deposed at once."""
LEAD_LOOK_S = 0.3
TICK_S = 1.0
"""A watch that has not shown for so long what was committed is opened at another member."""
SILENCE_S = 8.0
"""And so is one that says nothing at all: a frozen member looks like one without news."""
AGAIN_S = (0.1, 2.0)
PAGE = 1000
"""Records read at once."""


class _Header(msgspec.Struct):
    revision: int = 0


class _Record(msgspec.Struct):
    key: bytes = b""
    value: bytes = b""
    mod_revision: int = 0


class _Range(msgspec.Struct):
    header: _Header = msgspec.field(default_factory=_Header)
    kvs: list[_Record] = []
    more: bool = False


class _Deleted(msgspec.Struct):
    deleted: int = 0


class _Response(msgspec.Struct):
    response_range: _Range | None = None
    response_delete_range: _Deleted | None = None


class _Txn(msgspec.Struct):
    header: _Header
    succeeded: bool = False
    responses: list[_Response] = []


class _Lease(msgspec.Struct, rename="upper"):
    id: int = 0
    ttl: int = 0


class _Alive(msgspec.Struct):
    result: _Lease


class _Event(msgspec.Struct):
    kv: _Record
    type: str = "PUT"


class _Watched(msgspec.Struct):
    header: _Header = msgspec.field(default_factory=_Header)
    created: bool = False
    canceled: bool = False
    compact_revision: int = 0
    fragment: bool = False
    events: list[_Event] = []


class _Line(msgspec.Struct):
    result: _Watched | None = None
    error: Any = None


class _Slot:
    def __init__(self, key: bytes) -> None:
        self.key = key
        self.version: int | None = None
        """None: it has to be looked up."""


class _BrokenOffError(Exception):
    """The watch is to be opened again, where it was."""


class _GapError(Exception):
    """What came after that revision is no longer all there."""


class EtcdStore:
    """See :class:`vxnet.cluster.store.Store`. Made by :meth:`open`."""

    several_managers = True

    def __init__(self, access: StoreAccess, identity: str) -> None:
        self.etcd = Etcd(access)
        self._prefix = f"{access.prefix}/".encode()
        self._meta = f"{access.prefix}:".encode()
        self._identity = identity
        self._base = 0
        self._slots: list[_Slot] = []
        self._slots_made = 0
        self._committed = 0
        """etcd's revision of what was last written from here: watches have to show it."""
        self._closed = False

    @classmethod
    async def open(cls, access: StoreAccess, identity: str = "") -> EtcdStore:
        """``identity`` is of one open store alone: a manager's node id. Raises :class:`UnavailableError`,
        :class:`CallerError` on credentials that are none, :class:`HostError` if etcd refuses.
        """
        store = cls(access, identity or secrets.token_hex(8))
        try:
            await store._find_base()
        except BaseException:
            await store.close()
            raise
        return store

    async def start_from(self, revision: int) -> None:
        """For a store that nobody else has open."""
        await self._call("/v3/kv/put", {"key": self._meta + b"base", "value": str(revision).encode()}, _Range)
        await self._find_base()

    async def load(self, prefix: str = "") -> Snapshot:
        """Without a quorum: as the member knows it that answers, which may be older."""
        try:
            return await self._load(prefix)
        except UnavailableError as error:
            with contextlib.suppress(UnavailableError):
                return await self._load(prefix, serializable=True)
            raise error

    async def commit(self, changes: Mapping[str, bytes | None], guards: Mapping[str, int] | None = None) -> int:
        """When :class:`UnavailableError` says so, it may have been done all the same."""
        check_commit(changes, guards)
        slot = self._slots.pop() if self._slots else self._new_slot()
        try:
            revision = await self._commit(slot, changes, guards or {})
        finally:
            self._slots.append(slot)
        return revision + self._base

    async def watch(self, prefix: str = "", since: int | None = None) -> AsyncGenerator[Snapshot | Commit, None]:
        pause = AGAIN_S[0]
        at = None if since is None else since - self._base
        while True:
            try:
                if at is None:
                    snapshot = await self._load(prefix)
                    at = snapshot.revision - self._base
                    yield snapshot
                async with aclosing(self._follow(prefix, at)) as events:
                    async for reached, changes in events:
                        at, pause = reached, AGAIN_S[0]
                        if changes:
                            yield Commit(reached + self._base, changes)
            except _GapError:
                at = None
            except (_BrokenOffError, UnavailableError) as error:
                self._check_open()
                log.debug("watch of the store opened again: %s", error)
                await asyncio.sleep(pause)
                pause = min(pause * 2, AGAIN_S[1])

    async def lead(self, holder: str, gone: Callable[[str], bool] = nobody_is_gone) -> Leadership:
        key = self._key(LEAD_KEY)
        while True:
            try:
                found = (await self._call("/v3/kv/range", {"key": key}, _Range)).kvs
                if not found or _holder(found[0].value) == holder or gone(_holder(found[0].value)):
                    lease = (await self._call("/v3/lease/grant", {"TTL": LEASE_S}, _Lease)).id
                    value = msgspec.json.encode(Leader(holder=holder))
                    put = {"request_put": {"key": key, "value": value, "lease": lease}}
                    compare = _version_is(key, found[0].mod_revision if found else 0)
                    answer = await self._call("/v3/kv/txn", {"compare": [compare], "success": [put]}, _Txn)
                    if answer.succeeded:
                        self._committed = max(self._committed, answer.header.revision)
                        return Leadership(holder, answer.header.revision + self._base, lease)
            except UnavailableError as error:
                self._check_open()
                log.debug("nobody can lead: %s", error)
            await asyncio.sleep(LEAD_LOOK_S)

    async def keep(self, leadership: Leadership) -> None:
        loop = asyncio.get_running_loop()
        key, version = self._key(LEAD_KEY), leadership.version - self._base
        heard = loop.time()
        while loop.time() - heard < LEASE_S:
            began = loop.time()
            try:
                alive = await self._call("/v3/lease/keepalive", {"ID": leadership.lease}, _Alive, within_s=LEASE_S / 2)
                found = (await self._call("/v3/kv/range", {"key": key, "keys_only": True}, _Range, within_s=1.0)).kvs
            except UnavailableError:
                await asyncio.sleep(LEAD_LOOK_S)
                continue
            if not alive.result.ttl or not found or found[0].mod_revision != version:
                return
            heard = began
            await asyncio.sleep(LEASE_S / 4)

    async def compact(self, revision: int) -> None:
        """Forget what happened up to ``revision``: of all that is in this etcd."""
        await self._call("/v3/kv/compaction", {"revision": revision - self._base, "physical": True}, _Range)

    async def close(self) -> None:
        """Watchers get :class:`UnavailableError`."""
        self._closed = True
        await self.etcd.close()

    # Parts

    def _check_open(self) -> None:
        if self._closed:
            raise UnavailableError("the store is closed: the daemon is stopping")

    async def _call(self, path: str, body: Mapping[str, Any], kind: type[T], **settings: float) -> T:
        self._check_open()
        try:
            return await self.etcd.call(path, body, kind, **settings)
        except EtcdError as error:
            raise HostError(f"etcd refuses: {error.message}") from error

    def _key(self, key: str) -> bytes:
        return self._prefix + key.encode()

    async def _find_base(self) -> None:
        body: dict[str, Any] = {"key": self._meta + b"base"}
        try:
            found = await self._call("/v3/kv/range", body, _Range)
        except UnavailableError as error:
            with contextlib.suppress(UnavailableError):
                found = await self._call("/v3/kv/range", body | {"serializable": True}, _Range)
                self._base = int(found.kvs[0].value) if found.kvs else 0
                return
            raise error
        self._base = int(found.kvs[0].value) if found.kvs else 0

    async def _load(self, prefix: str, *, serializable: bool = False) -> Snapshot:
        """By pages of one revision."""
        start, end = self._key(prefix), _behind(self._key(prefix))
        records: dict[str, Versioned] = {}
        revision = 0
        while True:
            body = {"key": start, "range_end": end, "limit": PAGE, "revision": revision, "serializable": serializable}
            page = await self._call("/v3/kv/range", body, _Range, attempt_s=2.0)
            revision = revision or page.header.revision
            for one in page.kvs:
                records[one.key[len(self._prefix) :].decode()] = Versioned(one.value, one.mod_revision + self._base)
            if not page.more:
                return Snapshot(revision + self._base, records)
            start = page.kvs[-1].key + b"\0"

    # Commits

    def _new_slot(self) -> _Slot:
        self._slots_made += 1
        return _Slot(self._meta + f"done/{self._identity}/{self._slots_made}".encode())

    async def _commit(self, slot: _Slot, changes: Mapping[str, bytes | None], guards: Mapping[str, int]) -> int:
        held = {key: max(version - self._base, 0) for key, version in guards.items()}
        number = secrets.token_bytes(12)
        puts = any(value is not None for value in changes.values())
        success: list[dict[str, Any]] = [_change(self._key(key), value) for key, value in changes.items()]
        success.append({"request_put": {"key": slot.key, "value": number}})
        if not puts:
            success.append({"request_range": _newest(self._prefix)})
        looks = [{"request_range": {"key": self._key(key), "keys_only": True}} for key in held]
        while True:
            version = slot.version
            if version is None:
                found = (await self._call("/v3/kv/range", {"key": slot.key}, _Range)).kvs
                version = found[0].mod_revision if found else 0
            slot.version = None  # until it is known again
            compare = [_version_is(slot.key, version), *(_version_is(self._key(key), at) for key, at in held.items())]
            failure = [{"request_range": {"key": slot.key}}, *looks]
            body = {"compare": compare, "success": success, "failure": failure}
            answer = await self._call("/v3/kv/txn", body, _Txn)
            if answer.succeeded:
                slot.version = answer.header.revision
                return self._reached(answer, puts)
            mark, *seen = [one.response_range or _Range() for one in answer.responses]
            slot.version = mark.kvs[0].mod_revision if mark.kvs else 0
            if mark.kvs and mark.kvs[0].value == number:
                # It was carried out, and that answer was lost.
                self._committed = max(self._committed, slot.version)
                return slot.version
            for key, one in zip(held, seen, strict=True):
                if (one.kvs[0].mod_revision if one.kvs else 0) != held[key]:
                    raise refused_by(key)
            if slot.version == version:
                raise ConflictError("the store changed meanwhile", hint="try again")

    def _reached(self, answer: _Txn, puts: bool) -> int:
        """The revision that watchers will see; deletions of what is not there are no event."""
        revision = answer.header.revision
        if not puts and not any(
            one.response_delete_range and one.response_delete_range.deleted for one in answer.responses
        ):
            last = answer.responses[-1].response_range
            return last.kvs[0].mod_revision if last is not None and last.kvs else 0
        self._committed = max(self._committed, revision)
        return revision

    # Watches

    async def _follow(self, prefix: str, since: int) -> AsyncGenerator[tuple[int, dict[str, bytes | None]], None]:
        """(etcd's revision, changes) after ``since`` from one member. Raises :class:`_BrokenOffError`,
        :class:`_GapError`.
        """
        self._check_open()
        start = self._key(prefix)
        wish = {"key": start, "range_end": _behind(start), "start_revision": since + 1, "fragment": True}
        body = {"create_request": wish | {"progress_notify": True}}
        endpoint = self.etcd.in_turn()[0]
        pending: list[_Event] = []
        try:
            async with self.etcd.stream(endpoint, "/v3/watch", body) as content:
                lines = _Lines(content)
                while True:
                    found = await self._next(lines, endpoint, since)
                    if found.created and found.header.revision < since:
                        await self._check_future(since)
                    if found.compact_revision:
                        raise _GapError
                    if found.canceled:
                        raise _BrokenOffError("canceled")
                    pending += found.events
                    if found.fragment or found.created:
                        continue
                    for at, changes in self._commits(pending):
                        since = at
                        yield at, changes
                    if not pending and found.header.revision > since:
                        since = found.header.revision
                        yield since, {}
                    pending = []
        except (aiohttp.ClientError, OSError, TimeoutError, msgspec.DecodeError) as error:
            self.etcd.avoid(endpoint)
            raise _BrokenOffError(f"{self.etcd.name(endpoint)}: {str(error) or type(error).__name__}") from error

    async def _next(self, lines: _Lines, endpoint: str, since: int) -> _Watched:
        loop = asyncio.get_running_loop()
        began = loop.time()
        while True:
            owed = self._committed > since
            line = await lines.next(TICK_S)
            if line is None:
                if (owed and self._committed > since) or loop.time() - began > SILENCE_S:
                    if owed:
                        self.etcd.avoid(endpoint)
                    raise _BrokenOffError("it is silent")
                continue
            found = msgspec.json.decode(line, type=_Line, strict=False)
            if found.result is None:
                self.etcd.avoid(endpoint)
                raise _BrokenOffError(str(found.error))
            return found.result

    async def _check_future(self, since: int) -> None:
        """A revision that this etcd has not had: a member is late, or etcd was restored from a backup."""
        found = await self._call("/v3/kv/range", {"key": self._meta + b"base"}, _Range)
        if found.header.revision < since:
            raise _GapError

    def _commits(self, events: Sequence[_Event]) -> list[tuple[int, dict[str, bytes | None]]]:
        commits: dict[int, dict[str, bytes | None]] = {}
        for event in events:
            key = event.kv.key[len(self._prefix) :].decode()
            value = None if event.type == "DELETE" else event.kv.value
            commits.setdefault(event.kv.mod_revision, {})[key] = value
        return list(commits.items())


class _Lines:
    """Not the reader's own, which give up above 512 KiB."""

    def __init__(self, content: aiohttp.StreamReader) -> None:
        self._content = content
        self._begun: list[bytes] = []
        self._whole: list[bytes] = []
        self._octets = 0

    async def next(self, within_s: float) -> bytes | None:
        """None: nothing whole came in time."""
        try:
            async with asyncio.timeout(within_s):
                while not self._whole:
                    chunk = await self._content.readany()
                    if not chunk:
                        raise aiohttp.ClientPayloadError("the stream ended")
                    first, *others = chunk.split(b"\n")
                    self._begun.append(first)
                    self._octets += len(first)
                    for part in others:
                        self._whole.append(b"".join(self._begun))
                        self._begun, self._octets = [part], len(part)
                    if self._octets > MAX_LINE:
                        raise aiohttp.ClientPayloadError(f"a line of more than {MAX_LINE} octets")
        except TimeoutError:
            return None
        return self._whole.pop(0)


def _holder(value: bytes) -> str:
    try:
        return msgspec.json.decode(value, type=Leader).holder
    except (msgspec.DecodeError, msgspec.ValidationError):
        return ""


def _version_is(key: bytes, version: int) -> dict[str, Any]:
    return {"key": key, "target": "MOD", "result": "EQUAL", "mod_revision": version}


def _change(key: bytes, value: bytes | None) -> dict[str, Any]:
    if value is None:
        return {"request_delete_range": {"key": key}}
    return {"request_put": {"key": key, "value": value}}


def _newest(prefix: bytes) -> dict[str, Any]:
    order = {"sort_order": "DESCEND", "sort_target": "MOD", "limit": 1, "keys_only": True}
    return {"key": prefix, "range_end": _behind(prefix)} | order


def _behind(prefix: bytes) -> bytes:
    """The first key after all that begin with ``prefix``, which ends with no 0xff: it is UTF-8."""
    return prefix[:-1] + bytes([prefix[-1] + 1])
