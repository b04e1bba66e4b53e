"""memberlist has no anti-replay: who has heard packets can send them again. Versions must make that harmless."""

from __future__ import annotations

from tests.sim.network import Simulation
from vxnet.core.gossip import GossipNode
from vxnet.core.members import Address
from vxnet.core.stream import Stream


class Recorded(Simulation):
    """Keeps every datagram that came to somebody, and what was said first over every stream, with its receiver and its
    sender."""

    def __init__(self, seed: int, count: int, **options: object) -> None:
        self.tape: list[tuple[int, bytes, Address]] = []
        self.streams: list[tuple[int, bytes, Address]] = []
        super().__init__(seed, count, **options)  # type: ignore[arg-type]

    def _deliver(self, target: int, node: GossipNode, data: bytes, sender: Address) -> None:
        self.tape.append((target, data, sender))
        super()._deliver(target, node, data, sender)

    def _dial(self, number: int, node: GossipNode, stream: Stream) -> None:
        target = self._numbers.get(stream.addr[0])
        if target is not None:
            self.streams.append((target, stream.to_send, (self._addresses[number], 40000)))
        super()._dial(number, node, stream)


def picture(sim: Simulation) -> dict[int, object]:
    return {
        number: (
            sim.statuses(number),
            {member.name: member.incarnation for member in node.members()},
            sim.names(number),
            {value.name for _, _, value in node.paths(1_800_000_000.0 + sim.now) if hasattr(value, "name")},
            node.table.root,
        )
        for number, node in sim.nodes.items()
    }


def test_replayed_packets_change_nothing(seed: int) -> None:
    """Births, rows, deletions, a suspicion and its refutation, a goodbye, a death and a return are all on the tape."""
    sim = Recorded(seed, 5, encrypted=True)
    sim.run(5)
    for number in range(1, 6):
        sim.put(number, "e", number)
        sim.put(number, "gone", 40 + number)
    sim.run(5)
    for number in range(1, 6):
        sim.delete(number, "gone")
    sim.freeze(4)
    sim.run(1.2)
    sim.thaw(4)
    sim.run(5)
    for _ in range(3):
        sim.act(5, lambda node: node.leave(sim.now))
        sim.run(0.25)
    sim.kill(5)
    sim.kill(3)
    sim.run(20)
    sim.start(3)
    sim.join(3, 1)
    sim.put(3, "back", 60)
    sim.act(3, lambda node: node.republished(sim.now))
    # Until floors have taken the place of the deleted rows.
    sim.run(40)
    before = picture(sim)
    assert sim.statuses(1) == {"h1": "alive", "h2": "alive", "h3": "alive", "h4": "alive", "h5": "left"}
    assert sim.names(1) == {"1-e-1", "2-e-2", "4-e-4", "3-back-60"} and len(sim.roots()) == 1
    tape, count = [(0, *one) for one in sim.tape] + [(1, *one) for one in sim.streams], 0
    assert sim.streams
    sim.rng.shuffle(tape)
    for is_stream, target, data, sender in tape:
        if target in sim.nodes:
            if is_stream:
                sim.nodes[target].accept(sender).receive(data, sim.now)
            else:
                sim.nodes[target].receive_datagram(data, sender, sim.now)
            sim._transmit(target)
            count += 1
            if count % 50 == 0:
                sim.run(0.02)
                assert picture(sim) == before
    assert count > 500
    sim.run(10)
    assert picture(sim) == before
