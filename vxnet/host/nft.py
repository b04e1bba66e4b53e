"""nftables: one own table per namespace, ``table inet vxnet``, compared with the kernel and replaced as a whole.

The grammar is nft's text, spoken through ``nft -f -``; rule sets are written in the very form in which ``nft list``
prints them, so that what is there can be compared with what shall be. Listing takes a process (4 ms), so it happens
only when the namespace's rule set generation (a counter that every commit moves) is not the one of vxnet's own last
commit. Elements of a set change without touching the rest, as a replaced table makes the kernel wait (16 ms).
"""

from __future__ import annotations

import re
import struct
import subprocess
from collections.abc import Callable, Hashable, Mapping
from typing import Literal, NamedTuple, TypeVar

from vxnet.host import netns
from vxnet.host.netlink import Netlink, attribute, attributes, message
from vxnet.model.errors import HostError
from vxnet.model.host import NFT_TABLE, Change

T = TypeVar("T")

NETLINK_NETFILTER = 12
_SUBSYSTEM = 10 << 8
NFT_MSG_GETTABLE = _SUBSYSTEM | 1
NFT_MSG_GETGEN = _SUBSYSTEM | 16
NFTA_TABLE_NAME = 1
NFTA_GEN_ID = 1
NFPROTO_UNSPEC = 0
NFPROTO_INET = 1

TABLE = f"inet {NFT_TABLE}"
TIMEOUT_S = 10.0


class Ruleset(NamedTuple):
    """What the table holds: chains and set declarations as ``nft list table`` prints them, elements apart."""

    body: str
    """Lines with their indentation, without the braces of the table. A set is declared without elements."""
    elements: Mapping[str, frozenset[str]]
    """Of each set."""

    def text(self) -> str:
        fill = "".join(_add(name, members) for name, members in sorted(self.elements.items()) if members)
        return f"table {TABLE} {{\n{self.body}}}\n{fill}"


def _add(name: str, members: frozenset[str]) -> str:
    return f"add element {TABLE} {name} {{ {', '.join(sorted(members))} }}\n"


def _delete(name: str, members: frozenset[str]) -> str:
    return f"delete element {TABLE} {name} {{ {', '.join(sorted(members))} }}\n"


