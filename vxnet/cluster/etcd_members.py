"""Who is a member of etcd: list, add (as a learner), promote, remove."""

from __future__ import annotations

import logging

import msgspec
from msgspec.structs import replace

from vxnet.cluster.etcd import Etcd, EtcdError
from vxnet.model.cluster import Node
from vxnet.model.codec import from_json
from vxnet.model.errors import ConflictError, UnavailableError, VxnetError
from vxnet.model.store import StoreMember

log = logging.getLogger(__name__)


class _Member(
    msgspec.Struct, rename={"id": "ID", "peers": "peerURLs", "clients": "clientURLs", "learner": "isLearner"}
):
    id: int
    name: str = ""
    peers: tuple[str, ...] = ()
    clients: tuple[str, ...] = ()
    learner: bool = False


class _Members(msgspec.Struct):
    members: list[_Member] = []


class _Kv(msgspec.Struct):
    value: bytes = b""


class _Range(msgspec.Struct):
    kvs: list[_Kv] = []


# All raise UnavailableError if nobody answers (the changes: without a quorum), ConflictError with etcd's own reason.
# The list is what the member that answers knows: one that is late or cut off tells an older one.


async def members_of(etcd: Etcd) -> list[StoreMember]:
    found = (await _ask(etcd, "list", {})).members
    return [
        StoreMember(id=one.id, name=one.name, peers=one.peers, clients=one.clients, learner=one.learner)
        for one in found
    ]


async def settled_members_of(etcd: Etcd) -> list[StoreMember]:
    """The list as it is: by the word of one that has just been in touch with most of the others, for a voter that is
    late or cut off tells who they were. Raises :class:`UnavailableError` if there is none.
    """
    for endpoint in etcd.in_turn():
        one = Etcd(replace(etcd.access, endpoints=(endpoint,)))
        try:
            await one.call("/v3/kv/range", {"key": b"vxnet"}, _Range, within_s=1.0)
            return await members_of(one)
        except (EtcdError, VxnetError) as error:
            log.debug("etcd member %s not asked: %s", endpoint, error)
        finally:
            await one.close()
    raise UnavailableError("no member of etcd reaches most of the others", hint="start the hosts that are missing")


async def node_of(etcd: Etcd, node_id: str) -> Node | None:
    """Its record as it is now, whatever this host has heard of it. Raises :class:`UnavailableError`."""
    key = f"{etcd.access.prefix}/node/{node_id}".encode()
    try:
        found = (await etcd.call("/v3/kv/range", {"key": key}, _Range, within_s=2.0)).kvs
        return from_json(found[0].value, Node) if found else None
    except (EtcdError, ValueError) as error:
        raise UnavailableError(f"the store does not tell who node {node_id} is: {error}") from error


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
