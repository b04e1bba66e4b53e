"""The container's own files in /etc."""

from __future__ import annotations

from ipaddress import ip_address, ip_interface

import pytest

from vxnet.core.containers import check_spec
from vxnet.core.etc import etc_files
from vxnet.core.names import view_of
from vxnet.model.address import MAC
from vxnet.model.container import Attachment, Container, ContainerSpec
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


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"hosts": ("db",)}, "NAME:ADDRESS"),
        ({"hosts": ("db:10.1.1",)}, "NAME:ADDRESS"),
        ({"hosts": ("two words:10.1.1.1",)}, "two words"),
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
