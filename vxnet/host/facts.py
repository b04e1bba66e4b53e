"""What this host tells of itself, and what it lacks.

Features are tried, not looked up: a version or a configuration file says less than the thing done once, in a namespace
that is thrown away.
"""

from __future__ import annotations

import ipaddress
import os
import shutil
import socket
from pathlib import Path
from typing import Literal, NamedTuple

from vxnet.host import addresses, answers, hosttable, links, netns, nft, ports, sandbox, tap
from vxnet.host.datapath import bridge_wish, tunnel_wish
from vxnet.host.links import Peer, Wish
from vxnet.host.netlink import Netlink
from vxnet.model.address import IPAddress, IPNetwork
from vxnet.model.errors import HostError
from vxnet.model.host import (
    BRIDGE_PREFIX,
    RESOLVER,
    GatewayBridge,
    HostAddress,
    HostFacts,
    HostState,
    Ingress,
    Segment,
    TunnelKind,
)

RESOLV_CONF = Path("/etc/resolv.conf")
_DEFAULT_BITS = 3
"""VPNs put 0.0.0.0/1 and 128.0.0.0/1 over the default route, others 2000::/3 in its place: "all the rest" they mean.
Taken for networks they would leave no address to the cluster."""
_NAMESPACES = ("cgroup", "ipc", "mnt", "net", "pid", "uts")


def own_texts() -> tuple[str, str, str]:
    """/etc/resolv.conf, /etc/hosts and the hostname, as they are."""
    return _text(RESOLV_CONF), _text(Path("/etc/hosts")), os.uname().nodename


def link_names() -> frozenset[str]:
    """Of the calling thread's namespace. Raises HostError."""
    try:
        with Netlink() as netlink:
            return frozenset(links.dump(netlink))
    except OSError as error:
        raise HostError(f"cannot read this host's links: {error.strerror}") from error


def observe_host() -> HostFacts:
    """Looks from the calling thread's namespaces. Raises HostError if the kernel does not answer."""
    try:
        with Netlink() as netlink:
            found = {link.ifindex: link for link in links.dump(netlink).values()}
            own = {link.ifindex for link in found.values() if link.name.startswith(BRIDGE_PREFIX)}
            held = tuple(
                HostAddress(interface=found[one.ifindex].name, address=one.interface)
                for one in addresses.dump(netlink)
                if one.scope == addresses.RT_SCOPE_UNIVERSE
                and one.ifindex not in own
                and one.ifindex in found
                and found[one.ifindex].up
                and not one.interface.ip.is_loopback
            )
            routes = {
                route.destination
                for route in addresses.dump_routes(netlink)
                if route.destination.prefixlen > _DEFAULT_BITS
                and not route.unreachable
                and route.ifindex not in own
                and not _is_local(route.destination)
            }
    except OSError as error:
        raise HostError(f"cannot read addresses and routes: {error.strerror or error}") from error
    return HostFacts(
        hostname=socket.gethostname(),
        machine_id=_first_line(Path("/etc/machine-id")),
        addresses=held,
        routes=tuple(sorted(routes, key=lambda one: (one.version, one))),
        nameservers=nameservers(_text(RESOLV_CONF)),
        cpus=float(len(os.sched_getaffinity(0))),
        memory=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        os=os.uname().sysname.lower(),
        arch=os.uname().machine,
        ipv6=_first_line(Path("/proc/sys/net/ipv6/conf/all/disable_ipv6")) == "0",
        ports=ports.listeners(),
        missing=missing(),
    )


def _is_local(prefix: IPNetwork) -> bool:
    return prefix.is_link_local or prefix.is_multicast


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def _first_line(path: Path) -> str:
    return next(iter(_text(path).splitlines()), "").strip()


def nameservers(resolv_conf: str) -> tuple[IPAddress, ...]:
    """In order; what is no address is passed over, as resolv.conf(5) has it."""
    found: list[IPAddress] = []
    for line in resolv_conf.splitlines():
        words = line.split()
        if len(words) >= 2 and words[0] == "nameserver":
            try:
                found.append(ipaddress.ip_address(words[1]))
            except ValueError:
                continue
    return tuple(found)


_complete = False
"""Once nothing was missing nothing will be: the kernel and its modules do not shrink."""


