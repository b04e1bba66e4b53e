"""Virtual IPs on a real kernel: one client and its servers on one network.

::

    c1 (client, 10.0.16.2) ── br65536 ── c2, c3 (servers, .3 and .4)        VIP 10.0.16.100, fd00:16::64
"""

from __future__ import annotations

import errno
import ipaddress
import os
import select
import shutil
import socket
import struct
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from msgspec.structs import replace

from tests.host.rig import Container, Machine, addresses, errors, state, wait_until
from vxnet.host import conntrack, elements, nft, vips
from vxnet.host.netlink import Netlink, attributes
from vxnet.model.address import IPAddress
from vxnet.model.host import STICKY_BUCKETS, VIP_MARK, Change, HostState, VirtualService

pytestmark = pytest.mark.host

V4, V6 = addresses("10.0.16.100", "fd00:16::64")
TIMEOUT_S = 3.0


class Site:
    """The machine, and the state that it is in."""

    def __init__(self) -> None:
        self.machine = Machine()
        self.client, *self.servers = self.containers = [Container(number) for number in (2, 3, 4)]
        (local,) = addresses("192.168.9.1")
        self.state = state(local, [one.sandbox() for one in self.containers], [])
        self._open: list[socket.socket] = []
        self.put()

    def put(self, *services: VirtualService, look: bool = False) -> list[Change]:
        """These services from now on. ``look``: into all namespaces, as on the timer."""
        segment = replace(self.state.segments[0], services=services)
        self.state = replace(self.state, segments=(segment,))
        first = not self.machine.kernel._tables._known
        changes = self.machine.reconcile(self.state, None if look or first else ())
        assert errors(changes) == []
        return changes

    def put_backends(
        self, *backends: Container, draining: Sequence[Container] = (), look: bool = False
    ) -> list[Change]:
        """Of the VIP, in both families."""
        return self.put(
            *(
                VirtualService(address=vip, backends=own(vip, backends), draining=own(vip, draining))
                for vip in (V4, V6)
            ),
            look=look,
        )

    def keep(self, opened: socket.socket) -> socket.socket:
        opened.settimeout(TIMEOUT_S)
        self._open.append(opened)
        return opened

    def listen(self, place: Container, family: socket.AddressFamily, port: int) -> socket.socket:
        host = "0.0.0.0" if family == socket.AF_INET else "::"
        return self.keep(place.do(lambda: socket.create_server((host, port), family=family)))

    def udp(self, place: Container, family: socket.AddressFamily, port: int = 0) -> socket.socket:
        def bound() -> socket.socket:
            made = socket.socket(family, socket.SOCK_DGRAM)
            if port:
                made.bind(("", port))
            return made

        return self.keep(place.do(bound))

    def connect(self, place: Container, address: IPAddress, port: int) -> socket.socket:
        return self.keep(place.do(lambda: socket.create_connection((str(address), port), timeout=TIMEOUT_S)))

    def accept(self, listening: Sequence[socket.socket]) -> tuple[int, socket.socket, str]:
        """Which of them got a connection, its end of it, and the address it is from."""
        (ready, *_), _, _ = select.select(listening, [], [], TIMEOUT_S)
        connection, peer = ready.accept()
        return listening.index(ready), self.keep(connection), peer[0]

    def close(self) -> None:
        for one in self._open:
            one.close()
        self.machine.close()
        for container in self.containers:
            container.close()


def own(vip: IPAddress, containers: Sequence[Container]) -> tuple[IPAddress, ...]:
    return tuple(
        ipaddress.ip_address(one.ip4 if vip.version == 4 else f"fd00:16::{one.number:x}") for one in containers
    )


def family_of(vip: IPAddress) -> socket.AddressFamily:
    return socket.AF_INET if vip.version == 4 else socket.AF_INET6


@pytest.fixture
def site() -> Iterator[Site]:
    site = Site()
    yield site
    site.close()


both_families = pytest.mark.parametrize("vip", [V4, V6], ids=["IPv4", "IPv6"])


@both_families
def test_any_port_goes_to_all_backends_and_they_see_the_client(site: Site, vip: IPAddress) -> None:
    site.put_backends(*site.servers)
    for port in (80, 8080):
        listening = [site.listen(one, family_of(vip), port) for one in site.servers]
        chosen = set()
        for _ in range(20):
            ours = site.connect(site.client, vip, port)
            number, theirs, peer = site.accept(listening)
            assert peer == str(own(vip, [site.client])[0])
            theirs.sendall(b"hello")
            assert ours.recv(5) == b"hello"
            chosen.add(number)
        assert chosen == {0, 1}


