"""The store's contract, on every engine; then what is particular to SQLite. For etcd see test_etcd_store.py."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import signal
import sqlite3
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cluster.etcd_cluster import EtcdCluster
from tests.mounts import small_disk
from vxnet.cluster.etcd_store import EtcdStore
from vxnet.cluster.sqlite_store import KEPT_REVISIONS, SqliteStore
from vxnet.cluster.store import LEAD_KEY, MAX_OCTETS, MAX_RECORDS, Commit, Leadership, LeadershipLostError, Snapshot
from vxnet.model.errors import CallerError, ConflictError, HostError, UnavailableError, UnsupportedError

DEADLINE_S = 20
# CPython 3.11's asyncio leaves a TLS connection that is given up to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


class SqliteEngine:
    """How the contract's tests get at an engine: open (again), and make it forget its history."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._opened: list[SqliteStore] = []

    async def open(self) -> SqliteStore:
        store = await SqliteStore.open(self.path)
        self._opened.append(store)
        return store

    async def forget_history(self, store: SqliteStore) -> None:
        await store.compact((await store.load()).revision)

    async def depose(self, store: SqliteStore, leadership: Leadership) -> SqliteStore:
        """Whoever leads next does it; there is one store a process."""
        return store

    async def close(self) -> None:
        for store in self._opened:
            await store.close()


class EtcdEngine:
    def __init__(self, cluster: EtcdCluster) -> None:
        self._access = cluster.access(f"test/{next(_PREFIXES)}")
        self._opened: list[EtcdStore] = []

    async def open(self) -> EtcdStore:
        store = await EtcdStore.open(self._access)
        self._opened.append(store)
        return store

    async def forget_history(self, store: EtcdStore) -> None:
        await store.compact((await store.load()).revision)

    async def depose(self, store: EtcdStore, leadership: Leadership) -> EtcdStore:
        """As when its lease runs out; another manager's store."""
        await store.etcd.call("/v3/lease/revoke", {"ID": leadership.lease}, dict)
        return await self.open()

    async def close(self) -> None:
        for store in self._opened:
            await store.close()


_PREFIXES = itertools.count()


@pytest.fixture(params=["sqlite", pytest.param("etcd", marks=pytest.mark.slow)])
async def engine(request, tmp_path):
    if request.param == "etcd":
        engine = EtcdEngine(request.getfixturevalue("etcd_cluster"))
    else:
        engine = SqliteEngine(tmp_path / "store.db")
    yield engine
    await engine.close()


@pytest.fixture
async def store(engine):
    return await engine.open()


@contextlib.asynccontextmanager
async def watching(store, prefix="", since=None):
    """``await next_event()`` has a deadline."""
    events = store.watch(prefix, since)

    async def next_event():
        return await asyncio.wait_for(anext(events), DEADLINE_S)

    try:
        yield next_event
    finally:
        await events.aclose()


# load and commit


async def test_what_is_committed_is_loaded(store):
    first = await store.commit({"a/1": b"one", "a/2": b"two", "b/1": b"three"})
    second = await store.commit({"a/1": b"uno", "a/2": None})
    assert second > first
    assert await store.load() == Snapshot(second, {"a/1": (b"uno", second), "b/1": (b"three", first)})
    assert (await store.load("a/")).records == {"a/1": (b"uno", second)}
    assert (await store.load("nothing/")) == Snapshot(second, {})


async def test_prefixes_are_not_patterns(store):
    await store.commit({"a%/1": b"1", "ab/1": b"2", "a_/1": b"3", "a": b"4", "é/x": b"5"})
    for prefix, expected in (("a%", ["a%/1"]), ("a_", ["a_/1"]), ("a", ["a", "a%/1", "a_/1", "ab/1"]), ("é", ["é/x"])):
        assert sorted((await store.load(prefix)).records) == expected


async def test_it_is_all_there_after_reopening(engine):
    store = await engine.open()
    revision = await store.commit({"a": b"1"})
    await store.close()
    again = await engine.open()
    assert await again.load() == Snapshot(revision, {"a": (b"1", revision)})
    assert await again.commit({"b": b"2"}) > revision


