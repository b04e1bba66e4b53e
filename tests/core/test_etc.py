"""The container's own files in /etc."""

from __future__ import annotations

from ipaddress import ip_address, ip_interface

import pytest
from msgspec.structs import replace

from vxnet.core.containers import check_spec
from vxnet.core.etc import HostTexts, check_host_gateway, etc_files
from vxnet.core.names import view_of
from vxnet.model.address import MAC
from vxnet.model.container import Attachment, Container, ContainerSpec, NetworkWish
from vxnet.model.errors import CallerError


def container(**spec: object) -> Container:
    place = Attachment(
        network="n", ifname="eth0", mac=MAC("02:00:00:00:00:01"), addresses=(ip_interface("10.0.0.2/24"),)
    )
    return Container(
        id="0123456789abcdef" * 4,
        spec=ContainerSpec(argv=("true",), **spec),  # type: ignore[arg-type]
        attachments=(place,),
        created_at=0,
    )


def test_plain() -> None:
    files = etc_files(container())
    assert files["hostname"] == "0123456789ab\n"
    assert files["hosts"].endswith("\n10.0.0.2\t0123456789ab\n")
    assert files["resolv.conf"].endswith("\nnameserver 127.0.0.11\noptions ndots:0\n")


def test_wishes() -> None:
    made = container(
        hostname="me", hosts=("db:10.1.1.1", "six:fd00::6"), dns=(ip_address("192.0.2.1"),),
        dns_search=("a.org", "b.org"), dns_options=("ndots:2", "rotate"),
    )  # fmt: skip
    files = etc_files(made)
    assert "10.1.1.1\tdb\nfd00::6\tsix\n10.0.0.2\tme\n" in files["hosts"]
    assert files["resolv.conf"].endswith("\nnameserver 127.0.0.11\noptions ndots:2 rotate\nsearch a.org b.org\n")
    assert view_of(made).servers == (ip_address("192.0.2.1"),)


def test_the_hosts_own_address() -> None:
    made = container(hosts=("host:host-gateway", "db:10.1.1.1"), hostname="me")
    reached = (ip_address("172.19.0.2"),)
    with pytest.raises(CallerError, match="host:host-gateway would lead nowhere"):
        check_host_gateway(made, reached)
    bridge = ip_address("172.19.0.1"), ip_address("fd19::1")
    made = replace(made, gateway=replace(made.attachments[0], network="", ifname="eth1", way_out=bridge))
    check_host_gateway(made, reached)
    assert "172.19.0.1\thost\nfd19::1\thost\n10.1.1.1\tdb\n10.0.0.2\tme\n" in etc_files(made)["hosts"]
    # Of a bridge network likewise; a macvlan's router is somebody else.
    made = replace(made, gateway=None, attachments=(replace(made.attachments[0], way_out=bridge[:1]),))
    check_host_gateway(made, reached)
    assert "\n172.19.0.1\thost\n10.1.1.1\tdb\n" in etc_files(made)["hosts"]
    with pytest.raises(CallerError, match="would lead nowhere"):
        check_host_gateway(made, ())


def test_the_hosts_own_address_in_its_own_namespace() -> None:
    made = container(hosts=("host:host-gateway",), networks=(NetworkWish(network="host"),))
    check_host_gateway(made, ())
    texts = HostTexts(resolv_conf="", hosts="127.0.0.1\tlocalhost\n", hostname="h1")
    assert etc_files(made, texts)["hosts"] == "127.0.0.1\tlocalhost\n127.0.0.1\thost\n::1\thost\n"


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"hosts": ("db",)}, "NAME:ADDRESS"),
        ({"hosts": ("db:10.1.1",)}, "NAME:ADDRESS"),
        ({"hosts": ("two words:10.1.1.1",)}, "two words"),
        ({"hosts": ("db:fe80::1%eth0\n10.1.1.1 web",)}, "NAME:ADDRESS"),
        ({"networks": (NetworkWish(network="blue", aliases=("a",) * 1001),)}, "1001 aliases"),
        ({"dns_search": ("a\nb",)}, "resolv.conf"),
        ({"sysctls": {"kernel.panic": "1"}}, "kernel.panic"),
        ({"sysctls": {"net./../kernel.panic": "1"}}, "of its own"),
        ({"user": "a:b:c"}, "a:b:c"),
        ({"user": "a b"}, "a b"),
    ],
)
def test_wrong_wishes(spec: dict[str, object], words: str) -> None:
    with pytest.raises(CallerError, match=words):
        check_spec(ContainerSpec(argv=("true",), **spec))  # type: ignore[arg-type]
