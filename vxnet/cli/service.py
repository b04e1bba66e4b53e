"""service create, ls, ps, inspect, logs, scale, update, rollback, rm."""

from __future__ import annotations

import shlex
from typing import Any

import click
from msgspec.structs import replace

from vxnet.cli import output
from vxnet.cli.complete import service_names
from vxnet.cli.group import FAILED, FAILURES, for_each, report
from vxnet.cli.options import (
    Form,
    command_of,
    filter_option,
    inspect_format,
    label_matches,
    list_options,
    matches,
    name_matches,
    not_built,
)
from vxnet.cli.progress import wait_converged, wait_gone
from vxnet.cli.service_pretty import page
from vxnet.cli.service_spec import create_options, update_options, with_changed_lists, with_lists, with_options
from vxnet.cluster.client import Client
from vxnet.model.api import ServiceUpdate, ServiceView, TaskView
from vxnet.model.container import ContainerSpec
from vxnet.model.errors import CallerError
from vxnet.model.service import ServiceSpec, TaskSpec

_COMMAND_WIDTH = 20
_NOT_BUILT = (
    *("--mount", "--config", "--secret", "--generic-resource", "--group", "--isolation", "--ulimit"),
    *("--credential-spec", "--max-concurrent", "--log-driver", "--log-opt"),
)
_NOT_BUILT_FLAGS = ["--init", "--no-resolve-image", "-t --tty", "--with-registry-auth"]


@click.command("create", context_settings={"allow_interspersed_args": False})
@click.option("--name", default="", metavar="NAME", help="Others find it by this name; without, one is made up.")
@click.option(
    "--mode", type=click.Choice(["replicated", "global"]), default="replicated", help="global: on every node."
)
@create_options
@click.option("-d", "--detach", is_flag=True, help="Do not wait until it runs.")
@click.option("-q", "--quiet", is_flag=True, help="No progress.")
@click.argument("command", nargs=-1, type=click.UNPROCESSED, metavar="[--] COMMAND [ARG]...")
@not_built(*_NOT_BUILT, flags=_NOT_BUILT_FLAGS)
@click.pass_obj
def create(
    client: Client, /, name: str, mode: Any, detach: bool, quiet: bool, command: tuple[str, ...], **options: Any
) -> None:
    """Make a service of a command, and show its id.

    Ends when as many tasks run as were asked for.
    """
    if mode == "global" and options["replicas"] is not None:
        raise CallerError("--replicas and --mode global exclude each other: it has a task on every node")
    base = ServiceSpec(name=name, mode=mode, task=TaskSpec(container=ContainerSpec(argv=command_of(command))))
    service = client.create_service(with_lists(with_options(base, options), options))
    click.echo(service.id)
    if not detach:
        wait_converged(client, service, quiet)


@click.command("update")
@update_options
@click.option("--force", is_flag=True, help="Replace the tasks although nothing else changes.")
@click.option("--rebalance", is_flag=True, help="Move tasks until the nodes have equally many.")
@click.option("--rollback", is_flag=True, help="As `vxnet service rollback`.")
@click.option("-d", "--detach", is_flag=True, help="Do not wait until it is done.")
@click.option("-q", "--quiet", is_flag=True, help="No progress.")
@click.argument("service", shell_complete=service_names)
@not_built(*_NOT_BUILT, flags=_NOT_BUILT_FLAGS)
@click.pass_obj
def update(
    client: Client,
    /,
    service: str,
    force: bool,
    rebalance: bool,
    rollback: bool,
    detach: bool,
    quiet: bool,
    args: str | None,
    **options: Any,
) -> None:
    """Change a service, a few tasks at a time.

    Ends when the update is complete, has paused, or was rolled back. One that has paused goes on, also if nothing is
    to be different.
    """
    if rollback:
        _roll_back(client, service, detach, quiet)
        return
    view = client.service(service)
    old = view.service.spec
    # People name networks by their names.
    named = tuple(
        replace(wish, network=view.networks.get(wish.network, wish.network)) for wish in old.task.container.networks
    )
    new = replace(old, task=replace(old.task, container=replace(old.task.container, networks=named)))
    new = with_changed_lists(with_options(new, options), options)
    if args is not None:
        argv = _split(args)
        new = replace(new, task=replace(new.task, container=replace(new.task.container, argv=command_of(argv))))
    if force:
        new = replace(new, task=replace(new.task, force=new.task.force + 1))
    changed = client.update_service(view.service.id, ServiceUpdate(spec=new, base=old, rebalance=rebalance))
    click.echo(changed.spec.name)
    if not detach:
        wait_converged(client, changed, quiet)


