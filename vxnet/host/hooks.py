"""The operator's own rules about containers: ``table inet vxnet_user``, which vxnet makes and never writes rules in.

vxnet's own table is replaced as a whole, and a rule that somebody added there would go with it. This one has empty
chains before vxnet's own, is filled from ``/etc/vxnet/hooks.nft`` (lines for ``nft -f``) when it is made, and made
again when somebody flushes all rules. A drop there is final; an accept leaves the rest to vxnet's table.
"""

from __future__ import annotations

from pathlib import Path

from vxnet.host import nft
from vxnet.host.netlink import Netlink
from vxnet.model.errors import HostError
from vxnet.model.host import Change

NAME = "vxnet_user"
FILE = Path("/etc/vxnet/hooks.nft")
_CHAINS = ("prerouting", "input", "forward", "output")
PRIORITY = -10
"""Before vxnet's own filter (0), behind connection tracking and the translation of destinations (-100)."""


def text() -> str:
    chains = "".join(
        f"\tchain {name} {{\n\t\ttype filter hook {name} priority {PRIORITY}; policy accept;\n\t}}\n"
        for name in _CHAINS
    )
    return f"table inet {NAME} {{\n{chains}}}\n"


def exists(netlink: Netlink) -> bool:
    """In the namespace of ``netlink`` (of NETLINK_NETFILTER)."""
    return nft.exists(netlink, NAME)


def ensure(namespace: int, netlink: Netlink, file: Path = FILE) -> list[Change]:
    """Raises HostError."""
    if exists(netlink):
        return []
    words = f"nft table inet {NAME}"
    try:
        lines = file.read_text()
    except FileNotFoundError:
        lines = ""
    except (OSError, UnicodeDecodeError) as error:
        nft.run(text(), namespace)
        why = error.strerror if isinstance(error, OSError) else f"it is not in UTF-8: {error}"
        return [Change(verb="add", object=f"rules of {file}", error=why or str(error))]
    try:
        nft.run(f"{text()}{lines}", namespace)
    except HostError as error:
        if not lines:
            raise
        nft.run(text(), namespace)
        return [Change(verb="add", object=f"rules of {file}", error=error.message)]
    return [Change(verb="add", object=words)]


def remove(namespace: int, netlink: Netlink) -> list[Change]:
    if not nft.delete_table(namespace, netlink, NAME):
        return []
    return [Change(verb="delete", object=f"nft table inet {NAME}")]
