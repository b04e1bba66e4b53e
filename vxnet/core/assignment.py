"""The assignment stream: what one node has to know of the wishes, as a snapshot and then changes.

On the wire it is NDJSON, one :class:`Update` a line, empty lines in between to show that the manager lives::

    {"revision":7,"snapshot":true,"items":[{"kind":"cluster","value":{…}},{"kind":"network","id":"…","value":{…}},…]}
    {"revision":9,"items":[{"kind":"network","id":"…"}]}                    without a value: it is gone

A line is what one commit changed, so that it is applied whole or not at all. A reader resumes with the revision that it
has. An item of a kind that this version does not know, or whose value it cannot read, is kept as it came, for the
version that can.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, cast

import msgspec
from msgspec.structs import replace

from vxnet.core import lease_sets
from vxnet.model.assignment import Assignment
from vxnet.model.cluster import Cluster, GossipKey, LeaseSet, Manager, Network, NodeAddresses, Record, Signed
from vxnet.model.codec import from_json, to_json
from vxnet.model.errand import Errand
from vxnet.model.errors import PeerError
from vxnet.model.service import PublicService, Task

_GONE = msgspec.Raw(b"null")


class Item(Record, frozen=True, kw_only=True):
    kind: str
    id: str = ""
    """Empty where there is only one of the kind."""
    value: msgspec.Raw = _GONE
    """JSON."""

    @property
    def gone(self) -> bool:
        return self.value == _GONE


class Update(Record, frozen=True, kw_only=True):
    revision: int
    """Of the store: everything up to it is told."""
    snapshot: bool = False
    """What was known before is void."""
    items: tuple[Item, ...] = ()


def item(kind: str, id: str, value: object | None) -> Item:
    """``value`` is a record (or what a record's field holds); None: gone."""
    return Item(kind=kind, id=id, value=_GONE if value is None else msgspec.Raw(to_json(value)))


def decode_update(line: bytes) -> Update:
    """Raises :class:`PeerError`."""
    try:
        return from_json(line, Update)
    except (ValueError, RecursionError) as error:
        raise PeerError(f"a manager sent a line that is no update ({error})") from error


def lease_set(signed: Signed) -> LeaseSet:
    """What was signed; whether it is to be believed is another question. Raises :class:`PeerError`."""
    try:
        return lease_sets.unpack(signed.content)
    except (ValueError, RecursionError) as error:
        raise PeerError(f"a set of leases cannot be read ({error})") from error


def apply(current: Assignment | None, update: Update) -> Assignment:
    """The assignment after ``update``. One that tells nothing new changes nothing, so repeating is harmless.

    Raises :class:`PeerError` if the first is no snapshot, or a snapshot is without the cluster's record.
    """
    if update.snapshot:
        if current is not None and update.revision < current.revision:
            return current
        cluster = _cluster(update)
        base = Assignment(revision=update.revision, cluster=cluster)
        if current is not None:
            # The leases stay, since a newer set may have come on another way; the item is compared with them below.
            # Without keys this node would speak in clear, and without roots trust nobody.
            base = replace(base, leases=current.leases, keys=current.keys, roots=current.roots)
    elif current is None:
        raise PeerError("a manager sent changes before a snapshot")
    elif update.revision <= current.revision:
        return current
    else:
        base = replace(current, revision=update.revision)
    return _with_items(base, update.items)


def _cluster(snapshot: Update) -> Cluster:
    try:
        return next(from_json(bytes(one.value), Cluster) for one in snapshot.items if one.kind == "cluster")
    except (ValueError, RecursionError, StopIteration) as error:
        raise PeerError("a manager sent a snapshot without the cluster's record") from error


def with_leases(current: Assignment, signed: Signed) -> Assignment:
    """With the leases that a manager answered to a request, unless newer ones are known already."""
    return replace(current, leases=_newest(current.leases, {"": signed}))


def reread(current: Assignment) -> Assignment:
    """After an upgrade: with those of the kept items that this version understands."""
    kept = [
        Item(kind=kind, id=id, value=msgspec.Raw(text.encode()))
        for name, text in current.others.items()
        for kind, _, id in [name.partition("/")]
    ]
    return _with_items(replace(current, others={}), kept)


def errands(update: Update) -> tuple[Errand, ...]:
    """What a manager asks of the node beside all this: said once, with a revision that the node has already, so that
    :func:`apply` passes over it.
    """
    found = []
    for one in update.items:
        if one.kind == "errand":
            with contextlib.suppress(ValueError, RecursionError):
                found.append(from_json(bytes(one.value), Errand))
    return tuple(found)


# Kinds


class _Kind(NamedTuple):
    type: Any
    field: str
    merge: Callable[[Any, dict[str, Any]], Any]
    """(the field, values by id; None: gone) -> the field. Raises :class:`ValueError`."""


def _only(field: Any, values: dict[str, Any]) -> Any:
    return next((value for value in values.values() if value is not None), field)


def _some(field: Any, values: dict[str, Any]) -> Any:
    """A manager that has none is in trouble, and nobody to go by."""
    return _only(None, values) or field


def _by_id(field: tuple[Any, ...], values: dict[str, Any]) -> tuple[Any, ...]:
    merged = {record.id: record for record in field} | values
    return tuple(record for _, record in sorted(merged.items()) if record is not None)


def _ids(field: tuple[str, ...], values: dict[str, Any]) -> tuple[str, ...]:
    merged = dict.fromkeys(field, True) | values
    return tuple(sorted(id for id, value in merged.items() if value))


def _newest(field: Signed | None, values: dict[str, Any]) -> Signed | None:
    new = _only(None, values)
    if new is None or (field is not None and lease_set(new).revision <= lease_set(field).revision):
        return field
    return cast(Signed, new)


_KINDS = {
    "cluster": _Kind(Cluster, "cluster", _only),
    "network": _Kind(Network, "networks", _by_id),
    "service": _Kind(PublicService, "services", _by_id),
    "task": _Kind(Task, "tasks", _by_id),
    "addresses": _Kind(NodeAddresses, "addresses", _only),
    "leases": _Kind(Signed, "leases", _newest),
    "keys": _Kind(tuple[GossipKey, ...], "keys", _some),
    "roots": _Kind(tuple[bytes, ...], "roots", _some),
    "manager": _Kind(Manager, "managers", _by_id),
    "revoked": _Kind(bool, "revoked", _ids),
}


def _with_items(base: Assignment, items: Iterable[Item]) -> Assignment:
    others = dict(base.others)
    known: dict[str, dict[str, Any]] = {}
    for one in items:
        others.pop(f"{one.kind}/{one.id}", None)
        try:
            value = None if one.gone else _read(one)
        except (ValueError, RecursionError, PeerError):
            others[f"{one.kind}/{one.id}"] = bytes(one.value).decode(errors="replace")
        else:
            if one.kind in _KINDS:
                known.setdefault(one.kind, {})[one.id] = value
    fields = {
        _KINDS[kind].field: _KINDS[kind].merge(getattr(base, _KINDS[kind].field), values)
        for kind, values in known.items()
    }
    return replace(base, others=others, **fields)


def _read(one: Item) -> Any:
    if one.kind not in _KINDS:
        raise ValueError(f"unknown kind {one.kind}")
    value = from_json(bytes(one.value), _KINDS[one.kind].type)
    if one.kind == "leases":
        lease_set(value)
    return value
