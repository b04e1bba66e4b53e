"""Places on networks: addresses from own blocks, a manager asked only when they have none that fits."""

from __future__ import annotations

from ipaddress import IPv4Interface, ip_address, ip_interface, ip_network

import pytest
from msgspec.structs import replace

from vxnet.daemon.attachments import Attachments
from vxnet.model.address import IPAddress, IPInterface
from vxnet.model.api import LeaseRequest
from vxnet.model.cluster import Lease, Network, Subnet
from vxnet.model.container import Container, ContainerSpec, NetworkWish
from vxnet.model.errors import CallerError, ConflictError, ExhaustedError, NotFoundError, VxnetError

SUBNET = Subnet(prefix=ip_network("10.0.16.0/20"), gateway=ip_address("10.0.16.1"))
NET = Network(id="n1", name="blue", vni=65536, subnets=(SUBNET,), attachable=True)


class OneHost:
    """A cluster whose manager answers from a list of blocks, and the containers of one host of it."""

    def __init__(self, *blocks: str, spare: tuple[str, ...] = (), networks: tuple[Network, ...] = (NET,)) -> None:
        self.networks = {network.id: network for network in networks}
        self.coming: dict[str, Network] = {}
        """Said by the managers, and not in use yet."""
        self.data_path_addr: IPAddress | None = ip_address("192.168.56.11")
        self.asked: list[LeaseRequest] = []
        self.containers: list[Container] = []
        self.local: dict[str, Network] = {}
        self._blocks = [*blocks]
        self._chosen: list[str] = []
        self._spare = [*spare]
        self.attachments = Attachments(self, self.gateway, lambda: self.containers, local=lambda: self.local)

    def blocks(self, network: str) -> tuple[Lease, ...]:
        return tuple(
            Lease(
                network=network, vni=65536, prefix=ip_network(block), node="me", epoch=1, chosen=block in self._chosen
            )
            for block in self._blocks
        )

    async def heard(self) -> None:
        self.networks |= self.coming

    async def lease(self, request: LeaseRequest) -> None:
        self.asked.append(request)
        if request.address is not None:
            block = str(ip_network(request.address))
            self._blocks.append(block)
            self._chosen.append(block)
        elif self._spare:
            self._blocks.append(self._spare.pop(0))

    def gateway(self) -> tuple[IPInterface, ...]:
        return ip_interface("172.19.0.1/29"), ip_interface("fd19::ac13:1/64")

    async def place(self, name: str, wish: NetworkWish) -> Container:
        container = Container(id=name * 8, spec=ContainerSpec(name=name, argv=("true",)), created_at=0.0)
        network = await self.attachments.join(container, wish)
        attachment = self.attachments.attach(container, network, wish)
        self.containers.append(replace(container, attachments=(attachment,)))
        return self.containers[-1]


def address_of(container: Container) -> str:
    interface = container.attachments[0].addresses[0]
    assert isinstance(interface, IPv4Interface)
    return str(interface)


async def test_addresses_come_from_own_blocks_without_a_manager() -> None:
    host = OneHost("10.0.16.8/29")
    first = await host.place("a", NetworkWish(network="blue"))
    second = await host.place("b", NetworkWish(network="n1"))
    assert address_of(first) == "10.0.16.8/20"
    assert address_of(second) == "10.0.16.9/20"
    assert first.attachments[0].mac == "02:00:0a:00:10:08"
    assert host.asked == []


async def test_a_freed_address_rests_while_there_are_others() -> None:
    host = OneHost("10.0.16.8/30")
    for name in "abc":
        await host.place(name, NetworkWish(network="blue"))
    freed = host.containers.pop(0)
    assert address_of(await host.place("d", NetworkWish(network="blue"))) == "10.0.16.11/20"
    assert address_of(await host.place("e", NetworkWish(network="blue"))) == address_of(freed)


async def test_a_full_host_asks_for_a_block_and_a_full_network_says_so() -> None:
    host = OneHost("10.0.16.8/32", spare=("10.0.16.12/32",))
    await host.place("a", NetworkWish(network="blue"))
    assert address_of(await host.place("b", NetworkWish(network="blue"))) == "10.0.16.12/20"
    assert host.asked == [LeaseRequest(network="n1", family=4)]
    with pytest.raises(ExhaustedError, match="blue"):
        await host.place("c", NetworkWish(network="blue"))


