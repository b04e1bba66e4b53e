"""Who is a member of etcd: list, add (as a learner), promote, remove."""

from __future__ import annotations

import msgspec

from vxnet.cluster.etcd import Etcd, EtcdError
from vxnet.model.errors import ConflictError


class Member(msgspec.Struct, rename={"id": "ID", "peers": "peerURLs", "clients": "clientURLs", "learner": "isLearner"}):
    id: int
    name: str = ""
    """Empty: it was never started."""
    peers: list[str] = []
    """URLs."""
    clients: list[str] = []
    learner: bool = False
    """It hears everything, and has no vote yet."""


class _Members(msgspec.Struct):
    members: list[Member] = []


# All raise UnavailableError if nobody answers (the changes: without a quorum), ConflictError with etcd's own reason.
# The list is what the member that answers knows: one that is late or cut off tells an older one.


async def members_of(etcd: Etcd) -> list[Member]:
    return (await _ask(etcd, "list", {})).members


async def add_learner(etcd: Etcd, peer_url: str) -> None:
    """A learner counts for no quorum: that it is not there yet stops nobody."""
    await _ask(etcd, "add", {"peerURLs": [peer_url], "isLearner": True})


async def promote_learner(etcd: Etcd, id: int) -> None:
    """Refused until it has caught up."""
    await _ask(etcd, "promote", {"ID": id})


async def remove_member(etcd: Etcd, id: int) -> None:
    await _ask(etcd, "remove", {"ID": id})


async def _ask(etcd: Etcd, verb: str, body: dict[str, object]) -> _Members:
    try:
        return await etcd.call(f"/v3/cluster/member/{verb}", body, _Members, within_s=2.0)
    except EtcdError as error:
        raise ConflictError(f"etcd does not {verb} the member: {error.message}") from error
