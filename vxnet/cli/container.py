"""Containers that exist: ps, inspect, stop, restart, rename, kill, rm, wait, top, prune."""

from __future__ import annotations

from collections.abc import Callable
from typing import get_args

import click

from vxnet.cli import output
from vxnet.cli.complete import container_names, running_names
from vxnet.cli.group import FAILED, FAILURES, confirm, for_each, report
from vxnet.cli.options import (
    Form,
    filter_option,
    form_option,
    inspect_format,
    label_matches,
    list_options,
    matches,
    name_matches,
    seconds,
)
from vxnet.cluster.client import Client
from vxnet.model.api import ContainerView, ProcessView
from vxnet.model.container import ContainerState
from vxnet.model.errors import ConflictError, NotFoundError
from vxnet.model.guest import GuestView

_KINDS = ("container", "guest", "network", "node", "service")
_COMMAND_WIDTH = 20
"""Of the COMMAND column, as Docker's."""


@click.command()
@click.option("-a", "--all", "everything", is_flag=True, help="Also those that do not run.")
@list_options
@filter_option("exited=#", "id", "label", "name", "network", f"status={'|'.join(get_args(ContainerState))}")
@click.option("-n", "--last", type=click.IntRange(min=1), metavar="NUMBER", help="The newest ones, running or not.")
@click.option("-l", "--latest", is_flag=True, help="The newest one, running or not.")
@click.pass_obj
def ps(
    client: Client,
    everything: bool,
    quiet: bool,
    form: Form,
    no_trunc: bool,
    filters: dict[str, list[str]],
    last: int | None,
    latest: bool,
) -> None:
    """List this host's containers."""
    last = 1 if latest else last
    # As with Docker, asking for a status asks for containers in it, running or not.
    everything |= last is not None or "status" in filters or "exited" in filters
    views = [view for view in client.containers(all=everything) if _wanted(view, filters)]
    if last is not None:
        views = sorted(views, key=lambda view: view.created_at, reverse=True)[:last]
    output.listing(
        views,
        form,
        ("CONTAINER ID", "COMMAND", "CREATED", "STATUS", "NETWORKS", "ADDRESSES", "PORTS", "NAMES"),
        lambda view: _row(view, no_trunc),
        id=lambda view: output.short(view.id, whole=no_trunc),
        quiet=quiet,
    )


def _wanted(view: ContainerView, filters: dict[str, list[str]]) -> bool:
    tests = {
        "exited": lambda text: view.state == "exited" and view.exit_status == int(text),
        "id": view.id.startswith,
        "label": lambda text: label_matches(view.labels, text),
        "name": lambda text: name_matches(view.name, text),
        "network": view.networks.__contains__,
        "status": lambda text: text.lower() == view.state,
    }
    return matches(filters, tests)


def _row(view: ContainerView, whole: bool) -> tuple[str, ...]:
    command = output.printable(" ".join(view.argv))
    return (
        output.short(view.id, whole=whole),
        f'"{command if whole else output.ellipsis(command, _COMMAND_WIDTH)}"',
        f"{output.since(view.created_at)} ago",
        status_words(view),
        ",".join(view.networks),
        ",".join(str(address) for address in view.addresses),
        output.ports(view.ports),
        view.name,
    )


def status_words(view: ContainerView) -> str:
    match view.state:
        case "created":
            return "Created"
        case "restarting":
            return f"Restarting ({view.exit_status}) {output.since(view.finished_at)} ago"
        case "running":
            return f"Up {output.since(view.started_at)}".rstrip()
        case "exited":
            return f"Exited ({view.exit_status}) {output.since(view.finished_at)} ago"
        case "dead":
            return "Dead"


@click.command()
@inspect_format
@click.option("--type", "kind", type=click.Choice(_KINDS), help="Default: any.")
@click.argument("names", nargs=-1, required=True, metavar="NAME|ID...", shell_complete=container_names)
@click.pass_obj
def inspect(client: Client, form: Form, kind: str | None, names: tuple[str, ...]) -> None:
    """Show everything about containers, networks, services and so on."""
    kinds: dict[str, Callable[[str], object]] = {
        "container": client.container,
        "guest": lambda ref: _guest(client, ref),
        "network": client.network,
        "node": client.node,
        "service": client.service,
    }

    def find(ref: str) -> object:
        if kind is not None:
            return kinds[kind](ref)
        for name, look in kinds.items():
            try:
                return look(ref)
            except NotFoundError:
                continue
            except ConflictError:
                # Only a manager knows nodes and services: elsewhere none of them has the name.
                if name not in ("node", "service"):
                    raise
        raise NotFoundError(f"no such container, guest, network, node or service: {ref!r}")

    output.inspect(names, find, form)


