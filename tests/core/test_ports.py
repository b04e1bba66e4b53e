"""Who has which published port, and what is given to those who chose none."""

from __future__ import annotations

import ipaddress

import pytest
from msgspec.structs import replace

from tests.daemon.memory_services import MemoryServices
from vxnet.core import decisions, services
from vxnet.core.networks import ingress_of
from vxnet.core.placement import NOTHING, Rules
from vxnet.core.ports import PORTS_MAX, check, meet, number_all
from vxnet.model.api import ServiceUpdate
from vxnet.model.cluster import Node, TakenPort
from vxnet.model.container import ContainerSpec
from vxnet.model.errors import CallerError, ConflictError, ExhaustedError, VxnetError
from vxnet.model.published import FIRST_AUTO_PORT, LAST_AUTO_PORT, PublishedPort
from vxnet.model.service import Service, ServiceSpec, TaskSpec, UpdateStatus


def port(published: int, target: int = 80, *addresses: str, **fields: object) -> PublishedPort:
    where = tuple(ipaddress.ip_address(text) for text in addresses)
    return PublishedPort(target=target, published=published, addresses=where, **fields)  # type: ignore[arg-type]


def spec(name: str, *ports: PublishedPort, **fields: object) -> ServiceSpec:
    task = TaskSpec(container=ContainerSpec(argv=("true",)))
    return ServiceSpec(name=name, task=task, ports=ports, **fields)  # type: ignore[arg-type]


@pytest.fixture
def cluster() -> MemoryServices:
    memory = MemoryServices()
    made, _ = decisions.mend(memory.wishes, 0.0)
    memory.write(made.changes)
    assert ingress_of(memory.wishes.networks.values()) is not None
    return memory


def create(cluster: MemoryServices, wanted: ServiceSpec) -> Service:
    decision, service = services.create(cluster.wishes, wanted, f"id-{wanted.name}", 0.0)
    cluster.write(decision.changes)
    return service


def update(cluster: MemoryServices, service: Service, wanted: ServiceSpec) -> Service:
    wish = ServiceUpdate(spec=wanted, base=service.spec)
    decision, changed = services.update(cluster.wishes, service.id, wish, 1.0)
    cluster.write(decision.changes)
    return changed


MEET = [
    (port(80), port(80), True),
    (port(80), port(81), False),
    (port(80), port(80, protocol="udp"), False),
    (port(0), port(0), False),
    (port(80, 80, "10.0.0.1"), port(80), True),
    (port(80, 80, "10.0.0.1"), port(80, 80, "10.0.0.2"), False),
    (port(80, 80, "10.0.0.1"), port(80, 80, "0.0.0.0"), True),
    (port(80, 80, "10.0.0.1"), port(80, 80, "::"), False),
    (port(80, 80, "10.0.0.1", "fd00::1"), port(80, 80, "fd00::1"), True),
    (port(80, interface="eth1"), port(80, 80, "10.0.0.1"), True),
    (port(80, interface="eth1"), port(80, interface="eth2"), True),
]


@pytest.mark.parametrize(("one", "other", "do"), MEET)
def test_who_meets(one: PublishedPort, other: PublishedPort, do: bool) -> None:
    assert meet(one, other) is meet(other, one) is do


@pytest.mark.parametrize(
    ("ports", "words"),
    [
        ([port(80, 0)], "port 0 of a container"),
        ([port(80, 65536)], "port 65536 of a container"),
        ([port(65536)], "port 65536 of a node"),
        ([port(-1)], "port -1 of a node"),
        ([port(80), port(80, 81)], "80/tcp is published twice"),
        ([port(80, 80, "10.0.0.1"), port(80)], "80/tcp is published twice"),
        ([port(80, 80, "10.0.0.1", interface="eth0")], "addresses and to an interface"),
        ([port(80, 80, "10.0.0.1", "0.0.0.0")], "which is all addresses, and to 10.0.0.1"),
        ([port(80, 80, "::ffff:10.0.0.1")], "cannot be bound to ::ffff:"),
        ([port(80, 80, "fe80::1")], "cannot be bound to fe80::1"),
        ([port(80, 80, "::1", mode="host")], "of mode host cannot be bound to ::1"),
        ([port(80, 80, "224.0.0.1")], "cannot be bound to 224.0.0.1"),
        ([port(80, mode="host", policy="local")], "policy=local is the routing mesh's"),
        ([port(0)] * (PORTS_MAX + 1), "are too many"),
    ],
)
def test_what_cannot_be(ports: list[PublishedPort], words: str) -> None:
    with pytest.raises(CallerError, match=words):
        check(ports)


