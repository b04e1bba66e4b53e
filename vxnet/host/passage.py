"""A way through other people's firewalls: where they drop what is forwarded, one accept of vxnet's own.

A drop is final, whoever else accepts: no rule in vxnet's own table helps a host whose FORWARD is closed (nft, iptables,
ufw, firewalld). So two rules go to the head of the very chain that drops, known by their comment::

    iifname "vxnet_*" accept comment "vxnet"        oifname "vxnet_*" accept comment "vxnet"

What may come in by these links is still for vxnet's own table to say (:mod:`vxnet.host.hosttable`), and for any
other chain of the operator's. Format: include/uapi/linux/netfilter/nf_tables.h; comments as nft(8) and iptables-nft lay
them out.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Literal, NamedTuple

from vxnet.host import netns, nf_tables, nft
from vxnet.host.netlink import Netlink, attribute, attributes
from vxnet.model.errors import HostError
from vxnet.model.host import BRIDGE_PREFIX, NFT_TABLE, Change

COMMENT = "vxnet"
_RULES = tuple(f'{side} "{BRIDGE_PREFIX}*" accept comment "{COMMENT}"' for side in ("oifname", "iifname"))

_CHAIN_TABLE, _CHAIN_NAME, _CHAIN_HOOK, _CHAIN_POLICY = 1, 3, 4, 5
_RULE_TABLE, _RULE_CHAIN, _RULE_HANDLE, _RULE_EXPRESSIONS, _RULE_USERDATA = 1, 2, 3, 4, 7
_ELEMENT, _EXPRESSION_NAME, _EXPRESSION_DATA = 1, 1, 2
_IMMEDIATE_DATA, _DATA_VERDICT, _VERDICT_CODE = 2, 2, 1
_INPUT, _FORWARD = 1, 2
"""NF_INET_LOCAL_IN, NF_INET_FORWARD."""
_DROP = 0
_FAMILIES = {1: "inet", 2: "ip", 10: "ip6"}


class Closed(NamedTuple):
    """Somebody's chain that drops what no rule in it lets through."""

    family: str
    table: str
    chain: str
    passes: int
    """How many of vxnet's rules are in it."""

    def __str__(self) -> str:
        return f"{self.family} {self.table} {self.chain}"


class _Rule(NamedTuple):
    handle: int
    comment: str
    ends: bool
    """It drops all that comes to it."""


def closed(netlink: Netlink, hook: int = _FORWARD) -> list[Closed]:
    """Of the namespace of ``netlink`` (of NETLINK_NETFILTER). Raises OSError."""
    found = []
    for body in netlink.dump(nf_tables.GETCHAIN, nf_tables.head(nf_tables.UNSPEC)):
        family = _FAMILIES.get(body[0], "")
        parts = attributes(body, 4)
        hooked = attributes(parts.get(_CHAIN_HOOK, b""))
        table, chain = (
            parts.get(one, b"").rstrip(b"\0").decode(errors="replace") for one in (_CHAIN_TABLE, _CHAIN_NAME)
        )
        if not family or _number(hooked.get(1)) != hook or table.startswith(NFT_TABLE):
            continue
        rules = _rules(netlink, body[0], table, chain)
        policy = parts.get(_CHAIN_POLICY)
        if (policy is not None and _number(policy) == _DROP) or any(rule.ends for rule in rules):
            found.append(Closed(family, table, chain, sum(rule.comment == COMMENT for rule in rules)))
    return found


def _rules(netlink: Netlink, family: int, table: str, chain: str) -> list[_Rule]:
    names = attribute(_RULE_TABLE, table.encode() + b"\0") + attribute(_RULE_CHAIN, chain.encode() + b"\0")
    found = []
    for body in netlink.dump(nf_tables.GETRULE, nf_tables.head(family) + names):
        parts = attributes(body, 4)
        (handle,) = struct.unpack("!Q", parts[_RULE_HANDLE])
        expressions = list(_elements(parts.get(_RULE_EXPRESSIONS, b"")))
        found.append(_Rule(handle, _comment(parts.get(_RULE_USERDATA, b"")), _ends(expressions)))
    return found


def _elements(data: bytes) -> Iterable[dict[int, bytes]]:
    """Of a list, whose members all have the same number."""
    at = 0
    while at + 4 <= len(data):
        length, kind = struct.unpack_from("=HH", data, at)
        if length < 4:
            return
        if kind & 0x3FFF == _ELEMENT:
            yield attributes(data[at + 4 : at + length])
        at += (length + 3) & ~3


def _ends(expressions: list[dict[int, bytes]]) -> bool:
    """Whether a rule drops or refuses without a condition: it counts or logs, and has nothing else before the end."""
    for number, one in enumerate(expressions):
        name = one.get(_EXPRESSION_NAME, b"").rstrip(b"\0")
        if name in (b"counter", b"log", b"limit") and number < len(expressions) - 1:
            continue
        data = attributes(one.get(_EXPRESSION_DATA, b""))
        if name == b"immediate":
            verdict = attributes(attributes(data.get(_IMMEDIATE_DATA, b"")).get(_DATA_VERDICT, b""))
            return _VERDICT_CODE in verdict and _number(verdict[_VERDICT_CODE]) == _DROP
        return name == b"reject" or (name == b"target" and data.get(1, b"").rstrip(b"\0") in (b"REJECT", b"DROP"))
    return False


