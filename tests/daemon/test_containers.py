"""Containers' life where steps meet each other and a disk that is full; the shim is a stand-in."""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path

import pytest

from vxnet.cluster.dns import Resolver
from vxnet.daemon.containers import Containers
from vxnet.daemon.state import StateDirectory
from vxnet.host import tasks
from vxnet.model.address import IPAddress
from vxnet.model.api import LeaseRequest
from vxnet.model.cluster import Lease, Network, Subnet
from vxnet.model.container import Attachment, Container, ContainerSpec, NetworkWish
from vxnet.model.errors import CallerError, ConflictError, HostError
from vxnet.model.host import Change

SPEC = ContainerSpec(name="web", argv=("true",))
BLUE = Network(
    id="net1",
    name="blue",
    vni=65536,
    subnets=(Subnet(prefix=ipaddress.ip_network("10.0.0.0/20"), gateway=ipaddress.ip_address("10.0.0.1")),),
    attachable=True,
)


class Shim:
    """Stands in for :class:`tasks.Task`: the command runs when START comes, and ends when it is told to."""

    pid, root, dns_port, udp, tcp = 4242, "overlay", 5353, None, None

    def __init__(self) -> None:
        self._end: asyncio.Future[tasks.Exit] = asyncio.get_running_loop().create_future()
        self.refusal: Exception | None = None
        self.started = asyncio.Event()

    async def start_main(self) -> None:
        self.started.set()
        await asyncio.sleep(0)
        if self.refusal is not None:
            raise self.refusal

    async def wait(self) -> tasks.Exit:
        return await asyncio.shield(self._end)

    async def signal(self, number: int) -> None:
        self.end()

    async def destroy(self) -> None:
        self.end(None)

    def close(self) -> None:
        pass

    def end(self, status: int | None = 0) -> None:
        if not self._end.done():
            self._end.set_result(tasks.Exit(status, finished_at=1.0))


class Cluster:
    """One network, of which this host has a block."""

    networks: Mapping[str, Network] = {"net1": BLUE}
    data_path_addr: IPAddress | None = ipaddress.ip_address("192.0.2.1")

    def blocks(self, network: str) -> tuple[Lease, ...]:
        prefix = ipaddress.ip_network("10.0.0.8/29")
        return (Lease(network="net1", vni=65536, prefix=prefix, node="node1", epoch=1),)

    async def lease(self, request: LeaseRequest) -> None:
        raise AssertionError("there are addresses")


class Host:
    """Containers over stand-ins for shim and kernel."""

    def __init__(self, path: Path, resolver: Resolver, monkeypatch: pytest.MonkeyPatch) -> None:
        self.state = StateDirectory(path / "state")
        self.shims: list[Shim] = []
        self.changes: Sequence[Change] = ()
        self.spawning = asyncio.Event()
        self.spawning.set()
        monkeypatch.setattr(tasks, "start", self._start)
        gateway = ipaddress.ip_interface("172.19.0.1/16")
        self.containers = Containers(
            self.state, path / "run", Cluster(), lambda: gateway, lambda: None, self._settle, resolver
        )

    async def _start(self, *_: object) -> Shim:
        await self.spawning.wait()
        self.shims.append(Shim())
        return self.shims[-1]

    async def _settle(self, container_id: str) -> Sequence[Change]:
        return self.changes


@pytest.fixture
async def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Host]:
    async with Resolver() as resolver, asyncio.timeout(20):
        made = Host(tmp_path, resolver, monkeypatch)
        async with made.containers:
            yield made


def fill_disk(host: Host, monkeypatch: pytest.MonkeyPatch, *, at_pid: int) -> None:
    """Full from the record on that has this pid."""
    save = host.state.save_container

    def refuse(container: Container) -> None:
        if container.pid == at_pid:
            raise HostError("No space left on device")
        save(container)

    monkeypatch.setattr(host.state, "save_container", refuse)


async def test_a_disk_that_fills_up_behind_the_shim_undoes_the_creation(host, monkeypatch):
    """It hung for ever, with the name taken: nobody watched for the end of the shim that it waited for."""
    fill_disk(host, monkeypatch, at_pid=Shim.pid)
    async with asyncio.timeout(5):
        with pytest.raises(HostError, match="No space left"):
            await host.containers.create(SPEC)
    assert host.containers.all() == ()


async def test_start_of_what_is_being_made_is_refused(host):
    host.spawning.clear()
    making = asyncio.create_task(host.containers.create(SPEC))
    while not host.containers.all():
        await asyncio.sleep(0)
    with pytest.raises(ConflictError, match="still being made"):
        await host.containers.start("web")
    host.spawning.set()
    await making


async def test_start_of_what_somebody_else_starts_is_refused_at_once(host):
    """Not when the command ends."""
    await host.containers.create(SPEC)
    host.shims[0].refusal = ConflictError("it runs already")
    async with asyncio.timeout(5):
        with pytest.raises(ConflictError, match="runs already"):
            await host.containers.start("web")


async def test_a_command_that_cannot_run_is_told_when_its_container_has_ended(host):
    await host.containers.create(SPEC)
    shim = host.shims[0]
    shim.refusal = CallerError("no such program")
    starting = asyncio.create_task(host.containers.start("web"))
    await shim.started.wait()
    shim.end(127)
    with pytest.raises(CallerError, match="no such program"):
        await starting
    assert host.containers.find("web").exit_status == 127


async def test_start_does_not_bring_back_what_was_removed_meanwhile(host):
    await host.containers.create(SPEC)
    shim = host.shims[0]
    answer = asyncio.Event()
    told = shim.start_main

    async def late() -> None:
        await told()
        await answer.wait()

    shim.start_main = late
    starting = asyncio.create_task(host.containers.start("web"))
    await shim.started.wait()
    await host.containers.remove("web", force=True)
    answer.set()
    await starting
    assert host.containers.all() == ()
    assert list(host.state.containers_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "harms"),
    [
        ("link vx65536", True),
        ("link br65536 mtu", True),
        ("link vx65537", False),
        ("fdb 02:00:0a:00:00:11 dev vx65536 dst 192.0.2.9", False),
        ("neighbour 10.0.0.17 dev vx65536", False),
    ],
)
async def test_only_what_a_container_needs_can_fail_its_creation(host, change, harms):
    """One endpoint that the kernel will not have must not keep everybody else off the network."""
    host.changes = (Change(verb="add", object=change, error="Invalid argument"),)
    spec = ContainerSpec(name="web", argv=("true",), networks=(NetworkWish(network="blue"),))
    if harms:
        with pytest.raises(HostError, match="Invalid argument"):
            await host.containers.create(spec)
    else:
        attachments: tuple[Attachment, ...] = (await host.containers.create(spec)).attachments
        assert [attachment.network for attachment in attachments] == ["net1"]
