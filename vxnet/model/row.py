"""Facts: rows of the table that the agents gossip.

A row has one owner. It is identified by (owner, kind, id) and versioned by (incarnation, seq) of its owner, which no
other node may write. The incarnation of rows is not SWIM's: it grows when the owner's daemon starts anew.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import msgspec

from vxnet.model.address import MAC, IPAddress

EndpointState = Literal["starting", "ready", "draining"]
ADDRESSES_MAX = 8
"""Of an endpoint: it has one of each family. What more there is costs every host, and helps none."""
ALIASES_MAX = 1000


class Version(NamedTuple):
    incarnation: int
    seq: int


class RowKey(NamedTuple):
    owner: str
    """Node id."""
    kind: str
    """Tag of the value's class."""
    id: str


class Endpoint(msgspec.Struct, frozen=True, array_like=True, tag="endpoint", kw_only=True, gc=False):
    """One container on one network. FDB, neighbours, names and load balancing all follow from these."""

    network: str
    """Id, so that a network of the same name made later is another one."""
    vni: int
    addresses: tuple[IPAddress, ...]
    mac: MAC
    vtep: IPAddress
    name: str
    aliases: tuple[str, ...] = ()
    service: str = ""
    task: str = ""
    ports: tuple[str, ...] = ()
    """``http:80/tcp``: name, port, protocol, for SRV."""
    state: EndpointState = "ready"


class Gateway(msgspec.Struct, frozen=True, array_like=True, tag="gateway", kw_only=True):
    """A node's own foot in a network (the routing mesh's ingress)."""

    network: str
    vni: int
    addresses: tuple[IPAddress, ...]
    mac: MAC
    vtep: IPAddress


class Applied(msgspec.Struct, frozen=True, array_like=True, tag="applied", kw_only=True):
    """The highest versions of other owners that this node's kernel already carries."""

    versions: tuple[tuple[str, int, int], ...]
    """(owner, incarnation, seq)."""


Value = Endpoint | Gateway | Applied


class Certificate(msgspec.Struct, frozen=True, array_like=True, tag="certificate"):
    """Whose key signed the rows beside it. Evidence travels as rows do, so that no row waits for another channel."""

    der: bytes


class Leases(msgspec.Struct, frozen=True, array_like=True, tag="leases"):
    """Which addresses the owner may claim: a ``Signed`` :class:`~vxnet.model.cluster.LeaseSet`."""

    content: bytes
    signature: bytes
    certificate: bytes
    """DER; of the manager that signed."""


Evidence = Certificate | Leases


class Row(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """As it travels. ``value`` is packed, and None for a tombstone: a kind that this version does not know is passed on
    all the same.
    """

    kind: str
    id: str
    seq: int
    """Of its owner; grows with each change, from 1."""
    value: bytes | None
