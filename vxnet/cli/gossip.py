"""The gossip on 7946: who takes part, what is known of whom, and its keys."""

from __future__ import annotations

import binascii
import sys
import time
from base64 import b64decode
from pathlib import Path
from typing import Literal

import click

from vxnet.cli import output
from vxnet.cli.options import Format
from vxnet.cluster.client import Client
from vxnet.model.errors import CallerError
from vxnet.model.gossip import GossipKeyView, GossipMember, GossipView, RotateKeys, Rotation

POLL_S = 0.2
FORMAT = click.option("-f", "--format", "form", type=click.Choice(["table", "json"]), default="table")


@click.command()
@FORMAT
@click.pass_obj
def show(client: Client, form: Format) -> None:
    """Show members, rows and keys of the gossip.

    Equal digests on two hosts mean equal tables for that network.
    """
    found = client.gossip()
    if form == "json":
        output.json_lines([found])
        return
    output.fields(_lines(found))
    click.echo()
    headers = ("MEMBER", "ADDRESS", "STATUS", "SINCE", "INCARNATION", "ROLE", "VTEP", "DATAPATH", "VERSION")
    output.table(headers, (_member_row(member) for member in found.members))
    click.echo()
    output.table(
        ("OWNER", "NETWORK", "ROWS", "NEWEST"),
        ((row.node, row.network or "-", str(row.rows), row.newest) for row in found.rows),
    )
    if found.digests:
        click.echo()
        output.table(("NETWORK", "ROWS", "DIGEST"), ((one.network, str(one.rows), one.digest) for one in found.digests))


def _lines(found: GossipView) -> list[tuple[str, object]]:
    present = sum(member.status in ("alive", "suspect") for member in found.members)
    return [
        ("Node", found.node),
        ("Members", f"{len(found.members)} ({present} present)"),
        ("Health", f"{found.health} (0 is healthy)"),
        ("Queue", found.queue),
        ("Encryption", f"AES-GCM, key epoch {found.key_epoch}" if found.encrypted else "none"),
        *([("Label", found.label)] if found.label else []),
        *([("Profile", found.profile)] if found.profile != "lan" else []),
        *((f"Rows refused, {reason}", count) for reason, count in sorted(found.rows_refused.items())),
        *((f"Dropped, {reason}", count) for reason, count in sorted(found.dropped.items())),
    ]


def _member_row(member: GossipMember) -> tuple[str, ...]:
    tags = member.tags
    return (
        member.name,
        f"[{member.address}]:{member.port}" if member.address.version == 6 else f"{member.address}:{member.port}",
        member.status,
        output.duration(member.since_s),
        str(member.incarnation),
        *(tags.get(tag, "") or "-" for tag in ("role", "vtep", "datapath", "version")),
    )


@click.command()
@click.option("-q", "--quiet", is_flag=True, help="Only show the keys.")
@FORMAT
@click.pass_obj
def keys(client: Client, quiet: bool, form: Format) -> None:
    """List the key ring, the key in use first.

    In the form that `serf agent -encrypt` takes. For root.
    """
    found = client.gossip_keys()
    if quiet:
        for key in found:
            click.echo(key.key)
    elif form == "json":
        output.json_lines(found)
    else:
        output.table(("EPOCH", "USE", "CIPHER", "KEY"), (_key_row(key) for key in found))


def _key_row(key: GossipKeyView) -> tuple[str, ...]:
    return str(key.epoch), key.use, f"AES-{key.bits}", key.key


@click.command("rotate-keys")
@click.option("-d", "--detach", is_flag=True, help="Do not wait until the new key is in use.")
@click.option("-q", "--quiet", is_flag=True, help="Say nothing but errors.")
@click.option("--force", is_flag=True, help="Use it at once: nodes without it are out of touch until they have it.")
@click.option("--bits", type=click.Choice(["128", "192", "256"]), default="256", show_default=True)
@click.option("--key-file", metavar="PATH", help="Take this key: base64 of 16, 24 or 32 octets; - is standard input.")
@click.pass_obj
def rotate_keys(
    client: Client, detach: bool, quiet: bool, force: bool, bits: Literal["128", "192", "256"], key_file: str | None
) -> None:
    """Change the gossip's key without losing a packet.

    First every node gets the new key, then it is used, later the old one goes. The managers do it by themselves every
    12 hours, and when a node was removed.
    """
    key = _read_key(key_file) if key_file else b""
    length: dict[str, Literal[128, 192, 256]] = {"128": 128, "192": 192, "256": 256}
    rotation = client.rotate_keys(RotateKeys(key=key, bits=length[bits], force=force))
    wanted = rotation.epoch
    if not detach:
        try:
            rotation = _wait(client, rotation, quiet=quiet)
        except KeyboardInterrupt:
            click.echo("The key change goes on; `vxnet gossip keys` shows it.", err=True)
            raise
    if not quiet:
        click.echo(f"Key {wanted} is {'in use' if rotation.in_use else 'on its way to all nodes'}.")


def _wait(client: Client, rotation: Rotation, *, quiet: bool) -> Rotation:
    wanted = rotation.epoch
    said: tuple[str, ...] = ()
    while not rotation.in_use and rotation.epoch == wanted:
        time.sleep(POLL_S)
        rotation = client.rotation()
        if sys.stderr.isatty() and not quiet and rotation.waiting != said and not rotation.in_use:
            said = rotation.waiting
            click.echo(f"waiting for {output.printable(', '.join(said))}", err=True)
    return rotation


def _read_key(path: str) -> bytes:
    text = sys.stdin.read() if path == "-" else Path(path).read_text(encoding="ascii", errors="replace")
    try:
        key = b64decode(text.strip(), validate=True)
    except binascii.Error:
        key = b""
    if not key:
        raise CallerError(f"{path}: expected a key in base64", hint="`serf keygen` makes one")
    return key
