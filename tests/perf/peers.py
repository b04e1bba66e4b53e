"""Other people's tunnels in user space between two bare machines of a lab, each at the best that it was brought to.

::

    x1  netns hc: eth0 ── program ═══ eth1 ═══ underlay ═══ eth1 ═══ program ── eth0 :netns hc  x2

The programs are those that are installed, or Debian's, unpacked. All that they write is on the machines of the lab, and
they end with it. What serves as ``eth0`` of the container differs: the end of a veth pair that Open vSwitch reads, the
TAP of tinc, the TUN of nebula, which is no Ethernet. None has a bridge of the kernel's on the way, as vxnet's have.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from tests.others import NotToBeHadError, unpacked, until
from tests.perf.measure import sh
from tests.perf.throughput import Place
from vxnet.lab import Lab

ETHERNET = 14
CONTAINER = ("nsenter", "--net=/run/netns/hc")
_FAR = "10.77.0.2"


class Side(NamedTuple):
    """One of the two machines, and how it finds the other."""

    lab: Lab
    host: str
    number: int
    """1 or 2: the last octet of its container's address."""
    other: int
    own: str
    """Its address on the underlay."""
    peer: str
    """The other's."""
    root: Path
    """Where the packages are unpacked."""

    def sh(self, script: str) -> str:
        """Braces in the script hold names of the fields above."""
        libraries = ":".join(map(str, (self.root / "usr/lib").glob("*-linux-gnu")))
        places = ":".join(str(self.root / "usr" / name) for name in ("sbin", "bin", "lib/openvswitch-switch"))
        environment = f"export PATH={places}:$PATH LD_LIBRARY_PATH={libraries}\n"
        return sh(self.lab, self.host, environment + script.format(**self._asdict()))

    def file(self, path: str) -> Path:
        """What is ``path`` there."""
        return self.lab[self.host].root / path.lstrip("/")

    def move_in(self, device: str, sign: str) -> None:
        """Makes it the container's once ``sign``, a command, prints something. Whoever has it open goes on with it."""
        until(lambda: self.sh(f"{sign} || true"), f"`{sign}` on {self.host}")
        self.sh(f"ip link set {device} netns hc name eth0")


class Peer(NamedTuple):
    program: str
    packages: tuple[str, ...]
    """Of Debian."""
    mtu: int
    """Of eth0: what an underlay of 1500 octets carries in one piece."""
    start: Callable[[Sequence[Side]], None]
    """Leaves an ``eth0`` in the namespace ``hc`` of both, which may be down and is without addresses."""
    settle: Callable[[Side], None] = lambda side: None
    """Waits, once there is a path, until that is as good as it gets."""


def found(peer: Peer) -> Path:
    """The directory whose ``usr`` has its programs; raises NotToBeHadError."""
    if shutil.which(peer.program, path=f"{os.environ['PATH']}:/usr/sbin"):
        return Path("/")
    try:
        return unpacked(*peer.packages)
    except NotToBeHadError as error:
        hint = f"`apt-get install {' '.join(peer.packages)}`, or leave it out with --only"
        raise NotToBeHadError(f"there is no {peer.program}: {hint} ({error})") from None


def make_by(peer: Peer, lab: Lab, near: str, far: str) -> Place:
    """Raises NotToBeHadError."""
    root = found(peer)
    own, other = str(lab[near].address), str(lab[far].address)
    sides = (Side(lab, near, 1, 2, own, other, root), Side(lab, far, 2, 1, other, own, root))
    for side in sides:
        side.sh("ip netns add hc; ip -n hc link set lo up")
    peer.start(sides)
    for side in sides:
        side.sh("ip -n hc address add 10.77.0.{number}/24 dev eth0")
        side.sh(f"ip -n hc link set eth0 mtu {peer.mtu} up")
    ping = [*CONTAINER, "ping", "-n", "-c", "1", "-W", "1", _FAR]
    until(lambda: lab.run(near, ping).returncode == 0, f"{peer.program} carries a ping from {near} to {far}")
    for side in sides:
        peer.settle(side)
    return Place(near, CONTAINER, _FAR)


# Open vSwitch with the data path "netdev", which is in ovs-vswitchd itself. Its tunnels leave by a bridge that has the
# underlay's card as a port, and that card's address (docs.openvswitch.org, "Connecting VMs Using Tunnels (Userspace)").

_OVS = """
export OVS_RUNDIR=/run/ovs OVS_LOGDIR=/run/ovs OVS_DBDIR=/run/ovs
mkdir /run/ovs
ovsdb-tool create /run/ovs/conf.db {root}/usr/share/openvswitch/vswitch.ovsschema
ovsdb-server /run/ovs/conf.db --remote=punix:/run/ovs/db.sock --pidfile --log-file --detach 2>/dev/null
ovs-vsctl --no-wait init SETTINGS
ovs-vswitchd unix:/run/ovs/db.sock --pidfile --log-file --detach 2>/dev/null
ovs-vsctl add-br underlay -- set bridge underlay datapath_type=netdev \\
    -- add-port underlay eth1 -- set interface eth1 OPTIONS
ip address flush dev eth1
ip address add {own}/24 dev underlay
ip link set underlay up
ip link add port mtu 1450 type veth peer name eth0 netns hc mtu 1450 address 02:77:00:00:00:0{number}
ip link set port up
# Its tunnels take no frame whose checksum or segmentation is left to a card.
ip netns exec hc ethtool -K eth0 tx off >/dev/null
ovs-vsctl add-br overlay -- set bridge overlay datapath_type=netdev \\
    -- add-port overlay port -- set interface port OPTIONS \\
    -- add-port overlay tunnel -- set interface tunnel type=vxlan options:remote_ip={peer} options:key=77
"""


