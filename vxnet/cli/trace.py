"""`vxnet trace`: which way a container's packet goes, and where it stops."""

from __future__ import annotations

import click

from vxnet.cli import output
from vxnet.cli.complete import container_names
from vxnet.cli.options import Format
from vxnet.cluster.client import Client
from vxnet.model.errors import CallerError

STOPPED = 4


@click.command()
@click.option(
    "-f", "--format", "form", type=click.Choice(["table", "json"]), default="table", help="json: a hop a line."
)
@click.argument("container", shell_complete=container_names)
@click.argument("target")
@click.pass_obj
def trace(client: Client, form: Format, container: str, target: str) -> None:
    """Show the way of a packet, and where it stops.

    CONTAINER is one of this host's, TARGET a name as it would say it, or an address. What the kernel has is held
    against what is planned; then one echo is sent and watched. Nothing is changed.

    Exit status: 0 it arrives and is answered, 4 it stops. For root.
    """
    from vxnet.tools.trace import trace as hops

    if not target:
        raise CallerError("a target is a name or an address, found nothing")
    stopped = False
    for hop in hops(client, container, target):
        stopped |= not hop.ok
        if form == "json":
            output.json_lines([hop])
            continue
        click.echo(f"{'ok' if hop.ok else 'STOP':5} {hop.where + ':':24} {output.printable(hop.found)}")
        if hop.advice and not hop.ok:
            click.echo(f"{'':5} {'':24} {output.printable(hop.advice)}")
    raise click.exceptions.Exit(STOPPED if stopped else 0)
