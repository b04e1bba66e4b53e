"""Waiting for a service, and showing meanwhile on a terminal how far it is."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable

import click

from vxnet.cli import output
from vxnet.cli.group import FAILED
from vxnet.cluster.client import Client
from vxnet.model.api import ServiceProgress, TaskView
from vxnet.model.errors import NotFoundError
from vxnet.model.service import Service

GONE_LOOK_S = 0.05
ENDED = ("complete", "shutdown", "failed", "rejected", "orphaned")


def wait_converged(client: Client, service: Service, quiet: bool) -> None:
    """Until as many tasks run as are to, all of the present version, and an update that began with ``service`` has come
    to its end; exits with 1 if that is not the one that was wanted.

    What keeps it waiting is told once also where there is no terminal. Ctrl-C ends the waiting, nothing else.
    """
    screen = _Screen(quiet)
    try:
        for progress in client.progress(service.id):
            screen.show(progress)
            update = progress.view.service.update
            if update is not None and update.started_at < service.updated_at:
                update = None  # somebody else's, earlier
            if update is not None and update.state in ("paused", "rollback_paused"):
                screen.finish()
                hint = f"`vxnet service ps` tells more, `vxnet service update {service.spec.name}` goes on"
                click.echo(f"vxnet: {output.printable(update.message)}; {hint}", err=True)
                raise click.exceptions.Exit(FAILED)
            if _converged(progress):
                screen.finish()
                if update is not None and update.state == "rollback_completed":
                    click.echo(f"vxnet: {output.printable(update.message)}", err=True)
                    if "because" in update.message:
                        raise click.exceptions.Exit(FAILED)
                return
        screen.finish()
        raise NotFoundError("the service was removed meanwhile")
    except KeyboardInterrupt:
        screen.finish()
        click.echo("It goes on in the background; `vxnet service ps` shows how far it is.", err=True)
        raise


def _converged(progress: ServiceProgress) -> bool:
    service, view = progress.view.service, progress.view
    if service.rebalance or (service.update is not None and service.update.state in ("updating", "rollback_started")):
        return False
    due = [task for task in progress.tasks if task.desired != "shutdown"]
    # A task that has done its work, and is not to be repeated, is as good as one that runs.
    done = sum(task.state == "complete" for task in due)
    # An update that has paused leaves tasks of both versions: whoever scales then waits for none of them to change.
    mixed = service.update is not None and service.update.state in ("paused", "rollback_paused")
    present = len(due) == view.wanted and (mixed or all(task.version == service.version for task in due))
    return present and view.running + done >= view.wanted


def wait_gone(client: Client, tasks: Iterable[TaskView]) -> None:
    """Until none of ``tasks`` runs any more, as far as the nodes say that live."""
    nodes = {task.node for task in tasks if task.node and task.state not in ENDED}
    ids = {task.id for task in tasks}
    while nodes:
        nodes = {
            node
            for node in nodes
            if any(task.id in ids and task.state not in ENDED for task in _tasks_on(client, node))
        }
        if nodes:
            time.sleep(GONE_LOOK_S)


def _tasks_on(client: Client, node: str) -> tuple[TaskView, ...]:
    try:
        return client.tasks_of_node(node)
    except NotFoundError:
        return ()


class _Screen:
    """A line that is written over and over on a terminal's standard error."""

    def __init__(self, quiet: bool) -> None:
        self._quiet = quiet
        self._terminal = sys.stderr.isatty()
        self._shown = ""
        self._told: set[str] = set()

    def show(self, progress: ServiceProgress) -> None:
        if self._quiet:
            return
        view = progress.view
        trouble = view.pending or next(
            (
                f"{task.name.rpartition('.')[0]} on {task.node}: {task.message}"
                for task in progress.tasks
                if task.state in ("failed", "rejected") and task.message and task.version == view.service.version
            ),
            "",
        )
        if not self._terminal:
            if trouble and trouble not in self._told:
                self._told.add(trouble)
                click.echo(f"waiting: {output.printable(trouble)}", err=True)
            return
        new = sum(task.version == view.service.version and task.state == "running" for task in progress.tasks)
        line = f"overall progress: {min(new, view.wanted)} out of {view.wanted} tasks"
        if trouble:
            line += f" ({output.printable(trouble)})"
        click.echo(f"\r\x1b[K{line}", err=True, nl=False)
        self._shown = line

    def finish(self) -> None:
        if self._shown:
            click.echo(err=True)
            self._shown = ""
