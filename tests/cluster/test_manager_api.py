"""Every route with every kind of caller, and what the server makes of torn requests."""

from __future__ import annotations

import asyncio
import io
import ipaddress
import ssl
import time

import aiohttp
import pytest

from tests.cluster.control_plane import DEADLINE_S, LOOPBACK, ControlPlane
from vxnet.cluster.manager_api import ROUTES, Renewal, ReturnedLeases, listen, serve_manager
from vxnet.cluster.tls import MANAGER_NAME, Credentials, client_context
from vxnet.core import trust
from vxnet.model.api import LeaseRequest, NetworkCreate, NodeReport, TaskReports
from vxnet.model.codec import to_json
from vxnet.model.errand import Errand
from vxnet.model.errors import HostError

CALLERS = ("nobody", "itself", "other worker", "manager", "removed node", "foreign CA", "expired")


@pytest.fixture
async def plane(tmp_path):
    plane = await ControlPlane(tmp_path / "store.db").create()
    yield plane
    await plane.close()


async def ask(plane, credentials, method, path, body=b"", roots=None, name=MANAGER_NAME):
    """(status, body); "refused" if the handshake was. A stream is read until its first line of substance."""
    context = client_context(roots or plane.manager.roots, credentials)
    url = f"https://127.0.0.1:{plane.port}{path}"
    try:
        async with (
            asyncio.timeout(DEADLINE_S),
            aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=context, force_close=True)) as session,
            session.request(method, url, data=body, server_hostname=name) as response,
        ):
            if response.content_type == "application/x-ndjson":
                while not (content := (await response.content.readline()).strip()):
                    pass
                return response.status, content
            return response.status, await response.read()
    except (aiohttp.ClientError, ssl.SSLError) as error:
        return "refused", str(error)


def issued(ca, key, node, role="worker", now=None):
    csr = trust.make_csr(key, "h9")
    identity = trust.Identity(node=node, role=role)
    der = trust.issue(ca, csr, identity, "h9", [], b"12345678", now or time.time())
    return Credentials(trust.certificate_to_pem(der), trust.key_to_pem(key))


async def credentials_of(plane, caller, worker, other):
    key = trust.node_key(b"f" * 32)
    if caller == "nobody":
        return None
    if caller == "itself":
        return worker.credentials
    if caller == "other worker":
        return other.credentials
    if caller == "manager":
        return Credentials(trust.certificate_to_pem(plane.manager.certificate), trust.key_to_pem(plane.key))
    if caller == "removed node":
        await plane.manager.remove_node(worker.id, force=True)
        return worker.credentials
    if caller == "foreign CA":
        return issued(trust.make_ca(b"x" * 48, "other", time.time()), key, worker.id)
    return issued(plane.manager._wishes.authority, key, worker.id, now=time.time() - 100 * 86400)


def body_for(route, plane, worker, network):
    key = trust.node_key(b"n" * 32)
    return {
        "/v1/join": lambda: plane.claim(9, key),
        "/v1/nodes/{node}/leases": lambda: LeaseRequest(network=network.id),
        "/v1/nodes/{node}/returned-leases": lambda: ReturnedLeases(leases=()),
        "/v1/nodes/{node}/report": lambda: NodeReport(version="2"),
        "/v1/nodes/{node}/tasks": lambda: TaskReports(reports=()),
        "/v1/nodes/{node}/errands": lambda: Errand(id="e"),
        "/v1/nodes/{node}/certificate": lambda: Renewal(csr=trust.make_csr(worker.key, "h2")),
        "/v1/nodes/{node}/store": lambda: Renewal(csr=trust.make_csr(worker.key, "h2")),
    }.get(route.path, lambda: None)()


@pytest.mark.parametrize("caller", CALLERS)
@pytest.mark.parametrize("route", ROUTES, ids=lambda route: f"{route.method} {route.path}")
async def test_every_route_with_every_caller(plane, route, caller):
    network = await plane.manager.create_network(NetworkCreate(name="net", attachable=True))
    worker, other = await plane.join(2), await plane.join(3)
    body = body_for(route, plane, worker, network)
    credentials = await credentials_of(plane, caller, worker, other)
    revision = (await plane.store.load()).revision
    status, content = await ask(
        plane, credentials, route.method, route.path.format(node=worker.id, errand="e"), to_json(body) if body else b""
    )
    if caller in ("foreign CA", "expired"):
        assert status == "refused"
    elif caller == "itself" and route.path.endswith("{errand}"):
        assert status == 404 and b"nobody waits for that" in content
    elif caller == "manager" and route.who == "manager":
        assert status == 404 and b"does not follow this manager" in content
    elif caller == "itself" and route.path.endswith("/store"):
        assert status == 403 and b"is a worker" in content
    elif route.who == "anyone" or (caller == "itself" and route.who == "self"):
        assert status in (200, 204), content
    else:
        assert status == 403 and b'"forbidden"' in content
    if status not in (200, 204):
        assert (await plane.store.load()).revision == revision


