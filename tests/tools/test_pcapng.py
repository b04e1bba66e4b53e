"""Files that others read: scapy's reader and tcpdump."""

from __future__ import annotations

import ipaddress
import subprocess
from pathlib import Path

import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Ether
from scapy.utils import PcapNgReader

from vxnet.tools import pcapng

FRAME = bytes(Ether(src="02:00:00:00:00:01") / IP(src="192.168.56.11", dst="192.168.56.12") / UDP(dport=4789) / b"abc")
AT_NS = 1_795_613_821_123_456_789
NAMES = {ipaddress.ip_address("10.0.0.3"): "web", ipaddress.ip_address("fd00::3"): "web6"}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "x.pcapng"
    path.write_bytes(
        pcapng.head("eth1", "vxnet 1")
        + pcapng.names(NAMES)
        + pcapng.packet(FRAME, AT_NS, "h1 > h2: ünïcode", len(FRAME))
        + pcapng.packet(FRAME[:40], AT_NS + 1, "", len(FRAME))
    )
    return path


def test_scapy_reads_it(file: Path) -> None:
    with PcapNgReader(str(file)) as reader:
        first, second = list(reader)
    assert bytes(first) == FRAME and bytes(second)[:40] == FRAME[:40]
    assert [str(one.time) for one in (first, second)] == ["1795613821.123456789", "1795613821.12345679"]
    assert second.wirelen == len(FRAME)
    assert "h1 > h2: ünïcode" in b"".join(first.comments).decode()


def test_tcpdump_reads_it(file: Path) -> None:
    done = subprocess.run(["tcpdump", "-n", "-tt", "-r", str(file)], capture_output=True, text=True, check=True)
    first = done.stdout.splitlines()[0]
    assert first.startswith("1795613821.123456") and "192.168.56.11" in first
