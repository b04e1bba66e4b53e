"""What of a host's containers concerns networks: their rows, and an interface more or less while they live."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from functools import partial

from msgspec.structs import replace

from vxnet.core.containers import check_aliases
from vxnet.core.etc import etc_files
from vxnet.core.remembered import Remembered
from vxnet.daemon.attachments import Attachments, Cluster
from vxnet.daemon.records import Records
from vxnet.daemon.state import StateDirectory
from vxnet.model.address import IPAddress
from vxnet.model.api import NetworkConnect
from vxnet.model.cluster import Network
from vxnet.model.container import Attachment, Container, NetworkWish
from vxnet.model.errors import ConflictError, HostError, NotFoundError, VxnetError
from vxnet.model.host import Change
from vxnet.model.row import Endpoint, EndpointState

NO_VTEP = ipaddress.ip_address("0.0.0.0")


def refusal(
    changes: Sequence[Change], sandbox: str, vnis: Collection[int], bridges: Collection[str] = ()
) -> Change | None:
    """The first thing that the kernel refused and a sandbox on these segments, and bridges of the host, needs."""
    # Of what is shared only the devices: how to reach others is not this container's affair.
    devices = {f"link {kind}{vni}" for vni in vnis for kind in ("vx", "br")} | {f"link {name}" for name in bridges}
    for change in changes:
        needed = change.sandbox == sandbox or " ".join(change.object.split()[:2]) in devices
        if change.error and change.verb != "delete" and needed:
            return change
    return None


class Wiring:
    """``changed`` and ``settle`` are those of :class:`vxnet.daemon.containers.Containers`."""

    def __init__(
        self,
        state: StateDirectory,
        records: Records,
        cluster: Cluster,
        attachments: Attachments,
        changed: Callable[[], None],
        settle: Callable[[str], Awaitable[Sequence[Change]]],
        live: Callable[[], Iterable[Container]],
    ) -> None:
        """``live``: all that hold addresses, guests too."""
        self._state = state
        self._live = live
        self._records = records
        self._cluster = cluster
        self._attachments = attachments
        self._changed = changed
        self._settle = settle
        self._locks: dict[str, asyncio.Lock] = {}
        """Held while somebody changes a container's networks."""
        self._joining: set[str] = set()
        """Ids of rows of containers that run already, to which the others do not know the way yet."""
        self._rows: Remembered[Endpoint] = Remembered()
        self._local_rows: Remembered[Endpoint] = Remembered()

    def rows(self) -> dict[tuple[str, str], Endpoint]:
        """:meth:`endpoints` by kind and id."""
        return {("endpoint", id): row for id, row in self.endpoints().items()}

    def endpoints(self) -> dict[str, Endpoint]:
        """The rows that this host should publish now, by row id."""
        vtep = self._cluster.data_path_addr
        return {} if vtep is None else self._rows_on(self._cluster.networks, vtep, self._rows)

    def local_endpoints(self, networks: Mapping[str, Network]) -> dict[str, Endpoint]:
        """Those on networks of this host alone, which nobody else hears of: what runs there."""
        rows = self._rows_on(networks, NO_VTEP, self._local_rows) if networks else {}
        return {key: row for key, row in rows.items() if row.state == "ready"}

    def _rows_on(
        self, networks: Mapping[str, Network], vtep: IPAddress, remembered: Remembered[Endpoint]
    ) -> dict[str, Endpoint]:
        rows = {}
        remembered.look()
        for container in self._live():
            for attachment in container.attachments:
                network = networks.get(attachment.network)
                if network is None:
                    continue
                row_id = _row_id(container, network.id)
                state = "starting" if row_id in self._joining else _row_state(container)
                make = partial(_row, container, attachment, network, vtep, state)
                rows[row_id] = remembered.of(row_id, (container, attachment, network, vtep, state), make)
        return rows

    def set_ready(self, container_id: str) -> None:
        """Its health check has succeeded: its rows are *ready*. Harmless if it has gone."""
        if (container := self._records.get(container_id)) is not None and container.unready:
            self._records.keep(replace(container, unready=False))
            self._changed()

    def set_draining(self, container_id: str) -> list[str]:
        """Its rows are *draining* from now on; their ids. Not kept on disk: who dies meanwhile begins again."""
        container = self._records.get(container_id)
        if container is None or container.state != "running":
            return []
        self._records.put(replace(container, draining=True))
        self._changed()
        return self.row_ids(container_id)

    def row_ids(self, holder: str) -> list[str]:
        """Of those of :meth:`endpoints` that are of this container or guest."""
        networks, live = self._cluster.networks, self._live()
        places = [(one, place.network) for one in live if one.id == holder for place in one.attachments]
        return [_row_id(one, network) for one, network in places if network in networks]

    def joined(self, container: Container) -> Container:
        """On the networks alone that its processes may use by now: a name that resolves is one that answers."""
        if not self._joining:
            return container
        rest = tuple(one for one in container.attachments if _row_id(container, one.network) not in self._joining)
        return container if len(rest) == len(container.attachments) else replace(container, attachments=rest)

    async def attach(self, container_id: str, wish: NetworkWish) -> None:
        """One more interface. Its addresses are taken from here on."""
        network = await self._attachments.join(self._records.now(container_id), wish)
        container = self._records.now(container_id)
        attachment = self._attachments.attach(container, network, wish)
        self._records.put(replace(container, attachments=(*container.attachments, attachment)))

    async def settled(self, container_id: str) -> None:
        """Raises :class:`HostError` with the kernel's words if it refused something that the container needs."""
        container = self._records.now(container_id)
        networks = self._cluster.networks
        vnis = [networks[one.network].vni for one in container.attachments if one.network in networks]
        bridges = self._attachments.bridges_of(container)
        if (refused := refusal(await self._settle(container_id), container_id, vnis, bridges)) is not None:
            raise HostError(
                f'the kernel refused {refused.object} for "{container.spec.name}": {refused.error}',
                hint="`vxnet info` and the daemon's log tell more",
            )

    async def connect(self, ref: str, request: NetworkConnect) -> None:
        check_aliases(request.aliases)
        wish = NetworkWish(network=ref, ip=request.ip, ip6=request.ip6, aliases=request.aliases)
        row_id = ""
        try:
            async with self._rewiring(request.container) as container_id:
                await self.attach(container_id, wish)
                row_id = _row_id(self._records.now(container_id), self._attachments.network(ref).id)
                self._joining.add(row_id)
        finally:
            self._joining.discard(row_id)
            self._changed()

    async def disconnect(self, ref: str, request: NetworkConnect) -> None:
        async with self._rewiring(request.container) as container_id:
            container = self._records.now(container_id)
            network = self._attachments.network(ref)
            rest = tuple(attachment for attachment in container.attachments if attachment.network != network.id)
            if len(rest) == len(container.attachments):
                raise NotFoundError(f'container "{container.spec.name}" is not on network "{network.name}"')
            self._records.put(replace(container, attachments=rest))

    @contextlib.asynccontextmanager
    async def _rewiring(self, ref: str) -> AsyncIterator[str]:
        """The body changes the attachments; on leaving they are kept, told and built, or are what they were before."""
        before = self._records.find(ref)
        async with self._locks.setdefault(before.id, asyncio.Lock()):
            before = self._records.now(before.id)
            if not before.pid:
                raise ConflictError(f'container "{before.spec.name}" is {before.state}: its networks are fixed')
            if before.spec.shares_host_network:
                raise ConflictError(
                    f'container "{before.spec.name}" is in the host\'s own network namespace: it has no interfaces',
                    hint="run it without --network host",
                )
            try:
                yield before.id
                container = self._records.now(before.id)
                container = self._records.keep(replace(container, gateway=self._attachments.way_out(container)))
                await asyncio.to_thread(self._write_hosts, container)
                self._changed()
                await self.settled(container.id)
            except VxnetError:
                if (now := self._records.get(before.id)) is not None:
                    with contextlib.suppress(HostError):
                        self._records.keep(replace(now, attachments=before.attachments, gateway=before.gateway))
                    self._changed()
                raise

    def _write_hosts(self, container: Container) -> None:
        path = self._state.container_directory(container.id) / "hosts"
        try:
            path.write_text(etc_files(container)["hosts"])
        except OSError as error:
            raise HostError(f"cannot write {path}: {error.strerror}") from error

    def forget(self, container_id: str) -> None:
        self._locks.pop(container_id, None)


def _row_state(container: Container) -> EndpointState:
    if container.draining:
        return "draining"
    return "ready" if container.state == "running" and not container.unready else "starting"


def _row(
    container: Container, attachment: Attachment, network: Network, vtep: IPAddress, state: EndpointState
) -> Endpoint:
    return Endpoint(
        network=network.id,
        vni=network.vni,
        addresses=tuple(interface.ip for interface in attachment.addresses),
        mac=attachment.mac,
        vtep=vtep,
        name=container.spec.name,
        aliases=attachment.aliases,
        service=container.task.service if container.task is not None else "",
        task=container.task.task if container.task is not None else "",
        ports=container.task.ports if container.task is not None else (),
        state=state,
    )


def _row_id(container: Container, network_id: str) -> str:
    return f"{container.id[:12]}.{network_id}"
