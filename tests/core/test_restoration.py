"""A cluster's records in another store: what must not be taken for what was before."""

from __future__ import annotations

import ipaddress

import pytest

from vxnet.core import succession, trust
from vxnet.core.restoration import GENERATION, check_trusted, make_backup, next_generation, restored, wishes_of
from vxnet.core.trust import CertificateAuthority
from vxnet.model.cluster import Node, Role
from vxnet.model.codec import to_json
from vxnet.model.errors import ConflictError
from vxnet.model.store import Backup

NOW = 1.8e9
OLD = trust.make_ca(b"o" * 48, "c", NOW)
KEY = trust.node_key(b"k" * 32)


@pytest.mark.parametrize("revision", [0, 7, GENERATION - 1, GENERATION, 5 * GENERATION + 3])
@pytest.mark.parametrize("now", [0.0, NOW])
def test_a_new_store_begins_above_the_old_one(revision: int, now: float) -> None:
    assert next_generation(revision, now) > revision


def test_a_backup_that_is_restored_twice_begins_above_what_the_first_told() -> None:
    """So does one from before the cluster moved to another store. All that is left of that is what nodes have heard."""
    told = next_generation(7, NOW) + 3 * 86400 * 1000
    assert next_generation(7, NOW + 3 * 86400) > told


def test_json_can_carry_it() -> None:
    assert next_generation(0, NOW * 2) < 2**53


def node(number: int, role: Role) -> Node:
    address = ipaddress.ip_address(f"192.0.2.{number}")
    return Node(
        id=f"n{number}", name=f"h{number}", role=role, advertise_addr=address, data_path_addr=address, joined_at=0.0
    )


def backup_with(**authorities: CertificateAuthority) -> Backup:
    records: dict[str, object] = {f"node/n{one}": node(one, "manager" if one == 1 else "worker") for one in (1, 2, 3)}
    records |= {f"ca/{number.removeprefix('ca')}": ca for number, ca in authorities.items()}
    return make_backup("c", 7, {key: to_json(record) for key, record in records.items()}, NOW, "1")


def certificate_of(ca: CertificateAuthority, node_id: str) -> bytes:
    identity = trust.Identity(node=node_id, role="worker")
    return trust.issue(ca, trust.make_csr(KEY, node_id), identity, node_id, [], b"12345678", NOW)


def successor() -> CertificateAuthority:
    made = succession.successor({"1": OLD}, "c", b"n" * 48, NOW)
    assert made is not None
    return made[1]


def test_a_backup_of_a_ca_that_nobody_trusts_any_more_is_refused() -> None:
    wishes = wishes_of(backup_with(ca1=OLD))
    check_trusted(wishes, {})
    check_trusted(wishes, {"n2": certificate_of(OLD, "n2"), "unknown": certificate_of(successor(), "unknown")})
    with pytest.raises(ConflictError, match=r"CA was replaced .* after this backup was made: h3 would trust"):
        check_trusted(wishes, {"n2": certificate_of(OLD, "n2"), "n3": certificate_of(successor(), "n3")})


@pytest.mark.parametrize("over", [False, True])
def test_a_backup_of_the_middle_of_a_rotation_signs_with_what_the_nodes_hold(over: bool) -> None:
    """Some may have forgotten the old CA since; while none holds a certificate of the new one, some may not know it."""
    new = successor()
    backup = backup_with(ca1=OLD, ca2=new)
    held = {"n2": certificate_of(OLD, "n2")} | ({"n3": certificate_of(new, "n3")} if over else {})
    check_trusted(wishes_of(backup), held)
    fresh, csr = node(9, "manager"), trust.make_csr(KEY, "h9")
    records, certificate = restored(backup, fresh, csr, b"12345678", NOW, held)
    roots = [new.certificate if over else OLD.certificate]
    assert trust.verify_certificate(certificate, roots, NOW).role == "manager"
    assert wishes_of(make_backup("c", 8, records, NOW, "1")).authority.certificate == roots[0]