def test_only_joining_is_open_to_anyone():
    assert {(route.method, route.path) for route in ROUTES if route.who == "anyone"} == {
        ("GET", "/v1/ca"),
        ("POST", "/v1/join"),
    }


async def test_a_worker_does_not_pass_for_a_manager(plane):
    """Its certificate on a server: the client's TLS library refuses it."""
    worker = await plane.join(2)
    await plane.unserve()
    plane.port = 0
    manager_certificate, plane.manager.certificate = plane.manager.certificate, worker.grant.certificate
    manager_key, plane.key = plane.key, worker.key
    await plane.serve()
    plane.manager.certificate, plane.key = manager_certificate, manager_key
    status, reason = await ask(plane, None, "GET", "/v1/ca")
    assert status == "refused" and MANAGER_NAME in reason


async def test_only_tls_1_3(plane):
    context = client_context(plane.manager.roots)
    context.minimum_version, context.maximum_version = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_2
    with pytest.raises((ssl.SSLError, OSError)):
        await asyncio.open_connection("127.0.0.1", plane.port, ssl=context, server_hostname=MANAGER_NAME)


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b'{"network":7}', b'{"network":"x","address":"300.0.0.1"}', b"[" * 5000]
)
async def test_torn_requests_are_the_callers_fault(plane, body):
    worker = await plane.join(2)
    status, content = await ask(plane, worker.credentials, "POST", f"/v1/nodes/{worker.id}/leases", body)
    assert status == 400 and b"LeaseRequest" in content
    status, content = await ask(plane, worker.credentials, "GET", f"/v1/nodes/{worker.id}/assignment?since=soon")
    assert status == 400 and b"since" in content
    assert (await ask(plane, None, "GET", "/v1/nothing"))[0] == 404
    assert (await ask(plane, None, "POST", "/v1/join", io.BytesIO(b"x" * (2 << 20))))[0] == 413


async def test_no_secret_in_what_anyone_may_read(plane):
    _, content = await ask(plane, None, "GET", "/v1/ca")
    assert plane.token.secret.encode() not in content and b"key" not in content


async def test_a_taken_port_is_named():
    holder = listen(LOOPBACK, 0)
    port = holder.getsockname()[1]
    with pytest.raises(HostError, match=f"port {port}/tcp of 127.0.0.1, on which managers serve, is in use") as caught:
        listen(LOOPBACK, port)
    assert "ss -ltnp" in caught.value.hint
    with pytest.raises(HostError, match="unusable"):
        listen(ipaddress.ip_address("192.0.2.200"), 0)
    holder.close()


class Source:
    def __init__(self, plane):
        self.plane = plane

    def credentials(self):
        return trust.certificate_to_pem(self.plane.manager.certificate), trust.key_to_pem(self.plane.key)


async def test_the_server_waits_for_its_port_and_takes_a_renewed_certificate(plane):
    holder = listen(LOOPBACK, 0)
    plane.port, served_by = holder.getsockname()[1], plane.port
    server = asyncio.create_task(serve_manager(plane.manager, Source(plane), LOOPBACK, plane.port))
    await asyncio.sleep(0)
    holder.close()

    async def shown():
        context = client_context(plane.manager.roots)
        _, writer = await asyncio.open_connection("127.0.0.1", plane.port, ssl=context, server_hostname=MANAGER_NAME)
        certificate = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        writer.close()
        return certificate

    async def wait_shown(certificate):
        async with asyncio.timeout(DEADLINE_S):
            while True:
                try:
                    if await shown() == certificate:
                        return
                except OSError:
                    pass
                await asyncio.sleep(0.05)

    await wait_shown(plane.manager.certificate)
    await plane.manager.use_certificate(plane.manager.renew(plane.manager.node_id, trust.make_csr(plane.key, "h1")))
    await wait_shown(plane.manager.certificate)
    server.cancel()
    with pytest.raises(asyncio.CancelledError):
        await server
    plane.port = served_by
