"""Which certificates the nodes hold that are still there, asked by gossip before a backup is restored."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Collection, Mapping

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from vxnet.cluster.gossip import Gossip
from vxnet.core.timing import PROFILES
from vxnet.core.wishes import Wishes
from vxnet.model import codec
from vxnet.model.cluster import GOSSIP_PORT, Node
from vxnet.model.errors import HostError
from vxnet.model.row import Certificate

MEET_S = 5.0
"""For anybody's answer. Nobody: the gossip's keys are others by now, or nobody is left."""
SYNC_S = 2.0
"""From the first answer on, for those of the others."""
LOOK_S = 0.05


async def certificates_held(
    wishes: Wishes, node: Node, key: Ed25519PrivateKey, certificate: bytes
) -> Mapping[str, bytes]:
    """DER, by node, as far as nodes of ``wishes`` answer within seconds. ``node`` is this host, which is a member for
    so long, with this key and certificate, and says goodbye.
    """
    assert wishes.cluster is not None and wishes.ring is not None
    gossip = Gossip(
        node_id=node.id,
        name=node.name,
        address=node.advertise_addr,
        port=GOSSIP_PORT,
        tags={},
        keys=tuple(one.secret for one in wishes.ring.keys),
        key=key,
        certificate=certificate,
        roots=wishes.roots,
        incarnation=0,
        label=wishes.cluster.gossip_label,
        settings=PROFILES[wishes.cluster.gossip_profile],
    )
    running = asyncio.ensure_future(gossip.run())
    try:
        others = {other.advertise_addr for other in wishes.nodes.values()} - {node.advertise_addr}
        gossip.join([(str(other), GOSSIP_PORT) for other in others])
        await _answers(gossip, running, wishes.nodes)
        held = _held(gossip, wishes.nodes)
        await gossip.leave()
        return held
    finally:
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError, HostError):
            await running


async def _answers(gossip: Gossip, running: asyncio.Future[None], nodes: Collection[str]) -> None:
    loop = asyncio.get_running_loop()
    until, met = loop.time() + MEET_S, False
    while loop.time() < until and not running.done():
        held = _held(gossip, nodes)
        present = {member.id for member in gossip.members() if member.present and member.id in nodes}
        if present and present <= held.keys():
            return
        if present and not met:
            met, until = True, loop.time() + SYNC_S
        await asyncio.sleep(LOOK_S)


def _held(gossip: Gossip, nodes: Collection[str]) -> dict[str, bytes]:
    found = {}
    for member in gossip.members():
        if member.present and member.id in nodes:
            for ledger in gossip.table().of_owner(member.id):
                if (packed := ledger.get("certificate")) is not None:
                    with contextlib.suppress(ValueError, RecursionError):
                        found[member.id] = codec.from_wire(packed, Certificate).der
    return found
