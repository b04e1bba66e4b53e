"""The kernel of this host made to be what a :class:`vxnet.model.host.HostState` says.

    reconcile(state):   namespace → segments, vxnet_gw, nft → sandboxes → rows → what is too much goes

Each step looks at what is there, and does the difference; nothing is remembered that could be looked at, with two
exceptions for speed, both of which a full reconcile does without: the rows that a segment was seen to carry
(:mod:`vxnet.host.rows`), and the generation of each nft table. What is vxnet's own is told by names and by the alias
``vxnet:…``; everything else is not touched.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from types import TracebackType

from msgspec.structs import asdict, replace

from vxnet.host import (
    addresses,
    answers,
    datapath,
    elements,
    gateway,
    hooks,
    hosttable,
    links,
    mesh,
    mesh_flows,
    netns,
    nft,
    passage,
    sandbox,
)
from vxnet.host.datapath import Datapath, tunnel_name
from vxnet.host.events import Events
from vxnet.host.links import Link, Side
from vxnet.host.netlink import Closer, Netlink
from vxnet.host.rows import BridgeRows, SegmentRows
from vxnet.host.sandbox import Entered, Sides
from vxnet.host.tunnels import Options, Tunnels
from vxnet.host.vips import Services
from vxnet.model.address import IPAddress
from vxnet.model.errors import HostError
from vxnet.model.host import DATAPATH_NAMESPACE, Change, HostPort, HostState, Ingress, Segment, host_bridges
from vxnet.model.mesh import MeshTraffic

ORPHAN_GRACE_S = 3.0
"""How long the port of a container that is no more may stay. It dies with the container's namespace, at no cost to
anybody; deleting it makes the kernel wait 17 ms under the lock that every other change needs too."""

DEFAULT_MTU = 1500


class Kernel:
    """Made in a thread of the host's namespace; used from any thread, by one at a time. It blocks."""

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        tunnels: Options | None = None,
        *,
        keep_out: bool = False,
        hooks_file: Path = hooks.FILE,
    ) -> None:
        """``tunnels``: how those in user space are to run; ``keep_out``: of other people's nftables. Raises HostError
        where netlink is out of reach."""
        self._passage = passage.Passage(keep_out=keep_out)
        self._hooks_file = hooks_file
        try:
            self._namespace = netns.current()
            self._netlink = Netlink(self._namespace)
            self._nft = Netlink(self._namespace, elements.NETLINK_NETFILTER)
        except OSError as error:
            raise HostError(f"cannot speak netlink: {error.strerror}") from error
        self._clock = clock
        self._datapath = Datapath(self._netlink, Tunnels(tunnels or Options()))
        self.events = Events()
        """Heard from the first reconcile on. Drained by whoever calls reconcile, from any thread."""
        self._reader = links.Reader()
        """Of the host's namespace."""
        self._tables = nft.Tables()
        self._services = Services(())
        self._filled = mesh.Filled()
        self._forgetter = mesh_flows.Forgetter(self._namespace)
        self._ingress: Ingress | None = None
        """As its flows were last looked through."""
        self._ports: tuple[HostPort, ...] = ()
        """Likewise."""
        self._closer = Closer()
        self._rulesets = sandbox.Rulesets()
        self._rows = SegmentRows(self._datapath, self.events.expect)
        self._bridges = BridgeRows(self._netlink)
        self._orphans: dict[str, float] = {}

    def __enter__(self) -> Kernel:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Let go of everything and leave it as it is."""
        self._closer.wait()
        self._forgetter.wait()
        self.events.close()
        self._datapath.tunnels.close()
        self._datapath.close()
        self._nft.close()
        self._netlink.close()
        os.close(self._namespace)

    def reconcile(
        self, state: HostState, sandboxes: Collection[str] | None = None, *, rows: bool = False
    ) -> list[Change]:
        """Make the kernel what ``state`` says; what was done or tried, in order.

        ``sandboxes``: ids of those to look at, and the rows are taken to be as last seen unless ``rows``; None: look at
        everything. The shared part (segments, vxnet_gw, the host's table) is looked at each time. The empty state is a
        host without vxnet: :meth:`teardown`. Single failures stand in :attr:`Change.error` and are tried again at the
        next call. Raises HostError if nothing can be done at all.
        """
        try:
            if _is_empty(state):
                return self.teardown()
            return self._reconcile(state, sandboxes, rows)
        except OSError as error:
            self._rows.forget()
            self._bridges.forget()
            raise HostError(f"the kernel does not answer: {error.strerror or error}") from error

    def _reconcile(self, state: HostState, sandboxes: Collection[str] | None, rows: bool) -> list[Change]:
        changes = self._datapath.ensure()
        # Before the first look, so that nothing falls between the two.
        if self.events.follow(self._datapath.netlink, self._datapath.namespace, self._namespace):
            sandboxes = None
        changes += self._beside_others(state)
        pending = self._tables.begin(
            "host", self._namespace, self._nft, hosttable.ruleset(state, self._filled), "the host"
        )
        try:
            segments, found, made = self._datapath.ensure_segments(state.segments, state.data_port)
            changes += segments
            taps = {found[tunnel_name(one.vni)].ifindex: one.vni for one in state.segments if _is_tap(one, found)}
            if taps:
                changes += self._datapath.tunnels.admit(_senders(state))
            bridges, host_found = gateway.ensure(self._netlink, self._reader, host_bridges(state))
            changes += bridges
            foot = mesh.ensure(
                Side(self._netlink, self._namespace, host_found),
                Side(self._datapath.netlink, self._datapath.namespace, found),
                state.ingress,
                look=sandboxes is None,
            )
            changes += foot
            if sandboxes is None or bridges or foot:
                changes += gateway.forward(self._namespace, host_bridges(state), mesh.versions(state.ingress))
        finally:
            if pending is not None:
                changes.append(self._tables.finish(pending))
        sides = Sides(
            Side(self._datapath.netlink, self._datapath.namespace, found),
            Side(self._netlink, self._namespace, host_found),
            {bridge.name: bridge for bridge in host_bridges(state)},
        )
        chosen = self._with_lost_ports(state, sandboxes, sides)
        changes += self._sandboxes(state, chosen, sides)
        complete = rows or sandboxes is None
        changes += self._rows.ensure(state, found, made, taps, complete=complete)
        # With a bridge's last address its neighbours go, too.
        changes += self._bridges.ensure(state, host_found, complete=complete or bool(bridges))
        changes += self._sweep(state, sides)
        owners = {one.port.encode(): box.id for box in state.sandboxes for one in box.interfaces}
        self.events.know(owners, {box.id for box in state.sandboxes}, self._bridges.indexes)
        self._forget_flows(state, look=sandboxes is None)
        return changes

    def _forget_flows(self, state: HostState, *, look: bool) -> None:
        """Through published ports, to backends that are no more, or that went past such a port before it was there.
        Last, as it shares the processors with what comes after it."""
        before, self._ingress = self._ingress, state.ingress
        if (before or state.ingress) and (look or mesh_flows.is_less(before, state.ingress)):
            self._forgetter.look(before, state.ingress, everywhere=look)
        ports, self._ports = self._ports, state.ports
        self._forgetter.look_at_ports(ports, state.ports)

    def _beside_others(self, state: HostState) -> list[Change]:
        """What of the host's rules is not in vxnet's own table."""
        if not host_bridges(state) and state.ingress is None:
            return passage.remove(self._namespace, self._nft)
        made = hooks.ensure(self._namespace, self._nft, self._hooks_file)
        return made + self._passage.ensure(self._namespace, self._nft)

    # Sandboxes

    def _with_lost_ports(
        self, state: HostState, chosen: Collection[str] | None, sides: Sides
    ) -> Collection[str] | None:
        """Those chosen, and those with a port that has no bridge: its bridge was made anew, or it left by itself."""
        if chosen is None:
            return None
        more = set(chosen)
        for box in state.sandboxes:
            for interface in box.interfaces:
                port = sides.of(interface).found.get(interface.port)
                if port is not None and not port.master:
                    more.add(box.id)
        return more

    def _sandboxes(self, state: HostState, chosen: Collection[str] | None, sides: Sides) -> list[Change]:
        """All of those chosen, and of the others the table, where the services that they use are other than before."""
        foreign = frozenset((netns.identity(self._namespace), netns.identity(self._datapath.namespace)))
        if {segment.vni: segment.services for segment in state.segments} != self._services.by_vni:
            self._services = Services(state.segments, self._services)
        gateways = state.ingress.gateways if state.ingress is not None else ()
        wanted = self._rulesets.of(state.sandboxes, self._services, gateways)
        whole = wanted.keys() if chosen is None else wanted.keys() & set(chosen)
        due = whole | {id for id, table in wanted.items() if not self._tables.is_last(id, table)}

        def visit() -> list[Change]:
            changes: list[Change] = []
            for one in (box for box in state.sandboxes if box.id in due):
                entered = sandbox.enter(one, foreign, whole=one.id in whole)
                if isinstance(entered, Change):
                    changes.append(entered)
                elif entered is not None:
                    try:
                        done = self._sandbox(entered, wanted[one.id], sides if one.id in whole else None)
                        changes += [replace(change, sandbox=one.id) for change in done]
                    finally:
                        entered.close(self._closer)
            return changes

        changes = netns.travelling(visit) if due else []  # to start a thread takes milliseconds on a busy machine
        self._closer.begin()
        self._tables.keep_only(frozenset(("host", *(one.id for one in state.sandboxes))))
        return changes

    def _sandbox(self, entered: Entered, wanted: nft.Ruleset | None, sides: Sides | None) -> list[Change]:
        """``sides``: None to see to the table alone."""
        changes: list[Change] = []
        box = entered.sandbox
        try:
            if sides is not None:
                self.events.introduce(self._datapath.netlink, box.id, entered.namespace)
            sandbox.begin_table(entered, self._tables, wanted)
            try:
                if sides is not None:
                    changes += sandbox.ensure(entered, sides)
            finally:
                if entered.pending is not None:
                    changes.append(self._tables.finish(entered.pending))
                    self.events.expect_table(box.id, self._tables.generation(box.id))
            if sides is not None:
                generation = nft.generation_now(entered.nft)
                egress = answers.ensure_egress(entered.nft, box, generation)
                if egress is not None:
                    changes.append(egress)
                    self._tables.passed(box.id, generation)
                    self.events.expect_table(box.id, self._tables.generation(box.id))
            changes += sandbox.forget_stale_flows(box, entered.nft, self._services)
        except (OSError, HostError) as error:
            changes.append(Change(verb="add", object=f"sandbox {box.id[:12]}", error=str(error)))
        if any(change.error for change in changes) and entered.is_gone():
            return [change for change in changes if not change.error]
        return changes

    # What is too much

    def _sweep(self, state: HostState, sides: Sides) -> list[Change]:
        now = self._clock()
        ports = {one.port for box in state.sandboxes for one in box.interfaces}
        living = {box.id[:12] for box in state.sandboxes}
        changes: list[Change] = []
        seen: set[str] = set()
        for side in (sides.datapath, sides.host):
            doomed = []
            for link in side.found.values():
                if link.kind != "veth" or link.name in ports or not (owner := sandbox.alias_owner(link.alias)):
                    continue
                seen.add(link.name)
                since = self._orphans.setdefault(link.name, now)
                if owner in living or now - since >= ORPHAN_GRACE_S:
                    doomed.append(link)
            if doomed:
                changes += datapath.delete_links(side.netlink, doomed)
        self._orphans = {name: since for name, since in self._orphans.items() if name in seen}
        wanted = frozenset(segment.vni for segment in state.segments)
        return changes + self._datapath.sweep(sides.datapath.found, wanted)

    # Beside reconcile

    def is_intact(self, state: HostState) -> bool:
        """Whether what raises no events is as ``state`` says; cheap. Raises HostError."""
        if _is_empty(state):
            return True
        try:
            if not self._datapath.is_named() or not self._bridges.are_right():
                return False
            if (host_bridges(state) or state.ingress is not None) and not (
                hooks.exists(self._nft) and self._passage.is_open(self._nft)
            ):
                return False
            return gateway.forwards(self._namespace, host_bridges(state), mesh.versions(state.ingress))
        except OSError as error:
            raise HostError(f"the kernel does not answer: {error.strerror or error}") from error

    def obstacles(self, ports: Iterable[tuple[str, int, str]]) -> list[str]:
        """What of other people's firewalls is in vxnet's way, in words. Raises HostError."""
        try:
            return passage.obstacles(self._namespace, self._nft, ports)
        except OSError as error:
            raise HostError(f"cannot read the host's rules: {error.strerror}") from error

    def mesh_traffic(self) -> tuple[MeshTraffic, ...]:
        """Through the published ports; empty where the routing mesh is not. Raises HostError."""
        if self._ingress is None:
            return ()
        try:
            return mesh_flows.counted(self._nft)
        except OSError as error:
            if error.errno == errno.ENOENT:  # somebody flushed the table a moment ago
                return ()
            raise HostError(f"cannot read the mesh's counters: {error.strerror}") from error

    def tunnel_traffic(self) -> dict[str, int]:
        """What the forwarder has counted since its start (csrc/vxlan/vxlan.h); empty where tunnels are the kernel's."""
        counted = self._datapath.tunnels.counters()
        return {} if counted is None else asdict(counted)

    def route_mtus(self, destinations: Iterable[IPAddress]) -> dict[IPAddress, int]:
        """The MTU of the route to each of these addresses, as configured; those without a route are left out."""
        wanted = list(destinations)
        try:
            found = {link.ifindex: link.mtu for link in links.dump(self._netlink).values()}
            ways = addresses.paths(self._netlink, wanted)
        except OSError as error:
            raise HostError(f"cannot read the routes: {error.strerror}") from error
        return {
            one: way.mtu or found.get(way.ifindex, DEFAULT_MTU)
            for one, way in zip(wanted, ways, strict=True)
            if way is not None
        }

    def teardown(self) -> list[Change]:
        """Take everything of vxnet's away, and nothing else; what was taken. Routing stays on (see gateway)."""
        changes: list[Change] = []
        try:
            changes += datapath.clear(self._netlink)
            changes += passage.remove(self._namespace, self._nft) + hooks.remove(self._namespace, self._nft)
            if nft.delete_table(self._namespace, self._nft):
                changes.append(Change(verb="delete", object=f"nft table {nft.TABLE}"))
            changes += self._remove_datapath()
        except OSError as error:
            raise HostError(f"cannot take vxnet's devices away: {error.strerror or error}") from error
        self._rows.forget()
        self._bridges.forget()
        self._orphans.clear()
        self._tables.keep_only(frozenset())
        return changes

    def _remove_datapath(self) -> list[Change]:
        self.events.unfollow()
        namespace = netns.adopt_named(DATAPATH_NAMESPACE)
        changes: list[Change] = []
        if namespace is not None:
            # By hand, as the namespace may outlive its name in somebody's shell, and its VNIs with it.
            try:
                with Netlink(namespace) as netlink:
                    changes += datapath.clear(netlink)
            finally:
                os.close(namespace)
        changes += self._datapath.tunnels.stop()
        self._datapath.close()
        if netns.remove_name(DATAPATH_NAMESPACE):
            changes.append(Change(verb="delete", object=f"network namespace {DATAPATH_NAMESPACE}"))
        return changes


def _is_tap(segment: Segment, found: Mapping[str, Link]) -> bool:
    return segment.kind == "userspace" and tunnel_name(segment.vni) in found


def _senders(state: HostState) -> list[IPAddress]:
    return [*state.vteps, *(vtep for segment in state.segments for vtep in segment.foreign)]


def _is_empty(state: HostState) -> bool:
    return not (state.segments or state.sandboxes or host_bridges(state) or state.vteps)
