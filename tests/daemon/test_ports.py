"""The ports of one host: held while somebody publishes them, left to programs that had them first."""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import socket
from collections.abc import Iterator

import pytest
from msgspec.structs import replace

from tests.host.throwaway import Place
from vxnet.daemon import ports as daemon_ports
from vxnet.daemon.ports import Ports
from vxnet.model.cluster import TakenPort
from vxnet.model.container import Attachment, Container, ContainerSpec, TaskRef
from vxnet.model.errors import CallerError, ConflictError
from vxnet.model.published import FIRST_AUTO_PORT, PublishedPort
from vxnet.model.service import PublicService

HERE = ipaddress.ip_address("127.0.0.1")
DEADLINE_S = 10.0


class OneHost:
    def __init__(self) -> None:
        self.services: tuple[PublicService, ...] = ()
        self.containers: list[Container] = []
        self.changes = 0
        self.data_port = 4789
        self.ports = Ports(lambda: self.services, lambda: self.containers, self._changed, lambda: self.data_port)

    def _changed(self) -> None:
        self.changes += 1

    def publish(self, *ports: PublishedPort) -> None:
        self.services = (PublicService(id="s", name="web", ports=ports),) if ports else ()

    def container(self, name: str, *ports: PublishedPort, task: TaskRef | None = None) -> Container:
        spec = ContainerSpec(name=name, argv=("true",), ports=ports)
        gateway = Attachment(network="", ifname="eth0", mac="", addresses=())
        return Container(id=name * 8, spec=spec, task=task, gateway=gateway, created_at=0.0)


@pytest.fixture
def host() -> Iterator[OneHost]:
    made = OneHost()
    yield made
    made.ports.close()


def port(number: int, **fields: object) -> PublishedPort:
    return PublishedPort(target=80, published=number, addresses=(HERE,), **fields)  # type: ignore[arg-type]


@pytest.fixture
def number() -> int:
    """That nobody has."""
    with socket.socket() as sock:
        sock.bind((str(HERE), 0))
        return int(sock.getsockname()[1])


def is_free(number: int) -> bool:
    with socket.socket() as sock:
        try:
            sock.bind((str(HERE), number))
        except OSError:
            return False
    return True


def test_held_as_long_as_it_is_published(host: OneHost, number: int) -> None:
    host.publish(port(number))
    assert host.ports.look() and not is_free(number)
    assert not host.ports.look(), "nothing is different"
    host.publish(port(number, mode="host"))
    assert host.ports.look() and is_free(number), "a port of mode host is held where its container is"
    host.publish()
    host.containers = [replace(host.container("web"), published=(port(number, mode="host"),))]
    assert host.ports.look() and not is_free(number)
    host.containers = []
    assert host.ports.look() and is_free(number)


async def test_what_a_program_had_first_stays_with_it(
    host: OneHost, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(daemon_ports, "RETRY_S", 0.05)
    with socket.create_server((str(HERE), number)):
        host.publish(port(number), port(number, protocol="udp"))
        host.ports.look()
        (warning,) = host.ports.warnings()
        assert f"127.0.0.1:{number}/tcp is taken by another program" in warning
        (service,) = host.ports.answered(host.services)
        assert service.ports == (port(number, protocol="udp"),)
        trying = asyncio.create_task(host.ports.run())
        async with asyncio.timeout(DEADLINE_S):
            while "(process " not in host.ports.warnings()[0]:
                await asyncio.sleep(0.01)
        assert not host.changes
    async with asyncio.timeout(DEADLINE_S):
        while not host.changes:
            await asyncio.sleep(0.01)
    trying.cancel()
    assert not host.ports.warnings() and host.ports.answered(host.services) == host.services
    assert not is_free(number)


def test_a_port_of_a_container_at_no_address_of_this_host(host: OneHost, number: int) -> None:
    elsewhere = replace(port(number, mode="host"), addresses=(ipaddress.ip_address("192.0.2.77"),))
    host.publish(replace(elsewhere, mode="ingress"))  # a service's: other hosts may have it
    assert not host.ports.warnings()
    linkless = replace(port(number, mode="host"), addresses=(), interface="nosuch0")
    host.containers = [replace(host.container("web"), published=(port(number + 1, mode="host"), elsewhere, linkless))]
    assert host.ports.warnings() == (
        f"port 192.0.2.77:{number}/tcp of container web: this host has no such address, so nobody reaches it",
        f"port {number}/tcp on nosuch0 of container web: this host has no such link, so nobody reaches it",
    )


def test_a_container_claims_its_ports(host: OneHost, number: int) -> None:
    host.publish(port(number))
    host.ports.look()
    with pytest.raises(ConflictError, match=f"127.0.0.1:{number}/tcp is taken by service web"):
        host.ports.check(host.container("db", port(number, mode="host")).spec)
    host.publish()
    host.ports.look()
    with socket.create_server((str(HERE), FIRST_AUTO_PORT)) if is_free(FIRST_AUTO_PORT) else socket.socket():
        claimed = host.ports.claim(host.container("db", port(number, mode="host"), port(0, mode="host")))
    first, second = claimed.published
    assert first.published == number and second.published > FIRST_AUTO_PORT, "the first of the range is a program's"
    host.containers = [claimed]
    with pytest.raises(ConflictError, match="is taken by container db"):
        host.ports.claim(host.container("other", port(number, mode="host")))
    assert host.ports.own() == tuple(
        TakenPort(number=one.published, protocol="tcp", address=HERE, holder="container db")
        for one in claimed.published
    )
    host.containers = [replace(claimed, task=TaskRef(task="t", service="s"))]
    assert host.ports.own() == (), "of tasks the managers know"


def test_the_clusters_data_port_is_vxnets_own(host: OneHost) -> None:
    host.data_port = 5000
    with pytest.raises(ConflictError, match=r"5000/udp is taken by vxnet itself \(VXLAN\)"):
        host.ports.check(host.container("db", port(5000, protocol="udp", mode="host")).spec)
    host.ports.check(host.container("db", port(4789, protocol="udp", mode="host")).spec)


async def test_a_port_that_a_program_takes_in_between_is_refused(
    host: OneHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Looked at twice: nobody may be told that it has what another has, nor be looked at for ever."""
    looks = iter([True, False])
    monkeypatch.setattr(daemon_ports, "_is_free", lambda port: next(looks, False))
    with pytest.raises(ConflictError, match="is taken by another program"):
        host.ports.claim(host.container("db", port(7, mode="host")))


def test_ports_that_would_lead_nowhere(host: OneHost) -> None:
    container = host.container("db", port(80, mode="host"))
    host.ports.check_way(container, [HERE])
    with pytest.raises(CallerError, match='does not reach "db"'):
        host.ports.check_way(container, ())


@pytest.mark.host
def test_a_link_that_comes_later_and_one_that_is_made_anew(host: OneHost, number: int) -> None:
    place = Place()
    bound = replace(port(number), addresses=(), interface="later0")

    def is_taken() -> bool:
        with socket.socket() as sock:
            try:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"later0")
                sock.bind(("0.0.0.0", number))
            except OSError as error:
                return error.errno == errno.EADDRINUSE
        return False

    try:
        host.publish(bound)
        assert place.do(host.ports.look)
        for _ in range(2):
            place.sh("ip link add later0 type bridge; ip link set later0 up")
            assert not place.do(is_taken)
            place.do(host.ports.look_at_links)
            assert place.do(is_taken)
            place.sh("ip link del later0")
        place.do(host.ports.look_at_links)
    finally:
        host.ports.close()
        place.close()
