"""The fast path for names: octet for octet what core/names says, under the sanitizers, and past Python's lock.

What the two do together on sockets is tested in tests/cluster/test_dns.py.
"""

from __future__ import annotations

import ctypes
import ipaddress
import random
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vxnet.core.names import Names, View
from vxnet.host.dnsfast import FastNames
from vxnet.model.cluster import Network, Subnet
from vxnet.model.errors import HostError
from vxnet.model.row import Endpoint, RowKey, Version

SOURCES = Path(__file__).parents[2] / "csrc" / "dnsfast"
NETWORKS = {
    name: Network(
        id=name,
        name=f"net-{name}",
        subnets=(Subnet(prefix=ipaddress.ip_network(prefix), gateway=ipaddress.ip_network(prefix)[1]),),
    )
    for name, prefix in (("a", "10.0.16.0/20"), ("b", "10.0.32.0/20"))
}


def rows(*, many: int = 200) -> Iterator[tuple[RowKey, Version, Endpoint]]:
    def row(number: int, network: str, name: str, *addresses: str, alias: str = "") -> tuple[RowKey, Version, Endpoint]:
        endpoint = Endpoint(
            network=network,
            vni=65536,
            addresses=tuple(ipaddress.ip_address(address) for address in addresses),
            mac="",
            vtep=ipaddress.ip_address("192.0.2.1"),
            name=name,
            aliases=(alias,) if alias else (),
            state="starting" if name == "starting" else "ready",
        )
        return RowKey("node", "endpoint", f"{number:012x}.{network}"), Version(1, 1), endpoint

    yield row(1, "a", "web", "10.0.16.2", "fd00::2")
    yield row(2, "b", "web", "10.0.32.2")
    yield row(3, "b", "six", "fd00::3", "fd00::4", "fd00::5")
    yield row(4, "a", "starting", "10.0.16.9")
    for number in range(many):
        yield row(16 + number, "a", f"m{number}", f"10.0.17.{number}", alias="many")


@pytest.fixture(scope="module")
def both() -> Iterator[tuple[Names, FastNames]]:
    names = Names()
    with FastNames() as fast:
        for (network, name), answers in names.update(rows(), NETWORKS).items():
            fast.put(network, name, answers)
        yield names, fast


NAME_TEXT = st.sampled_from(["web", "WEB", "web.net-a", "six", "many", "starting", "no", "2.16.0.10.in-addr.arpa", ""])
VIEWS = st.sampled_from([("a",), ("b",), ("a", "b"), ("b", "a"), ("c",), ()])


@st.composite
def datagrams(draw: st.DrawFn) -> bytes:
    labels = [label.encode() for label in draw(NAME_TEXT).split(".") if label]
    name = b"".join(bytes((len(label),)) + label for label in labels) + b"\0"
    kind = draw(st.sampled_from([1, 12, 16, 28, 33, 255]))
    edns = draw(st.sampled_from([b"", b"", b"\0\0\x29\x04\xd0\0\0\x80\0\0\0", b"\0\0\x29\0\x10\0\0\0\0\0\0"]))
    flags = draw(st.sampled_from([0x0100, 0x0110, 0x0000, 0x8100, 0x2800]))
    class_ = draw(st.sampled_from([1, 1, 1, 3]))
    data = b"\x12\x34" + flags.to_bytes(2, "big") + b"\0\1\0\0\0\0\0" + bytes((bool(edns),))
    data += name + kind.to_bytes(2, "big") + class_.to_bytes(2, "big") + edns
    if draw(st.integers(0, 3)) == 0:
        at = draw(st.integers(0, len(data) - 1))
        data = data[:at] + bytes((draw(st.integers(0, 255)),)) + data[at + 1 :]
    return data[: draw(st.integers(0, len(data)))] if draw(st.integers(0, 7)) == 0 else data


@given(data=datagrams(), networks=VIEWS, turn=st.integers(0, 2**32 - 1))
def test_what_it_answers_is_what_core_names_answers(
    both: tuple[Names, FastNames], data: bytes, networks: tuple[str, ...], turn: int
) -> None:
    names, fast = both
    reply = fast.answer(networks, data, turn)
    if reply:
        assert reply == names.answer(View(networks, forward=True), data, turn)


