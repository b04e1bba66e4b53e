"""Hosts with a Kernel and containers, as tests build them.

::

    c1, c2 ── h1 ──(eth0: underlay)── h2 ── d1
"""

from __future__ import annotations

import contextlib
import ipaddress
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

from tests.host.throwaway import Host, Place, wire
from vxnet.host import uvxlan
from vxnet.host.kernel import ORPHAN_GRACE_S, Kernel
from vxnet.host.tunnels import Options
from vxnet.model.address import IPAddress, IPInterface
from vxnet.model.host import Change, GatewayBridge, HostState, Interface, Remote, Sandbox, Segment

VNI = 65536
Kind = Literal["kernel", "userspace"]
GATEWAY = GatewayBridge(addresses=(ipaddress.ip_interface("172.19.0.1/16"),), mtu=1500)


def addresses(*texts: str) -> tuple[IPAddress, ...]:
    return tuple(ipaddress.ip_address(text) for text in texts)


def interfaces(*texts: str) -> tuple[IPInterface, ...]:
    return tuple(ipaddress.ip_interface(text) for text in texts)


def way_out(port: str, number: int) -> Interface:
    """To ``vxnet_gw``, as the container with this number has it."""
    return Interface(
        name="eth9",
        port=port,
        vni=None,
        mac=f"02:ff:ac:13:00:{number:02x}",
        mtu=1500,
        addresses=interfaces(f"172.19.0.{number}/16"),
    )


class Container(Place):
    """A namespace with a number: its addresses, MACs and names follow from that."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number
        self.id = f"{number:08x}" * 8
        self.ip4 = f"10.0.16.{number}"
        self.ip6 = f"fd00:16::{number:x}"

    def mac(self, vni: int = VNI) -> str:
        return f"02:{vni & 0xFF:02x}:0a:00:10:{self.number:02x}"

    def port(self, name: str) -> str:
        return f"v{self.id[:8]}.{name}"

    def sandbox(
        self, *, vnis: Sequence[int] = (VNI,), gateway: bool = True, mtu: int = 1450, dns: int = 40000
    ) -> Sandbox:
        found = [
            Interface(
                name=f"eth{at}",
                port=self.port(f"eth{at}"),
                vni=vni,
                mac=self.mac(vni),
                mtu=mtu,
                addresses=interfaces(
                    f"10.{vni - VNI}.16.{self.number}/24", f"fd00:16:{vni - VNI:x}::{self.number:x}/64"
                ),
            )
            for at, vni in enumerate(vnis)
        ]
        if gateway:
            found.append(way_out(self.port("eth9"), self.number))
        return Sandbox(
            id=self.id,
            netns=self.path,
            interfaces=tuple(found),
            default_via=addresses("172.19.0.1") if gateway else (),
            dns_port=dns,
        )

    def remote(self, vtep: IPAddress, vni: int = VNI) -> Remote:
        """As another host sees it."""
        own = addresses(f"10.{vni - VNI}.16.{self.number}", f"fd00:16:{vni - VNI:x}::{self.number:x}")
        return Remote(mac=self.mac(vni), addresses=own, vtep=vtep)

    def reaches(self, address: str) -> bool:
        out = self.run("ping", "-c", "1", "-W", "2", address, check=False)
        return "1 received" in out


class Machine(Host):
    """A host with its Kernel, whose clock moves on by more than any grace at each look."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.start()

    def _clock(self) -> float:
        self.now += ORPHAN_GRACE_S + 1
        return self.now

    def reconcile(self, state: HostState, sandboxes: Sequence[str] | None = None) -> list[Change]:
        return self.do(self.kernel.reconcile, state, sandboxes)

    def forwards(self) -> bool:
        """Whether its cards are up and all ports of its bridges forward: what was just made does so once the kernel has
        noticed its carrier, which it does in its own time."""
        own = self.links()
        found = [*self.links("-n", "vxnet").values(), *own.values()]
        ports = [link["linkinfo"]["info_slave_data"] for link in found if link.get("master")]
        cards = [link for name, link in own.items() if name.startswith("eth")]
        return all(card["operstate"] == "UP" for card in cards) and all(port["state"] == "forwarding" for port in ports)

    def stop(self) -> None:
        """The daemon dies."""
        self.do(self.kernel.close)

    def start(self) -> None:
        self.kernel = self.do(Kernel, self._clock, Options(virtual_underlay=True))

    def close(self) -> None:
        self.do(self.kernel.close)
        self.do(uvxlan.stop, uvxlan.DIRECTORY)
        super().close()