def test_numbers_for_those_that_nobody_chose(cluster: MemoryServices) -> None:
    first = create(cluster, spec("a", port(0), port(0, protocol="udp"), port(FIRST_AUTO_PORT + 1, 81)))
    assert [one.published for one in first.spec.ports] == [FIRST_AUTO_PORT, FIRST_AUTO_PORT, FIRST_AUTO_PORT + 1]
    second = create(cluster, spec("b", port(0), port(0, 81, mode="host")))
    assert [one.published for one in second.spec.ports] == [FIRST_AUTO_PORT + 2, 0]
    assert second.spec.task.container.ports == (port(0, 81, mode="host"),)
    again = update(cluster, first, replace(first.spec, labels={"a": "b"}))
    assert again.spec.ports == first.spec.ports


def test_all_are_taken() -> None:
    every = [port(number) for number in range(FIRST_AUTO_PORT, LAST_AUTO_PORT + 1)]
    assert number_all([port(0, protocol="udp")], every, modes=("ingress",))[0].published == FIRST_AUTO_PORT
    assert number_all([port(0)], every[:-1], modes=("ingress",))[0].published == LAST_AUTO_PORT
    with pytest.raises(ExhaustedError, match="all tcp ports"):
        number_all([port(0)], every, modes=("ingress",))


TAKEN = [
    (port(80), "port 80/tcp is taken by service web"),
    (port(80, 9, "10.0.0.1"), "port 10.0.0.1:80/tcp is taken by service web"),
    (port(80, mode="host"), "port 80/tcp is taken by service web"),
    (port(9000), "port 9000/tcp is taken by service web"),
    (port(2377), "2377/tcp is taken by vxnet itself"),
    (port(7946, protocol="udp"), "7946/udp is taken by vxnet itself"),
    (port(4789, protocol="udp"), "4789/udp is taken by vxnet itself"),
]


@pytest.mark.parametrize(("wanted", "words"), TAKEN, ids=lambda value: str(value)[-30:])
def test_a_taken_port_names_its_holder(cluster: MemoryServices, wanted: PublishedPort, words: str) -> None:
    create(cluster, spec("web", port(80), port(9000, mode="host")))
    other = create(cluster, spec("other"))
    before = cluster.wishes.revision
    with pytest.raises(ConflictError, match=words):
        create(cluster, spec("new", port(81), wanted))
    with pytest.raises(ConflictError, match=words):
        update(cluster, other, replace(other.spec, ports=(wanted,)))
    assert cluster.wishes.revision == before, "nothing is half-applied"


def test_ports_that_do_not_meet_are_no_conflict(cluster: MemoryServices) -> None:
    create(cluster, spec("web", port(80, 80, "10.0.0.1"), port(90, mode="host")))
    create(cluster, spec("second", port(80, 80, "10.0.0.2"), port(90, mode="host"), port(80, protocol="udp")))


def test_a_removed_service_leaves_its_ports(cluster: MemoryServices) -> None:
    service = create(cluster, spec("web", port(80)))
    cluster.write(services.remove(cluster.wishes, service.id)[0].changes)
    create(cluster, spec("next", port(80)))


def test_host_ports_are_a_part_of_the_task(cluster: MemoryServices) -> None:
    service = create(cluster, spec("web", port(80)))
    same = update(cluster, service, replace(service.spec, ports=(port(81),)))
    assert same.version == service.version, "a port of the mesh is no reason for other tasks"
    changed = update(cluster, same, replace(same.spec, ports=(port(81, mode="host"),)))
    assert changed.version == service.version + 1


