"""A container's own files in /etc: resolv.conf, hosts, hostname."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from typing import NamedTuple

from vxnet.model.address import IPAddress
from vxnet.model.container import HOST_GATEWAY, Container, ContainerSpec
from vxnet.model.errors import CallerError

_RESOLVER = "# vxnet's resolver: names of this container's networks, and the host's resolvers for the rest\n"


class HostTexts(NamedTuple):
    """Of the host's own files, for containers in its network namespace."""

    resolv_conf: str
    hosts: str
    hostname: str


def etc_files(container: Container, host: HostTexts | None = None) -> dict[str, str]:
    """Their texts by name. ``host``: of one that shares the host's network: what its files say holds there, too."""
    spec = container.spec
    if host is not None:
        return _shared_files(container, host)
    hostname = spec.hostname or container.id[:12]
    hosts = ["127.0.0.1\tlocalhost", "::1\tlocalhost ip6-localhost ip6-loopback"]
    hosts += _wished(spec, _host_gateway(container))
    places = [*container.attachments, *((container.gateway,) if container.gateway else ())]
    if places:
        hosts += [f"{interface.ip}\t{hostname}" for interface in places[0].addresses]
    # As Docker: names with a dot are tried as they are first, unless somebody says otherwise.
    options = (
        spec.dns_options
        if any(one.startswith("ndots:") for one in spec.dns_options)
        else ("ndots:0", *spec.dns_options)
    )
    lines = ["nameserver 127.0.0.11", f"options {' '.join(options)}"]
    if spec.dns_search and spec.dns_search != (".",):
        lines.append(f"search {' '.join(spec.dns_search)}")
    return {
        "resolv.conf": _RESOLVER + "\n".join(lines) + "\n",
        "hosts": "\n".join(hosts) + "\n",
        "hostname": hostname + "\n",
    }


def check_host_gateway(container: Container, reached: Collection[IPAddress]) -> None:
    """``reached``: at which addresses this host reaches it. Raises :class:`CallerError` if it is to know the host's
    address and there is none that it reaches."""
    wanted = [text for text in container.spec.hosts if text.endswith(f":{HOST_GATEWAY}")]
    if wanted and not container.spec.shares_host_network and not (reached and _host_gateway(container)):
        raise CallerError(
            f'"{container.spec.name}" does not reach this host, and {wanted[0]} would lead nowhere',
            hint="give the host's own address, or a network that is neither internal nor macvlan",
        )


def _host_gateway(container: Container) -> list[str]:
    """Addresses of this host's end of the container's way out."""
    places = [*((container.gateway,) if container.gateway else ()), *container.attachments]
    return [str(address) for address in next((place.way_out for place in places if place.way_out), ())]


def _wished(spec: ContainerSpec, host_gateway: Iterable[str]) -> Iterator[str]:
    for text in spec.hosts:
        name, _, address = text.partition(":")
        yield from (f"{one}\t{name}" for one in (host_gateway if address == HOST_GATEWAY else (address,)))


def _shared_files(container: Container, host: HostTexts) -> dict[str, str]:
    spec = container.spec
    hosts = [host.hosts.rstrip("\n"), *_wished(spec, ["127.0.0.1", "::1"])]
    resolv_conf = host.resolv_conf
    if spec.dns or spec.dns_search or spec.dns_options:
        kept = [line for line in resolv_conf.splitlines() if line.split()[:1] == ["nameserver"]]
        lines = [f"nameserver {address}" for address in spec.dns] or kept
        if spec.dns_options:
            lines.append(f"options {' '.join(spec.dns_options)}")
        if spec.dns_search and spec.dns_search != (".",):
            lines.append(f"search {' '.join(spec.dns_search)}")
        resolv_conf = "\n".join(lines) + "\n"
    hostname = spec.hostname or host.hostname
    return {"resolv.conf": resolv_conf, "hosts": "\n".join(hosts) + "\n", "hostname": hostname + "\n"}
