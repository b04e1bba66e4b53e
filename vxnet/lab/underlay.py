"""What joins a lab's hosts: a bridge in a namespace of its own, a veth pair to each host's eth1.

::

    namespace vxnet-lab-<lab>       ┌─────────── underlay (bridge) ───────────┐
                                    h1               h2               x1
    namespaces of the hosts        eth1             eth1             eth1
                                192.168.56.11    192.168.56.12    192.168.56.101

Both ends are born where they live, so the machine's own namespace never sees them and all labs may use the same
addresses. To cut a link is to take its port down (the host sees its carrier go); to part a pair is a silent drop
between the two ports.
"""

from __future__ import annotations

import ipaddress
import subprocess
from collections.abc import Iterable
from typing import Final

from vxnet.host.netns import CLONE_NEWNET, set_sysctls
from vxnet.lab import namespaces
from vxnet.lab.boot import SYSTEM_PATH
from vxnet.lab.process import Process
from vxnet.lab.state import LabHost, LabState
from vxnet.model.address import IPInterface
from vxnet.model.errors import HostError

IPV4: Final = ipaddress.ip_network("192.168.56.0/24")
"""The host-only network that Vagrant's VirtualBox machines have."""
IPV6: Final = ipaddress.ip_network("fd56::/64")
FIRST_HOST: Final = 11
FIRST_OUTSIDE: Final = 101
MOST_HOSTS: Final = FIRST_OUTSIDE - FIRST_HOST
MOST_OUTSIDE: Final = 254 - FIRST_OUTSIDE + 1

_BRIDGE: Final = "underlay"
_NIC: Final = "eth1"


def interfaces(number: int, *, ipv6: bool) -> tuple[IPInterface, ...]:
    """Addresses of the machine with this number in the subnet: 192.168.56.11 and fd56::11 for 11."""
    found: list[IPInterface] = [ipaddress.ip_interface(f"{IPV4[number]}/{IPV4.prefixlen}")]
    if ipv6:
        found.append(ipaddress.ip_interface(f"{IPV6.network_address}{number}/{IPV6.prefixlen}"))
    return tuple(found)


def create(lab: LabState) -> None:
    """The bridge, without ports."""
    assert lab.underlay

    # The bridge is a switch, not a machine: it has no address, and no iptables rules meet its frames.
    settings = {f"bridge/bridge-nf-call-{tables}": "0" for tables in ("iptables", "ip6tables", "arptables")}
    settings["ipv6/conf/default/disable_ipv6"] = "1"
    namespaces.in_host(lab.underlay, "underlay", lambda: set_sysctls(settings), CLONE_NEWNET)
    options = "forward_delay 0 mcast_snooping 0"
    _ip(lab.underlay, [f"link add {_BRIDGE} mtu {lab.mtu} type bridge {options}", f"link set {_BRIDGE} up"])


def plug_in(lab: LabState, hosts: Iterable[LabHost]) -> None:
    """Gives each host its eth1, still down and without addresses, and its port of the bridge."""
    lines = []
    for host in hosts:
        assert host.init
        # The MAC outlives `kill` and `start`, as a NIC's does.
        mac = "52:54:00:" + ":".join(f"{octet:02x}" for octet in host.address.packed[-3:])
        peer = f"name {_NIC} mtu {lab.mtu} address {mac} netns {host.init.pid}"
        lines += [
            f"link add {host.name} mtu {lab.mtu} type veth peer {peer}",
            f"link set {host.name} master {_BRIDGE} {'down' if host.name in lab.unplugged else 'up'}",
        ]
    _ip(lab.underlay, lines)


def configure(host: LabHost) -> None:
    """What the host's own network set-up would do. No default route: a lab has no outside."""
    # Addresses are good at once: nobody waits here for what duplicate address detection could find.
    settings = {f"ipv6/conf/{_NIC}/accept_dad": "0"}
    namespaces.in_host(host.init, host.name, lambda: set_sysctls(settings), CLONE_NEWNET)
    addresses = [
        f"addr add {address} dev {_NIC}{' nodad' if address.version == 6 else ''}" for address in host.interfaces
    ]
    _ip(host.init, ["link set lo up", f"link set {_NIC} up", *addresses])


def unplug(lab: LabState, name: str) -> None:
    """Takes away the port of a host that is dead. The kernel would, too, but in its own time."""
    _ip(lab.underlay, [f"link del {name}"], force=True)


def apply_cuts(lab: LabState) -> None:
    """Makes the links and pairs as ``lab`` says they are, whatever they were."""
    running = [host for host in lab.hosts if host.init and host.init.alive]
    _ip(lab.underlay, [f"link set {host.name} {'down' if host.name in lab.unplugged else 'up'}" for host in running])
    pairs = [f'"{a}" . "{b}", "{b}" . "{a}"' for a, b in lab.parted]
    elements = f"elements = {{ {', '.join(pairs)} }}" if pairs else ""
    _run(
        lab.underlay,
        ["nft", "-f", "-"],
        f"""
        add table bridge vxnet_lab
        delete table bridge vxnet_lab
        table bridge vxnet_lab {{
            set parted {{
                type ifname . ifname
                {elements}
            }}
            chain forward {{
                type filter hook forward priority filter; policy accept;
                iifname . oifname @parted drop
            }}
        }}
        """,
    )


def _ip(init: Process | None, lines: list[str], *, force: bool = False) -> None:
    """One ``ip -batch`` in a namespace. ``force``: go on after a line that fails, and call it no failure."""
    if lines:
        _run(init, ["ip", *(["-force"] if force else []), "-batch", "-"], "\n".join(lines) + "\n", check=not force)


def _run(init: Process | None, argv: list[str], script: str, *, check: bool = True) -> None:
    def run() -> subprocess.CompletedProcess[str]:
        env = {"PATH": SYSTEM_PATH}
        return subprocess.run(argv, input=script, capture_output=True, text=True, env=env, check=False)

    # Of the host only its network: programs and pids are this machine's.
    done = namespaces.in_host(init, "underlay", run, CLONE_NEWNET)
    if check and done.returncode != 0:
        raise HostError(f"{argv[0]} refused a part of the lab's underlay: {done.stderr.strip()}")
