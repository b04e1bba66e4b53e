"""nftables: one own table per namespace, ``table inet vxnet``, compared with the kernel and replaced as a whole.

The grammar is nft's text, spoken through ``nft -f -``; rule sets are written in the very form in which ``nft list``
prints them, so that what is there can be compared with what shall be. Listing takes a process (4 ms), so it happens
only when the namespace's rule set generation (a counter that every commit moves) is not the one of vxnet's own last
commit. Where only elements change they are packed and sent without nft (:mod:`vxnet.host.elements`), a tenth of a
millisecond instead of 16; so is a table with the rules of one that nft has loaded before (:mod:`vxnet.host.stencil`).
"""

from __future__ import annotations

import errno
import re
import struct
import subprocess
from collections.abc import Callable, Hashable, Mapping
from typing import Literal, NamedTuple, TypeVar

from vxnet.host import elements, netns, nf_tables, stencil
from vxnet.host.elements import Elements, Shape
from vxnet.host.netlink import Failure, Netlink, attribute, attributes, message, split
from vxnet.model.errors import HostError
from vxnet.model.host import NFT_TABLE, Change

T = TypeVar("T")

NFTA_TABLE_NAME = 1
NFTA_GEN_ID = 1

TABLE = f"inet {NFT_TABLE}"
TIMEOUT_S = 10.0
STENCILS_MAX = 16
"""Containers differ in their rules by little: whether they have names, and how many backends there may be."""


class Ruleset(NamedTuple):
    """What the table holds: chains and set declarations as ``nft list table`` prints them, elements apart."""

    body: str
    """Lines with their indentation, without the braces of the table. A set is declared without elements."""
    elements: Mapping[str, Elements]
    """Of each set and map."""
    shapes: Mapping[str, Shape] = {}
    """Of those sets whose elements are more than an address, or one with a number."""

    def text(self) -> str:
        filled = [(name, self.elements[name]) for name in sorted(self.elements) if self.elements[name]]
        fill = "".join(_add(name, members, self.shapes.get(name)) for name, members in filled)
        return f"table {TABLE} {{\n{self.body}}}\n{fill}"


def _add(name: str, members: Elements, shape: Shape | None) -> str:
    written = elements.as_text if shape is None else shape.as_text
    listed = ", ".join(written(key, data) for key, data in members.items())
    return f"add element {TABLE} {name} {{ {listed} }}\n"


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
            return _LATE
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


def read(namespace: int, netlink: Netlink) -> Ruleset | None:
    """vxnet's table as it is, in the namespace of both; None: there is none. Raises HostError without nft, OSError."""

    said = show(namespace, "-s", "-t", "list", "table", *TABLE.split())
    if said is None:
        return None
    body = said.split("\n", 1)[1].rsplit("}", 1)[0]
    body = _NUMBER.sub(lambda found: f"l4proto {_PROTOCOLS[found[1]]}", body)
    return Ruleset(body, {name: elements.dump(netlink, name) for name in _SET.findall(body)})


def show(namespace: int, *words: str) -> str | None:
    """What ``nft`` with these arguments prints, in the namespace of the descriptor; None: it refuses. Raises
    HostError."""

    def start() -> subprocess.CompletedProcess[str]:
        return subprocess.run(["nft", *words], capture_output=True, text=True, errors="replace", timeout=TIMEOUT_S)

    try:
        done = _start(start, namespace)
    except subprocess.TimeoutExpired:
        raise HostError(_LATE) from None
    return done.stdout if done.returncode == 0 else None


_LATE = f"nft did not answer within {TIMEOUT_S:.0f} s"
_PROTOCOLS = {"6": "tcp", "17": "udp"}
_NUMBER = re.compile(r"l4proto (6|17)\b")
"""As nft prints them where there is no /etc/protocols: Debian's netbase is not everywhere."""
_SET = re.compile(r"^\t(?:set|map) (\S+) \{$", re.MULTILINE)


