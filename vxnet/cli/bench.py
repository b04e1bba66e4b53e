"""`vxnet bench`: what the ways to other hosts carry."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from vxnet.cli import output
from vxnet.cli.complete import node_names
from vxnet.cli.options import Format
from vxnet.cluster.client import Client

if TYPE_CHECKING:
    from vxnet.model.bench import HostFigures, PathFigures


@click.command()
@click.option("-t", "--time", "seconds", type=click.IntRange(1, 60), default=2, show_default=True, help="Seconds.")
@click.option("-r", "--rounds", type=click.IntRange(1, 50), default=3, show_default=True, help="Medians are taken of.")
@click.option("--plot", metavar="FILE", help="Also as bars: a .png or an .svg. Needs matplotlib.")
@click.option(
    "-f", "--format", "form", type=click.Choice(["table", "json"]), default="table", help="json: a host a line."
)
@click.argument("hosts", nargs=-1, metavar="[HOST]...", shell_complete=node_names)
@click.pass_obj
def bench(client: Client, seconds: int, rounds: int, plot: str | None, form: Format, hosts: tuple[str, ...]) -> None:
    """Measure what the ways to other hosts, or to all, carry.

    By iperf3 and ping: TCP, round trip, UDP packets and TCP connections a second; over the underlay, over a tunnel of
    the kernel's, and over one in user space. Both ends are made for it and are gone afterwards, also after Ctrl-C. The
    underlay needs 15201/tcp, 15201/udp and 15202/tcp, the tunnel in user space the UDP port behind VXLAN's (4790).

    On a manager, and for root.
    """
    from vxnet.tools.bench import Options, check_plot
    from vxnet.tools.bench import bench as measure
    from vxnet.tools.bench import plot as draw

    if plot is not None:
        check_plot(plot)
    found: list[HostFigures] = []
    for one in measure(client, hosts, Options(seconds, rounds), _progress):
        found.append(one)
        if form == "json":
            output.json_lines([one])
    _progress("")
    if form == "table":
        headers = ("HOST", "PATH", "TCP", "RATIO", "ROUND TRIP", "UDP PACKETS/S", "CONNECTIONS/S", "")
        output.table(headers, (_row(host, path) for host in found for path in host.paths))
    if plot is not None:
        draw(found, plot)


def _row(host: HostFigures, path: PathFigures) -> tuple[str, ...]:
    def number(value: float | None, form: str = "{:.0f}") -> str:
        return "-" if value is None else form.format(value)

    return (
        host.host,
        path.path,
        number(path.tcp_bits_s and path.tcp_bits_s / 1e6, "{:.0f} Mb/s"),
        number(path.ratio, "{:.2f}"),
        number(path.rtt_us, "{:.0f} µs"),
        number(path.udp_packets_s),
        number(path.connections_s),
        path.problem,
    )


def _progress(text: str) -> None:
    if sys.stderr.isatty():
        click.echo(f"\r\033[K{text}", nl=False, err=True)
