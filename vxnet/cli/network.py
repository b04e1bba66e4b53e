"""network create, ls, inspect, rm, connect, disconnect."""

from __future__ import annotations

from collections.abc import Callable

import click

from vxnet.cli import output
from vxnet.cli.complete import container_names, network_names
from vxnet.cli.group import for_each
from vxnet.cli.options import (
    Format,
    address,
    filter_option,
    inspect_format,
    list_options,
    matches,
    not_built,
    pairs,
    prefix,
)
from vxnet.cluster.client import Client
from vxnet.model.address import IPAddress, IPNetwork
from vxnet.model.api import NetworkConnect, NetworkCreate
from vxnet.model.cluster import Driver, Network
from vxnet.model.errors import CallerError, UnsupportedError

_DRIVERS: dict[str, Driver] = {"overlay": "overlay", "bridge": "bridge", "host": "host", "none": "null", "null": "null"}
_LATER_DRIVERS = ("macvlan", "ipvlan")


@click.command("create")
@click.option("-d", "--driver", default="overlay", show_default=True, help="overlay, bridge, host or none.")
@click.option("--attachable", is_flag=True, help="Let `vxnet run --network` use it, not only services.")
@click.option("--internal", is_flag=True, help="No way out of it.")
@click.option("--subnet", "subnets", type=prefix, multiple=True, metavar="CIDR", help="Default: a free one.")
@click.option("--gateway", "gateways", type=address, multiple=True, metavar="ADDRESS", help="Default: the first one.")
@click.option("--ipv6", is_flag=True, help="Needs a --subnet of IPv6.")
@click.option("-o", "--opt", "options", multiple=True, callback=pairs, metavar="KEY=VALUE", help="Such as mtu=1400.")
@click.option("--label", "labels", multiple=True, callback=pairs, metavar="KEY=VALUE")
@click.argument("name")
@not_built(
    *("--ip-range", "--aux-address", "--config-from", "--ipam-driver", "--ipam-opt", "--scope"),
    flags=["--ingress", "--config-only"],
)
@click.pass_obj
def create(
    client: Client,
    driver: str,
    attachable: bool,
    internal: bool,
    subnets: tuple[IPNetwork, ...],
    gateways: tuple[IPAddress, ...],
    ipv6: bool,
    options: dict[str, str],
    labels: dict[str, str],
    name: str,
) -> None:
    """Make a network and show its id."""
    if driver in _LATER_DRIVERS:
        raise UnsupportedError(f"the driver {driver} is not built yet")
    if driver not in _DRIVERS:
        raise CallerError(f"no such driver: {driver!r}", hint="there are overlay, bridge, host and none")
    if "encrypted" in options:
        raise UnsupportedError("`--opt encrypted` is not built yet", hint="the network was not made")
    if ipv6 and not any(subnet.version == 6 for subnet in subnets):
        raise UnsupportedError("there is no pool of IPv6 prefixes", hint="give one, such as --subnet fd00:10::/64")
    request = NetworkCreate(
        name=name,
        driver=_DRIVERS[driver],
        attachable=attachable,
        internal=internal,
        subnets=subnets,
        gateways=gateways,
        options=options,
        labels=labels,
    )
    click.echo(client.create_network(request).id)


@click.command("ls")
@list_options
@filter_option("driver", "id", "label", "name", "scope")
@click.pass_obj
def ls(client: Client, quiet: bool, form: Format, no_trunc: bool, filters: dict[str, list[str]]) -> None:
    """List networks."""
    networks = [network for network in client.networks() if _wanted(network, filters)]
    if quiet:
        for network in networks:
            click.echo(output.short(network.id, whole=no_trunc))
    elif form == "json":
        output.json_lines(networks)
    else:
        rows = (
            (output.short(network.id, whole=no_trunc), network.name, network.driver, network.scope)
            for network in networks
        )
        output.table(("NETWORK ID", "NAME", "DRIVER", "SCOPE"), rows)


def _wanted(network: Network, filters: dict[str, list[str]]) -> bool:
    def labelled(text: str) -> bool:
        key, sign, value = text.partition("=")
        return key in network.labels and (not sign or network.labels[key] == value)

    tests: dict[str, Callable[[str], bool]] = {
        "driver": network.driver.__eq__,
        "id": network.id.startswith,
        "label": labelled,
        "name": lambda text: text in network.name,
        "scope": network.scope.__eq__,
    }
    return matches(filters, tests)


@click.command("inspect")
@inspect_format
@click.option("-v", "--verbose", is_flag=True, help="Peers and endpoints of the whole cluster, not of this host only.")
@click.argument("networks", nargs=-1, required=True, metavar="NETWORK...", shell_complete=network_names)
@click.pass_obj
def inspect(client: Client, verbose: bool, networks: tuple[str, ...]) -> None:
    """Show everything about networks."""
    output.inspect(networks, lambda ref: client.network(ref, verbose=verbose))


@click.command("rm")
@click.argument("networks", nargs=-1, required=True, metavar="NETWORK...", shell_complete=network_names)
@click.pass_obj
def rm(client: Client, networks: tuple[str, ...]) -> None:
    """Remove networks that nobody uses any more."""
    for_each(networks, client.remove_network)


@click.command("connect")
@click.option("--ip", type=address, metavar="ADDRESS", help="Default: a free one.")
@click.option("--alias", "aliases", multiple=True, metavar="NAME", help="One more name on this network.")
@click.argument("network", shell_complete=network_names)
@click.argument("container", shell_complete=container_names)
@not_built("--ip6", "--link", "--link-local-ip", "--driver-opt", "--gw-priority")
@click.pass_obj
def connect(client: Client, ip: IPAddress | None, aliases: tuple[str, ...], network: str, container: str) -> None:
    """Connect a container to one more network."""
    client.connect(network, NetworkConnect(container=container, ip=ip, aliases=aliases))


@click.command("disconnect")
@click.option("-f", "--force", is_flag=True, help="Also when the container is gone.")
@click.argument("network", shell_complete=network_names)
@click.argument("container", shell_complete=container_names)
@click.pass_obj
def disconnect(client: Client, force: bool, network: str, container: str) -> None:
    """Disconnect a container from a network."""
    client.disconnect(network, NetworkConnect(container=container), force=force)
