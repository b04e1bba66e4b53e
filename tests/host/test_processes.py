"""Which connections a server still has, before it is told to end."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from tests.host.throwaway import Host, wire
from tests.system.operator import eventually
from vxnet.host.processes import open_connections

pytestmark = pytest.mark.host


@pytest.fixture
def pair() -> Iterator[tuple[Host, Host]]:
    """A server at 10.0.16.2, a client at 10.0.16.3."""
    server, client = Host(), Host()
    wire(server, "eth0", client, "eth0")
    for place, number in ((server, 2), (client, 3)):
        place.sh(f"ip addr add 10.0.16.{number}/24 dev eth0")
    yield server, client
    server.close()
    client.close()


def test_others_connections_to_a_server_count(pair: tuple[Host, Host]) -> None:
    server, client = pair
    with server.do(socket.create_server, ("", 80)):
        with (
            client.do(socket.create_connection, ("10.0.16.2", 80), timeout=5),
            server.do(socket.create_connection, ("127.0.0.1", 80), timeout=5),
        ):
            assert open_connections(server.tid) == 1, "its own health check is nobody's request"
        eventually(lambda: open_connections(server.tid) == 0)
    assert open_connections(client.tid) == 0


def test_a_connection_that_is_just_being_made_counts(pair: tuple[Host, Host]) -> None:
    """Its server has answered, and the client has not said so yet: if the server ended now, the client would wait."""
    server, client = pair
    client.run("nft", "add table ip t; add chain ip t c { type filter hook input priority 0; policy drop; }")
    with server.do(socket.create_server, ("", 80)), client.do(socket.socket) as asking:
        asking.setblocking(False)
        with pytest.raises(BlockingIOError):
            asking.connect(("10.0.16.2", 80))
        eventually(lambda: open_connections(server.tid) == 1)
