"""Names: what a container may see, and that no datagram does harm. dnslib, another parser, is the oracle."""

from __future__ import annotations

import ipaddress
import random
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import dnslib
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vxnet.core.names import TTL_S, Forward, Names, Query, Rejected, View, forward, view_of
from vxnet.core.names.message import UDP_QUERY_MAX, encode_name, parse_query, reverse_prefix
from vxnet.core.names.records import Answers
from vxnet.model.cluster import Network, Subnet
from vxnet.model.container import Attachment, Container, ContainerSpec
from vxnet.model.row import Applied, Endpoint, EndpointState, RowKey, Value, Version
from vxnet.model.service import PublicService, ServiceNetwork

Row = tuple[RowKey, Version, Value]

NET_A = Network(
    id="a" * 25,
    name="network-a",
    vni=65536,
    subnets=(Subnet(prefix=ipaddress.ip_network("10.0.16.0/20"), gateway=ipaddress.ip_address("10.0.16.1")),),
)
NET_B = Network(
    id="b" * 25,
    name="network-b",
    vni=65537,
    subnets=(
        Subnet(prefix=ipaddress.ip_network("10.0.32.0/20"), gateway=ipaddress.ip_address("10.0.32.1")),
        Subnet(prefix=ipaddress.ip_network("fd00:1::/64"), gateway=ipaddress.ip_address("fd00:1::1")),
    ),
)
NETWORKS = {NET_A.id: NET_A, NET_B.id: NET_B}
ON_A = View((NET_A.id,), forward=True)
ON_B = View((NET_B.id,), forward=True)
ON_BOTH = View((NET_A.id, NET_B.id), forward=True)
INTERNAL = View((NET_A.id,), forward=False)

WEB_ID = "0123456789ab"


def row(
    name: str,
    *addresses: str,
    network: Network = NET_A,
    id12: str = "",
    aliases: Sequence[str] = (),
    state: EndpointState = "ready",
    version: tuple[int, int] = (1, 1),
    service: str = "",
    ports: Sequence[str] = (),
) -> Row:
    endpoint = Endpoint(
        network=network.id,
        vni=network.vni,
        addresses=tuple(ipaddress.ip_address(address) for address in addresses),
        mac="02:00:0a:00:10:02",
        vtep=ipaddress.ip_address("192.168.56.11"),
        name=name,
        aliases=tuple(aliases),
        state=state,
        service=service,
        ports=tuple(ports),
    )
    return RowKey("node1", "endpoint", f"{id12 or name}.{network.id}"), Version(*version), endpoint


ROWS = [
    row("web", "10.0.16.2", id12=WEB_ID, aliases=["www", "front"]),
    row("db.main", "10.0.16.3"),
    row("web", "10.0.32.2", "fd00:1::2", network=NET_B, id12=WEB_ID),
    row("only-b", "10.0.32.3", network=NET_B),
    row("six", "fd00:1::6", network=NET_B),
    row("pool1", "10.0.16.11", aliases=["pool"]),
    row("pool2", "10.0.16.12", aliases=["pool"]),
    row("pool3", "10.0.16.13", aliases=["pool"], state="draining"),
    row("pool4", "10.0.16.14", aliases=["pool"], state="starting"),
    row("leaving", "10.0.16.15", state="draining"),
    row("coming", "10.0.16.16", state="starting"),
    (RowKey("node1", "applied", ""), Version(1, 1), Applied(versions=())),
]


def names_of(rows: Iterable[Row]) -> Names:
    names = Names()
    names.update(rows, NETWORKS)
    return names


NAMES = names_of(ROWS)


def query(name: str, kind: str = "A") -> bytes:
    question = dnslib.DNSRecord.question(name, kind)
    question.header.id = 7
    return bytes(question.pack())


def asked(view: View, name: str, kind: str = "A", *, names: Names = NAMES, turn: int = 0) -> Any:
    reply = names.answer(view, query(name, kind), turn)
    return dnslib.DNSRecord.parse(reply) if isinstance(reply, bytes) else reply


def told(view: View, name: str, kind: str = "A", *, names: Names = NAMES) -> list[str] | str:
    """The answers' data in order; the rcode if there is none; ``forward``."""
    reply = asked(view, name, kind, names=names)
    if isinstance(reply, Forward):
        return "forward"
    rcode = dnslib.RCODE[reply.header.rcode]
    return [str(record.rdata) for record in reply.rr] if reply.rr else rcode


