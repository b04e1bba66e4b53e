"""The local API's client: one method a route, records in and out. Used by the command line, the lab and tests.

Blocking, standard library only, one connection a request. A refusal comes out as the :class:`VxnetError` that the
daemon raised; a daemon out of reach is an :class:`UnavailableError`, a socket that may not be used a
:class:`ForbiddenError`.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from typing import Final, TypeVar

from vxnet.cluster.failure import failure_from_json
from vxnet.cluster.http1 import BrokenAnswerError, Exchange, Writer, quote
from vxnet.model import codec
from vxnet.model.api import (
    ContainerUpdate,
    ContainerView,
    Event,
    Info,
    InitRequest,
    JoinRequest,
    NetworkConnect,
    NetworkCreate,
    NetworkPrune,
    NetworkUpdate,
    NetworkView,
    NodeUpdate,
    NodeView,
    ProcessView,
    ServiceProgress,
    ServiceUpdate,
    ServiceView,
    TaskView,
    UsageView,
)
from vxnet.model.bench import BenchEnd, BenchWish
from vxnet.model.ca import CaView
from vxnet.model.checkup import Diagnosis, Exam
from vxnet.model.cluster import ForeignPeer, Network, Node, Record, Role
from vxnet.model.container import Container, ContainerSpec
from vxnet.model.errors import ForbiddenError, NotFoundError, PeerError, UnavailableError
from vxnet.model.gossip import GossipKeyView, GossipView, RotateKeys, Rotation
from vxnet.model.guest import GuestView, GuestWish
from vxnet.model.mesh import MeshView
from vxnet.model.service import Service, ServiceSpec
from vxnet.model.store import Backup, RestoreRequest, StoreWish

T = TypeVar("T")

SOCKET_PATH: Final = "/run/vxnet/vxnet.sock"
SOCKET_VARIABLE: Final = "VXNET_SOCKET"
"""Environment variable that names another socket."""
ANSWER_S: Final = 30.0
"""Longest silence of the daemon: it may have to ask a manager, which may have to be found among several."""
CLUSTER_S: Final = 120.0
"""`init`, `join` and `leave` make keys, devices and certificates, or take everything down."""

STORE_S = 120.0
FILES_S: Final = 300.0
"""Longest silence while files are copied: a disk may stand still for a while."""


class TokenAnswer(Record, frozen=True, kw_only=True):
    token: str


class ShimAnswer(Record, frozen=True, kw_only=True):
    """Where a running container's shim listens: `exec` and `attach` talk to it past the daemon."""

    socket: str


