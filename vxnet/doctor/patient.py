"""What is looked at before anything is judged: this host by its own kernel, and what its daemon knows and finds out."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, TypeVar

from vxnet.cluster.client import Client
from vxnet.core.pathmtu import Path as Carried
from vxnet.core.pathmtu import Probe, Survey
from vxnet.doctor.inside import Inside, look_inside, resolver_answers
from vxnet.host import facts, firewall, neighbourhood, offload
from vxnet.host.echo import echo
from vxnet.host.firewall import Chain
from vxnet.host.inspection import differences
from vxnet.model.address import MAC, IPAddress
from vxnet.model.api import Info
from vxnet.model.checkup import Diagnosis, Exam
from vxnet.model.errors import ConflictError, HostError, UnavailableError, VxnetError
from vxnet.model.gossip import GossipView
from vxnet.model.host import Change, HostAddress

T = TypeVar("T")

SETTLE_S = 1.5
"""Between two looks at the kernel: what is only under way is not there the second time."""
_SHIM = "vxnet-shim"
PORTS = 50
"""So many published ports are tried, of all hosts together."""
CONNECT_S = 1.5


class Disk(NamedTuple):
    path: str
    free: int
    """Octets."""
    free_inodes: int
    inodes: int
    """0: the file system counts none."""
    read_only: bool


class Answer(NamedTuple):
    host: str
    service: str
    port: int
    said: str
    """``open``, ``refused``, ``silent``."""


class Patient(NamedTuple):
    now: float
    info: Info | None
    """None: the daemon does not answer."""
    silence: str
    """Why."""
    diagnosis: Diagnosis | None
    gossip: GossipView | None
    exam: Exam | None
    unexamined: str
    """Why nobody examined the ways to the others."""
    missing: tuple[str, ...]
    addresses: tuple[HostAddress, ...]
    unplanned: tuple[Change, ...]
    """What the kernel would have to be told to be as planned, at two looks."""
    unseen: str
    """Why the kernel could not be looked at."""
    carried: Mapping[IPAddress, Carried]
    chains: tuple[Chain, ...]
    answering: Mapping[IPAddress, frozenset[MAC]]
    """Who else answers for an address: for this host's own, and for the others'."""
    ways: Mapping[IPAddress, str]
    """The interface through which each of the others is reached."""
    offloading: tuple[str, ...]
    """Interfaces of these whose cards compute checksums."""
    disks: tuple[Disk, ...]
    leftovers: tuple[str, ...]
    resolvers: Mapping[IPAddress, bool]
    """Whether the host's name servers answer."""
    inside: tuple[Inside, ...]
    published: tuple[Answer, ...]
    """Of the other hosts, at the ports that every node answers."""
    version: str
    """Of this program."""

    @property
    def vteps(self) -> list[IPAddress]:
        return [] if self.exam is None else [peer.vtep for peer in self.exam.peers]


def look(client: Client, version: str, progress: Callable[[str], None]) -> Patient:
    """Takes a few seconds. Raises :class:`HostError` without root."""
    if os.geteuid() != 0:
        raise HostError("a doctor looks into namespaces and at packets", hint="use sudo")
    progress("asking the daemon")
    info, silence = _or_why(client.info, None)
    diagnosis, _ = _or_why(client.diagnosis, None) if info is not None else (None, "")
    member = info is not None and bool(info.cluster)
    gossip, _ = _or_why(client.gossip, None) if member else (None, "")
    progress("hearing the other hosts out")
    exam, unexamined = _or_why(client.examine, None) if member else (None, "")
    progress("looking at the kernel")
    observed = facts.observe_host()
    unplanned, unseen = _unplanned(client, diagnosis)
    peers = {} if exam is None else {peer.vtep: peer.name for peer in exam.peers}
    own = info.data_path_addr if info is not None else None
    ways = neighbourhood.ways_to(peers)
    progress("probing the paths")
    asked = {vtep: way.interface for vtep, way in ways.items()}
    asked |= {one.address.ip: one.interface for one in observed.addresses if one.address.ip == own}
    found = neighbourhood.who_has(asked, observed.addresses)
    macs = neighbourhood.own_macs()
    return Patient(
        now=time.time(),
        info=info,
        silence=silence,
        diagnosis=diagnosis,
        gossip=gossip,
        exam=exam,
        unexamined=unexamined,
        missing=facts.missing(),
        addresses=observed.addresses,
        unplanned=unplanned,
        unseen=unseen,
        carried=_carried(own, {vtep: way.mtu for vtep, way in ways.items() if vtep != own}),
        chains=tuple(firewall.dropping()),
        answering={address: answers - macs for address, answers in found.items()},
        ways={vtep: way.interface for vtep, way in ways.items()},
        offloading=tuple(name for name in sorted({way.interface for way in ways.values()} - {"lo"}) if _offloads(name)),
        disks=tuple(_disks(diagnosis)),
        leftovers=tuple(_leftovers(diagnosis)),
        resolvers={server: resolver_answers(server) for server in observed.nameservers},
        inside=tuple(look_inside(diagnosis, [peer.address for peer in exam.peers] if exam is not None else [])),
        published=tuple(_published(diagnosis, exam)),
        version=version,
    )


