"""Published ports: what ``-p`` asks for, of a service or of one container.

::

    -p [IP:][PUBLISHED:]TARGET[/PROTOCOL]           each may be a range: 8000-8003:80-83 is four ports
    -p published=80,target=8080,protocol=udp,mode=ingress,ip=ADDRESS|INTERFACE,from=CIDR,policy=local

Mode ``ingress`` is the routing mesh: every node answers the port, and hands the connection to a task wherever it runs.
Mode ``host`` is a port of the node that the container runs on, and leads to this container alone.
"""

from __future__ import annotations

from typing import Literal

from vxnet.model.address import IPAddress, IPNetwork
from vxnet.model.cluster import Record

PortProtocol = Literal["tcp", "udp"]
PublishMode = Literal["ingress", "host"]
PublishPolicy = Literal["prefer-local", "local", "cluster"]
"""Of the mesh, which tasks a node gives its connections to. ``prefer-local``: to its own as long as one is ready.
``local``: to its own only; with none it refuses. ``cluster``: to all alike.
"""
FIRST_AUTO_PORT = 30000
LAST_AUTO_PORT = 32767
"""Where a port comes from that nobody chose: Swarm's range."""


class PublishedPort(Record, frozen=True, kw_only=True):
    """One port. The parser makes several of a range."""

    target: int
    """In the container; 1 to 65535."""
    published: int = 0
    """On the nodes. 0: from the range above, chosen by a manager (ingress; never 0 in a stored service), or by the node
    (host; never 0 in :attr:`vxnet.model.container.Container.published`)."""
    protocol: PortProtocol = "tcp"
    mode: PublishMode = "ingress"
    addresses: tuple[IPAddress, ...] = ()
    """``ip=``: the node's addresses to which it is bound; the unspecified one of a family means all of that family.
    With ``interface`` empty, too: all of both families."""
    interface: str = ""
    """``ip=eth1``: bound to whatever addresses this link of the node has. Not beside ``addresses``."""
    sources: tuple[IPNetwork, ...] = ()
    """``from=``: who may use it; empty: everybody. A family that is not named may not, if the other is."""
    policy: PublishPolicy = "prefer-local"
    """Of mode ingress."""