@pytest.mark.parametrize(
    "view, name, kind, expected",
    [
        (ON_A, "web", "A", ["10.0.16.2"]),
        (ON_A, "WeB.", "A", ["10.0.16.2"]),
        (ON_A, "www", "A", ["10.0.16.2"]),
        (ON_A, "front.network-a", "A", ["10.0.16.2"]),
        (ON_A, "web.network-a", "A", ["10.0.16.2"]),
        (ON_A, WEB_ID, "A", ["10.0.16.2"]),
        (ON_A, f"{WEB_ID}.network-a", "A", ["10.0.16.2"]),
        (ON_A, WEB_ID[:11], "A", "forward"),
        (ON_A, "db.main", "A", ["10.0.16.3"]),
        (ON_A, "db.main.network-a", "A", ["10.0.16.3"]),
        (ON_A, "db", "A", "forward"),
        # Another network's names
        (ON_A, "only-b", "A", "forward"),
        (ON_A, "only-b.network-b", "A", "forward"),
        (ON_A, "web.network-b", "A", "forward"),
        (ON_B, "front", "A", "forward"),
        (ON_BOTH, "only-b", "A", ["10.0.32.3"]),
        (ON_BOTH, "web.network-b", "A", ["10.0.32.2"]),
        # On both: the first attachment answers, for every type alike
        (ON_BOTH, "web", "A", ["10.0.16.2"]),
        (ON_BOTH, "web", "AAAA", "NOERROR"),
        (View((NET_B.id, NET_A.id), True), "web", "A", ["10.0.32.2"]),
        # Types
        (ON_A, "web", "AAAA", "NOERROR"),
        (ON_A, "web", "MX", "NOERROR"),
        (ON_A, "web", "HTTPS", "NOERROR"),
        (ON_B, "web", "AAAA", ["fd00:1::2"]),
        (ON_B, "six", "A", "NOERROR"),
        (ON_B, "web", "ANY", ["10.0.32.2", "fd00:1::2"]),
        # States: ready ones, else draining ones, never starting ones
        (ON_A, "pool", "A", ["10.0.16.11", "10.0.16.12"]),
        (ON_A, "pool3", "A", ["10.0.16.13"]),
        (ON_A, "leaving", "A", ["10.0.16.15"]),
        (ON_A, "coming", "A", "NOERROR"),
        # Reverse
        (ON_A, "2.16.0.10.in-addr.arpa", "PTR", ["web.network-a."]),
        (ON_A, "2.16.0.10.IN-ADDR.arpa", "PTR", ["web.network-a."]),
        (ON_A, "16.16.0.10.in-addr.arpa", "PTR", ["coming.network-a."]),
        (ON_A, "2.16.0.10.in-addr.arpa", "A", "NOERROR"),
        (ON_A, "1.16.0.10.in-addr.arpa", "PTR", "NXDOMAIN"),
        (ON_A, "255.31.0.10.in-addr.arpa", "PTR", "NXDOMAIN"),
        (ON_A, "17.0.10.in-addr.arpa", "PTR", "NOERROR"),
        (ON_A, "10.in-addr.arpa", "PTR", "forward"),
        (ON_A, "0.32.0.10.in-addr.arpa", "PTR", "forward"),
        (ON_A, "2.32.0.10.in-addr.arpa", "PTR", "forward"),
        (ON_BOTH, "2.32.0.10.in-addr.arpa", "PTR", ["web.network-b."]),
        (ON_B, ipaddress.ip_address("fd00:1::2").reverse_pointer, "PTR", ["web.network-b."]),
        (ON_B, ipaddress.ip_address("fd00:1::3").reverse_pointer, "PTR", "NXDOMAIN"),
        (ON_B, ipaddress.ip_address("fd00:2::3").reverse_pointer, "PTR", "forward"),
        # Everybody else's
        (ON_A, "example.com", "A", "forward"),
        (ON_A, "nobody", "A", "forward"),
        (ON_A, "nobody.network-a", "A", "forward"),
        (ON_A, ".", "NS", "forward"),
        (INTERNAL, "web", "A", ["10.0.16.2"]),
        (INTERNAL, "example.com", "A", "NXDOMAIN"),
        (INTERNAL, "nobody", "A", "NXDOMAIN"),
        (INTERNAL, "8.8.8.8.in-addr.arpa", "PTR", "NXDOMAIN"),
        (View((), True), "web", "A", "forward"),
        (View(("gone",), True), "web", "A", "forward"),
    ],
)
def test_what_a_view_is_told(view: View, name: str, kind: str, expected: list[str] | str) -> None:
    found = told(view, name, kind)
    assert sorted(found) == sorted(expected)


