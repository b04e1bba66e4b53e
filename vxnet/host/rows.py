"""FDB rows and neighbours of all segments, and of the bridges in the host's namespace.

What was last written or seen there is remembered, so that one container more is a matter of its own rows and not of
ten thousand others. A *complete* look goes by the kernel alone, and comes when the kernel tells of rows that were
changed behind vxnet's back, and every half minute.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from vxnet.host import datapath, mesh, neighbours, sandbox
from vxnet.host.datapath import Datapath, Home, Resident, bridge_name, tunnel_name
from vxnet.host.links import Link
from vxnet.host.neighbours import Rows
from vxnet.host.netlink import Netlink
from vxnet.host.tunnels import split
from vxnet.model.address import IPAddress
from vxnet.model.host import Change, HostState, Remote, host_bridges


class Carried(NamedTuple):
    """What a segment carries, or a bridge of the host's, which has residents alone."""

    home: Home
    remotes: tuple[Remote, ...]
    flood: tuple[IPAddress, ...]
    residents: tuple[Resident, ...]

    def rows(self) -> Rows:
        rows = datapath.remote_rows(self.home, self.remotes) | datapath.flood_rows(self.home, self.flood)
        # Last: what lives here lives here, whatever another host still says.
        return rows | datapath.resident_rows(self.home, self.residents)

    def since(self, before: Carried) -> tuple[Rows, Rows]:
        """Of the same home: the rows that were, and those that are to be, of all that is not as it was."""
        gone, come = datapath.changed_remotes(before.remotes, self.remotes)
        left, new = datapath.changed_residents(before.residents, self.residents)
        there = before._replace(remotes=tuple(gone), residents=tuple(left))
        here = self._replace(remotes=tuple(come), residents=tuple(new))
        return there.rows(), here.rows()


class SegmentRows:
    """Of the data path's namespace. ``tell`` is shown what is sent."""

    def __init__(self, datapath: Datapath, tell: Callable[[list[bytes]], None]) -> None:
        self._datapath = datapath
        self._tell = tell
        self._carried: dict[int, Carried] = {}
        """By VNI."""
        self._learning: frozenset[int] = frozenset()
        """VNIs of the tunnels that learn."""

    def forget(self) -> None:
        """Believe nothing: the next look is a complete one."""
        self._carried.clear()

    def ensure(
        self,
        state: HostState,
        found: Mapping[str, Link],
        made: frozenset[str],
        taps: Mapping[int, int],
        *,
        complete: bool,
    ) -> list[Change]:
        """``found``: the namespace's links; ``made``: names of those that are new, and so have no rows yet; ``taps``:
        VNI by ifindex. Raises OSError.
        """
        carried = to_carry(state, found)
        learning = frozenset(segment.vni for segment in state.segments if segment.foreign)
        # What a tunnel has learnt goes with its last peer without vxnet, and not by its age.
        complete |= learning != self._learning
        wanted: Rows = {}
        there: Rows = {}
        for vni, one in carried.items():
            before = self._carried.get(vni)
            if before == one:
                continue
            if before is not None and before.home == one.home:
                was, shall = one.since(before)
                there |= was
                wanted |= shall
            elif {bridge_name(vni), tunnel_name(vni)} <= made:
                wanted |= one.rows()
            else:
                complete = True
            if complete:
                break
        if complete and carried:
            wanted = {}
            for one in carried.values():
                wanted |= one.rows()
            tunnels = {one.home.tunnel: one.home.bridge for one in carried.values()}
            learners = {one.home.tunnel for vni, one in carried.items() if vni in learning}
            there = neighbours.dump(self._datapath.netlink, tunnels, learners) | self._datapath.tunnels.rows(taps)
        difference = neighbours.difference(wanted, there)
        names = {link.ifindex: link.name for link in found.values()}
        kernels, forwarders = split(difference, taps)
        changes = neighbours.apply(self._datapath.netlink, kernels, wanted, there, names, self._tell)
        changes += self._datapath.tunnels.apply(forwarders, wanted, there, taps, names)
        self._carried = {} if any(change.error for change in changes) else carried
        self._learning = learning
        return changes


