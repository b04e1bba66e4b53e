"""Membership: the rules in table order, the formulas, and pairs of cores on a wire that loses nothing."""

from __future__ import annotations

import ipaddress
import itertools
import random
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vxnet.core import frame, serf, wire
from vxnet.core.agenda import Agenda
from vxnet.core.broadcast import BroadcastQueue
from vxnet.core.keyring import KeyRing
from vxnet.core.lifeguard import Awareness, Suspicion
from vxnet.core.members import RULES, Address, Member, Status, Verdict, common_rows_version, judge, kind_of
from vxnet.core.swim import Swim
from vxnet.core.timing import LAN, WAN, remaining_suspicion_s
from vxnet.model.errors import CallerError

STATUSES = get_args(Status)


def member(status: Status, incarnation: int = 5) -> Member:
    return Member("h2", "id2", ipaddress.ip_address("192.0.2.2"), {"vxnet": "1"}, status, incarnation, 7946)


def news(kind: str, incarnation: int) -> wire.Alive | wire.Suspect | wire.Dead:
    if kind == "alive":
        return wire.Alive(incarnation, "h2", bytes((192, 0, 2, 2)), 7946)
    if kind == "suspect":
        return wire.Suspect(incarnation, "h2", "h3")
    return wire.Dead(incarnation, "h2", "h2" if kind == "left" else "h3")


# The rules


def test_the_table_has_every_case() -> None:
    assert set(RULES) == set(itertools.product(STATUSES, STATUSES))


@pytest.mark.parametrize("kind, status", list(RULES))
def test_old_news_changes_nothing(kind: str, status: Status) -> None:
    verdict = judge(member(status), news(kind, 4))
    assert verdict in (Verdict.IGNORE, Verdict.ACCUSE)
    # Only an "alive" is answered, and only if it contradicts what is known.
    assert (verdict is Verdict.ACCUSE) == (kind == "alive" and status != "alive")


@pytest.mark.parametrize("status", STATUSES)
def test_only_a_higher_incarnation_raises(status: Status) -> None:
    assert judge(member(status), news("alive", 5)) is not Verdict.APPLY
    assert judge(member(status), news("alive", 6)) is Verdict.APPLY


@given(st.lists(st.tuples(st.sampled_from(STATUSES), st.integers(0, 4)), max_size=12), st.randoms())
def test_news_in_any_order_ends_the_same(told: list[tuple[str, int]], rng: random.Random) -> None:
    """The highest incarnation wins, and in it left over dead over suspect over alive; suspicion's end apart."""

    def end(order: list[tuple[str, int]]) -> tuple[str, int]:
        state = member("alive", 0)
        for kind, incarnation in order:
            item = news(kind, incarnation)
            if judge(state, item) is Verdict.APPLY:
                state = state._replace(status=kind_of(item), incarnation=incarnation)
        return state.status, state.incarnation

    # Doubled and shuffled, news of one incarnation ends at the gravest.
    incarnation = max((number for _, number in told), default=0)
    gravity = {"alive": 0, "suspect": 1, "dead": 2, "left": 3}
    for _ in range(3):
        order = told * 2
        rng.shuffle(order)
        status, reached = end(order)
        last = [kind for kind, number in told if number == incarnation]
        if reached == incarnation and last and status in last:
            assert gravity[status] == max(gravity[kind] for kind in last)


# The formulas


@pytest.mark.parametrize(
    "n, interval, least, confirmations",
    [
        (2, 0.4, 1.6, 0),
        (3, 0.4, 1.6, 0),
        (4, 0.4, 1.6, 2),
        (10, 0.4, 1.6, 2),
        (100, 0.4, 3.2, 2),
        (10_000, 0.5, 8.0, 2),
    ],
)
def test_probe_and_suspicion_times(n: int, interval: float, least: float, confirmations: int) -> None:
    assert LAN.probe_interval_s(n) == pytest.approx(interval)
    assert LAN.suspicion_s(n) == pytest.approx((least, 6 * least))
    assert LAN.confirmations(n) == confirmations


@pytest.mark.parametrize(
    "n, copies, interval", [(1, 4, 30), (9, 4, 30), (10, 8, 30), (32, 8, 30), (33, 8, 60), (100, 12, 90)]
)
def test_retransmissions_and_full_exchanges(n: int, copies: int, interval: float) -> None:
    assert LAN.retransmissions(n) == copies and LAN.push_pull_s(n) == interval


def test_wan_is_slower() -> None:
    assert WAN.probe_interval_s(3) == WAN.probe_interval_s(10_000) == 5


