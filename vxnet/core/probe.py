"""The failure detector: who is probed when, what a silence means, how long a suspicion lasts.

::

    0 ─── ping ──────────── timeout ── 3 indirect pings and TCP ────────── interval ── no ack: suspect
                                                                            └ fewer nacks than asked for: it is me

Round robin in a random order, so that every node is probed at least once in 2 (n − 1) intervals (SWIM, section 4.3).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from vxnet.core import wire
from vxnet.core.lifeguard import Awareness, Suspicion
from vxnet.core.members import Address, Member
from vxnet.core.roster import Round
from vxnet.core.stream import Stream

if TYPE_CHECKING:
    from vxnet.core.swim import Swim

RELAY_LIMIT = 1024
"""Indirect pings under way for others."""

NACK_FRACTION = 0.8
"""… of the timeout, after which the asker is told (Lifeguard): at the whole of it the nack would come just too late,
and a healthy asker would take itself for slow."""


class Relay(NamedTuple):
    """A ping in another's place."""

    seq: int
    addr: Address


class Probe:
    __slots__ = ("member", "nacks", "nacks_expected")

    def __init__(self, member: Member) -> None:
        self.member = member
        self.nacks = 0
        self.nacks_expected = 0


class Prober:
    def __init__(self, swim: Swim) -> None:
        self._swim = swim
        self.awareness = Awareness(swim.settings.awareness_max)
        self._seq = swim.rng.randrange(1 << 31)
        self._probes: dict[int, Probe] = {}
        self._relays: dict[int, Relay] = {}
        self._suspicions: dict[str, Suspicion] = {}
        self._round = Round(swim.rng)
        swim.agenda.after(swim.rng.random() * self._interval_s(), "probe", self._tick)

    # What others say

    def acknowledged(self, seq: int) -> None:
        self._swim.agenda.cancel(("nack", seq))
        relay = self._relays.pop(seq, None)
        if relay is not None:
            self._swim.send(relay.addr, wire.encode(wire.Ack(relay.seq)))
        elif self._probes.pop(seq, None) is not None:
            self._swim.agenda.cancel(("probe timeout", seq))
            self._swim.agenda.cancel(("probe end", seq))
            self.awareness.change(-1)

    def refused(self, seq: int) -> None:
        probe = self._probes.get(seq)
        if probe is not None:
            probe.nacks += 1

    def relay(self, message: wire.IndirectPing, addr: Address) -> None:
        """``addr`` cannot reach ``message.target``: try for it."""
        swim = self._swim
        target = swim.members.get(message.node)
        # Only members are pinged: this must not be a way to send packets to anybody.
        if target is None or target.name == swim.me.name:
            swim.dropped["indirect ping for a stranger"] += 1
            return
        if len(self._relays) >= RELAY_LIMIT:
            swim.dropped["too many indirect pings"] += 1
            return
        seq = self._next_seq()
        self._relays[seq] = Relay(message.seq, addr)
        swim.send(target.endpoint, wire.encode(wire.Ping(seq, target.name)))

        def give_up() -> None:
            if self._relays.pop(seq, None) is not None and message.nack:
                swim.send(addr, wire.encode(wire.Nack(message.seq)))

        swim.agenda.after(self._timeout_s() * NACK_FRACTION, ("nack", seq), give_up)

    # Suspicion

    def suspect(self, member: Member, accuser: str) -> None:
        settings, n = self._swim.settings, self._swim.present
        least, greatest = settings.suspicion_s(n)
        suspicion = Suspicion(accuser, settings.confirmations(n), least, greatest, self._swim.agenda.now)
        self._suspicions[member.name] = suspicion
        self._rearm(member.name, suspicion)

    def confirm(self, member: Member, accuser: str) -> bool:
        """Whether that was news."""
        suspicion = self._suspicions.get(member.name)
        if suspicion is None or not suspicion.confirm(accuser):
            return False
        self._rearm(member.name, suspicion)
        return True

    def settle(self, name: str) -> None:
        """It is no longer suspected, whatever it is now."""
        if self._suspicions.pop(name, None) is not None:
            self._swim.agenda.cancel(("suspicion", name))

    def _rearm(self, name: str, suspicion: Suspicion) -> None:
        agenda = self._swim.agenda
        agenda.after(suspicion.remaining_s(agenda.now), ("suspicion", name), lambda: self._expired(name))

    def _expired(self, name: str) -> None:
        member = self._swim.members.get(name)
        if member is not None and member.status == "suspect":
            self._swim.accuse(wire.Dead(member.incarnation, name, self._swim.me.name))

    # Probing

    def forget(self) -> None:
        """This process stood still: the silence it notices is its own."""
        for seq in list(self._probes):
            self._swim.agenda.cancel(("probe timeout", seq))
            self._swim.agenda.cancel(("probe end", seq))
        self._probes.clear()
        self.awareness.change(1)

    def greet(self, member: Member) -> None:
        """A ping that nobody waits for: its ack brings news of a node that was dead."""
        self._swim.send(member.endpoint, wire.encode(wire.Ping(self._next_seq(), member.name)))

    def probe(self, member: Member) -> None:
        if any(probe.member.name == member.name for probe in self._probes.values()):
            return
        swim = self._swim
        seq = self._next_seq()
        self._probes[seq] = Probe(member)
        # The suspect hears of it first, and may refute (Lifeguard's buddy system).
        if member.status == "suspect":
            swim.send(member.endpoint, wire.encode(wire.Suspect(member.incarnation, member.name, swim.me.name)))
        swim.send(member.endpoint, wire.encode(wire.Ping(seq, member.name)))
        swim.agenda.after(self._timeout_s(), ("probe timeout", seq), lambda: self._ask_others(seq))
        swim.agenda.after(self._interval_s(), ("probe end", seq), lambda: self._failed(seq))

    def _tick(self) -> None:
        self._swim.agenda.after(self._interval_s(), "probe", self._tick)
        member = self._next()
        if member is not None and not self._swim.leaving:
            self.probe(member)

    def _next(self) -> Member | None:
        members = self._swim.members
        for _ in range(2 * len(members) if members.present > 1 else 0):
            found = members.nth(self._round.next(len(members)))
            if found.present and found.name != self._swim.me.name:
                return found
        return None

    def _ask_others(self, seq: int) -> None:
        swim, probe = self._swim, self._probes[seq]
        target = probe.member
        ask = wire.IndirectPing(seq, target.address.packed, target.port, target.name, nack=True)
        for helper in swim.pick(swim.settings.indirect_checks, lambda m: m.status == "alive", (target.name,)):
            probe.nacks_expected += 1
            swim.send(helper.endpoint, wire.encode(ask))

        def answered(message: wire.Message, addr: Address) -> bool:
            if not isinstance(message, wire.Ack) or message.seq != seq:
                return False
            self.acknowledged(seq)
            return True

        ping = wire.encode(wire.Ping(seq, target.name))
        swim.open_stream(Stream(swim, target.endpoint, ping, on_answer=answered, timeout_s=self._interval_s()))

    def _failed(self, seq: int) -> None:
        probe = self._probes.pop(seq)
        self.awareness.change(probe.nacks_expected - probe.nacks if probe.nacks_expected else 1)
        member = self._swim.members.get(probe.member.name)
        if member is not None and member.present:
            self._swim.accuse(wire.Suspect(member.incarnation, member.name, self._swim.me.name))

    def _next_seq(self) -> int:
        self._seq = (self._seq + 1) & 0xFFFFFFFF
        return self._seq

    def _interval_s(self) -> float:
        return self.awareness.scale(self._swim.probe_interval_s)

    def _timeout_s(self) -> float:
        return self._interval_s() * self._swim.settings.probe_timeout_fraction
