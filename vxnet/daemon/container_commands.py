"""What people may do with a host's containers and guests: the agent's part of the local API that is theirs."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator

from vxnet.daemon import views
from vxnet.daemon.containers import Containers
from vxnet.daemon.copying import read_files, write_files
from vxnet.daemon.guests import Guests
from vxnet.daemon.local_networks import LocalNetworks
from vxnet.daemon.membership import Membership
from vxnet.model.api import ContainerUpdate, ContainerView, LogRequest, NetworkConnect, ProcessView, UsageView
from vxnet.model.container import Container, ContainerSpec
from vxnet.model.guest import GuestView, GuestWish


class ContainerCommands:
    """The methods are those of :class:`vxnet.daemon.container_api.ContainersApi`."""

    _containers: Containers
    _membership: Membership
    _guests: Guests
    _local: LocalNetworks

    async def containers(self, all: bool) -> tuple[ContainerView, ...]:
        known = {**self._membership.networks, **self._local.networks}
        return tuple(
            views.container(container, known)
            for container in sorted(self._containers.all(), key=lambda container: -container.created_at)
            if all or container.state in ("running", "restarting")
        )

    async def container(self, ref: str) -> Container:
        return self._containers.find(ref)

    async def create_container(self, spec: ContainerSpec) -> Container:
        return await self._containers.create(spec)

    async def start(self, ref: str) -> Container:
        return await self._containers.start(ref)

    async def prepare(self, ref: str) -> Container:
        return await self._containers.prepare(ref)

    async def restart(self, ref: str, timeout_s: float | None) -> Container:
        return await self._containers.restart(ref, timeout_s)

    async def rename(self, ref: str, name: str) -> None:
        await self._containers.rename(ref, name)

    async def stop(self, ref: str, timeout_s: float | None) -> None:
        await self._containers.stop(ref, timeout_s)

    async def kill(self, ref: str, signal: int) -> None:
        await self._containers.kill(ref, signal)

    async def wait(self, ref: str) -> Container:
        return await self._containers.wait(ref)

    async def remove(self, ref: str, force: bool) -> None:
        await self._containers.remove(ref, force)

    async def usage(self, refs: tuple[str, ...]) -> tuple[UsageView, ...]:
        return await self._containers.inside.usage(refs)

    async def update(self, ref: str, request: ContainerUpdate) -> None:
        await self._containers.inside.update(ref, request)

    async def top(self, ref: str) -> tuple[ProcessView, ...]:
        return await self._containers.inside.top(ref)

    async def read_files(self, ref: str, path: str, follow: bool) -> AsyncIterator[bytes]:
        async with self._containers.inside.mounts(ref) as mounts:
            async for piece in read_files(mounts, path, follow=follow):
                yield piece

    async def write_files(self, ref: str, path: str, pieces: AsyncIterable[bytes], owners: bool) -> None:
        async with self._containers.inside.mounts(ref) as mounts:
            await write_files(mounts, path, pieces, owners=owners)

    def logs(self, ref: str, request: LogRequest) -> AsyncIterator[bytes]:
        return self._containers.inside.logs(ref, request)

    async def shim(self, ref: str) -> str:
        return self._containers.inside.shim(ref)

    # Their networks

    async def connect(self, ref: str, request: NetworkConnect) -> None:
        if (guest := self._guests.named(request.container)) is not None:
            wish = GuestWish(name=guest.name, ip=request.ip, ip6=request.ip6, aliases=request.aliases)
            await self._guests.connect(ref, wish)
        else:
            await self._containers.wiring.connect(ref, request)

    async def disconnect(self, ref: str, request: NetworkConnect, force: bool) -> None:
        if (guest := self._guests.named(request.container)) is not None:
            await self._guests.disconnect(ref, GuestWish(name=guest.name))
        else:
            await self._containers.wiring.disconnect(ref, request)

    async def connect_guest(self, ref: str, wish: GuestWish) -> GuestView:
        return await self._guests.connect(ref, wish)

    async def disconnect_guest(self, ref: str, wish: GuestWish) -> None:
        await self._guests.disconnect(ref, wish)

    async def guests(self) -> tuple[GuestView, ...]:
        return self._guests.views()
