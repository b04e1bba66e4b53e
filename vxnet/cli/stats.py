"""``vxnet stats`` and ``update``: what containers use, and what they may."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Mapping
from typing import Any, Final

import click

from vxnet.cli import output
from vxnet.cli.complete import container_names, running_names
from vxnet.cli.group import for_each
from vxnet.cli.options import Form, amount, form_option, octets, restart_policy
from vxnet.cluster.client import Client
from vxnet.model.api import ContainerUpdate, UsageView
from vxnet.model.errors import CallerError

INTERVAL_S: Final = 1.0
_HEADERS: Final = ("CONTAINER ID", "NAME", "CPU %", "MEM USAGE / LIMIT", "MEM %", "NET I/O", "BLOCK I/O", "PIDS")
_CLEAR: Final = "\x1b[H\x1b[J"


@click.command()
@click.option("--no-stream", is_flag=True, help="Show one look, and end.")
@click.option("--no-trunc", is_flag=True, help="Show ids in full.")
@form_option()
@click.argument("containers", nargs=-1, metavar="[CONTAINER]...", shell_complete=running_names)
@click.pass_obj
def stats(client: Client, no_stream: bool, no_trunc: bool, form: Form, containers: tuple[str, ...]) -> None:
    """Show what running containers use, each second until Ctrl-C.

    100 % is one processor; NET and BLOCK are since their start.
    """
    before = {view.id: view for view in client.usage(*containers)}
    while True:
        time.sleep(INTERVAL_S)
        now = client.usage(*containers)
        if form == "json":
            output.json_lines(_measured(view, before.get(view.id)) for view in now)
        else:
            if not no_stream and sys.stdout.isatty():
                click.echo(_CLEAR, nl=False)
            show(now, form, before, no_trunc)
        sys.stdout.flush()
        if no_stream:
            return
        before = {view.id: view for view in now}


def show(views: Iterable[UsageView], form: Form, before: Mapping[str, UsageView], whole: bool) -> None:
    output.listing(views, form, _HEADERS, lambda view: _row(view, before.get(view.id), whole))


def _cpu_percent(view: UsageView, before: UsageView | None) -> float:
    """Of one processor, since ``before``; 0 of one that has just begun."""
    if before is None or view.at_s <= before.at_s:
        return 0.0
    return max(0.0, 100 * (view.cpu_s - before.cpu_s) / (view.at_s - before.at_s))


def _memory_percent(view: UsageView) -> float:
    return 100 * view.memory / view.memory_limit if view.memory_limit else 0.0


def _measured(view: UsageView, before: UsageView | None) -> dict[str, Any]:
    return {
        **output.complete(view),
        "cpu_percent": round(_cpu_percent(view, before), 2),
        "memory_percent": round(_memory_percent(view), 2),
    }


def _row(view: UsageView, before: UsageView | None, whole: bool) -> tuple[str, ...]:
    return (
        output.short(view.id, whole=whole),
        view.name,
        f"{_cpu_percent(view, before):.2f}%",
        f"{_binary(view.memory)} / {_binary(view.memory_limit)}",
        f"{_memory_percent(view):.2f}%",
        f"{_decimal(view.received)} / {_decimal(view.sent)}",
        f"{_decimal(view.read)} / {_decimal(view.written)}",
        str(view.pids),
    )


def _binary(number: float) -> str:
    """As Docker: memory by 1024, the rest by 1000."""
    return _scaled(number, 1024, ("B", "KiB", "MiB", "GiB", "TiB"))


def _decimal(number: float) -> str:
    return _scaled(number, 1000, ("B", "kB", "MB", "GB", "TB"))


def _scaled(number: float, step: int, units: tuple[str, ...]) -> str:
    for unit in units[:-1]:
        if number < step:
            return f"{number:.4g}{unit}"
        number /= step
    return f"{number:.4g}{units[-1]}"


@click.command()
@click.option("--restart", type=restart_policy, metavar="POLICY", help="As of `run`.")
@click.option("-m", "--memory", type=octets, metavar="SIZE", help="With b, k, m or g.")
@click.option("--cpus", type=amount, metavar="NUMBER", help="Processors' worth of time, such as 1.5.")
@click.option("--pids-limit", type=int, metavar="NUMBER", help="Processes and threads.")
@click.argument("containers", nargs=-1, required=True, metavar="CONTAINER...", shell_complete=container_names)
@click.pass_obj
def update(client: Client, /, containers: tuple[str, ...], **wishes: Any) -> None:
    """Change the limits and the restart policy of containers.

    At once. One that was started without a limit has to be started again to get one.
    """
    if all(value is None for value in wishes.values()):
        raise CallerError("nothing to change", hint="give --restart, --memory, --cpus or --pids-limit")
    request = ContainerUpdate(**wishes)
    for_each(containers, lambda ref: client.update(ref, request))