@pytest.mark.parametrize("confirmed, seconds", [(0, 30.0), (1, 30 - 28 * 0.63093), (2, 2.0), (3, 2.0)])
def test_suspicion_shrinks_with_the_logarithm(confirmed: int, seconds: float) -> None:
    assert remaining_suspicion_s(confirmed, 2, 2.0, 30.0) == pytest.approx(seconds, abs=0.01)


def test_an_accuser_counts_once() -> None:
    suspicion = Suspicion("a", 2, 2.0, 30.0, 100.0)
    assert not suspicion.confirm("a")
    assert suspicion.confirm("b") and not suspicion.confirm("b")
    assert suspicion.confirm("c") and not suspicion.confirm("d")
    assert suspicion.remaining_s(101.0) == pytest.approx(1.0)


def test_awareness_has_bounds() -> None:
    awareness = Awareness(8)
    awareness.change(-1)
    assert awareness.scale(1.0) == 1.0
    awareness.change(100)
    assert awareness.scale(1.0) == 8.0


# The parts


def test_a_stall_is_no_time() -> None:
    agenda, ran = Agenda(), []
    agenda.observe(100.0, 0.2)
    for delay in (0.5, 5.0):
        agenda.after(delay, delay, lambda delay=delay: ran.append(delay))  # type: ignore[misc]
    assert agenda.observe(110.0, 0.2) == pytest.approx(9.5)
    agenda.run()
    assert ran == [0.5]
    # The rest of the five seconds is still to come.
    assert agenda.next_timer() == pytest.approx(114.5)


def test_a_timer_that_comes_a_little_early_is_due() -> None:
    agenda, ran = Agenda(), []
    agenda.observe(1e6 + 0.1, 1.0)
    agenda.observe(1e6 + 7.3, 0.0)
    agenda.after(0.3, "x", lambda: ran.append(1))
    due = agenda.next_timer()
    assert due is not None
    agenda.observe(due - 1e-9, 1.0)
    agenda.run()
    assert ran


def test_the_queue_sends_what_was_sent_least_and_is_newest() -> None:
    queue = BroadcastQueue()
    for name in "abc":
        queue.add(name, name.encode() * 10)
    assert queue.take(24, 2, 3) == [b"c" * 10, b"b" * 10]
    assert queue.take(24, 2, 3) == [b"a" * 10, b"c" * 10]
    queue.add("a", b"new", 0)
    assert queue.take(100, 2, 3)[0] == b"new" and len(queue) == 2, "c was sent three times"


@given(
    st.lists(
        st.one_of(
            st.tuples(st.integers(0, 9), st.integers(1, 40), st.integers(0, 2)),  # a subject, octets, an urgency
            st.tuples(st.integers(0, 9)),  # a subject that goes
            st.tuples(st.integers(0, 120), st.integers(1, 4)),  # room, a limit
        )
    )
)
def test_the_queue_is_one_that_sorts_all_each_time(steps: list[tuple[int, ...]]) -> None:
    queue = BroadcastQueue()
    queue.STALE = 1
    model: dict[int, tuple[int, int, int, bytes]] = {}
    for number, step in enumerate(steps):
        if len(step) == 3:
            message = bytes([number % 256]) * step[1]
            queue.add(step[0], message, step[2])
            model[step[0]] = (0, step[2], -number, message)
        elif len(step) == 1:
            queue.remove(step[0])
            model.pop(step[0], None)
        else:
            room, expected = step[0], []
            for subject, (sent, urgency, age, message) in sorted(model.items(), key=lambda one: one[1][:3]):
                if len(message) + 2 > room:
                    continue
                room -= len(message) + 2
                expected.append(message)
                model[subject] = (sent + 1, urgency, age, message)
                if sent + 1 >= step[1]:
                    del model[subject]
            assert queue.take(step[0], 2, step[1]) == expected
        assert len(queue) == len(model) and queue.octets == sum(len(one[3]) for one in model.values())


def test_the_queue_is_bounded() -> None:
    queue = BroadcastQueue(limit=10, byte_limit=50)
    for number in range(100):
        queue.add(number, bytes(10))
        assert len(queue) <= 5 and queue.octets == 10 * len(queue) and queue.dropped == number + 1 - len(queue)
    assert len(queue) >= 4
    assert queue.take(12, 2, 1) == [bytes(10)]


# Pairs


