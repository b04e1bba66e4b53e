"""The program itself: daemon, version, completion."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Literal

import click
import msgspec

from vxnet import __version__
from vxnet.cli import output
from vxnet.cli.options import Form, form_option
from vxnet.cluster.client import Client
from vxnet.model.errors import VxnetError


@click.command()
@click.option(
    "--config", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE", help="Default: /etc/vxnet/vxnet.toml."
)
@click.option(
    "--datapath",
    type=click.Choice(["auto", "kernel", "userspace"]),
    help="What the tunnels are, whatever FILE says; auto: in user space only where the kernel has no VXLAN.",
)
@click.pass_obj
def daemon(client: Client, config: Path | None, datapath: Literal["auto", "kernel", "userspace"] | None) -> None:
    """Be this host's agent, in the foreground, until SIGTERM."""
    from vxnet.daemon import main

    socket_path = Path(client.socket_path)
    if config is None:
        status = main.main(socket_path=socket_path, datapath=datapath)
    else:
        status = main.main(socket_path=socket_path, config_path=config, datapath=datapath)
    raise click.exceptions.Exit(status)


class Versions(msgspec.Struct):
    client: str
    daemon: str
    """Empty: it does not answer."""
    python: str


@click.command()
@form_option("-f", "--format")
@click.pass_obj
def version(client: Client, form: Form) -> None:
    """Show this program's and the daemon's version."""
    try:
        server, problem = client.info().version, ""
    except VxnetError as error:
        server, problem = "", error.message
    if form != "table":
        output.one(Versions(client=__version__, daemon=server, python=platform.python_version()), form)
        return
    output.fields([("Client", __version__), ("Daemon", server or problem), ("Python", platform.python_version())])


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Show a shell's completion script.

    \b
    source <(vxnet completion bash)
    """
    from click.shell_completion import get_completion_class

    script = get_completion_class(shell)
    assert script is not None
    click.echo(script(context.find_root().command, {}, "vxnet", "_VXNET_COMPLETE").source())