def test_what_an_update_may_go_back_to_is_kept(cluster: MemoryServices) -> None:
    service = create(cluster, spec("web", port(80, mode="host")))
    changed = update(cluster, service, replace(service.spec, ports=(port(81, mode="host"),)))
    assert changed.update is not None and changed.update.state == "updating"
    with pytest.raises(ConflictError, match="80/tcp is taken by service web, whose update is under way"):
        create(cluster, spec("next", port(80)))
    done = replace(changed, update=UpdateStatus(state="completed", started_at=0.0))
    cluster.write({f"service/{service.id}": done})
    create(cluster, spec("next", port(80)))
    with pytest.raises(ConflictError, match="80/tcp is taken by service next"):
        services.roll_back(cluster.wishes, "web", 2.0)


def test_dnsrr_has_no_mesh(cluster: MemoryServices) -> None:
    with pytest.raises(CallerError, match="dnsrr"):
        create(cluster, spec("web", port(80), endpoint_mode="dnsrr"))
    create(cluster, spec("web", port(80, mode="host"), endpoint_mode="dnsrr"))


def test_the_ingress_network_stays_while_it_is_used(cluster: MemoryServices) -> None:
    service = create(cluster, spec("web", port(80)))
    with pytest.raises(ConflictError, match="published ports of web"):
        decisions.remove_network(cluster.wishes, "ingress", lambda network: [])
    cluster.write(services.remove(cluster.wishes, service.id)[0].changes)
    cluster.write(decisions.remove_network(cluster.wishes, "ingress", lambda network: [])[0].changes)
    assert not decisions.mend(cluster.wishes, 0.0)[1], "who removed it does not get it back unasked"
    with pytest.raises(ConflictError, match="there is no ingress network") as caught:
        create(cluster, spec("web", port(80)))
    assert "network create --ingress" in caught.value.hint
    create(cluster, spec("web", port(80, mode="host")))


def test_services_are_not_put_on_it(cluster: MemoryServices) -> None:
    from vxnet.model.container import NetworkWish

    wanted = spec("web")
    container = replace(wanted.task.container, networks=(NetworkWish(network="ingress"),))
    with pytest.raises(VxnetError, match="routing mesh's"):
        create(cluster, replace(wanted, task=replace(wanted.task, container=container)))


# What hosts have themselves


def test_what_a_host_has_itself_is_no_services(cluster: MemoryServices) -> None:
    service = create(cluster, spec("web", port(8080)))
    node = Node(
        id="n1",
        name="h1",
        role="worker",
        advertise_addr=ipaddress.ip_address("192.168.56.11"),
        data_path_addr=ipaddress.ip_address("192.168.56.11"),
        joined_at=0.0,
        ports=(
            TakenPort(number=22, protocol="tcp", holder="sshd"),
            TakenPort(number=8080, protocol="tcp", holder="caddy"),
            TakenPort(number=53, protocol="udp", address=ipaddress.ip_address("127.0.0.53"), holder="systemd-resolve"),
            TakenPort(number=FIRST_AUTO_PORT, protocol="tcp", holder="container db"),
        ),
    )
    cluster.write({"node/n1": node})
    for wanted, words in (
        (port(22), "port 22/tcp is taken by sshd on h1"),
        (port(53, protocol="udp"), "port 53/udp is taken by systemd-resolve on h1"),
    ):
        with pytest.raises(ConflictError, match=words):
            create(cluster, spec("new", wanted))
    made = create(cluster, spec("new", port(53, 53, "192.168.56.11", protocol="udp"), port(22, mode="host"), port(0)))
    assert made.spec.ports[-1].published == FIRST_AUTO_PORT + 1
    # One of mode host goes to another node.
    rules = Rules(made.spec.task)
    assert rules.refusal(node, True, 0, NOTHING) == "with port 22/tcp taken"
    assert not rules.refusal(replace(node, ports=()), True, 0, NOTHING)
    # What a service has is no obstacle to its update, though a program came first on some host.
    update(cluster, service, replace(service.spec, labels={"a": "b"}))
