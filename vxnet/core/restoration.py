"""A cluster's records in another store than before: moved there, or restored from a backup on a new host."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

from msgspec.structs import replace

from vxnet.core import decisions, trust
from vxnet.core.wishes import RemovedNode, Wishes
from vxnet.model.cluster import Node
from vxnet.model.codec import to_json
from vxnet.model.errors import CallerError, ConflictError, UnsupportedError
from vxnet.model.store import Backup

GENERATION = 10**9
"""Revisions: more than are made between a backup and its use, should the clock be of no help."""
PER_SECOND = 10**6
"""Revisions: more than are made in a second. So the present time is above all that were ever told, whatever became of
the store that they were of; and below 2**53, which every reader of JSON takes."""
FORMAT = 1
_SHOWN = 10
_OWN = ("lead", "signer", "etcd", "storecert", "dismissed")


def next_generation(revision: int, now: float) -> int:
    """Above every revision that anybody can have seen of a store that was at ``revision`` once, and of those that took
    its place before this one does. Who has heard of them takes all that this one tells anew.
    """
    return max((revision // GENERATION + 1) * GENERATION, int(now) * PER_SECOND)


def without_own(records: Mapping[str, bytes]) -> dict[str, bytes]:
    """Less what belongs to the old store and its managers: who leads, who signs, the old etcd's CA and members."""
    return {key: value for key, value in records.items() if key.partition("/")[0] not in _OWN}


def make_backup(cluster: str, revision: int, records: Mapping[str, bytes], now: float, version: str) -> Backup:
    return Backup(
        format=FORMAT,
        cluster=cluster,
        revision=revision,
        made_at=now,
        version=version,
        records=dict(records),
        digest=_digest(records),
    )


def check_backup(backup: Backup) -> None:
    """Raises :class:`CallerError` if it is not whole, :class:`UnsupportedError` if a newer vxnet made it."""
    if backup.format > FORMAT:
        raise UnsupportedError(
            f"the backup has format {backup.format}, this vxnet knows {FORMAT}", hint="install the newer vxnet"
        )
    if backup.digest != _digest(backup.records):
        raise CallerError("the backup is damaged: its digest is another", hint="take another copy of it")


def wishes_of(backup: Backup) -> Wishes:
    return Wishes.of(backup.revision, {key: (value, 1) for key, value in backup.records.items()})


def check_trusted(wishes: Wishes, held: Mapping[str, bytes]) -> None:
    """Whether nodes that hold these certificates (DER, by node) can trust a manager of the CAs in ``wishes``. Raises
    :class:`ConflictError`.
    """
    nodes = {id: node.name for id, node in wishes.nodes.items()}
    strangers = sorted(nodes[id] for id, der in held.items() if id in nodes and trust.issuer(der, wishes.roots) is None)
    if strangers:
        raise ConflictError(
            f"the cluster's CA was replaced (`vxnet ca rotate`) after this backup was made: {_some(strangers)} would "
            "trust no manager that is made of it",
            hint="restore a newer one; or use --force, and then `vxnet leave --force` and `vxnet join` on each node",
        )


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")


def restored(
    backup: Backup, node: Node, csr: bytes, serial: bytes, now: float, held: Mapping[str, bytes]
) -> tuple[dict[str, bytes], bytes]:
    """The records with ``node``, which is new, as the only manager; and its certificate, DER. ``held``: certificates of
    nodes that are still there, DER.

    Managers of before are workers in it: they are gone, and what they signed holds until it has been signed anew. One
    that had this host's name or address is removed. Raises :class:`ConflictError` if that is a worker.
    """
    wishes = wishes_of(backup)
    records = without_own(backup.records)
    # The backup may be of a moment when a new CA signed nothing yet; it has since: nodes may know no other by now.
    for number, ca in wishes.authorities.items():
        if ca.waiting and any(trust.issuer(der, [ca.certificate]) for der in held.values()):
            wishes.authorities[number] = replace(ca, waiting=False)
            records[f"ca/{number}"] = to_json(wishes.authorities[number])
    for other in wishes.nodes.values():
        taken = {node.advertise_addr, node.data_path_addr} & {other.advertise_addr, other.data_path_addr}
        if other.name.lower() == node.name.lower() or taken:
            if other.role == "worker":
                raise ConflictError(
                    f"node {other.name!r} of the backup, a worker, has this host's name or address",
                    hint="restore on another host, or on one that was a manager",
                )
            del records[f"node/{other.id}"]
            removed = RemovedNode(id=other.id, name=other.name, removed_at=now)
            records[f"removed/{other.id}"] = to_json(removed)
        elif other.role == "manager":
            records[f"node/{other.id}"] = to_json(replace(other, role="worker"))
    node = replace(node, key=trust.key_digest(csr))
    records[f"node/{node.id}"] = to_json(node)
    return records, decisions.certify(wishes.authority, node, csr, serial, now)


def _digest(records: Mapping[str, bytes]) -> str:
    """SHA-256 over keys and values in order, in hexadecimal."""
    digest = hashlib.sha256()
    for key, value in sorted(records.items()):
        for part in (key.encode(), value):
            digest.update(len(part).to_bytes(8, "big") + part)
    return digest.hexdigest()
