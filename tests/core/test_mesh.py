"""The routing mesh: whom a node gives the connections to a published port."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping

import pytest

from vxnet.core.balance import Tasks
from vxnet.core.mesh import Mesh, choose
from vxnet.model.address import IPAddress
from vxnet.model.host import STICKY_BUCKETS, MeshPort
from vxnet.model.published import PublishedPort, PublishPolicy
from vxnet.model.service import Affinity, PublicService


def addresses(*numbers: int) -> tuple[IPAddress, ...]:
    return tuple(ipaddress.ip_address(f"{prefix}{n}") for n in numbers for prefix in ("10.0.0.", "fd00::"))


def tasks(ready: tuple[int, ...] = (), draining: tuple[int, ...] = ()) -> Tasks:
    return Tasks(addresses(*ready), addresses(*draining))


HERE, THERE = tasks((1, 2)), tasks((3,), (4,))


@pytest.mark.parametrize(
    ("behind", "policy", "chosen", "why"),
    [
        ({"a": HERE, "b": THERE}, "prefer-local", (1, 2), "prefer-local: ready here"),
        ({"a": HERE, "b": THERE}, "local", (1, 2), "local: ready here"),
        ({"a": HERE, "b": THERE}, "cluster", (1, 2, 3), "cluster: any"),
        ({"b": THERE}, "prefer-local", (3,), "prefer-local: none is ready here, so any"),
        ({"b": THERE}, "local", (), "local: none is ready here, so it is refused"),
        ({"a": tasks((), (5,)), "b": THERE}, "prefer-local", (3,), "prefer-local: none is ready here, so any"),
        ({"a": tasks((), (5,)), "b": THERE}, "local", (5,), "local: only draining ones are here"),
        ({"a": tasks((), (5,)), "b": tasks((), (4,))}, "cluster", (5, 4), "cluster: only draining ones are left"),
        ({"a": tasks()}, "cluster", (), "no task is ready, so it is refused"),
        ({}, "prefer-local", (), "no task is ready, so it is refused"),
    ],
)
def test_whom_a_node_chooses(
    behind: Mapping[str, Tasks], policy: PublishPolicy, chosen: tuple[int, ...], why: str
) -> None:
    choice = choose(behind, "a", policy)
    assert (set(choice.tasks), choice.why) == ({*addresses(*chosen)}, why)


def service(*ports: PublishedPort, affinity: Affinity = "", id: str = "s") -> PublicService:
    return PublicService(id=id, name=id, ports=ports, affinity=affinity)


WEB = PublishedPort(published=80, target=8080)


def ports(
    *services: PublicService,
    behind: Mapping[str, Tasks] | None = None,
    mesh: Mesh | None = None,
    held: Mapping[str, tuple[IPAddress, ...]] | None = None,
) -> tuple[MeshPort, ...]:
    found = {"a": HERE, "b": THERE} if behind is None else behind
    return (mesh or Mesh()).ports(services, lambda id: found, "a", held or {})


def test_each_family_has_its_own() -> None:
    four, six = ports(service(WEB))
    assert (four.version, six.version) == (4, 6)
    assert [str(one) for one in four.backends] == ["10.0.0.1", "10.0.0.2"]
    assert [str(one) for one in six.backends] == ["fd00::1", "fd00::2"]
    assert [str(one) for one in four.draining] == ["10.0.0.3", "10.0.0.4"]  # nobody's connection is cut
    assert {(one.protocol, one.published, one.target, one.addresses, one.guarded) for one in (four, six)} == {
        ("tcp", 80, 8080, (), False)
    }


def test_ports_of_single_tasks_are_not_the_meshs() -> None:
    assert ports(service(PublishedPort(published=80, target=80, mode="host"))) == ()


def test_bound_to_addresses() -> None:
    one, other = ipaddress.ip_address("192.0.2.1"), ipaddress.ip_address("2001:db8::1")
    bound = PublishedPort(published=80, target=8080, addresses=(one,))
    assert [(made.version, made.addresses) for made in ports(service(bound))] == [(4, (one,))]
    family = PublishedPort(published=80, target=8080, addresses=(ipaddress.ip_address("::"),))
    assert [(made.version, made.addresses) for made in ports(service(family))] == [(6, ())]
    link = PublishedPort(published=80, target=8080, interface="eth1")
    made = ports(service(link), held={"eth1": (one, other), "eth2": (other,)})
    assert [(port.version, port.addresses) for port in made] == [(4, (one,)), (6, (other,))]
    assert ports(service(link)) == ()  # a node without that link


def test_for_some_alone() -> None:
    sources = tuple(map(ipaddress.ip_network, ("10.0.0.0/8", "10.1.0.0/16", "192.0.2.7")))
    four, six = ports(service(PublishedPort(published=80, target=8080, sources=sources)))
    assert (four.guarded, six.guarded) == (True, True)
    assert [str(one) for one in four.sources] == ["10.0.0.0/8", "192.0.2.7/32"]
    assert six.sources == ()  # nobody's of IPv6


def test_affinity_fills_the_buckets_and_all_nodes_agree() -> None:
    anywhere = PublishedPort(published=80, target=8080, policy="cluster")
    sticky = service(anywhere, affinity="client-ip")
    four, _ = ports(sticky)
    assert four.sticky and len(four.backends) == STICKY_BUCKETS
    elsewhere = Mesh().ports([sticky], lambda id: {"b": THERE, "a": HERE}, "b", {})
    assert elsewhere[0].backends == four.backends
    fewer, _ = ports(sticky, behind={"a": HERE})
    moved = [old for old, new in zip(four.backends, fewer.backends, strict=True) if old != new]
    assert moved and {str(one) for one in moved} == {"10.0.0.3"}  # only the clients of the one that went


def test_what_is_equal_stays_the_same_object() -> None:
    mesh = Mesh()
    services = [service(WEB), service(PublishedPort(published=53, target=53, protocol="udp"), id="t")]
    first = ports(*services, mesh=mesh)
    assert [(one.protocol, one.published) for one in first] == [("tcp", 80)] * 2 + [("udp", 53)] * 2
    assert ports(*reversed(services), mesh=mesh) is first
    changed = ports(*services, mesh=mesh, behind={"a": tasks((1,)), "b": THERE})
    assert changed != first
    assert changed == ports(*services, behind={"a": tasks((1,)), "b": THERE})
