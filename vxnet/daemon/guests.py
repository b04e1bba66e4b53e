"""Namespaces of others on vxnet's networks: from ``network connect --pid`` until they end.

::

     connect      hold the namespace → addresses → row "ready" → name server's sockets in it → kernel: veth, addresses
     its end      the process's pidfd, or the name is gone → row gone → interface and table taken out → let go
     a restart    the process is the same one (pid and start), the name still names it: held again, sockets opened anew

A guest is to networks what a container is: :meth:`Guests.live` says it in a container's words. Nothing of vxnet's runs
in it, so while no daemon runs its questions wait, unanswered, and are asked again by its own resolver.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import Awaitable, Callable, Collection, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import structlog
from msgspec.structs import replace

from vxnet.cluster.dns import Resolver
from vxnet.core.containers import check_aliases, check_name
from vxnet.core.names import View
from vxnet.daemon.attachments import Attachments, Cluster
from vxnet.daemon.state import StateDirectory
from vxnet.daemon.wiring import refusal
from vxnet.host import foreign
from vxnet.host.foreign import Held
from vxnet.model.container import Container, ContainerSpec, NetworkWish
from vxnet.model.errors import CallerError, ConflictError, HostError, NotFoundError, UnsupportedError, VxnetError
from vxnet.model.guest import Guest, GuestView, GuestWish
from vxnet.model.host import Change

log = structlog.get_logger()

GLANCE_S = 0.5
"""Between two looks at names of namespaces: nothing tells of their end."""
IFNAME_MAX = 15


class Guests:
    """Use as ``async with guests``: entering holds again those that an earlier daemon had. ``changed`` and ``settle``
    are those of :class:`vxnet.daemon.containers.Containers`; ``containers``: all there are, whose names are taken.
    """

    def __init__(
        self,
        state: StateDirectory,
        cluster: Cluster,
        attachments: Attachments,
        resolver: Resolver,
        containers: Callable[[], Collection[Container]],
        changed: Callable[[], None],
        settle: Callable[[str], Awaitable[Sequence[Change]]],
    ) -> None:
        self._state = state
        self._cluster = cluster
        self._attachments = attachments
        self._resolver = resolver
        self._containers = containers
        self._changed = changed
        self._settle = settle
        self._guests: dict[str, Guest] = {}
        self._held: dict[str, Held] = {}
        self._wiring = asyncio.Lock()
        """Held while a guest comes, changes or goes."""
        self._group = asyncio.TaskGroup()
        self._watch: asyncio.Task[None] | None = None

    # Looking

    def live(self) -> tuple[Container, ...]:
        """In the words of containers that run."""
        return tuple(self._as_container(guest) for guest in self._guests.values())

    def _as_container(self, guest: Guest) -> Container:
        return Container(
            id=guest.id,
            spec=ContainerSpec(name=guest.name, argv=()),
            attachments=guest.attachments,
            state="running",
            netns=self._held[guest.id].path,
            resolver=guest.resolver,
            created_at=guest.created_at,
        )

    def dns_ports(self) -> dict[str, int]:
        return {guest.id: guest.dns_port for guest in self._guests.values() if guest.attachments}

    def views(self) -> tuple[GuestView, ...]:
        return tuple(self._view(guest) for guest in sorted(self._guests.values(), key=lambda guest: guest.name))

    def _view(self, guest: Guest) -> GuestView:
        known = self._attachments.known()
        return GuestView(
            id=guest.id,
            name=guest.name,
            pid=guest.pid,
            netns=guest.path,
            networks=tuple(
                known[one.network].name if one.network in known else one.network for one in guest.attachments
            ),
            addresses=tuple(interface.ip for one in guest.attachments for interface in one.addresses),
            interfaces=tuple(one.ifname for one in guest.attachments),
            resolver=guest.resolver,
            asks_resolver=foreign.asks(guest.resolver, guest.pid, guest.path),
        )

    def named(self, ref: str) -> Guest | None:
        """By name or id."""
        return next((guest for guest in self._guests.values() if ref in (guest.name, guest.id, guest.id[:12])), None)

    # In and out

    async def connect(self, ref: str, wish: GuestWish) -> GuestView:
        """Raises :class:`VxnetError`; then it is as before."""
        check_aliases(wish.aliases)
        _check_ifname(wish.ifname)
        async with self._wiring:
            guest = self._guest(wish)
            before = guest if guest.attachments else None
            try:
                await self._attach(guest, ref, wish)
            except BaseException:
                await asyncio.shield(self._back_to(guest, before))
                raise
            log.info("guest connected", guest=guest.id[:12], name=guest.name, pid=guest.pid, path=guest.path)
            return self._view(self._guests[guest.id])

    def _guest(self, wish: GuestWish) -> Guest:
        """The one that is meant, held; it may be new."""
        if (known := self.named(wish.name)) is not None and not wish.pid and not wish.netns:
            return known
        if bool(wish.pid) == bool(wish.netns):
            raise CallerError("a process or a path is wanted, and one of them", hint="give --pid or --netns")
        what = f"process {wish.pid}" if wish.pid else wish.netns
        held = foreign.of_process(wish.pid) if wish.pid else foreign.at_path(wish.netns)
        try:
            return self._known(held, wish) or self._new(held, wish, what)
        except BaseException:
            foreign.release(held)
            raise

    def _known(self, held: Held, wish: GuestWish) -> Guest | None:
        known = next((guest for guest in self._guests.values() if guest.namespace == held.identity), None)
        if known is not None and wish.name not in ("", known.name):
            raise ConflictError(f'that namespace is on a network as "{known.name}" already, not as "{wish.name}"')
        if known is not None:
            foreign.release(held)
        return known

    def _new(self, held: Held, wish: GuestWish, what: str) -> Guest:
        foreign.check_foreign(held, what)
        for container in self._containers():
            if container.pid and foreign.names_still(f"/proc/{container.pid}/ns/net", held.identity):
                name = container.spec.name
                raise ConflictError(
                    f'{what} is in container "{name}"', hint=f"name that: `vxnet network connect NETWORK {name}`"
                )
        name = wish.name or (f"pid-{wish.pid}" if wish.pid else Path(wish.netns).name)
        check_name(name)
        self._check_free(name)
        guest = Guest(
            id=secrets.token_hex(32),
            name=name,
            pid=wish.pid,
            born=held.born,
            path=wish.netns,
            namespace=held.identity,
            resolver=foreign.survey(held).resolver,
            created_at=time.time(),
        )
        self._held[guest.id] = held
        self._guests[guest.id] = guest
        return guest

    def _check_free(self, name: str) -> None:
        holders = {one.spec.name for one in self._containers()} | {guest.name for guest in self._guests.values()}
        if name in holders:
            raise ConflictError(f'the name "{name}" is taken on this host', hint="give another with --name")

    async def _attach(self, guest: Guest, ref: str, wish: GuestWish) -> None:
        if self._attachments.network(ref).driver == "macvlan":
            raise UnsupportedError(
                "a guest cannot be on a macvlan network: nobody would take the interface out of its namespace again",
                hint="ip link add link PARENT name NAME netns PID type macvlan mode bridge",
            )
        request = NetworkWish(network=ref, ip=wish.ip, ip6=wish.ip6, aliases=wish.aliases)
        there = foreign.survey(self._held[guest.id]).interfaces
        if wish.ifname in there:
            raise ConflictError(f'"{guest.name}" has an interface {wish.ifname} already', hint="choose another")
        network = await self._attachments.join(self._as_container(guest), request)
        place = self._attachments.attach(self._as_container(guest), network, request, ifname=wish.ifname, there=there)
        guest = self._guests[guest.id] = replace(guest, attachments=(*guest.attachments, place))
        if not guest.dns_port:
            guest = self._serve(guest)
        self._watch_end(guest)
        self._state.save_guest(guest)
        self._tell(guest)
        await self._settled(guest)

    async def _settled(self, guest: Guest) -> None:
        """Raises :class:`HostError` with the kernel's words if it refused something that the guest needs."""
        changes = await self._settle(guest.id)
        vnis = [known.vni for one in guest.attachments if (known := self._cluster.networks.get(one.network))]
        bridges = self._attachments.bridges_of(self._as_container(guest))
        if (refused := refusal(changes, guest.id, vnis, bridges)) is not None:
            raise HostError(
                f'the kernel refused {refused.object} for "{guest.name}": {refused.error}',
                hint="`vxnet info` and the daemon's log tell more",
            )

    def _serve(self, guest: Guest) -> Guest:
        """Open its name server."""
        udp, tcp = foreign.open_resolver(self._held[guest.id], guest.resolver, guest.dns_port)
        guest = self._guests[guest.id] = replace(guest, dns_port=udp.getsockname()[1])
        self._resolver.add(guest.id, udp, tcp, self._names_of(guest))
        return guest

    def _tell(self, guest: Guest) -> None:
        self._resolver.update(guest.id, self._names_of(guest))
        self._changed()

    def _names_of(self, guest: Guest) -> View:
        """What it can ask for. Its own way out is its own affair: only where all its networks are internal are names
        from outside not asked for it."""
        networks = [self._attachments.known().get(one.network) for one in guest.attachments]
        open_to_all = not all(network is not None and network.internal for network in networks)
        return View(tuple(one.network for one in guest.attachments), open_to_all)

    async def disconnect(self, ref: str, wish: GuestWish) -> None:
        """From one network; with its last one it is a guest no more. ``wish``: its pid, path or name."""
        async with self._wiring:
            guest = self._meant(wish)
            network = self._attachments.network(ref)
            rest = tuple(one for one in guest.attachments if one.network != network.id)
            if len(rest) == len(guest.attachments):
                raise NotFoundError(f'"{guest.name}" is not on network "{network.name}"')
            if not rest:
                await self._end(guest)
                return
            guest = self._guests[guest.id] = replace(guest, attachments=rest)
            self._state.save_guest(guest)
            self._tell(guest)
            await self._settled(guest)

    def _meant(self, wish: GuestWish) -> Guest:
        guest = self.named(wish.name)
        if wish.pid or wish.netns:
            held = foreign.of_process(wish.pid) if wish.pid else foreign.at_path(wish.netns)
            guest = next((one for one in self._guests.values() if one.namespace == held.identity), None)
            foreign.release(held)
        if guest is None:
            what = wish.name or wish.netns or f"process {wish.pid}"
            raise NotFoundError(f"{what} is on no network", hint="`vxnet network guests` lists those that are")
        return guest

    async def disconnect_all(self) -> None:
        """Before this host leaves its cluster."""
        async with self._wiring:
            for guest in list(self._guests.values()):
                await self._end(guest)

    async def _back_to(self, guest: Guest, before: Guest | None) -> None:
        if before is None:
            await self._end(guest)
            return
        self._guests[guest.id] = before
        with contextlib.suppress(HostError):
            self._state.save_guest(before)
        self._tell(before)
        with contextlib.suppress(VxnetError):
            await self._settle(guest.id)

    # Their end

    async def _end(self, guest: Guest) -> None:
        """Take out what vxnet put in; the namespace may live on, or have nobody but us."""
        if guest.id not in self._guests:
            return
        self._guests[guest.id] = guest = replace(self._guests[guest.id], attachments=())
        self._resolver.remove(guest.id)
        self._changed()
        with contextlib.suppress(VxnetError):  # it is over, whatever the kernel says
            await self._settle(guest.id)
        del self._guests[guest.id]
        self._changed()
        with contextlib.suppress(VxnetError):  # no plan is at work that opens the descriptor by its number
            await self._settle(guest.id)
        held = self._held.pop(guest.id)
        if held.process >= 0:
            asyncio.get_running_loop().remove_reader(held.process)
        foreign.release(held)
        self._state.forget_guest(guest.id)
        log.info("guest gone", guest=guest.id[:12], name=guest.name)

    def _watch_end(self, guest: Guest) -> None:
        process = self._held[guest.id].process
        if process >= 0:
            asyncio.get_running_loop().add_reader(process, self._ended, guest.id)

    def _ended(self, guest_id: str) -> None:
        """Its process has."""
        asyncio.get_running_loop().remove_reader(self._held[guest_id].process)
        self._group.create_task(self._take_leave(guest_id))

    async def _take_leave(self, guest_id: str) -> None:
        async with self._wiring:
            if (guest := self._guests.get(guest_id)) is not None:
                await self._end(guest)

    async def _watch_names(self) -> None:
        while True:
            await asyncio.sleep(GLANCE_S)
            for guest in list(self._guests.values()):
                if guest.path and not foreign.names_still(guest.path, guest.namespace):
                    await self._take_leave(guest.id)

    # Over restarts

    async def __aenter__(self) -> Self:
        await self._group.__aenter__()
        for guest in self._state.guests():
            try:
                held = foreign.of_process(guest.pid) if guest.pid else foreign.at_path(guest.path)
            except VxnetError:
                held = None
            if held is None or (held.identity, held.born) != (guest.namespace, guest.born):
                if held is not None:
                    foreign.release(held)
                self._state.forget_guest(guest.id)
                log.info("guest gone meanwhile", guest=guest.id[:12], name=guest.name)
                continue
            self._held[guest.id] = held
            self._guests[guest.id] = guest
            with contextlib.suppress(HostError):
                self._state.save_guest(self._serve(guest))
            self._watch_end(guest)
        self._watch = self._group.create_task(self._watch_names())
        self._changed()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Lets go of them: they stay connected. Their descriptors go with this process: the kernel's thread may be at
        work in a namespace that it opened by the number of one.
        """
        for held in self._held.values():
            if held.process >= 0:
                asyncio.get_running_loop().remove_reader(held.process)
        if self._watch is not None:
            self._watch.cancel()
        await self._group.__aexit__(kind, error, trace)


def _check_ifname(name: str) -> None:
    if not name:
        return
    plain = name.isascii() and name.isprintable() and not any(letter in "/: \t" for letter in name)
    if not plain or len(name) > IFNAME_MAX or name in (".", "..", "lo"):
        raise CallerError(f"{name!r} cannot be an interface's name", hint="up to 15 letters, digits, dots and hyphens")
