"""The gossip's key is changed without a lost packet: everybody has the new one before anybody uses it.

::

    (old) ── due ──> (old, new) ── all here have it ──> (new, old) ── all here use it, and a while ──> (new)
             install                use                               remove

The order of the keys is the phase: all are accepted, the first is used. A node acknowledges by reporting the epochs of
its ring in that order. Only nodes that are here are waited for: one that was away is told the ring by a manager, over
2377, before it meets the others again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Literal

from vxnet.core.stamps import is_over
from vxnet.model.cluster import GossipKey, Node, Record
from vxnet.model.errors import CallerError

INTERVAL_S = 12 * 3600.0
"""Between two keys: Swarm's."""
REMOVAL_S = 10.0
"""After a node's removal a key that it does not know is made: time for several that go together, and to say goodbye."""
KEPT_S = 60.0
"""The old key is accepted this long after everybody is known to use the new one: packets and streams under way."""
KEY_BITS = (128, 192, 256)

Use = Literal["in use", "next", "old"]


class GossipKeys(Record, frozen=True, kw_only=True):
    """As it is stored and told to the nodes."""

    keys: tuple[GossipKey, ...]
    """All are accepted, the first is used."""
    made_at: float = 0.0
    """When the newest was made."""
    turned_at: float = 0.0
    """When the ring was last changed."""

    @property
    def newest(self) -> GossipKey:
        return max(self.keys, key=lambda key: key.epoch)

    @property
    def settled(self) -> bool:
        """One key, which everybody uses."""
        return len(self.keys) == 1

    @property
    def installing(self) -> bool:
        """The newest key is not used yet."""
        return self.keys[0] != self.newest


def use_of(key: GossipKey, keys: tuple[GossipKey, ...]) -> Use:
    if key == keys[0]:
        return "in use"
    return "next" if key.epoch > keys[0].epoch else "old"


def is_due(ring: GossipKeys, removals: Iterable[float], now: float) -> bool:
    """Whether it is time for another key; ``removals``: when nodes were removed that may know the present ones."""
    if ring.installing:
        return False
    removed_at = max(removals, default=0.0)
    return is_over(ring.made_at, INTERVAL_S, now) or (removed_at >= ring.made_at and now - removed_at >= REMOVAL_S)


def install(ring: GossipKeys, secret: bytes, now: float) -> GossipKeys:
    """A new key, to be accepted but not used. While one is on its way already, that is the new one."""
    if len(secret) * 8 not in KEY_BITS:
        raise CallerError(f"a gossip key has 16, 24 or 32 octets, not {len(secret)}")
    if any(key.secret == secret for key in ring.keys):
        raise CallerError("this key is in the ring already", hint="`vxnet gossip keys` shows the ring")
    if ring.installing:
        return ring
    key = GossipKey(epoch=ring.newest.epoch + 1, secret=secret)
    # Of the old ones only the last may still be on a packet: who reports this ring uses the first.
    return GossipKeys(keys=(*ring.keys[:2], key), made_at=now, turned_at=now)


def use(ring: GossipKeys, now: float) -> GossipKeys:
    return GossipKeys(keys=(ring.newest, ring.keys[0]), made_at=ring.made_at, turned_at=now)


def unready(ring: GossipKeys, nodes: Mapping[str, Node], alive: Callable[[str], bool]) -> Iterable[str]:
    """Ids of the nodes that are waited for, one at a time."""
    newest = ring.newest.epoch
    for node in nodes.values():
        ready = newest in node.key_epochs if ring.installing else node.key_epochs[:1] == (newest,)
        if not ready and alive(node.id):
            yield node.id


def step(ring: GossipKeys, nodes: Mapping[str, Node], alive: Callable[[str], bool], now: float) -> GossipKeys:
    """The next phase if it is time for it, else the same ring."""
    if ring.settled or any(True for _ in unready(ring, nodes, alive)):
        return ring
    if ring.installing:
        return use(ring, now)
    if is_over(ring.turned_at, KEPT_S, now):
        return GossipKeys(keys=ring.keys[:1], made_at=ring.made_at, turned_at=now)
    return ring
