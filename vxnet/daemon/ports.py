"""The published ports of this host: held by a socket each, and who has which.

::

     services (assignment) ──┐
                             ├──> wanted ──> held by sockets ──> what the mesh may take
     containers' own (-p) ───┘         └───> taken by another program: refused here, and tried again

Level-triggered: what is wanted is computed again each time, and compared with the sockets that there are.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Collection, Iterable, Sequence

import structlog
from msgspec.structs import replace

from vxnet.core.ports import Held, holder_of, name_of, number_all, own_ports
from vxnet.host import ports as host
from vxnet.host.ports import Door
from vxnet.model.address import IPAddress
from vxnet.model.cluster import TakenPort
from vxnet.model.container import Container, ContainerSpec
from vxnet.model.errors import CallerError, ConflictError, HostError
from vxnet.model.host import HostFacts
from vxnet.model.published import PublishedPort
from vxnet.model.service import PublicService

log = structlog.get_logger()

RETRY_S = 5.0
"""Between two attempts at a port that another program has, and between two looks at links that ports are bound to."""


class Ports:
    """:meth:`look` is called when services or containers may be others than before; it does not wait. ``changed`` is
    called when a port can be answered here that could not before.
    """

    def __init__(
        self,
        services: Callable[[], Sequence[PublicService]],
        containers: Callable[[], Iterable[Container]],
        changed: Callable[[], None],
        data_port: Callable[[], int],
    ) -> None:
        self._services = services
        self._containers = containers
        self._changed = changed
        self._data_port = data_port
        self._sockets: dict[Door, socket.socket | None] = {}
        self._refused: dict[Door, str] = {}
        """Why those that are wanted are not held."""
        self._links: dict[Door, int] = {}
        """Of those that are bound to a link: which one that was when it was tried."""
        self._retry = asyncio.Event()
        self._looked: tuple[Sequence[PublicService], list[Container]] = ((), [])

    def look(self) -> bool:
        """Whether it was for something."""
        services = self._services()
        published = [container for container in self._containers() if container.published]
        if services is self._looked[0] and published == self._looked[1]:
            return False  # most changes are of something else, and a cluster may have hundreds of ports
        self._looked = services, published
        wanted = {door for one in self._wanted() for door in host.doors(one.port)}
        for door in self._sockets.keys() - wanted:
            if (held := self._sockets.pop(door)) is not None:
                held.close()
        for door in self._refused.keys() - wanted:
            del self._refused[door]
        for door in self._links.keys() - wanted:
            del self._links[door]
        for door in sorted(wanted - self._sockets.keys() - self._refused.keys(), key=str):
            self._try(door)
        return True

    def _try(self, door: Door) -> None:
        if door.interface:
            self._links[door] = host.link_of(door)
            self._retry.set()
        try:
            self._sockets[door] = host.hold(door)
            self._refused.pop(door, None)
        except (ConflictError, HostError) as error:
            if door not in self._refused:
                log.error("published port not answered here", port=str(door), error=str(error))
            self._refused[door] = error.message
            self._retry.set()

    def _wanted(self) -> list[Held]:
        found = [
            Held(port, f"service {service.name}")
            for service in self._services()
            for port in service.ports
            if port.mode == "ingress"
        ]
        return [*found, *self._of_containers(tasks=True)]

    def _of_containers(self, *, tasks: bool) -> list[Held]:
        return [
            Held(port, f"container {container.spec.name}")
            for container in self._containers()
            if tasks or container.task is None
            for port in container.published
        ]

    async def run(self) -> None:
        """Ports that another program has are tried again, and those of links that come, go, or are made anew."""
        while True:
            await self._retry.wait()
            self._retry.clear()
            await self._name_holders()
            await asyncio.sleep(RETRY_S)
            before = len(self._refused)
            self.look_at_links()
            for door in list(self._refused):
                self._try(door)
            if len(self._refused) < before:
                self._changed()
            if self._links:
                self._retry.set()

    def look_at_links(self) -> None:
        """A socket stays with the link that it was bound to, also when there is another one of its name."""
        for door, link in list(self._links.items()):
            if door in self._sockets and link != host.link_of(door):
                if (held := self._sockets.pop(door)) is not None:
                    held.close()
                self._try(door)

    async def _name_holders(self) -> None:
        for door in list(self._refused):
            who = await asyncio.to_thread(host.holder, door.number, door.protocol)
            if who and door in self._refused:
                self._refused[door] = f"port {door} is taken by {who}"

    def close(self) -> None:
        for held in self._sockets.values():
            if held is not None:
                held.close()
        self._sockets.clear()

    # Questions

    def warnings(self) -> tuple[str, ...]:
        nowhere = {
            f"port {door} of {one.holder}: this host has no such {lacking}, so nobody reaches it"
            for one in self._of_containers(tasks=False)
            for door in host.doors(one.port)
            if (lacking := host.lacking(door))
        }
        refused = {f"{why}: it is not answered for containers here" for why in self._refused.values()}
        return tuple(sorted(nowhere | refused))

    def answered(self, services: Iterable[PublicService]) -> tuple[PublicService, ...]:
        """``services`` with the ports that are held here: what another program had first stays with it."""
        services = tuple(services)
        if not self._refused:
            return services
        return tuple(
            replace(service, ports=tuple(port for port in service.ports if not self._is_refused(port)))
            for service in services
        )

    def _is_refused(self, port: PublishedPort) -> bool:
        return port.mode == "ingress" and any(door in self._refused for door in host.doors(port))

    # Of containers

    def told(self, facts: HostFacts) -> HostFacts:
        """As the managers should hear of them, with what containers here have."""
        return replace(facts, ports=(*facts.ports, *self.own()))

    def own(self) -> tuple[TakenPort, ...]:
        """What containers that are no tasks have of this host: of tasks the managers know."""
        taken = []
        for one in self._of_containers(tasks=False):
            for address in one.port.addresses or (None,):
                number, protocol = one.port.published, one.port.protocol
                taken.append(TakenPort(number=number, protocol=protocol, address=address, holder=one.holder))
        return tuple(taken)

    def check(self, spec: ContainerSpec) -> None:
        """Raises :class:`ConflictError` naming who has one of its ports already."""
        self._check(spec.ports)

    def check_way(self, container: Container, reached: Collection[IPAddress]) -> None:
        """``reached``: at which addresses this host reaches it. Raises :class:`CallerError` if its ports would lead
        nowhere."""
        if container.spec.ports and not reached:
            raise CallerError(
                f'this host does not reach "{container.spec.name}", and its published ports would lead nowhere',
                hint="leave -p out, or give it a network that is neither internal nor macvlan",
            )

    def claim(self, container: Container) -> Container:
        """With the numbers of its ports on this host, which nobody else has. Keep it before the next ``await``. Raises
        :class:`ConflictError`, :class:`ExhaustedError`.
        """
        if not container.spec.ports:
            return container
        others = [one.port for one in self._wanted()]
        while True:
            self._check(container.spec.ports)
            numbered = number_all(container.spec.ports, others, modes=("host",))
            taken = [port for port in numbered if not _is_free(port)]
            if not taken:
                return replace(container, published=numbered)
            # By another program, and nobody chose that number.
            others += taken

    def _check(self, ports: Iterable[PublishedPort]) -> None:
        held = [*own_ports(self._data_port()), *self._wanted()]
        for port in ports:
            if not port.published:
                continue
            who = holder_of(port, held)
            if not who and not _is_free(port):
                who = host.holder(port.published, port.protocol) or "another program"
            if who:
                raise ConflictError(f"port {name_of(port)} is taken by {who}", hint="publish another one")


def _is_free(port: PublishedPort) -> bool:
    try:
        held = [host.hold(door) for door in host.doors(port)]
    except ConflictError:
        return False
    for one in held:
        if one is not None:
            one.close()
    return True
