"""Held ports on the real kernel: nobody else can bind them, and nothing is done with them."""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.host.throwaway import Host
from vxnet.host.ports import Door, doors, hold, holder, listeners
from vxnet.model.address import IPAddress
from vxnet.model.errors import ConflictError
from vxnet.model.published import PublishedPort

pytestmark = pytest.mark.host

V4, V6, LOOPBACK = (ipaddress.ip_address(text) for text in ("0.0.0.0", "::", "127.0.0.1"))
TIMEOUT_S = 2.0


@pytest.fixture
def host() -> Iterator[Host]:
    made = Host()
    yield made
    made.close()


def bind(address: str, port: int, kind: int = socket.SOCK_STREAM, *, reuse: bool = True) -> int:
    """errno of a bind and, of TCP, a listen; as servers do it."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, kind) as sock:
        if reuse:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind((address, port))
            if kind == socket.SOCK_STREAM:
                sock.listen()
        except OSError as error:
            return error.errno or -1
    return 0


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM])
def test_nobody_else_can_bind_it(host: Host, kind: int) -> None:
    protocol = "tcp" if kind == socket.SOCK_STREAM else "udp"

    def check() -> None:
        port = PublishedPort(target=80, published=8080, protocol=protocol)  # type: ignore[arg-type]
        held = [hold(door) for door in doors(port)]
        assert len(held) == 2 and all(held)
        for address in ("0.0.0.0", "127.0.0.1", "::", "::1"):
            for reuse in (True, False):
                assert bind(address, 8080, kind, reuse=reuse) == errno.EADDRINUSE, address
        assert bind("0.0.0.0", 8081, kind) == 0
        for one in held:
            assert one is not None
            one.close()
        assert bind("::", 8080, kind) == 0

    host.do(check)


def test_of_an_address_only_that_is_held_also_before_the_host_has_it(host: Host) -> None:
    def check() -> None:
        port = PublishedPort(target=80, published=8080, addresses=(ipaddress.ip_address("192.0.2.1"),))
        (held,) = [hold(door) for door in doors(port)]
        assert held is not None
        assert bind("127.0.0.1", 8080) == 0
        assert bind("0.0.0.0", 8080) == errno.EADDRINUSE
        held.close()

    host.do(check)


def test_of_an_interface(host: Host) -> None:
    def check() -> None:
        with hold(Door("tcp", 8080, V4, "lo")) as held:  # type: ignore[union-attr]
            assert held.fileno() >= 0
            assert bind("0.0.0.0", 8080) == errno.EADDRINUSE
        assert hold(Door("tcp", 8080, V4, "nosuch")) is None

    host.do(check)


@pytest.mark.parametrize(("protocol", "kind"), [("tcp", socket.SOCK_STREAM), ("udp", socket.SOCK_DGRAM)])
def test_what_another_program_has_is_not_taken_and_it_is_named(host: Host, protocol: str, kind: int) -> None:
    def check() -> None:
        with socket.socket(socket.AF_INET, kind) as other:
            other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            other.bind(("127.0.0.1", 8080))
            if kind == socket.SOCK_STREAM:
                other.listen()
            with pytest.raises(ConflictError, match=f"8080/{protocol} is taken"):
                hold(Door(protocol, 8080, V4))  # type: ignore[arg-type]
            assert f"(process {os.getpid()})" in holder(8080, protocol)  # type: ignore[arg-type]
        assert holder(8080, protocol) == ""  # type: ignore[arg-type]

    host.do(check)


def test_what_the_hosts_programs_have(host: Host) -> None:
    program = (
        "import socket, sys\n"
        "a = socket.create_server(('127.0.0.1', 8080))\n"
        "b = socket.create_server(('::', 8081), family=socket.AF_INET6)\n"
        "c = socket.socket(type=socket.SOCK_DGRAM); c.bind(('0.0.0.0', 53)); d = socket.create_server(('', 0))\n"
        "print(flush=True); sys.stdin.read()"
    )

    def check() -> None:
        with (
            subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other,
            hold(Door("tcp", 9090, V4)),  # type: ignore[union-attr]
        ):
            assert other.stdin is not None and other.stdout is not None
            other.stdout.readline()
            found = listeners()
            other.stdin.close()
        (name,) = {one.holder for one in found}
        assert name.startswith("python")
        assert [(one.protocol, one.number, one.address) for one in found] == [
            ("tcp", 8080, LOOPBACK),
            ("tcp", 8081, None),
            ("udp", 53, V4),
        ]

    host.do(check)


def test_connections_that_have_just_ended_are_no_obstacle(host: Host) -> None:
    """A server was there a moment ago: its last connections are in TIME_WAIT for a minute."""

    def check() -> None:
        with socket.create_server(("127.0.0.1", 8080)) as server:
            client = socket.create_connection(("127.0.0.1", 8080))
            served, _ = server.accept()
            served.close()  # who closes first is in TIME_WAIT
            client.settimeout(TIMEOUT_S)
            assert client.recv(1) == b""
            client.close()
        held = hold(Door("tcp", 8080, V4))
        assert held is not None
        assert bind("0.0.0.0", 8080) == errno.EADDRINUSE
        assert bind("127.0.0.1", 8080) == errno.EADDRINUSE
        held.close()

    host.do(check)


def test_a_held_port_takes_nothing(host: Host) -> None:
    def check() -> None:
        with hold(Door("tcp", 8080, V4)) as tcp, hold(Door("udp", 8080, V4)) as udp:  # type: ignore[union-attr]
            assert tcp.fileno() >= 0
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", 8080), TIMEOUT_S)
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
                client.sendto(b"x", ("127.0.0.1", 8080))
            udp.setblocking(False)
            with pytest.raises(BlockingIOError):
                udp.recv(1)

    host.do(check)


def test_without_ipv6_there_is_nothing_to_hold(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    from vxnet.host import ports

    def refuse(door: Door, *, reuse: bool) -> socket.socket:
        raise OSError(errno.EAFNOSUPPORT, "Address family not supported by protocol")

    monkeypatch.setattr(ports, "_bound", refuse)
    assert hold(Door("tcp", 8080, V6)) is None


@pytest.mark.parametrize(
    ("address", "text"),
    [(V4, "80/tcp"), (LOOPBACK, "127.0.0.1:80/tcp"), (ipaddress.ip_address("fd00::1"), "[fd00::1]:80/tcp")],
)
def test_how_it_is_called(address: IPAddress, text: str) -> None:
    assert str(Door("tcp", 80, address)) == text