class Wire:
    """Cores whose datagrams and streams arrive at once."""

    def __init__(self, count: int, rng: random.Random, **options: object) -> None:
        self.now = 50.0
        self.nodes: dict[Address, Swim] = {}
        self.cut: set[Address] = set()
        for number in range(1, count + 1):
            address = f"192.0.2.{number}"
            self.nodes[address, 7946] = Swim(
                name=f"h{number}",
                address=ipaddress.ip_address(address),
                port=7946,
                tags={"id": f"id{number}", "vxnet": "1"},
                rng=random.Random(rng.random()),
                now=self.now,
                **{"ring": None, **options},  # type: ignore[arg-type]
            )
        for node in list(self.nodes.values())[1:]:
            node.join([("192.0.2.1", 7946)], self.now)
        self.deliver()

    def __getitem__(self, number: int) -> Swim:
        return self.nodes[f"192.0.2.{number}", 7946]

    def deliver(self) -> None:
        busy = True
        while busy:
            busy = False
            for addr, node in self.nodes.items():
                for data, to in node.datagrams_to_send(self.now):
                    busy = True
                    if to in self.nodes and not {addr, to} & self.cut:
                        self.nodes[to].receive_datagram(data, addr, self.now)
                for stream in node.streams_to_open():
                    busy = True
                    if stream.addr in self.nodes and not {addr, stream.addr} & self.cut:
                        answer = self.nodes[stream.addr].accept(addr).receive(stream.to_send, self.now)
                        stream.receive(answer, self.now)
                    else:
                        stream.fail(self.now)

    def run(self, seconds: float) -> None:
        end = self.now + seconds
        while self.now < end:
            self.now += 0.02
            for node in self.nodes.values():
                node.handle_timer(self.now)
            self.deliver()

    def statuses(self, number: int) -> dict[str, str]:
        return {name: found.status for name, found in self[number].members.items()}


@pytest.mark.parametrize("ring", [None, KeyRing([b"k" * 32])], ids=["plain", "encrypted"])
@pytest.mark.parametrize("label", ["", "blue"])
def test_a_pair_meets(rng: random.Random, ring: KeyRing | None, label: str) -> None:
    pair = Wire(2, rng, ring=ring, label=label)
    assert pair.statuses(1) == pair.statuses(2) == {"h1": "alive", "h2": "alive"}
    pair.run(5)
    assert pair[1].present == 2 and not pair[1].dropped and not pair[2].dropped
    assert pair[1].present_hash == pair[2].present_hash


def test_other_labels_and_keys_do_not_meet(rng: random.Random) -> None:
    pair = Wire(2, rng)
    pair[2].ring = KeyRing([b"k" * 16])
    pair.run(3)
    assert pair[1].dropped and pair[2].dropped["no key opens it"] + pair[2].dropped["not encrypted"]


def test_an_accused_node_refutes(rng: random.Random) -> None:
    trio = Wire(3, rng)
    before = trio[2].me.incarnation
    trio[1].accuse(wire.Suspect(before, "h2", "h1"))
    assert trio.statuses(1)["h2"] == "suspect"
    trio.run(0.5)
    assert trio.statuses(1)["h2"] == trio.statuses(3)["h2"] == "alive"
    assert trio[2].me.incarnation == before + 1 == trio[3].members["h2"].incarnation


def test_a_stale_alive_is_answered_with_the_accusation(rng: random.Random) -> None:
    """memberlist#311: else a node that everybody holds for dead never hears of it."""
    pair = Wire(2, rng)
    pair.run(1)
    pair.nodes.pop(("192.0.2.2", 7946))
    pair.run(8)
    assert pair.statuses(1)["h2"] == "dead"
    alive = wire.encode(wire.Alive(1, "h2", bytes((192, 0, 2, 2)), 7946, b"", wire.VERSIONS))
    pair[1].receive_datagram(alive, ("192.0.2.9", 7946), pair.now)
    told = [
        message
        for data, to in pair[1].datagrams_to_send(pair.now)
        if to == ("192.0.2.2", 7946)
        for message in frame.open_packet(data, None, "")
    ]
    assert wire.Dead(pair[1].members["h2"].incarnation, "h2", "h1") in told
    assert pair.statuses(1)["h2"] == "dead"


def test_a_third_party_cannot_bring_back_the_dead(rng: random.Random) -> None:
    trio = Wire(3, rng)
    trio.run(1)
    gone = trio.nodes.pop(("192.0.2.3", 7946))
    trio.run(8)
    assert trio.statuses(1)["h3"] == "dead"
    state = wire.NodeState("h3", bytes((192, 0, 2, 3)), 7946, gone.me.meta, gone.me.incarnation, 0, wire.VERSIONS)
    stream = trio[1].accept(("192.0.2.2", 40000))
    stream.receive(wire.encode(wire.PushPull(False, (state,))), trio.now)
    assert trio.statuses(1)["h3"] == "dead"