class Running:
    """An nft process that has its text and is at work."""

    def __init__(self, text: str, namespace: int | None) -> None:
        def start() -> subprocess.Popen[str]:
            return subprocess.Popen(
                ["nft", "-f", "-"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )

        self._text = text
        self._process = _start(start, namespace)

    def error(self) -> str:
        """Wait for its end; empty: done."""
        try:
            said, _ = self._process.communicate(self._text, timeout=TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()
            return f"nft did not answer within {TIMEOUT_S:.0f} s"
        if self._process.returncode == 0:
            return ""
        return next(iter(said.splitlines()), f"nft ended with status {self._process.returncode}")


def _start(start: Callable[[], T], namespace: int | None) -> T:
    try:
        return start() if namespace is None else netns.inside(namespace, start)
    except FileNotFoundError as error:
        raise HostError("the program nft is not there", hint="apt-get install nftables") from error


def run(text: str, namespace: int | None = None) -> None:
    """Load ``text`` in one transaction, in the namespace of the descriptor (None: the thread's). Raises HostError."""
    error = Running(text, namespace).error()
    if error:
        raise HostError(f"nft refused: {error}")


def read(namespace: int | None) -> Ruleset | None:
    """vxnet's table as it is; None: there is none. Raises HostError without nft."""

    def start() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["nft", "-s", "list", "table", *TABLE.split()], capture_output=True, text=True, timeout=TIMEOUT_S
        )

    done = _start(start, namespace)
    return _parse(done.stdout) if done.returncode == 0 else None


_ELEMENTS = re.compile(r"^\t\telements = \{([^}]*)\}\n", re.MULTILINE)
_SET = re.compile(r"^\tset (\S+) \{\n(.*?)^\t\}\n", re.MULTILINE | re.DOTALL)


def _parse(listing: str) -> Ruleset:
    body = listing.split("\n", 1)[1].rsplit("}", 1)[0]
    elements: dict[str, frozenset[str]] = {}
    for name, content in _SET.findall(body):
        found = _ELEMENTS.search(content)
        members = found.group(1).split(",") if found else []
        elements[name] = frozenset(member.strip() for member in members)
    return Ruleset(_ELEMENTS.sub("", body), elements)


def _generation(netlink: Netlink) -> int:
    answer = netlink.ask([message(NFT_MSG_GETGEN, 0, struct.pack("!BBH", NFPROTO_UNSPEC, 0, 0))])[0]
    if answer is None:
        raise HostError("the kernel has no nftables", hint="it needs CONFIG_NF_TABLES and CONFIG_NF_TABLES_INET")
    return int(struct.unpack("!I", attributes(answer, 4)[NFTA_GEN_ID])[0])


def _exists(netlink: Netlink) -> bool:
    body = struct.pack("!BBH", NFPROTO_INET, 0, 0) + attribute(NFTA_TABLE_NAME, NFT_TABLE.encode() + b"\0")
    return netlink.ask([message(NFT_MSG_GETTABLE, 0, body)])[0] is not None


class _Known(NamedTuple):
    namespace: tuple[int, int]
    generation: int
    ruleset: Ruleset | None


class Pending(NamedTuple):
    """A change that nft is making."""

    change: Change
    running: Running
    known: _Known
    netlink: Netlink
    key: Hashable


class Tables:
    """Compares and loads; remembers the generation at which each namespace's table was right."""

    def __init__(self) -> None:
        self._known: dict[Hashable, _Known] = {}

    def forget(self, key: Hashable) -> None:
        self._known.pop(key, None)

    def keep_only(self, keys: frozenset[Hashable]) -> None:
        for key in self._known.keys() - keys:
            del self._known[key]

    def begin(
        self, key: Hashable, namespace: int, netlink: Netlink, wanted: Ruleset | None, where: str
    ) -> Pending | None:
        """Start what is needed to have ``wanted`` (None: no table) in the namespace; None: it is so already.

        ``netlink``: of NETLINK_NETFILTER, there. Raises HostError, OSError.
        """
        identity = netns.identity(namespace)
        generation = _generation(netlink)
        known = self._known.get(key)
        fresh = known is not None and known.namespace == identity and known.generation == generation
        if known is not None and fresh and known.ruleset == wanted:
            return None
        found = None
        if _exists(netlink):
            found = known.ruleset if known is not None and fresh else read(namespace)
        settled = _Known(identity, generation, wanted)
        if found == wanted:
            self._known[key] = settled
            return None
        verb, text, what = _transition(found, wanted)
        change = Change(verb=verb, object=f"nft table {TABLE}{what} in {where}")
        settled = settled._replace(generation=(generation + 1) & 0xFFFFFFFF)
        return Pending(change, Running(text, namespace), settled, netlink, key)

    def finish(self, pending: Pending) -> Change:
        error = pending.running.error()
        self.forget(pending.key)
        if error:
            return Change(verb=pending.change.verb, object=pending.change.object, error=error)
        # Further on than by one commit: somebody else was at it too. The next look will read the table.
        if _generation(pending.netlink) == pending.known.generation:
            self._known[pending.key] = pending.known
        return pending.change


def _transition(found: Ruleset | None, wanted: Ruleset | None) -> tuple[Literal["add", "replace", "delete"], str, str]:
    """Verb, transaction, and which part of the table it is about in words."""
    if wanted is None:
        return "delete", f"delete table {TABLE}\n", ""
    if found is None:
        return "add", wanted.text(), ""
    if found.body != wanted.body or found.elements.keys() != wanted.elements.keys():
        return "replace", f"delete table {TABLE}\n{wanted.text()}", ""
    text = ""
    names = []
    for name, members in sorted(wanted.elements.items()):
        more, less = members - found.elements[name], found.elements[name] - members
        text += (_add(name, more) if more else "") + (_delete(name, less) if less else "")
        if more or less:
            names.append(name)
    return "replace", text, f" set {' and '.join(names)}"


def delete_table(namespace: int, netlink: Netlink) -> bool:
    """Remove vxnet's table; whether there was one. Raises HostError."""
    if not _exists(netlink):
        return False
    run(f"delete table {TABLE}\n", namespace)
    return True
