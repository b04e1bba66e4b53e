"""Tunnels in user space are looked at, mended, adopted and exchanged as the kernel's are."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from tests.host.damages import DAMAGES, Damage, assert_mended, inside
from tests.host.rig import VNI, Kind, Lasting, Machine, Pair, addresses, errors, wait_until
from vxnet.host import forwarder as forwarder_module
from vxnet.host import tunnels, uvxlan
from vxnet.host.forwarder import Forwarder
from vxnet.host.tap import Tap
from vxnet.model.errors import HostError
from vxnet.model.host import Change, HostState

pytestmark = pytest.mark.host


KINDS: tuple[Kind, Kind] = ("userspace", "kernel")
"""The user-space tunnel's host, and one whose tunnel is the kernel's."""


@pytest.fixture
def pair() -> Iterator[Pair]:
    pair = Pair(4, KINDS)
    pair.reconcile()
    yield pair
    pair.close()


@pytest.fixture(scope="module")
def lasting() -> Iterator[Lasting]:
    with contextlib.closing(Lasting(KINDS)) as lasting:
        yield lasting


def forwarder(machine: Machine) -> Forwarder:
    def connect() -> Forwarder:
        (path,) = uvxlan.DIRECTORY.glob("*.sock")
        return Forwarder(str(path))

    return machine.do(connect)


def forwarders_pid(machine: Machine) -> int:
    """Of the process with this machine's network namespace and the forwarder's user."""
    namespace = machine.do(lambda: os.readlink("/proc/thread-self/ns/net"))
    for process in Path("/proc").glob("[0-9]*"):
        try:
            same = os.readlink(process / "ns/net") == namespace
            if same and process.stat().st_uid == uvxlan.UID:
                return int(process.name)
        except OSError:
            continue  # it has ended
    raise AssertionError("no forwarder runs here")


def as_kind(state: HostState, kind: Kind) -> HostState:
    return replace(state, segments=tuple(replace(segment, kind=kind) for segment in state.segments))


def spoken(changes: list[Change]) -> list[str]:
    assert errors(changes) == []
    return [f"{change.verb} {change.object}" for change in changes]


def test_same_state_twice_changes_nothing(pair: Pair) -> None:
    assert pair.c1.reaches("10.0.16.3")
    assert pair.h1.reconcile(pair.s1) == []
    pair.h1.stop()
    pair.h1.start()
    assert pair.h1.reconcile(pair.s1) == []
    assert pair.h1.links("-n", "vxnet")[f"vx{VNI}"]["linkinfo"]["info_kind"] == "tun"


def test_a_killed_forwarder_is_started_again(pair: Pair) -> None:
    os.kill(forwarders_pid(pair.h1), signal.SIGKILL)
    assert wait_until(lambda: f"vx{VNI}" not in pair.h1.links("-n", "vxnet")), "the TAP goes with its last descriptor"
    assert f"add link vx{VNI}" in spoken(pair.h1.reconcile(pair.s1))
    assert pair.c1.reaches("10.0.16.3")
    assert pair.h1.reconcile(pair.s1) == []


def test_a_forwarder_that_was_late_is_asked_anew(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """And what it holds is not taken for something else: that would cost every tunnel."""
    monkeypatch.setattr(forwarder_module, "ANSWER_S", 1.0)
    pair.h1.stop()
    pair.h1.start()
    assert pair.h1.reconcile(pair.s1) == []
    pid = forwarders_pid(pair.h1)
    os.kill(pid, signal.SIGSTOP)
    try:
        with pytest.raises(HostError, match="does not answer"):
            pair.h1.reconcile(pair.s1)
    finally:
        os.kill(pid, signal.SIGCONT)
    assert pair.h1.reconcile(pair.s1) == []
    assert forwarders_pid(pair.h1) == pid


def test_rows_and_peers_that_somebody_changed_come_back(pair: Pair) -> None:
    mac = bytes.fromhex(pair.d1.mac().replace(":", ""))
    with forwarder(pair.h1) as told:
        told.replace(VNI, {bytes(5) + b"\x09": pair.v2.packed})
        told.set_flood(VNI, [])
        told.set_peers([])
        assert spoken(pair.h1.reconcile(pair.s1)) == [
            "replace user-space tunnel: its peers",
            f"add fdb {pair.d1.mac()} dev vx{VNI} dst {pair.v2}",
            f"add fdb 00:00:00:00:00:00 dev vx{VNI} dst {pair.v2}",
            f"delete fdb 00:00:00:00:00:09 dev vx{VNI} dst {pair.v2}",
        ]
        assert told.rows(VNI) == {mac: pair.v2.packed}
        assert told.flood(VNI) == told.peers() == {pair.v2.packed}
        told.remove(VNI)
    assert f"add link vx{VNI}" in spoken(pair.h1.reconcile(pair.s1))
    assert pair.c1.reaches("10.0.16.3")


ALIKE = {
    *("bridge row deleted", "bridge row on another port", "own container's row deleted", "neighbour deleted"),
    *("IPv6 neighbour deleted", "neighbour altered", "neighbour too many", "tunnel is no port"),
    *("container's port is no port", "flags of the tunnel port", "tunnel deleted", "tunnel down", "bridge deleted"),
    *("bridge down", "bridge's own settings", "MTU of the tunnel", "MTU of the bridge", "namespace's name"),
    "an element of it",
}
"""Of the damages that a host whose tunnel is the kernel's is mended of: those that the tunnel has a part in."""