def test_a_reply_is_well_formed() -> None:
    reply = asked(ON_A, "wEb")
    header = reply.header
    assert (header.qr, header.aa, header.rd, header.ra, header.tc, header.z) == (1, 1, 1, 1, 0, 0)
    assert str(reply.q.qname) == "wEb."
    (answer,) = reply.rr
    assert (str(answer.rname), answer.ttl, answer.rclass) == ("wEb.", TTL_S, 1)
    assert reply.auth == [] and reply.ar == []


def test_id_and_checking_disabled_are_copied() -> None:
    question = dnslib.DNSRecord.question("web")
    question.header.id, question.header.cd, question.header.rd = 0xBEEF, 1, 0
    reply = dnslib.DNSRecord.parse(NAMES.answer(ON_A, bytes(question.pack()), 0))
    assert (reply.header.id, reply.header.cd, reply.header.rd) == (0xBEEF, 1, 0)


def test_addresses_come_in_every_order(rng: random.Random) -> None:
    rows = [row("x", f"10.0.16.{number}", id12=f"{number:012x}", aliases=["many"]) for number in range(1, 4)]
    names = Names()
    names.update(rows, {NET_A.id: NET_A})
    seen: Counter[tuple[str, ...]] = Counter()
    for _ in range(6000):
        reply = asked(ON_A, "many", names=names, turn=rng.getrandbits(32))
        seen[tuple(str(record.rdata) for record in reply.rr)] += 1
    # Of 6 orders 1000 each are expected, with a standard deviation of 29.
    assert len(seen) == 6 and all(850 < count < 1150 for count in seen.values()), seen


def test_edns_is_answered_with_its_own_size_and_the_do_bit() -> None:
    question = dnslib.DNSRecord.question("web")
    question.add_ar(dnslib.EDNS0(udp_len=4096, flags="do"))
    reply = dnslib.DNSRecord.parse(NAMES.answer(ON_A, bytes(question.pack()), 0))
    (opt,) = reply.ar
    assert (opt.edns_len, opt.edns_do, opt.edns_ver, opt.edns_rcode) == (UDP_QUERY_MAX, 1, 0, 0)


def test_edns_of_another_version_is_refused() -> None:
    question = dnslib.DNSRecord.question("web")
    question.add_ar(dnslib.EDNS0(version=1))
    outcome = NAMES.answer(ON_A, bytes(question.pack()), 0)
    assert isinstance(outcome, Rejected) and outcome.reason == "edns version"
    (opt,) = dnslib.DNSRecord.parse(outcome.reply).ar
    assert opt.edns_rcode == 1


@pytest.mark.parametrize(
    "size, fitting", [(None, 30), (100, 30), (512, 30), (900, 54), (1232, 75), (4096, 75)], ids=str
)
def test_too_many_addresses_for_udp(size: int | None, fitting: int) -> None:
    names = names_of(row(f"c{i}", f"10.0.17.{i}", aliases=["all"]) for i in range(100))
    question = dnslib.DNSRecord.question("all")
    if size:
        question.add_ar(dnslib.EDNS0(udp_len=size))
    datagram = bytes(question.pack())
    reply = names.answer(ON_A, datagram, 7)
    assert isinstance(reply, bytes)
    parsed = dnslib.DNSRecord.parse(reply)
    assert parsed.header.tc == 1 and str(parsed.q.qname) == "all."
    # Records of 16 octets, after 12 of header, 9 of question and 11 of OPT.
    assert len(parsed.rr) == fitting
    whole = names.answer(ON_A, datagram, 7, tcp=True)
    assert isinstance(whole, bytes)
    parsed = dnslib.DNSRecord.parse(whole)
    assert parsed.header.tc == 0
    assert {str(record.rdata) for record in parsed.rr} == {f"10.0.17.{i}" for i in range(100)}


def test_an_exact_name_wins_over_a_qualified_one() -> None:
    names = names_of([row("web", "10.0.16.2"), row("web.network-a", "10.0.16.9")])
    assert told(ON_A, "web.network-a", names=names) == ["10.0.16.9"]


def test_starting_here_does_not_hide_ready_there() -> None:
    names = names_of([row("x", "10.0.16.2", state="starting"), row("x", "10.0.32.2", network=NET_B)])
    assert told(ON_BOTH, "x", names=names) == ["10.0.32.2"]
    assert told(ON_A, "x", names=names) == "NOERROR"


@pytest.mark.parametrize("text", ["", "a..b", ".a", "x" * 64, ".".join(["y" * 60] * 5)])
def test_what_dns_cannot_carry_is_left_out(text: str) -> None:
    assert encode_name(text) is None
    names = names_of([row(text, "10.0.16.2", id12=WEB_ID)])
    assert told(ON_A, WEB_ID, names=names) == ["10.0.16.2"]
    assert told(ON_A, "2.16.0.10.in-addr.arpa", "PTR", names=names) in ("NOERROR", "NXDOMAIN")


