"""Containers' life where steps meet each other and a disk that is full; the shim is a stand-in."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import threading
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path

import pytest
from msgspec.structs import replace

from vxnet.cluster.dns import Resolver
from vxnet.daemon.containers import Containers
from vxnet.daemon.state import StateDirectory
from vxnet.host import cgroups, tasks
from vxnet.model.address import IPAddress
from vxnet.model.api import ContainerUpdate, LeaseRequest
from vxnet.model.cluster import Lease, Network, Subnet
from vxnet.model.container import Attachment, ContainerSpec, NetworkWish, RestartPolicy
from vxnet.model.errors import CallerError, ConflictError, HostError, VxnetError
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
    dying_s = 0.0

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
        if self.dying_s:
            await asyncio.sleep(self.dying_s)
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
    data_port = 4789

    def blocks(self, network: str) -> tuple[Lease, ...]:
        prefix = ipaddress.ip_network("10.0.0.8/29")
        return (Lease(network="net1", vni=65536, prefix=prefix, node="node1", epoch=1),)

    async def heard(self) -> None:
        pass

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
        self.cluster = Cluster()
        self.containers = Containers(
            self.state, path / "run", self.cluster, lambda: (gateway,), lambda: None, self._settle, resolver
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


async def test_what_fails_behind_the_shim_undoes_the_creation(host, monkeypatch):
    """It hung for ever, with the name taken: nobody watched for the end of the shim that it waited for."""

    async def refuse(container_id: str) -> None:
        raise HostError("the kernel does not answer")

    monkeypatch.setattr(host.containers.wiring, "settled", refuse)
    async with asyncio.timeout(5):
        with pytest.raises(HostError, match="does not answer"):
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


async def until(condition):
    while not condition():
        await asyncio.sleep(0.001)


def again(**policy: object) -> ContainerSpec:
    wishes = (NetworkWish(network="blue"),)
    return ContainerSpec(name="web", argv=("true",), networks=wishes, restart=RestartPolicy(**policy))  # type: ignore[arg-type]


async def test_start_of_what_has_ended_has_its_place_again(host):
    first = await host.containers.create(again())
    await host.containers.start("web")
    host.shims[0].end(3)
    ended = await host.containers.wait("web")
    assert (ended.state, ended.exit_status) == ("exited", 3)
    second = await host.containers.start("web")
    assert (second.state, second.exit_status, len(host.shims)) == ("running", None, 2)
    assert (second.id, second.attachments, second.gateway) == (first.id, first.attachments, first.gateway)
    assert await host.containers.start("web") == second, "harmless"


async def test_start_of_whose_address_is_taken_gets_another(host):
    first = await host.containers.create(again())
    await host.containers.start("web")
    host.shims[0].end()
    await host.containers.wait("web")
    (address,) = first.attachments[0].addresses
    wish = NetworkWish(network="blue", ip=address.ip)
    await host.containers.create(ContainerSpec(name="thief", argv=("true",), networks=(wish,)))
    second = await host.containers.start("web")
    assert len(second.attachments) == 1
    assert second.attachments[0].addresses != first.attachments[0].addresses


async def test_a_start_that_fails_leaves_it_as_it_was(host, monkeypatch):
    await host.containers.create(SPEC)
    await host.containers.start("web")
    host.shims[0].end(3)
    await host.containers.wait("web")
    host.changes = (Change(verb="add", object="link eth0", error="no memory", sandbox=host.containers.find("web").id),)
    with pytest.raises(HostError, match="no memory"):
        await host.containers.start("web")
    container = await host.containers.wait("web")
    assert (container.state, container.exit_status) == ("exited", 3)
    assert "no memory" in container.error
    host.changes = ()
    assert (await host.containers.start("web")).state == "running"


async def test_policy_starts_it_again_and_counts(host):
    await host.containers.create(again(name="on-failure", retries=2))
    await host.containers.start("web")
    for number in range(3):
        await until(lambda number=number: len(host.shims) > number and host.shims[number].started.is_set())
        await until(lambda: host.containers.find("web").state == "running")
        assert host.containers.find("web").restarts == number
        host.shims[number].end(7)
    ended = await host.containers.wait("web")
    assert (ended.state, ended.exit_status, ended.restarts, len(host.shims)) == ("exited", 7, 2, 3)


async def test_while_it_waits_its_address_is_kept_and_its_name_is_not_told(host):
    await host.containers.create(again(name="always"))
    await host.containers.start("web")
    host.shims[0].end(0)
    await until(lambda: host.containers.find("web").state == "restarting")
    (row,) = host.containers.wiring.endpoints().values()
    assert row.state == "starting"
    with pytest.raises(ConflictError, match="restarting"):
        await host.containers.remove("web", force=False)


@pytest.mark.parametrize("verb", ["stop", "remove"])
async def test_what_waits_for_its_restart_can_be_ended(host, verb):
    await host.containers.create(again(name="always"))
    await host.containers.start("web")
    host.shims[0].end(1)
    await until(lambda: host.containers.find("web").state == "restarting")
    ended = asyncio.create_task(host.containers.wait("web"))
    await asyncio.sleep(0)
    if verb == "stop":
        await host.containers.stop("web")
    else:
        await host.containers.remove("web", force=True)
    assert (await ended).exit_status == 1
    await asyncio.sleep(0.3)
    assert len(host.shims) == 1, "it must not come back"


@pytest.mark.parametrize("verb", ["stop", "kill"])
async def test_policy_does_not_undo_a_stop(host, verb):
    await host.containers.create(again(name="always"))
    await host.containers.start("web")
    if verb == "stop":
        await host.containers.stop("web")
    else:
        await host.containers.kill("web", 9)
    ended = await host.containers.wait("web")
    assert (ended.state, ended.stopped) == ("exited", True)
    assert (await host.containers.start("web")).stopped is False


async def test_stop_while_it_is_being_started_again(host):
    await host.containers.create(again(name="always"))
    await host.containers.start("web")
    host.spawning.clear()
    host.shims[0].end(1)
    await until(lambda: host.containers.find("web").state == "created")
    stopping = asyncio.create_task(host.containers.stop("web"))
    await asyncio.sleep(0)
    host.spawning.set()
    await stopping
    assert host.containers.find("web").state == "exited"
    assert not host.shims[-1].started.is_set()


async def test_restart_keeps_what_rm_would_remove(host):
    await host.containers.create(replace(SPEC, remove=True))
    await host.containers.start("web")
    again = await host.containers.restart("web")
    assert again.state == "running" and len(host.shims) == 2
    host.shims[1].end(0)
    await host.containers.wait("web")
    assert host.containers.all() == ()


async def test_rename(host):
    await host.containers.create(again())
    await host.containers.create(replace(SPEC, name="other"))
    await host.containers.rename("web", "www")
    (row,) = host.containers.wiring.endpoints().values()
    assert row.name == "www"
    for name, words in (("other", "taken"), ("a b", "cannot be a container's name")):
        with pytest.raises(CallerError, match=words):
            await host.containers.rename("www", name)
    assert host.containers.find("www").spec.name == "www"


async def test_rm_and_restart_contradict(host):
    with pytest.raises(CallerError, match="contradict"):
        await host.containers.create(replace(again(name="always"), remove=True))


async def test_a_hundred_at_once_take_no_more_of_a_network_than_they_need(host, monkeypatch):
    """Each asked for a block as large as all before together, and a network of 4,093 addresses was used up."""
    blocks = [ipaddress.ip_network("10.0.0.8/29")]
    asked = []

    async def lease(request: LeaseRequest) -> None:
        asked.append(request.addresses)
        await asyncio.sleep(0.001)
        size = max(request.addresses, sum(block.num_addresses for block in blocks))
        prefix = 32 - (size - 1).bit_length()
        start = max(int(block.broadcast_address) for block in blocks) + 1
        aligned = -(-start // (1 << (32 - prefix))) << (32 - prefix)
        blocks.append(ipaddress.ip_network((aligned, prefix)))

    def leases(network: str) -> tuple[Lease, ...]:
        return tuple(Lease(network="net1", vni=65536, prefix=block, node="node1", epoch=1) for block in blocks)

    monkeypatch.setattr(host.cluster, "lease", lease)
    monkeypatch.setattr(host.cluster, "blocks", leases)
    specs = [replace(again(), name=f"c{number}") for number in range(100)]
    made = await asyncio.gather(*map(host.containers.create, specs))
    assert len({container.attachments[0].addresses for container in made}) == 100
    assert len(asked) <= 2 and sum(block.num_addresses for block in blocks) <= 8 + 128 + 128


async def test_a_removal_that_is_cut_short_is_finished_by_the_next_daemon(host, monkeypatch):
    """The record went with the files, in whatever order: a container could be left without some of them."""

    def die(container_id: str, directory: Path, run_directory: Path) -> None:
        assert (directory / "upper").exists()
        raise HostError("this daemon was killed")

    container = await host.containers.create(SPEC)
    (host.state.container_directory(container.id) / "upper").mkdir()
    monkeypatch.setattr(tasks, "remove", die)
    with pytest.raises(HostError, match="killed"):
        await host.containers.remove("web", force=True)
    assert StateDirectory(host.state.path).containers() == []
    assert list(host.state.containers_path.iterdir()) == []


async def test_a_name_server_that_cannot_be_leaves_nothing(host, monkeypatch):
    """No descriptor is left, say. It could not be removed either: nobody watched for its end."""

    def refuse(*_: object) -> None:
        raise HostError("cannot serve names")

    monkeypatch.setattr(Shim, "udp", object())
    monkeypatch.setattr(Shim, "tcp", object())
    monkeypatch.setattr(Resolver, "add", refuse)
    with pytest.raises(HostError, match="cannot serve names"):
        await host.containers.create(SPEC)
    assert host.containers.all() == () and host.shims[0]._end.done()


async def test_what_is_changed_at_once_is_changed_in_all(host, monkeypatch):
    """The kernel is told in a thread; what was changed meanwhile was as before."""
    gate, asked = threading.Event(), threading.Event()

    def told(groups: object, limits: object) -> None:
        asked.set()
        gate.wait(20)

    monkeypatch.setattr(cgroups, "update", told)
    container = await host.containers.create(SPEC)
    await host.containers.start("web")
    updates = [
        asyncio.create_task(host.containers.inside.update("web", ContainerUpdate(memory=1 << 30))),
        asyncio.create_task(host.containers.inside.update("web", ContainerUpdate(cpus=2.0))),
    ]
    try:
        await asyncio.to_thread(asked.wait, 20)
        await host.containers.rename("web", "shop")
    finally:
        gate.set()
        await asyncio.gather(*updates)
    (kept,) = host.state.containers()
    assert (kept.id, kept.spec.name, kept.spec.memory, kept.spec.cpus) == (container.id, "shop", 1 << 30, 2.0)


@pytest.mark.parametrize("round_", range(4))
async def test_whatever_many_ask_at_once_nothing_hangs_and_nothing_is_left(host, monkeypatch, rng, round_):
    """Commands that end by themselves, policies, and people who start, stop, kill and remove the same containers."""
    names = ("a", "b", "c")
    monkeypatch.setattr("vxnet.core.restarts.FIRST_S", 0.002)

    async def slow(*_: object) -> Shim:
        await asyncio.sleep(rng.choice((0, 0, 0.001, 0.003)))
        if rng.random() < 0.1:
            raise HostError("no memory")
        shim = Shim()
        shim.dying_s = rng.choice((0, 0.001, 0.003))
        host.shims.append(shim)
        if rng.random() < 0.5:
            asyncio.get_running_loop().call_later(rng.random() * 0.01, shim.end, rng.choice((0, 1, None)))
        return shim

    monkeypatch.setattr(tasks, "start", slow)

    async def ask() -> None:
        for _ in range(40):
            name = rng.choice(names)
            policy = RestartPolicy(name=rng.choice(("no", "always", "on-failure", "unless-stopped")))
            verb = rng.choice(("create", "start", "start", "stop", "restart", "kill", "remove", "prepare", "rename"))
            spec = ContainerSpec(
                name=name, argv=("true",), restart=policy, remove=policy.name == "no" and rng.random() < 0.3,
                networks=(NetworkWish(network="blue"),) if rng.random() < 0.5 else (),
            )  # fmt: skip
            asked = {
                "create": lambda spec=spec: host.containers.create(spec),
                "start": lambda name=name: host.containers.start(name),
                "prepare": lambda name=name: host.containers.prepare(name),
                "stop": lambda name=name: host.containers.stop(name, 0.01),
                "restart": lambda name=name: host.containers.restart(name, 0.01),
                "kill": lambda name=name: host.containers.kill(name, 9),
                "remove": lambda name=name: host.containers.remove(name, force=True),
                "rename": lambda name=name: host.containers.rename(name, rng.choice(names)),
            }[verb]
            try:
                async with asyncio.timeout(5):
                    await asked()
            except VxnetError:
                pass
            except TimeoutError:
                raise AssertionError(f"{verb} {name} hangs: {host.containers.all()}") from None
            await asyncio.sleep(rng.choice((0, 0, 0.002)))

    async with asyncio.TaskGroup() as group:
        for _ in range(6):
            group.create_task(ask())
    async with asyncio.timeout(10):
        while host.containers.all():
            for container in host.containers.all():
                with contextlib.suppress(VxnetError):
                    await host.containers.remove(container.id, force=True)
            await asyncio.sleep(0.001)
    await asyncio.sleep(0.05)
    assert host.containers.all() == ()
    assert list(host.state.containers_path.iterdir()) == []
    assert all(shim._end.done() for shim in host.shims), "one runs whom nobody knows"
