"""One end of a measurement: `python -m vxnet.tools.bench_end WISH`, started by the daemon of its host.

::

    host namespace                   anonymous namespaces
    "underlay"  iperf3 -s on the VTEP
                vxbench (VXLAN) ──── brbench ── veth ── "kernel"      iperf3 -s
                forwarder (UDP) ──── TAP, brbench ─ veth ── "user space"  iperf3 -s

The same devices that a container's network has, in namespaces without a name: with this process everything is gone but
the forwarder, which is told to end, now or by the next measurement. Says a :class:`BenchEnd` in one line, then an empty
line a second; ends when its standard input does.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

from vxnet.host import addresses, datapath, links, neighbours, netns
from vxnet.host.datapath import Home
from vxnet.host.links import Peer, Wish
from vxnet.host.netlink import Netlink
from vxnet.host.tunnels import Options, Tunnels
from vxnet.model.address import IPAddress, IPInterface
from vxnet.model.bench import BenchEnd, BenchPlace, BenchWish
from vxnet.model.codec import from_json, to_json
from vxnet.model.errors import HostError
from vxnet.model.host import Segment

BENCH_VNI = 0xFFFFFE
DIRECTORY = Path("/run/vxnet-bench")
"""Of the forwarder's control socket."""
USER_PORT_OFFSET = 1
"""The tunnel in user space has a UDP port of its own: one host cannot have both kinds on the same."""
IPERF_PORT = 15201
CONNECT_PORT = 15202
HEARTBEAT_S = 1.0
SUBNETS = {"kernel": "169.254.91.{}/24", "user space": "169.254.92.{}/24"}
_OVERHEAD = {4: 50, 6: 70}


def main(argv: list[str]) -> int:
    wish = from_json(argv[0].encode(), BenchWish)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with contextlib.ExitStack() as stack:
        end = _Stand(wish, stack)
        os.write(1, to_json(end.told()) + b"\n")
        until = time.monotonic() + wish.longest_s
        while time.monotonic() < until:
            if select.select([sys.stdin], [], [], HEARTBEAT_S)[0] and not os.read(0, 4096):
                break
            os.write(1, b"\n")
    return 0