def test_the_view_of_a_container() -> None:
    attachment = Attachment(network=NET_A.id, ifname="eth0", mac="", addresses=())
    container = Container(id="c", spec=ContainerSpec(argv=("sh",)), attachments=(attachment,), created_at=0.0)
    assert view_of(container) == INTERNAL
    gateway = Attachment(network="", ifname="eth1", mac="", addresses=())
    outside = Container(
        id="c", spec=ContainerSpec(argv=("sh",)), attachments=(attachment,), gateway=gateway, created_at=0.0
    )
    assert view_of(outside) == ON_A


# Updates


def test_a_row_moves_dies_and_comes_back() -> None:
    names = names_of([row("web", "10.0.16.2")])
    names.update([row("web", "10.0.16.3", version=(1, 2))], NETWORKS)
    assert told(ON_A, "web", names=names) == ["10.0.16.3"]
    assert told(ON_A, "2.16.0.10.in-addr.arpa", "PTR", names=names) == "NXDOMAIN"
    assert names.update([], NETWORKS)[NET_A.id, b"\x03web\0"] is None
    assert told(ON_A, "web", names=names) == "forward"
    assert len(names) == 0
    names.update([row("web", "10.0.16.2", version=(2, 1))], NETWORKS)
    assert told(ON_A, "web", names=names) == ["10.0.16.2"]


def test_the_same_again_changes_nothing() -> None:
    assert names_of(ROWS).update(ROWS, NETWORKS) == {}
    assert NAMES.update(ROWS, NETWORKS) == {}


def test_a_network_comes_later_than_its_rows_and_goes_before_them() -> None:
    names = Names()
    names.update(ROWS, {})
    assert told(ON_A, "web", names=names) == "forward"
    names.update(ROWS, NETWORKS)
    assert told(ON_A, "web", names=names) == ["10.0.16.2"]
    names.update(ROWS, {NET_B.id: NET_B})
    assert told(ON_A, "web", names=names) == "forward"
    assert told(ON_A, "1.16.0.10.in-addr.arpa", "PTR", names=names) == "forward"


# Services


def place(network: Network, *vips: str, aliases: Sequence[str] = ()) -> ServiceNetwork:
    return ServiceNetwork(
        network=network.id, aliases=tuple(aliases), vips=tuple(ipaddress.ip_address(vip) for vip in vips)
    )


APP = PublicService(
    id="s1",
    name="my-app",
    networks=(place(NET_A, "10.0.16.100", aliases=["app"]), place(NET_B, "10.0.32.100", "fd00:1::64")),
)
POOL = PublicService(id="s2", name="pool", networks=(place(NET_A),), endpoint_mode="dnsrr")
TASKS = [
    row("my-app.1.x", "10.0.16.2", service="s1", ports=["http:8080/tcp", "stats:8125/udp"]),
    row("my-app.2.y", "10.0.16.3", service="s1", ports=["http:8081/tcp"], state="draining"),
    row(
        "my-app.3.z", "10.0.16.4", service="s1", ports=["http:8080/tcp", "odd", f"long:{'9' * 5000}"], state="starting"
    ),
    row("my-app.1.x", "10.0.32.2", "fd00:1::2", network=NET_B, service="s1"),
    row("pool.1.x", "10.0.16.11", service="s2"),
    row("pool.2.y", "10.0.16.12", service="s2"),
    row("pool.3.z", "10.0.16.13", service="s2", state="draining"),
]


def served(rows: Iterable[Row] = TASKS, services: Sequence[PublicService] = (APP, POOL)) -> Names:
    names = Names()
    names.update(rows, NETWORKS, services)
    return names


