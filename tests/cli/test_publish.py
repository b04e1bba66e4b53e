"""``-p``: what it means, and one clear line for everything that it cannot mean."""

# ruff: noqa: E501 (one value a piece)

from __future__ import annotations

import ipaddress

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from tests.cli.conftest import Vxnet
from tests.daemon.memory_agent import Daemon
from vxnet.cli import output
from vxnet.cli.publish import container_ports, published_ports, with_ports
from vxnet.model.errors import CallerError, UnsupportedError, VxnetError
from vxnet.model.published import PublishedPort


def port(target: int, published: int = 0, **fields: object) -> PublishedPort:
    for name, parse in (("addresses", ipaddress.ip_address), ("sources", ipaddress.ip_network)):
        if name in fields:
            fields[name] = tuple(parse(text) for text in fields[name])  # type: ignore[attr-defined]
    return PublishedPort(target=target, published=published, **fields)  # type: ignore[arg-type]


RIGHT = {
    "80": [port(80)],
    "8080:80": [port(80, 8080)],
    "0:80": [port(80)],
    "8080:80/udp": [port(80, 8080, protocol="udp")],
    "53/UDP": [port(53, protocol="udp")],
    "192.168.56.11:8080:80": [port(80, 8080, addresses=["192.168.56.11"])],
    "192.168.56.11::80": [port(80, addresses=["192.168.56.11"])],
    "[fd00::1]:8080:80/tcp": [port(80, 8080, addresses=["fd00::1"])],
    "[::]:8080:80": [port(80, 8080, addresses=["::"])],
    "eth1:8080:80": [port(80, 8080, interface="eth1")],
    "8000-8002:80-82": [port(80, 8000), port(81, 8001), port(82, 8002)],
    "80-81": [port(80), port(81)],
    "0:80-81": [port(80), port(81)],
    "127.0.0.1:8000-8001:80-81/udp": [
        port(80 + n, 8000 + n, protocol="udp", addresses=["127.0.0.1"]) for n in range(2)
    ],
    "target=80": [port(80)],
    "published=8080,target=80": [port(80, 8080)],
    "target=80,published=8000-8001": None,
    "target=80-81,published=8000-8001,protocol=udp": [port(80, 8000, protocol="udp"), port(81, 8001, protocol="udp")],
    "published=80,target=80,mode=host": [port(80, 80, mode="host")],
    "published=80,target=80,ip=10.1.2.3,ip=fd00::9": [port(80, 80, addresses=["10.1.2.3", "fd00::9"])],
    "published=80,target=80,ip=eth1": [port(80, 80, interface="eth1")],
    "published=80,target=80,from=10.0.0.0/8,from=fd00::/8,from=192.0.2.7": [
        port(80, 80, sources=["10.0.0.0/8", "fd00::/8", "192.0.2.7/32"])
    ],
    "published=80,target=80,policy=local": [port(80, 80, policy="local")],
    "published=80,target=80,policy=cluster": [port(80, 80, policy="cluster")],
}  # fmt: skip


@pytest.mark.parametrize("text", [text for text, ports in RIGHT.items() if ports is not None])
def test_what_it_means(text: str) -> None:
    assert list(published_ports(text)) == RIGHT[text]


_NO_PORTS = ("-1", "65536", "99999", "http", "8o", "0x50", "80.0", "+80", "８０", "80x", "1e3", "_", "0-0", "0-5",
             "90-80", "80-", "-80", "80--81", "1-65535", "80-http", "65535-65536", "1-1001")  # fmt: skip
_NO_PROTOCOLS = ("", "http", "icmp", "tcpp", "6", "tcp/udp", "ip", "tcp ", "t", "udp,tcp")
_NO_PLACES = ("1.2.3", "1.2.3.4.5", "300.1.1.1", "10.0.0.0/8", "a b", "224.0.0.1", "255.255.255.255", "-eth0",
              "0eth", "x" * 16, "e/h", "*")  # fmt: skip
_NO_SOURCES = (
    "10.0.0.1/8",
    "10.0.0.0/33",
    "10",
    "all",
    "10.0.0.0/",
    "fd00::/129",
    "fd00::1/64",
    "1.2.3.4/x",
    "10.0.0.0-1",
)
WRONG = [
    *("", " ", "/", "/tcp", ":", "::", ":::", "80:", ":80", "80:80:", "a:b:c:d", "1:2:3:4", "80/", "8080:80/", "=", ","),
    *("[fd00::1]:80", "[fd00::1]", "[fd00::1:8080:80", "fd00::1:8080:80", "[x]:1:2", "[]:1:2", "[fd00::1]8080:80"),
    *("[fe80::1%eth0]:1:2", "[ff02::1]:1:2", ":8080:80", "8000-8001:80", "80:8000-8001", "8000-8002:80-81"),
    *("8000-8001:80/", "tcp/80", "80 80", "80,81", "80;81", "80/tcp/udp", "\n", "80\n", "8080:80 ", " 80", "$((1))"),
    *_NO_PORTS,
    "0",
    *(f"{text}:80" for text in (*_NO_PORTS, "")),
    *(f"8080:{text}" for text in (*_NO_PORTS, "0", "")),
    *(f"80/{text}" for text in _NO_PROTOCOLS),
    *(f"{text}:8080:80" for text in _NO_PLACES),
    *(f"target={text}" for text in (*_NO_PORTS, "0", "")),
    *(f"published={text},target=80" for text in (*_NO_PORTS, "")),
    *(f"target=80,protocol={text}" for text in _NO_PROTOCOLS),
    *(f"target=80,mode={text}" for text in ("", "vip", "Host", "ingress,host", "global", "none")),
    *(f"target=80,policy={text}" for text in ("", "remote", "Local", "any", "prefer_local")),
    *(f"target=80,ip={text}" for text in (*_NO_PLACES, "", "10.0.0.1,ip=10.0.0.1", "eth0,ip=eth1", "eth0,ip=10.0.0.1")),
    *(f"target=80,from={text}" for text in (*_NO_SOURCES, "")),
    *("published=80", "mode=host", "from=10.0.0.0/8", "ip=10.0.0.1", "protocol=udp", "target", "target=80,published"),
    *("target=80,target=81", "target=80,protocol=tcp,protocol=udp", "target=80,host_ip=1.2.3.4", "port=80", "target=80,"),
    *(",target=80", "target==80", "Target=80", "target=80;published=80", "target=80, published=80", "80,mode=host"),
    *("8080:80,mode=host", "target=80,mode=host,policy=local", "published=8000-8001,target=80", "published=80,target=80-81"),
]  # fmt: skip


