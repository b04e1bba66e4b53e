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
    mtu = 1500                      # default: of the host's default route

    [userspace]                     # the forwarder, where tunnels are in user space
    queues = 1                      # pairs of threads
    spin-us = 50                    # longest busy wait for the next packet; 0: none
    virtual-underlay = false        # the other hosts are namespaces of this machine, as in a lab
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import msgspec

from vxnet.model.address import IPNetwork
from vxnet.model.codec import from_toml
from vxnet.model.errors import CallerError

CONFIG_PATH = Path("/etc/vxnet/vxnet.toml")


class GatewayConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="kebab"):
    subnet: IPNetwork | None = None
    mtu: int | None = None


class UserspaceConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="kebab"):
    queues: Annotated[int, msgspec.Meta(ge=1, le=8)] = 1
    spin_us: Annotated[int, msgspec.Meta(ge=0, le=10_000)] = 50
    virtual_underlay: bool = False


class Config(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="kebab"):
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    advertise_addr: str = ""
    data_path_addr: str = ""
    metrics_addr: str = ""
    datapath: Literal["auto", "kernel", "userspace"] = "auto"
    gateway: GatewayConfig = GatewayConfig()
    userspace: UserspaceConfig = UserspaceConfig()


def load(path: Path = CONFIG_PATH) -> Config:
    """Raises :class:`CallerError` with the file and the field; a missing file is an empty one."""
    try:
        return from_toml(path.read_text(), Config)
    except FileNotFoundError:
        return Config()
    except (OSError, ValueError) as error:
        raise CallerError(f"{path}: {error}", hint="mend the file, or remove it to run with the defaults") from error