@pytest.mark.parametrize(
    "view, name, kind, told_",
    [
        (ON_A, "my-app", "A", ["10.0.16.100"]),
        (ON_A, "APP.network-a", "A", ["10.0.16.100"]),
        (ON_A, "my-app", "AAAA", "NOERROR"),
        (ON_A, "tasks.my-app", "A", ["10.0.16.2"]),
        (ON_A, "tasks.app", "A", ["10.0.16.2"]),
        (ON_A, "tasks.my-app.network-a", "A", ["10.0.16.2"]),
        (ON_A, "pool", "A", ["10.0.16.11", "10.0.16.12"]),
        (ON_A, "tasks.pool", "A", ["10.0.16.11", "10.0.16.12"]),
        (ON_A, "_http._tcp.my-app", "SRV", ["0 1 8080 my-app.1.x.network-a."]),
        (ON_A, "_stats._udp.app", "SRV", ["0 1 8125 my-app.1.x.network-a."]),
        (ON_A, "_http._tcp.my-app.network-a", "SRV", ["0 1 8080 my-app.1.x.network-a."]),
        (ON_A, "_http._tcp.my-app", "A", "NOERROR"),
        (ON_A, "_http._udp.my-app", "SRV", "forward"),
        (ON_A, "_odd._tcp.my-app", "SRV", "forward"),
        (ON_A, "_long._tcp.my-app", "SRV", "forward"),
        (ON_A, "100.16.0.10.in-addr.arpa", "PTR", ["my-app.network-a."]),
        (ON_A, "2.16.0.10.in-addr.arpa", "PTR", ["my-app.1.x.network-a."]),
        (ON_B, "my-app", "AAAA", ["fd00:1::64"]),
        (ON_B, "tasks.my-app", "AAAA", ["fd00:1::2"]),
        (ON_B, "pool", "A", "forward"),
        (ON_B, "app", "A", "forward"),
        (ON_BOTH, "my-app.network-b", "A", ["10.0.32.100"]),
    ],
)
def test_names_of_services(view: View, name: str, kind: str, told_: list[str] | str) -> None:
    found = told(view, name, kind, names=served())
    assert (sorted(found) if isinstance(found, list) else found) == told_


def test_without_a_ready_task_the_draining_ones_are_told_and_then_nobody() -> None:
    assert told(ON_A, "tasks.my-app", names=served(TASKS[1:])) == ["10.0.16.3"]
    assert told(ON_A, "_http._tcp.my-app", "SRV", names=served(TASKS[1:])) == ["0 1 8081 my-app.2.y.network-a."]
    assert told(ON_A, "tasks.my-app", names=served(TASKS[2:])) == "NOERROR"
    assert told(ON_A, "my-app", names=served([])) == ["10.0.16.100"]
    assert told(ON_A, "pool", names=served([])) == "NOERROR"
    # A container cannot take a service's name.
    assert told(ON_A, "my-app", names=served([row("my-app", "10.0.16.66")])) == ["10.0.16.100"]
    assert told(ON_A, "my-app", names=served([row("my-app", "10.0.16.66")], [])) == ["10.0.16.66"]


@pytest.mark.parametrize("alias", ["my-app", "pool"])
def test_a_services_name_comes_before_anothers_alias(alias: str) -> None:
    other = PublicService(id="s0", name="other", networks=(place(NET_A, "10.0.16.200", aliases=[alias]),))
    assert told(ON_A, alias, names=served(services=[other, APP, POOL])) != ["10.0.16.200"]
    assert told(ON_A, alias, names=served(services=[other])) == ["10.0.16.200"]


@pytest.mark.parametrize("name, other", [("Web", "aa"), ("web", "we"), ("web", "b")])
def test_whose_alias_it_is_does_not_matter(name: str, other: str) -> None:
    """Names are found whatever their case; the other one's may be a part of it."""
    mine = PublicService(id="s2", name=name, networks=(place(NET_A, "10.0.16.100"),))
    theirs = PublicService(id="s1", name=other, networks=(place(NET_A, "10.0.16.200", aliases=[name]),))
    tasks = [row(f"{id}.1", f"10.0.16.{id[1]}", service=id, ports=[f"http:808{id[1]}"]) for id in ("s1", "s2")]
    names = served(tasks, [theirs, mine])
    assert told(ON_A, name, names=names) == ["10.0.16.100"]
    assert told(ON_A, f"_http._tcp.{name}", "SRV", names=names) == ["0 1 8082 s2.1.network-a."]


_TEXT = st.sampled_from(["web", "WEB", "db", "a.b", "web.network-a", "web.other", ""])
_SERVICES = st.builds(
    lambda name, aliases, vips, network: PublicService(
        id="s", name=name, networks=(place(network, *vips, aliases=aliases),)
    ),
    st.sampled_from(["web", "app"]),
    st.lists(st.sampled_from(["a", "web.network-a"]), max_size=1),
    st.lists(st.sampled_from(["10.0.16.9", "fd00:1::9"]), max_size=1),
    st.sampled_from([NET_A, NET_B]),
)
_ADDRESS = st.sampled_from(["10.0.16.2", "10.0.16.3", "fd00:1::2"])


