"""The local API's client: on the real server, and on servers that break off, babble or say nothing."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Callable, Iterator
from ipaddress import ip_address
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.daemon.memory_agent import TOKEN, Daemon, daemon, make_id
from vxnet.cluster.client import Client
from vxnet.cluster.failure import failure_from_json, failure_to_json
from vxnet.cluster.http1 import BrokenAnswerError, Exchange, quote
from vxnet.model.api import InitRequest, JoinRequest, NetworkConnect, NetworkCreate
from vxnet.model.container import ContainerSpec, NetworkWish
from vxnet.model.errors import (
    BY_KIND,
    ConflictError,
    ForbiddenError,
    HostError,
    NotFoundError,
    PeerError,
    UnavailableError,
    VxnetError,
)


@pytest.fixture
def server() -> Iterator[Daemon]:
    with daemon() as running:
        yield running


def test_cluster(server: Daemon) -> None:
    client = server.client
    assert client.info().cluster == ""
    node = client.init(InitRequest(advertise_addr="192.168.56.11"))
    assert (node.role, node.advertise_addr) == ("manager", ip_address("192.168.56.11"))
    assert client.join_token("worker") == TOKEN
    assert client.join_token("worker", rotate=True) == client.join_token("manager") == f"{TOKEN}1"
    assert [view.node for view in client.nodes()] == [node]
    assert client.node(node.id[:8]).leader
    with pytest.raises(ConflictError, match="node h1 is alive; `--force` removes it"):
        client.remove_node("h1")
    client.remove_node("h1", force=True)
    assert client.nodes() == ()
    client.leave(force=True)
    with pytest.raises(ForbiddenError):
        client.join(JoinRequest(token="wrong", manager="192.168.56.11"))
    assert client.join(JoinRequest(token=TOKEN, manager="192.168.56.11")).role == "worker"


def test_networks_and_containers(server: Daemon) -> None:
    client = server.client
    network = client.create_network(NetworkCreate(name="my-net", attachable=True))
    assert client.networks() == (network,)
    wish = NetworkWish(network="my-net", ip=ip_address("10.0.16.9"), aliases=("www",))
    spec = ContainerSpec(name="web", argv=("sleep", "9"), networks=(wish,))
    created = client.create_container(spec)
    assert (created.state, created.spec) == ("created", spec)
    assert client.shim("web").endswith(f"{created.id[:12]}.sock")
    assert client.start("web").pid == 4711
    assert client.container(created.id[:5]).state == "running"
    assert [view.name for view in client.containers()] == ["web"]
    assert client.network("my-net", verbose=True).endpoints[0].name == "web"
    client.disconnect("my-net", NetworkConnect(container="web"))
    with pytest.raises(NotFoundError, match="web is not connected to my-net"):
        client.disconnect("my-net", NetworkConnect(container="web"), force=True)
    client.connect("my-net", NetworkConnect(container="web"))
    client.kill("web", signal="SIGUSR1")
    assert server.agent.signals == [("web", 10)]
    client.stop("web", timeout_s=0.5)
    assert client.wait("web").exit_status == 143
    assert client.containers() == ()
    assert len(client.containers(all=True)) == 1
    client.remove("web", force=True)
    client.remove_network("my-net")
    assert client.networks() == ()


def test_wait_and_follow_block_until_the_end(server: Daemon) -> None:
    client = server.client
    client.create_container(ContainerSpec(name="web", argv=("a",)), start=True)
    with pytest.raises(UnavailableError, match=r"did not answer within 0\.05 s"):
        client.wait("web", timeout_s=0.05)
    server.agent.log = [b"2026-01-01T00:00:00Z stdout F a\n", b"2026-01-01T00:00:00Z stderr F b\n"]
    pieces = client.logs("web", follow=True)
    assert next(pieces).endswith(b"a\n")
    server.finish("web", 7)
    assert b"".join(pieces).endswith(b"b\n")
    assert client.wait("web").exit_status == 7


def test_logs_of_nobody(server: Daemon) -> None:
    with pytest.raises(NotFoundError, match="no such container: web"):
        list(server.client.logs("web"))


@pytest.mark.parametrize("ref", ["a/b", "ä b", "a?b=c", "%2F", "a#b", "..a", "\n"])
def test_any_ref_arrives_as_it_is(server: Daemon, ref: str) -> None:
    with pytest.raises(NotFoundError) as caught:
        server.client.container(ref)
    assert caught.value.message == f"no such container: {ref}"


@pytest.mark.parametrize("ref", ["", ".", ".."])
def test_refs_that_would_change_the_path(server: Daemon, ref: str) -> None:
    for ask in (server.client.container, server.client.network, server.client.node, server.client.remove_network):
        with pytest.raises(NotFoundError, match="no such"):
            ask(ref)


# ------------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize("kind", sorted(BY_KIND))
def test_an_error_comes_out_as_it_went_in(kind: str) -> None:
    before = BY_KIND[kind]("wanted a, found b", hint="try c", exit_status=126)
    after = failure_from_json(before.http_status, failure_to_json(before))
    assert (type(after), vars(after)) == (type(before), vars(before))


@pytest.mark.parametrize(
    "body, kind, said",
    [
        (b'{"error":{"kind":"brand-new","message":"m","hint":"h"}}', HostError, "m; h"),
        (b"<html>Bad\n Gateway</html>", PeerError, "HTTP status 502 with: <html>Bad Gateway</html>"),
        (b"", PeerError, "with: (nothing)"),
        (b'{"error":"no"}', PeerError, '{"error":"no"}'),
        (b'{"x":' + b"[" * 100_000, PeerError, "[[["),
    ],
)
def test_errors_of_others(body: bytes, kind: type[VxnetError], said: str) -> None:
    error = failure_from_json(502, body)
    assert type(error) is kind
    assert said in str(error)
    assert len(str(error)) < 400


def test_no_daemon(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with pytest.raises(UnavailableError) as caught:
        Client(str(path)).info()
    assert str(caught.value) == (
        f"cannot reach the vxnet daemon at {path}: No such file or directory; "
        "start it with `systemctl start vxnetd` or `vxnet daemon`"
    )
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    with pytest.raises(UnavailableError, match="Connection refused; start it with"):
        Client(str(path)).info()
    with pytest.raises(UnavailableError, match="path too long"):
        Client("/tmp/" + "x" * 200).info()


@pytest.mark.root
def test_not_in_the_group(server: Daemon) -> None:
    os.seteuid(65534)
    try:
        with pytest.raises(ForbiddenError) as caught:
            server.client.info()
    finally:
        os.seteuid(0)
    assert str(caught.value).endswith("; be root or a member of the group vxnet")


def test_the_socket_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VXNET_SOCKET", raising=False)
    assert Client().socket_path == "/run/vxnet/vxnet.sock"
    monkeypatch.setenv("VXNET_SOCKET", "/tmp/other")
    assert Client().socket_path == "/tmp/other"
    assert Client("/tmp/mine").socket_path == "/tmp/mine"


# ---------------------------------------------------------------------------------------------------- strange servers


@contextlib.contextmanager
def scripted(act: Callable[[socket.socket], None]) -> Iterator[str]:
    """A server that reads one request and then does ``act`` to the connection, for as many clients as come."""
    path = f"/tmp/vxnet-test-{os.getpid()}-{threading.get_ident()}.sock"
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection, contextlib.suppress(ConnectionError):
                connection.recv(65536)
                act(connection)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield path
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(20)
        listener.close()
        os.unlink(path)
    assert not thread.is_alive()


INFO = b'{"version":"9","name":"h1"}'


@pytest.mark.parametrize(
    "answer, said",
    [
        (b"", "broke off: the answer ended within a line"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nab", "broke off: the answer ended 3 octets too early"),
        (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n",
            "broke off: the answer ended within a line",
        ),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nabc\r\n", "expected the end of a chunk"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-2\r\nab\r\n", "expected a number, found '-2'"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1_0\r\n\r\nab", "expected a number, found '1_0'"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: ff\r\n\r\nab", "expected a number, found 'ff'"),
        (b"HTTP/1.1 2xx OK\r\n\r\n", "expected a number, found '2xx'"),
        (b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 200, "more than 100 header lines"),
        (b"HTTP/1.1 200 OK\r\na:" + b"b" * 10_000, "a line is too long"),
        (b"SSH-2.0-OpenSSH\r\n", "expected HTTP/1.1, found 'SSH-2.0-OpenSSH'"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}", "cannot read the answer of the daemon"),
        (b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 2\r\n\r\nno", "found HTTP status 502 with: no"),
    ],
)
def test_an_answer_that_is_none(answer: bytes, said: str) -> None:
    with scripted(lambda connection: connection.sendall(answer)) as path:
        with pytest.raises((UnavailableError, PeerError)) as caught:
            Client(path).info()
        assert said in str(caught.value)


def test_a_silent_daemon() -> None:
    done = threading.Event()

    def say_nothing(connection: socket.socket) -> None:
        done.wait(20)

    with scripted(say_nothing) as path:
        with pytest.raises(UnavailableError, match=r"did not answer within 0\.05 s; its log says why"):
            Client(path, timeout_s=0.05).info()
        done.set()


@given(
    st.binary(max_size=200),
    st.sampled_from([b"", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"]),
)
def test_no_answer_gets_the_client_off_its_feet(answer: bytes, head: bytes) -> None:
    with scripted(lambda connection: connection.sendall(head + answer)) as path, contextlib.suppress(VxnetError):
        Client(path, timeout_s=20).info()


@given(st.lists(st.binary(min_size=1, max_size=40), max_size=8), st.integers(1, 7))
def test_chunks_arrive_whatever_their_cut(chunks: list[bytes], step: int) -> None:
    body = b"".join(b"%x;x=y\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n\r\n"
    answer = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n\r\n" + body

    def trickle(connection: socket.socket) -> None:
        for start in range(0, len(answer), step):
            connection.sendall(answer[start : start + step])

    with scripted(trickle) as path, Exchange(path, "GET", "/", None, 20.0) as exchange:
        assert exchange.read() == b"".join(chunks)


def test_unknown_fields_of_a_newer_daemon_are_passed_over() -> None:
    body = INFO[:-1] + b',"brand_new":[1]}'
    head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body)
    with scripted(lambda connection: connection.sendall(head + body)) as path:
        assert Client(path).info().version == "9"


def test_no_descriptor_is_left_open(server: Daemon, tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        server.client.info()
        with pytest.raises(NotFoundError):
            server.client.container("x")
        with pytest.raises(UnavailableError):
            Client(str(tmp_path / "none")).info()
    with scripted(lambda connection: connection.sendall(b"x")) as path, pytest.raises(BrokenAnswerError):
        Exchange(path, "GET", "/", None, 20.0)
    # The server's own ends live in this process too and close a moment later.
    for _ in range(1000):
        if len(os.listdir("/proc/self/fd")) <= before:
            return
        threading.Event().wait(0.005)
    assert len(os.listdir("/proc/self/fd")) <= before


def test_quote() -> None:
    assert quote("aZ9-._~") == "aZ9-._~"
    assert quote("a/b ?%ä") == "a%2Fb%20%3F%25%C3%A4"
    assert make_id("a") == quote(make_id("a"))
