"""What of this host's packet filters can drop a packet: nftables, and iptables of the older kind."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from vxnet.model.host import NFT_TABLE

TIMEOUT_S = 10.0
_LEGACY = Path("/proc/net/ip_tables_names")
"""Lists the tables that iptables' own kernel part holds; iptables-nft's are nftables'."""


class Chain(NamedTuple):
    """One that the kernel calls by itself, and that can drop something."""

    hook: str
    """``input``, ``forward``, ``output``."""
    name: str
    """As a person would look for it: ``table ip filter chain INPUT``."""
    policy: str
    """``drop`` or ``accept``."""
    drops: int
    """Rules in it, and in the chains that it calls, that drop or reject."""

    def __str__(self) -> str:
        if self.policy == "drop":
            return f"{self.name} (policy drop)"
        return f"{self.name} ({self.drops} {'rule that drops' if self.drops == 1 else 'rules that drop'})"


def dropping() -> list[Chain]:
    """Of everybody but vxnet, in the calling thread's namespace; none where there is no nft."""
    return [*_nftables(), *_legacy()]


def _nftables() -> list[Chain]:
    try:
        done = subprocess.run(
            ["nft", "-j", "-t", "list", "ruleset"], capture_output=True, text=True, timeout=TIMEOUT_S, check=False
        )
        listed = json.loads(done.stdout)["nftables"] if done.returncode == 0 else []
    except (OSError, subprocess.TimeoutExpired, ValueError, KeyError):
        return []
    return parse(listed)


def parse(listed: Iterable[Mapping[str, Any]]) -> list[Chain]:
    """Of what ``nft -j list ruleset`` says."""
    chains = [entry["chain"] for entry in listed if "chain" in entry]
    rules: dict[tuple[str, str, str], list[Any]] = {}
    for entry in listed:
        if "rule" in entry:
            rule = entry["rule"]
            # What nft has no JSON for (iptables' own matches, by its version) is a mere text there.
            known = [statement for statement in rule["expr"] if isinstance(statement, dict)]
            rules.setdefault((rule["family"], rule["table"], rule["chain"]), []).append(known)
    found = []
    for chain in chains:
        if "hook" not in chain or (chain["family"], chain["table"]) == ("inet", NFT_TABLE):
            continue
        within = _within((chain["family"], chain["table"], chain["name"]), rules)
        drops = sum(_drops(rule) for rule in within)
        policy = chain.get("policy", "accept")
        if chain.get("type") == "filter" and (drops or policy == "drop"):
            name = f"table {chain['family']} {chain['table']} chain {chain['name']}"
            found.append(Chain(chain["hook"], name, policy, drops))
    return found


def _within(start: tuple[str, str, str], rules: Mapping[tuple[str, str, str], list[Any]]) -> list[Any]:
    """The rules of a chain and of all that it calls."""
    seen = {start}
    waiting = [start]
    found: list[Any] = []
    while waiting:
        family, table, _ = here = waiting.pop()
        for rule in rules.get(here, ()):
            found.append(rule)
            for statement in rule:
                for verb in ("jump", "goto"):
                    target = (family, table, statement[verb]["target"]) if statement.get(verb) else None
                    if target is not None and target not in seen:
                        seen.add(target)
                        waiting.append(target)
    return found


def _drops(rule: list[Any]) -> bool:
    return any("drop" in statement or "reject" in statement for statement in rule)


def _legacy() -> list[Chain]:
    try:
        tables = _LEGACY.read_text().split()
    except OSError:
        return []
    program = shutil.which("iptables-legacy")
    if "filter" not in tables or program is None:
        return []
    try:
        done = subprocess.run([program, "-S"], capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return parse_legacy(done.stdout)


def parse_legacy(rules: str) -> list[Chain]:
    """Of what ``iptables -S`` says; rules of chains that are called count for all who may call them."""
    lines = [line.split() for line in rules.splitlines()]
    called = sum(line[0] == "-A" and line[-1] in ("DROP", "REJECT") for line in lines if len(line) > 2)
    found = []
    for name in ("INPUT", "FORWARD", "OUTPUT"):
        policy = next((line[2] for line in lines if line[:2] == ["-P", name]), "ACCEPT")
        own = [line for line in lines if line[:2] == ["-A", name]]
        if policy == "DROP" or (called and own):
            found.append(Chain(name.lower(), f"iptables-legacy filter {name}", policy.lower(), called))
    return found
