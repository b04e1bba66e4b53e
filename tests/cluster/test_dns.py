"""The resolver on real sockets. What it does on the wire is asked of dig, glibc and dnsmasq in namespaces of the test's
own; what it does under load and abuse, of small sockets on loopback."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import os
import resource
import socket
import struct
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import dnslib
import pytest

from vxnet.cluster import dns
from vxnet.cluster.dns import Resolver
from vxnet.core.names import View, forward
from vxnet.host import netns
from vxnet.host.dnsfast import FastNames
from vxnet.model.cluster import Network, Subnet
from vxnet.model.row import Endpoint, RowKey, Value, Version

NET = Network(
    id="n" * 25,
    name="net",
    vni=65536,
    subnets=(Subnet(prefix=ipaddress.ip_network("10.0.16.0/20"), gateway=ipaddress.ip_address("10.0.16.1")),),
)
VIEW = View((NET.id,), forward=True)
INTERNAL = View((NET.id,), forward=False)
DEADLINE_S = 10.0


def row(name: str, address: str, *aliases: str, seq: int = 1) -> tuple[RowKey, Version, Value]:
    endpoint = Endpoint(
        network=NET.id,
        vni=NET.vni,
        addresses=(ipaddress.ip_address(address),),
        mac="02:00:0a:00:10:02",
        vtep=ipaddress.ip_address("192.168.56.11"),
        name=name,
        aliases=aliases,
    )
    return RowKey("node1", "endpoint", f"{name}.{NET.id}"), Version(1, seq), endpoint


ROWS = [row("web", "10.0.16.2", "front"), *(row(f"many{i}", f"10.0.17.{i}", "many") for i in range(100))]


class Sockets:
    """What a shim holds: UDP and TCP on one port of 127.0.0.11."""

    def __init__(self) -> None:
        for _ in range(100):
            self.udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            self.udp.bind(("127.0.0.11", 0))
            self.port: int = self.udp.getsockname()[1]
            self.tcp = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
            try:
                self.tcp.bind(("127.0.0.11", self.port))
            except OSError:
                self.close()
                continue
            self.tcp.listen(128)
            return
        raise AssertionError("no port is free for both")

    def close(self) -> None:
        self.udp.close()
        self.tcp.close()

    def hand_over(self) -> tuple[socket.socket, socket.socket]:
        return self.udp.dup(), self.tcp.dup()


@pytest.fixture
def sockets() -> Iterator[Sockets]:
    held = Sockets()
    yield held
    held.close()


@pytest.fixture(params=["alone", "fast"])
def fast(request: pytest.FixtureRequest) -> Iterator[FastNames | None]:
    """All that the resolver promises it keeps with the fast path before it."""
    with FastNames() if request.param == "fast" else contextlib.nullcontext() as made:
        yield made


@pytest.fixture
async def resolver(fast: FastNames | None) -> AsyncIterator[Resolver]:
    async with Resolver(fast) as made:
        made.know(ROWS, {NET.id: NET})
        yield made


@pytest.fixture
async def port(resolver: Resolver, sockets: Sockets) -> int:
    resolver.add("c1", *sockets.hand_over(), VIEW)
    return sockets.port


async def wait_until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        await asyncio.sleep(0.005)


def question(name: str, kind: str = "A", number: int = 7) -> bytes:
    asked = dnslib.DNSRecord.question(name, kind)
    asked.header.id = number
    return bytes(asked.pack())


@contextlib.contextmanager
def client_of(port: int) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as client:
        client.connect(("127.0.0.11", port))
        yield client


async def ask(port: int, data: bytes) -> dnslib.DNSRecord:
    loop = asyncio.get_running_loop()
    with client_of(port) as client:
        client.send(data)
        async with asyncio.timeout(DEADLINE_S):
            return dnslib.DNSRecord.parse(await loop.sock_recv(client, 65535))


def addresses(reply: dnslib.DNSRecord) -> list[str]:
    return [str(record.rdata) for record in reply.rr]


def rcode(reply: dnslib.DNSRecord) -> str:
    return str(dnslib.RCODE[reply.header.rcode])


async def read_message(reader: asyncio.StreamReader) -> dnslib.DNSRecord:
    async with asyncio.timeout(DEADLINE_S):
        (size,) = struct.unpack(">H", await reader.readexactly(2))
        return dnslib.DNSRecord.parse(await reader.readexactly(size))


def framed(data: bytes) -> bytes:
    return struct.pack(">H", len(data)) + data


# On loopback: names, abuse, ends


async def test_names_follow_the_rows_and_the_view(resolver: Resolver, port: int) -> None:
    assert addresses(await ask(port, question("web"))) == ["10.0.16.2"]
    resolver.know([row("web", "10.0.16.9", seq=2)], {NET.id: NET})
    assert addresses(await ask(port, question("web"))) == ["10.0.16.9"]
    resolver.update("c1", View((), forward=False))
    assert rcode(await ask(port, question("web"))) == "NXDOMAIN"
    resolver.update("nobody", VIEW)


async def test_a_new_daemon_answers_what_was_asked_meanwhile(fast: FastNames | None, sockets: Sockets) -> None:
    async with Resolver(fast) as first:
        first.add("c1", *sockets.hand_over(), VIEW)
    with client_of(sockets.port) as client:
        client.send(question("web"))
        async with Resolver(fast) as second:
            second.know(ROWS, {NET.id: NET})
            second.add("c1", *sockets.hand_over(), VIEW)
            async with asyncio.timeout(DEADLINE_S):
                reply = await asyncio.get_running_loop().sock_recv(client, 512)
    assert addresses(dnslib.DNSRecord.parse(reply)) == ["10.0.16.2"]


async def test_queries_wait_until_the_names_are_known(fast: FastNames | None, sockets: Sockets) -> None:
    loop = asyncio.get_running_loop()
    async with Resolver(fast) as resolver:
        resolver.pause()
        resolver.add("c1", *sockets.hand_over(), INTERNAL)
        reader, writer = await asyncio.open_connection("127.0.0.11", sockets.port)
        writer.write(framed(question("web")))
        with client_of(sockets.port) as client:
            client.send(question("web"))
            for _ in range(20):
                await asyncio.sleep(0.001)
            assert resolver.statistics().get("queries_udp", 0) == 0
            resolver.know(ROWS, {NET.id: NET})
            resolver.resume()
            async with asyncio.timeout(DEADLINE_S):
                assert addresses(dnslib.DNSRecord.parse(await loop.sock_recv(client, 512))) == ["10.0.16.2"]
        assert addresses(await read_message(reader)) == ["10.0.16.2"]
        resolver.pause()
        resolver.resume()
        assert addresses(await ask(sockets.port, question("web"))) == ["10.0.16.2"]
        writer.close()
        await writer.wait_closed()


async def test_rejected_datagrams_are_counted_and_do_no_harm(resolver: Resolver, port: int) -> None:
    with client_of(port) as client:
        for data in (b"", b"short", bytes(2000), question("web")[:-1], question("web")[:2] + b"\x84\x00" + bytes(8)):
            client.send(data)
    assert addresses(await ask(port, question("web"))) == ["10.0.16.2"]
    await wait_until(lambda: resolver.statistics()["queries_udp"] == 6)
    counts = resolver.statistics()
    found = {reason: counts.get(f"rejected_{reason}") for reason in ("short", "long", "question", "response")}
    assert found == {"short": 2, "long": 1, "question": 1, "response": 1}


async def test_without_resolvers_unknown_names_do_not_exist(resolver: Resolver, port: int) -> None:
    begun = time.monotonic()
    assert rcode(await ask(port, question("example.com"))) == "NXDOMAIN"
    assert time.monotonic() - begun < forward.TIMEOUT_S / 2
    assert resolver.statistics()["forwards_refused"] == 1


async def test_tcp_takes_queries_in_pieces_and_in_heaps(port: int) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.11", port)
    for octet in framed(question("web", number=1)):
        writer.write(bytes((octet,)))
        await writer.drain()
    assert addresses(await read_message(reader)) == ["10.0.16.2"]
    writer.write(framed(question("web", number=2)) + framed(question("many", number=3)))
    replies = [await read_message(reader), await read_message(reader)]
    assert [(reply.header.id, len(reply.rr)) for reply in replies] == [(2, 1), (3, 100)]
    writer.close()
    await writer.wait_closed()


@pytest.mark.parametrize("data", [b"\xff\xff", framed(b"short"), framed(question("web")[:2] + b"\x80" + bytes(9))])
async def test_tcp_hangs_up_on_nonsense(resolver: Resolver, port: int, data: bytes) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.11", port)
    writer.write(data)
    async with asyncio.timeout(DEADLINE_S):
        assert await reader.read() == b""
    writer.close()
    await writer.wait_closed()
    await wait_until(lambda: resolver.statistics()["connections"] == 0)


async def test_tcp_hangs_up_on_the_silent(resolver: Resolver, port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dns, "TCP_IDLE_S", 0.1)
    reader, writer = await asyncio.open_connection("127.0.0.11", port)
    writer.write(framed(question("web"))[:5])
    async with asyncio.timeout(DEADLINE_S):
        # Octets that the server had not come to read are answered with a reset (RFC 2525, section 2.17).
        with contextlib.suppress(ConnectionResetError):
            assert await reader.read() == b""
    assert resolver.statistics()["tcp_errors"] == 1
    writer.close()
    with contextlib.suppress(ConnectionResetError):
        await writer.wait_closed()


async def test_connections_accepted_together_end_apart(resolver: Resolver, port: int) -> None:
    loop = asyncio.get_running_loop()
    first, second, third = (socket.create_connection(("127.0.0.11", port)) for _ in range(3))
    await wait_until(lambda: resolver.statistics()["connections"] == 3)
    first.close()
    await wait_until(lambda: resolver.statistics()["connections"] == 2)
    for client in (second, third):
        client.setblocking(False)
        await loop.sock_sendall(client, framed(question("web")))
        async with asyncio.timeout(DEADLINE_S):
            assert await loop.sock_recv(client, 2) == b"\x00\x25"
        client.close()


async def test_connections_are_bounded(resolver: Resolver, port: int) -> None:
    clients = [await asyncio.open_connection("127.0.0.11", port) for _ in range(dns.CONNECTIONS_MAX + 3)]
    await wait_until(lambda: resolver.statistics().get("connections_refused") == 3)
    assert resolver.statistics()["connections"] == dns.CONNECTIONS_MAX
    reader, writer = clients[0]
    writer.write(framed(question("web")))
    assert addresses(await read_message(reader)) == ["10.0.16.2"]
    for _, writer in clients:
        writer.close()
    for _, writer in clients:
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
    await wait_until(lambda: resolver.statistics()["connections"] == 0)


async def test_accepting_pauses_when_descriptors_run_out(
    resolver: Resolver, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dns, "ACCEPT_PAUSE_S", 0.05)
    loop = asyncio.get_running_loop()
    client = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (client.fileno() + 1, hard))
    try:
        spare = []
        with contextlib.suppress(OSError):
            while True:
                spare.append(os.dup(0))
        await loop.sock_connect(client, ("127.0.0.11", port))
        await wait_until(lambda: resolver.statistics().get("tcp_errors"))
        await asyncio.sleep(0.2)
        # One try a pause, not one a turn of the loop.
        assert resolver.statistics()["tcp_errors"] < 10
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for fd in spare:
            os.close(fd)
    await loop.sock_sendall(client, framed(question("web")))
    async with asyncio.timeout(DEADLINE_S):
        assert await loop.sock_recv(client, 2) == b"\x00\x25"
    client.close()


# Upstream, on loopback


class FakeUpstream:
    """A resolver on a loopback address; ``behave`` gets each query and returns what to send back."""

    def __init__(self, address: str, port: int = 0) -> None:
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self.socket.bind((address, port))
        self.port: int = self.socket.getsockname()[1]
        self.seen: list[tuple[bytes, tuple[str, int]]] = []
        self.behave: Callable[[bytes], list[bytes]] = lambda query: []
        asyncio.get_running_loop().add_reader(self.socket, self._receive)

    def _receive(self) -> None:
        query, client = self.socket.recvfrom(4096)
        self.seen.append((query, client))
        for reply in self.behave(query):
            self.socket.sendto(reply, client)

    def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self.socket)
        self.socket.close()


def reply_to(query: bytes, address: str, code: int = 0) -> bytes:
    reply = dnslib.DNSRecord.parse(query).reply()
    reply.header.rcode = code
    if not code:
        reply.add_answer(dnslib.RR(str(reply.q.qname), rdata=dnslib.A(address)))
    return bytes(reply.pack())


@pytest.fixture
async def upstreams(
    fast: FastNames | None, sockets: Sockets, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[tuple[Resolver, list[FakeUpstream]]]:
    """Four, of which three may be asked; all silent."""
    monkeypatch.setattr(forward, "TIMEOUT_S", 0.2)
    first = FakeUpstream("127.0.0.1")
    fakes = [first, *(FakeUpstream(f"127.0.0.{i}", first.port) for i in (2, 3, 4))]
    async with Resolver(fast, upstream_port=first.port) as resolver:
        resolver.know(ROWS, {NET.id: NET})
        resolver.add("c1", *sockets.hand_over(), VIEW)
        resolver.set_upstreams([ipaddress.ip_address(f"127.0.0.{i}") for i in (1, 2, 3, 4)])
        yield resolver, fakes
    for fake in fakes:
        fake.close()


Upstreamed = tuple[Resolver, list[FakeUpstream]]


async def test_the_first_that_answers_is_right(upstreams: Upstreamed, sockets: Sockets) -> None:
    resolver, (silent, refusing, knowing, fourth) = upstreams
    refusing.behave = lambda query: [reply_to(query, "", code=5)]
    knowing.behave = lambda query: [reply_to(query, "192.0.2.1")]
    reply = await ask(sockets.port, question("exAmple.com"))
    assert addresses(reply) == ["192.0.2.1"] and str(reply.q.qname) == "exAmple.com." and reply.header.id == 7
    assert len(silent.seen) == len(refusing.seen) == len(knowing.seen) == 1
    # The silent one comes last now, so it costs nothing.
    await ask(sockets.port, question("example.com"))
    assert [len(fake.seen) for fake in (silent, refusing, knowing, fourth)] == [1, 2, 2, 0]
    counts = resolver.statistics()
    assert (counts["upstream_silent"], counts["upstream_refused"], counts["forwarded"]) == (1, 2, 2)


async def test_a_container_asks_servers_of_its_own(upstreams: Upstreamed, sockets: Sockets) -> None:
    """``--dns``, also where the host has no resolver."""
    resolver, fakes = upstreams
    fakes[3].behave = lambda query: [reply_to(query, "192.0.2.4")]
    resolver.update("c1", VIEW._replace(servers=(ipaddress.ip_address("127.0.0.4"),)))
    for hosts in (("127.0.0.1",), ()):
        resolver.set_upstreams([ipaddress.ip_address(one) for one in hosts])
        assert addresses(await ask(sockets.port, question("example.com"))) == ["192.0.2.4"]
    assert [len(fake.seen) for fake in fakes] == [0, 0, 0, 2]


async def test_nobody_answers(upstreams: Upstreamed, sockets: Sockets) -> None:
    _, fakes = upstreams
    assert rcode(await ask(sockets.port, question("example.com"))) == "SERVFAIL"
    assert [len(fake.seen) for fake in fakes] == [1, 1, 1, 0]


async def test_every_query_has_an_id_and_a_port_of_its_own(upstreams: Upstreamed, sockets: Sockets) -> None:
    _, fakes = upstreams
    fakes[0].behave = lambda query: [reply_to(query, "192.0.2.1")]
    for _ in range(20):
        await ask(sockets.port, question("example.com"))
    assert len({query[:2] for query, _ in fakes[0].seen}) > 15
    assert len({client for _, client in fakes[0].seen}) > 15


async def test_forged_replies_are_passed_over(upstreams: Upstreamed, sockets: Sockets) -> None:
    resolver, (asked, other, *_) = upstreams

    def behave(query: bytes) -> list[bytes]:
        good = reply_to(query, "192.0.2.1")
        wrong_id = bytes((good[0] ^ 1,)) + good[1:]
        # The right content from the wrong place: the kernel does not even hand it over.
        other.socket.sendto(reply_to(query, "192.0.2.66"), asked.seen[-1][1])
        return [wrong_id, good.replace(b"example", b"exbmple"), query, b"", good]

    asked.behave = behave
    assert addresses(await ask(sockets.port, question("example.com"))) == ["192.0.2.1"]
    assert resolver.statistics()["upstream_stray"] == 4


async def test_internal_networks_ask_nobody_outside(upstreams: Upstreamed, sockets: Sockets) -> None:
    resolver, fakes = upstreams
    resolver.update("c1", INTERNAL)
    assert rcode(await ask(sockets.port, question("secret.example.com"))) == "NXDOMAIN"
    assert addresses(await ask(sockets.port, question("web"))) == ["10.0.16.2"]
    resolver.update("c1", VIEW)
    assert rcode(await ask(sockets.port, question("9.16.0.10.in-addr.arpa", "PTR"))) == "NXDOMAIN"
    assert not any(fake.seen for fake in fakes)


async def test_one_container_cannot_take_all_and_leaves_nothing(
    fast: FastNames | None, upstreams: Upstreamed, sockets: Sockets, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forward, "TIMEOUT_S", 60.0)
    resolver, fakes = upstreams
    before = len(os.listdir("/proc/self/fd"))
    tasks = len(asyncio.all_tasks())
    bound = forward.IN_FLIGHT_PER_CONTAINER_MAX
    loop = asyncio.get_running_loop()
    with client_of(sockets.port) as client:
        for number in range(bound + 6):
            client.send(question("example.com", number=number))
        for number in range(bound, bound + 6):
            async with asyncio.timeout(DEADLINE_S):
                reply = dnslib.DNSRecord.parse(await loop.sock_recv(client, 512))
            assert (reply.header.id, rcode(reply)) == (number, "SERVFAIL")
        assert resolver.statistics()["in_flight"] == bound
        await wait_until(lambda: len(fakes[0].seen) == bound)
    # Others are served meanwhile, and so is this one what is known here.
    neighbour = Sockets()
    resolver.add("c2", *neighbour.hand_over(), VIEW)
    fakes[0].behave = lambda query: [reply_to(query, "192.0.2.1")]
    assert addresses(await ask(neighbour.port, question("example.com"))) == ["192.0.2.1"]
    assert addresses(await ask(sockets.port, question("web"))) == ["10.0.16.2"]
    reader, writer = await asyncio.open_connection("127.0.0.11", sockets.port)
    await wait_until(lambda: resolver.statistics()["connections"] == 1)

    resolver.remove("c1")
    resolver.remove("c2")
    resolver.remove("c2")
    neighbour.close()
    async with asyncio.timeout(DEADLINE_S):
        assert await reader.read() == b""
    writer.close()
    await writer.wait_closed()
    await wait_until(lambda: len(asyncio.all_tasks()) == tasks)
    counts = resolver.statistics()
    assert (counts["in_flight"], counts["connections"], counts["containers"]) == (0, 0, 0)
    assert len(os.listdir("/proc/self/fd")) == before - (2 if fast is None else 5)
    assert "bugs" not in counts


async def test_a_bug_costs_one_query(upstreams: Upstreamed, sockets: Sockets, monkeypatch: pytest.MonkeyPatch) -> None:
    resolver, fakes = upstreams
    monkeypatch.setattr(forward, "judge", lambda *_: 1 / 0)
    fakes[0].behave = lambda query: [reply_to(query, "192.0.2.1")]
    with client_of(sockets.port) as client:
        client.send(question("example.com"))
        await wait_until(lambda: resolver.statistics().get("bugs"))
    assert addresses(await ask(sockets.port, question("web"))) == ["10.0.16.2"]
    assert resolver.statistics()["in_flight"] == 0


# In namespaces: dig, glibc and dnsmasq


class Namespace:
    """A network namespace with loopback up and programs in it."""

    def __init__(self) -> None:
        self.fd = netns.create()
        netns.inside(self.fd, lambda: subprocess.run(["ip", "link", "set", "lo", "up"], check=True))

    def prefix(self) -> list[str]:
        return ["nsenter", f"--net=/proc/{os.getpid()}/fd/{self.fd}"]

    async def run(self, *argv: str) -> tuple[int, str]:
        process = await asyncio.create_subprocess_exec(
            *self.prefix(), *argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        async with asyncio.timeout(DEADLINE_S):
            output, _ = await process.communicate()
        assert process.returncode is not None
        return process.returncode, output.decode()

    async def dig(self, *words: str) -> str:
        status, output = await self.run("dig", "@127.0.0.11", "+tries=1", "+time=5", *words)
        assert status == 0, output
        return output

    def close(self) -> None:
        os.close(self.fd)


@pytest.fixture
def host() -> Iterator[Namespace]:
    """The resolver's own namespace: this thread moves into it, so that its sockets are born there."""
    home, made = netns.current(), Namespace()
    netns.setns(made.fd)
    yield made
    netns.setns(home)
    os.close(home)
    made.close()


