"""The cluster's CA: what nodes trust, and its change."""

from __future__ import annotations

import sys
import time
from typing import Literal

import click

from vxnet.cli import output
from vxnet.cluster.client import Client
from vxnet.model.ca import CaView

POLL_S = 0.2


@click.command()
@click.option("-f", "--format", "form", type=click.Choice(["pem", "table", "json"]), default="pem", show_default=True)
@click.pass_obj
def show(client: Client, form: Literal["pem", "table", "json"]) -> None:
    """Show the CA's certificates, the one that signs first.

    There are two of them only while nodes go over from one to the other.
    """
    found = client.ca()
    if form == "json":
        output.json_lines([found])
    elif form == "table":
        output.table(
            ("NUMBER", "USE", "SHA-256", "ENDS"),
            (
                (str(one.number), one.use, one.digest, time.strftime("%Y-%m-%d", time.gmtime(one.ends_at)))
                for one in found.authorities
            ),
        )
    else:
        for one in found.authorities:
            click.echo(one.pem, nl=False)


@click.command()
@click.option("-d", "--detach", is_flag=True, help="Do not wait until all nodes have gone over to the new CA.")
@click.option("-q", "--quiet", is_flag=True, help="Say nothing but errors.")
@click.pass_obj
def rotate(client: Client, detach: bool, quiet: bool) -> None:
    """Replace the CA, its key with it, without a connection lost.

    First every node trusts the new CA, then all get certificates of it, then the old one is trusted no more, and the
    join tokens are others. A node that is down holds this up until it is back; `vxnet node rm` takes one out that will
    not come back. For root.
    """
    found = client.rotate_ca()
    number = max(one.number for one in found.authorities)
    if not detach:
        try:
            found = _wait(client, found, quiet=quiet)
        except KeyboardInterrupt:
            click.echo("The change goes on; `vxnet ca --format table` shows it.", err=True)
            raise
    if not quiet:
        done = len(found.authorities) == 1
        click.echo(f"CA {number} is {'the only one now' if done else 'on its way to all nodes'}.")
        if done:
            click.echo(
                "Join tokens and backups made before are worth nothing: `vxnet join-token worker` shows the new one, "
                "`vxnet store backup` makes another.",
                err=True,
            )


def _wait(client: Client, found: CaView, *, quiet: bool) -> CaView:
    said: tuple[str, ...] = ()
    while len(found.authorities) > 1:
        time.sleep(POLL_S)
        found = client.ca()
        if sys.stderr.isatty() and not quiet and found.waiting and found.waiting != said:
            said = found.waiting
            click.echo(f"waiting for {output.printable(', '.join(said))}", err=True)
    return found
