"""Tunnels in user space: TAPs in namespace ``vxnet`` and one forwarder that holds them (:mod:`vxnet.host.uvxlan`).

To the rest of ``host`` a TAP is a port of a segment's bridge as the kernel's vxlan is. Three things are said to the
forwarder instead of the kernel: that the tunnel is there, where its MACs are, and who may send. All of it is looked at
and compared in the same way, so a forwarder that was killed, or told something else, is mended too.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from vxnet.host import uvxlan
from vxnet.host.forwarder import Counters, Forwarder, SegmentView
from vxnet.host.neighbours import FLOOD, TUNNEL, Difference, Rows, describe, key_head
from vxnet.host.tap import open_tap
from vxnet.model.address import IPAddress
from vxnet.model.errors import HostError
from vxnet.model.host import Change, Segment


class Options(NamedTuple):
    """How this host's forwarder is to run, beside what the segments say."""

    directory: Path = uvxlan.DIRECTORY
    """Of its control socket."""
    queues: int = 1
    spin_us: int = 50
    virtual_underlay: bool = False


class Tunnels:
    """Not for several threads at once. Failures are HostErrors, unless it says otherwise, and leave a connection that
    is made anew next time.
    """

    def __init__(self, options: Options) -> None:
        self._options = options
        self._setting: uvxlan.Setting | None = None
        self._forwarder: Forwarder | None = None

    def close(self) -> None:
        """The forwarder goes on."""
        if self._forwarder is not None:
            self._forwarder.close()
        self._forwarder = self._setting = None

    def stop(self) -> list[Change]:
        """End the forwarder, and with it the TAPs; nothing if there is none. One that does not end is an error of the
        change: nothing else need wait for it.
        """
        self.close()
        what = "user-space tunnel: its forwarder"
        try:
            stopped = uvxlan.stop(self._options.directory)
        except HostError as error:
            return [Change(verb="delete", object=what, error=str(error))]
        return [Change(verb="delete", object=what)] if stopped else []

    @property
    def _running(self) -> Forwarder:
        assert self._forwarder is not None, "ensure() comes first"
        return self._forwarder

    def ensure(self, segments: Sequence[Segment], port: int) -> dict[int, SegmentView]:
        """Have a forwarder for these segments, which are all in user space; what it holds, by VNI."""
        setting = uvxlan.Setting(
            local=str(segments[0].local),
            port=port,
            queues=self._options.queues,
            spin_us=self._options.spin_us,
            virtual_underlay=self._options.virtual_underlay,
        )
        held = self._ask(setting)
        for segment in segments:
            view = held.get(segment.vni)
            if view is not None and view.mtu != segment.mtu:
                self._running.set_mtu(segment.vni, segment.mtu, udp_joins=view.udp_joins)
        return held

    def _ask(self, setting: uvxlan.Setting) -> dict[int, SegmentView]:
        if self._forwarder is not None and self._setting == setting:
            try:
                return self._forwarder.segments()
            except HostError:
                pass  # it was killed
        self.close()
        self._forwarder, self._setting = uvxlan.ensure(self._options.directory, setting), setting
        return self._forwarder.segments()

    def add(self, segment: Segment, name: str, namespace: int) -> Change:
        """The segment's TAP, in the namespace and in the forwarder."""
        try:
            tap = open_tap(namespace, name, self._options.queues)
            try:
                self._running.add(segment.vni, segment.mtu, tap)
            finally:
                for descriptor in tap.descriptors:
                    os.close(descriptor)
        except HostError as error:
            return Change(verb="add", object=f"link {name}", error=error.message)
        return Change(verb="add", object=f"link {name}")

    def keep_only(self, vnis: Collection[int]) -> None:
        """Without a word: a TAP whose descriptor is closed goes by itself."""
        for vni in self._running.segments().keys() - vnis:
            self._running.remove(vni)

    def admit(self, vteps: Sequence[IPAddress]) -> list[Change]:
        """Who may send."""
        wanted = frozenset(vtep.packed for vtep in vteps)
        if wanted == self._running.peers():
            return []
        self._running.set_peers(wanted)
        return [Change(verb="replace", object="user-space tunnel: its peers")]

    def counters(self) -> Counters | None:
        """None: no forwarder runs. Only looks: what is wrong with it is the next :meth:`ensure`'s."""
        if self._forwarder is None:
            return None
        try:
            return self._forwarder.counters()
        except HostError:
            return None

    # Rows. `taps`: VNI of each TAP by its ifindex.

    def rows(self, taps: Mapping[int, int]) -> Rows:
        found: Rows = {}
        for ifindex, vni in taps.items():
            head = key_head(TUNNEL, ifindex)
            found |= {head + mac: vtep for mac, vtep in self._running.rows(vni).items()}
            found |= {head + FLOOD + vtep: vtep for vtep in self._running.flood(vni)}
        return found

    def apply(
        self, change: Difference, wanted: Rows, found: Rows, taps: Mapping[int, int], names: Mapping[int, str]
    ) -> list[Change]:
        """Put, then delete; every row of ``change`` is of a TAP."""
        changes: list[Change] = []
        for ifindex, vni in taps.items():
            head = key_head(TUNNEL, ifindex)
            puts = [key for key in change.puts if key.startswith(head)]
            deletes = [key for key in change.deletes if key.startswith(head)]
            if not puts and not deletes:
                continue
            flood = head + FLOOD
            rows = {key[len(head) :]: wanted[key] for key in puts if not key.startswith(flood)}
            self._running.put(vni, rows)
            self._running.drop(vni, [key[len(head) :] for key in deletes if not key.startswith(flood)])
            come = {wanted[key] for key in puts if key.startswith(flood)}
            gone = {found[key] for key in deletes if key.startswith(flood)}
            if come or gone:
                self._running.set_flood(vni, (self._running.flood(vni) | come) - gone)
            for key in puts:
                verb: Literal["add", "replace"] = "replace" if key in change.replaces else "add"
                changes.append(Change(verb=verb, object=describe(key, wanted[key], names)))
            changes += [Change(verb="delete", object=describe(key, found[key], names)) for key in deletes]
        return changes


def split(change: Difference, taps: Collection[int]) -> tuple[Difference, Difference]:
    """What the kernel is to be told, and what the forwarder. ``taps``: ifindex of each TAP."""
    if not taps:
        return change, Difference([], frozenset(), [])
    heads = tuple(key_head(TUNNEL, tap) for tap in taps)
    kernels = Difference(
        [key for key in change.puts if not key.startswith(heads)],
        change.replaces,
        [key for key in change.deletes if not key.startswith(heads)],
    )
    ours = Difference(
        [key for key in change.puts if key.startswith(heads)],
        change.replaces,
        [key for key in change.deletes if key.startswith(heads)],
    )
    return kernels, ours