def _guest(client: Client, ref: str) -> GuestView:
    for guest in client.guests():
        if ref in (guest.name, guest.id, output.short(guest.id)):
            return guest
    raise NotFoundError(f"no guest {ref!r} on this host", hint="`vxnet network guests` lists them")


_patience = click.option(
    *("-t", "--time", "--timeout", "timeout_s"),
    type=seconds,
    metavar="SECONDS",
    help="From the stop signal to SIGKILL; default: its --stop-timeout, or 10.",
)


@click.command()
@_patience
@click.argument("containers", nargs=-1, required=True, metavar="CONTAINER...", shell_complete=running_names)
@click.pass_obj
def stop(client: Client, timeout_s: float | None, containers: tuple[str, ...]) -> None:
    """End containers: SIGTERM, then SIGKILL."""
    for_each(containers, lambda ref: client.stop(ref, timeout_s=timeout_s))


@click.command()
@_patience
@click.argument("containers", nargs=-1, required=True, metavar="CONTAINER...", shell_complete=container_names)
@click.pass_obj
def restart(client: Client, timeout_s: float | None, containers: tuple[str, ...]) -> None:
    """End containers and start them again."""
    for_each(containers, lambda ref: client.restart(ref, timeout_s=timeout_s))


@click.command()
@click.argument("container", shell_complete=container_names)
@click.argument("name")
@click.pass_obj
def rename(client: Client, container: str, name: str) -> None:
    """Give a container another name.

    Others find it by that from now on; its hostname stays.
    """
    client.rename(container, name)


@click.command()
@click.option("-s", "--signal", default="KILL", show_default=True, metavar="NAME|NUMBER")
@click.argument("containers", nargs=-1, required=True, metavar="CONTAINER...", shell_complete=running_names)
@click.pass_obj
def kill(client: Client, signal: str, containers: tuple[str, ...]) -> None:
    """Send containers a signal."""
    for_each(containers, lambda ref: client.kill(ref, signal=signal))


@click.command()
@click.option("-f", "--force", is_flag=True, help="Also a running one: it is killed. One that is gone is no failure.")
@click.option("-v", "--volumes", is_flag=True, expose_value=False, help="As Docker's scripts say it: there are none.")
@click.argument("containers", nargs=-1, required=True, metavar="CONTAINER...", shell_complete=container_names)
@click.pass_obj
def rm(client: Client, force: bool, containers: tuple[str, ...]) -> None:
    """Remove containers."""
    for_each(containers, lambda ref: client.remove(ref, force=force), may_be_gone=force)


@click.command()
@click.argument("containers", nargs=-1, required=True, metavar="CONTAINER...", shell_complete=running_names)
@click.pass_obj
def wait(client: Client, containers: tuple[str, ...]) -> None:
    """Wait for containers to end.

    Shows their exit statuses.
    """
    failed = False
    for ref in containers:
        try:
            click.echo(client.wait(ref).exit_status)
        except FAILURES as error:
            report(error)
            failed = True
    if failed:
        raise click.exceptions.Exit(FAILED)


@click.command()
@click.argument("container", shell_complete=running_names)
@form_option()
@click.pass_obj
def top(client: Client, form: Form, container: str) -> None:
    """List a container's processes.

    With the numbers that they have on this host.
    """
    headers = ("UID", "PID", "PPID", "STATE", "TIME", "MEMORY", "COMMAND")
    output.listing(client.top(container), form, headers, _process)


def _process(view: ProcessView) -> tuple[str, ...]:
    return (
        str(view.uid),
        str(view.pid),
        str(view.ppid),
        view.state,
        f"{int(view.cpu_s) // 60}:{int(view.cpu_s) % 60:02}",
        f"{view.rss / (1 << 20):.1f}M",
        output.printable(view.command),
    )


@click.command()
@click.option("-f", "--force", is_flag=True, help="Do not ask.")
@filter_option("label", short=False)
@click.pass_obj
def prune(client: Client, force: bool, filters: dict[str, list[str]]) -> None:
    """Remove all containers that have ended."""

    def ended(view: ContainerView) -> bool:
        tests = {"label": lambda text: label_matches(view.labels, text)}
        return view.state in ("exited", "dead") and matches(filters, tests)

    views = [view for view in client.containers(all=True) if ended(view)]
    if views and not force:
        names = ", ".join(view.name for view in views)
        confirm(f"This removes what they wrote and their logs: {names}. Go on?")
    for_each((view.id for view in views), client.remove)