@pytest.fixture
def container(host: Namespace) -> Iterator[Namespace]:
    made = Namespace()
    yield made
    made.close()


@pytest.fixture
async def served(container: Namespace, resolver: Resolver) -> AsyncIterator[Namespace]:
    """A container whose 127.0.0.11:53 leads to the resolver."""
    with contextlib.closing(netns.inside(container.fd, Sockets)) as held:
        rules = f"""
            table ip dns {{
                chain output {{
                    type nat hook output priority -100
                    ip daddr 127.0.0.11 udp dport 53 dnat to 127.0.0.11:{held.port}
                    ip daddr 127.0.0.11 tcp dport 53 dnat to 127.0.0.11:{held.port}
                }}
            }}"""
        status, output = await container.run("nft", rules)
        assert status == 0, output
        resolver.add("c1", *held.hand_over(), VIEW)
        yield container


@pytest.fixture
async def dnsmasq(host: Namespace, tmp_path: Path) -> AsyncIterator[Path]:
    """127.0.0.1 refuses everything, 127.0.0.2 knows example.com; returns the latter's log."""
    known = [
        "--host-record=example.com,192.0.2.1,2001:db8::1",
        "--txt-record=long.example.com," + ",".join(["x" * 250] * 8),
    ]
    known += [f"--host-record=big.example.com,192.0.2.{i}" for i in range(1, 101)]
    known += ["--local=/example.com/", "--log-queries=extra", f"--log-facility={tmp_path / 'log'}"]
    processes = []
    for address, options in (("127.0.0.1", []), ("127.0.0.2", known)):
        base = ["dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--no-resolv", "--no-hosts", "--user=root"]
        base += ["--bind-interfaces", f"--listen-address={address}", "--except-interface=none", "--pid-file="]
        processes.append(await asyncio.create_subprocess_exec(*base, *options))
    deadline = time.monotonic() + DEADLINE_S
    for address in ("127.0.0.1", "127.0.0.2"):
        while (await host.run("dig", f"@{address}", "+tries=1", "+time=1", "example.com"))[0]:
            assert time.monotonic() < deadline, "dnsmasq does not start"
    yield tmp_path / "log"
    for process in processes:
        process.terminate()
        await process.wait()