def generation_now(netlink: Netlink) -> int:
    answer = netlink.ask([message(nf_tables.GETGEN, 0, nf_tables.head(nf_tables.UNSPEC))])[0]
    if answer is None:
        raise HostError("the kernel has no nftables", hint="it needs CONFIG_NF_TABLES and CONFIG_NF_TABLES_INET")
    return int(struct.unpack("!I", attributes(answer, 4)[NFTA_GEN_ID])[0])


def generation_of(notice: bytes) -> int:
    """Which generation a commit has made, out of the last notice of it; -1: this is not the last."""
    for kind, _flags, _sequence, body in split(notice):
        if kind == nf_tables.NEWGEN:
            return int(struct.unpack("!I", attributes(body, 4)[NFTA_GEN_ID])[0])
    return -1


def exists(netlink: Netlink, table: str = NFT_TABLE) -> bool:
    """``table`` of family inet, in the namespace of ``netlink`` (of NETLINK_NETFILTER)."""
    body = nf_tables.head(nf_tables.INET) + attribute(NFTA_TABLE_NAME, table.encode() + b"\0")
    return netlink.ask([message(nf_tables.GETTABLE, 0, body)])[0] is not None


class _Known(NamedTuple):
    namespace: tuple[int, int]
    generation: int
    ruleset: Ruleset | None


class Done:
    """A change that needed no process."""

    def __init__(self, failure: Failure | None) -> None:
        self._error = "" if failure is None else failure[1]

    def error(self) -> str:
        return self._error


class Pending(NamedTuple):
    """A change that is being made."""

    change: Change
    running: Running | Done
    known: _Known
    netlink: Netlink
    key: Hashable


