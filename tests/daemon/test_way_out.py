"""The addresses of vxnet_gw: chosen once, beside what the host has, as the configuration says."""

from __future__ import annotations

from ipaddress import ip_interface, ip_network
from pathlib import Path

import pytest
from msgspec.structs import replace

from vxnet.core import allocate
from vxnet.daemon.config import Config, GatewayConfig
from vxnet.daemon.state import GatewayChoice, StateDirectory
from vxnet.daemon.way_out import WayOut
from vxnet.model.address import IPNetwork
from vxnet.model.codec import from_toml
from vxnet.model.container import Attachment, Container, ContainerSpec
from vxnet.model.errors import CallerError
from vxnet.model.host import HostFacts

OWN = allocate.ula_pool("machine").network_address


class OneHost:
    """A daemon's view of its host, over restarts."""

    def __init__(self, path: Path, *, ipv6: bool = True) -> None:
        self._path = path
        self.facts = HostFacts(hostname="h1", machine_id="machine", addresses=(), routes=(), nameservers=(), ipv6=ipv6)
        self.occupied: list[IPNetwork] = [ip_network("172.19.0.0/16")]
        self.containers: list[Container] = []

    def starts(self, text: str = "") -> WayOut:
        config = from_toml(f"[gateway]\n{text}", Config).gateway
        way_out = WayOut(
            config, StateDirectory(self._path), lambda: self.facts, lambda: self.occupied, lambda: self.containers
        )
        way_out.check()
        return way_out


def texts(way_out: WayOut) -> list[str]:
    return [str(one) for one in way_out.addresses()]


@pytest.fixture
def host(tmp_path: Path) -> OneHost:
    return OneHost(tmp_path)


def test_it_avoids_what_the_host_has_and_stays(host: OneHost) -> None:
    first = ["172.20.0.1/16", f"{OWN + 0xAC140001}/64"]
    assert texts(host.starts()) == first
    host.occupied += [ip_network("172.20.0.0/14"), ip_network("fd00::/8")]  # a route that came later
    assert texts(host.starts()) == first
    assert host.starts().bridge(1400).mtu == 1400 and host.starts("mtu = 1380").bridge(1400).mtu == 1380


def test_ipv6_where_there_is_some(tmp_path: Path) -> None:
    host = OneHost(tmp_path, ipv6=False)
    assert texts(host.starts()) == ["172.20.0.1/16"]
    host.facts = replace(host.facts, ipv6=True)  # as after an upgrade of vxnet, too
    assert texts(host.starts()) == ["172.20.0.1/16", f"{OWN + 0xAC140001}/64"]
    assert texts(host.starts("ipv6 = false")) == ["172.20.0.1/16"]
    assert texts(host.starts("mtu = 1200")) == ["172.20.0.1/16"]


def test_what_the_configuration_says(host: OneHost) -> None:
    assert texts(host.starts('subnet = "10.9.0.0/24"\nsubnet6 = "fd09::/64"')) == ["10.9.0.1/24", "fd09::a09:1/64"]
    # Another one while somebody has a place there, and when nobody has.
    place = Attachment(network="", ifname="eth0", mac="02:00:0a:09:00:02", addresses=(ip_interface("10.9.0.2/24"),))
    host.containers = [Container(id="a", spec=ContainerSpec(argv=("x",)), gateway=place, state="running", created_at=0)]
    moved = 'subnet = "10.8.0.0/24"\nsubnet6 = "fd09::/64"'
    way_out = host.starts(moved)
    assert texts(way_out)[0] == "10.9.0.1/24"
    (told,) = way_out.warnings()
    assert "not 10.8.0.0/24 yet" in told
    host.containers = []
    way_out = host.starts(moved)
    assert texts(way_out) == ["10.8.0.1/24", "fd09::a08:1/64"] and way_out.warnings() == ()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('subnet = "172.19.4.0/24"', "gateway.subnet 172.19.4.0/24 overlaps 172.19.0.0/16"),
        ('subnet = "fd00::/64"', "gateway.subnet is an IPv4 prefix"),
        ('subnet = "10.0.0.0/30"', "at most 28 bits"),
        ('subnet6 = "fd00::/112"', "gateway.subnet6 is an IPv6 prefix of at most 96 bits"),
        ("mtu = 10", "576"),
    ],
)
def test_what_it_may_not_say(host: OneHost, text: str, words: str) -> None:
    with pytest.raises((CallerError, ValueError), match=words):
        host.starts(text)


def test_one_of_an_earlier_vxnet(host: OneHost, tmp_path: Path) -> None:
    """Which had no IPv6 there: what it chose is kept."""
    StateDirectory(tmp_path).save_gateway(GatewayChoice(addresses=(ip_interface("172.25.0.1/16"),)))
    assert texts(host.starts()) == ["172.25.0.1/16", f"{OWN + 0xAC190001}/64"]
    assert GatewayConfig().ipv6
