"""A cluster's papers for gossip tests: CA, certificates, leases, and the rows that fit them."""

from __future__ import annotations

import ipaddress
import random
from collections.abc import Sequence
from typing import Any, NamedTuple

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from vxnet.core import trust
from vxnet.core.allocate import mac_of
from vxnet.core.gossip import GossipNode
from vxnet.model import codec
from vxnet.model.address import IPAddress, IPNetwork
from vxnet.model.cluster import Lease, LeaseSet, Role, Signed
from vxnet.model.row import Endpoint

NETWORK = "net1"
VNI = 65536
VTEP: IPAddress = ipaddress.ip_address("192.0.2.1")
"""Of all nodes, unless told otherwise: their certificates name it, so that their rows may."""


class Papers(NamedTuple):
    id: str
    key: Ed25519PrivateKey
    certificate: bytes


class Cluster:
    """One CA, one manager, blocks of 10.0.0.0/16: node n has 10.0.n.0/24."""

    def __init__(self, rng: random.Random, now: float) -> None:
        self.rng = rng
        self.now = now
        self.ca = trust.make_ca(rng.randbytes(48), "test", now)
        self.roots = (self.ca.certificate,)
        self.manager = self.papers("manager0", "manager")

    def papers(self, node_id: str, role: Role = "worker", addresses: Sequence[IPAddress] = (VTEP,)) -> Papers:
        key = trust.node_key(self.rng.randbytes(32))
        csr = trust.make_csr(key, node_id)
        identity = trust.Identity(node=node_id, role=role)
        certificate = trust.issue(self.ca, csr, identity, node_id, addresses, self.rng.randbytes(8), self.now)
        return Papers(node_id, key, certificate)

    def leases(
        self, node_id: str, *prefixes: str, epoch: int = 1, revision: int = 1, signer: Papers | None = None
    ) -> Signed:
        signer = signer or self.manager
        blocks = tuple(
            Lease(network=NETWORK, vni=VNI, prefix=ipaddress.ip_network(prefix), node=node_id, epoch=epoch)
            for prefix in prefixes
        )
        content = codec.to_json(LeaseSet(node=node_id, revision=revision, leases=blocks))
        return trust.sign(trust.LEASES_PURPOSE, content, signer.key, signer.certificate)

    def node(self, papers: Papers, name: str = "h1", address: IPAddress = VTEP, **others: Any) -> GossipNode:
        """The gossip of the holder of ``papers``. ``others``: of :class:`GossipNode`; ``rng``, ``now`` and ``wall``
        have no default.
        """
        settings = {"port": 7946, "tags": {}, "keys": (), "incarnation": 1} | others
        return GossipNode(
            node_id=papers.id,
            name=name,
            address=address,
            key=papers.key,
            certificate=papers.certificate,
            roots=self.roots,
            **settings,
        )


def block(number: int) -> IPNetwork:
    return ipaddress.ip_network(f"10.0.{number}.0/24")


def endpoint(address: str, name: str = "web", **changes: object) -> Endpoint:
    ip: IPAddress = ipaddress.ip_address(address)
    fields: dict[str, object] = {
        "network": NETWORK,
        "vni": VNI,
        "addresses": (ip,),
        "mac": mac_of(VNI, ip),
        "vtep": VTEP,
        "name": name,
    }
    return Endpoint(**{**fields, **changes})  # type: ignore[arg-type]
