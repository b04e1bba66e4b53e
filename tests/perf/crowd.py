"""A host among many: the objects that the daemon wires together, with a real kernel in a namespace of its own, and as
many other nodes as wished, whose signed rows come in as gossip brings them.
"""

from __future__ import annotations

import ipaddress
import random
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from tests.gossip_cluster import NETWORK, VNI, Cluster, Papers
from tests.host.rig import GATEWAY, Container, Machine
from vxnet.core.allocate import mac_of
from vxnet.core.applied import Acknowledgements
from vxnet.core.author import Author
from vxnet.core.gossip import GossipNode
from vxnet.core.members import Member
from vxnet.core.names import Names
from vxnet.core.plan import plan
from vxnet.core.remotes import Groups
from vxnet.core.rows import Batch
from vxnet.model import container as model
from vxnet.model.address import IPAddress
from vxnet.model.cluster import Cluster as ClusterRecord
from vxnet.model.cluster import Network, Node, Subnet
from vxnet.model.host import Change, HostState
from vxnet.model.row import Certificate, Endpoint, Leases

LOCAL = ipaddress.ip_address("192.168.9.1")
POOL = ipaddress.ip_network("10.0.0.0/16")
NETWORKS = {
    NETWORK: Network(
        id=NETWORK, name="crowd", vni=VNI, subnets=(Subnet(prefix=POOL, gateway=ipaddress.ip_address("10.0.0.1")),)
    )
}
RECORD = ClusterRecord(id="cluster", pools=(POOL,), created_at=0.0)


class Other(NamedTuple):
    """A node with containers, as far as it is heard of."""

    papers: Papers
    author: Author
    vtep: IPAddress
    first: IPAddress
    """Of its block."""

    def endpoint(self, number: int, state: str = "ready") -> Endpoint:
        address = self.first + number
        return Endpoint(
            network=NETWORK,
            vni=VNI,
            addresses=(address,),
            mac=mac_of(VNI, address),
            vtep=self.vtep,
            name=f"web{number}.{self.papers.id}",
            state=state,  # type: ignore[arg-type]
        )


class Crowd:
    """``others`` nodes with ``each`` containers on one network, and this host with one."""

    def __init__(self, others: int, each: int) -> None:
        self.wall = time.time()
        rng = random.Random(1)
        self.cluster = Cluster(rng, self.wall - 60)
        self.papers: list[Batch] = []
        self.others = tuple(self._others(others, each))
        self.batches = [batch for other in self.others for batch in other.author.flush()]
        """Of the containers. What they are believed by came when the nodes joined."""
        self.machine = Machine()
        self.container = Container(2)
        self.node = self._node(rng)
        self.receive(self.papers)
        self.node.rows(self.wall)
        self.names = Names()
        self.groups = Groups()
        self.acknowledgements = Acknowledgements()
        self._self = Node(
            id="self", name="self", role="worker", advertise_addr=LOCAL, data_path_addr=LOCAL, joined_at=0.0
        )

    def _others(self, count: int, each: int) -> Iterator[Other]:
        block = max(each + 2, 8)
        prefixlen = 32 - (block - 1).bit_length()
        for number, prefix in zip(range(1, count + 1), POOL.subnets(new_prefix=prefixlen), strict=False):
            vtep = ipaddress.ip_address("192.168.16.0") + number
            papers = self.cluster.papers(f"node{number:05}", addresses=(vtep,))
            other = Other(papers, Author(papers.id, papers.key, 1), vtep, prefix.network_address + 1)
            other.author.put("certificate", "", Certificate(papers.certificate))
            signed = self.cluster.leases(papers.id, str(prefix))
            other.author.put("leases", "", Leases(signed.content, signed.signature, signed.certificate))
            self.papers += other.author.flush()
            for at in range(each):
                other.author.put("endpoint", f"{number:06}{at:06}.eth0", other.endpoint(at))
            yield other

    def _node(self, rng: random.Random) -> GossipNode:
        papers = self.cluster.papers("self", addresses=(LOCAL,))
        node = self.cluster.node(papers, "self", LOCAL, rng=rng, now=0.0, wall=self.wall)
        for other in self.others:
            member = Member(
                name=other.papers.id,
                id=other.papers.id,
                address=other.vtep,
                tags={"vxnet": "1", "id": other.papers.id},
                status="alive",
                incarnation=1,
                port=7946,
            )
            node.swim.members.put(member)
        return node

    # What the daemon does

    def receive(self, batches: Sequence[Batch]) -> None:
        for batch in batches:
            self.node.table.receive(batch)

    def plan(self) -> HostState:
        sandbox = self.container.sandbox()
        return plan(
            self_node=self._self,
            cluster=RECORD,
            networks=NETWORKS,
            containers=(self._record(),),
            facts=self.node.paths(self.wall),
            members={other.papers.id: other.vtep for other in self.others},
            underlay_mtu=1500,
            gateway=GATEWAY,
            dns_ports={sandbox.id: sandbox.dns_port},
            groups=self.groups,
        )

    def _record(self) -> model.Container:
        address = ipaddress.ip_interface("10.0.255.2/16")
        return model.Container(
            id=self.container.id,
            spec=model.ContainerSpec(argv=("true",)),
            attachments=(
                model.Attachment(network=NETWORK, ifname="eth0", mac=mac_of(VNI, address.ip), addresses=(address,)),
            ),
            pid=self.container.tid,
            created_at=0.0,
        )

    def reconcile(self, state: HostState, sandboxes: Sequence[str] | None = None) -> list[Change]:
        return self.machine.reconcile(state, sandboxes)

    def tell(self, state: HostState) -> None:
        """Names and acknowledgement, once the kernel carries it."""
        rows = self.node.rows(self.wall)
        self.names.update(rows, NETWORKS)
        self.acknowledgements.to_tell(rows, "self", frozenset(segment.vni for segment in state.segments))

    def close(self) -> None:
        self.machine.close()
        self.container.close()
