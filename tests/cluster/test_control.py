"""A node's conversation with managers that are wrong, slow, silent, gone and back."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
import time

import pytest
from msgspec.structs import replace

from tests.cluster.control_plane import DEADLINE_S, ControlPlane
from vxnet.cluster import control, manager_api
from vxnet.cluster.control import ManagerClient, parse_manager
from vxnet.core import trust
from vxnet.core.assignment import apply, lease_set
from vxnet.model.api import LeaseRequest, NetworkCreate, NodeReport
from vxnet.model.errors import CallerError, ConflictError, ForbiddenError, PeerError, UnavailableError


@pytest.fixture
async def plane(tmp_path):
    plane = await ControlPlane(tmp_path / "store.db").create()
    yield plane
    await plane.close()


@contextlib.contextmanager
def silent_port():
    """Takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def unused_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


class Follower:
    """Follows in the background and applies."""

    def __init__(self, client, current=None):
        self.client, self.current, self.updates, self.error = client, current, [], None
        self.task = asyncio.create_task(self._run())

    async def _run(self):
        try:
            async with contextlib.aclosing(self.client.follow(self.current and self.current.revision)) as updates:
                async for update in updates:
                    self.updates.append(update)
                    self.current = apply(self.current, update)
        except ForbiddenError as error:
            self.error = error

    async def wait_until(self, condition):
        async with asyncio.timeout(DEADLINE_S):
            while not condition():
                await asyncio.sleep(0.01)

    async def stop(self):
        self.task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self.task


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("h1", ("h1", 2377)),
        ("h1:99", ("h1", 99)),
        ("192.0.2.1", ("192.0.2.1", 2377)),
        ("fd00::1", ("fd00::1", 2377)),
        ("[fd00::1]", ("fd00::1", 2377)),
        ("[fd00::1]:99", ("fd00::1", 99)),
    ],
)
def test_addresses_of_managers(text, expected):
    assert parse_manager(text) == expected


@pytest.mark.parametrize("text", ["", ":2377", "h1:x", "h1:0", "h1:65536", "[fd00::1", "[fd00::1]x", "a b", "h/1"])
def test_what_is_no_address_of_a_manager(text):
    with pytest.raises(CallerError, match="not the address"):
        parse_manager(text)


def made(assignment):
    """Its networks but ``ingress``, which every cluster has."""
    return tuple(network for network in assignment.networks if not network.ingress)


def leased(assignment):
    """Of those networks."""
    known = {network.id for network in made(assignment)}
    return tuple(lease for lease in lease_set(assignment.leases).leases if lease.network in known)


# Joining


async def test_join(plane):
    await plane.manager.create_network(NetworkCreate(name="net", attachable=True))
    worker = await plane.join(2)
    assert plane.manager.role_of(worker.id) == "worker"
    assert [network.name for network in made(worker.grant.assignment)] == ["net"]
    assert len(leased(worker.grant.assignment)) == 1


async def test_a_token_of_another_cluster(plane):
    other = trust.make_ca(b"o" * 48, "other", time.time())
    token = trust.parse_token(trust.make_token(other.certificate, plane.token.secret))
    with pytest.raises(PeerError, match="its CA is another") as caught:
        await control.fetch_roots("127.0.0.1", plane.port, token)
    assert plane.token.secret not in str(caught.value)


async def test_a_token_is_good_while_the_ca_goes_over(plane):
    """Of a manager whose own certificate is of the new CA already."""
    token = plane.manager.join_token("worker")
    await plane.manager.ca.rotate()
    first = plane.manager.node_id
    digests = tuple(trust.certificate_digest(root) for root in plane.manager.roots)
    await plane.manager.report(first, NodeReport(authorities=digests))
    await plane.manager.ca.turn()
    assert [one.use for one in plane.manager.ca.view().authorities] == ["signs", "old"]
    await plane.manager.use_certificate(plane.manager.renew(first, trust.make_csr(plane.key, "h1")))
    await plane.unserve()
    await plane.serve()
    assert plane.manager.join_token("worker") == token
    roots = await control.fetch_roots("127.0.0.1", plane.port, trust.parse_token(token))
    assert set(roots) == set(plane.manager.roots)
    grant = await control.join("127.0.0.1", plane.port, roots, plane.claim(2, trust.node_key(b"2" * 32)))
    assert trust.issuer(grant.certificate, roots) == plane.manager.roots[0]


async def test_a_wrong_secret_is_another_error(plane):
    roots = await control.fetch_roots("127.0.0.1", plane.port, plane.token)
    with pytest.raises(ForbiddenError, match="token is not valid"):
        await control.join("127.0.0.1", plane.port, roots, plane.claim(2, plane.key, secret="0" * 25))


