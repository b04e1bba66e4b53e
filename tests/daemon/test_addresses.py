"""Which address the others are told: never a guess."""

from __future__ import annotations

from ipaddress import ip_address, ip_interface

import pytest

from vxnet.daemon.addresses import choose_address
from vxnet.model.errors import CallerError
from vxnet.model.host import HostAddress, HostFacts


def host(*addresses: str) -> HostFacts:
    """``eth1=192.168.56.11/24`` …"""
    pairs = [text.split("=") for text in addresses]
    return HostFacts(
        hostname="h1",
        machine_id="m",
        addresses=tuple(HostAddress(interface=name, address=ip_interface(text)) for name, text in pairs),
        routes=(),
        nameservers=(),
    )


VAGRANT = host("eth0=10.0.2.15/24", "eth1=192.168.56.11/24", "eth1=fd56::11/64")


@pytest.mark.parametrize(
    ("wanted", "facts", "found"),
    [
        ("", host("eth1=192.168.56.11/24"), "192.168.56.11"),
        ("", VAGRANT, "192.168.56.11"),
        ("", host("eth1=fd56::11/64"), "fd56::11"),
        ("eth1", VAGRANT, "192.168.56.11"),
        ("eth0", VAGRANT, "10.0.2.15"),
        ("fd56::11", VAGRANT, "fd56::11"),
    ],
)
def test_the_one_that_is_meant(wanted: str, facts: HostFacts, found: str) -> None:
    assert choose_address(wanted, facts, "--advertise-addr") == ip_address(found)


@pytest.mark.parametrize(
    ("wanted", "facts"),
    [
        ("", host("eth1=192.168.56.11/24", "eth2=192.168.57.11/24")),
        ("", host("eth0=10.0.2.15/24")),
        ("", host()),
        ("eth9", VAGRANT),
        ("192.168.56.99", VAGRANT),
    ],
)
def test_a_doubt_is_an_error_that_names_the_candidates(wanted: str, facts: HostFacts) -> None:
    with pytest.raises(CallerError, match="--advertise-addr") as caught:
        choose_address(wanted, facts, "--advertise-addr")
    for address in facts.addresses:
        assert str(address.address.ip) in str(caught.value)
    assert "\n" not in str(caught.value)