def test_a_living_name_is_not_taken_over_by_another_address(rng: random.Random) -> None:
    trio = Wire(3, rng)
    thief = wire.Alive(99, "h3", bytes((192, 0, 2, 66)), 7946, serf.encode_tags({"id": "x", "vxnet": "1"}))
    trio[1].receive_datagram(wire.encode(thief), ("192.0.2.66", 7946), trio.now)
    assert str(trio[1].members["h3"].address) == "192.0.2.3"
    assert trio[1].dropped["name taken by another address"] == 1


@pytest.mark.parametrize(
    "versions, fault",
    [
        (b"", ""),
        (bytes((1, 5, 2, 2, 5, 4)), ""),
        (bytes((1, 5, 5, 2, 5, 5)), ""),
        (bytes((0, 5, 2, 2, 5, 4)), "impossible protocol versions"),
        (bytes((4, 3, 3, 2, 5, 4)), "impossible protocol versions"),
        (bytes((1, 9, 6, 2, 5, 4)), "speaks no protocol that is spoken here"),
        (bytes((3, 5, 3, 2, 5, 4)), "speaks no protocol that is spoken here"),
    ],
)
def test_members_have_a_protocol_in_common(rng: random.Random, versions: bytes, fault: str) -> None:
    pair = Wire(2, rng)
    alive = wire.Alive(1, "agent", bytes((192, 0, 2, 9)), 7946, b"", versions)
    pair[1].receive_datagram(wire.encode(alive), ("192.0.2.9", 7946), pair.now)
    assert ("agent" in pair[1].members) == (not fault)
    assert pair[1].dropped == ({fault: 1} if fault else {})


@pytest.mark.parametrize(
    "tag, version", [("1", 1), ("1-4", 1), ("2", 0), ("2-3", 0), ("", 0), ("x", 0), ("0-1", 0), ("-1", 1), ("1-x", 0)]
)
def test_rows_go_to_those_who_understand_them(tag: str, version: int) -> None:
    assert common_rows_version(tag) == version
    assert member("alive")._replace(tags={"vxnet": tag}).is_vxnet == (version > 0)


def test_a_silent_node_is_asked_for_by_others_and_over_tcp(rng: random.Random) -> None:
    """h2 answers h1's TCP although its datagrams are lost: no suspicion, and h1 does not doubt itself."""
    trio = Wire(4, rng)
    trio.run(1)
    opened: list[Address] = []
    asked: list[wire.IndirectPing] = []
    deaf = trio[2].me.endpoint
    trio[2].receive_datagram = lambda data, addr, now: None  # type: ignore[method-assign]
    streams_to_open = trio[1].streams_to_open

    def opening() -> list[object]:
        streams = streams_to_open()
        opened.extend(stream.addr for stream in streams)
        return streams  # type: ignore[return-value]

    trio[1].streams_to_open = opening  # type: ignore[method-assign, assignment]
    for number in (3, 4):
        heard = trio[number].receive_datagram

        def hear(data: bytes, addr: Address, now: float, heard: object = heard) -> None:
            asked.extend(one for one in frame.open_packet(data, None, "") if isinstance(one, wire.IndirectPing))
            heard(data, addr, now)  # type: ignore[operator]

        trio[number].receive_datagram = hear  # type: ignore[method-assign]
    trio.run(6)
    assert deaf in opened and any(one.node == "h2" and one.nack for one in asked)
    assert {trio.statuses(number)["h2"] for number in (1, 3, 4)} == {"alive"}


def test_missing_nacks_make_a_node_doubt_itself(rng: random.Random) -> None:
    """Nobody answers h1: h2 may be dead, but that h3 and h4 say nothing either is h1's own trouble. Where they do say
    that they cannot reach h2 either, h1 is in good health."""
    for silent, score in ((False, 0), (True, 2)):
        four = Wire(4, rng)
        four.run(1)
        four.cut.add(("192.0.2.2", 7946))
        if silent:
            four.cut |= {("192.0.2.3", 7946), ("192.0.2.4", 7946)}
        probed = four[1].members["h2"]
        four[1].prober.probe(probed)
        for _ in range(21):
            four.now += 0.02
            for node in four.nodes.values():
                node.handle_timer(four.now)
            four.deliver()
        assert four.statuses(1)["h2"] == "suspect"
        assert (four[1].prober.awareness.score >= score) if silent else (four[1].prober.awareness.score <= score)


