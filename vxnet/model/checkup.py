"""What `doctor` asks of a daemon and gets to know, and what it says to people."""

from __future__ import annotations

from typing import Literal

from vxnet.model.address import IPAddress, IPNetwork
from vxnet.model.cluster import DATA_PORT, Record, Role
from vxnet.model.host import Change, HostState

Heard = Literal[
    "udp", "tcp", "wire", "wire-large", "data", "data-large", "damaged", "damaged-large",
    "control", "etcd-client", "etcd-peer",
]  # fmt: skip
"""What came from the other side: gossip by ``udp`` and ``tcp`` (7946); packets to the VXLAN port that reached the card
(``wire``) and those that passed the firewall behind it (``data``), in both sizes; ``damaged``: with a wrong checksum
inside; ``control``, ``etcd-client``, ``etcd-peer``: whoever says so reached the other's 2377, 2379, 2380."""


class PeerExam(Record, frozen=True, kw_only=True):
    """What two hosts heard of each other, each asked to speak up."""

    name: str
    node: str
    address: IPAddress
    vtep: IPAddress
    role: Role
    version: str = ""
    present: bool = True
    """By gossip's word."""
    answered: bool = False
    here: tuple[Heard, ...] = ()
    """What came from it to this host."""
    there: tuple[Heard, ...] = ()
    """What it says has come from this host."""
    clock_ahead_s: float | None = None
    """How far its clock is ahead of this one's; None: not known."""
    machine: str = ""
    """A digest of its machine id, so that equal ones are seen and none is told."""


class Exam(Record, frozen=True, kw_only=True):
    peers: tuple[PeerExam, ...] = ()
    machine: str = ""
    probed_data: bool = False
    """Whether packets were sent to the VXLAN port."""
    large: int = 0
    """Octets of the large ones, as an IP packet on the underlay."""
    error: str = ""
    """Why packets could not be sent there."""


class Diagnosis(Record, frozen=True, kw_only=True):
    """What a daemon knows of itself and of its cluster that no other question tells."""

    plan: HostState
    """What this host's kernel is to be."""
    refused: tuple[Change, ...] = ()
    """What the kernel refused of it when it was last asked."""
    removed: bool = False
    """The managers say that this node is none of the cluster's."""
    manager_here: bool = False
    etcd_here: bool = False
    """A member of the etcd that vxnet runs on managers' hosts."""
    certificate_from: float | None = None
    certificate_until: float | None = None
    authority_until: float | None = None
    """Of the CA's certificate that lasts longest."""
    subnets: tuple[IPNetwork, ...] = ()
    """Of the cluster's networks."""
    published: dict[str, tuple[int, ...]] = {}
    """TCP ports that every node answers for everybody, by the service's name."""
    containers: dict[str, str] = {}
    """Names by id, of all that this host has."""
    data_port: int = DATA_PORT
    state_directory: str = ""
    run_directory: str = ""


Verdict = Literal["ok", "note", "warning", "fault"]
"""``note``: could not be looked at, or is worth knowing; ``warning``: will be trouble; ``fault``: is."""


class Finding(Record, frozen=True, kw_only=True):
    """A line of `doctor`."""

    check: str
    verdict: Verdict
    found: str
    advice: str = ""
    fixed: str = ""
    """What ``--fix`` has done about it."""
    fixable: bool = False