def answers_of(output: str) -> list[list[str]]:
    """Name, TTL, class, type, data of the answer section."""
    lines = output.partition(";; ANSWER SECTION:\n")[2].partition("\n\n")[0].splitlines()
    return [line.split(maxsplit=4) for line in lines]


def status_of(output: str) -> str:
    return output.partition("status: ")[2].partition(",")[0]


@pytest.mark.host
@pytest.mark.parametrize(
    "how", [(), ("+tcp",), ("+noedns",), ("+bufsize=512",), ("+tcp", "+noedns"), ("+dnssec",)], ids=str
)
async def test_dig_agrees(served: Namespace, how: tuple[str, ...]) -> None:
    output = await served.dig("wEb", *how)
    assert status_of(output) == "NOERROR" and ";; flags: qr aa rd ra;" in output
    assert answers_of(output) == [["wEb.", "5", "IN", "A", "10.0.16.2"]]
    assert "WARNING" not in output and ";; Got bad packet" not in output
    assert ("OPT PSEUDOSECTION" in output) == ("+noedns" not in how)
    output = await served.dig("front.net", "AAAA", *how)
    assert status_of(output) == "NOERROR" and answers_of(output) == []
    output = await served.dig("-x", "10.0.16.2", *how)
    assert answers_of(output) == [["2.16.0.10.in-addr.arpa.", "5", "IN", "PTR", "web.net."]]
    assert status_of(await served.dig("-x", "10.0.16.3", *how)) == "NXDOMAIN"
    assert status_of(await served.dig("nobody", *how)) == "NXDOMAIN"


