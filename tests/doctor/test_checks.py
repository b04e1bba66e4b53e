"""Checks as functions: a host that is well, one thing wrong with it at a time, and what is then said."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from typing import Any

import pytest
from msgspec.structs import replace

from vxnet.core.pathmtu import Path
from vxnet.doctor import judge, status
from vxnet.doctor.inside import Inside
from vxnet.doctor.patient import Answer, Disk, Patient
from vxnet.host.firewall import Chain, parse, parse_legacy
from vxnet.model.api import Info
from vxnet.model.checkup import Diagnosis, Exam, PeerExam
from vxnet.model.gossip import GossipMember, GossipView
from vxnet.model.host import Change, HostAddress, HostState

DAY = 86400.0
NOW = 1_800_000_000.0
OWN, OTHER = ipaddress.ip_address("192.168.56.11"), ipaddress.ip_address("192.168.56.12")
ALL = ("control", "etcd-client", "etcd-peer", "data", "data-large", "tcp", "udp", "wire", "wire-large")

PEER = PeerExam(
    name="h2", node="n2", address=OTHER, vtep=OTHER, role="manager", version="1", answered=True, here=ALL, there=ALL,
    clock_ahead_s=0.001, machine="two",
)  # fmt: skip
INFO = Info(
    version="1", name="h1", cluster="c", node="n1", role="manager", advertise_addr=OWN, data_path_addr=OWN,
    manager_reachable=True,
)  # fmt: skip
DIAGNOSIS = Diagnosis(
    plan=HostState(), manager_here=True, etcd_here=True, certificate_from=NOW - DAY, certificate_until=NOW + 89 * DAY,
    authority_until=NOW + 3650 * DAY, subnets=(ipaddress.ip_network("10.0.0.0/20"),),
)  # fmt: skip
MEMBER = GossipMember(name="h2", node="n2", address=OTHER, port=7946, status="alive", since_s=9.0, incarnation=1)
WELL = Patient(
    now=NOW,
    info=INFO,
    silence="",
    diagnosis=DIAGNOSIS,
    gossip=GossipView(node="h1", members=(MEMBER,)),
    exam=Exam(peers=(PEER,), machine="one", probed_data=True, large=1500),
    unexamined="",
    missing=(),
    addresses=(HostAddress(interface="eth1", address=ipaddress.ip_interface("192.168.56.11/24")),),
    unplanned=(),
    unseen="",
    carried={OTHER: Path(1500, 1500)},
    chains=(),
    answering={OWN: frozenset(), OTHER: frozenset({"52:54:00:00:00:02"})},
    ways={OTHER: "eth1"},
    offloading=("eth1",),
    disks=(Disk("/var/lib/vxnet", 1 << 30, 1000, 2000, False),),
    leftovers=(),
    resolvers={OTHER: True},
    inside=(Inside("a", True, True, OTHER, True),),
    published=(Answer("h2", "web", 80, "open"),),
    version="1",
)
INPUT = Chain("input", "table ip filter chain INPUT", "drop", 0)


def hears(*missing: str) -> tuple[str, ...]:
    return tuple(word for word in ALL if word not in missing)


def peer(**changes: Any) -> dict[str, Any]:
    return {"exam": replace(WELL.exam, peers=(replace(PEER, **changes),))}  # type: ignore[type-var]


def diagnosis(**changes: Any) -> dict[str, Any]:
    return {"diagnosis": replace(DIAGNOSIS, **changes)}


def info(**changes: Any) -> dict[str, Any]:
    return {"info": replace(INFO, **changes)}


FAULTS: list[tuple[str, dict[str, Any], str, str]] = [
    ("daemon", {"info": None, "diagnosis": None, "silence": "no socket"}, "fault", "no socket"),
    ("daemon", {"version": "2"}, "warning", "this command is 2"),
    ("kernel", {"missing": ("the program nft: apt-get install nftables",)}, "fault", "the program nft"),
    ("cluster", diagnosis(removed=True), "fault", "removed this node"),
    ("cluster", info(manager_reachable=False, managers=("h1 (x)",)), "fault", "no manager can be reached"),
    ("cluster", info(rows_refused={"not leased": 3}), "warning", "3 rows"),
    ("state", {"unplanned": (Change(verb="add", object="fdb x"),)}, "fault", "add fdb x"),
    ("state", diagnosis(refused=(Change(verb="add", object="link", error="busy"),)), "fault", "busy"),
    ("state", {"unseen": "no netlink"}, "fault", "no netlink"),
    ("vtep", {"addresses": ()}, "fault", "no interface that is up has the data path address"),
    ("vtep", info(data_path_addr=ipaddress.ip_address("10.0.2.15")), "fault", "VirtualBox"),
    ("vtep", info(data_path_addr=ipaddress.ip_address("10.0.3.1")), "fault", "a network of the containers'"),
    ("vtep", info(data_path_addr=ipaddress.ip_address("127.0.0.1")), "fault", "none that another host can reach"),
    ("certificates", {"now": NOW + 80 * DAY}, "warning", "ends in 9 days"),
    ("certificates", {"now": NOW + 90 * DAY}, "fault", "ended 1 days ago"),
    ("certificates", {"now": NOW - 2 * DAY}, "fault", "valid only in 24.0 hours"),
    ("certificates", diagnosis(authority_until=NOW + DAY), "warning", "authority ends in 1 days"),
    ("disk", {"disks": (Disk("/x", 1 << 20, 9, 0, False),)}, "fault", "/x has 1 MiB left"),
    ("disk", {"disks": (Disk("/x", 1 << 30, 1, 1000, False),)}, "fault", "1 inodes left"),
    ("disk", {"disks": (Disk("/x", 1 << 30, 9, 0, True),)}, "fault", "read-only"),
    ("leftovers", {"leftovers": ("process 7 (vxnet-shim abc)",)}, "warning", "process 7"),
    ("names", {"resolvers": {OTHER: False}}, "fault", "192.168.56.12"),
    ("names", {"inside": (Inside("a", False, True, OTHER, True),)}, "fault", "does not answer in a"),
    ("way out", {"inside": (Inside("a", True, True, OTHER, False),)}, "fault", "this host reaches 192.168.56.12"),
    ("way out", {"inside": (Inside("a", True, False, OTHER, False),)}, "fault", "vxnet_gw does not answer in a"),
    ("members", {"exam": None, "unexamined": "no daemon"}, "fault", "no daemon"),
    ("members", {"gossip": GossipView(node="h1", members=(replace(MEMBER, status="dead"),))}, "fault", "h2"),
    ("members", {"gossip": GossipView(node="h1", health=3)}, "warning", "score 3"),
    ("gossip port", peer(answered=False, here=(), there=()), "fault", "neither by UDP nor by TCP"),
    ("gossip port", peer(answered=False, here=(), there=(), version="0"), "note", "runs vxnet 0"),
    ("gossip port", peer(here=hears("udp")), "fault", "7946/udp from h2 (192.168.56.12) does not arrive here"),
    ("gossip port", peer(there=hears("tcp")), "fault", "7946/tcp from here does not arrive at h2"),
    ("manager port", peer(here=hears("control")), "fault", "takes no connection from here"),
    ("manager port", peer(there=hears("control")), "fault", "takes no connection from h2"),
    ("etcd ports", peer(here=hears("etcd-client")), "fault", "2379/tcp of the manager h2"),
    ("etcd ports", peer(there=hears("etcd-peer")), "fault", "2380/tcp of this manager takes no connection from h2"),
    ("data port", peer(here=hears("data", "data-large")), "fault", "reaches this host's card and is dropped here"),
    ("data port", peer(there=hears("data", "data-large")), "fault", "and is dropped there"),
    (
        "data port",
        peer(there=hears("data", "data-large", "wire", "wire-large")),
        "fault",
        "does not reach the card of h2",
    ),
    ("data port", peer(here=hears("data", "data-large", "wire", "wire-large")), "fault", "this host's card"),
    ("published ports", {"published": (Answer("h2", "web", 80, "silent"),)}, "fault", "80/tcp of service web on h2"),
    ("published ports", {"published": (Answer("h2", "web", 80, "refused"),)}, "note", "refuses connections"),
    ("path mtu", {"carried": {OTHER: Path(1500, 1400)}}, "fault", "carries packets of 1400 octets"),
    ("path mtu", {"carried": {OTHER: Path(1500, None)}}, "note", "no echo comes back from h2"),
    ("path mtu", peer(here=hears("data-large")), "fault", "VXLAN packets of 1500 octets from h2"),
    ("checksums", peer(there=(*ALL, "damaged")), "fault", "packets that leave by eth1 arrive at h2 with wrong"),
    ("checksums", peer(here=(*ALL, "damaged-large")), "fault", "packets from h2"),
    ("duplicates", peer(vtep=OWN), "fault", "h1 and h2 have the same data path address"),
    ("duplicates", peer(machine="one"), "warning", "same machine id"),
    ("duplicates", {"answering": {OWN: frozenset({"52:54:00:00:00:09"})}}, "fault", "52:54:00:00:00:09 answers for"),
    ("duplicates", {"answering": {OTHER: frozenset({"a", "b"})}}, "warning", "a and b all answer for"),
    ("clocks", peer(clock_ahead_s=-3.0), "warning", "3.0 s behind this host's"),
    ("clocks", peer(clock_ahead_s=3600.0), "fault", "3600.0 s ahead of this host's"),
]


def test_a_host_that_is_well() -> None:
    findings = judge(WELL)
    assert {one.verdict for one in findings} == {"ok"}
    assert status(findings) == 0


@pytest.mark.parametrize("check, changes, verdict, words", FAULTS, ids=lambda value: str(value)[:40])
def test_what_is_wrong_is_named(check: str, changes: Mapping[str, Any], verdict: str, words: str) -> None:
    findings = judge(WELL._replace(**changes))
    found = [one for one in findings if one.check == check and one.verdict == verdict]
    assert any(words in one.found for one in found), findings
    if verdict in ("fault", "warning") and check not in ("members", "state"):
        assert all(one.advice for one in found), "what to do next is said"
    assert status(findings) == {"fault": 4, "warning": 3, "note": 0}[verdict] or status(findings) == 4


def test_another_version_is_no_fault() -> None:
    """Of the daemon: its plan would be other rules to this command. Of a manager: it may not try all ports."""
    unplanned = (Change(verb="replace", object="nft table inet vxnet"),)
    found = judge(WELL._replace(version="2", unplanned=unplanned, **peer(version="2")))
    assert {one.check for one in found if one.verdict != "ok"} == {"daemon"}
    assert "state" not in {one.check for one in found}
    earlier = judge(WELL._replace(**peer(version="0", there=hears("etcd-client", "etcd-peer"))))
    assert {one.verdict for one in earlier} == {"ok"}


def test_an_input_chain_is_blamed() -> None:
    (found,) = [
        one for one in judge(WELL._replace(chains=(INPUT,), **peer(here=hears("udp")))) if one.verdict == "fault"
    ]
    assert "table ip filter chain INPUT (policy drop)" in found.found


def test_only_what_a_card_promises_is_fixable() -> None:
    damaged = peer(there=(*ALL, "damaged-large"))
    assert [one.fixable for one in judge(WELL._replace(**damaged)) if one.check == "checksums"] == [True]
    assert [one.fixable for one in judge(WELL._replace(offloading=(), **damaged)) if one.check == "checksums"] == [
        False
    ]


RULESET = [
    {"table": {"family": "ip", "name": "filter"}},
    {
        "chain": {
            "family": "ip", "table": "filter", "name": "INPUT", "type": "filter", "hook": "input", "prio": 0,
            "policy": "drop",
        }
    },
    {
        "chain": {
            "family": "ip", "table": "filter", "name": "FORWARD", "type": "filter", "hook": "forward", "prio": 0,
            "policy": "accept",
        }
    },
    {"chain": {"family": "ip", "table": "filter", "name": "mine"}},
    {
        "rule": {
            "family": "ip", "table": "filter", "chain": "FORWARD",
            "expr": [{"match": {"op": "==", "left": {"meta": {"key": "iifname"}}, "right": "eth0"}},
                     "xt match \"drop\"", {"jump": {"target": "mine"}}],
        }
    },
    {"rule": {"family": "ip", "table": "filter", "chain": "mine", "expr": [{"drop": None}]}},
    {"rule": {"family": "ip", "table": "filter", "chain": "mine", "expr": [{"goto": {"target": "mine"}}]}},
    {
        "chain": {
            "family": "inet", "table": "vxnet", "name": "input", "type": "filter", "hook": "input", "prio": 0,
            "policy": "accept",
        }
    },
    {"rule": {"family": "inet", "table": "vxnet", "chain": "input", "expr": [{"drop": None}]}},
]  # fmt: skip


def test_chains_that_drop_are_found_through_those_that_they_call() -> None:
    found = [(str(chain), chain.hook) for chain in parse(RULESET)]
    assert found == [
        ("table ip filter chain INPUT (policy drop)", "input"),
        ("table ip filter chain FORWARD (1 rule that drops)", "forward"),
    ]


def test_iptables_of_the_older_kind() -> None:
    rules = "-P INPUT DROP\n-P FORWARD ACCEPT\n-P OUTPUT ACCEPT\n-N x\n-A FORWARD -j x\n-A x -i eth0 -j DROP\n"
    assert [str(chain) for chain in parse_legacy(rules)] == [
        "iptables-legacy filter INPUT (policy drop)",
        "iptables-legacy filter FORWARD (1 rule that drops)",
    ]