class Pair:
    """Two machines on one cable with a container each, both families in the overlay; states that join them."""

    def __init__(self, version: int = 4, kinds: tuple[Kind, Kind] = ("kernel", "kernel")) -> None:
        self.h1, self.h2 = Machine(), Machine()
        self.c1, self.d1 = Container(2), Container(3)
        wire(self.h1, "eth0", self.h2, "eth0")
        texts = ("192.168.9.1/24", "192.168.9.2/24") if version == 4 else ("fd00:9::1/64", "fd00:9::2/64")
        for host, text in zip((self.h1, self.h2), texts, strict=True):
            host.run("ip", "addr", "add", text, "dev", "eth0", *(("nodad",) if version == 6 else ()))
        self.v1, self.v2 = (ipaddress.ip_interface(text).ip for text in texts)
        mtu = 1450 if version == 4 else 1430
        sandboxes = self.c1.sandbox(mtu=mtu), self.d1.sandbox(mtu=mtu)
        self.s1 = state(self.v1, [sandboxes[0]], [self.d1.remote(self.v2)], kind=kinds[0], mtu=mtu)
        self.s2 = state(self.v2, [sandboxes[1]], [self.c1.remote(self.v1)], kind=kinds[1], mtu=mtu)

    def reconcile(self) -> None:
        """And packets pass from then on."""
        for host, wanted in ((self.h1, self.s1), (self.h2, self.s2)):
            assert errors(host.reconcile(wanted)) == []
        assert wait_until(lambda: self.h1.forwards() and self.h2.forwards())

    def close(self) -> None:
        for place in (self.h1, self.h2, self.c1, self.d1):
            place.close()


class Lasting:
    """A pair for tests that leave it as they found it, and look at that themselves: who fails takes it along."""

    def __init__(self, kinds: tuple[Kind, Kind]) -> None:
        self._kinds = kinds
        self._kept: Pair | None = None

    @contextlib.contextmanager
    def borrowed(self) -> Iterator[Pair]:
        pair, self._kept = self._kept, None
        if pair is None:
            pair = Pair(4, self._kinds)
            pair.reconcile()
        try:
            yield pair
        except BaseException:
            pair.close()
            raise
        self._kept = pair

    def close(self) -> None:
        if self._kept is not None:
            self._kept.close()


def state(
    local: IPAddress,
    sandboxes: Sequence[Sandbox],
    remotes: Sequence[Remote],
    *,
    vnis: Sequence[int] = (VNI,),
    gateway: GatewayBridge | None = GATEWAY,
    mtu: int = 1450,
    kind: Kind = "kernel",
) -> HostState:
    vteps = tuple(sorted({remote.vtep for remote in remotes}, key=str))
    return HostState(
        segments=tuple(
            Segment(vni=vni, mtu=mtu, local=local, kind=kind, remotes=tuple(remotes) if vni == VNI else (), flood=vteps)
            for vni in vnis
        ),
        sandboxes=tuple(sandboxes),
        gateway=gateway,
        vteps=vteps,
    )


def errors(changes: Sequence[Change]) -> list[Change]:
    return [change for change in changes if change.error]


def wait_until(condition: Callable[[], bool], timeout_s: float = 5.0) -> bool:
    """Whether it came true in time: what the kernel does in its own time is waited for."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True