def _split(args: str) -> tuple[str, ...]:
    try:
        return tuple(shlex.split(args))
    except ValueError as error:
        raise CallerError(f'--args "{args}" is no command line: {str(error).lower()}') from None


@click.command("rollback")
@click.option("-d", "--detach", is_flag=True, help="Do not wait until it is done.")
@click.option("-q", "--quiet", is_flag=True, help="No progress.")
@click.argument("service", shell_complete=service_names)
@click.pass_obj
def rollback(client: Client, service: str, detach: bool, quiet: bool) -> None:
    """Go back to what a service was before its last update."""
    _roll_back(client, service, detach, quiet)


def _roll_back(client: Client, ref: str, detach: bool, quiet: bool) -> None:
    service = client.roll_back_service(ref)
    click.echo(service.spec.name)
    if not detach:
        wait_converged(client, service, quiet)


@click.command("scale")
@click.option("-d", "--detach", is_flag=True, help="Do not wait until it is done.")
@click.argument("scales", nargs=-1, required=True, metavar="SERVICE=REPLICAS...")
@click.pass_obj
def scale(client: Client, detach: bool, scales: tuple[str, ...]) -> None:
    """Set how many tasks services have."""
    wanted = []
    for text in scales:
        ref, sign, number = text.rpartition("=")
        if not sign or not ref or not number.isascii() or not number.isdecimal():
            raise CallerError(f"expected SERVICE=REPLICAS, found {text!r}")
        wanted.append((ref, int(number)))
    failed = False
    scaled = []
    for ref, replicas in wanted:
        try:
            service = client.scale_service(ref, replicas)
            click.echo(f"{service.spec.name} scaled to {replicas}")
            scaled.append(service)
        except FAILURES as error:
            report(error)
            failed = True
    for service in [] if detach else scaled:
        wait_converged(client, service, quiet=False)
    if failed:
        raise click.exceptions.Exit(FAILED)


@click.command("rm")
@click.argument("services", nargs=-1, required=True, metavar="SERVICE...", shell_complete=service_names)
@click.option("-d", "--detach", is_flag=True, help="Do not wait until its tasks have ended.")
@click.pass_obj
def rm(client: Client, detach: bool, services: tuple[str, ...]) -> None:
    """Remove services, and with them their tasks."""

    def remove(ref: str) -> None:
        tasks = client.tasks_of_service(ref)
        client.remove_service(ref)
        if not detach:
            wait_gone(client, tasks)

    for_each(services, remove)


@click.command("ls")
@list_options
@filter_option("id", "label", "mode=replicated|global", "name")
@click.pass_obj
def ls(client: Client, quiet: bool, form: Form, no_trunc: bool, filters: dict[str, list[str]]) -> None:
    """List services."""
    views = [view for view in client.services() if _wanted(view, filters)]
    output.listing(
        views,
        form,
        ("ID", "NAME", "MODE", "REPLICAS", "NETWORKS", "COMMAND", "PORTS"),
        lambda view: _row(view, no_trunc),
        id=lambda view: output.short(view.service.id, whole=no_trunc),
        quiet=quiet,
    )