class _Bridge(NamedTuple):
    carried: Carried
    rows: Rows
    """All of it."""


class BridgeRows:
    """Of the bridges in the host's namespace: behind which port each container is, as no frame tells it."""

    def __init__(self, netlink: Netlink) -> None:
        self._netlink = netlink
        self._bridges: dict[int, _Bridge] = {}
        """By index."""
        self.indexes: frozenset[int] = frozenset()
        """Of those that there are."""

    def forget(self) -> None:
        """As :meth:`SegmentRows.forget`."""
        self._bridges.clear()

    def ensure(self, state: HostState, found: Mapping[str, Link], *, complete: bool) -> list[Change]:
        """``found``: the namespace's links as they were before they were mended. Raises OSError."""
        before, self._bridges = self._bridges, {}
        changes: list[Change] = []
        names = {link.ifindex: link.name for link in found.values()}
        residents = _residents(state, found)
        bridges = [found[wish.name] for wish in host_bridges(state) if wish.name in found]
        self.indexes = frozenset(bridge.ifindex for bridge in bridges)
        for bridge in bridges:
            one = Carried(Home(bridge.ifindex, 0), (), (), tuple(residents.get(bridge.name, ())))
            last = before.get(bridge.ifindex)
            # The rows of a port that had left its bridge went with it.
            left = any(found[interface.port].master != bridge.ifindex for interface, _ in one.residents)
            if complete or left or last is None:
                wanted, there = one.rows(), neighbours.dump_bridge(self._netlink, bridge.ifindex)
                rows = wanted
            else:
                there, wanted = one.since(last.carried)
                rows = last.rows
                for key in there:
                    rows.pop(key, None)
                rows.update(wanted)
            difference = neighbours.difference(wanted, there)
            done = neighbours.apply(self._netlink, difference, wanted, there, names)
            if not any(change.error for change in done):
                self._bridges[bridge.ifindex] = _Bridge(one, rows)
            changes += done
        return changes

    def are_right(self) -> bool:
        """Whether the kernel has what was last written. Rows of the host's namespace raise events that are not listened
        to, as it has too many of its own. Raises OSError."""
        for ifindex, bridge in self._bridges.items():
            there = neighbours.dump_bridge(self._netlink, ifindex)
            if any(there.get(key) != value for key, value in bridge.rows.items()):
                return False
        return True


def _residents(state: HostState, found: Mapping[str, Link]) -> dict[str, list[Resident]]:
    """By name of the bridge in the host's namespace."""
    residents: dict[str, list[Resident]] = {}
    for box in state.sandboxes:
        for interface in box.interfaces:
            name, port = sandbox.host_bridge(interface), found.get(interface.port)
            if name and port is not None:
                residents.setdefault(name, []).append(Resident(interface, port.ifindex))
    return residents


def to_carry(state: HostState, found: Mapping[str, Link]) -> dict[int, Carried]:
    """By VNI, for each segment that has its devices."""
    residents: dict[int, list[Resident]] = {}
    for box in state.sandboxes:
        for interface in box.interfaces:
            port = found.get(interface.port)
            if interface.vni is not None and port is not None:
                residents.setdefault(interface.vni, []).append(Resident(interface, port.ifindex))
    if state.ingress is not None and mesh.PORT in found:
        here = Resident(mesh.foot(state.ingress), found[mesh.PORT].ifindex)
        residents.setdefault(state.ingress.vni, []).append(here)
    carried = {}
    for segment in state.segments:
        bridge, tunnel = found.get(bridge_name(segment.vni)), found.get(tunnel_name(segment.vni))
        if bridge is not None and tunnel is not None:
            home = Home(bridge.ifindex, tunnel.ifindex)
            flood = segment.flood + segment.foreign
            carried[segment.vni] = Carried(home, segment.remotes, flood, tuple(residents.get(segment.vni, ())))
    return carried