@pytest.mark.host
async def test_dig_goes_on_by_tcp_when_there_is_too_much(served: Namespace) -> None:
    output = await served.dig("many")
    assert "Truncated, retrying in TCP mode" in output and "(TCP)" in output
    assert {answer[4] for answer in answers_of(output)} == {f"10.0.17.{i}" for i in range(100)}
    output = await served.dig("many", "+ignore", "+noedns")
    assert " tc " in output and 0 < len(answers_of(output)) < 100


@pytest.mark.host
async def test_dig_gets_refusals_it_can_read(served: Namespace) -> None:
    assert status_of(await served.dig("web", "+edns=1", "+noednsnegotiation")) == "BADVERS"
    assert status_of(await served.dig("web", "-c", "CH")) == "REFUSED"
    assert status_of(await served.dig("web", "+opcode=NOTIFY")) == "NOTIMP"
    assert status_of(await served.dig("web", "+header-only")) == "FORMERR"


GLIBC = """
import socket, sys
for name in sys.argv[1:]:
    try:
        found = sorted({entry[4][0] for entry in socket.getaddrinfo(name, 80, type=socket.SOCK_STREAM)})
        print(name, len(found), found[0])
    except socket.gaierror as error:
        print(name, "EAI", {v: k for k, v in vars(socket).items() if k.startswith("EAI_")}[error.errno])
print(socket.gethostbyaddr("10.0.16.2")[0])
"""