@pytest.mark.parametrize(
    "name, kind", [("web", 1), ("many", 1), ("six", 28), ("web", 255), ("starting", 1), ("six", 1)]
)
def test_known_names_are_not_passed_on(both: tuple[Names, FastNames], name: str, kind: int) -> None:
    data = b"\0\1\1\0\0\1\0\0\0\0\0\0" + bytes((len(name),)) + name.encode() + b"\0\0" + bytes((kind,)) + b"\0\1"
    assert both[1].answer(("a", "b"), data, 1)
    assert both[1].answer((), data, 1) == b""


def test_torn_answers_are_refused() -> None:
    with FastNames() as fast:
        with pytest.raises(HostError, match="Invalid argument"):
            fast.put("a", b"\3web\0", {1: (2, 16, bytes(31))})
        fast.put("a", b"\3web\0", None)


CLIENT = """
import socket, sys, time
client = socket.socket(type=socket.SOCK_DGRAM)
client.settimeout(10)
client.connect(("127.0.0.1", int(sys.argv[1])))
client.send(bytes.fromhex(sys.argv[2]))
client.recv(512)
print("ready", flush=True)
sys.stdin.readline()
for _ in range(50):
    client.send(bytes.fromhex(sys.argv[2]))
    client.recv(512)
print(time.monotonic())
"""


def test_it_answers_while_python_is_busy(both: tuple[Names, FastNames]) -> None:
    fast = both[1]
    query = b"\0\1\1\0\0\1\0\0\0\0\0\0\3web\0\0\1\0\1"
    with socket.socket(type=socket.SOCK_DGRAM) as udp:
        udp.bind(("127.0.0.1", 0))
        with fast.serve("c", udp, ("a",)):
            argv = [sys.executable, "-c", CLIENT, str(udp.getsockname()[1]), query.hex()]
            with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as client:
                assert client.stdin and client.stdout
                assert client.stdout.readline() == "ready\n"
                client.stdin.write("go\n")
                client.stdin.flush()
                # A call by way of PyDLL keeps the lock: no other thread of this process runs Python meanwhile.
                ctypes.PyDLL(None).usleep(900_000)
                ctypes.PyDLL(None).usleep(900_000)
                released = time.monotonic()
                assert float(client.stdout.readline()) < released
            fast.leave("c")


def test_it_sleeps_when_nobody_asks(both: tuple[Names, FastNames]) -> None:
    """Looks for what comes next without sleeping (dnsfast.c, wait_for) end, however often there was something."""
    fast = both[1]
    query = b"\0\1\1\0\0\1\0\0\0\0\0\0\3web\0\0\1\0\1"
    with socket.socket(type=socket.SOCK_DGRAM) as udp, socket.socket(type=socket.SOCK_DGRAM) as client:
        udp.bind(("127.0.0.1", 0))
        client.connect(udp.getsockname())
        client.settimeout(5)
        with fast.serve("c", udp, ("a",)):
            for _ in range(500):
                client.send(query)
                assert client.recv(512)[7] == 1
            stat = Path(f"/proc/self/task/{fast._thread.native_id}/stat")
            deadline = time.monotonic() + 5
            while stat.read_text().rpartition(")")[2].split()[0] != "S":
                assert time.monotonic() < deadline, "it looks for ever"
        fast.leave("c")


@pytest.mark.slow
@pytest.mark.parametrize("sanitizers", ["address,undefined", "thread"])
def test_sanitizers_find_nothing(tmp_path: Path, rng: random.Random, sanitizers: str) -> None:
    target = tmp_path / "fuzz"
    flags = ["-std=c11", "-D_GNU_SOURCE=", "-O1", "-g", f"-fsanitize={sanitizers}", "-fno-sanitize-recover=all"]
    sources = [*SOURCES.glob("*.c"), Path(__file__).parent / "dnsfast_fuzz.c"]
    subprocess.run(["gcc", *flags, f"-I{SOURCES}", "-o", target, *sources, "-lpthread"], check=True)
    done = subprocess.run([target, str(rng.getrandbits(63)), "20000"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 10000, "most queries must be answered, or little is tried"
