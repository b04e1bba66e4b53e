"""Membership in full, with one node at a time: at a join, with nodes that were thought dead, and now and then with
agents that are not vxnet's.

The others' word counts for less here than in gossip: what is alive is believed but not passed on, so that an old
"alive" cannot wander from table to table (memberlist#312); who is dead is only suspected, and may speak for itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from vxnet.core import wire
from vxnet.core.members import Address, Member, Status, parse_address, read_tags
from vxnet.core.stream import Stream
from vxnet.core.wire import NODES_LIMIT

if TYPE_CHECKING:
    from vxnet.core.swim import Swim

PULL_PAUSE_S = 1.0
"""Between two exchanges with the same node that nobody asked for."""
STATES = {
    "alive": wire.State.ALIVE,
    "suspect": wire.State.SUSPECT,
    "dead": wire.State.DEAD,
    "left": wire.State.LEFT,
}


class Contacted(NamedTuple):
    """What became of a join."""

    address: Address
    reached: bool


class Exchange:
    def __init__(self, swim: Swim) -> None:
        self._swim = swim
        self._seeds: tuple[Address, ...] = ()
        agenda, settings = swim.agenda, swim.settings
        agenda.after(settings.push_pull_interval_s * (0.5 + swim.rng.random() / 2), "push/pull", self._push_pull)
        agenda.after(settings.reconnect_interval_s, "reconnect", self._reconnect)
        agenda.after(settings.seed_interval_s, "seeds", self._try_seeds)

    def join(self, addresses: Sequence[Address]) -> None:
        self._seeds = tuple(addresses)
        for addr in self._seeds:
            self.pull_from(addr, join=True)

    def pull_from(self, addr: Address, *, join: bool) -> None:
        key = ("pulling", addr)
        if key in self._swim.agenda and not join:
            return
        self._swim.agenda.after(PULL_PAUSE_S, key, lambda: None)
        if join:
            self._swim.introduce()
        self._swim.open_stream(
            Stream(
                self._swim,
                addr,
                self.local_state(join=join),
                on_answer=lambda message, addr: self._pulled(message, addr, join=join),
                on_failure=lambda: self._swim.report(Contacted(addr, False)) if join else None,
                timeout_s=self._swim.settings.stream_timeout_s,
            )
        )

    def meet_again(self, addr: Address) -> None:
        """With one of those that come back; they tell the same, and what is left comparison finds."""
        if "met again" not in self._swim.agenda:
            self._swim.agenda.after(PULL_PAUSE_S, "met again", lambda: None)
            self.pull_from(addr, join=False)

    def _pulled(self, message: wire.Message, addr: Address, *, join: bool) -> bool:
        if not isinstance(message, wire.PushPull):
            self._swim.dropped["no push/pull in answer to one"] += 1
            return False
        self.merge(message, addr)
        if join:
            self._swim.report(Contacted(addr, True))
        return True

    def local_state(self, *, join: bool) -> bytes:
        nodes = tuple(map(state_of, self._swim.members.values()))
        return wire.encode(wire.PushPull(join, nodes, self._swim.clock.user_state()))

    def merge(self, remote: wire.PushPull, addr: Address) -> None:
        """What the node at ``addr`` knows."""
        self._swim.clock.merge(remote.user_state)
        self.merge_nodes(remote.nodes, addr)

    def merge_nodes(self, nodes: Sequence[wire.NodeState], addr: Address) -> None:
        me = self._swim.me.name
        for node in nodes:
            known = node.name in self._swim.members
            if node.state == wire.State.ALIVE or (node.state == wire.State.SUSPECT and not known):
                news = wire.Alive(node.incarnation, node.name, node.address, node.port, node.meta, node.versions)
                # Of itself it speaks first hand.
                address = parse_address(node.address)
                self._swim.hear_alive(news, pass_on=address is not None and str(address) == addr[0])
            if node.state in (wire.State.LEFT, wire.State.DEAD) and not known:
                self._remember_gone(node)
            elif node.state == wire.State.LEFT:
                self._swim.hear_accusation(wire.Dead(node.incarnation, node.name, node.name))
            elif node.state in (wire.State.SUSPECT, wire.State.DEAD):
                # A dead one is only suspected, so that it may still speak for itself.
                self._swim.hear_accusation(wire.Suspect(node.incarnation, node.name, me))

    def _remember_gone(self, node: wire.NodeState) -> None:
        """A node that was gone before this one came: known, so that an old "alive", or one that is sent again, cannot
        raise it here, and so that it is found when it comes back."""
        address = parse_address(node.address)
        if address is None or not node.name or len(self._swim.members) >= NODES_LIMIT:
            return
        tags, node_id = read_tags(node.meta)
        now = self._swim.agenda.now
        status: Status = "left" if node.state == wire.State.LEFT else "dead"
        gone = Member(
            node.name, node_id, address, tags, status, node.incarnation, node.port, node.meta, node.versions, now
        )
        self._swim.replace(None, gone)

    def _push_pull(self) -> None:
        # vxnet's own nodes compare what they know, for less (vxnet.core.muster).
        for member in self._swim.members.pick_foreign(self._swim.rng, 1):
            self.pull_from(member.endpoint, join=False)
        self._swim.agenda.after(self._swim.settings.push_pull_s(self._swim.present), "push/pull", self._push_pull)

    def _reconnect(self) -> None:
        for member in self._swim.members.pick_absent(self._swim.rng, 1, lambda member: member.status == "dead"):
            self._swim.send(member.endpoint, self._swim.claim(member))
            self._swim.prober.greet(member)
        self._swim.agenda.after(self._swim.settings.reconnect_interval_s, "reconnect", self._reconnect)

    def _try_seeds(self) -> None:
        missing = [addr for addr in self._seeds if not self._is_present(addr)]
        if missing and not self._swim.leaving:
            self.pull_from(missing[self._swim.rng.randrange(len(missing))], join=self._swim.present == 1)
        self._swim.agenda.after(self._swim.settings.seed_interval_s, "seeds", self._try_seeds)

    def _is_present(self, addr: Address) -> bool:
        member = self._swim.at(addr)
        return member is not None and member.present


def state_of(member: Member) -> wire.NodeState:
    return wire.NodeState(
        member.name,
        member.address.packed,
        member.port,
        member.meta,
        member.incarnation,
        STATES[member.status],
        member.versions,
    )
