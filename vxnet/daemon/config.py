"""``/etc/vxnet/vxnet.toml``: everything in it is optional.

::

    log-level = "info"              # debug, info, warning, error
    advertise-addr = "eth1"         # for `init` and `join` without --advertise-addr: address or interface
    data-path-addr = "eth1"
    metrics-addr = "127.0.0.1:9323" # /metrics and /healthz over TCP too; default: on the API's socket only

    datapath = "auto"               # kernel: its vxlan devices; userspace: TAPs and vxnet's forwarder; auto: the
                                    # kernel's, or where it has none those in user space

    [gateway]                       # vxnet_gw, the containers' way out
    subnet = "172.19.0.0/16"        # default: the first of 172.19.0.0/16 … that no route of this host meets
    ipv6 = true                     # a way out in IPv6, too, where this host has IPv6
    subnet6 = "fd12:3456:789a::/64" # default: one that follows from the host's machine-id
    mtu = 1500                      # default: of the host's default route

    [firewall]
    keep-out = false                # true: nothing is written into other people's nftables; `vxnet info` says what
                                    # they drop

    [userspace]                     # the forwarder, where tunnels are in user space
    queues = 1                      # pairs of threads
    spin-us = 50                    # longest busy wait for the next packet; 0: none
    virtual-underlay = false        # the other hosts are namespaces of this machine, as in a lab
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import msgspec

from vxnet.host.uvxlan import QUEUES_MAX
from vxnet.model.address import IPNetwork
from vxnet.model.codec import from_toml
from vxnet.model.errors import CallerError

CONFIG_PATH = Path("/etc/vxnet/vxnet.toml")

Datapath = Literal["auto", "kernel", "userspace"]


class GatewayConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="kebab"):
    subnet: IPNetwork | None = None
    ipv6: bool = True
    subnet6: IPNetwork | None = None
    mtu: Annotated[int, msgspec.Meta(ge=576, le=65535)] | None = None

    def __post_init__(self) -> None:
        for name, prefix, version, longest in (("subnet", self.subnet, 4, 28), ("subnet6", self.subnet6, 6, 96)):
            if prefix is not None and (prefix.version != version or prefix.prefixlen > longest):
                raise ValueError(f"gateway.{name} is an IPv{version} prefix of at most {longest} bits, found {prefix}")


class FirewallConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="kebab"):
    keep_out: bool = False


class UserspaceConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="kebab"):
    queues: Annotated[int, msgspec.Meta(ge=1, le=QUEUES_MAX)] = 1
    spin_us: Annotated[int, msgspec.Meta(ge=0, le=10_000)] = 50
    virtual_underlay: bool = False


class Config(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="kebab"):
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    advertise_addr: str = ""
    data_path_addr: str = ""
    metrics_addr: str = ""
    datapath: Datapath = "auto"
    gateway: GatewayConfig = GatewayConfig()
    firewall: FirewallConfig = FirewallConfig()
    userspace: UserspaceConfig = UserspaceConfig()


def load(path: Path = CONFIG_PATH) -> Config:
    """Raises :class:`CallerError` with the file and the field; a missing file is an empty one."""
    try:
        return from_toml(path.read_text(), Config)
    except FileNotFoundError:
        return Config()
    except (OSError, ValueError) as error:
        raise CallerError(f"{path}: {error}", hint="mend the file, or remove it to run with the defaults") from error