class _Stand:
    def __init__(self, wish: BenchWish, stack: contextlib.ExitStack) -> None:
        self._wish = wish
        self._stack = stack
        self._places: dict[str, BenchPlace] = {}
        self._missing: dict[str, str] = {}
        self._mtu = wish.mtu - _OVERHEAD[wish.local.version]
        if shutil.which("iperf3") is None:
            self._missing["underlay"] = "iperf3 is not installed there"
            return
        own = netns.current()
        stack.callback(os.close, own)
        self._serve("underlay", own, wish.local)
        for path, build in (("kernel", self._kernel), ("user space", self._user_space)):
            try:
                inner = netns.create()
                stack.callback(os.close, inner)
                build(inner)
                box, address = self._container(path, inner)
                self._serve(path, box, address)
            except (OSError, HostError) as error:
                self._missing[path] = str(error)

    def told(self) -> BenchEnd:
        return BenchEnd(pid=os.getpid(), places=self._places, missing=self._missing)

    def _segment(self, kind: str) -> Segment:
        wish = self._wish
        chosen = "userspace" if kind == "user space" else "kernel"
        return Segment(vni=BENCH_VNI, mtu=self._mtu, local=wish.local, kind=chosen)  # type: ignore[arg-type]

    def _kernel(self, inner: int) -> None:
        """The tunnel as vxnet makes it."""
        wish = datapath.tunnel_wish(self._segment("kernel"), self._wish.data_port)._replace(name="tunnel", alias="")
        with Netlink() as host, Netlink(inner) as netlink:
            host.request(links.add(wish, namespace=inner))
            self._stack.callback(self._delete, inner)
            found = links.get(netlink, "tunnel")
            assert found is not None
            rows = datapath.flood_rows(Home(0, found.ifindex), [self._wish.peer])
            neighbours.apply(netlink, neighbours.difference(rows, {}), rows, {}, {})

    @staticmethod
    def _delete(inner: int) -> None:
        """At once, so that the VNI is free for the next measurement."""
        with Netlink(inner) as netlink:
            if (found := links.get(netlink, "tunnel")) is not None:
                netlink.batch(links.delete([found.ifindex]))

    def _user_space(self, inner: int) -> None:
        wish = self._wish
        DIRECTORY.mkdir(mode=0o700, exist_ok=True)
        tunnels = Tunnels(Options(DIRECTORY, wish.queues, wish.spin_us, wish.virtual_underlay))
        for change in tunnels.stop():  # one that was left behind
            if change.error:
                raise HostError(change.error)
        self._stack.callback(self._stop, tunnels)
        segment = self._segment("user space")
        tunnels.ensure([segment], wish.data_port + USER_PORT_OFFSET)
        change = tunnels.add(segment, "tunnel", inner)
        if change.error:
            raise HostError(change.error)
        tunnels.admit([wish.peer])
        with Netlink(inner) as netlink:
            found = links.get(netlink, "tunnel")
        assert found is not None
        rows = datapath.flood_rows(Home(0, found.ifindex), [wish.peer])
        rows[neighbours.key_head(neighbours.TUNNEL, found.ifindex) + _mac_octets(3 - wish.number)] = wish.peer.packed
        tunnels.apply(neighbours.difference(rows, {}), rows, {}, {found.ifindex: BENCH_VNI}, {found.ifindex: "tunnel"})

    @staticmethod
    def _stop(tunnels: Tunnels) -> None:
        if any(change.error for change in tunnels.stop()):
            return  # by its socket the next measurement finds it
        with contextlib.suppress(OSError):
            shutil.rmtree(DIRECTORY)

    def _container(self, path: str, inner: int) -> tuple[int, IPAddress]:
        """A bridge on the tunnel, and a namespace on the bridge."""
        number = self._wish.number
        interface: IPInterface = ipaddress.ip_interface(SUBNETS[path].format(number))
        box = netns.create()
        self._stack.callback(os.close, box)
        with Netlink(inner) as netlink, Netlink(box) as outer:
            data = {"IFLA_BR_STP_STATE": 0, "IFLA_BR_FORWARD_DELAY": 0, "IFLA_BR_MCAST_SNOOPING": 0}
            netlink.request(links.add(Wish("brbench", "bridge", self._mtu, data=data)))
            peer = Peer("eth0", _mac_octets(number).hex(":"), box)
            netlink.request(links.add(Wish("port", "veth", self._mtu), peer=peer))
            bridge = links.get(netlink, "brbench")
            assert bridge is not None
            for name in ("tunnel", "port"):
                link = links.get(netlink, name)
                assert link is not None
                netlink.request(links.change(link.ifindex, master=bridge.ifindex, mtu=self._mtu, up=True))
            for name in ("lo", "eth0"):
                link = links.get(outer, name)
                assert link is not None
                outer.request(links.change(link.ifindex, up=True))
                if name == "eth0":
                    outer.request(addresses.add(link.ifindex, interface))
        return box, interface.ip

    def _serve(self, path: str, namespace: int, address: IPAddress) -> None:
        quiet = subprocess.DEVNULL
        argv = ["iperf3", "-s", "-B", str(address), "-p", str(IPERF_PORT)]
        server = netns.inside(
            namespace, lambda: subprocess.Popen(argv, stdin=quiet, stdout=quiet, stderr=quiet, pass_fds=())
        )
        self._stack.callback(_end, server)
        listener = netns.inside(namespace, lambda: _listen(address))
        threading.Thread(target=_accept, args=(listener,), daemon=True).start()
        self._places[path] = BenchPlace(descriptor=namespace, address=address)


def _mac_octets(number: int) -> bytes:
    return b"\x02vxb\0" + bytes((number,))


def _listen(address: IPAddress) -> socket.socket:
    one = socket.socket(socket.AF_INET if address.version == 4 else socket.AF_INET6)
    one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    one.bind((str(address), CONNECT_PORT))
    one.listen(1024)
    return one


def _accept(listener: socket.socket) -> None:
    while True:
        with contextlib.suppress(OSError):
            listener.accept()[0].close()


def _end(server: subprocess.Popen[bytes]) -> None:
    server.terminate()
    server.wait()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