def _comment(userdata: bytes) -> str:
    """Type, length, text; type 0 is the comment."""
    at = 0
    while at + 2 <= len(userdata):
        kind, length = userdata[at], userdata[at + 1]
        if kind == 0:
            return userdata[at + 2 : at + 2 + length].rstrip(b"\0").decode(errors="replace")
        at += 2 + length
    return ""


def _number(raw: bytes | None) -> int:
    return -1 if raw is None else int(struct.unpack("!I", raw)[0])


class Passage:
    """``keep_out``: nothing is written into other people's tables."""

    def __init__(self, *, keep_out: bool) -> None:
        self._keep_out = keep_out
        self._refused: set[str] = set()
        """Chains into which nothing can be put: firewalld's may have an owner. Told once, then left alone."""

    def ensure(self, namespace: int, netlink: Netlink) -> list[Change]:
        """Open what is closed. Raises OSError."""
        if self._keep_out:
            return remove(namespace, netlink)
        changes = []
        for one in self._shut(netlink):
            # iptables-nft's tables are written as nft's are: it lists such rules as its own.
            lines = "".join(f"insert rule {one} {rule}\n" for rule in _RULES)
            change = _change("add", one, _remove_lines(netlink, one) + lines, namespace)
            if change.error:
                self._refused.add(str(one))
            changes.append(change)
        return changes

    def is_open(self, netlink: Netlink) -> bool:
        """As far as it can be. Raises OSError."""
        return self._keep_out or not self._shut(netlink)

    def _shut(self, netlink: Netlink) -> list[Closed]:
        return [one for one in closed(netlink) if one.passes < len(_RULES) and str(one) not in self._refused]


def remove(namespace: int, netlink: Netlink) -> list[Change]:
    """Take vxnet's rules out of other people's tables. Raises OSError."""
    return [
        _change("delete", one, lines, namespace) for one in closed(netlink) if (lines := _remove_lines(netlink, one))
    ]


def _remove_lines(netlink: Netlink, one: Closed) -> str:
    family = next(number for number, name in _FAMILIES.items() if name == one.family)
    rules = _rules(netlink, family, one.table, one.chain)
    return "".join(f"delete rule {one} handle {rule.handle}\n" for rule in rules if rule.comment == COMMENT)


def _change(verb: Literal["add", "delete"], one: Closed, text: str, namespace: int) -> Change:
    try:
        nft.run(text, namespace)
    except HostError as error:
        return Change(verb=verb, object=f"accept in {one}", error=error.message)
    return Change(verb=verb, object=f"accept in {one}")


# What is told and not mended


def obstacles(namespace: int, netlink: Netlink, ports: Iterable[tuple[str, int, str]]) -> list[str]:
    """What of other people's firewalls is in vxnet's way. ``ports``: protocol, number, what for; of this host, that
    others must reach. Blocks. Raises OSError, HostError."""
    found = [
        f"{one} drops what containers send out of this host, and vxnet has no accept there: "
        f'nft insert rule {one} iifname "{BRIDGE_PREFIX}*" accept, and the same with oifname'
        for one in closed(netlink)
        if one.passes < len(_RULES)
    ]
    for one in closed(netlink, _INPUT):
        text = nft.show(namespace, "-n", "list", "table", one.family, one.table) or ""
        found += [
            f"{one} drops what comes in, and no rule of that table speaks of {protocol} port {port} ({what}): "
            f"nft insert rule {one} {protocol} dport {port} accept"
            for protocol, port, what in ports
            if not _speaks_of(text, protocol, port)
        ]
    if "filter" in _legacy_tables(namespace):
        found.append(
            "this host has rules of the old iptables (legacy), which vxnet does not look into: if their FORWARD drops, "
            f"iptables-legacy -I FORWARD -i {BRIDGE_PREFIX}+ -j ACCEPT, and the same with -o"
        )
    return found


_NUMBERS = re.compile(r"\b(\d+)(?:-(\d+))?\b")


def _speaks_of(text: str, protocol: str, port: int) -> bool:
    """Whether a rule names the port, by itself, in a set or in a range; or lets all of the protocol in."""
    for line in text.splitlines():
        if "dport" not in line or (protocol not in line and "th dport" not in line and "l4proto" not in line):
            continue
        for first, last in _NUMBERS.findall(line.partition("dport")[2]):
            if int(first) <= port <= int(last or first):
                return True
    return False


def _legacy_tables(namespace: int) -> list[str]:
    def look() -> list[str]:
        names: list[str] = []
        for kind in ("ip", "ip6"):
            try:
                names += Path(f"/proc/thread-self/net/{kind}_tables_names").read_text().split()
            except OSError:  # this kernel has none
                continue
        return names

    return netns.inside(namespace, look)
