"""The gossip's settings, each with its formula and unit, and the formulas themselves. Defaults stand here only.

``n`` is always the number of members that are not known to be gone, oneself included.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

from vxnet.model.cluster import GossipProfile


class Settings(NamedTuple):
    """The defaults are for a LAN of 3 to 10,000 nodes; :data:`WAN` says what a slow path changes."""

    # -- failure detector (SWIM, Lifeguard)
    probe_floor_s: float = 0.4
    probe_base_s: float = 0.3
    probe_scale_s: float = 0.05
    probe_ceiling_s: float = 1.0
    """Probe interval P = clamp(base + scale × log10 n, floor, ceiling) s. Each node probes one other per P, so a dead
    one is first probed after about P whatever n is. memberlist's LAN has 1 s for any n; a small cluster can afford
    more: up to 100 nodes 0.4 s, 1,000 nodes 0.45 s, 10,000 nodes 0.5 s."""
    probe_timeout_fraction: float = 0.5
    """… × P: when others are asked to try, and TCP. Must exceed the round trip and the scheduling noise of a host."""
    indirect_checks: int = 3
    """Others that are asked to ping in one's place."""
    suspicion_multiplier: float = 4.0
    """Suspicion's least time = multiplier × max(1, log10 n) × P s."""
    suspicion_max_multiplier: float = 6.0
    """Its greatest = this × the least: for a lonely accuser, who may be the sick one himself."""
    awareness_max: int = 8
    """Awareness score 0 … max − 1; a node's own P and timeout are × (score + 1): who is slow accuses slowly."""
    stall_fraction: float = 0.5
    """A timer that comes this × P late shows that this process stood still: the time is not counted."""

    # -- dissemination
    gossip_interval_s: float = 0.2
    """Between two sendings of the same news."""
    gossip_nodes: int = 3
    """Fanout: random nodes at each sending."""
    retransmit_multiplier: int = 4
    """Sendings of a piece of news = multiplier × ⌈log10(n + 1)⌉."""
    direct_nodes: int = 16
    """Up to so many nodes, news goes to every one of them at once."""
    tree_from: int = 17
    """From so many nodes on, rows travel along a tree, and what is missed is asked for. Below, rows are pushed."""
    tree_fanout: int = 3
    """A row takes ⌈log n / log fanout⌉ hops, and each node sends it once, on average."""
    payload_sends: int = 6
    """Sendings of a row to random nodes, where rows are pushed or little is to be said; its name alone is sent as often
    as other news."""
    coalesce_s: float = 0.005
    """News waits so long for more of it."""
    byte_rate: float = 125_000.0
    """Octets of rows that a node sends by gossip, a second (1 Mb/s); more waits, and what waits too long is left to
    anti-entropy."""

    # -- anti-entropy
    push_pull_interval_s: float = 30.0
    """Membership in full with one random node, × (⌈log2 n − 5⌉ + 1) above 32 nodes."""
    digest_interval_s: float = 5.0
    """Rows' digests with the next node of a shuffled round, so that each is met within (n − 1) × this."""
    reconnect_interval_s: float = 1.0
    """One random dead node is tried, so that both sides of a healed partition find each other: m nodes that miss k
    others make m / this attempts a second."""
    seed_interval_s: float = 5.0
    """One of the addresses given to join() is tried if no live member has it."""
    dead_kept_s: float = 24 * 3600.0
    """How long the name and incarnation of a dead node are remembered, so that an old "alive" cannot raise it."""
    stream_timeout_s: float = 10.0
    accusation_interval_s: float = 0.5
    """A node that everybody holds for dead and that says otherwise is told so at most so often."""

    # -- rows
    paths_kept_s: float = 1800.0
    """How long the addresses of a dead node's endpoints stay reachable: a daemon's death must not cut containers."""

    def probe_interval_s(self, n: int) -> float:
        wanted = self.probe_base_s + self.probe_scale_s * math.log10(max(1, n))
        return min(max(wanted, self.probe_floor_s), self.probe_ceiling_s)

    def suspicion_s(self, n: int) -> tuple[float, float]:
        """(least, greatest)."""
        least = self.suspicion_multiplier * max(1.0, math.log10(max(1, n))) * self.probe_interval_s(n)
        return least, least * self.suspicion_max_multiplier

    def confirmations(self, n: int) -> int:
        """Independent accusers after the first that bring suspicion down to its least time; 0 where there are not so
        many others."""
        wanted = int(self.suspicion_multiplier) - 2
        return wanted if n - 2 >= wanted else 0

    def retransmissions(self, n: int) -> int:
        return self.retransmit_multiplier * math.ceil(math.log10(n + 1))

    def push_pull_s(self, n: int) -> float:
        return self.push_pull_interval_s * (max(0, math.ceil(math.log2(max(1, n)) - 5)) + 1)


LAN = Settings()
WAN = LAN._replace(
    probe_floor_s=5.0,
    probe_ceiling_s=5.0,
    probe_timeout_fraction=0.6,
    suspicion_multiplier=6.0,
    gossip_interval_s=0.5,
    gossip_nodes=4,
    push_pull_interval_s=60.0,
    stream_timeout_s=30.0,
)
PROFILES: Mapping[GossipProfile, Settings] = {"lan": LAN, "wan": WAN}
"""By the word that ``vxnet init --gossip-profile`` takes."""


def remaining_suspicion_s(confirmed: int, wanted: int, least_s: float, greatest_s: float) -> float:
    """How long a suspicion lasts in all, after ``confirmed`` of ``wanted`` confirmations (Lifeguard, section IV-B):
    from the greatest time down to the least with the logarithm."""
    if wanted <= 0:
        return least_s
    fraction = math.log(confirmed + 1) / math.log(wanted + 1)
    return max(least_s, greatest_s - fraction * (greatest_s - least_s))