@both_families
def test_udp_and_ping(site: Site, vip: IPAddress) -> None:
    site.put_backends(*site.servers)
    servers = [site.udp(one, family_of(vip), 5000) for one in site.servers]
    heard = set()
    for _ in range(20):
        ours = site.udp(site.client, family_of(vip))
        ours.connect((str(vip), 5000))
        ours.send(b"question")
        (ready, *_), _, _ = select.select(servers, [], [], TIMEOUT_S)
        data, peer = ready.recvfrom(100)
        assert peer[0] == str(own(vip, [site.client])[0])
        ready.sendto(data, peer)
        assert ours.recv(100) == b"question"
        heard.add(servers.index(ready))
    assert heard == {0, 1}
    assert site.client.reaches(str(vip))


@both_families
def test_a_task_reaches_itself(site: Site, vip: IPAddress) -> None:
    site.put_backends(site.client)
    listening = [site.listen(site.client, family_of(vip), 80)]
    ours = site.connect(site.client, vip, 80)
    _, theirs, _ = site.accept(listening)
    ours.sendall(b"hello")
    assert theirs.recv(5) == b"hello"
    assert site.client.reaches(str(vip))


@both_families
def test_without_backends_connections_are_refused(site: Site, vip: IPAddress) -> None:
    site.put_backends()
    begun = time.monotonic()
    with pytest.raises(ConnectionRefusedError):
        site.connect(site.client, vip, 80)
    udp = site.udp(site.client, family_of(vip))
    udp.connect((str(vip), 80))
    with pytest.raises(PermissionError):
        udp.send(b"x")
    with pytest.raises(ConnectionRefusedError):  # ICMP's word
        udp.recv(1)
    assert not site.client.reaches(str(vip))
    assert time.monotonic() - begun < TIMEOUT_S, "refused, not waited for"


@both_families
def test_draining_keeps_connections_and_gets_no_new_ones(site: Site, vip: IPAddress) -> None:
    family = family_of(vip)
    first, second = site.servers
    listening = [site.listen(one, family, 80) for one in site.servers]
    udp_servers = [site.udp(one, family, 5000) for one in site.servers]
    site.put_backends(first)
    old = site.connect(site.client, vip, 80)
    _, theirs, _ = site.accept(listening)
    flow = site.udp(site.client, family)
    flow.connect((str(vip), 5000))
    flow.send(b"1")
    assert udp_servers[0].recv(10) == b"1"

    site.put_backends(second, draining=[first])
    old.sendall(b"still here")
    assert theirs.recv(100) == b"still here"
    flow.send(b"2")
    assert udp_servers[0].recv(10) == b"2"
    for _ in range(10):
        site.connect(site.client, vip, 80)
        assert site.accept(listening)[0] == 1

    site.put_backends(second)
    old.sendall(b"and here")
    assert theirs.recv(100) == b"and here"
    flow.send(b"3")
    assert udp_servers[1].recv(10) == b"3", "a UDP flow does not stay with what is gone"


@both_families
def test_udp_flows_do_not_stick_when_all_backends_go_and_come_back(site: Site, vip: IPAddress) -> None:
    family = family_of(vip)
    first, second = site.servers
    servers = [site.udp(one, family, 5000) for one in site.servers]
    flow = site.udp(site.client, family)
    flow.connect((str(vip), 5000))
    site.put_backends(first)
    flow.send(b"1")
    assert servers[0].recv(10) == b"1"
    changes = site.put_backends()
    assert any("udp flow" in change.object for change in changes)
    with pytest.raises(PermissionError):
        flow.send(b"2")
    assert flow.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.ECONNREFUSED
    site.put_backends(second)
    flow.send(b"3")
    assert servers[1].recv(10) == b"3"
    # A service that is gone altogether takes its flows with it.
    site.put()
    assert flows(site.client) == []