def tell(what: Callable[[Forwarder, Pair], None]) -> Callable[[Pair], None]:
    def say(pair: Pair) -> None:
        with forwarder(pair.h1) as told:
            what(told, pair)

    return say


def server(pair: Pair) -> bytes:
    return bytes.fromhex(pair.d1.mac().replace(":", ""))


STRANGER = bytes((192, 168, 9, 99))
OWN_DAMAGES = [
    Damage("tunnel row deleted", tell(lambda told, pair: told.drop(VNI, [server(pair)])), 1, seen=False),
    Damage("tunnel row altered", tell(lambda told, pair: told.put(VNI, {server(pair): STRANGER})), 1, seen=False),
    Damage(
        "tunnel row too many", tell(lambda told, pair: told.put(VNI, {bytes(5) + b"\x09": STRANGER})), 1, seen=False
    ),
    Damage("flood row deleted", tell(lambda told, pair: told.set_flood(VNI, [])), 1, seen=False),
    Damage(
        "flood row too many", tell(lambda told, pair: told.set_flood(VNI, [pair.v2.packed, STRANGER])), 1, seen=False
    ),
    Damage("peer deleted", tell(lambda told, pair: told.set_peers([])), 1, seen=False),
    Damage("peer too many", tell(lambda told, pair: told.set_peers([pair.v2.packed, STRANGER])), 1, seen=False),
    Damage("ownership mark", inside("ip link set vx65536 alias somebody"), None),
    Damage("segment removed", tell(lambda told, pair: told.remove(VNI)), None),
    Damage(
        "tunnel that is the kernel's",
        inside("ip link del vx65536; ip link add vx65536 type vxlan id 1 dstport 0"),
        None,
    ),
    Damage(
        "tunnel made anew by hand",
        inside("ip link del vx65536; ip tuntap add mode tap name vx65536; ip link set vx65536 up"),
        None,
    ),
]


@pytest.mark.slow
@pytest.mark.parametrize(
    "damage",
    [*(damage for damage in DAMAGES if damage.what in ALIKE), *OWN_DAMAGES],
    ids=lambda damage: damage.what.replace(" ", "-"),
)
def test_is_mended(lasting: Lasting, damage: Damage) -> None:
    with lasting.borrowed() as pair:
        assert_mended(pair, damage)


