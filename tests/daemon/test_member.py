"""An etcd member that is told it is none, or has no vote."""

from __future__ import annotations

import ipaddress
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import pytest
from msgspec.structs import replace

from vxnet.cluster import etcd_members
from vxnet.daemon import member as members
from vxnet.daemon.member import EtcdMember
from vxnet.host.etcd import EtcdProcess
from vxnet.model.cluster import Node, Role
from vxnet.model.errors import ConflictError, UnavailableError
from vxnet.model.store import StoreAccess, StoreMember

OTHERS = [
    StoreMember(id=1, name="h1", peers=("https://192.0.2.1:2380",)),
    StoreMember(id=3, peers=("https://192.0.2.3:2380",)),
]
OWN = StoreMember(id=2, name="h2", peers=("https://192.0.2.2:2380",))


class Process(EtcdProcess):
    """It has data."""

    def __init__(self, directory: Path, *, runs: bool = False) -> None:
        super().__init__(directory)
        (directory / "data" / "member").mkdir(parents=True)
        self.runs, self.listed = runs, False
        self.started = False

    def pid(self) -> int | None:
        return 1 if self.runs else None

    def refuses(self) -> bool:
        return self.listed

    def stop(self) -> None:
        self.runs = False

    def start(self, arguments: Sequence[str]) -> None:
        self.started = self.runs = True
        self.listed = any("crl-file" in word for word in arguments)


class Etcd:
    """Of the members (endpoints a, b) a is late or cut off: what needs a quorum it cannot answer."""

    def __init__(self, access: StoreAccess) -> None:
        self.access = access

    async def call(self, path: str, body: object, kind: object, **settings: float) -> None:
        if self.access.endpoints == ("a",) or not QUORUM:
            raise UnavailableError("no quorum")

    def in_turn(self) -> list[str]:
        return list(self.access.endpoints)

    async def close(self) -> None:
        pass


QUORUM = [True]


def node_of(role: Role) -> Callable[[Etcd, str], Awaitable[Node]]:
    """What the store tells of this host now."""
    address = ipaddress.ip_address("192.0.2.2")
    node = Node(id="n2", name="h2", role=role, advertise_addr=address, data_path_addr=address, joined_at=0.0)

    async def asked(etcd: Etcd, node_id: str) -> Node:
        assert node_id == node.id
        return node

    return asked


@pytest.mark.parametrize("quorum", [True, False])
@pytest.mark.parametrize("is_member", [True, False])
async def test_it_forgets_nothing_on_the_word_of_one_that_is_late(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quorum: bool, is_member: bool
) -> None:
    added = []

    async def members_of(etcd: Etcd) -> list[StoreMember]:
        late = etcd.access.endpoints[0] == "a"
        return [*OTHERS, OWN] if added or (is_member and not late) else OTHERS

    async def add_learner(etcd: Etcd, peer_url: str) -> None:
        added.append(peer_url)

    for module in (members, etcd_members):
        monkeypatch.setattr(module, "Etcd", Etcd)
        monkeypatch.setattr(module, "members_of", members_of)
    monkeypatch.setattr(members, "add_learner", add_learner)
    monkeypatch.setattr(members, "node_of", node_of("manager"))
    monkeypatch.setitem(globals(), "QUORUM", [True] * quorum)
    process = Process(tmp_path / "etcd")
    await EtcdMember(process, "h2", ipaddress.ip_address("192.0.2.2"), "n2").ensure(
        StoreAccess(endpoints=("a", "b"), managed=True)
    )
    is_out = quorum and not is_member
    assert process.started and process.has_data == (not is_out)
    assert added == [*OWN.peers] * is_out


async def test_who_was_demoted_while_it_slept_does_not_come_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither as a new member, nor with a vote: whatever this host has heard, the store is asked."""

    async def members_of(etcd: Etcd) -> list[StoreMember]:
        return OTHERS

    async def never(*arguments: object) -> None:
        raise AssertionError("it takes part")

    for module in (members, etcd_members):
        monkeypatch.setattr(module, "Etcd", Etcd)
        monkeypatch.setattr(module, "members_of", members_of)
    monkeypatch.setattr(members, "add_learner", never)
    monkeypatch.setattr(members, "promote_learner", never)
    monkeypatch.setattr(members, "node_of", node_of("worker"))
    monkeypatch.setitem(globals(), "QUORUM", [True])
    process = Process(tmp_path / "etcd")
    member = EtcdMember(process, "h2", ipaddress.ip_address("192.0.2.2"), "n2")
    access = StoreAccess(endpoints=("a", "b"), managed=True)
    with pytest.raises(ConflictError, match="no manager any more"):
        await member.ensure(access)
    with pytest.raises(ConflictError, match="no manager any more"):
        await member._take_part(Etcd(access), [replace(OWN, learner=True)])  # type: ignore[arg-type]
    assert not process.started


async def test_one_without_a_vote_does_not_go_on_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """etcd ends with a panic then, and what it has would be in nobody's reach."""

    async def members_of(etcd: Etcd) -> list[StoreMember]:
        assert etcd.access.endpoints == ("https://192.0.2.2:2379",), "it is asked itself"
        return [*OTHERS, replace(OWN, learner=True)]

    for module in (members, etcd_members):
        monkeypatch.setattr(module, "Etcd", Etcd)
        monkeypatch.setattr(module, "members_of", members_of)
    process = Process(tmp_path / "etcd")
    with pytest.raises(ConflictError, match="store restore"):
        await EtcdMember(process, "h2", ipaddress.ip_address("192.0.2.2")).start_alone(
            StoreAccess(endpoints=("a", "b"), managed=True)
        )
    assert process.has_data and not process.started


async def test_one_of_an_earlier_version_is_started_again_once_there_is_a_list_of_revoked_certificates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor is it given one that is empty: etcd reads that as no list, and lets nobody in."""

    async def members_of(etcd: Etcd) -> list[StoreMember]:
        return [*OTHERS, OWN]

    monkeypatch.setattr(members, "Etcd", Etcd)
    monkeypatch.setattr(members, "members_of", members_of)
    access = StoreAccess(endpoints=("a",), managed=True)
    for runs in (True, False):
        process = Process(tmp_path / f"etcd-{runs}", runs=runs)
        member = EtcdMember(process, "h2", ipaddress.ip_address("192.0.2.2"), "n2")
        await member.ensure(access)
        assert process.started != runs and not process.listed
        assert not (process.directory / "revoked.crl").exists()
        process.started = False
        await member.ensure(replace(access, revoked=b"list"))
        assert process.started and process.listed
        assert (process.directory / "revoked.crl").read_bytes() == b"list"
        process.started = False
        await member.ensure(replace(access, revoked=b"list"))
        assert not process.started