def missing() -> tuple[str, ...]:
    """Features and programs that vxnet needs and this host lacks, each with its cure."""
    global _complete
    if _complete:
        return ()
    if os.geteuid() != 0:
        return ("root's privileges: run it as root",)
    lacks = [*_missing_namespaces(), *_missing_links()]
    if shutil.which("nft") is None:
        lacks.append("the program nft: apt-get install nftables")
    else:
        lacks += _missing_nft()
    if not netns.kernel_has_filesystem("overlay"):
        lacks.append("overlayfs: modprobe overlay, or a kernel with CONFIG_OVERLAY_FS")
    if netns.hidden_from_host():
        lacks.append(
            "a mount namespace that the host sees into: run vxnetd without PrivateMounts=, ProtectSystem= and the like"
        )
    _complete = not lacks
    return tuple(lacks)


def _missing_namespaces() -> list[str]:
    return [
        f"{kind} namespaces: a kernel with CONFIG_NAMESPACES and all kinds of them"
        for kind in _NAMESPACES
        if not Path("/proc/self/ns", kind).exists()
    ]


def _missing_links() -> list[str]:
    """Make one of each kind in a namespace that nobody sees."""
    segment = Segment(vni=1, mtu=1400, local=ipaddress.ip_address("127.0.0.1"))
    pair = Wish(name="veth0", kind="veth", mtu=1400)

    def try_all() -> list[str]:
        netns.unshare(netns.CLONE_NEWNET)
        own = netns.current()
        try:
            requests = {
                "bridge": links.add(bridge_wish(segment)),
                "veth": links.add(pair, peer=Peer("eth0", "02:00:00:00:00:01", own)),
            }
            with Netlink() as netlink:
                failures = netlink.batch(list(requests.values()))
        finally:
            os.close(own)
        return [
            f"{kind} devices ({failures[at][1]}): modprobe {kind}, or a kernel with CONFIG_{kind.upper()}"
            for at, kind in enumerate(requests)
            if at in failures
        ]

    return netns.in_thread(try_all)


class Tunnel(NamedTuple):
    kind: TunnelKind
    reason: str = ""
    """Why it is not the kernel's although that was to be tried."""


def choose_tunnel(wanted: Literal["auto", "kernel", "userspace"]) -> Tunnel:
    """What this host's tunnels shall be. Raises HostError if the host has not what is wanted."""
    refusal = "" if wanted == "userspace" else netns.in_thread(_vxlan_refusal)
    if wanted != "userspace" and not refusal:
        return Tunnel("kernel")
    if wanted == "kernel":
        cure = 'modprobe vxlan, or datapath = "userspace" in vxnet.toml'
        raise HostError(f"the kernel has no vxlan devices ({refusal})", hint=cure)
    if not Path(tap.DEVICE).exists():
        lacks = f"no vxlan devices ({refusal}) and no TAPs" if refusal else "no TAPs"
        raise HostError(f"the kernel has {lacks}: there is no {tap.DEVICE}", hint="modprobe tun")
    return Tunnel("userspace", refusal)


def _vxlan_refusal() -> str:
    """Make one in a namespace that nobody sees; the kernel's words, or nothing."""
    netns.unshare(netns.CLONE_NEWNET)
    segment = Segment(vni=1, mtu=1400, local=ipaddress.ip_address("127.0.0.1"))
    with Netlink() as netlink:
        failures = netlink.batch([links.add(tunnel_wish(segment, 4789))])
    return failures[0][1] if failures else ""


def _missing_nft() -> list[str]:
    """Load the very tables that will be needed."""
    own = tuple(ipaddress.ip_interface(text) for text in ("172.19.0.1/16", "fd00::1/64"))
    bridge = GatewayBridge(addresses=own, mtu=1500)
    foot = Ingress(vni=1, mac="02:00:00:00:00:01", mtu=1450, addresses=own)
    host = hosttable.ruleset(HostState(gateway=bridge, ingress=foot)).text()
    answering = answers.Form("eth0", octet=10, udp=True)
    inside = f"table {nft.TABLE} {{\n{sandbox.body(RESOLVER, True, 1, answering)}}}\n"

    def try_all() -> str:
        netns.unshare(netns.CLONE_NEWNET)
        first = nft.Running(host, None).error()
        first = first or nft.Running(f"delete table {nft.TABLE}\n{inside}", None).error()
        return first or answers.refusal()

    if error := netns.in_thread(try_all):
        needed = (
            "NF_TABLES_INET, NFT_NAT, NFT_NUMGEN, NFT_HASH, NFT_CT, NFT_FIB_INET, NFT_REJECT_INET and NETFILTER_EGRESS"
        )
        return [f"nftables with NAT in inet tables ({error}): a kernel with CONFIG_{needed.replace(', ', ', CONFIG_')}"]
    return []
