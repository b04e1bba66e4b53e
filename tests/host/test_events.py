"""What is heard of a change, on real kernels: from where, as what to look at, and what is left out."""

from __future__ import annotations

import select
from collections.abc import Iterator

import pytest
from msgspec.structs import replace

from tests.host.rig import Container, Pair, errors, wait_until
from vxnet.host import events
from vxnet.host.events import Look
from vxnet.model.host import HostState, Remote

pytestmark = pytest.mark.host

D1 = "02:00:0a:00:10:03"
PORT = "v00000002.eth0"


def heard(pair: Pair, timeout_s: float = 2.0) -> Look | None:
    """Of h1, once something comes; None: nothing came in this time, or nothing that concerns vxnet."""
    events = pair.h1.kernel.events
    select.select([events], [], [], timeout_s)
    return events.drain()


@pytest.fixture(scope="module")
def shared() -> Iterator[Pair]:
    pair = Pair()
    pair.reconcile()
    yield pair
    pair.close()


def settled(pair: Pair) -> Pair:
    """As it should be, and all that this has raised is over: carriers are up, ports forward, link-local addresses are
    nobody else's."""
    assert errors(pair.h1.reconcile(pair.s1)) == []
    places = (pair.h1, pair.c1)
    assert wait_until(lambda: not any(place.run("ip", "-6", "addr", "show", "tentative") for place in places))
    up = "ip", "-br", "link", "show", "up"
    assert wait_until(
        lambda: not any("DOWN" in shown for shown in (*(one.run(*up) for one in places), pair.h1.inside(*up)))
    )
    assert wait_until(pair.h1.forwards)
    while select.select([pair.h1.kernel.events], [], [], 0.2)[0]:
        pair.h1.kernel.events.drain()
    assert pair.h1.reconcile(pair.s1) == []
    return pair


@pytest.fixture
def quiet(shared: Pair) -> Pair:
    return settled(shared)


ROWS = Look(rows=True)
SHARED = Look()


def box(pair: Pair) -> Look:
    return Look(sandboxes=frozenset({pair.c1.id}))


@pytest.mark.parametrize(
    "line, look",
    [
        (f"bridge fdb del {D1} dev vx65536 dst 192.168.9.2 self", ROWS),
        (f"bridge fdb del {D1} dev vx65536 master", ROWS),
        ("ip neigh del 10.0.16.3 dev br65536", ROWS),
        ("ip neigh replace 10.0.16.3 lladdr 02:00:00:00:00:09 dev br65536 nud permanent", ROWS),
        ("ip link set vx65536 mtu 1300", SHARED),
        ("bridge link set dev vx65536 learning on", SHARED),
        ("ip link set br65536 type bridge mcast_snooping 1", SHARED),
    ],
)
def test_in_the_datapath(quiet: Pair, line: str, look: Look) -> None:
    quiet.h1.inside("sh", "-ec", line)
    assert heard(quiet) == look


@pytest.mark.parametrize(
    "line",
    [
        "ip link set eth0 mtu 1300",
        "ip addr del 10.0.16.2/24 dev eth0",
        "ip route del default",
        "nft delete table inet vxnet",
    ],
)
def test_in_a_sandbox_that_is_not_held_open(quiet: Pair, line: str) -> None:
    quiet.c1.sh(line)
    assert heard(quiet) == box(quiet)


def test_a_port_leads_to_its_sandbox(quiet: Pair) -> None:
    quiet.h1.inside("bridge", "link", "set", "dev", PORT, "isolated", "on")
    assert heard(quiet) == box(quiet)


@pytest.mark.parametrize(
    "line",
    [
        "ip addr del 172.19.0.1/16 dev vxnet_gw",
        "ip link set vxnet_gw down",
        "nft flush chain inet vxnet input",
        "nft flush ruleset",
    ],
)
def test_on_the_host(quiet: Pair, line: str) -> None:
    quiet.h1.sh(line)
    found = heard(quiet)
    assert found is not None and not found.rows and not found.everything


def test_what_others_do_is_not_heard(quiet: Pair) -> None:
    quiet.h1.sh(
        "ip link add other type veth peer name rehto; ip addr add 192.0.2.1/24 dev other; ip link set other up;"
        "ip route add 198.51.100.0/24 dev eth0; ip neigh add 192.168.9.77 lladdr 02:00:00:00:00:77 dev eth0;"
        "nft add table inet other; nft delete table inet other; ip link del other"
    )
    assert heard(quiet) is None