class Client:
    def __init__(self, socket_path: str = "", *, timeout_s: float = ANSWER_S) -> None:
        self.socket_path = socket_path or os.environ.get(SOCKET_VARIABLE) or SOCKET_PATH
        self._timeout_s = timeout_s

    # ------------------------------------------------------------------------------------------------------- cluster

    def info(self) -> Info:
        return self._get("info", Info)

    def init(self, request: InitRequest) -> Node:
        return self._read(self._exchange("POST", "cluster/init", request, CLUSTER_S), Node)

    def join(self, request: JoinRequest) -> Node:
        return self._read(self._exchange("POST", "cluster/join", request, CLUSTER_S), Node)

    def leave(self, *, force: bool = False) -> None:
        self._exchange("POST", f"cluster/leave{_query(force=force)}", None, CLUSTER_S)

    def join_token(self, role: Role, *, rotate: bool = False) -> str:
        if rotate:
            return self._post(f"join-token/{role}/rotate", TokenAnswer).token
        return self._get(f"join-token/{role}", TokenAnswer).token

    def nodes(self) -> tuple[NodeView, ...]:
        return self._get("nodes", tuple[NodeView, ...])

    def node(self, ref: str) -> NodeView:
        return self._get(f"nodes/{_segment('node', ref)}", NodeView)

    def remove_node(self, ref: str, *, force: bool = False) -> None:
        self._call("DELETE", f"nodes/{_segment('node', ref)}{_query(force=force)}")

    # -------------------------------------------------------------------------------------------------------- gossip

    def mesh(self) -> tuple[MeshView, ...]:
        """The published ports of the routing mesh, by number."""
        return self._get("mesh", tuple[MeshView, ...])

    def gossip(self) -> GossipView:
        return self._get("gossip", GossipView)

    def gossip_keys(self) -> tuple[GossipKeyView, ...]:
        """For root; :class:`ForbiddenError` for others."""
        return self._get("gossip/keys", tuple[GossipKeyView, ...])

    def events(self, *, since: float | None = None, until: float | None = None) -> Iterator[Event]:
        """Between two moments in seconds since 1970. ``since`` None: only what comes; ``until`` None: without end."""
        words = [f"{name}={value:.6f}" for name, value in (("since", since), ("until", until)) if value is not None]
        target = f"/v1/events{'?' if words else ''}{'&'.join(words)}"
        rest = b""
        with self._reached(None), Exchange(self.socket_path, "GET", target, None, None) as exchange:
            if exchange.status >= 400:
                raise failure_from_json(exchange.status, exchange.read())
            for chunk in exchange.chunks():
                *lines, rest = (rest + chunk).split(b"\n")
                yield from (self._read(line, Event) for line in lines)

    def diagnosis(self) -> Diagnosis:
        return self._get("diagnosis", Diagnosis)

    def examine(self) -> Exam:
        """Takes about two seconds, for as many nodes as there are."""
        return self._post("examination", Exam)

    @contextlib.contextmanager
    def bench_end(self, node: str, wish: BenchWish) -> Iterator[BenchEnd]:
        """An end of a measurement on that node, for as long as the block lasts."""
        target = f"/v1/nodes/{_segment('node', node)}/bench"
        with contextlib.ExitStack() as stack:
            said = b""
            with self._reached(ANSWER_S):
                opening = Exchange(self.socket_path, "POST", target, codec.to_json(wish), ANSWER_S)
                exchange = stack.enter_context(opening)
                if exchange.status >= 400:
                    raise failure_from_json(exchange.status, exchange.read())
                chunks = exchange.chunks()
                while b"\n" not in said and (chunk := next(chunks, b"")):
                    said += chunk
            if b"\n" not in said:
                hint = "its daemon's log may say why"
                raise PeerError(f"the end of the measurement on node {node} ended at once", hint=hint)
            yield self._read(said.partition(b"\n")[0], BenchEnd)

    def rotation(self) -> Rotation:
        return self._get("gossip/rotation", Rotation)

    def rotate_keys(self, request: RotateKeys) -> Rotation:
        return self._post("gossip/rotate-keys", Rotation, request)

    def migrate_store(self, wish: StoreWish) -> None:
        self._exchange("POST", "store/migrate", wish, STORE_S)

    def back_up_store(self) -> Backup:
        return self._read(self._exchange("GET", "store/backup", None, STORE_S), Backup)

    def restore_store(self, request: RestoreRequest) -> Node:
        return self._read(self._exchange("POST", "store/restore", request, STORE_S), Node)

    def set_role(self, ref: str, role: Role) -> Node:
        return self._post(f"nodes/{_segment('node', ref)}/role/{role}", Node)

    def ca(self) -> CaView:
        return self._get("cluster/ca", CaView)

    def rotate_ca(self) -> CaView:
        """For root; :class:`ForbiddenError` for others."""
        return self._post("cluster/ca/rotate", CaView)

    def update_node(self, ref: str, update: NodeUpdate) -> Node:
        return self._post(f"nodes/{_segment('node', ref)}/update", Node, update)

    def tasks_of_node(self, ref: str) -> tuple[TaskView, ...]:
        return self._get(f"nodes/{_segment('node', ref)}/tasks", tuple[TaskView, ...])

    # ------------------------------------------------------------------------------------------------------ services

    def services(self) -> tuple[ServiceView, ...]:
        return self._get("services", tuple[ServiceView, ...])

    def service(self, ref: str) -> ServiceView:
        return self._get(f"services/{_segment('service', ref)}", ServiceView)

    def tasks_of_service(self, ref: str) -> tuple[TaskView, ...]:
        return self._get(f"services/{_segment('service', ref)}/tasks", tuple[TaskView, ...])

    def create_service(self, spec: ServiceSpec) -> Service:
        return self._post("services", Service, spec)

    def update_service(self, ref: str, update: ServiceUpdate) -> Service:
        return self._post(f"services/{_segment('service', ref)}/update", Service, update)

    def scale_service(self, ref: str, replicas: int) -> Service:
        return self._post(f"services/{_segment('service', ref)}/scale/{replicas}", Service)

    def roll_back_service(self, ref: str) -> Service:
        return self._post(f"services/{_segment('service', ref)}/rollback", Service)

    def remove_service(self, ref: str) -> None:
        self._call("DELETE", f"services/{_segment('service', ref)}")

    def progress(self, ref: str) -> Iterator[ServiceProgress]:
        """Now, and whenever it is another, until the service is removed."""
        target = f"/v1/services/{_segment('service', ref)}/progress"
        with self._reached(None), Exchange(self.socket_path, "GET", target, None, None) as exchange:
            if exchange.status >= 400:
                raise failure_from_json(exchange.status, exchange.read())
            rest = b""
            for chunk in exchange.chunks():
                *lines, rest = (rest + chunk).split(b"\n")
                yield from (self._read(line, ServiceProgress) for line in lines)

    # ------------------------------------------------------------------------------------------------------ networks

    def networks(self) -> tuple[Network, ...]:
        return self._get("networks", tuple[Network, ...])

    def network(self, ref: str, *, verbose: bool = False) -> NetworkView:
        return self._get(f"networks/{_segment('network', ref)}{_query(verbose=verbose)}", NetworkView)

    def create_network(self, request: NetworkCreate) -> Network:
        return self._post("networks", Network, request)

    def update_network(self, ref: str, request: NetworkUpdate) -> Network:
        return self._post(f"networks/{_segment('network', ref)}/update", Network, request)

    def add_peer(self, ref: str, peer: ForeignPeer) -> Network:
        return self._post(f"networks/{_segment('network', ref)}/peers", Network, peer)

    def remove_peer(self, ref: str, peer: str) -> Network:
        target = f"networks/{_segment('network', ref)}/peers/{_segment('peer', peer)}"
        return self._read(self._call("DELETE", target), Network)

    def prune_networks(self, request: NetworkPrune) -> tuple[Network, ...]:
        return self._post("networks/prune", tuple[Network, ...], request)

    def remove_network(self, ref: str) -> None:
        self._call("DELETE", f"networks/{_segment('network', ref)}")

    def connect(self, ref: str, request: NetworkConnect) -> None:
        self._call("POST", f"networks/{_segment('network', ref)}/connect", request)

    def disconnect(self, ref: str, request: NetworkConnect, *, force: bool = False) -> None:
        self._call("POST", f"networks/{_segment('network', ref)}/disconnect{_query(force=force)}", request)

    def guests(self) -> tuple[GuestView, ...]:
        return self._get("guests", tuple[GuestView, ...])

    def connect_guest(self, ref: str, wish: GuestWish) -> GuestView:
        return self._post(f"networks/{_segment('network', ref)}/connect-guest", GuestView, wish)

    def disconnect_guest(self, ref: str, wish: GuestWish) -> None:
        self._call("POST", f"networks/{_segment('network', ref)}/disconnect-guest", wish)

    # ---------------------------------------------------------------------------------------------------- containers

    def containers(self, *, all: bool = False) -> tuple[ContainerView, ...]:
        return self._get(f"containers{_query(all=all)}", tuple[ContainerView, ...])

    def container(self, ref: str) -> Container:
        return self._get(_container(ref), Container)

    def create_container(self, spec: ContainerSpec, *, start: bool = False) -> Container:
        return self._post(f"containers{_query(start=start)}", Container, spec)

    def prepare(self, ref: str) -> Container:
        """An ended container is as a created one again: attach to it, then start it."""
        return self._post(f"{_container(ref)}/prepare", Container)

    def start(self, ref: str) -> Container:
        return self._post(f"{_container(ref)}/start", Container)

    def restart(self, ref: str, *, timeout_s: float | None = None) -> Container:
        return self._read(self._stop("restart", ref, timeout_s), Container)

    def rename(self, ref: str, name: str) -> None:
        self._call("POST", f"{_container(ref)}/rename?name={quote(name)}")

    def stop(self, ref: str, *, timeout_s: float | None = None) -> None:
        """SIGKILL comes after ``timeout_s``; None: as the container was created with."""
        self._stop("stop", ref, timeout_s)

    def _stop(self, verb: str, ref: str, timeout_s: float | None) -> bytes:
        if timeout_s is None:
            return self._exchange("POST", f"{_container(ref)}/{verb}", None, None)
        target = f"{_container(ref)}/{verb}?timeout={timeout_s:g}"
        return self._exchange("POST", target, None, timeout_s + self._timeout_s)

    def kill(self, ref: str, *, signal: str = "KILL") -> None:
        self._call("POST", f"{_container(ref)}/kill?signal={quote(signal)}")

    def wait(self, ref: str, *, timeout_s: float | None = None) -> Container:
        """Blocks until the container has ended (:class:`UnavailableError` after ``timeout_s``)."""
        return self._read(self._exchange("POST", f"{_container(ref)}/wait", None, timeout_s), Container)

    def remove(self, ref: str, *, force: bool = False) -> None:
        self._call("DELETE", f"{_container(ref)}{_query(force=force)}")

    def logs(self, ref: str, *, follow: bool = False, tail: int = -1, since: str = "") -> Iterator[bytes]:
        """The log as it is on disk (CRI lines), in pieces of any size; with ``follow`` until the container ends."""
        yield from self._log(_container(ref), follow, tail, since)

    def logs_of_service(self, ref: str, *, follow: bool = False, tail: int = -1, since: str = "") -> Iterator[bytes]:
        """Those of its tasks, or of one task, each line behind ``task node ``, in pieces of any size."""
        yield from self._log(f"services/{_segment('service', ref)}", follow, tail, since)

    def _log(self, place: str, follow: bool, tail: int, since: str) -> Iterator[bytes]:
        words = [*("follow=1" for _ in range(follow)), *(f"tail={tail}" for _ in range(tail >= 0))]
        words += [f"since={quote(since)}"] if since else []
        target = f"/v1/{place}/logs{'?' if words else ''}{'&'.join(words)}"
        timeout_s = None if follow else self._timeout_s
        with self._reached(timeout_s), Exchange(self.socket_path, "GET", target, None, timeout_s) as exchange:
            if exchange.status >= 400:
                raise failure_from_json(exchange.status, exchange.read())
            yield from exchange.chunks()

    def read_files(self, ref: str, path: str, *, follow: bool = False) -> Iterator[bytes]:
        """A tar of them (:mod:`vxnet.cluster.archive`), in pieces of any size."""
        target = f"/v1/{_container(ref)}/files?path={quote(path)}&follow={int(follow)}"
        with self._reached(FILES_S), Exchange(self.socket_path, "GET", target, None, FILES_S) as exchange:
            if exchange.status >= 400:
                raise failure_from_json(exchange.status, exchange.read())
            yield from exchange.chunks()

    def write_files(self, ref: str, path: str, pack: Writer, *, owners: bool = False) -> None:
        """``pack`` is called with what takes the pieces of a tar."""
        target = f"/v1/{_container(ref)}/files?path={quote(path)}&owners={int(owners)}"
        with self._reached(FILES_S), Exchange(self.socket_path, "PUT", target, pack, FILES_S) as exchange:
            answer = exchange.read()
        if exchange.status >= 400:
            raise failure_from_json(exchange.status, answer)

    def usage(self, *refs: str) -> tuple[UsageView, ...]:
        """Of those, or of all that run."""
        words = "&".join(f"container={quote(ref)}" for ref in refs)
        return self._get(f"usage{'?' if words else ''}{words}", tuple[UsageView, ...])

    def update(self, ref: str, request: ContainerUpdate) -> None:
        self._call("POST", f"{_container(ref)}/update", request)

    def top(self, ref: str) -> tuple[ProcessView, ...]:
        return self._get(f"{_container(ref)}/top", tuple[ProcessView, ...])

    def shim(self, ref: str) -> str:
        """Path of the control socket of a container's shim."""
        return self._get(f"{_container(ref)}/shim", ShimAnswer).socket

    # ------------------------------------------------------------------------------------------------------ requests

    def _get(self, target: str, kind: type[T]) -> T:
        return self._read(self._call("GET", target), kind)

    def _post(self, target: str, kind: type[T], record: object = None) -> T:
        return self._read(self._call("POST", target, record), kind)

    def _call(self, method: str, target: str, record: object = None) -> bytes:
        return self._exchange(method, target, record, self._timeout_s)

    def _exchange(self, method: str, target: str, record: object, timeout_s: float | None) -> bytes:
        """The body of a successful answer."""
        body = None if record is None else codec.to_json(record)
        with self._reached(timeout_s), Exchange(self.socket_path, method, f"/v1/{target}", body, timeout_s) as exchange:
            answer = exchange.read()
        if exchange.status >= 400:
            raise failure_from_json(exchange.status, answer)
        return answer

    def _read(self, body: bytes, kind: type[T]) -> T:
        try:
            return codec.from_json(body, kind)
        except (ValueError, RecursionError) as error:
            hint = "are the daemon and this client of the same version?"
            raise PeerError(f"cannot read the answer of the daemon at {self.socket_path}: {error}", hint=hint) from None

    @contextlib.contextmanager
    def _reached(self, timeout_s: float | None) -> Iterator[None]:
        """Errors of the connection in the words of a person who typed a command."""
        try:
            yield
        except TimeoutError:
            message = f"the vxnet daemon at {self.socket_path} did not answer within {timeout_s:g} s"
            raise UnavailableError(message, hint="its log says why: `journalctl -u vxnetd`") from None
        except BrokenAnswerError as error:
            hint = "it may have been restarted: try again"
            raise UnavailableError(f"the vxnet daemon at {self.socket_path} broke off: {error}", hint=hint) from None
        except PermissionError:
            message = f"may not use the vxnet daemon at {self.socket_path}"
            raise ForbiddenError(message, hint="be root or a member of the group vxnet") from None
        except OSError as error:
            reason = os.strerror(error.errno) if error.errno else str(error)
            hint = "start it with `systemctl start vxnetd` or `vxnet daemon`"
            if error.errno in (errno.ECONNRESET, errno.EPIPE):
                hint = "it may have been restarted: try again"
            raise UnavailableError(
                f"cannot reach the vxnet daemon at {self.socket_path}: {reason}", hint=hint
            ) from None


def _query(**flags: bool) -> str:
    """``?a=1`` for the flags that are set."""
    wanted = "&".join(f"{name}=1" for name, value in flags.items() if value)
    return f"?{wanted}" if wanted else ""


def _segment(what: str, ref: str) -> str:
    """A name or id as one segment of the path. ``.`` and ``..`` would be taken for directories."""
    if not ref.strip("."):
        raise NotFoundError(f"no such {what}: {ref!r}")
    return quote(ref)


def _container(ref: str) -> str:
    return f"containers/{_segment('container', ref)}"
