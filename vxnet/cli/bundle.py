"""`vxnet bundle`: one file for whoever is to help."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import click

from vxnet.cluster.client import Client
from vxnet.model.errors import CallerError, HostError


@click.command()
@click.option(
    "-o", "--output", "path", metavar="FILE", help="Default: vxnet-support-HOST-TIME.tar.gz, here; -: standard output."
)
@click.pass_obj
def bundle(client: Client, path: str | None) -> None:
    """Put all that is known of this host into one file.

    What the daemon and the kernel say, the log, and what `vxnet doctor` finds. Tokens, keys and the environments of
    containers are left out; names, addresses and command lines are in it. For root.
    """
    if os.geteuid() != 0:
        raise HostError("a bundle holds what only root may see", hint="use sudo")
    from vxnet.doctor import examine
    from vxnet.tools.bundle import write

    if path == "-":
        if sys.stdout.isatty():
            raise CallerError("standard output is a terminal", hint="write `-o - >FILE`, or a FILE with -o")
        write(client, None, lambda: examine(client)[1], _progress)
        _progress("")
        return
    chosen = Path(path or f"vxnet-support-{os.uname().nodename}-{time.strftime('%Y%m%d-%H%M%S')}.tar.gz")
    if chosen.exists() or chosen.is_symlink():
        raise CallerError(f"{chosen} is there already", hint="choose another name with -o")
    names = write(client, chosen, lambda: examine(client)[1], _progress)
    _progress("")
    click.echo(f"{chosen}: {len(names)} files. Look through it before you send it: `tar -xOzf {chosen} | less`")


def _progress(text: str) -> None:
    if sys.stderr.isatty():
        click.echo(f"\r\033[K{text}", nl=False, err=True)
