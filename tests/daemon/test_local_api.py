"""Routes, refusals and what happens when a client goes away."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import stat
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from tests.daemon.memory_agent import CREATED_AT, TOKEN, MemoryAgent, make_id
from vxnet.cluster.api import BODY_LIMIT, SHUTDOWN_S, ndjson_response, serve_unix, serving, unix_listener
from vxnet.cluster.http1 import BrokenAnswerError, Exchange
from vxnet.daemon.container_api import signal_number
from vxnet.daemon.local_api import build_app
from vxnet.model.container import ContainerSpec
from vxnet.model.errors import CallerError, ConflictError, HostError, NotFoundError

Call = Callable[..., Any]


@pytest.fixture
def agent() -> MemoryAgent:
    return MemoryAgent()


@pytest.fixture
async def call(agent: MemoryAgent, tmp_path: Path) -> AsyncIterator[Call]:
    """``await call(method, target, body)`` → (status, answer as JSON or text)."""
    path = str(tmp_path / "s")

    def exchange(method: str, target: str, body: object) -> tuple[int, Any]:
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        with Exchange(path, method, target, data, 20.0) as done:
            answer = done.read()
        is_json = done.headers.get("content-type", "").startswith("application/json")
        return done.status, json.loads(answer) if is_json else answer

    async def called(method: str, target: str, body: object = None) -> tuple[int, Any]:
        return await asyncio.to_thread(exchange, method, target, body)

    async with serve_unix(build_app(agent), path):
        called.path = path  # type: ignore[attr-defined]
        yield called


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.005)


WEB = {"name": "web", "argv": ["sleep", "9"]}

SERVICE = {"name": "my-app", "task": {"container": {"argv": ["sleep", "9"], "networks": [{"network": "my-net"}]}}}

BACKUP = {"format": 1, "cluster": "c", "revision": 7, "made_at": 0.0, "records": {"cluster": "e30="}, "digest": ""}

# method, target, body → status, part of the answer. In this order, on one agent.
CONVERSATION: list[tuple[str, str, object, int, object]] = [
    ("GET", "info", None, 200, {"name": "h1"}),
    ("POST", "cluster/init", {"advertise_addr": "192.168.56.11"}, 200, {"role": "manager"}),
    ("POST", "cluster/init", {}, 409, "conflict"),
    ("GET", "join-token/worker", None, 200, {"token": TOKEN}),
    ("POST", "join-token/manager/rotate", None, 200, {"token": f"{TOKEN}1"}),
    ("GET", "join-token/boss", None, 400, "invalid"),
    ("GET", "cluster/ca", None, 200, 1),
    ("POST", "cluster/ca/rotate", None, 200, {"waiting": ["h2"]}),
    ("GET", "nodes", None, 200, 1),
    ("GET", "nodes/h1", None, 200, {"status": "ready", "self": True}),
    ("GET", "nodes/h9", None, 404, "not-found"),
    ("DELETE", "nodes/h1", None, 409, "conflict"),
    ("GET", "mesh", None, 200, 1),
    ("POST", "nodes/h1/role/manager", None, 200, {"role": "manager"}),
    ("POST", "nodes/h1/role/boss", None, 400, "invalid"),
    ("GET", "store/backup", None, 200, {"revision": 7, "records": {"cluster": "e30="}}),
    ("POST", "store/migrate", {"store": "etcd://h1:2379"}, 204, b""),
    ("POST", "store/migrate", {"store": "etcd://h1:2379"}, 409, "conflict"),
    ("POST", "store/restore", {"backup": {**BACKUP, "digest": "x"}}, 400, "invalid"),
    ("POST", "store/restore", {"backup": {**BACKUP, "format": 99}}, 501, "unsupported"),
    ("GET", "gossip", None, 200, {"node": "h1", "key_epoch": 1}),
    ("GET", "gossip/keys", None, 200, 1),
    ("POST", "gossip/rotate-keys", {"bits": 128}, 200, {"epoch": 2, "in_use": False}),
    ("POST", "gossip/rotate-keys", {"bits": 100}, 400, "invalid"),
    ("GET", "gossip/rotation", None, 200, {"epoch": 2, "waiting": ["h2"]}),
    ("POST", "networks", {"name": "my-net", "attachable": True}, 201, {"name": "my-net", "vni": 65536}),
    ("POST", "networks", {"name": "my-net"}, 409, "conflict"),
    ("GET", "networks", None, 200, 1),
    ("POST", "nodes/h1/update", {"labels_added": {"zone": "a"}}, 200, {"labels": {"zone": "a"}}),
    ("POST", "nodes/h1/update", {"labels_removed": ["rack"]}, 400, "invalid"),
    ("POST", "services", {**SERVICE, "replicas": 2}, 201, {"created_at": CREATED_AT}),
    ("POST", "services", SERVICE, 409, "conflict"),
    ("GET", "services", None, 200, 1),
    ("GET", "services/my-app", None, 200, {"running": 2, "wanted": 2}),
    ("GET", "services/my-app/tasks", None, 200, 2),
    ("GET", "nodes/h1/tasks", None, 200, 2),
    ("POST", "services/my-app/scale/3", None, 200, {"previous_version": 1}),
    ("POST", "services/my-app/scale/many", None, 400, "invalid"),
    ("POST", "services/my-app/update", {"spec": SERVICE, "base": SERVICE}, 409, "conflict"),
    ("POST", "services/my-app/rollback", None, 200, {"previous_version": 1}),
    ("GET", "services/nothing/progress", None, 404, "not-found"),
    ("GET", "services/nothing/logs", None, 404, "not-found"),
    ("DELETE", "services/my-app", None, 204, b""),
    ("DELETE", "services/my-app", None, 404, "not-found"),
    ("POST", "networks/my-net/update", {"labels": {"team": "a"}}, 200, {"labels": {"team": "a"}}),
    ("POST", "networks/my-net/update", {"subnets": ["10.0.16.0/24"]}, 400, "invalid"),
    ("POST", "networks/my-net/peers", {"vtep": "192.0.2.7", "name": "x1"}, 201, {"name": "my-net"}),
    ("POST", "networks/my-net/peers", {"vtep": "192.0.2.7"}, 409, "conflict"),
    ("DELETE", "networks/my-net/peers/x1", None, 200, {"name": "my-net"}),
    ("DELETE", "networks/my-net/peers/x1", None, 404, "not-found"),
    ("POST", "networks/my-net/connect-guest", {"pid": 77, "ifname": "vx0"}, 201, {"name": "pid-77"}),
    ("GET", "guests", None, 200, 1),
    ("POST", "networks/my-net/disconnect-guest", {"pid": 77}, 204, b""),
    ("POST", "networks/my-net/disconnect-guest", {"pid": 77}, 404, "not-found"),
    ("POST", "networks/prune", {"labels": ["team=b"]}, 200, 0),
    ("POST", "containers?start=1", {**WEB, "networks": [{"network": "my-net"}]}, 201, {"state": "running"}),
    ("GET", "networks/my-net?verbose=1", None, 200, {"mtu": 1450}),
    ("DELETE", "networks/my-net", None, 409, "conflict"),
    ("POST", "networks/my-net/disconnect", {"container": "web"}, 204, b""),
    ("POST", "networks/my-net/disconnect", {"container": "web"}, 404, "not-found"),
    ("POST", "networks/my-net/disconnect?force=1", {"container": "web"}, 404, "not-found"),
    ("POST", "networks/my-net/connect", {"container": "web", "ip": "10.0.16.9"}, 204, b""),
    ("GET", "containers", None, 200, 1),
    ("GET", f"containers/{make_id('web')[:6]}", None, 200, {"pid": 4711}),
    ("GET", "containers/web/shim", None, 200, {"socket": f"/run/vxnet/c/{make_id('web')[:12]}.sock"}),
    ("GET", "containers/web/top", None, 200, 1),
    ("GET", "usage", None, 200, 1),
    ("GET", "usage?container=web&container=web", None, 200, 2),
    ("GET", "usage?container=nobody", None, 404, "not-found"),
    ("POST", "containers/web/update", {"memory": 1 << 30}, 204, b""),
    ("POST", "containers/web/kill?signal=HUP", None, 204, b""),
    ("POST", "containers/web/kill?signal=NOPE", None, 400, "invalid"),
    ("DELETE", "containers/web", None, 409, "conflict"),
    ("POST", "containers/web/stop?timeout=2.5", None, 204, b""),
    ("POST", "containers/web/stop?timeout=-1", None, 400, "invalid"),
    ("POST", "containers/web/stop?timeout=soon", None, 400, "invalid"),
    ("POST", "containers/web/wait", None, 200, {"exit_status": 143}),
    ("GET", "containers", None, 200, 0),
    ("GET", "containers?all=1", None, 200, 1),
    ("GET", "containers?all=yes", None, 400, "invalid"),
    ("GET", "containers/web/logs", None, 200, b""),
    ("PUT", "containers/web/files?path=/x", b"a tar", 204, b""),
    ("PUT", "containers/web/files?path=/refused", b"a tar", 409, "conflict"),
    ("GET", "containers/web/files?path=/x", None, 200, b"a tar"),
    ("GET", "containers/web/files?path=/y", None, 404, "not-found"),
    ("POST", "containers/web/prepare", None, 200, {"created_at": CREATED_AT}),
    ("POST", "containers/web/start", None, 200, {"state": "running"}),
    ("POST", "containers/web/prepare", None, 409, "conflict"),
    ("POST", "containers/web/restart?timeout=1", None, 200, {"state": "running"}),
    ("POST", "containers/web/rename?name=www", None, 204, b""),
    ("POST", "containers/www/rename?name=web", None, 204, b""),
    ("DELETE", "containers/web?force=1", None, 204, b""),
    ("DELETE", "networks/my-net", None, 204, b""),
    ("GET", "nowhere", None, 404, "not-found"),
    ("PUT", "networks", None, 405, "invalid"),
    ("POST", "cluster/leave?force=1", None, 204, b""),
]


async def test_every_route(call: Call, agent: MemoryAgent) -> None:
    for method, target, body, status, expected in CONVERSATION:
        found, answer = await call(method, f"/v1/{target}", body)
        assert found == status, (method, target, answer)
        match expected:
            case int():
                assert len(answer) == expected, (method, target)
            case str():
                assert answer["error"]["kind"] == expected and answer["error"]["message"], (method, target)
            case dict():
                assert expected.items() <= answer.items(), (method, target)
            case _:
                assert answer == expected, (method, target)
    assert agent.signals == [("web", 1)]
    assert str(agent) == ""


def test_the_conversation_leaves_out_no_route() -> None:
    spoken = {
        (method, target.split("?")[0].count("/"), target.split("?")[0].rsplit("/")[-1])
        for method, target, *_ in CONVERSATION
    }
    for route in build_app(MemoryAgent()).router.routes():
        if route.method == "HEAD" or route.resource is None:
            continue
        parts = route.resource.canonical.removeprefix("/v1/").split("/")
        if parts[-1].startswith("{"):
            assert any(method == route.method and depth == len(parts) - 1 for method, depth, _ in spoken)
        elif parts != ["cluster", "join"]:  # it wants an agent without a cluster: test_client
            assert (route.method, len(parts) - 1, parts[-1]) in spoken, route


@pytest.mark.parametrize(
    "target, body, said",
    [
        ("networks", b"", "expected a NetworkCreate in JSON: Input data was truncated"),
        ("networks", b"{", "expected a NetworkCreate in JSON: Input data was truncated"),
        ("networks", b"[1]", "expected a NetworkCreate in JSON: Expected `object`, got `array`"),
        ("networks", b'{"name": 1}', "expected a NetworkCreate in JSON: Expected `str`, got `int` - at `$.name`"),
        ("networks", b'{"name": "\xff"}', "expected a NetworkCreate in JSON: 'utf-8' codec can't decode"),
        ("networks", {"name": "a", "subnets": ["10.0.0.1/24"]}, "has host bits set - at `$.subnets[0]`"),
        ("networks", {"name": "a", "driver": "weave"}, "Invalid enum value 'weave' - at `$.driver`"),
        ("networks", b'{"x":' + b"[" * 100_000, "too many brackets"),
        ("containers", {"name": "web"}, "expected a ContainerSpec in JSON: Object missing required field `argv`"),
        ("containers", {"argv": ["a"], "networks": [{"network": "n", "ip": 1}]}, "- at `$.networks[0].ip`"),
        ("cluster/join", {"token": "x"}, "missing required field `manager`"),
    ],
)
async def test_a_body_that_does_not_fit_names_the_field(call: Call, target: str, body: object, said: str) -> None:
    status, answer = await call("POST", f"/v1/{target}", body)
    assert (status, answer["error"]["kind"]) == (400, "invalid")
    assert said in answer["error"]["message"]


async def test_bodies_are_bounded(call: Call) -> None:
    status, answer = await call("POST", "/v1/networks", b" " * (BODY_LIMIT + 1))
    assert (status, answer["error"]["kind"]) == (413, "invalid")


async def test_a_bug_is_told_as_one_and_logged(
    call: Call, agent: MemoryAgent, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def nodes() -> None:
        raise KeyError("x")

    monkeypatch.setattr(agent, "nodes", nodes)
    status, answer = await call("GET", "/v1/nodes")
    assert status == 500
    assert answer["error"]["message"] == "a bug of vxnet's: KeyError: 'x'"
    assert "Traceback" in caplog.text


async def test_a_host_that_refuses(call: Call, agent: MemoryAgent, monkeypatch: pytest.MonkeyPatch) -> None:
    async def nodes() -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(agent, "nodes", nodes)
    status, answer = await call("GET", "/v1/nodes")
    assert (status, answer["error"]["kind"]) == (500, "host")
    assert "No space left on device" in answer["error"]["message"]


async def test_a_container_of_rm_that_does_not_start_is_removed(call: Call, agent: MemoryAgent) -> None:
    status, _ = await call("POST", "/v1/containers?start=1", {"name": "a", "argv": ["broken"], "remove": True})
    assert status == 500 and not agent.container_table
    status, _ = await call("POST", "/v1/containers?start=1", {"name": "a", "argv": ["broken"]})
    assert status == 500 and len(agent.container_table) == 1


async def hang_up_on(path: str, request: bytes, when: Callable[[], bool]) -> None:
    """Send ``request`` and close the connection as soon as ``when`` holds."""
    _, writer = await asyncio.open_unix_connection(path)
    writer.write(request)
    await until(when)
    writer.close()
    await writer.wait_closed()


@pytest.mark.parametrize(
    "request_line, counter",
    [("POST /v1/containers/web/wait", "waiters"), ("GET /v1/containers/web/logs?follow=1", "open_logs")],
)
async def test_a_wait_ends_with_its_client(call: Call, agent: MemoryAgent, request_line: str, counter: str) -> None:
    await call("POST", "/v1/containers?start=1", WEB)
    agent.log = [b"2026-01-01T00:00:00Z stdout F a\n"]
    head = f"{request_line} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n".encode()
    await hang_up_on(call.path, head, lambda: getattr(agent, counter) == 1)  # type: ignore[attr-defined]
    await until(lambda: getattr(agent, counter) == 0)


async def test_a_server_that_stops_waits_for_changes_only(agent: MemoryAgent, tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    await agent.create_container(ContainerSpec(name="web", argv=("a",)))
    agent.pause = asyncio.Event()
    head = b" HTTP/1.1\r\nHost: x\r\nContent-Length: "
    async with serve_unix(build_app(agent), path):
        connections = []
        for request in (
            b"POST /v1/containers/web/wait" + head + b"0\r\n\r\n",
            b"GET /v1/containers/web/logs?follow=1" + head + b"0\r\n\r\n",
            b"POST /v1/networks" + head + b'17\r\n\r\n{"name":"my-net"}',
        ):
            reader, writer = await asyncio.open_unix_connection(path)
            writer.write(request)
            connections.append((reader, writer))
        await until(lambda: agent.waiters == agent.open_logs == agent.creations == 1)
        asyncio.get_running_loop().call_later(0.1, agent.pause.set)
        begin = time.monotonic()
    assert time.monotonic() - begin < SHUTDOWN_S
    assert (agent.waiters, agent.open_logs) == (0, 0)
    answers = [await reader.read() for reader, _ in connections]
    assert answers[2].startswith(b"HTTP/1.1 201") and answers[0] == b""
    for _, writer in connections:
        writer.close()


async def test_a_change_outlives_its_client(call: Call, agent: MemoryAgent) -> None:
    agent.pause = asyncio.Event()
    body = b'{"name": "my-net"}'
    head = b"POST /v1/networks HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body)
    await hang_up_on(call.path, head + body, lambda: agent.creations == 1)  # type: ignore[attr-defined]
    await call("GET", "/v1/info")  # the server has seen the hang-up by now
    agent.pause.set()
    await until(lambda: len(agent.network_table) == 1)


async def test_logs_come_as_they_are_written(call: Call, agent: MemoryAgent) -> None:
    await call("POST", "/v1/containers?start=1", WEB)
    agent.log = [b"2026-01-01T00:00:00Z stdout F a\n"]
    reader, writer = await asyncio.open_unix_connection(call.path)  # type: ignore[attr-defined]
    writer.write(b"GET /v1/containers/web/logs?follow=1 HTTP/1.1\r\nHost: x\r\n\r\n")
    async with asyncio.timeout(20):
        assert b"stdout F a\n" in await reader.readuntil(b"a\n")
        await agent.finish(make_id("web"), 0)
        assert (await reader.readuntil(b"0\r\n\r\n")).endswith(b"0\r\n\r\n")
    writer.close()
    await writer.wait_closed()


async def test_a_stream_that_fails_is_broken_off(
    call: Call, agent: MemoryAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def torn(ref: str, follow: bool) -> AsyncIterator[bytes]:
        if ref == "none":
            raise NotFoundError("no such container: none")
        yield b"a\n"
        raise HostError("the disk went away")

    monkeypatch.setattr(agent, "logs", torn)
    status, answer = await call("GET", "/v1/containers/none/logs")
    assert (status, answer["error"]["kind"]) == (404, "not-found")
    with pytest.raises((ConnectionResetError, BrokenAnswerError)):
        await call("GET", "/v1/containers/web/logs")


@pytest.mark.parametrize("text, number", [("KILL", 9), ("SIGTERM", 15), ("hup", 1), ("34", 34), ("RTMIN", 34)])
def test_signals(text: str, number: int) -> None:
    assert signal_number(text) == number


@pytest.mark.parametrize("text", ["", "0", "65", "SIG", "SIGSIGHUP", "-9", "9.0", "٩"])
def test_no_signals(text: str) -> None:
    with pytest.raises(CallerError, match="no such signal"):
        signal_number(text)


async def test_the_clusters_keys_are_for_root(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vxnet.daemon.local_api.peer_uid", lambda request: 1000)
    for method, target in [("GET", "store/backup"), ("GET", "gossip/keys"), ("POST", "cluster/ca/rotate")]:
        status, answer = await call(method, f"/v1/{target}")
        assert (status, answer["error"]["kind"]) == (403, "forbidden"), target


# ---------------------------------------------------------------------------------------------------------- listening


def test_the_socket_is_for_root_and_the_group(tmp_path: Path) -> None:
    import grp

    own = grp.getgrgid(os.getgid()).gr_name
    for group, mode in ((own, 0o660), ("no-such-group-vxnet", 0o600)):
        with unix_listener(tmp_path / "below" / group, group=group) as listener:
            found = Path(listener.getsockname()).stat()
            assert (stat.S_IMODE(found.st_mode), found.st_gid) == (mode, os.getgid())


def test_a_stale_socket_is_replaced(tmp_path: Path) -> None:
    unix_listener(tmp_path / "s").close()
    assert (tmp_path / "s").exists()
    with unix_listener(tmp_path / "s") as listener, socket.socket(socket.AF_UNIX) as client:
        client.connect(listener.getsockname())


def test_a_living_one_is_not(tmp_path: Path) -> None:
    with unix_listener(tmp_path / "s"), pytest.raises(ConflictError, match="another process serves"):
        unix_listener(tmp_path / "s")
    (tmp_path / "file").write_text("precious")
    with pytest.raises(HostError, match="it exists and is no socket"):
        unix_listener(tmp_path / "file")
    with pytest.raises(HostError, match=r"cannot listen on .*/file/s: (File exists|Not a directory)"):
        unix_listener(tmp_path / "file" / "s")
    assert (tmp_path / "file").read_text() == "precious"


async def test_the_path_goes_with_the_server(agent: MemoryAgent, tmp_path: Path) -> None:
    async with serving(build_app(agent), unix_listener(tmp_path / "s")):
        assert (tmp_path / "s").exists()
    assert not (tmp_path / "s").exists()


async def test_ndjson(agent: MemoryAgent, tmp_path: Path) -> None:
    from aiohttp import web

    closed = False

    async def events(request: web.Request) -> web.StreamResponse:
        async def records() -> AsyncIterator[object]:
            nonlocal closed
            try:
                yield {"a": 1}
                yield (1, 2)
            finally:
                closed = True

        return await ndjson_response(request, records())

    app = build_app(agent)
    app.router.add_get("/v1/events", events)
    path = str(tmp_path / "s")

    def read() -> bytes:
        with Exchange(path, "GET", "/v1/events", None, 20.0) as done:
            assert done.headers["content-type"] == "application/x-ndjson"
            return done.read()

    async with serve_unix(app, path):
        assert await asyncio.to_thread(read) == b'{"a":1}\n[1,2]\n'
    assert closed