@st.composite
def _worlds(draw: st.DrawFn) -> tuple[list[Row], dict[str, Network], list[PublicService]]:
    networks = {
        NET_A.id: Network(id=NET_A.id, name=draw(st.sampled_from(["network-a", "other"])), subnets=NET_A.subnets),
        NET_B.id: NET_B,
    }
    for gone in draw(st.sets(st.sampled_from([NET_A.id, NET_B.id]))):
        del networks[gone]
    rows = {}
    for _ in range(draw(st.integers(0, 6))):
        value = row(
            draw(_TEXT),
            *draw(st.lists(_ADDRESS, max_size=2)),
            network=draw(st.sampled_from([NET_A, NET_B])),
            id12=draw(st.sampled_from([WEB_ID, "c", "d"])),
            aliases=draw(st.lists(_TEXT, max_size=2)),
            state=draw(st.sampled_from(["starting", "ready", "draining"])),
            service=draw(st.sampled_from(["", "s"])),
            ports=draw(st.lists(st.sampled_from(["http:80/tcp", "x:1/udp"]), max_size=1)),
        )[2]
        key = RowKey("node1", "endpoint", draw(st.sampled_from(["c", WEB_ID + ".n", "d"])))
        # A version stands for one value, as with the real table.
        rows[key] = (key, Version(1, hash(value) & 0xFFFFFFFF), value)
    return list(rows.values()), networks, draw(st.lists(_SERVICES, max_size=1))


@given(st.lists(_worlds(), min_size=1, max_size=5))
def test_differences_add_up_to_the_whole(
    worlds: list[tuple[list[Row], dict[str, Network], list[PublicService]]],
) -> None:
    names = Names()
    mirror: dict[tuple[str, bytes], Answers] = {}
    for rows, networks, services in worlds:
        for key, answers in names.update(rows, networks, services).items():
            if answers is None:
                mirror.pop(key, None)
            else:
                mirror[key] = answers
        anew = Names()
        assert mirror == anew.update(rows, networks, services)
        assert len(names) == len(anew) == len(mirror)


# Messages


def _counts(data: bytes, *counts: int) -> bytes:
    return data[:4] + b"".join(count.to_bytes(2, "big") for count in counts) + data[12:]


_WEB = query("web")
_OPT = bytes(11)[:1] + b"\x00\x29\x04\xd0" + bytes(6)


@pytest.mark.parametrize(
    "data, reason, rcode",
    [
        (b"", "short", None),
        (_WEB[:11], "short", None),
        (_WEB + bytes(UDP_QUERY_MAX), "long", None),
        (_WEB[:2] + b"\x81" + _WEB[3:], "response", None),
        (_WEB[:2] + b"\x29" + _WEB[3:], "opcode", "NOTIMP"),
        (_counts(_WEB, 0, 0, 0, 0), "counts", "FORMERR"),
        (_counts(_WEB, 2, 0, 0, 0), "counts", "FORMERR"),
        (_counts(_WEB, 1, 1, 0, 0), "counts", "FORMERR"),
        (_counts(_WEB, 1, 0, 1, 0), "counts", "FORMERR"),
        (_counts(_WEB, 1, 0, 0, 3), "counts", "FORMERR"),
        (_counts(_WEB, 1, 0, 0, 1), "additional", "FORMERR"),
        (_counts(_WEB, 1, 0, 0, 2) + _OPT + _OPT, "additional", "FORMERR"),
        (_counts(_WEB, 1, 0, 0, 1) + _OPT[:-1], "additional", "FORMERR"),
        (_counts(_WEB, 1, 0, 0, 1) + _OPT[:-1] + b"\x01", "additional", "FORMERR"),
        (_counts(_WEB, 1, 0, 0, 1) + b"\x01a" + _OPT, "additional", "FORMERR"),
        (_WEB + b"x", "additional", "FORMERR"),
        (_WEB[:-1], "question", "FORMERR"),
        (_WEB[:14], "question", "FORMERR"),
        (_WEB[:12] + b"\xc0\x0c\x00\x01\x00\x01", "label", "FORMERR"),
        (_WEB[:12] + b"\x40" + bytes(80), "label", "FORMERR"),
        (_WEB[:12] + (b"\x3f" + b"a" * 63) * 4 + b"\0\0\x01\0\x01", "question", "FORMERR"),
        (_WEB[:-1] + b"\x03", "class", "REFUSED"),
    ],
    ids=lambda value: "" if isinstance(value, bytes) else str(value),
)
def test_what_is_no_question_is_rejected_with_its_reason(data: bytes, reason: str, rcode: str | None) -> None:
    outcome = NAMES.answer(ON_A, data, 0)
    assert isinstance(outcome, Rejected)
    assert outcome.reason == reason
    if rcode is None:
        assert outcome.reply == b""
    else:
        reply = dnslib.DNSRecord.parse(outcome.reply)
        assert (dnslib.RCODE[reply.header.rcode], reply.header.qr) == (rcode, 1)
        assert outcome.reply[:2] == data[:2]