class Tables:
    """Compares and loads; remembers the generation at which each namespace's table was right."""

    def __init__(self) -> None:
        self._known: dict[Hashable, _Known] = {}
        self._steps: dict[tuple[int, int], tuple[Elements, Elements, list[bytes]]] = {}
        """Differences by what they are between: a hundred sandboxes on one network need the same."""
        self._stencils: dict[str, stencil.Stencil | None] = {}
        """By the body of the rule set; None: there can be none."""

    def is_last(self, key: Hashable, wanted: Ruleset | None) -> bool:
        """Whether this is what was last seen or made there, as far as that can be told without comparing elements."""
        known = self._known.get(key)
        if known is None:
            return False
        there = known.ruleset
        if there is wanted or there is None or wanted is None:
            return there is wanted
        return _same_shape(there, wanted) and all(one is wanted.elements[name] for name, one in there.elements.items())

    def generation(self, key: Hashable) -> int:
        """Of the last commit or look there; -1: not known."""
        known = self._known.get(key)
        return -1 if known is None else known.generation

    def passed(self, key: Hashable, generation: int) -> None:
        """One more commit there was vxnet's own, and none of this table's. ``generation``: before it."""
        known = self._known.get(key)
        if known is not None and known.generation == generation:
            self._known[key] = known._replace(generation=(generation + 1) & 0xFFFFFFFF)

    def forget(self, key: Hashable) -> None:
        self._known.pop(key, None)

    def keep_only(self, keys: frozenset[Hashable]) -> None:
        """At the end of a reconcile: the keys that still are."""
        self._steps.clear()
        for key in self._known.keys() - keys:
            del self._known[key]

    def begin(
        self, key: Hashable, namespace: int, netlink: Netlink, wanted: Ruleset | None, where: str
    ) -> Pending | None:
        """Start what is needed to have ``wanted`` (None: no table) in the namespace; None: it is so already.

        ``netlink``: of NETLINK_NETFILTER, there. Raises HostError, OSError.
        """
        identity = netns.identity(namespace)
        generation = generation_now(netlink)
        known = self._known.get(key)
        if known is not None and known.namespace == identity and known.generation == generation:
            found = known.ruleset
        else:
            found = read(namespace, netlink) if exists(netlink) else None
            if found is not None and wanted is not None and found.body == wanted.body:
                self._learn(wanted.body, netlink, generation)
        settled = _Known(identity, generation, wanted)
        committed = settled._replace(generation=(generation + 1) & 0xFFFFFFFF)
        if found is None or wanted is None or not _same_shape(found, wanted):
            if found == wanted:
                self._known[key] = settled
                return None
            verb, text = _transition(found, wanted)
            change = Change(verb=verb, object=f"nft table {TABLE} in {where}")
            drawn = self._drawn(found, wanted)
            if drawn is not None:
                failure = elements.commit(netlink, drawn, generation)
                if failure is None or failure[0] == errno.ERESTART:
                    return Pending(change, Done(failure), committed, netlink, key)
                if wanted is not None:
                    self._stencils[wanted.body] = None  # a kernel that does not take what it told: nft knows its ways
            return Pending(change, Running(text, namespace), committed, netlink, key)
        messages, names = self._steps_between(found.elements, wanted.elements)
        if not messages:
            self._known[key] = settled
            return None
        change = Change(verb="replace", object=f"nft table {TABLE} set {' and '.join(names)} in {where}")
        return Pending(change, Done(elements.commit(netlink, messages, generation)), committed, netlink, key)

    def _drawn(self, found: Ruleset | None, wanted: Ruleset | None) -> list[bytes] | None:
        """The messages that make ``wanted`` in the place of ``found``; None: nft has not loaded these rules yet."""
        messages = [] if found is None else [stencil.DELETE]
        if wanted is None:
            return messages
        made = self._stencils.get(wanted.body)
        if made is None:
            return None
        messages += made
        for name, members in wanted.elements.items():
            messages += elements.difference(name, members, {})
        return messages

    def _learn(self, body: str, netlink: Netlink, generation: int) -> None:
        """The rules are in the namespace of ``netlink``, if its rule set is of this generation still."""
        if body in self._stencils:
            return
        taken = stencil.take(netlink)
        if generation_now(netlink) == generation:
            self._stencils[body] = taken
            for old in list(self._stencils)[:-STENCILS_MAX]:
                del self._stencils[old]

    def _steps_between(
        self, found: Mapping[str, Elements], wanted: Mapping[str, Elements]
    ) -> tuple[list[bytes], list[str]]:
        """Messages, and the names of the sets that they are about."""
        messages: list[bytes] = []
        names = []
        for name, one in wanted.items():
            there = found[name]
            if there is one:
                continue
            between = id(there), id(one)
            if between not in self._steps:
                # With the records themselves, so that what has their ids later is not taken for them.
                self._steps[between] = there, one, elements.difference(name, one, there)
            steps = self._steps[between][2]
            messages += steps
            if steps:
                names.append(name)
        return messages, names

    def finish(self, pending: Pending) -> Change:
        error = pending.running.error()
        self.forget(pending.key)
        if error:
            return Change(verb=pending.change.verb, object=pending.change.object, error=error)
        # Further on than by one commit: somebody else was at it too. The next look will read the table.
        if generation_now(pending.netlink) == pending.known.generation:
            self._known[pending.key] = pending.known
            if pending.known.ruleset is not None:
                self._learn(pending.known.ruleset.body, pending.netlink, pending.known.generation)
        return pending.change


def _same_shape(found: Ruleset, wanted: Ruleset) -> bool:
    return found.body == wanted.body and found.elements.keys() == wanted.elements.keys()


def _transition(found: Ruleset | None, wanted: Ruleset | None) -> tuple[Literal["add", "replace", "delete"], str]:
    if wanted is None:
        return "delete", f"delete table {TABLE}\n"
    if found is None:
        return "add", wanted.text()
    return "replace", f"delete table {TABLE}\n{wanted.text()}"


def delete_table(namespace: int, netlink: Netlink, table: str = NFT_TABLE) -> bool:
    """Remove ``table`` of family inet; whether there was one. Raises HostError."""
    if not exists(netlink, table):
        return False
    run(f"delete table inet {table}\n", namespace)
    return True
