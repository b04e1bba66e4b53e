"""What befalls an etcd of three: frozen and killed members, no quorum, full disks, its limits."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
from pathlib import Path

import pytest

from tests.cluster.etcd_cluster import EtcdCluster
from tests.mounts import small_disk
from vxnet.cluster.etcd import _ElsewhereError
from vxnet.cluster.etcd_store import EtcdStore
from vxnet.cluster.store import MAX_GUARDS, MAX_OCTETS, MAX_RECORDS, Commit, LeadershipLostError, Snapshot
from vxnet.model.errors import CallerError, UnavailableError

DEADLINE_S = 30
# A TLS handshake with a frozen member that is given up is left to the garbage collector by CPython 3.11's asyncio.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")]
_PREFIXES = itertools.count()


@pytest.fixture
def cluster(etcd_cluster):
    yield etcd_cluster
    etcd_cluster.mend()
    gc.collect()


@pytest.fixture
async def open_store(cluster):
    """Each asks the members in the order that is given."""
    prefix = f"faults/{next(_PREFIXES)}"
    async with contextlib.AsyncExitStack() as stack:

        async def open(*order, identity=""):
            store = await EtcdStore.open(cluster.access(prefix, order), identity)
            stack.push_async_callback(store.close)
            return store

        yield open


class Follower:
    """A view of the store by its watch alone, which must have no gap, no duplicate and no step back."""

    def __init__(self, store):
        self.view, self.revision = {}, 0
        self._moved = asyncio.Event()
        self._task = asyncio.create_task(self._run(store))

    async def _run(self, store):
        async with contextlib.aclosing(store.watch()) as events:
            async for event in events:
                assert event.revision > self.revision
                self.revision = event.revision
                if isinstance(event, Snapshot):
                    self.view = {key: record.value for key, record in event.records.items()}
                else:
                    self.view |= event.changes
                self._moved.set()

    async def reach(self, revision):
        async with asyncio.timeout(DEADLINE_S):
            while self.revision < revision:
                self._moved.clear()
                if self._task.done():
                    self._task.result()
                await self._moved.wait()

    async def close(self):
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task


@pytest.fixture
async def follow():
    followers = []

    def start(store):
        followers.append(Follower(store))
        return followers[-1]

    yield start
    for follower in followers:
        await follower.close()


def places(cluster, member):
    """That member first, then the others."""
    first = cluster.members.index(member)
    return [first, *({0, 1, 2} - {first})]


async def test_a_commit_and_a_watch_pass_a_frozen_member_over(cluster, open_store, follow):
    member = cluster.members[0]
    store = await open_store(*places(cluster, member))
    follower = follow(store)
    await follower.reach(await store.commit({"a": b"1"}))
    member.freeze()
    revision = await store.commit({"a": b"2"})
    await follower.reach(revision)
    assert follower.view["a"] == b"2"


async def test_a_watch_that_begins_on_a_frozen_member_ends(cluster, open_store):
    """The connection is one of before, and the question goes into it."""
    store = await open_store(*places(cluster, cluster.members[0]))
    await store.commit({"a": b"1"})
    endpoint = store.etcd.in_turn()[0]
    cluster.members[0].freeze()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(DEADLINE_S) as patience, store.etcd.stream(endpoint, "/v3/watch", {}):
            pass
    assert not patience.expired()


async def test_a_watch_that_only_listens_leaves_a_frozen_member_too(cluster, open_store, follow):
    """Another manager writes, by other members."""
    member = next(one for one in cluster.members if one is not cluster.leader())
    listener = await open_store(*places(cluster, member))
    others = {0, 1, 2} - {cluster.members.index(member)}
    writer = await open_store(*others)
    follower = follow(listener)
    await follower.reach(await writer.commit({"a": b"1"}))
    member.freeze()
    await follower.reach(await writer.commit({"a": b"2"}))


async def test_the_death_of_etcds_leader_loses_and_doubles_nothing(cluster, open_store, follow):
    leader = cluster.leader()
    store = await open_store(*places(cluster, leader))
    follower = follow(await open_store(*places(cluster, leader)))
    count, revision = 60, 0
    for number in range(count):
        if number == 20:
            leader.kill()
        # Guarded by what it was before: a commit that is carried out twice would be refused.
        revision = await store.commit({"n": str(number).encode(), f"n/{number}": b""}, {"n": revision})
    await follower.reach(revision)
    assert follower.view["n"] == str(count - 1).encode()
    assert sum(key.startswith("n/") for key in follower.view) == count
    seen = (await store.load("n/")).records
    assert len({record.version for record in seen.values()}) == count


async def test_without_a_quorum_it_says_who_is_missing_and_goes_on_when_they_are_back(cluster, open_store, follow):
    store = await open_store(0, 1, 2)
    follower = follow(store)
    await follower.reach(await store.commit({"a": b"1"}))
    for member in cluster.members[1:]:
        member.kill()
    began = asyncio.get_running_loop().time()
    with pytest.raises(
        UnavailableError, match=r"has no quorum: of its 3 etcd members m1 \(.*\), m2 \(.*\) do not answer"
    ):
        await store.commit({"a": b"2"})
    assert asyncio.get_running_loop().time() - began < 5
    assert (await store.load()).records["a"].value == b"1"
    assert (await (await open_store(0, 1, 2)).load()).records["a"].value == b"1"
    for member in cluster.members[1:]:
        member.start()
    cluster.wait_healthy()
    await follower.reach(await store.commit({"a": b"3"}))
    assert follower.view["a"] == b"3"


async def test_a_leader_without_its_store_is_followed_by_another(cluster, open_store):
    """A manager is cut off: it cannot know, and its commits count for nothing from then on."""
    first, second = await open_store(0, 1, 2), await open_store(1, 2, 0)
    leadership = await first.lead("node1")
    await first.commit({"a": b"1"}, leadership.guard)
    keeping = asyncio.create_task(first.keep(leadership))
    await asyncio.sleep(0)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(second.lead("node2"), 0.5)
    keeping.cancel()  # its host is frozen
    successor = await asyncio.wait_for(second.lead("node2"), DEADLINE_S)
    with pytest.raises(LeadershipLostError):
        await first.commit({"a": b"2"}, leadership.guard)
    await second.commit({"a": b"3"}, successor.guard)


async def test_a_leader_that_is_known_to_be_gone_is_not_waited_for(open_store):
    first, second = await open_store(0, 1, 2), await open_store(1, 2, 0)
    leadership = await first.lead("node1")
    await asyncio.wait_for(second.lead("node2", lambda holder: holder == "node1"), 2)
    await asyncio.wait_for(first.keep(leadership), DEADLINE_S)
    with pytest.raises(LeadershipLostError):
        await first.commit({"a": b"2"}, leadership.guard)


async def test_limits_of_etcd(open_store):
    store = await open_store(0, 1, 2)
    keys = [f"{number:03}/{'k' * 100}" for number in range(MAX_RECORDS)]
    revision = await store.commit(dict.fromkeys(keys, b"x" * (MAX_OCTETS // MAX_RECORDS - 110)))
    guards = dict.fromkeys(keys, revision) | {f"absent/{number}": 0 for number in range(MAX_GUARDS - MAX_RECORDS)}
    revision = await store.commit(dict.fromkeys(keys), guards)
    with pytest.raises(CallerError, match="121 guards"):
        await store.commit({"a": b""}, guards | {"more": 0})
    # A watcher that was away gets lines of more than a reader's own limit.
    for _ in range(3):
        await store.commit({"big": b"x" * 900_000})
    last = await store.commit({"small": b""})
    async with contextlib.aclosing(store.watch("", revision)) as events:
        async with asyncio.timeout(DEADLINE_S):
            async for event in events:
                assert isinstance(event, Commit)
                if event.revision == last:
                    break


async def test_a_commit_whose_answer_was_lost_is_done_once(cluster, open_store, monkeypatch):
    """The first member carries it out, and is not heard."""
    store = await open_store(0, 1, 2)
    await store.commit({"a": b"0"})
    post, lost = store.etcd._post, []

    async def deaf(endpoint, path, body, within_s):
        answer = await post(endpoint, path, body, within_s)
        if path == "/v3/kv/txn" and not lost:
            lost.append(endpoint)
            raise _ElsewhereError("it hung up")
        return answer

    monkeypatch.setattr(store.etcd, "_post", deaf)
    revision = await store.commit({"a": b"1"})
    assert lost and (await store.load("a")).records == {"a": (b"1", revision)}
    assert await store.commit({"a": b"2"}, {"a": revision}) > revision


@pytest.fixture
def small_disks(tmp_path):
    """Three of 250 MiB: etcd lays out two files of 64 MiB before it needs them."""
    with contextlib.ExitStack() as stack:
        for name in ("m0", "m1", "m2"):
            stack.enter_context(small_disk(tmp_path / name, "250m"))
        yield tmp_path


def fill(directory: Path) -> Path:
    filler = directory / "filler"
    with open(filler, "ab", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(b"x" * 65536)
    return filler


@pytest.mark.root
@pytest.mark.slow
async def test_full_disks(small_disks):
    """One costs nothing. All of them stop the writes, in words; and with room, and the members back, all goes on."""
    cluster = EtcdCluster(small_disks)
    cluster.start()
    try:
        store = await EtcdStore.open(cluster.access(), "node1")
        fillers = [fill(cluster.members[0].directory)]
        acknowledged = 0
        for _ in range(25):
            acknowledged = await _add(store, acknowledged)
        fillers += [fill(member.directory) for member in cluster.members[1:]]
        with contextlib.suppress(UnavailableError):
            for _ in range(200):
                acknowledged = await _add(store, acknowledged)
        assert acknowledged < 200
        for filler in fillers:
            filler.unlink()
        cluster.mend()
        await store.commit({"after": b""})
        kept = {int(key[2:]) for key in (await store.load("n/")).records}
        assert kept >= set(range(acknowledged - 4, acknowledged))
        await store.close()
    finally:
        cluster.close()


async def _add(store, number):
    """One more big record; the last five are kept."""
    await store.commit({f"n/{number}": b"x" * 900_000, f"n/{number - 5}": None})
    return number + 1