def test_the_longest_name_is_still_a_name() -> None:
    labels = (b"\x3f" + b"a" * 63) * 3
    outcome = NAMES.answer(ON_A, _WEB[:12] + labels + b"\x3d" + b"b" * 61 + b"\0\0\x01\0\x01", 0)
    assert isinstance(outcome, Forward) and len(outcome.query.name) == 255
    outcome = NAMES.answer(ON_A, _WEB[:12] + labels + b"\x3e" + b"b" * 62 + b"\0\0\x01\0\x01", 0)
    assert isinstance(outcome, Rejected) and outcome.reason == "question"


_LABEL = st.binary(min_size=1, max_size=20).filter(bytes.isascii)


@given(
    labels=st.lists(_LABEL, max_size=6),
    kind=st.integers(0, 65535),
    number=st.integers(0, 65535),
    edns=st.none() | st.integers(0, 65535),
    option=st.binary(min_size=1, max_size=40),
)
def test_valid_questions_mean_the_same_to_dnslib(
    labels: list[bytes], kind: int, number: int, edns: int | None, option: bytes
) -> None:
    question = dnslib.DNSRecord(
        dnslib.DNSHeader(id=number, rd=1), q=dnslib.DNSQuestion(dnslib.DNSLabel(tuple(labels)), kind)
    )
    if edns is not None:
        question.add_ar(dnslib.EDNS0(udp_len=edns, opts=[dnslib.EDNSOption(10, option)]))
    data = bytes(question.pack())
    found = parse_query(data)
    assert isinstance(found, Query)
    there = dnslib.DNSRecord.parse(data)
    assert found.type == there.q.qtype == kind
    assert found.name == b"".join(bytes((len(label),)) + label.lower() for label in there.q.qname.label) + b"\0"
    assert found.limit == (512 if edns is None else min(max(edns, 512), UDP_QUERY_MAX))
    upstream = dnslib.DNSRecord.parse(forward.pack_query(found, 4711))
    assert upstream.header.id == 4711 and upstream.q == there.q
    if edns is not None:
        (opt,) = upstream.ar
        assert opt.edns_len == found.limit
        assert [bytes(each.data) for each in opt.rdata] == [option]


@given(st.binary(max_size=600), st.booleans())
def test_random_octets_never_raise(data: bytes, tcp: bool) -> None:
    outcome = NAMES.answer(ON_BOTH, data, 1, tcp=tcp)
    assert isinstance(outcome, bytes | Forward | Rejected)


def _parse(reply: bytes) -> None:
    try:
        dnslib.DNSRecord.parse(reply)
    except dnslib.DNSError as error:
        # dnslib's own rule since 0.9.26: labels are ASCII.
        if "Invalid label" not in str(error):
            raise


def test_torn_and_twisted_queries_never_raise(rng: random.Random) -> None:
    question = dnslib.DNSRecord.question("pool.network-a", "ANY")
    question.add_ar(dnslib.EDNS0(udp_len=900, opts=[dnslib.EDNSOption(10, b"cookies!")]))
    question.add_ar(dnslib.RR("sig", 250, rdata=dnslib.RD(b"x" * 20)))
    seeds = [bytes(question.pack()), _WEB, query("2.16.0.10.in-addr.arpa", "PTR")]
    outcomes = set()
    for _ in range(20_000):
        data = bytearray(rng.choice(seeds))
        for _ in range(rng.randint(1, 4)):
            data[rng.randrange(len(data))] = rng.choice((0, 1, 0x0C, 0x29, 0x3F, 0x40, 0xC0, 0xFF, rng.randrange(256)))
        if rng.random() < 0.3:
            del data[rng.randrange(len(data)) :]
        outcome = NAMES.answer(ON_BOTH, bytes(data), rng.getrandbits(16), tcp=rng.random() < 0.5)
        if isinstance(outcome, bytes):
            _parse(outcome)
        elif isinstance(outcome, Rejected) and outcome.reply:
            _parse(outcome.reply)
            assert len(outcome.reply) <= len(data) + 11
        outcomes.add(outcome.reason if isinstance(outcome, Rejected) else type(outcome).__name__)
    assert {"bytes", "Forward", "label", "question", "additional", "counts", "class", "edns version"} <= outcomes


