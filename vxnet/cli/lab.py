"""vxnet lab …: several hosts on this machine. What the commands do is in :mod:`vxnet.lab`."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING

import click

from vxnet.cli import output
from vxnet.cli.options import Format, command_of

if TYPE_CHECKING:
    from vxnet.lab import HostView, LabView

_name = click.option("--name", default="lab", show_default=True, metavar="LAB", help="Which of several labs.")


@click.command()
@_name
@click.option("--hosts", type=click.IntRange(min=1), default=3, show_default=True, help="h1, h2, …; h1 is the manager.")
@click.option("--outside", type=click.IntRange(min=0), default=0, help="x1, x2, …: machines without vxnet.")
@click.option("--mtu", type=click.IntRange(1280, 65535), default=1500, show_default=True, help="Of the underlay.")
@click.option("--ipv6", is_flag=True, help="The hosts' addresses are IPv6 first.")
@click.option(
    "--datapath",
    multiple=True,
    metavar="[HOST=]KIND",
    help="auto, kernel or userspace: what the tunnels of all hosts are, or of one. May be given several times.",
)
@click.option(
    "--managers", type=click.IntRange(min=1), default=1, show_default=True, help="h1, h2, …; several share an etcd."
)
@click.option("--no-join", is_flag=True, help="Leave `vxnet init` and `vxnet join` to you.")
def up(
    name: str, hosts: int, outside: int, mtu: int, ipv6: bool, datapath: tuple[str, ...], managers: int, no_join: bool
) -> None:
    """Make a lab: hosts that form a cluster."""
    from vxnet import lab

    with _Progress() as progress:
        view = lab.up(
            name=name,
            hosts=hosts,
            outside=outside,
            mtu=mtu,
            ipv6=ipv6,
            join=not no_join,
            managers=managers,
            datapath=datapath,
            progress=progress.show,
        )
    _table([view])
    chosen = "" if name == "lab" else f"--name {name} "
    click.echo(f"\nTry: vxnet lab exec {chosen}h1 -- vxnet {'info' if no_join else 'node ls'}")


@click.command()
@click.option("--format", "form", type=click.Choice(["table", "json"]), default="table", help="json: a lab a line.")
@click.option("-q", "--quiet", is_flag=True, help="Only the labs' names.")
def ls(form: Format, quiet: bool) -> None:
    """List labs and their hosts."""
    from vxnet import lab

    views = lab.ls()
    if quiet:
        for view in views:
            click.echo(view.name)
    elif form == "json":
        output.json_lines(views)
    else:
        _table(views)


def _table(views: Iterable[LabView]) -> None:
    rows = [(view.name, host.name, *_cells(host)) for view in views for host in view.hosts]
    output.table(("LAB", "HOST", "STATUS", "LINK", "PID", "ADDRESSES"), rows)


def _cells(host: HostView) -> tuple[str, ...]:
    status = f"{host.status}, outside" if host.outside else host.status
    link = host.link if not host.parted_from else f"{host.link}, not to {' '.join(host.parted_from)}"
    return status, link, str(host.pid or ""), ", ".join(str(address) for address in host.addresses)


@click.command("exec", context_settings={"allow_interspersed_args": False})
@_name
@click.argument("host")
@click.argument("command", nargs=-1, type=click.UNPROCESSED, metavar="[--] COMMAND [ARG]...")
def exec_(name: str, host: str, command: tuple[str, ...]) -> None:
    """Run a command on a host of a lab.

    Ends with the command's exit status; the command has this terminal.
    """
    argv = command_of(command)
    from vxnet import lab

    raise click.exceptions.Exit(lab.exec_(host=host, argv=argv, name=name))


@click.command()
@_name
@click.argument("host")
def shell(name: str, host: str) -> None:
    """Open a shell on a host of a lab."""
    from vxnet import lab

    raise click.exceptions.Exit(lab.shell(host=host, name=name))


@click.command()
@_name
@click.argument("host")
@click.argument("other", required=False)
def cut(name: str, host: str, other: str | None) -> None:
    """Unplug a host, or part it from OTHER alone."""
    from vxnet import lab

    lab.cut(host=host, other=other, name=name)


@click.command()
@_name
@click.argument("host", required=False)
@click.argument("other", required=False)
def heal(name: str, host: str | None, other: str | None) -> None:
    """Undo `cut`: of a host, a pair, or all."""
    from vxnet import lab

    lab.heal(host=host, other=other, name=name)


@click.command()
@_name
@click.option("--daemon", is_flag=True, help="SIGKILL to its daemon alone; containers and networks stay.")
@click.argument("host")
def kill(name: str, daemon: bool, host: str) -> None:
    """Let a host die: its processes and its link."""
    from vxnet import lab

    lab.kill(host=host, daemon=daemon, name=name)


@click.command()
@_name
@click.argument("host")
def start(name: str, host: str) -> None:
    """Start a host, or its daemon, again."""
    from vxnet import lab

    lab.start(host=host, name=name)


@click.command()
@_name
@click.option("--all", "everything", is_flag=True, help="Every lab on this machine.")
def down(name: str, everything: bool) -> None:
    """Remove a lab and all that is in it."""
    from vxnet import lab

    removed = lab.down(name=name, all=everything)
    for one in removed:
        click.echo(one)
    if not removed:
        click.echo(f"there is no lab{'' if everything else f' {name!r}'}", err=True)


@click.command()
def demo() -> None:
    """Show vxnet at work: the tutorial, then figures."""
    from vxnet.lab import demo

    raise click.exceptions.Exit(demo.run())


class _Progress:
    """One line on a terminal that is written over; elsewhere nothing."""

    def __init__(self) -> None:
        self._shown = sys.stderr.isatty()

    def __enter__(self) -> _Progress:
        return self

    def __exit__(self, *error: object) -> None:
        self._write("")

    def show(self, text: str) -> None:
        self._write(text)

    def _write(self, text: str) -> None:
        if self._shown:
            # carriage return, erase to the end of the line (ECMA-48 EL)
            click.echo(f"\r\x1b[K{text}", nl=False, err=True)