async def test_guards(store):
    first = await store.commit({"a": b"1"}, {"a": 0})
    with pytest.raises(ConflictError, match="a was changed"):
        await store.commit({"a": b"2"}, {"a": 0})
    second = await store.commit({"a": b"2"}, {"a": first})
    with pytest.raises(ConflictError, match="a was changed"):
        await store.commit({"b": b"x"}, {"a": first, "b": 0})
    assert await store.load() == Snapshot(second, {"a": (b"2", second)})
    third = await store.commit({"a": None}, {"a": second})
    assert await store.commit({"a": b"new"}, {"a": 0}) > third


async def test_all_or_nothing(store):
    held = await store.commit({"held": b""})
    before = await store.load()
    with pytest.raises(ConflictError):
        await store.commit({"a": b"", "b": b"", "held": None}, {"a": 0, "held": held, "b": 7})
    assert await store.load() == before


async def test_limits(store):
    before = await store.load()
    for changes in (
        {f"a{number}": b"" for number in range(MAX_RECORDS + 1)},
        {"a": b"x" * MAX_OCTETS},
        {"": b"x"},
        {"k" * 1000: b"x"},
        {},
    ):
        with pytest.raises(CallerError):
            await store.commit(changes)
    assert await store.load() == before
    await store.commit({f"a{number}": b"x" * (MAX_OCTETS // MAX_RECORDS - 10) for number in range(MAX_RECORDS)})


async def test_deleting_nothing_is_no_event(store):
    revision = await store.commit({"a": b"1"})
    assert await store.commit({"b": None}) == revision


async def test_concurrent_guarded_writers_lose_nothing(store):
    await store.commit({"counter": b"0"})

    async def add(times):
        while times:
            value, version = (await store.load("counter")).records["counter"]
            try:
                await store.commit({"counter": str(int(value) + 1).encode()}, {"counter": version})
            except ConflictError:
                continue
            times -= 1

    await asyncio.wait_for(asyncio.gather(*(add(10) for _ in range(5))), DEADLINE_S)
    assert (await store.load()).records["counter"].value == b"50"


# watch


async def test_watch_begins_with_a_snapshot(store):
    revision = await store.commit({"a/1": b"1", "b/1": b"2"})
    async with watching(store, "a/") as next_event:
        assert await next_event() == Snapshot(revision, {"a/1": (b"1", revision)})
        await store.commit({"b/1": b"other"})
        deleted = await store.commit({"a/1": None, "a/2": b"2", "b/2": b""})
        assert await next_event() == Commit(deleted, {"a/1": None, "a/2": b"2"})


async def test_watch_goes_on_from_a_revision(store):
    start = await store.commit({"a": b"1"})
    revisions = [await store.commit({"a": str(number).encode()}) for number in range(3)]
    async with watching(store, "", start) as next_event:
        assert [(await next_event()).revision for _ in range(3)] == revisions
    async with watching(store, "", revisions[-1]) as next_event:
        last = await store.commit({"b": b""})
        assert await next_event() == Commit(last, {"b": b""})


async def test_watch_without_gap_or_duplicate_under_load(store):
    """Watchers that start at any time, while others write: each one's view ends equal to the store."""
    total = 300

    async def write(writer):
        for number in range(total // 3):
            await store.commit({f"k/{writer}/{number % 7}": str(number).encode() if number % 5 else None})

    async def follow(delay):
        for _ in range(delay):
            await store.load("none")
        view, last = {}, -1
        async with watching(store, "k/") as next_event:
            while True:
                event = await next_event()
                assert event.revision > last
                last = event.revision
                if isinstance(event, Snapshot):
                    assert not view
                    view = {key: record.value for key, record in event.records.items()}
                else:
                    view |= event.changes
                view = {key: value for key, value in view.items() if value is not None}
                if "k/end" in view:
                    return view

    followers = [asyncio.create_task(follow(delay)) for delay in (0, 3, 20, 50)]
    await asyncio.gather(*(write(writer) for writer in range(3)))
    await store.commit({"k/end": b""})
    for view in await asyncio.wait_for(asyncio.gather(*followers), DEADLINE_S):
        assert view == {key: record.value for key, record in (await store.load("k/")).records.items()}


async def test_who_is_behind_what_is_kept_gets_a_snapshot(engine, store):
    first = await store.commit({"a": b"1"})
    await store.commit({"a": b"1a"})
    second = await store.commit({"a": b"2", "b": b""})
    await engine.forget_history(store)
    async with watching(store, "", first) as next_event:
        assert await next_event() == Snapshot(second, {"a": (b"2", second), "b": (b"", second)})
        third = await store.commit({"b": None})
        assert await next_event() == Commit(third, {"b": None})


async def test_compaction_under_a_watch(engine, store):
    await store.commit({"a": b"0"})
    async with watching(store) as next_event:
        await next_event()
        await store.commit({"a": b"1"})
        last = await store.commit({"a": b"2"})
        await engine.forget_history(store)
        event = await next_event()
        while event.revision < last:
            event = await next_event()
        seen = event.records["a"].value if isinstance(event, Snapshot) else event.changes["a"]
        assert seen == b"2"


async def test_from_a_revision_of_the_future_comes_a_snapshot(store):
    """The store is a restored backup, and the watcher knew more."""
    revision = await store.commit({"a": b"1"})
    async with watching(store, "", revision + 100) as next_event:
        assert (await next_event()).revision == revision


async def test_a_cancelled_commit_is_done_or_not_and_watchers_hear_of_it(store):
    async with watching(store) as next_event:
        await next_event()
        task = asyncio.create_task(store.commit({"a": b"1"}))
        await asyncio.sleep(0)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        await store.commit({"b": b""})
        seen = set()
        while "b" not in seen:
            seen |= set((await next_event()).changes)
        assert seen == set((await store.load()).records)


# lead


async def test_a_deposed_leader_can_commit_nothing(engine, store):
    first = await store.lead("node1")
    await store.commit({"a": b"1"}, first.guard)
    kept = asyncio.create_task(store.keep(first))
    other = await engine.depose(store, first)
    second = await other.lead("node2")
    await asyncio.wait_for(kept, DEADLINE_S)
    before = await store.load()
    with pytest.raises(LeadershipLostError):
        await store.commit({"a": b"2"}, first.guard)
    assert await store.load() == before
    await store.commit({"a": b"3"}, second.guard)
    assert b"node2" in before.records[LEAD_KEY].value


async def test_a_node_takes_its_own_leadership_over(store):
    """Its daemon was killed and is back."""
    first = await store.lead("node1")
    second = await asyncio.wait_for(store.lead("node1"), 1)
    with pytest.raises(LeadershipLostError):
        await store.commit({"a": b""}, first.guard)
    await store.commit({"a": b""}, second.guard)


async def test_a_restored_store_goes_on_above_the_old_one(engine, store):
    await store.start_from(5_000_000)
    revision = await store.commit({"a": b"1"})
    assert revision > 5_000_000
    assert await store.load() == Snapshot(revision, {"a": (b"1", revision)})
    async with watching(store, "", 4_999_990) as next_event:
        assert await next_event() == Snapshot(revision, {"a": (b"1", revision)})
        second = await store.commit({"a": b"2"}, {"a": revision, "b": 0})
        assert await next_event() == Commit(second, {"a": b"2"})
    again = await engine.open()
    assert (await again.load()).records == {"a": (b"2", second)}


async def test_a_closed_store_says_so(engine):
    store = await engine.open()
    async with watching(store) as next_event:
        await next_event()
        waiting = asyncio.create_task(next_event())
        await asyncio.sleep(0)
        await store.close()
        with pytest.raises(UnavailableError):
            await waiting
    with pytest.raises(UnavailableError):
        await store.load()


# SQLite alone


async def test_only_root_reads_the_file(tmp_path):
    path = tmp_path / "store.db"
    path.touch(mode=0o644)
    store = await SqliteStore.open(path)
    await store.commit({"ca/1": b"secret"})
    files = list(tmp_path.iterdir())
    assert len(files) == 3
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}
    await store.close()


async def test_history_is_bounded(tmp_path):
    store = await SqliteStore.open(tmp_path / "store.db")
    await store._run(lambda: store._file.execute("PRAGMA synchronous = OFF"))
    for number in range(KEPT_REVISIONS + 200):
        await store.commit({"a": str(number).encode()})
    await store.close()
    with contextlib.closing(sqlite3.connect(tmp_path / "store.db")) as file:
        assert KEPT_REVISIONS <= file.execute("SELECT count(*) FROM change").fetchone()[0] <= KEPT_REVISIONS + 100


@pytest.mark.parametrize("content", [b"rubbish" * 1000, b"SQLite format 3\0" + b"\xff" * 5000])
async def test_a_damaged_file_is_named(tmp_path, content):
    (tmp_path / "store.db").write_bytes(content)
    with pytest.raises(HostError, match=r"store\.db is damaged"):
        await SqliteStore.open(tmp_path / "store.db")


async def test_a_place_that_cannot_be_written_is_named(tmp_path):
    with pytest.raises(HostError, match=r"store\.db cannot be used: No such file or directory"):
        await SqliteStore.open(tmp_path / "absent" / "store.db")


async def test_a_newer_format_is_refused(tmp_path):
    with contextlib.closing(sqlite3.connect(tmp_path / "store.db")) as file:
        file.execute("PRAGMA user_version = 99")
    with pytest.raises(UnsupportedError, match="99"):
        await SqliteStore.open(tmp_path / "store.db")


_WRITER = """
import asyncio
import sys
from pathlib import Path
from vxnet.cluster.sqlite_store import SqliteStore
async def main():
    store = await SqliteStore.open(Path(sys.argv[1]))
    number = 0
    while True:
        await store.commit({f"a/{number % 10}": b"%d" % number, f"b/{number % 10}": b"%d" % number})
        print(number, flush=True)
        number += 1
asyncio.run(main())
"""


def _commits_until_killed(path, minimum):
    """How many commits a process acknowledged before it was killed."""
    with subprocess.Popen([sys.executable, "-c", _WRITER, str(path)], stdout=subprocess.PIPE, text=True) as writer:
        try:
            for line in writer.stdout:
                if int(line) >= minimum:
                    break
        finally:
            writer.send_signal(signal.SIGKILL)
        return minimum + len(writer.stdout.read().splitlines())


async def test_what_was_acknowledged_survives_a_kill(tmp_path):
    path = tmp_path / "store.db"
    acknowledged = _commits_until_killed(path, 50)
    store = await SqliteStore.open(path)
    records = (await store.load()).records
    newest = max(int(record.value) for record in records.values())
    assert acknowledged <= newest <= acknowledged + 1
    for number in range(10):
        assert records[f"a/{number}"] == records[f"b/{number}"]
    await store.close()


@pytest.fixture
def disk(tmp_path):
    with small_disk(tmp_path / "disk", "512k") as place:
        yield place


@pytest.mark.root
async def test_a_commit_that_the_disk_cannot_take(disk):
    store = await SqliteStore.open(disk / "store.db")
    await store.commit({"a": b"1"})
    before = await store.load()
    with pytest.raises(HostError, match="the disk is full") as caught:
        await store.commit({f"big/{number}": b"x" * 10_000 for number in range(90)})
    assert "nothing was changed" in caught.value.hint
    assert await store.load() == before
    assert await store.commit({"a": b"2"}) == before.revision + 1
    await store.close()
    again = await SqliteStore.open(disk / "store.db")
    assert {key: record.value for key, record in (await again.load()).records.items()} == {"a": b"2"}
    await again.close()


@pytest.mark.root
async def test_a_full_disk_is_said_and_survived(disk):
    def fill():
        with open(disk / "filler", "ab", buffering=0) as filler, contextlib.suppress(OSError):
            while True:
                filler.write(b"x" * 4096)

    async def write_until_refused():
        for number in range(500):
            await store.commit({f"a/{number}": b"x" * 1000})

    store = await SqliteStore.open(disk / "store.db")
    await store.commit({"a/0": b"1"})
    fill()
    with pytest.raises(HostError, match="the disk is full"):
        await write_until_refused()
    reached = await store.load()
    with pytest.raises(HostError, match="the disk is full"):
        await store.commit({"b": b"x" * 100_000})
    assert await store.load() == reached
    (disk / "filler").unlink()
    assert await store.commit({"b": b"again"}) == reached.revision + 1
    await store.close()
    again = await SqliteStore.open(disk / "store.db")
    assert (await again.load("a/")).records == {
        key: record for key, record in reached.records.items() if key.startswith("a/")
    }
    assert (await again.load("b")).records["b"].value == b"again"
    await again.close()
