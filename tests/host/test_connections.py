"""Connections that are ended from outside."""

from __future__ import annotations

import contextlib
import ipaddress
import socket
from collections.abc import Iterator

import pytest

from tests.host.throwaway import Place
from vxnet.host.connections import cut_others
from vxnet.model.address import IPAddress

pytestmark = pytest.mark.host
PORT = 2379


@pytest.fixture
def place() -> Iterator[Place]:
    place = Place()
    place.sh("ip link set lo up")
    yield place
    place.close()


@pytest.mark.parametrize("form", ["192.0.2.{}", "2001:db8::{}"])
def test_connections_of_all_others_end(place: Place, form: str) -> None:
    own, manager, other = (ipaddress.ip_address(form.format(number)) for number in (1, 5, 6))
    for address in (own, manager, other):
        place.sh(f"ip address add {address}/{address.max_prefixlen} dev lo {'nodad' * (address.version == 6)}")
    place.do(check, own, manager, other)


def check(own: IPAddress, manager: IPAddress, other: IPAddress) -> None:
    family = socket.AF_INET if own.version == 4 else socket.AF_INET6
    with contextlib.ExitStack() as stack:
        servers = [
            stack.enter_context(socket.create_server((str(own), port), family=family)) for port in (PORT, PORT + 5)
        ]

        def connect(address: object, port: int = PORT) -> socket.socket:
            client = stack.enter_context(socket.socket(family))
            client.bind((str(address), 0))
            client.connect((str(own), port))
            return client

        kept = [connect(manager), connect(own), connect(other, PORT + 5)]
        ended = [connect(other), connect(other)]
        for server, count in zip(servers, (4, 1), strict=True):
            for _ in range(count):
                stack.enter_context(server.accept()[0])
        assert cut_others((PORT,), {manager}) == len(ended)
        for client in ended:
            with pytest.raises(ConnectionResetError):
                client.recv(1)
        for client in kept:
            with pytest.raises(BlockingIOError):
                client.recv(1, socket.MSG_DONTWAIT)
        assert cut_others((PORT,), {manager}) == 0