async def test_a_chosen_address_elsewhere_is_leased_and_a_taken_one_names_its_holder() -> None:
    host = OneHost("10.0.16.8/29")
    wanted = ip_address("10.0.20.7")
    chosen = await host.place("a", NetworkWish(network="blue", ip=wanted))
    assert address_of(chosen) == "10.0.20.7/20"
    assert host.asked == [LeaseRequest(network="n1", address=wanted, family=4)]
    with pytest.raises(ConflictError, match='"a"'):
        await host.place("b", NetworkWish(network="blue", ip=wanted))


async def test_an_address_given_back_while_the_other_familys_is_asked_for_is_asked_for_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is of no container yet, so what looks for idle ones may return it."""
    six = Subnet(prefix=ip_network("fd00::/64"), gateway=ip_address("fd00::1"))
    host = OneHost("10.0.16.8/29", networks=(replace(NET, subnets=(SUBNET, six)),))
    wish = NetworkWish(network="blue", ip=ip_address("10.0.20.7"), ip6=ip_address("fd00::7"))
    lease = host.lease

    async def slow(request: LeaseRequest) -> None:
        await lease(request)
        if request.family == 6 and len(host.asked) == 2:
            host._blocks.remove("10.0.20.7/32")

    monkeypatch.setattr(host, "lease", slow)
    found = (await host.place("a", wish)).attachments[0].addresses
    assert [str(address.ip) for address in found] == ["10.0.20.7", "fd00::7"]
    assert [request.family for request in host.asked] == [4, 6, 4]


@pytest.mark.parametrize(
    ("network", "wish", "error", "words"),
    [
        (NET, "red", NotFoundError, "no network 'red'"),
        (replace(NET, attachable=False), "blue", CallerError, "not attachable"),
    ],
)
async def test_wrong_networks_are_refused(network: Network, wish: str, error: type[Exception], words: str) -> None:
    host = OneHost("10.0.16.8/29", networks=(network,))
    with pytest.raises(error, match=words):
        await host.place("a", NetworkWish(network=wish))
    assert host.containers == []


async def test_a_chosen_address_of_the_other_family_is_refused_and_not_forgotten() -> None:
    host = OneHost("10.0.16.8/29")
    with pytest.raises(CallerError, match=r"fd00::1 is outside network blue \(10\.0\.16\.0/20\)"):
        await host.place("a", NetworkWish(network="blue", ip=ip_address("fd00::1")))


async def test_twice_on_one_network_is_refused() -> None:
    host = OneHost("10.0.16.8/29")
    container = await host.place("a", NetworkWish(network="blue"))
    with pytest.raises(ConflictError, match="already on"):
        await host.attachments.join(container, NetworkWish(network="blue"))


async def test_the_way_out_is_kept_and_withheld_from_internal_networks() -> None:
    internal = replace(NET, id="n2", name="inner", internal=True)
    host = OneHost("10.0.16.8/29", networks=(NET, internal))
    outer = await host.place("a", NetworkWish(network="blue"))
    way_out = host.attachments.way_out(outer)
    assert way_out is not None
    assert (way_out.ifname, str(way_out.addresses[0])) == ("eth1", "172.19.0.2/29")
    assert host.attachments.way_out(replace(outer, gateway=way_out)) == way_out
    inner = await host.place("b", NetworkWish(network="inner", ip=ip_address("10.0.16.14")))
    assert host.attachments.way_out(inner) is None


async def test_a_used_up_gateway_says_which() -> None:
    host = OneHost("10.0.16.0/26")
    for number in range(5):
        container = await host.place(f"c{number}", NetworkWish(network="blue"))
        host.containers[-1] = replace(container, gateway=host.attachments.way_out(container))
    with pytest.raises(ExhaustedError, match=r"172\.19\.0\.0/29"):
        host.attachments.way_out(await host.place("last", NetworkWish(network="blue")))


async def test_a_further_block_is_asked_for_before_it_is_needed() -> None:
    host = OneHost("10.0.16.8/29")
    assert host.attachments.running_short() == []
    for name in "abcde":
        await host.place(name, NetworkWish(network="blue"))
    assert host.attachments.running_short() == [LeaseRequest(network="n1", addresses=5, family=4, early=True)]


async def test_an_unused_chosen_address_may_go_back() -> None:
    host = OneHost("10.0.16.8/29")
    await host.place("a", NetworkWish(network="blue", ip=ip_address("10.0.20.7")))
    assert host.attachments.idle() == []
    host.containers.clear()
    assert [str(lease.prefix) for lease in host.attachments.idle()] == ["10.0.20.7/32"]
    assert [str(lease.prefix) for lease in host.attachments.idle_chosen()] == ["10.0.20.7/32"]


async def test_a_first_block_of_one_is_kept() -> None:
    """In a small network it is all that this host can start a container with when no manager is in reach."""
    host = OneHost("10.0.16.8/32")
    assert host.attachments.idle_chosen() == set()
    assert host.attachments.idle() == []


LOCAL = Network(
    id="ab" * 12,
    name="desk",
    driver="bridge",
    scope="local",
    subnets=(
        Subnet(prefix=ip_network("172.20.0.0/29"), gateway=ip_address("172.20.0.1")),
        Subnet(prefix=ip_network("fd20::/64"), gateway=ip_address("fd20::1")),
    ),
)


async def test_a_network_of_this_host_asks_nobody() -> None:
    """All of its subnet is this host's; it is the way out, and there is no place on vxnet_gw beside it."""
    host = OneHost()
    host.local = {LOCAL.id: LOCAL}
    one = await host.place("a", NetworkWish(network="desk"))
    chosen = await host.place("b", NetworkWish(network="desk", ip=ip_address("172.20.0.5")))
    assert address_of(one) == "172.20.0.2/29" and address_of(chosen) == "172.20.0.5/29"
    assert one.attachments[0].mac == "02:ab:ac:14:00:02"
    assert one.attachments[0].way_out == (ip_address("172.20.0.1"), ip_address("fd20::1"))
    assert host.attachments.way_out(one) is None
    assert host.attachments.bridges_of(one) == ["vxnet_ababababa"]
    assert host.attachments.is_free(one, one.attachments[0])
    for address, words in (("172.20.0.5", "taken by container"), ("172.20.0.1", "is kept by"), ("10.0.0.1", "outside")):
        with pytest.raises(VxnetError, match=words):
            await host.place("c", NetworkWish(network="desk", ip=ip_address(address)))
    for name in ("c", "d", "e"):
        await host.place(name, NetworkWish(network="desk"))
    with pytest.raises(ExhaustedError, match="no free address"):
        await host.place("f", NetworkWish(network="desk"))
    assert host.asked == []


