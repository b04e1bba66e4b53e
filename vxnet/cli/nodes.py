"""node update, ps, promote, demote: what nodes are to do, and where they are."""

from __future__ import annotations

import click

from vxnet.cli.complete import node_names
from vxnet.cli.group import FAILED, FAILURES, for_each, report
from vxnet.cli.options import Form, address, filter_option, list_options, node_of, pairs
from vxnet.cli.service import show_tasks
from vxnet.cluster.client import Client
from vxnet.model.address import IPAddress
from vxnet.model.api import NodeUpdate, TaskView
from vxnet.model.cluster import Availability, Role
from vxnet.model.errors import CallerError


@click.command("update")
@click.option(
    "--availability", type=click.Choice(["active", "pause", "drain"]), help="pause: no new tasks; drain: no tasks."
)
@click.option("--label-add", multiple=True, callback=pairs, metavar="KEY[=VALUE]", help="For constraints.")
@click.option("--label-rm", multiple=True, metavar="KEY")
@click.option("--role", type=click.Choice(["worker", "manager"]), help="As `promote` and `demote`.")
@click.option(
    "--advertise-addr", type=address, metavar="ADDR", help="Where the others reach it, now that that is another."
)
@click.option("--data-path-addr", type=address, metavar="ADDR", help="For containers' traffic, if that is another.")
@click.argument("node", shell_complete=node_names)
@click.pass_obj
def update(
    client: Client,
    availability: Availability | None,
    label_add: dict[str, str],
    label_rm: tuple[str, ...],
    role: Role | None,
    advertise_addr: IPAddress | None,
    data_path_addr: IPAddress | None,
    node: str,
) -> None:
    """Say what a node may be given to do, and where it is.

    After a host's address has changed, tell the managers the new one: the node goes there by itself, and what runs on
    it goes on. NODE may be "self".
    """
    if role is not None:
        _set_role(client, node, role)
    request = NodeUpdate(
        availability=availability,
        labels_added=label_add,
        labels_removed=label_rm,
        advertise_addr=advertise_addr,
        data_path_addr=data_path_addr,
    )
    if request == NodeUpdate() and role is None:
        raise CallerError(
            "nothing to change",
            hint="there are --availability, --label-add, --label-rm, --role, --advertise-addr and --data-path-addr",
        )
    client.update_node(node_of(client, node), request)
    if advertise_addr is not None or data_path_addr is not None:
        click.echo(f"Node {node} goes there as soon as it has the address.", err=True)
    click.echo(node)


@click.command("ps")
@list_options
@filter_option("id", "name", "desired-state=ready|running|shutdown")
@click.argument("nodes", nargs=-1, metavar="[NODE...]", shell_complete=node_names)
@click.pass_obj
def ps(
    client: Client, nodes: tuple[str, ...], quiet: bool, form: Form, no_trunc: bool, filters: dict[str, list[str]]
) -> None:
    """List the tasks of nodes; without one, of this."""
    failed = False
    tasks: list[TaskView] = []
    for ref in nodes or ("self",):
        try:
            tasks += client.tasks_of_node(node_of(client, ref))
        except FAILURES as error:
            report(error)
            failed = True
    if tasks or not failed:
        show_tasks(tasks, quiet, form, no_trunc, filters)
    if failed:
        raise click.exceptions.Exit(FAILED)


def _set_role(client: Client, ref: str, role: Role) -> None:
    view = client.node(node_of(client, ref))
    already = view.node.role == role
    client.set_role(view.node.id, role)
    if already:
        click.echo(f"Node {view.node.name} is already a {role}.", err=True)
    elif role == "manager":
        click.echo(f"Node {view.node.name} promoted to a manager in the cluster.", err=True)
    else:
        click.echo(f"Manager {view.node.name} demoted in the cluster.", err=True)


@click.command("promote")
@click.argument("nodes", nargs=-1, required=True, metavar="NODE...", shell_complete=node_names)
@click.pass_obj
def promote(client: Client, nodes: tuple[str, ...]) -> None:
    """Make workers managers."""
    for_each(nodes, lambda ref: _set_role(client, ref, "manager"))


@click.command("demote")
@click.argument("nodes", nargs=-1, required=True, metavar="NODE...", shell_complete=node_names)
@click.pass_obj
def demote(client: Client, nodes: tuple[str, ...]) -> None:
    """Make managers workers."""
    for_each(nodes, lambda ref: _set_role(client, ref, "worker"))
