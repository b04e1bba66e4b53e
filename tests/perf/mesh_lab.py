"""The routing mesh on three hosts: whether every connection arrives, and the server sees whose it is.

::

    h4: the client, in no cluster ── h1, h2, h3: three tasks of one service, 80 → 8080/tcp and 53 → 5353/udp
"""

from __future__ import annotations

import json
import time

from tests.perf.measure import mesh_cluster, python, sh, table
from vxnet.lab import Lab

EACH = 1000
"""Connections through each host, of each kind."""
HOSTS = ("h1", "h2", "h3")

SERVER = r"""
import asyncio, signal, socket
async def main():
    loop = asyncio.get_running_loop()
    open_ones = set()
    async def serve(reader, writer):
        open_ones.add(asyncio.current_task())
        try:
            line = await reader.readline()
            peer = writer.get_extra_info("peername")[0].removeprefix("::ffff:")
            writer.write(line.strip() + b" " + peer.encode() + b"\n")
            await writer.drain()
        finally:
            writer.close()
            open_ones.discard(asyncio.current_task())
    class Echo(asyncio.DatagramProtocol):
        def connection_made(self, transport):
            self.transport = transport
        def datagram_received(self, data, address):
            self.transport.sendto(data.strip() + b" " + address[0].removeprefix("::ffff:").encode(), address)
    listening = socket.create_server(("::", 8080), family=socket.AF_INET6, dualstack_ipv6=True)
    server = await asyncio.start_server(serve, sock=listening, backlog=1000)
    both = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    both.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    both.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
    both.bind(("::", 5353))
    await loop.create_datagram_endpoint(Echo, sock=both)
    end = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, end.set)
    await end.wait()
    server.close()
    if open_ones:
        await asyncio.wait(open_ones, timeout=5)
asyncio.run(main())
"""

# EACH requests of one kind to each address: [lost, answered with another address than ours].
THROUGH = r"""
import asyncio, json, socket, sys
kind, count, *places = sys.argv[1:]
async def tcp(address, own, number):
    reader, writer = await asyncio.wait_for(asyncio.open_connection(address, 80), 5)
    writer.write(b"%d\n" % number)
    line = await asyncio.wait_for(reader.read(200), 5)
    writer.close()
    return line.split() == [b"%d" % number, own.encode()]
async def udp(address, own, number):
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM) as one:
        one.setblocking(False)
        one.connect((address, 53))
        await loop.sock_sendall(one, b"%d" % number)
        line = await asyncio.wait_for(loop.sock_recv(one, 200), 5)
        return line.split() == [b"%d" % number, own.encode()]
async def main():
    found = {}
    for place in places:
        address, own = place.split("@")
        limit, told = asyncio.Semaphore(50), []
        async def one(number):
            async with limit:
                try:
                    told.append(await (tcp if kind == "tcp" else udp)(address, own, number))
                except (OSError, asyncio.TimeoutError, IndexError):
                    told.append(None)
        await asyncio.gather(*(one(number) for number in range(int(count))))
        found[address] = [told.count(None), told.count(False)]
    print(json.dumps(found))
asyncio.run(main())
"""


def _through(lab: Lab) -> list[list[str]]:
    rows = []
    for version, own, form in (("IPv4", "192.168.56.14", "192.168.56.1{}"), ("IPv6", "fd00:56::14", "fd00:56::1{}")):
        for kind in ("tcp", "udp"):
            places = [f"{form.format(host[1])}@{own}" for host in HOSTS]
            found = json.loads(python(lab, "h4", THROUGH, kind, str(EACH), *places))
            lost = sum(one[0] for one in found.values())
            wrong = sum(one[1] for one in found.values())
            rows.append([f"{kind}, {version}", str(EACH * len(HOSTS)), str(lost), str(wrong)])
    return rows


def main() -> None:
    with Lab(hosts=4, join=False) as lab:
        mesh_cluster(lab)
        for host in (*HOSTS, "h4"):
            sh(lab, host, f"ip addr add fd00:56::1{host[1]}/64 dev eth1 nodad")
        sh(lab, "h1", "vxnet network create app")
        argv = "vxnet service create --name my-web --network app --replicas 3 -p 80:8080 -p 53:5353/udp --"
        lab.run("h1", [*argv.split(), "python3", "-u", "-c", SERVER], check=True, timeout_s=120)
        deadline = time.monotonic() + 90
        for host in HOSTS:
            while lab.run("h4", ["bash", "-c", f"exec 3<>/dev/tcp/192.168.56.1{host[1]}/80"]).returncode:
                if time.monotonic() > deadline:
                    raise TimeoutError(f"{host} does not answer")
                time.sleep(0.3)
        table(
            f"Routing mesh: {EACH} connections through each of {len(HOSTS)} hosts",
            ["", "connections", "lost", "another client's address"],
            _through(lab),
        )


if __name__ == "__main__":
    main()