def _ovs(options: str, *settings: str) -> Peer:
    """``options``: of each port; ``settings``: other_config of the whole."""
    chosen = "".join(f" -- set Open_vSwitch . other_config:{setting}" for setting in settings)

    def start(sides: Sequence[Side]) -> None:
        for side in sides:
            side.sh(_OVS.replace("OPTIONS", options).replace("SETTINGS", chosen))

    return Peer("ovs-vswitchd", ("openvswitch-switch", "openvswitch-common"), 1450, start)


# nebula. Its TUN goes on working when it is moved to another namespace, without its addresses.

_NEBULA = """
cd /run/nebula
cat >config.yml <<end
pki: {{ca: ca.crt, cert: {number}.crt, key: {number}.key}}
static_host_map: {{10.77.0.{other}: ["{peer}:4242"]}}
lighthouse: {{am_lighthouse: false}}
listen: {{host: {own}, port: 4242, read_buffer: 16777216, write_buffer: 16777216}}
routines: ROUTINES
cipher: aes
tun: {{dev: nebula, mtu: 1440, tx_queue: 5000}}
firewall:
  outbound: [{{port: any, proto: any, host: any}}]
  inbound: [{{port: any, proto: any, host: any}}]
end
setsid nebula -config config.yml >log 2>&1 </dev/null &
"""


def _nebula(routines: int) -> Peer:
    def start(sides: Sequence[Side]) -> None:
        sides[0].sh("mkdir /run/nebula; cd /run/nebula; nebula-cert ca -name bench")
        for side in sides:
            sides[0].sh(f"cd /run/nebula; nebula-cert sign -name {side.number} -ip 10.77.0.{side.number}/24")
        sides[1].sh("mkdir /run/nebula")
        for name in ("ca.crt", "2.crt", "2.key"):
            sides[1].file(f"/run/nebula/{name}").write_text(sides[0].file(f"/run/nebula/{name}").read_text())
        for side in sides:
            side.sh(_NEBULA.replace("ROUTINES", str(routines)))
        for side in sides:
            # The last that it does to its TUN is a route with an MTU.
            side.move_in("nebula", "ip route show dev nebula 2>/dev/null | grep mtu")

    return Peer("nebula", ("nebula",), 1440, start)


# tinc as a switch, and with nothing of its encryption: it does then what VXLAN does.

_TINC = """
mkdir -p /run/tinc/hosts
cd /run/tinc
cat >tinc.conf <<end
Name = host{number}
ConnectTo = host{other}
Mode = switch
DeviceType = tap
Interface = tinc
UDPRcvBuf = 16777216
UDPSndBuf = 16777216
end
cat >hosts/host{number} <<end
Address = {own}
Cipher = none
Digest = none
MACLength = 0
end
tincd -c . -K 2048 </dev/null 2>/dev/null
"""


def _start_tinc(sides: Sequence[Side]) -> None:
    for side in sides:
        side.sh(_TINC)
    for side, other in zip(sides, reversed(sides), strict=True):
        name = f"/run/tinc/hosts/host{other.number}"
        side.file(name).write_text(other.file(name).read_text())
    for side in sides:
        side.sh("tincd -c /run/tinc --pidfile=/run/tinc/pid --logfile=/run/tinc/log")
        side.move_in("tinc", "ip -o link show dev tinc 2>/dev/null")


def _settle_tinc(side: Side) -> None:
    """Until it knows how large a packet the underlay carries, it sends them all by TCP."""

    def known() -> bool:
        side.sh("kill -USR2 $(cat /run/tinc/pid)")
        found = re.findall(r"pmtu \d+ \(min (\d+)", side.file("/run/tinc/log").read_text())
        return any(int(least) >= 1450 + ETHERNET for least in found)

    until(known, f"tinc on {side.host} finds the path's MTU")


# The first of each is the one that came out best; the others are there to see by how much.
PEERS = {
    "ovs": _ovs("type=afxdp-nonpmd options:xdp-mode=native"),
    "ovs-pmd": _ovs("type=afxdp options:xdp-mode=native", "pmd-cpu-mask=3", "pmd-maxsleep=50"),
    "ovs-packet": _ovs("type=system", "userspace-tso-enable=true"),
    "nebula": _nebula(1),
    "nebula-2": _nebula(2),
    "tinc": Peer("tincd", ("tinc",), 1450, _start_tinc, _settle_tinc),
}