async def test_the_secret_is_not_shown_to_who_only_repeats_the_ca(plane, tmp_path):
    """It serves the right CA certificate, which is no secret, with a certificate of its own CA."""
    impostor = await ControlPlane(tmp_path / "impostor.db").create()
    seen = []

    async def take(claim, peer=""):
        seen.append(claim)
        raise ConflictError("caught you")

    impostor.manager.join = take
    with pytest.raises(PeerError, match="not a manager of this cluster"):
        await control.join("127.0.0.1", impostor.port, plane.manager.roots, plane.claim(2, plane.key))
    assert not seen
    await impostor.close()


async def test_refusals_come_through_as_they_are(plane):
    await plane.join(2)
    claim = plane.claim(3, trust.node_key(b"3" * 32), name="h2")
    with pytest.raises(ConflictError, match="'h2' already") as caught:
        await control.join("127.0.0.1", plane.port, plane.manager.roots, claim)
    assert "another name" in caught.value.hint


async def test_nobody_there(plane):
    port = unused_port()
    with pytest.raises(UnavailableError, match="cannot be reached: Connection refused") as caught:
        await control.fetch_roots("127.0.0.1", port, plane.token)
    assert f"127.0.0.1:{port}" in caught.value.message and "2377/tcp" in caught.value.hint


async def test_somebody_who_says_nothing(plane, monkeypatch):
    monkeypatch.setattr(control, "ANSWER_S", 0.3)
    with silent_port() as port, pytest.raises(UnavailableError, match="in time"):
        await control.fetch_roots("127.0.0.1", port, plane.token)


async def test_somebody_who_speaks_another_protocol(plane):
    async def greet(reader, writer):
        writer.write(b"220 mail\r\n")
        writer.close()

    server = await asyncio.start_server(greet, "127.0.0.1", 0)
    with pytest.raises(PeerError, match="not a manager"):
        await control.fetch_roots("127.0.0.1", server.sockets[0].getsockname()[1], plane.token)
    server.close()
    await server.wait_closed()


# Requests


async def test_requests(plane):
    network = await plane.manager.create_network(NetworkCreate(name="net", attachable=True))
    worker = await plane.join(2)
    await worker.client.lease(LeaseRequest(network=network.id))
    first, second = leased(plane.manager.assignment_of(worker.id))
    await worker.client.release([second])
    assert leased(plane.manager.assignment_of(worker.id)) == (first,)
    route = ipaddress.ip_network("10.77.0.0/16")
    await worker.client.report(NodeReport(routes=(route,), version="7"))
    (node,) = [node for node in plane.manager.nodes() if node.id == worker.id]
    assert (node.routes, node.version) == ((route,), "7")
    certificate = await worker.client.renew(trust.make_csr(worker.key, "h2"))
    worker.client.update(certificate=certificate)
    await worker.client.report(NodeReport(version="8"))
    with pytest.raises(ConflictError, match="leased to node h2"):
        await (await plane.join(3)).client.lease(LeaseRequest(network=network.id, address=first.prefix.network_address))
    await worker.client.leave()
    with pytest.raises(ForbiddenError, match="was removed"):
        await worker.client.report(NodeReport())


async def test_a_request_goes_to_another_manager_if_one_does_not_answer(plane):
    worker = await plane.join(2)
    gone = plane.place(id="gone", name="h7", port=unused_port())
    for _ in range(5):
        client = ManagerClient(
            worker.id,
            [gone, plane.place()],
            certificate=worker.grant.certificate,
            key=trust.key_to_pem(worker.key),
            roots=plane.manager.roots,
        )
        await client.report(NodeReport(version="2"))
        assert client._last == plane.manager.node_id


async def test_when_nobody_answers_all_are_named(plane):
    worker = await plane.join(2)
    worker.client.update(managers=[plane.place(id=str(n), name=f"m{n}", port=unused_port()) for n in range(2)])
    with pytest.raises(UnavailableError) as caught:
        await worker.client.lease(LeaseRequest(network="x"))
    assert "m0 (127.0.0.1:" in caught.value.message and "m1 (127.0.0.1:" in caught.value.message


async def test_requests_can_be_cancelled(plane):
    worker = await plane.join(2)
    with silent_port() as port:
        worker.client.update(managers=[plane.place(port=port)])
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await worker.client.report(NodeReport())


# Following


async def test_follow(plane):
    worker = await plane.join(2)
    follower = Follower(worker.client)
    network = await plane.manager.create_network(NetworkCreate(name="net", attachable=True))
    await follower.wait_until(lambda: follower.current and made(follower.current))
    assert follower.current == plane.manager.assignment_of(worker.id)
    assert worker.client.reachable
    await plane.manager.remove_network(network.id)
    await follower.wait_until(lambda: not made(follower.current))
    await follower.stop()
    assert not worker.client.reachable