def test_leaving_is_not_dying(rng: random.Random) -> None:
    trio = Wire(3, rng)
    trio.run(1)
    for _ in range(2):
        trio[3].leave(trio.now)
        trio.deliver()
    assert trio.statuses(1)["h3"] == trio.statuses(2)["h3"] == "left"
    # It does not take back what it said, whoever accuses it.
    trio[3].receive_datagram(wire.encode(wire.Dead(9, "h3", "h1")), ("192.0.2.1", 7946), trio.now)
    trio.run(1)
    assert trio.statuses(1)["h3"] == "left"


def test_strangers_are_not_pinged_for_others(rng: random.Random) -> None:
    pair = Wire(2, rng)
    ask = wire.IndirectPing(1, bytes((198, 51, 100, 1)), 53, "victim", True)
    pair[1].receive_datagram(wire.encode(ask), ("192.0.2.2", 7946), pair.now)
    assert all(to != ("198.51.100.1", 53) for _, to in pair[1].datagrams_to_send(pair.now))
    assert pair[1].dropped["indirect ping for a stranger"] == 1


@pytest.mark.parametrize(
    "message, reason",
    [
        (wire.Ping(1, "somebody"), "ping for another"),
        (wire.Alive(1, "h9", b"\0\0\0\0", 7946), "no address or name"),
        (wire.Alive(1, "h9", b"\1\2\3", 7946), "no address or name"),
        (wire.Alive(1, "", bytes((192, 0, 2, 9)), 7946), "no address or name"),
        (wire.Error("x"), "not a message for datagrams"),
    ],
)
def test_useless_messages_are_counted(rng: random.Random, message: wire.Message, reason: str) -> None:
    pair = Wire(2, rng)
    pair[1].receive_datagram(wire.encode(message), ("192.0.2.2", 7946), pair.now)
    assert pair[1].dropped == {reason: 1}


def test_agents_without_our_tags_are_members_all_the_same(rng: random.Random) -> None:
    pair = Wire(2, rng)
    for meta in (b"", b"web", b"\xff\x81\xa4role\xa3web"):
        alive = wire.Alive(1, f"agent{len(meta)}", bytes((192, 0, 2, 9)), 7946, meta, wire.VERSIONS)
        pair[1].receive_datagram(wire.encode(alive), ("192.0.2.9", 7946), pair.now)
        assert not pair[1].members[alive.node].is_vxnet and pair[1].members[alive.node].status == "alive"


def test_replayed_packets_change_nothing(rng: random.Random) -> None:
    """memberlist has no protection against replay: versions must make it harmless."""
    ring = KeyRing([b"k" * 16])
    trio = Wire(3, rng, ring=ring)
    recorded: list[tuple[bytes, Address, Address]] = []
    original = {addr: node.datagrams_to_send for addr, node in trio.nodes.items()}
    for addr, node in trio.nodes.items():

        def record(now: float, addr: Address = addr) -> list[tuple[bytes, Address]]:
            packets = original[addr](now)
            recorded.extend((data, addr, to) for data, to in packets)
            return packets

        node.datagrams_to_send = record  # type: ignore[method-assign]
    trio[1].accuse(wire.Suspect(trio[3].me.incarnation, "h3", "h1"))
    trio.run(3)
    before = [(trio.statuses(n), trio[n].present_hash) for n in (1, 2, 3)]
    assert len(recorded) > 20
    for data, addr, to in recorded * 2:
        trio.nodes[to].receive_datagram(data, addr, trio.now)
    trio.run(1)
    assert [(trio.statuses(n), trio[n].present_hash) for n in (1, 2, 3)] == before


@given(st.lists(st.binary(max_size=120), max_size=8))
def test_garbage_never_raises(packets: list[bytes]) -> None:
    pair = Wire(2, random.Random(1))
    for packet in packets:
        for first in (b"", b"\x01", b"\x03", b"\x04", b"\x05", b"\x08\x00", b"\x08\x76\x01"):
            pair[1].receive_datagram(first + packet, ("192.0.2.2", 7946), pair.now)
            stream = pair[1].accept(("192.0.2.2", 1))
            stream.receive(first + packet, pair.now)
            stream.receive(b"", pair.now)
    pair.run(0.1)


def test_tags_and_label_have_limits(rng: random.Random) -> None:
    pair = Wire(2, rng)
    with pytest.raises(CallerError, match="512"):
        pair[1].set_tags({"x": "y" * 600}, pair.now)
    with pytest.raises(CallerError, match="255"):
        Wire(1, rng, label="x" * 300)
