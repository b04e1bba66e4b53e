"""What a node remembers over restarts: ``/var/lib/vxnet``.

::

     node.json        who we are in the cluster (LocalNode)        node.crt  node.key   PEM
     assignment.json  the managers' last word                      members.json         where the others were
     gateway.json     subnet of vxnet_gw                           store.db             on managers: the store, or
     foot.json        address in the ingress network               store.json           how it is reached
     etcd/            a member of it (host/etcd)
     rows             of the other hosts, as received
     tasks.json       ended ones
     containers/ID/   container.json and what the shim keeps    guests/ID.json   namespaces of others
     networks/ID.json of this host alone

A file is replaced whole or not at all: written beside, synced, renamed. What cannot be read is an error that names the
file; nothing is guessed in its place.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path
from typing import TypeVar

import structlog

from vxnet.model.address import IPAddress, IPInterface
from vxnet.model.assignment import Assignment
from vxnet.model.cluster import Lease, Network, Node, Record
from vxnet.model.codec import from_json, to_json
from vxnet.model.container import Attachment, Container
from vxnet.model.errors import HostError
from vxnet.model.guest import Guest
from vxnet.model.published import PublishedPort
from vxnet.model.service import TaskState
from vxnet.model.store import StoreAccess

T = TypeVar("T")

log = structlog.get_logger()

STATE_DIRECTORY = Path("/var/lib/vxnet")
RUN_DIRECTORY = Path("/run/vxnet")
_OF_THE_CLUSTER = (
    *("node.json", "assignment.json", "members.json", "rows", "tasks.json", "node.crt", "node.key", "gateway.json"),
    "foot.json",
)


class LocalNode(Record, frozen=True, kw_only=True):
    """This host's own place in a cluster."""

    node: Node
    row_incarnation: int = 0
    """Of the rows; grows by one at each start of the daemon."""
    returning: tuple[Lease, ...] = ()
    """Blocks that go back to the managers: none of their addresses is given, also if the answer never came."""


class LastMembers(Record, frozen=True, kw_only=True):
    """The others as they were: where to look for them when no manager answers, and who may send until they are met."""

    addresses: tuple[IPAddress, ...] = ()
    vteps: dict[str, IPAddress] = {}
    """By node id."""


class TaskFact(Record, frozen=True):
    """What is known of a task that was given to this host, for the managers."""

    state: TaskState
    since: float
    started_at: float | None = None
    message: str = ""
    exit_status: int | None = None
    container: str = ""
    """Id."""
    ports: tuple[PublishedPort, ...] = ()
    """Of this host."""


class EndedTasks(Record, frozen=True, kw_only=True):
    """Tasks that ran here and never will again, also when their containers were taken away: by id."""

    facts: dict[str, TaskFact] = {}


class GatewayChoice(Record, frozen=True, kw_only=True):
    """Chosen once a host, so that containers keep their way out over restarts."""

    addresses: tuple[IPInterface, ...]