async def test_the_way_out_has_both_families_and_one_ending() -> None:
    host = OneHost("10.0.16.8/29")
    way_out = host.attachments.way_out(await host.place("a", NetworkWish(network="blue")))
    assert way_out is not None
    assert [str(one) for one in way_out.addresses] == ["172.19.0.2/29", "fd19::ac13:2/64"]
    assert way_out.mac == "02:00:ac:13:00:02"
    assert way_out.way_out == (ip_address("172.19.0.1"), ip_address("fd19::ac13:1"))


async def test_a_link_that_is_one_containers_alone() -> None:
    host = OneHost()
    options = {"parent": "eth1", "macvlan_mode": "passthru"}
    host.local = {LOCAL.id: replace(LOCAL, driver="macvlan", options=options)}
    await host.place("a", NetworkWish(network="desk"))
    with pytest.raises(ConflictError, match='of one container alone: "a" has it'):
        await host.place("b", NetworkWish(network="desk"))


async def test_a_network_that_was_just_made_is_waited_for():
    host = OneHost("10.0.16.8/29", networks=())
    with pytest.raises(NotFoundError):
        await host.place("a", NetworkWish(network=NET.name))
    host.coming = {NET.id: NET}
    assert (await host.place("a", NetworkWish(network=NET.name))).attachments
