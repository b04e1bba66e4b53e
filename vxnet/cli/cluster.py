"""The cluster and its nodes: init, join, leave, join-token, info, node …"""

from __future__ import annotations

from collections.abc import Callable
from typing import get_args

import click
from msgspec.structs import asdict

from vxnet.cli import output
from vxnet.cli.complete import node_names
from vxnet.cli.group import for_each
from vxnet.cli.options import (
    Form,
    filter_option,
    form_option,
    inspect_format,
    label_matches,
    list_options,
    matches,
    name_matches,
    node_of,
    not_built,
    prefix,
)
from vxnet.cli.store_options import store_options
from vxnet.cluster.client import Client
from vxnet.model.address import IPNetwork
from vxnet.model.api import Info, InitRequest, JoinRequest, MemberStatus, NodeView
from vxnet.model.cluster import CONTROL_PORT, DATA_PORT, GossipProfile, Role
from vxnet.model.store import StoreWish

ROLES = click.Choice(["worker", "manager"])


@click.command()
@click.option("--advertise-addr", default="", metavar="ADDR|IFACE", help="Where the other nodes reach this one.")
@click.option("--data-path-addr", default="", metavar="ADDR|IFACE", help="For containers' traffic; default: the same.")
@click.option(
    "--data-path-port",
    type=click.IntRange(1024, 49151),
    default=DATA_PORT,
    show_default=True,
    help="UDP port of VXLAN.",
)
@click.option(
    "--default-addr-pool", "pools", type=prefix, multiple=True, metavar="CIDR", help="Where subnets come from."
)
@store_options
@click.option("--gossip-label", default="", metavar="NAME", help="Drop gossip of clusters with another label.")
@click.option(
    "--gossip-profile",
    type=click.Choice(["lan", "wan"]),
    default="lan",
    show_default=True,
    help="wan: hosts that answer each other in more than a tenth of a second; a death is noticed later.",
)
@click.option("--force-new-cluster", is_flag=True, help="Go on as the only manager: the others are lost for good.")
@not_built(
    *("--listen-addr", "--cert-expiry", "--external-ca", "--availability", "--default-addr-pool-mask-length"),
    flags=["--autolock"],
)
@click.pass_obj
def init(
    client: Client,
    advertise_addr: str,
    data_path_addr: str,
    data_path_port: int,
    pools: tuple[IPNetwork, ...],
    store: StoreWish,
    gossip_label: str,
    gossip_profile: GossipProfile,
    force_new_cluster: bool,
) -> None:
    """Make a cluster with this host as its first manager."""
    request = InitRequest(
        advertise_addr=advertise_addr,
        data_path_addr=data_path_addr,
        data_path_port=data_path_port,
        default_addr_pool=pools,
        gossip_label=gossip_label,
        gossip_profile=gossip_profile,
        force_new_cluster=force_new_cluster,
        **asdict(store),
    )
    node = client.init(request)
    click.echo(f"Cluster initialized: current node ({output.short(node.id)}) is now a manager.\n")
    _explain_join(client, "worker")


@click.command()
@click.option("--token", required=True, help="As `vxnet join-token` shows it on a manager.")
@click.option("--advertise-addr", default="", metavar="ADDR|IFACE", help="Where the other nodes reach this one.")
@click.option("--data-path-addr", default="", metavar="ADDR|IFACE", help="For containers' traffic; default: the same.")
@click.argument("manager", metavar="HOST[:PORT]")
@not_built("--listen-addr", "--availability")
@click.pass_obj
def join(client: Client, token: str, manager: str, advertise_addr: str, data_path_addr: str) -> None:
    """Make this host a node of HOST's cluster."""
    request = JoinRequest(token=token, manager=manager, advertise_addr=advertise_addr, data_path_addr=data_path_addr)
    node = client.join(request)
    click.echo(f"This node joined the cluster as a {node.role}.")


@click.command()
@click.option("-f", "--force", is_flag=True, help="Also with containers running, or as the last manager.")
@click.pass_obj
def leave(client: Client, force: bool) -> None:
    """Take this host out of its cluster."""
    client.leave(force=force)
    click.echo("Node left the cluster.")


@click.command("join-token")
@click.option("--rotate", is_flag=True, help="Make a new one; the old one ceases to work.")
@click.option("-q", "--quiet", is_flag=True, help="Only show the token.")
@click.argument("role", type=ROLES)
@click.pass_obj
def join_token(client: Client, rotate: bool, quiet: bool, role: Role) -> None:
    """Show how to join a host as a worker or a manager."""
    if quiet:
        click.echo(client.join_token(role, rotate=rotate))
        return
    if rotate:
        client.join_token(role, rotate=True)
        click.echo(f"Successfully rotated {role} join token.\n")
    _explain_join(client, role)


