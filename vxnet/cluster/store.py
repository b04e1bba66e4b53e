"""What the managers remember, behind four verbs that every engine keeps (tests/cluster/test_store.py is the contract).

load
    The records under a prefix, and the revision at which they stood so.
commit
    Several changes or none of them, each guarded by its record's version and, if wanted, by the leader's lease.
watch
    A snapshot and every later commit: no gap, no duplicate. Who fell behind what the engine still has gets a new
    snapshot.
lead
    One leader; a deposed one can commit nothing.

A key is text like ``network/<id>``, a value is a record in JSON. A *revision* counts commits; a record's *version* is
the revision that wrote it last; 0 stands for "does not exist". Engines: :mod:`vxnet.cluster.sqlite_store` for one
manager, :mod:`vxnet.cluster.etcd_store` for several.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping
from typing import NamedTuple, Protocol

from vxnet.model.errors import CallerError, ConflictError, UnavailableError

MAX_RECORDS = 100
"""Changes in a commit; etcd's default is 128 operations."""
MAX_OCTETS = 1_000_000
"""Keys and values of a commit; etcd's default is 1.5 MiB for a request, base64 around it included."""
MAX_KEY = 512
MAX_GUARDS = 120
LEAD_KEY = "lead"
"""Record of who leads, a :class:`vxnet.model.store.Leader`. Its version is the leader's guard."""


class Versioned(NamedTuple):
    value: bytes
    version: int


class Snapshot(NamedTuple):
    """Everything under the prefix as of ``revision``: what a watcher knew before is void."""

    revision: int
    records: dict[str, Versioned]


class Commit(NamedTuple):
    """What one commit did under the prefix; None: deleted. All records written have ``revision`` as version."""

    revision: int
    changes: dict[str, bytes | None]


class LeadershipLostError(UnavailableError):
    """Another manager leads: what was to be committed has not been."""


class Leadership(NamedTuple):
    holder: str
    version: int
    lease: int = 0
    """The engine's own."""

    @property
    def guard(self) -> dict[str, int]:
        """Goes into the guards of every commit that only the leader may make."""
        return {LEAD_KEY: self.version}


class Store(Protocol):
    """All methods raise :class:`HostError` (disk, file) or :class:`UnavailableError` (no quorum) when the engine
    cannot; nothing is half-done then.
    """

    @property
    def several_managers(self) -> bool:
        """Whether more than one manager can use it."""

    async def load(self, prefix: str = "") -> Snapshot: ...

    async def commit(self, changes: Mapping[str, bytes | None], guards: Mapping[str, int] | None = None) -> int:
        """The new revision. ``guards`` are the versions that records (also others than those changed) must have.

        Raises :class:`ConflictError` naming the first record that has another version,
        :class:`LeadershipLostError` if that is the leader's, :class:`CallerError` above the limits. An
        :class:`UnavailableError` leaves open whether it was done.
        """

    def watch(self, prefix: str = "", since: int | None = None) -> AsyncGenerator[Snapshot | Commit, None]:
        """Everything after revision ``since``, or from a snapshot on. Ends only when closed."""

    async def lead(self, holder: str, gone: Callable[[str], bool] = ...) -> Leadership:
        """Waits until ``holder`` (a node id) leads. A leader that is ``gone`` is not waited for."""

    async def keep(self, leadership: Leadership) -> None:
        """As long as it leads; returns when another may."""

    async def start_from(self, revision: int) -> None:
        """Every revision from now on is above ``revision``. For a store that nobody else has open, and that takes the
        place of another one: who has followed that must not take what is new for what is old.
        """

    async def close(self) -> None: ...


def nobody_is_gone(holder: str) -> bool:
    return False


def check_commit(changes: Mapping[str, bytes | None], guards: Mapping[str, int] | None = None) -> None:
    """The limits that all engines share."""
    if len(guards or {}) > MAX_GUARDS:
        raise CallerError(f"a commit with {len(guards or {})} guards: at most {MAX_GUARDS} are looked at")
    if not changes:
        raise CallerError("a commit without changes")
    if len(changes) > MAX_RECORDS:
        raise CallerError(f"a commit of {len(changes)} records: at most {MAX_RECORDS} go together")
    octets = sum(len(key) + len(value or b"") for key, value in changes.items())
    if octets > MAX_OCTETS:
        raise CallerError(f"a commit of {octets} octets: at most {MAX_OCTETS} go together")
    for key in changes:
        if not 0 < len(key) <= MAX_KEY:
            raise CallerError(f"a key of {len(key)} characters: 1 to {MAX_KEY} are allowed")


def refused_by(key: str) -> ConflictError | LeadershipLostError:
    """The error for a guard that does not hold."""
    if key == LEAD_KEY:
        return LeadershipLostError("this manager no longer leads", hint="try again: another one does")
    return ConflictError(f"record {key} was changed meanwhile", hint="try again")