def test_a_thousand_routes_wake_nobody(quiet: Pair) -> None:
    """They are dropped in the kernel."""
    batch = "".join(f"route add 198.51.{at // 250}.{at % 250}/32 dev eth0\n" for at in range(1000))
    quiet.h1.run("ip", "-batch", "-", stdin=batch)
    assert select.select([quiet.h1.kernel.events], [], [], 0.2)[0] == []


def test_own_rows_raise_no_look(quiet: Pair) -> None:
    more = quiet.s1.segments[0].remotes[0]
    state = _with_remotes(quiet, ())
    assert errors(quiet.h1.reconcile(state, ())) == []
    assert heard(quiet, 0.3) is None
    assert errors(quiet.h1.reconcile(_with_remotes(quiet, (more,)), ())) == []
    assert heard(quiet, 0.3) is None
    quiet.h1.inside("ip", "neigh", "del", "10.0.16.3", "dev", "br65536")
    assert heard(quiet) == ROWS, "somebody else's is not taken for an echo"


def _with_remotes(pair: Pair, remotes: tuple[Remote, ...]) -> HostState:
    (segment,) = pair.s1.segments
    return replace(pair.s1, segments=(replace(segment, remotes=remotes),))


def test_too_many_events_to_remember_make_a_look_at_everything(quiet: Pair) -> None:
    for _ in range(12):
        batch = "".join(
            f"neigh replace 10.0.{at // 250}.{at % 250} lladdr 02:00:00:00:00:09 dev br65536 nud permanent\n"
            for at in range(5000)
        )
        quiet.h1.run("ip", "-n", "vxnet", "-batch", "-", stdin=batch)
        quiet.h1.inside("ip", "neigh", "flush", "dev", "br65536", "nud", "all")
    found = heard(quiet)
    assert found is not None and found.everything
    assert errors(quiet.h1.reconcile(quiet.s1)) == []


def test_a_namespace_that_took_the_name_is_followed(quiet: Pair) -> None:
    assert quiet.h1.do(quiet.h1.kernel.is_intact, quiet.s1)
    quiet.h1.sh("ip netns del vxnet; ip netns add vxnet")
    assert not quiet.h1.do(quiet.h1.kernel.is_intact, quiet.s1)
    assert errors(quiet.h1.reconcile(quiet.s1, ())) == []
    assert quiet.h1.do(quiet.h1.kernel.is_intact, quiet.s1)
    settled(quiet)
    quiet.c1.sh("ip link set eth0 mtu 1300")
    assert heard(quiet) == box(quiet)
    quiet.h1.inside("ip", "neigh", "del", "10.0.16.3", "dev", "br65536")
    assert heard(quiet) == ROWS


def test_routing_switched_off_is_seen(quiet: Pair) -> None:
    quiet.h1.sh("echo 0 > /proc/sys/net/ipv4/ip_forward")
    assert not quiet.h1.do(quiet.h1.kernel.is_intact, quiet.s1)


def test_a_sandbox_dies_although_it_is_listened_to(pair: Pair) -> None:
    pair.h1.kernel.events.drain()
    pair.c1.close()
    assert wait_until(lambda: PORT not in pair.h1.links("-n", "vxnet"))
    found = heard(pair)
    assert found is not None and pair.c1.id in found.sandboxes, "its port went with it"
    pair.c1 = Container(2)


def test_of_very_many_some_are_left_for_the_next_look(quiet: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else who makes them as fast as they are read, in a container that may, would hold up the daemon."""
    quiet.c1.sh("for n in $(seq 30); do ip addr add 10.0.16.77/32 dev eth0; ip addr del 10.0.16.77/32 dev eth0; done")
    monkeypatch.setattr(events, "AT_ONCE", 10)
    for _ in range(6):
        assert select.select([quiet.h1.kernel.events], [], [], 0)[0]
        assert heard(quiet) == box(quiet)
    monkeypatch.undo()
    heard(quiet, 0.2)
    assert not select.select([quiet.h1.kernel.events], [], [], 0.2)[0]