async def test_a_change_arrives_quickly(plane):
    worker = await plane.join(2)
    follower = Follower(worker.client, worker.grant.assignment)
    await follower.wait_until(lambda: worker.client.reachable)
    took = []
    for number in range(20):
        began = time.monotonic()
        network = await plane.manager.create_network(NetworkCreate(name=f"n{number}", attachable=True))
        await follower.wait_until(lambda: len(made(follower.current)) == number + 1)  # noqa: B023
        took.append(time.monotonic() - began)
    print(f"created and heard: median {sorted(took)[10] * 1000:.1f} ms")
    assert network and sorted(took)[10] < 0.25
    await follower.stop()


async def test_following_again_after_the_manager_was_away(plane):
    worker = await plane.join(2)
    follower = Follower(worker.client, worker.grant.assignment)
    await follower.wait_until(lambda: worker.client.reachable)
    began = time.monotonic()
    await plane.unserve()
    assert time.monotonic() - began < 2, "a stopping server waits for its streams"
    await follower.wait_until(lambda: not worker.client.reachable)
    await plane.manager.create_network(NetworkCreate(name="net", attachable=True))
    await plane.serve()
    await follower.wait_until(lambda: made(follower.current))
    assert not any(update.snapshot for update in follower.updates)
    assert len({update.revision for update in follower.updates}) == len(follower.updates)
    await follower.stop()


async def test_a_silent_manager_is_left(plane, monkeypatch):
    """It took the request and froze: TCP is content, no line comes."""
    monkeypatch.setattr(control, "SILENCE_S", 0.5)
    monkeypatch.setattr(control, "CONNECT_S", 0.5)
    worker = await plane.join(2)
    with silent_port() as port:
        worker.client.update(managers=[plane.place(id="frozen", port=port), plane.place()])
        worker.client._last = "frozen"
        follower = Follower(worker.client, worker.grant.assignment)
        await follower.wait_until(lambda: worker.client.reachable)
        assert worker.client._last == plane.manager.node_id
        await follower.stop()


async def test_a_manager_that_knows_less_than_the_node_has_heard_is_left(plane, monkeypatch):
    """It may be cut off from the others, or of a store whose place another has taken."""
    worker = await plane.join(2)
    lost = []
    monkeypatch.setattr(control.log, "warning", lambda *words: lost.append(words))
    told = 10**9
    follower = Follower(worker.client, replace(worker.grant.assignment, revision=told))
    await follower.wait_until(lambda: lost)
    assert "knows less" in str(lost) and not worker.client.reachable and not follower.updates
    await plane.store.start_from(2 * told)
    await plane.manager.create_network(NetworkCreate(name="net", attachable=True))
    await follower.wait_until(lambda: made(follower.current))
    assert follower.updates[0].snapshot and follower.current.revision > 2 * told
    await follower.stop()


async def test_signs_of_life(plane, monkeypatch):
    """With nothing to tell for long, the stream stays; without signs of life it does not."""
    monkeypatch.setattr(manager_api, "KEEPALIVE_S", 0.1)
    monkeypatch.setattr(control, "SILENCE_S", 0.5)
    worker = await plane.join(2)
    lost = []
    monkeypatch.setattr(control.log, "warning", lambda *words: lost.append(words))
    follower = Follower(worker.client, worker.grant.assignment)
    await follower.wait_until(lambda: worker.client.reachable)
    await asyncio.sleep(1.2)
    assert not lost and worker.client.reachable
    monkeypatch.setattr(manager_api, "KEEPALIVE_S", 60)
    await follower.wait_until(lambda: lost)
    await follower.stop()


async def test_a_removed_node_learns_of_it_and_stops(plane):
    worker = await plane.join(2)
    follower = Follower(worker.client, worker.grant.assignment)
    await follower.wait_until(lambda: worker.client.reachable)
    await plane.manager.remove_node("h2", force=True)
    await asyncio.wait_for(follower.task, DEADLINE_S)
    assert worker.id in follower.current.revoked
    assert "was removed" in follower.error.message


async def test_lines_longer_than_any_buffer(plane):
    worker = await plane.join(2)
    label = "x" * 700_000
    await plane.manager.create_network(NetworkCreate(name="net", labels={"l": label}))
    follower = Follower(worker.client)
    await follower.wait_until(lambda: follower.current is not None)
    assert made(follower.current)[0].labels["l"] == label
    await follower.stop()


async def test_two_hundred_agents(plane):
    """Each has its own stream, and a change reaches all."""
    workers = [await plane.join(number) for number in range(2, 6)]
    followers = [Follower(workers[number % 4].client, workers[number % 4].grant.assignment) for number in range(200)]
    for follower in followers:
        await follower.wait_until(lambda: follower.client.reachable)  # noqa: B023
    await plane.manager.create_network(NetworkCreate(name="net", attachable=True))
    for follower in followers:
        await follower.wait_until(lambda: made(follower.current))  # noqa: B023
    for follower in followers:
        await follower.stop()