class StateDirectory:
    """Typed access to the files. All methods block and raise :class:`HostError`; those that sync may take many seconds,
    see :mod:`vxnet.daemon.keeping`.
    """

    def __init__(self, path: Path = STATE_DIRECTORY) -> None:
        self.path = path
        self.containers_path = path / "containers"
        self.guests_path = path / "guests"
        self.networks_path = path / "networks"
        self._gateway: GatewayChoice | None = None
        try:
            self.containers_path.mkdir(parents=True, exist_ok=True)
            for directory, mode in ((path, 0o711), (self.containers_path, 0o700)):
                if directory.stat().st_mode & 0o777 != mode:  # a disk may have become read-only
                    directory.chmod(mode)
        except OSError as error:
            raise HostError(f"cannot make {path}: {error.strerror}") from error

    # The cluster

    def local_node(self) -> LocalNode | None:
        return self._read("node.json", LocalNode)

    def save_local_node(self, local: LocalNode) -> None:
        self._write("node.json", to_json(local))

    def assignment(self) -> Assignment | None:
        return self._read("assignment.json", Assignment)

    def save_assignment(self, assignment: Assignment) -> None:
        self._write("assignment.json", to_json(assignment))

    def last_members(self) -> LastMembers:
        return self._read("members.json", LastMembers) or LastMembers()

    def save_last_members(self, members: LastMembers) -> None:
        self._write("members.json", to_json(members))

    def ended_tasks(self) -> EndedTasks:
        return self._read("tasks.json", EndedTasks) or EndedTasks()

    def save_ended_tasks(self, ended: EndedTasks) -> None:
        if ended.facts:
            self._write("tasks.json", to_json(ended))
        else:
            self._remove("tasks.json")

    @property
    def certificate_path(self) -> Path:
        return self.path / "node.crt"

    @property
    def key_path(self) -> Path:
        return self.path / "node.key"

    @property
    def rows_path(self) -> Path:
        """See :mod:`vxnet.cluster.journal`."""
        return self.path / "rows"

    @property
    def store_path(self) -> Path:
        return self.path / "store.db"

    @property
    def etcd_path(self) -> Path:
        """See :mod:`vxnet.host.etcd`."""
        return self.path / "etcd"

    def store_access(self) -> StoreAccess | None:
        """None: the store is SQLite's file, if any."""
        return self._read("store.json", StoreAccess)

    def save_store_access(self, access: StoreAccess) -> None:
        self._write("store.json", to_json(access))

    def retire_store(self) -> None:
        """SQLite's files, once the cluster lives elsewhere: kept for who wants to look, and used no more."""
        for path in self.path.glob("store.db*"):
            path.rename(path.with_name(path.name.replace("store.db", "store.db.migrated")))

    def forget_store(self) -> None:
        """Of a node that is no manager any more."""
        for name in ("store.json", *(path.name for path in self.path.glob("store.db*"))):
            self._remove(name)

    def save_credentials(self, certificate_pem: bytes, key_pem: bytes | None = None) -> None:
        """The key first: a certificate without its key would be of no use."""
        if key_pem is not None:
            self._write("node.key", key_pem)
        self._write("node.crt", certificate_pem)

    def credentials(self) -> tuple[bytes, bytes]:
        """(certificate, key), PEM."""
        try:
            return self.certificate_path.read_bytes(), self.key_path.read_bytes()
        except OSError as error:
            raise HostError(
                f"this node's certificate cannot be read: {error.filename}: {error.strerror}",
                hint=f"restore it, or move {self.path} away and join again",
            ) from error

    def forget_cluster(self) -> None:
        """After ``leave``: no secret and no name of the cluster stays."""
        for name in _OF_THE_CLUSTER:
            self._remove(name)
        self.forget_store()
        self._gateway = None

    # The gateway

    def gateway(self) -> GatewayChoice | None:
        """Read once: every plan asks for it."""
        if self._gateway is None:
            self._gateway = self._read("gateway.json", GatewayChoice)
        return self._gateway

    def save_gateway(self, choice: GatewayChoice) -> None:
        self._write("gateway.json", to_json(choice))
        self._gateway = choice

    # The routing mesh

    def foot(self) -> Attachment | None:
        return self._read("foot.json", Attachment)

    def save_foot(self, foot: Attachment) -> None:
        self._write("foot.json", to_json(foot))

    # Containers

    def container_directory(self, container_id: str) -> Path:
        return self.containers_path / container_id

    def containers(self) -> list[Container]:
        """Those whose record is whole. A directory without one is a creation that a crash cut short: it is removed. One
        whose record is damaged (it is not synced, and a power cut ends the container anyway) stays for who wants to
        look: it is no reason for all others to be without a daemon.
        """
        found = []
        for directory in sorted(self.containers_path.iterdir()):
            try:
                container = self._read(f"containers/{directory.name}/container.json", Container)
            except HostError as error:
                log.error("container passed over", container=directory.name[:12], error=str(error))
                continue
            if container is not None:
                found.append(container)
            else:
                shutil.rmtree(directory, ignore_errors=True)
        return found

    def save_container(self, container: Container) -> None:
        self._write(f"containers/{container.id}/container.json", to_json(container), sync=False)

    def forget_container(self, container_id: str) -> None:
        """Before its other files go: what is left of them without this goes at the next start."""
        self._remove(f"containers/{container_id}/container.json")

    # Guests

    def guests(self) -> list[Guest]:
        """Those whose record can be read."""
        found = []
        for path in sorted(self.guests_path.glob("*.json")):
            try:
                guest = self._read(f"guests/{path.name}", Guest)
            except HostError as error:
                log.error("guest passed over", guest=path.name[:12], error=str(error))
                continue
            found += [guest] if guest is not None else []
        return found

    def save_guest(self, guest: Guest) -> None:
        self._write(f"guests/{guest.id}.json", to_json(guest), sync=False)

    def forget_guest(self, guest_id: str) -> None:
        try:
            (self.guests_path / f"{guest_id}.json").unlink(missing_ok=True)
        except OSError as error:  # the next start finds that it has ended
            log.error("guest not forgotten", guest=guest_id[:12], error=str(error))

    # Networks of this host alone

    def networks(self) -> list[Network]:
        """Those whose record can be read."""
        found = []
        for path in sorted(self.networks_path.glob("*.json")):
            try:
                network = self._read(f"networks/{path.name}", Network)
            except HostError as error:
                log.error("network passed over", network=path.name[:12], error=str(error))
                continue
            found += [network] if network is not None else []
        return found

    def save_network(self, network: Network) -> None:
        self._write(f"networks/{network.id}.json", to_json(network))

    def forget_network(self, network_id: str) -> None:
        self._remove(f"networks/{network_id}.json")

    # Files

    def _read(self, name: str, kind: type[T]) -> T | None:
        path = self.path / name
        try:
            return from_json(path.read_bytes(), kind)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise HostError(f"cannot read {path}: {error.strerror}") from error
        except ValueError as error:
            raise HostError(
                f"{path} is damaged, or of another version of vxnet ({error})",
                hint=f"install the version that wrote it, restore it from a backup, or move {path} away",
            ) from error

    def _remove(self, name: str) -> None:
        try:
            (self.path / name).unlink(missing_ok=True)
        except OSError as error:
            raise HostError(f"cannot remove {self.path / name}: {error.strerror}") from error

    def _write(self, name: str, data: bytes, *, sync: bool = True) -> None:
        """For root alone: what containers are told in their environment is nobody else's, keys and tokens less so."""
        path = self.path / name
        beside = path.with_name(path.name + ".new")
        try:
            if path.parent != self.path:
                path.parent.mkdir(mode=0o700, exist_ok=True)
            fd = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            with open(fd, "wb") as file:
                os.fchmod(fd, 0o600)
                file.write(data)
                file.flush()
                if sync:
                    os.fsync(fd)
            os.replace(beside, path)
        except OSError as error:
            with contextlib.suppress(OSError):
                beside.unlink()
            raise HostError(f"cannot write {path}: {error.strerror}") from error