def test_a_tap_that_the_forwarder_refuses_is_one_failure(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    inside("ip link del vx65536; ip tuntap add mode tap name vx65536")(pair)
    with monkeypatch.context() as other:
        # What no epoll takes.
        other.setattr(tunnels, "open_tap", lambda *_: Tap([os.open(tmp_path / "f", os.O_RDWR | os.O_CREAT)], True))
        changes = pair.h1.reconcile(pair.s1)
    assert [change.object for change in changes if change.error] == [f"link vx{VNI}"]
    with forwarder(pair.h1) as told:
        assert told.segments() == {}
    assert f"add link vx{VNI}" in spoken(pair.h1.reconcile(pair.s1))
    assert pair.c1.reaches("10.0.16.3")


def test_a_remote_that_moves_is_a_row_that_is_replaced(pair: Pair) -> None:
    moved = pair.d1.remote(addresses("192.168.9.77")[0])
    away = replace(pair.s1, segments=(replace(pair.s1.segments[0], remotes=(moved,)),))
    assert spoken(pair.h1.reconcile(away)) == [f"replace fdb {pair.d1.mac()} dev vx{VNI} dst 192.168.9.77"]
    assert spoken(pair.h1.reconcile(pair.s1)) == [f"replace fdb {pair.d1.mac()} dev vx{VNI} dst {pair.v2}"]
    assert pair.c1.reaches("10.0.16.3")


def test_a_segment_changes_its_kind_and_back(pair: Pair) -> None:
    assert f"add link vx{VNI}" in spoken(pair.h1.reconcile(as_kind(pair.s1, "kernel")))
    assert pair.h1.links("-n", "vxnet")[f"vx{VNI}"]["linkinfo"]["info_kind"] == "vxlan"
    assert pair.c1.reaches("10.0.16.3")
    assert pair.h1.do(lambda: list(uvxlan.DIRECTORY.iterdir())) == []
    assert f"delete link vx{VNI}" in spoken(pair.h1.reconcile(pair.s1))
    assert pair.c1.reaches("10.0.16.3")


def test_the_mtu_of_a_segment_changes_without_a_new_tap(pair: Pair) -> None:
    smaller = replace(pair.s1, segments=(replace(pair.s1.segments[0], mtu=1400),))
    spoken(pair.h1.reconcile(smaller))
    with forwarder(pair.h1) as told:
        assert told.segments()[VNI].mtu == 1400
    assert pair.h1.links("-n", "vxnet")[f"vx{VNI}"]["mtu"] == 1400
    assert pair.h1.reconcile(smaller) == []


def test_without_segments_there_is_no_forwarder(pair: Pair) -> None:
    pid = forwarders_pid(pair.h1)
    assert "delete user-space tunnel: its forwarder" in spoken(pair.h1.reconcile(HostState()))
    assert wait_until(lambda: not Path(f"/proc/{pid}/exe").exists())
    assert pair.h1.do(lambda: list(uvxlan.DIRECTORY.iterdir())) == []


def test_a_forwarder_that_does_not_end_holds_nothing_else_up(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forwarder_module, "ANSWER_S", 1.0)
    pid = forwarders_pid(pair.h1)
    os.kill(pid, signal.SIGSTOP)
    try:
        changes = pair.h1.reconcile(HostState())
    finally:
        os.kill(pid, signal.SIGCONT)
    failed = [change.object for change in changes if change.error]
    assert failed == ["user-space tunnel: its forwarder"]
    assert "network namespace vxnet" in [change.object for change in changes]
    assert wait_until(lambda: not Path(f"/proc/{pid}/exe").exists()), "it was told to end"
    assert errors(pair.h1.reconcile(HostState())) == []
    assert pair.h1.do(lambda: list(uvxlan.DIRECTORY.iterdir())) == []
    assert f"add link vx{VNI}" in spoken(pair.h1.reconcile(pair.s1))


def test_one_of_several_segments_is_given_up(pair: Pair) -> None:
    one = pair.s1.segments[0]
    both = replace(pair.s1, segments=(one, replace(one, vni=VNI + 1, remotes=())))
    assert f"add link vx{VNI + 1}" in spoken(pair.h1.reconcile(both))
    assert spoken(pair.h1.reconcile(pair.s1)) == [f"delete link vx{VNI + 1}", f"delete link br{VNI + 1}"]
    with forwarder(pair.h1) as told:
        assert told.segments().keys() == {VNI}
    assert pair.c1.reaches("10.0.16.3")