def flows(place: Container) -> list[tuple[str, str, int]]:
    """Of connections by way of virtual IPs: VIP, backend and the seconds that they may be idle."""
    with Netlink(place.fd, elements.NETLINK_NETFILTER) as netlink:
        mark = struct.pack("!I", VIP_MARK)
        asked = conntrack._head(socket.AF_UNSPEC) + elements.attribute(conntrack.CTA_MARK, mark)
        asked += elements.attribute(conntrack.CTA_MARK_MASK, mark)
        found = []
        for body in netlink.dump(conntrack.IPCTNL_MSG_CT_GET, asked):
            parts = attributes(body, 4)
            vip = conntrack._address(parts[conntrack.CTA_TUPLE_ORIG], 2, 4)
            backend = conntrack._address(parts[conntrack.CTA_TUPLE_REPLY], 1, 3)
            found.append((str(vip), str(backend), struct.unpack("!I", parts[7])[0]))
        return found


def test_an_idle_connection_lives_for_twenty_minutes(site: Site) -> None:
    site.put_backends(site.servers[0])
    listening = [site.listen(site.servers[0], socket.AF_INET, 80)]
    ours = site.connect(site.client, V4, 80)
    _, theirs, _ = site.accept(listening)
    ours.sendall(b"x")
    theirs.recv(1)
    ((vip, backend, left_s),) = flows(site.client)
    assert (vip, backend) == ("10.0.16.100", "10.0.16.3")
    assert left_s > 20 * 60


def test_who_was_not_answered_chooses_anew(site: Site) -> None:
    """The second first packet, or the third, goes to a backend that is there."""
    dead, alive = site.servers[0], site.servers[1]
    listening = [site.listen(alive, socket.AF_INET, 80)]
    site.put_backends(dead)
    silence = "add table inet t; add chain inet t c { type filter hook input priority -300; }; add rule inet t c drop"
    dead.do(lambda: subprocess.run(["nft", silence], check=True))
    asking = site.client.do(lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM))
    site.keep(asking).setblocking(False)
    assert asking.connect_ex((str(V4), 80)) == errno.EINPROGRESS
    site.put_backends(alive)
    assert select.select(listening, [], [], 20)[0], "not even the fourth, after 7 s"
    assert site.accept(listening)[2] == site.client.ip4


