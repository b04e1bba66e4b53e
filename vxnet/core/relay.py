"""Serf's own news (events, queries, intents), which means nothing here, passed on to Serf's agents as an agent would.

An agent gossips to all members alike. If nodes of vxnet kept what they get to themselves, an event would not reach
every agent of a mixed cluster. It goes to agents only, who drop what they know: nothing can circle among nodes of
vxnet.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from typing import TYPE_CHECKING

from vxnet.core import serf, wire
from vxnet.core.broadcast import BroadcastQueue

if TYPE_CHECKING:
    from vxnet.core.swim import Swim

REMEMBERED = 1024
"""Messages that are not passed on again when they come again."""
QUEUE_LIMIT = 128
QUEUE_OCTETS = 128 << 10
MESSAGE_LIMIT = wire.PACKET_CONTENT - 64
"""Octets of one. Agents send events of up to 512 and queries of up to 1024 unless told otherwise."""


class Relay:
    def __init__(self, swim: Swim) -> None:
        self._swim = swim
        self._queue = BroadcastQueue(limit=QUEUE_LIMIT, byte_limit=QUEUE_OCTETS)
        self._seen: OrderedDict[bytes, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._queue)

    def hear(self, payload: bytes) -> None:
        """A user message of Serf's."""
        if len(payload) > MESSAGE_LIMIT or not serf.is_for_everybody(payload):
            return
        digest = hashlib.blake2b(payload, digest_size=8).digest()
        if digest in self._seen or not self._agents(1):
            return
        self._seen[digest] = None
        if len(self._seen) > REMEMBERED:
            self._seen.popitem(last=False)
        self._queue.add(digest, wire.encode(wire.User(payload)))
        if "serf relay" not in self._swim.agenda:
            self._swim.agenda.after(self._swim.settings.gossip_interval_s, "serf relay", self._pass_on)

    def _pass_on(self) -> None:
        settings = self._swim.settings
        agents = self._agents(settings.gossip_nodes)
        for address in agents:
            for message in self._queue.take(wire.PACKET_CONTENT - 2, 2, settings.retransmissions(self._swim.present)):
                self._swim.send(address, message)
        if agents and len(self._queue):
            self._swim.agenda.after(settings.gossip_interval_s, "serf relay", self._pass_on)

    def _agents(self, count: int) -> list[tuple[str, int]]:
        return [member.endpoint for member in self._swim.members.pick_foreign(self._swim.rng, count)]