def _explain_join(client: Client, role: Role) -> None:
    token = client.join_token(role)
    address = client.info().advertise_addr
    host = f"[{address}]" if address is not None and address.version == 6 else address
    click.echo(f"To add a {role} to this cluster, run the following command:\n")
    click.echo(f"    vxnet join --token {token} {host}:{CONTROL_PORT}\n")


@click.command()
@form_option("-f", "--format")
@click.pass_obj
def info(client: Client, form: Form) -> None:
    """Show how this host and its cluster are."""
    found = client.info()
    if form != "table":
        output.one(found, form)
        return
    output.fields(_info_lines(found))
    for warning in found.warnings:
        click.echo(f"WARNING: {output.printable(warning)}", err=True)


def _info_lines(info: Info) -> list[tuple[str, object]]:
    lines: list[tuple[str, object]] = [("Version", info.version), ("Name", info.name)]
    if info.cluster:
        reachable = "yes" if info.manager_reachable else "no; networks and containers go on, new wishes have to wait"
        lines += [
            ("Cluster", output.short(info.cluster)),
            (" NodeID", output.short(info.node)),
            (" Role", info.role),
            (" Nodes", f"{info.nodes} ({info.nodes_alive} alive)"),
            (" Managers", ", ".join(info.managers)),
            (" Manager reachable", reachable),
            (" Advertise address", info.advertise_addr),
            (" Data path address", info.data_path_addr),
            (" Data path port", info.data_port),
            (" Gossip health", f"{info.health} (0 is healthy)"),
            (" Gossip queue", info.queue),
            (" Gossip key epoch", info.key_epoch),
            (" Endpoint rows", info.rows),
            *((f" Rows refused, {reason}", count) for reason, count in sorted(info.rows_refused.items())),
        ]
    else:
        lines.append(("Cluster", "none; `vxnet init` makes one, `vxnet join` joins one"))
    return [
        *lines,
        ("Networks", f"{info.networks} ({info.segments} live on this host)"),
        ("Containers", f"{info.containers} ({info.containers_running} running)"),
        ("Tunnels", {"kernel": "the kernel's", "userspace": "in user space"}[info.datapath]),
        ("Kernel state mended", info.drift),
        ("Drains cut short", info.drain_timeouts),
    ]


# ------------------------------------------------------------------------------------------------------------- node …


@click.command("ls")
@list_options
@filter_option(
    *("id", "label", "name", "node.label", "membership=accepted|pending", "role=worker|manager"),
    f"status={'|'.join(get_args(MemberStatus))}",
)
@click.pass_obj
def node_ls(client: Client, quiet: bool, form: Form, no_trunc: bool, filters: dict[str, list[str]]) -> None:
    """List the cluster's nodes."""
    views = [view for view in client.nodes() if _wanted(view, filters)]
    output.listing(
        views,
        form,
        ("ID", "HOSTNAME", "STATUS", "AVAILABILITY", "MANAGER STATUS", "ADDRESS", "VERSION"),
        lambda view: _node_row(view, no_trunc),
        id=lambda view: output.short(view.node.id, whole=no_trunc),
        quiet=quiet,
    )


def _wanted(view: NodeView, filters: dict[str, list[str]]) -> bool:
    def label(text: str) -> bool:
        return label_matches(view.node.labels, text)

    tests: dict[str, Callable[[str], bool]] = {
        "id": view.node.id.startswith,
        "label": label,
        "node.label": label,
        "name": lambda text: name_matches(view.node.name, text),
        "membership": lambda text: text.lower() == "accepted",
        "role": lambda text: text.lower() == view.node.role,
        "status": lambda text: text.lower() == view.status,
    }
    return matches(filters, tests)


def _node_row(view: NodeView, whole: bool) -> tuple[str, ...]:
    node = view.node
    mark = " *" if view.self else ""
    managing = ""
    if node.role == "manager":
        managing = "Leader" if view.leader else "Reachable" if view.status == "ready" else "Unreachable"
    id = output.short(node.id, whole=whole) + mark
    available = node.availability.capitalize()
    return id, node.name, view.status.capitalize(), available, managing, str(node.advertise_addr), node.version


@click.command("inspect")
@inspect_format
@click.argument("nodes", nargs=-1, required=True, metavar="NODE...", shell_complete=node_names)
@click.pass_obj
def node_inspect(client: Client, form: Form, nodes: tuple[str, ...]) -> None:
    """Show everything about nodes ("self" is this one)."""
    output.inspect(nodes, lambda ref: client.node(node_of(client, ref)), form)


@click.command("rm")
@click.option("-f", "--force", is_flag=True, help="Also a node that is not known to be down.")
@click.argument("nodes", nargs=-1, required=True, metavar="NODE...", shell_complete=node_names)
@click.pass_obj
def node_rm(client: Client, force: bool, nodes: tuple[str, ...]) -> None:
    """Remove nodes from the cluster.

    Their certificates count for nothing from then on.
    """
    for_each(nodes, lambda ref: client.remove_node(ref, force=force))