def _or_why(ask: Callable[[], T], otherwise: T | None) -> tuple[T | None, str]:
    try:
        return ask(), ""
    except (UnavailableError, ConflictError) as error:
        return otherwise, error.message
    except (VxnetError, OSError) as error:
        return otherwise, str(error)


def _unplanned(client: Client, diagnosis: Diagnosis | None) -> tuple[tuple[Change, ...], str]:
    if diagnosis is None:
        return (), ""
    try:
        first = {change.object: change for change in differences(diagnosis.plan)}
        if not first:
            return (), ""
        time.sleep(SETTLE_S)
        second = {change.object for change in differences(client.diagnosis().plan)}
    except (VxnetError, OSError) as error:
        return (), str(error)
    return tuple(change for words, change in first.items() if words in second), ""


def _carried(own: IPAddress | None, promised: Mapping[IPAddress, int]) -> dict[IPAddress, Carried]:
    """By probes of chosen sizes, here and now."""
    promised = {vtep: mtu for vtep, mtu in promised.items() if own is not None and vtep.version == own.version}
    if own is None or not promised:
        return {}
    survey = Survey(promised)
    try:
        while probes := survey.probes():
            survey.take({Probe(*one) for one in echo(own, probes)})
    except OSError:  # this host lacks the address: another check's finding
        return {}
    return survey.paths()


def _published(diagnosis: Diagnosis | None, exam: Exam | None) -> list[Answer]:
    """All at once: one that is silent costs a second."""
    if diagnosis is None or exam is None:
        return []
    asked = [
        (peer, service, port)
        for peer in exam.peers
        if peer.present
        for service, ports in diagnosis.published.items()
        for port in ports
    ][:PORTS]
    if not asked:
        return []
    with ThreadPoolExecutor(len(asked)) as pool:
        said = pool.map(lambda one: _connects(str(one[0].address), one[2]), asked)
        return [Answer(peer.name, service, port, word) for (peer, service, port), word in zip(asked, said, strict=True)]


def _connects(address: str, port: int) -> str:
    try:
        socket.create_connection((address, port), CONNECT_S).close()
    except ConnectionRefusedError:
        return "refused"
    except OSError:
        return "silent"
    return "open"


def _offloads(interface: str) -> bool:
    try:
        return offload.computes_checksums(interface)
    except OSError:
        return False


def _disks(diagnosis: Diagnosis | None) -> list[Disk]:
    places = [diagnosis.state_directory, diagnosis.run_directory] if diagnosis is not None else ["/var/lib/vxnet"]
    places.append(f"{places[0]}/containers")
    found: dict[int, Disk] = {}
    for place in places:
        with contextlib.suppress(OSError):
            status = os.statvfs(place)
            found.setdefault(
                os.stat(place).st_dev,
                Disk(
                    place,
                    status.f_bavail * status.f_frsize,
                    status.f_favail,
                    status.f_files,
                    bool(status.f_flag & os.ST_RDONLY),
                ),
            )
    return list(found.values())


def _leftovers(diagnosis: Diagnosis | None) -> list[str]:
    """What is of vxnet's and belongs to nothing that the daemon knows. Without a daemon nobody can tell."""
    if diagnosis is None:
        return []
    found = [
        f"directory {path}"
        for path in sorted(Path(diagnosis.state_directory, "containers").glob("*"))
        if path.name not in diagnosis.containers
    ]
    known = {id_[:12] for id_ in diagnosis.containers}
    own = os.readlink("/proc/self/ns/pid")  # a lab's shims are another host's
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError, IndexError):
                argv = (entry / "cmdline").read_bytes().split(b"\0")
                if argv[0].rpartition(b"/")[2] != _SHIM.encode() or os.readlink(entry / "ns/pid") != own:
                    continue
                if (id_ := argv[1].decode(errors="replace")[:12]) not in known:
                    found.append(f"process {entry.name} ({_SHIM} {id_})")
    return found
