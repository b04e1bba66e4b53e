"""`vxnet capture`: VXLAN packets on this host's card, taken apart and with names."""

from __future__ import annotations

import contextlib
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from vxnet.cli import output
from vxnet.cli.complete import network_names
from vxnet.cli.options import seconds
from vxnet.cluster.client import Client

if TYPE_CHECKING:
    from vxnet.tools.capture import Heard


@click.command()
@click.option("-w", "--write", "path", metavar="FILE", help="Also into FILE, as pcapng: names and comments are in it.")
@click.option("-c", "--count", type=click.IntRange(min=1), help="End after so many packets.")
@click.option("-t", "--time", "time_s", type=seconds, metavar="SECONDS", help="End after so many seconds.")
@click.option("--network", metavar="NAME", help="Only this network's.", shell_complete=network_names)
@click.option("--container", metavar="NAME", help="Only what this container sends or gets.")
@click.option("-i", "--interface", default="", help="Listen here; default: the card that has this host's VTEP.")
@click.option("-q", "--quiet", is_flag=True, help="Show no packets: with --write.")
@click.pass_obj
def capture(
    client: Client,
    path: str | None,
    count: int | None,
    time_s: float | None,
    network: str | None,
    container: str | None,
    interface: str,
    quiet: bool,
) -> None:
    """Show what hosts send each other for containers.

    Ends with Ctrl-C. Taken at this host's card, so traffic between two containers of this host is not in it. Needs
    scapy (`pip install vxnet[debug]`; operations.md, Install) and root.
    """
    from vxnet import __version__
    from vxnet.tools import pcapng
    from vxnet.tools.capture import Capture

    until = time.monotonic() + time_s if time_s is not None else None
    taken = 0
    with contextlib.ExitStack() as stack:
        capture = stack.enter_context(Capture(client, interface))
        vni = client.network(network).network.vni if network is not None else 0
        file = stack.enter_context(Path(path).open("wb")) if path is not None else None
        if file is not None:
            file.write(pcapng.head(capture.interface, f"vxnet {__version__}") + pcapng.names(capture.names.known()))
        click.echo(f"listening on {capture.interface}", err=True)
        if container is not None and container not in capture.names.macs.values():
            click.echo(f"nobody is called {output.printable(container)} so far", err=True)
        with contextlib.suppress(KeyboardInterrupt):
            for one in capture.packets(until):
                if (vni and one.vni != vni) or (container is not None and container not in one.who):
                    continue
                taken += 1
                if file is not None:
                    file.write(pcapng.packet(one.frame, one.at_ns, one.text, one.length))
                if not quiet:
                    click.echo(_line(one))
                if taken == count:
                    break
        if file is not None:
            # Once more: of those that came meanwhile.
            file.write(pcapng.names(capture.names.known()))
        lost = capture.dropped()
        click.echo(f"{taken} packets{f', {lost} lost: they came too fast' if lost else ''}", err=True)


def _line(one: Heard) -> str:
    stamp = datetime.fromtimestamp(one.at_ns / 1e9, UTC).strftime("%H:%M:%S.%f")
    return output.printable(f"{stamp}  {one.text}")