def test_there_are_enough_wrong_values() -> None:
    assert len(set(WRONG)) >= 200


@pytest.mark.parametrize("text", sorted(set(WRONG)), ids=ascii)
def test_wrong_values(text: str) -> None:
    with pytest.raises(CallerError) as caught:
        published_ports(text)
    assert "--publish" in caught.value.message and repr(text) in caught.value.message
    assert caught.value.hint and "\n" not in caught.value.message + caught.value.hint


def test_nothing_is_made_by_a_wrong_value(server: Daemon, vxnet_: Vxnet) -> None:
    for text in ("80:http", "target=80,mode=vip", "8000-8001:80"):
        for words in ("service create --name web", "run"):
            result = vxnet_(*words.split(), "-p", "80:80", "-p", text, "--", "true")
            assert result.exit_code and result.stderr.startswith(f"vxnet: --publish '{text}': ")
            assert result.stderr.count("\n") == 1
    assert not server.agent.container_table and vxnet_("service", "ls", "-q").stdout == ""


_PIECES = ("80", "8080", "0", "65536", ":", "::", "-", "/", "tcp", "udp", "sctp", "[", "]", "fd00::1", "10.0.0.1", "eth0", ",",
           "target=", "published=", "mode=", "host", "ingress", "ip=", "from=", "policy=", "local", "=", " ", "%", "é", "\0")  # fmt: skip


@given(st.one_of(st.text(max_size=40), st.lists(st.sampled_from(_PIECES), max_size=8).map("".join)))
def test_anything_is_read_or_refused_in_one_line(text: str) -> None:
    try:
        ports = published_ports(text)
    except VxnetError as error:
        assert isinstance(error, CallerError | UnsupportedError)
        assert len(str(error).splitlines()) == 1
    else:
        assert ports and all(0 < one.target < 65536 and 0 <= one.published < 65536 for one in ports)
        assert with_ports((), (), [text]) and output.ports(ports)


def test_sctp() -> None:
    with pytest.raises(UnsupportedError, match="sctp"):
        published_ports("80/sctp")


def test_a_container_has_ports_of_its_host() -> None:
    assert container_ports(["8080:80", "53/udp"]) == (
        port(80, 8080, mode="host"),
        port(53, mode="host", protocol="udp"),
    )
    with pytest.raises(CallerError, match="mode=ingress is for services"):
        container_ports(["published=80,target=80,mode=ingress"])


def test_update() -> None:
    before = (port(80, 8080), port(81, 8081), port(53, 5353, protocol="udp"))
    assert with_ports(before, ["80"], ["9090:80"]) == (*before[1:], port(80, 9090))
    assert with_ports(before, ["53/udp", "8081:81"], []) == before[:1]
    assert with_ports(before, [], ["published=8080,target=80,policy=local"]) == (
        *before[1:],
        port(80, 8080, policy="local"),
    )
    assert with_ports(before, [], ["80"]) == (*before, port(80))
    for wrong in ("53", "9999:80", "82"):
        with pytest.raises(CallerError, match="there is no") as caught:
            with_ports(before, [wrong], [])
        assert "8080:80/tcp" in caught.value.hint


@pytest.mark.parametrize(
    ("texts", "shown"),
    [
        ([], ""),
        (["8080:80"], "*:8080->80/tcp"),
        (["80", "53/udp"], "80/tcp, 53/udp"),
        (["8000-8003:80-83", "9000:90"], "*:8000-8003->80-83/tcp, *:9000->90/tcp"),
        (
            ["10.0.0.1:80:80", "[fd00::1]:80:80", "eth1:81:81"],
            "10.0.0.1:80->80/tcp, [fd00::1]:80->80/tcp, eth1:81->81/tcp",
        ),
    ],
)
def test_shown(texts: list[str], shown: str) -> None:
    assert output.ports(one for text in texts for one in published_ports(text)) == shown


def test_help_tells_the_form() -> None:
    from vxnet.cli.root import root

    for command in ("run", "service create"):
        text = CliRunner().invoke(root, [*command.split(), "--help"], prog_name="vxnet").stdout
        assert "PUBLISHED" in " ".join(text.split())


def test_run_warns_of_a_port_that_nobody_reaches(server: Daemon, vxnet_: Vxnet) -> None:
    nowhere = "port 192.0.2.7:81/tcp of container far: this host has no such address, so nobody reaches it"
    server.agent.info_warnings = ("something else", nowhere)
    result = vxnet_("run", "-d", "--name", "far", "-p", "192.0.2.7:81:80", "sleep", "9")
    assert (result.exit_code, result.stderr) == (0, f"WARNING: {nowhere}\n")
    assert vxnet_("run", "-d", "--name", "near", "-p", "81:80", "sleep", "9").stderr == ""