def test_the_clients_address_alone_chooses(site: Site) -> None:
    def sticky(first: Container, second: Container) -> VirtualService:
        buckets = own(V4, [first, second]) * (STICKY_BUCKETS // 2)
        return VirtualService(address=V4, backends=buckets, sticky=True)

    listening = [site.listen(one, socket.AF_INET, 80) for one in site.servers]
    site.put(sticky(*site.servers))
    chosen = []
    for _ in range(10):
        site.connect(site.client, V4, 80)
        chosen.append(site.accept(listening)[0])
    assert len(set(chosen)) == 1
    site.put(sticky(*reversed(site.servers)))
    site.connect(site.client, V4, 80)
    assert site.accept(listening)[0] != chosen[0], "the other of the two stands in its bucket now"


def test_more_backends_than_chains(site: Site) -> None:
    many = tuple(ipaddress.ip_address("10.0.16.3") + number % 2 for number in range(vips.CHAINS_MIN * 2))
    site.put(VirtualService(address=V4, backends=many))
    listening = [site.listen(one, socket.AF_INET, 80) for one in site.servers]
    site.connect(site.client, V4, 80)
    site.accept(listening)


def test_rules_that_nft_has_loaded_once_are_loaded_without_it(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """As nft would have done it: its own list is the same, and says nothing of numbers that the kernel gave."""
    site.put_backends(*site.servers)
    listed = site.client.run("nft", "list", "table", "inet", "vxnet")
    monkeypatch.setattr(nft, "Running", None)  # no process is started
    site.client.run("nft", "flush", "ruleset")
    assert [change.verb for change in site.put_backends(*site.servers, look=True)] == ["add"]
    assert site.client.run("nft", "list", "table", "inet", "vxnet") == listed
    site.client.run("nft", "flush", "chain", "inet", "vxnet", "lb1")
    assert [change.verb for change in site.put_backends(*site.servers, look=True)] == ["replace"]
    assert site.client.run("nft", "list", "table", "inet", "vxnet") == listed
    site.client.run("nft", "delete", "table", "inet", "vxnet")
    site.machine.stop()
    site.machine.start()  # the next daemon learns it from the first container that has it
    site.state = replace(site.state, sandboxes=(*site.state.sandboxes[1:], site.state.sandboxes[0]))
    monkeypatch.undo()  # the host's own table
    assert [change.verb for change in site.machine.reconcile(site.state)] == ["add"]
    assert site.client.run("nft", "list", "table", "inet", "vxnet") == listed


def test_a_kernel_that_does_not_take_what_it_told(site: Site) -> None:
    """Then nft does it, now and later."""
    site.put_backends(*site.servers)
    listed = site.client.run("nft", "list", "table", "inet", "vxnet")
    stencils = site.machine.kernel._tables._stencils
    for body, made in stencils.items():
        stencils[body] = made and (*made[:3], made[1])  # the first map twice: EEXIST
    site.client.run("nft", "flush", "ruleset")
    for again in (["add"], []):
        assert [change.verb for change in site.put_backends(*site.servers, look=True)] == again
    assert site.client.run("nft", "list", "table", "inet", "vxnet") == listed
    assert not any(stencils.values())


def test_a_change_of_backends_is_one_transaction_of_a_few_elements(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.put_backends(*site.servers)
    monkeypatch.setattr(nft, "Running", None)  # no process is started
    changes = site.put_backends(site.servers[0])
    assert {change.sandbox for change in changes} == {one.id for one in site.containers}
    assert all(" set vip4 and vip6 and end4 and end6 in " in change.object for change in changes)
    listed = site.client.run("nft", "list", "map", "inet", "vxnet", "end4")
    assert "10.0.16.100 . 0 : 10.0.16.3 }" in listed
    assert site.put_backends(site.servers[0]) == []


@pytest.mark.parametrize(
    "damage",
    [
        "delete element inet vxnet vip4 {{ {v4} }}",
        "flush map inet vxnet end6",
        "add element inet vxnet vip4 {{ 10.0.16.99 : goto none }}",
        "delete element inet vxnet end4 {{ {v4} . 0 }}; add element inet vxnet end4 {{ {v4} . 0 : 10.0.16.66 }}",
        "add element inet vxnet vip4 {{ 10.0.16.99 : drop }}",
        "delete table inet vxnet",
        "flush chain inet vxnet lb2",
        "flush ruleset",
    ],
)
def test_damage_is_seen_and_mended(site: Site, damage: str) -> None:
    site.put_backends(*site.servers)
    whole = site.client.run("nft", "-s", "list", "table", "inet", "vxnet")
    site.machine.kernel.events.drain()
    site.client.run("nft", damage.format(v4=V4))
    looks = []
    assert wait_until(lambda: bool(looks.append(site.machine.kernel.events.drain()) or looks[-1]))
    assert site.client.id in looks[-1].sandboxes
    changes = site.machine.reconcile(site.state, looks[-1].sandboxes)
    assert [change.error for change in changes] == [""]
    assert site.client.run("nft", "-s", "list", "table", "inet", "vxnet") == whole
    assert site.machine.reconcile(site.state) == []


def test_own_changes_are_no_reason_to_look(site: Site) -> None:
    drain: Callable[[], object] = site.machine.kernel.events.drain

    def unnoticed(count: int) -> bool:
        while drain():
            time.sleep(0.01)
        site.put_backends(*site.servers[:count])
        return drain() is None

    site.put_backends(*site.servers)
    # The kernel tells of new links for a second or so, whatever else is done.
    assert any(unnoticed(1 + number % 2) for number in range(20))


def test_restart_adopts_what_is_there(site: Site) -> None:
    site.put_backends(*site.servers)
    site.machine.stop()
    site.machine.start()
    assert site.machine.reconcile(site.state) == []
    settled: HostState = site.state
    assert site.machine.reconcile(settled) == []


def test_rules_are_the_same_without_names_of_protocols(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where netbase is not installed there is no /etc/protocols, and nft prints numbers."""
    site.put_backends(*site.servers)
    with Netlink(site.client.fd, elements.NETLINK_NETFILTER) as netlink:
        seen = nft.read(site.client.fd, netlink)
        assert seen is not None and "l4proto udp" in seen.body
        program = tmp_path / "nft"
        hidden = 'test ! -e /etc/protocols || mount --bind /dev/null /etc/protocols; exec "$0" "$@"'
        program.write_text(f"#!/bin/sh\nexec unshare -m sh -ec '{hidden}' {shutil.which('nft')} \"$@\"\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
        assert "l4proto 17" in site.client.sh("nft list table inet vxnet")
        assert nft.read(site.client.fd, netlink) == seen
