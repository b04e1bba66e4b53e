"""What this node's table holds of whom, and one number a network by which people compare the tables of two hosts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from vxnet.core.table import Table
from vxnet.model import codec
from vxnet.model.row import Endpoint, Gateway, Version

NO_NETWORK = ""
"""Of rows that belong to none: certificates, leases, acknowledgements, and kinds that this version does not know."""
_ON_NETWORKS: Mapping[str, type[Endpoint] | type[Gateway]] = {"endpoint": Endpoint, "gateway": Gateway}


class Holding(NamedTuple):
    rows: int = 0
    newest: Version = Version(0, 0)
    digest: int = 0
    """64 bits: XOR over the rows' hashes, each over owner, key, version and value."""


def holdings(table: Table) -> dict[tuple[str, str], Holding]:
    """By (owner, network's id), as received: what counts of it is another question. Deleted rows are not in it, since
    their traces are forgotten at different times."""
    found: dict[tuple[str, str], Holding] = {}
    for ledger in table.ledgers.values():
        for (kind, _), entry in ledger.rows.items():
            if entry.row.value is None:
                continue
            place = (ledger.key.owner, _network(kind, entry.row.value))
            held = found.get(place, Holding())
            found[place] = Holding(held.rows + 1, max(held.newest, entry.version), held.digest ^ entry.hash)
    return found


def by_network(held: Mapping[tuple[str, str], Holding]) -> dict[str, Holding]:
    found: dict[str, Holding] = {}
    for (_, network), one in held.items():
        before = found.get(network, Holding())
        found[network] = Holding(before.rows + one.rows, max(before.newest, one.newest), before.digest ^ one.digest)
    return found


def _network(kind: str, value: bytes) -> str:
    expected = _ON_NETWORKS.get(kind)
    if expected is None:
        return NO_NETWORK
    try:
        return codec.from_wire(value, expected).network
    except (ValueError, RecursionError):
        return NO_NETWORK