@pytest.mark.host
async def test_glibc_agrees(served: Namespace, resolver: Resolver, tmp_path: Path) -> None:
    resolver.update("c1", INTERNAL)
    # With nothing but loopback getent asks nobody (AI_ADDRCONFIG).
    link = "ip link add eth0 type veth peer name peer && ip addr add 10.0.16.9/20 dev eth0 && ip link set eth0 up"
    status, output = await served.run("sh", "-c", link)
    assert status == 0, output
    conf = tmp_path / "resolv.conf"
    script = 'mount --bind "$1" /etc/resolv.conf; shift; getent ahostsv4 front; exec python3 -c "$@"'
    for options in ("ndots:0", "ndots:0 edns0", "ndots:0 use-vc", "ndots:0 trust-ad single-request"):
        conf.write_text(f"nameserver 127.0.0.11\noptions {options}\n")
        begun = time.monotonic()
        status, output = await served.run(
            "unshare", "--mount", "sh", "-ec", script, "sh", str(conf), GLIBC, "web", "WEB.net", "many", "nobody"
        )
        assert status == 0, output
        lines = output.splitlines()
        assert lines[0].split() == ["10.0.16.2", "STREAM", "front"], output
        assert lines[3:] == [
            "web 1 10.0.16.2",
            "WEB.net 1 10.0.16.2",
            "many 100 10.0.17.0",
            "nobody EAI EAI_NONAME",
            "web.net",
        ]
        # glibc waits 5 s when it is not answered, even for one of a pair.
        assert time.monotonic() - begun < 4


