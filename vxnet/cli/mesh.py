"""The routing mesh: who gets a connection to a published port, on each node, and why."""

from __future__ import annotations

import click

from vxnet.cli import output
from vxnet.cli.options import Format
from vxnet.cluster.client import Client
from vxnet.model.errors import NotFoundError
from vxnet.model.mesh import MeshChoice, MeshView


@click.command()
@click.argument("port", required=False, metavar="[PORT[/PROTOCOL]]")
@click.option("-f", "--format", "form", type=click.Choice(["table", "json"]), default="table")
@click.pass_obj
def show(client: Client, port: str | None, form: Format) -> None:
    """Show which task a connection to a published port would get.

    For each node, as what the node says to a connection depends on its own tasks. The counters are of this node.
    """
    found = [view for view in client.mesh() if port is None or _is(view, port)]
    if port is not None and not found:
        raise NotFoundError(f"nobody has published port {port}", hint="`vxnet mesh` shows the ports that are published")
    if form == "json":
        output.json_lines(found)
        return
    if port is None:
        headers = ("PORT", "SERVICE", "POLICY", "NODES", "CONNECTIONS", "REFUSED", "RECEIVED", "SENT")
        output.table(headers, map(_row, found))
        return
    for at, view in enumerate(found):
        if at:
            click.echo()
        output.fields(_lines(view))
        click.echo()
        output.table(("NODE", "TASKS", "WHY"), map(_choice, view.choices))


def _is(view: MeshView, text: str) -> bool:
    number, _, protocol = text.partition("/")
    return str(view.port.published) == number and protocol in ("", view.port.protocol)


def _row(view: MeshView) -> tuple[str, ...]:
    answering = sum(bool(choice.tasks) for choice in view.choices)
    return (
        f"{view.port.published}/{view.port.protocol}",
        view.service,
        view.port.policy,
        f"{answering}/{len(view.choices)}",
        *(str(number) for number in (view.connections, view.refused, view.received, view.sent)),
    )


def _lines(view: MeshView) -> list[tuple[str, object]]:
    port = view.port
    bound = port.interface or ", ".join(map(str, port.addresses)) or "all addresses"
    return [
        ("Port", f"{port.published}/{port.protocol}, {port.target} in the tasks"),
        ("Service", view.service),
        ("Policy", port.policy),
        ("Bound to", bound),
        ("For", ", ".join(map(str, port.sources)) or "everybody"),
        ("Through this node", f"{view.connections} connections, {view.refused} refused"),
        ("Octets", f"{view.received} received, {view.sent} sent"),
    ]


def _choice(choice: MeshChoice) -> tuple[str, ...]:
    tasks = ", ".join(f"{one.task} ({one.address} on {one.node})" for one in choice.tasks)
    return choice.node, tasks or "-", choice.why