def _wanted(view: ServiceView, filters: dict[str, list[str]]) -> bool:
    spec = view.service.spec
    tests = {
        "id": view.service.id.startswith,
        "label": lambda text: label_matches(spec.labels, text),
        "mode": lambda text: text.lower() == spec.mode,
        "name": lambda text: name_matches(spec.name, text),
    }
    return matches(filters, tests)


def _row(view: ServiceView, whole: bool) -> tuple[str, ...]:
    spec = view.service.spec
    return (
        output.short(view.service.id, whole=whole),
        spec.name,
        spec.mode,
        f"{view.running}/{view.wanted}",
        ",".join(view.networks.values()),
        _command(spec.task.container.argv, whole),
        output.ports(spec.ports),
    )


def _command(argv: tuple[str, ...], whole: bool) -> str:
    command = output.printable(" ".join(argv))
    return f'"{command if whole else output.ellipsis(command, _COMMAND_WIDTH)}"'


@click.command("ps")
@list_options
@filter_option("id", "name", "node", "desired-state=ready|running|shutdown")
@click.argument("services", nargs=-1, required=True, metavar="SERVICE...", shell_complete=service_names)
@click.pass_obj
def ps(
    client: Client,
    services: tuple[str, ...],
    quiet: bool,
    form: Form,
    no_trunc: bool,
    filters: dict[str, list[str]],
) -> None:
    """List the tasks of services, and those that they have replaced."""
    failed = False
    tasks: list[TaskView] = []
    for ref in services:
        try:
            tasks += client.tasks_of_service(ref)
        except FAILURES as error:
            report(error)
            failed = True
    if tasks or not failed:
        show_tasks(tasks, quiet, form, no_trunc, filters)
    if failed:
        raise click.exceptions.Exit(FAILED)


def show_tasks(tasks: list[TaskView], quiet: bool, form: Form, whole: bool, filters: dict[str, list[str]]) -> None:
    """What `service ps` and `node ps` print."""

    def wanted(task: TaskView) -> bool:
        tests = {
            "id": task.id.startswith,
            "name": lambda text: name_matches(task.name, text),
            "node": task.node.__eq__,
            "desired-state": lambda text: text.lower() == task.desired,
        }
        return matches(filters, tests)

    output.listing(
        filter(wanted, tasks),
        form,
        ("ID", "NAME", "COMMAND", "NODE", "DESIRED STATE", "CURRENT STATE", "ERROR", "PORTS"),
        lambda task: _task_row(task, whole),
        id=lambda task: output.short(task.id, whole=whole),
        quiet=quiet,
    )


def _task_row(task: TaskView, whole: bool) -> tuple[str, ...]:
    name = task.name.rpartition(".")[0]
    error = task.message or (f"exit status {task.exit_status}" if task.exit_status else "")
    if task.state in ("running", "starting", "shutdown"):
        error = task.message
    return (
        output.short(task.id, whole=whole),
        f" \\_ {name}" if task.superseded else name,
        _command(task.argv, whole),
        task.node,
        task.desired.capitalize(),
        f"{task.state.capitalize()} {output.since(task.since).lower()} ago",
        f'"{error if whole else output.ellipsis(error, 60)}"' if error else "",
        output.ports(task.ports),
    )


@click.command("inspect")
@inspect_format
@click.option("--pretty", is_flag=True, help="For people.")
@click.argument("services", nargs=-1, required=True, metavar="SERVICE...", shell_complete=service_names)
@click.pass_obj
def inspect(client: Client, form: Form, services: tuple[str, ...], pretty: bool) -> None:
    """Show everything about services."""

    def look(ref: str) -> ServiceView:
        view = client.service(ref)
        if all(port.mode != "ingress" for port in view.service.spec.ports):
            return view
        return replace(view, mesh=tuple(one for one in client.mesh() if one.service == view.service.name))

    if pretty:
        for_each(services, lambda ref: click.echo(page(look(ref))), echo=False)
    else:
        output.inspect(services, look, form)
