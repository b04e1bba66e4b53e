"""The CA's change, phase by phase, in any order of the nodes' reports."""

from __future__ import annotations

import ipaddress
import random

import pytest
from msgspec.structs import replace

from vxnet.core import succession, trust
from vxnet.core.trust import CertificateAuthority
from vxnet.model.cluster import Node

NOW = 1_800_000_000.0
OLD = trust.make_ca(b"o" * 48, "c", NOW)


def nodes(count: int, authority: CertificateAuthority = OLD) -> dict[str, Node]:
    address = ipaddress.ip_address("192.0.2.1")
    made = {}
    for number in range(count):
        name = f"h{number}"
        made[name] = Node(
            id=name, name=name, role="worker", advertise_addr=address, data_path_addr=address, joined_at=NOW
        )
    return {name: trusting(node, authority) for name, node in made.items()}


def trusting(node: Node, *authorities: CertificateAuthority) -> Node:
    return replace(node, authorities=tuple(trust.certificate_digest(one.certificate) for one in authorities))


def begun() -> dict[str, CertificateAuthority]:
    made = succession.successor({"1": OLD}, "c", b"n" * 48, NOW)
    assert made is not None
    return {"1": OLD, made[0]: made[1]}


def test_the_phases() -> None:
    authorities = begun()
    assert succession.in_order(authorities) == ["1", "2"]
    assert succession.successor(authorities, "c", b"x" * 48, NOW) is None
    members = nodes(2)
    new = authorities["2"]
    # Known to one of two.
    members["h0"] = trusting(members["h0"], OLD, new)
    assert [node.name for node in succession.unready(authorities, members.values())] == ["h1"]
    assert succession.step(authorities, members.values(), NOW) == {}
    members["h1"] = trusting(members["h1"], OLD, new)
    step = succession.step(authorities, members.values(), NOW + 1)
    assert step == {"2": replace(new, waiting=False)}
    authorities |= {"2": step["2"]}  # type: ignore[dict-item]
    assert succession.in_order(authorities) == ["2", "1"]
    # Certificates of it, one after the other; and a while more.
    members["h0"] = trusting(members["h0"], new, OLD)
    assert [node.name for node in succession.unready(authorities, members.values())] == ["h1"]
    members["h1"] = trusting(members["h1"], new, OLD)
    # The while begins with the last of them, however long that one was away: what the others have of it is to be of the
    # new CA before they forget the old one.
    late = NOW + 3600
    step = succession.step(authorities, members.values(), late)
    assert step == {"2": replace(new, waiting=False, settled_at=late)}
    authorities |= {"2": step["2"]}  # type: ignore[dict-item]
    assert succession.step(authorities, members.values(), late + succession.KEPT_S - 1) == {}
    assert succession.step(authorities, members.values(), late + succession.KEPT_S) == {"1": None}
    assert succession.step(authorities, members.values(), late - 36_000) == {"1": None}, "the clock was set back"
    assert [(one.number, one.use) for one in succession.view(authorities, members.values()).authorities] == [
        (2, "signs"),
        (1, "old"),
    ]


@pytest.mark.parametrize("seed", range(20))
def test_at_every_moment_every_node_can_speak_to_every_manager(seed: int) -> None:
    """Nodes hear late, renew late and report late; whoever holds a certificate of a CA that signs is trusted by all."""
    chance = random.Random(seed)
    stored = begun()
    members = nodes(5)
    roots = {name: ["1"] for name in members}
    held = dict.fromkeys(members, "1")
    now = NOW
    for _ in range(500):
        now += 1
        name = chance.choice(list(members))
        match chance.choice(["hear", "renew", "report"]):
            case "hear":
                roots[name] = succession.in_order(stored)
            case "renew":
                if held[name] != roots[name][0]:
                    held[name] = succession.in_order(stored)[0]  # the manager signs with what is stored
            case "report":
                order = sorted(roots[name], key=lambda number: number != held[name])
                members[name] = trusting(members[name], *(stored[number] for number in order if number in stored))
        for number, authority in succession.step(stored, members.values(), now).items():
            if authority is None:
                del stored[number]
            else:
                stored[number] = authority
        for one in members:
            assert held[one] in stored, "the managers refuse it"
            assert set(held.values()) <= set(roots[one]), "it refuses somebody"
    assert list(stored) == ["2"] and set(held.values()) == {"2"}


def test_who_pins_the_old_one_trusts_its_successor_alone() -> None:
    authorities = begun()
    new = authorities["2"]
    assert trust.is_endorsed(new.certificate, new.endorsement, OLD.certificate)
    stranger = trust.make_ca(b"s" * 48, "c 2", NOW)
    assert not trust.is_endorsed(stranger.certificate, new.endorsement, OLD.certificate)
    assert not trust.is_endorsed(new.certificate, new.endorsement, stranger.certificate)
    assert not trust.is_endorsed(new.certificate, trust.endorse(stranger, new.certificate), OLD.certificate)
    assert not trust.is_endorsed(new.certificate, b"", OLD.certificate)
    assert not trust.is_endorsed(new.certificate, new.endorsement, b"no certificate")


def test_who_issued_a_certificate() -> None:
    new = begun()["2"]
    roots = (new.certificate, OLD.certificate)
    key = trust.node_key(b"k" * 32)
    for authority in (OLD, new):
        der = trust.issue(
            authority, trust.make_csr(key, "h1"), trust.Identity(node="n", role="worker"), "h1", [], b"12345678", NOW
        )
        assert trust.issuer(der, roots) == authority.certificate
        assert trust.issuer(der, ()) is None
        assert trust.verify_certificate(der, roots, NOW).node == "n"
