"""The plot of `vxnet bench`."""

from __future__ import annotations

import ipaddress
import struct
from pathlib import Path

import pytest

from vxnet.model.bench import HostFigures, PathFigures
from vxnet.model.errors import CallerError
from vxnet.tools.bench import PATHS, check_plot, plot


def figures(host: str, path: str) -> PathFigures:
    if (host, path) == ("h3", PATHS[-1]):
        return PathFigures(path=path, problem="no TAP there")  # which is no reason not to draw the others
    return PathFigures(path=path, tcp_bits_s=9e9, rtt_us=80.0, udp_packets_s=4e5, connections_s=9000.0, ratio=1.0)


FIGURES = [
    HostFigures(
        host=host, address=ipaddress.ip_address("192.0.2.1"), rounds=3, paths=tuple(figures(host, one) for one in PATHS)
    )
    for host in ("h2", "h3")
]


def test_a_png(tmp_path: Path) -> None:
    check_plot(str(tmp_path / "b.png"))
    plot(FIGURES, str(tmp_path / "b.png"))
    data = (tmp_path / "b.png").read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"  # PNG (RFC 2083) 3.1
    width, height = struct.unpack(">II", data[16:24])
    assert width > height > 300


def test_an_svg(tmp_path: Path) -> None:
    plot(FIGURES, str(tmp_path / "b.svg"))
    assert "<svg" in (tmp_path / "b.svg").read_text()


def test_nothing_else(tmp_path: Path) -> None:
    with pytest.raises(CallerError, match=r"a plot is a \.png or an \.svg"):
        check_plot(str(tmp_path / "b.pdf"))