@pytest.mark.host
@pytest.mark.parametrize("how", [(), ("+tcp",), ("+noedns",), ("+bufsize=4096",)], ids=str)
async def test_what_is_not_ours_comes_from_the_hosts_resolvers(
    served: Namespace, resolver: Resolver, dnsmasq: Path, how: tuple[str, ...]
) -> None:
    resolver.set_upstreams([ipaddress.ip_address("127.0.0.1"), ipaddress.ip_address("127.0.0.2")])
    output = await served.dig("exAmple.com", *how)
    assert answers_of(output)[0][0::4] == ["exAmple.com.", "192.0.2.1"] and "WARNING" not in output
    output = await served.dig("example.com", "AAAA", *how)
    assert answers_of(output)[0][4] == "2001:db8::1"
    assert status_of(await served.dig("no.example.com", *how)) == "NXDOMAIN"
    assert status_of(await served.dig("elsewhere.test", *how)) == "SERVFAIL"
    output = await served.dig("long.example.com", "TXT", *how)
    assert answers_of(output)[0][4].count("x" * 250) == 8 and "(TCP)" in output
    output = await served.dig("big.example.com", *how)
    assert len(answers_of(output)) == 100
    assert resolver.statistics()["upstream_refused"] > 0


@pytest.mark.host
async def test_nothing_of_an_internal_container_reaches_dnsmasq(
    served: Namespace, resolver: Resolver, dnsmasq: Path
) -> None:
    resolver.set_upstreams([ipaddress.ip_address("127.0.0.2")])
    resolver.update("c1", INTERNAL)
    for how in ((), ("+tcp",)):
        assert status_of(await served.dig("leak.example.com", *how)) == "NXDOMAIN"
    resolver.update("c1", VIEW)
    assert status_of(await served.dig("seen.example.com")) == "NXDOMAIN"
    _, log = await served.run("cat", str(dnsmasq))
    assert "seen.example.com" in log and "leak.example.com" not in log
