"""network create, update, ls, inspect, rm, prune, peer …; connect and disconnect."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, TypeVar

import click

from vxnet.cli import output
from vxnet.cli.complete import connected_names, container_names, network_names
from vxnet.cli.group import confirm, for_each
from vxnet.cli.options import (
    Form,
    address,
    filter_option,
    inspect_format,
    label_matches,
    list_options,
    matches,
    moment,
    name_matches,
    not_built,
    pairs,
    prefix,
)
from vxnet.cluster.client import Client
from vxnet.model.address import IPAddress, IPNetwork
from vxnet.model.api import NetworkConnect, NetworkCreate, NetworkPrune, NetworkUpdate
from vxnet.model.cluster import Driver, ForeignPeer, Network
from vxnet.model.errors import CallerError, UnsupportedError
from vxnet.model.guest import GuestView, GuestWish

F = TypeVar("F", bound=Callable[..., Any])

_DRIVERS: dict[str, Driver] = {
    "overlay": "overlay",
    "bridge": "bridge",
    "macvlan": "macvlan",
    "host": "host",
    "none": "null",
    "null": "null",
}


def subnet_options(*names: str) -> Callable[[F], F]:
    """``names``: of the option that gives subnets."""

    def decorate(command: F) -> F:
        for option in (
            click.option(
                *("--aux-address", "auxiliary"), multiple=True, callback=pairs, metavar="NAME=ADDRESS",
                help="Never give this one: a machine that is none of vxnet's has it.",
            ),
            click.option(
                "--ip-range", "ranges", type=prefix, multiple=True, metavar="CIDR",
                help="Give addresses from this part of a subnet; others are for --ip.",
            ),
            click.option(
                "--gateway", "gateways", type=address, multiple=True, metavar="ADDRESS", help="Default: the first one."
            ),
            click.option(
                *names, "subnets", type=prefix, multiple=True, metavar="CIDR", help="Repeatable, of IPv4 and IPv6."
            ),
        ):  # fmt: skip
            command = option(command)
        return command

    return decorate


def _auxiliary(texts: dict[str, str]) -> dict[str, IPAddress]:
    try:
        return {name: address(text) for name, text in texts.items()}
    except click.BadParameter as error:
        raise CallerError(f"--aux-address: {error.message}") from None


@click.command("create")
@click.option(
    "-d", "--driver", default="overlay", show_default=True,
    help="overlay: of the whole cluster; bridge, macvlan: of this host alone.",
)  # fmt: skip
@click.option("--attachable", is_flag=True, help="Let `vxnet run --network` use it, not only services.")
@click.option("--internal", is_flag=True, help="No way out of it.")
@click.option("--ingress", is_flag=True, help="The routing mesh's, in place of the one that was removed.")
@subnet_options("--subnet")
@click.option("--ipv4/--no-ipv4", default=None, help="Default: unless only IPv6 subnets are given.")
@click.option("--ipv6", is_flag=True, help="With IPv6, from the cluster's own pool if no --subnet of it is given.")
@click.option(
    "-o", "--opt", "options", multiple=True, callback=pairs, metavar="KEY=VALUE",
    help="mtu=1400; of an overlay peers=ADDRESS,… as `network peer add`; of macvlan parent=LINK and "
    "macvlan_mode=bridge, private, vepa or passthru; of bridge com.docker.network.bridge.enable_icc=false.",
)  # fmt: skip
@click.option("--label", "labels", multiple=True, callback=pairs, metavar="KEY=VALUE")
@click.argument("name")
@not_built(*("--config-from", "--ipam-driver", "--ipam-opt", "--scope"), flags=["--config-only"])
@click.pass_obj
def create(
    client: Client,
    driver: str,
    attachable: bool,
    internal: bool,
    ingress: bool,
    subnets: tuple[IPNetwork, ...],
    gateways: tuple[IPAddress, ...],
    ranges: tuple[IPNetwork, ...],
    auxiliary: dict[str, str],
    ipv4: bool | None,
    ipv6: bool,
    options: dict[str, str],
    labels: dict[str, str],
    name: str,
) -> None:
    """Make a network and show its id."""
    if driver == "ipvlan":
        raise UnsupportedError("the driver ipvlan is not built", hint="`--driver macvlan` is")
    if driver not in _DRIVERS:
        raise CallerError(f"no such driver: {driver!r}", hint="there are overlay, bridge and macvlan")
    if "encrypted" in options:
        raise UnsupportedError("`--opt encrypted` is not built yet", hint="the network was not made")
    request = NetworkCreate(
        name=name,
        driver=_DRIVERS[driver],
        attachable=attachable,
        internal=internal,
        ingress=ingress,
        subnets=subnets,
        gateways=gateways,
        ranges=ranges,
        auxiliary=_auxiliary(auxiliary),
        ipv4=ipv4,
        ipv6=ipv6,
        options=options,
        labels=labels,
    )
    click.echo(client.create_network(request).id)


@click.command("update")
@subnet_options("--subnet-add")
@click.option("--label-add", "labels", multiple=True, callback=pairs, metavar="KEY=VALUE")
@click.option("--label-rm", "removed", multiple=True, metavar="KEY")
@click.argument("network", shell_complete=network_names)
@click.pass_obj
def update(
    client: Client,
    subnets: tuple[IPNetwork, ...],
    gateways: tuple[IPAddress, ...],
    ranges: tuple[IPNetwork, ...],
    auxiliary: dict[str, str],
    labels: dict[str, str],
    removed: tuple[str, ...],
    network: str,
) -> None:
    """Add to a network while it is in use.

    Containers that are on it reach the new subnet at once, and keep their addresses.
    """
    if not (subnets or labels or removed):
        raise CallerError("nothing to change", hint="give --subnet-add, --label-add or --label-rm")
    request = NetworkUpdate(
        subnets=subnets,
        gateways=gateways,
        ranges=ranges,
        auxiliary=_auxiliary(auxiliary),
        labels=labels,
        labels_removed=removed,
    )
    click.echo(client.update_network(network, request).name)


@click.command("ls")
@list_options
@filter_option("driver", "id", "label", "name", "scope=swarm|local", "type=builtin|custom")
@click.pass_obj
def ls(client: Client, quiet: bool, form: Form, no_trunc: bool, filters: dict[str, list[str]]) -> None:
    """List networks."""
    networks = [network for network in client.networks() if _wanted(network, filters)]
    output.listing(
        networks,
        form,
        ("NETWORK ID", "NAME", "DRIVER", "SCOPE"),
        lambda network: (output.short(network.id, whole=no_trunc), network.name, network.driver, network.scope),
        id=lambda network: output.short(network.id, whole=no_trunc),
        quiet=quiet,
    )


def _wanted(network: Network, filters: dict[str, list[str]]) -> bool:
    # What is part of every host goes by its name alone.
    kind = "builtin" if network.id == network.name else "custom"
    tests: dict[str, Callable[[str], bool]] = {
        "driver": network.driver.__eq__,
        "id": network.id.startswith,
        "label": lambda text: label_matches(network.labels, text),
        "name": lambda text: name_matches(network.name, text),
        "scope": lambda text: text.lower() == network.scope,
        "type": lambda text: text.lower() == kind,
    }
    return matches(filters, tests)


@click.command("inspect")
@inspect_format
@click.option("-v", "--verbose", is_flag=True, help="Peers and endpoints of the whole cluster, not of this host only.")
@click.argument("networks", nargs=-1, required=True, metavar="NETWORK...", shell_complete=network_names)
@click.pass_obj
def inspect(client: Client, form: Form, verbose: bool, networks: tuple[str, ...]) -> None:
    """Show everything about networks."""
    output.inspect(networks, lambda ref: client.network(ref, verbose=verbose), form)


@click.command("rm")
@click.option("-f", "--force", is_flag=True, help="One that is gone is no failure.")
@click.argument("networks", nargs=-1, required=True, metavar="NETWORK...", shell_complete=network_names)
@click.pass_obj
def rm(client: Client, force: bool, networks: tuple[str, ...]) -> None:
    """Remove networks that nobody uses any more."""
    for_each(networks, client.remove_network, may_be_gone=force)


@click.command("prune")
@click.option("-f", "--force", is_flag=True, help="Do not ask.")
@filter_option("label", "until", short=False)
@click.pass_obj
def prune(client: Client, force: bool, filters: dict[str, list[str]]) -> None:
    """Remove all networks that nobody uses."""
    moments = [datetime.fromisoformat(moment(text)[:26]).replace(tzinfo=UTC) for text in filters.get("until", ())]
    request = NetworkPrune(labels=tuple(filters.get("label", ())), until=min(moments).timestamp() if moments else None)
    if not force:
        confirm("This removes all networks that no container is on, anywhere in the cluster. Go on?")
    for network in client.prune_networks(request):
        click.echo(network.name)


# Peers


@click.command("add")
@click.option("--name", default="", help="What to call it here.")
@click.argument("network", shell_complete=network_names)
@click.argument("vtep", type=address, metavar="ADDRESS")
@click.pass_obj
def peer_add(client: Client, name: str, network: str, vtep: IPAddress) -> None:
    """Let a VXLAN endpoint without vxnet into a network.

    It sends to ADDRESS's side of the tunnel as RFC 7348 says, with the network's identifier (`network inspect`: vni) to
    the cluster's data port of each host that has a container on it.
    """
    client.add_peer(network, ForeignPeer(vtep=vtep, name=name))
    click.echo(vtep)


@click.command("ls")
@list_options
@click.argument("network", shell_complete=network_names)
@click.pass_obj
def peer_ls(client: Client, quiet: bool, form: Form, no_trunc: bool, network: str) -> None:
    """List the endpoints without vxnet that a network has."""
    peers = client.network(network).network.peers
    output.listing(
        peers,
        form,
        ("ADDRESS", "NAME"),
        lambda peer: (str(peer.vtep), output.printable(peer.name)),
        id=lambda peer: str(peer.vtep),
        quiet=quiet,
    )


@click.command("rm")
@click.argument("network", shell_complete=network_names)
@click.argument("peers", nargs=-1, required=True, metavar="ADDRESS|NAME...")
@click.pass_obj
def peer_rm(client: Client, network: str, peers: tuple[str, ...]) -> None:
    """Shut endpoints without vxnet out of a network."""
    for_each(peers, lambda peer: client.remove_peer(network, peer))


# Containers


def _netns_path(ctx: click.Context, param: click.Parameter, value: str) -> str:
    """A bare name is one of ``ip netns``."""
    if not value:
        return ""
    return os.path.abspath(value) if "/" in value else f"/run/netns/{value}"


def guest_options(command: F) -> F:
    """Whom ``connect`` and ``disconnect`` mean beside a container."""
    for option in (
        click.option(
            "--netns",
            default="",
            metavar="PATH|NAME",
            callback=_netns_path,
            help="A network namespace, by its path or as `ip netns` calls it.",
        ),
        click.option("--pid", type=click.IntRange(1), metavar="PID", help="The network namespace of a process."),
    ):
        command = option(command)
    return command


def _is_guest(container: str | None, pid: int | None, netns: str) -> bool:
    """Whether it is a guest. Raises :class:`CallerError` unless just one is named."""
    if sum((bool(container), pid is not None, bool(netns))) != 1:
        raise CallerError("a container, a process or a namespace is wanted", hint="give CONTAINER, --pid or --netns")
    return not container


@click.command("connect")
@guest_options
@click.option("--name", default="", help="Of a guest: what others find it by. Default: pid-PID, or the path's end.")
@click.option("--ifname", default="", metavar="NAME", help="Of a guest: its interface. Default: the first free ethN.")
@click.option("--ip", type=address, metavar="ADDRESS", help="Default: a free one.")
@click.option("--ip6", type=address, metavar="ADDRESS", help="Of IPv6, beside --ip.")
@click.option("--alias", "aliases", multiple=True, metavar="NAME", help="One more name on this network.")
@click.argument("network", shell_complete=network_names)
@click.argument("container", required=False, shell_complete=container_names)
@not_built("--link", "--link-local-ip", "--driver-opt", "--gw-priority")
@click.pass_obj
def connect(
    client: Client,
    pid: int | None,
    netns: str,
    name: str,
    ifname: str,
    ip: IPAddress | None,
    ip6: IPAddress | None,
    aliases: tuple[str, ...],
    network: str,
    container: str | None,
) -> None:
    """Connect a container or a guest to a network.

    A guest is any process or network namespace of this host, such as another program's container. It stays connected
    until it ends.
    """
    if not _is_guest(container, pid, netns):
        if name or ifname:
            raise CallerError("--name and --ifname are for guests", hint="a container has its name already")
        client.connect(network, NetworkConnect(container=container or "", ip=ip, ip6=ip6, aliases=aliases))
        return
    wish = GuestWish(pid=pid or 0, netns=netns, name=name, ip=ip, ip6=ip6, aliases=aliases, ifname=ifname)
    guest = client.connect_guest(network, wish)
    click.echo(guest.name)
    if not guest.asks_resolver:
        line = f"nameserver {guest.resolver}"
        click.echo(f"For names its /etc/resolv.conf must say: {line}", err=True)


@click.command("disconnect")
@guest_options
@click.option("-f", "--force", is_flag=True, help="A container that is gone, or not on it, is no failure.")
@click.argument("network", shell_complete=network_names)
@click.argument("container", required=False, shell_complete=connected_names)
@click.pass_obj
def disconnect(client: Client, pid: int | None, netns: str, force: bool, network: str, container: str | None) -> None:
    """Disconnect a container or a guest from a network."""
    if _is_guest(container, pid, netns):
        client.disconnect_guest(network, GuestWish(pid=pid or 0, netns=netns))
        return

    def disconnect_one(ref: str) -> None:
        client.disconnect(network, NetworkConnect(container=ref), force=force)

    for_each([container or ""], disconnect_one, echo=False, may_be_gone=force)


@click.command("guests")
@list_options
@click.pass_obj
def guests(client: Client, quiet: bool, form: Form, no_trunc: bool) -> None:
    """List the guests on this host."""
    headers = ("NAME", "NAMESPACE", "NETWORKS", "ADDRESSES", "INTERFACES", "RESOLVER")
    output.listing(client.guests(), form, headers, _guest, id=lambda view: view.name, quiet=quiet)


def _guest(view: GuestView) -> tuple[str, ...]:
    return (
        view.name,
        f"pid {view.pid}" if view.pid else output.printable(view.netns),
        ", ".join(view.networks),
        ", ".join(map(str, view.addresses)),
        ", ".join(view.interfaces),
        f"{view.resolver}{'' if view.asks_resolver else ' (not asked)'}",
    )