@given(st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6)))
def test_a_reverse_name_is_its_address(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> None:
    name = encode_name(address.reverse_pointer)
    assert name is not None
    assert reverse_prefix(name) == ipaddress.ip_network(address)


@pytest.mark.parametrize(
    "text",
    [
        "1.2.3.4.5.in-addr.arpa",
        "01.2.3.4.in-addr.arpa",
        "256.1.1.1.in-addr.arpa",
        "x.in-addr.arpa",
        "+1.0.0.10.in-addr.arpa",
        "1_1.in-addr.arpa",
        "ff.ip6.arpa",
        "g.ip6.arpa",
        "-1.ip6.arpa",
        "1.2.3.4",
        "in-addr.arpa.example",
    ],
)
def test_what_is_no_reverse_name(text: str) -> None:
    name = encode_name(text)
    assert name is not None and reverse_prefix(name) is None


# Upstream


def _forwarded(name: str = "eXample.com", size: int | None = None) -> Query:
    question = dnslib.DNSRecord.question(name)
    question.header.id = 0x1111
    if size:
        question.add_ar(dnslib.EDNS0(udp_len=size))
    outcome = NAMES.answer(ON_A, bytes(question.pack()), 0)
    assert isinstance(outcome, Forward)
    return outcome.query


def _reply_to(asked_query: Query, number: int, rcode: int = 0, answers: int = 1) -> bytes:
    reply = dnslib.DNSRecord.parse(forward.pack_query(asked_query, number)).reply()
    reply.header.rcode = rcode
    for i in range(answers):
        reply.add_answer(dnslib.RR("example.com", rdata=dnslib.A(f"192.0.2.{i}")))
    return bytes(reply.pack())


def test_what_counts_as_a_reply() -> None:
    question = _forwarded()
    good = _reply_to(question, 0x2222)
    assert forward.judge(question, 0x2222, good) == "good"
    assert forward.judge(question, 0x2222, _reply_to(question, 0x2222, rcode=3)) == "good"
    for rcode in (2, 4, 5):
        assert forward.judge(question, 0x2222, _reply_to(question, 0x2222, rcode=rcode)) == "next"
    # Some servers lower the case; the client gets its own back.
    assert forward.judge(question, 0x2222, good.replace(b"eXample", b"example")) == "good"
    assert forward.judge(question, 0x2223, good) == "stray"
    assert forward.judge(question, 0x2222, good.replace(b"eXample", b"evample")) == "stray"
    https = question._replace(question=question.name + b"\0\x41\0\1", type=65)
    assert forward.judge(https, 0x2222, good[:12] + question.name + b"\0\x61\0\1") == "stray"
    assert forward.judge(question, 0x2222, forward.pack_query(question, 0x2222)) == "stray"
    assert forward.judge(question, 0x2222, good[:11]) == "stray"
    bare = good[:4] + bytes(8)
    assert forward.judge(question, 0x2222, bare) == "stray"
    assert forward.judge(question, 0x2222, bare[:3] + b"\x81" + bare[4:]) == "next"


def test_a_reply_is_relayed_with_the_clients_own_id_and_spelling() -> None:
    question = _forwarded()
    reply = forward.relay(question, _reply_to(question, 0x2222).replace(b"eXample", b"example"))
    parsed = dnslib.DNSRecord.parse(reply)
    assert (parsed.header.id, str(parsed.q.qname), str(parsed.a.rdata)) == (0x1111, "eXample.com.", "192.0.2.0")


@pytest.mark.parametrize("size, whole", [(None, False), (1232, True), (4096, True)])
def test_a_reply_that_is_too_long_says_so(size: int | None, whole: bool) -> None:
    question = _forwarded(size=size)
    reply = dnslib.DNSRecord.parse(forward.relay(question, _reply_to(question, 0x2222, answers=40)))
    assert (reply.header.tc, len(reply.rr)) == ((0, 40) if whole else (1, 0))
    assert str(reply.q.qname) == "eXample.com." and reply.header.id == 0x1111


@given(st.binary(max_size=200))
def test_random_replies_never_raise(data: bytes) -> None:
    question = _forwarded()
    for reply in (data, (0x2222).to_bytes(2, "big") + b"\x81" + data):
        if forward.judge(question, 0x2222, reply) == "good":
            forward.relay(question, reply)


def test_silent_resolvers_are_asked_last_and_only_for_a_while() -> None:
    a, b, c, d = (ipaddress.ip_address(f"192.0.2.{i}") for i in range(4))
    assert forward.order([a, b, c, d], {}, 100.0) == [a, b, c]
    assert forward.order([a, b, c], {a: 99.0, d: 99.0}, 100.0) == [b, c, a]
    assert forward.order([a, b, c], {a: 99.0, b: 99.5, c: 98.0}, 100.0) == [a, b, c]
    assert forward.order([a, b, c], {a: 100.0 - forward.SILENT_S}, 100.0) == [a, b, c]
    assert forward.order([], {}, 0.0) == []
