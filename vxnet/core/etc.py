"""A container's own files in /etc: resolv.conf, hosts, hostname."""

from __future__ import annotations

from vxnet.model.container import Container

_RESOLVER = "# vxnet's resolver: names of this container's networks, and the host's resolvers for the rest\n"


def etc_files(container: Container) -> dict[str, str]:
    """Their texts by name."""
    spec = container.spec
    hostname = spec.hostname or container.id[:12]
    hosts = ["127.0.0.1\tlocalhost", "::1\tlocalhost ip6-localhost ip6-loopback"]
    for text in spec.hosts:
        name, _, address = text.partition(":")
        hosts.append(f"{address}\t{name}")
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
