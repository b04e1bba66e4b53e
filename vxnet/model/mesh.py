"""What is told of the routing mesh: who gets a connection, and what went through."""

from __future__ import annotations

from vxnet.model.address import IPAddress
from vxnet.model.cluster import Record
from vxnet.model.published import PublishedPort


class MeshTarget(Record, frozen=True, kw_only=True):
    """A task that a node gives connections to."""

    task: str
    """Name."""
    node: str
    address: IPAddress


class MeshChoice(Record, frozen=True, kw_only=True):
    """What happens to a connection that comes to one node."""

    node: str
    tasks: tuple[MeshTarget, ...] = ()
    """Each with the same chance; of affinity client-ip the client's address says which. None: it is refused."""
    why: str = ""


class MeshView(Record, frozen=True, kw_only=True):
    """One published port of the routing mesh."""

    service: str
    port: PublishedPort
    choices: tuple[MeshChoice, ...] = ()
    """By node."""
    connections: int = 0
    """Through this node, since its rules were loaded last, as is all below."""
    refused: int = 0
    received: int = 0
    """Octets from clients."""
    sent: int = 0


class MeshTraffic(Record, frozen=True, kw_only=True):
    """Of one protocol and number, through this node."""

    protocol: str
    published: int
    connections: int = 0
    refused: int = 0
    received: int = 0
    sent: int = 0
