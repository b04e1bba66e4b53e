"""The one node that writes an owner's rows: it numbers, batches and signs them."""

from __future__ import annotations

from collections import deque

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from vxnet.core.rows import Batch, BatchContent, LedgerKey, pack_content, to_be_signed
from vxnet.model import codec
from vxnet.model.errors import CallerError
from vxnet.model.row import Applied, Endpoint, Evidence, Leases, Row, Value, Version

BATCH_OCTETS = 1100
"""Of one batch, so that it fits into a datagram; a longer row travels alone."""
PLAIN_OCTETS = 3000
"""… before compression: rows shrink to a half or a third."""
ROW_OCTETS = 64 << 10
TOMBSTONES = 64
"""So many deleted rows are carried along before a floor takes their place."""
SUPERSEDED = 64
"""So many versions of rows that have newer ones does a floor leave alone: it may get somewhere before the newer ones,
and must not leave a gap until they come."""


def _too_long(id_: str, value: Value | Evidence, octets: int) -> CallerError:
    match value:
        case Endpoint(name=name, aliases=aliases):
            whose = f'container "{name}" with its {len(aliases)} aliases'
            cure = "give it fewer aliases, or shorter ones"
        case Leases():
            whose = "all the blocks of addresses that this host holds"
            cure = "have containers on fewer networks here: a block that nobody uses goes back after a minute"
        case Applied(versions=versions):
            whose = f"what this host answers to {len(versions)} others"
            cure = "wait until fewer containers start or drain at once"
        case _:
            whose, cure = f"{type(value).__name__.lower()} {id_}".rstrip(), "this is a bug: report it"
    return CallerError(
        f"the other hosts cannot be told of {whose}: that takes {octets} octets, and one row of the gossip holds"
        f" {ROW_OCTETS}",
        hint=cure,
    )


class Author:
    def __init__(self, owner: str, key: Ed25519PrivateKey, incarnation: int) -> None:
        """``incarnation`` must grow with every start of the daemon."""
        self._signing_key = key
        self.key = LedgerKey(owner, key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw))
        self.incarnation = incarnation
        self.seq = 0
        self._rows: dict[tuple[str, str], Row] = {}
        self._changed: dict[tuple[str, str], bytes | None] = {}
        self._tombstones: dict[tuple[str, str], int] = {}
        self._superseded: deque[tuple[int, tuple[str, str]]] = deque(maxlen=SUPERSEDED)
        """Numbers of the last versions that have newer ones, and whose they were."""
        self._floor_wanted = False
        self._is_complete = False

    @property
    def newest(self) -> Version:
        return Version(self.incarnation, self.seq)

    @property
    def tombstones(self) -> int:
        return len(self._tombstones)

    def put(self, kind: str, id_: str, value: Value | Evidence) -> bool:
        """Whether that is a change. Raises :class:`CallerError` on a row of more than 64 kB."""
        packed = codec.to_wire(value)
        if len(packed) > ROW_OCTETS:
            raise _too_long(id_, value, len(packed))
        return self._set((kind, id_), packed)

    def is_pending(self, kind: str, id_: str) -> bool:
        """Whether it was changed since the last :meth:`flush`."""
        return (kind, id_) in self._changed

    def delete(self, kind: str, id_: str) -> bool:
        name = (kind, id_)
        if self._changed.get(name, self._rows[name].value if name in self._rows else None) is None:
            return False
        return self._set(name, None)

    def _set(self, name: tuple[str, str], packed: bytes | None) -> bool:
        held = self._rows.get(name)
        if held is not None and held.value == packed:
            # Back to what everybody has: nothing to tell.
            return self._changed.pop(name, held.value) != packed
        if packed is None and held is None:
            # Made and gone within one batch.
            return self._changed.pop(name, None) is not None
        if name in self._changed and self._changed[name] == packed:
            return False
        self._changed[name] = packed
        return True

    def republished(self) -> None:
        """Everything there is has been put: rows of earlier lives are no more, as the next batch says."""
        self._is_complete = True
        self._floor_wanted = True

    def trim(self) -> None:
        """With the next batch the tombstones go: a floor says the same for all of them."""
        self._floor_wanted = bool(self._tombstones)

    def begin_anew(self, incarnation: int) -> None:
        """Somebody knows rows of mine that I have not written: an earlier life with a clock that ran ahead. All rows
        are written again with ``incarnation``."""
        self.incarnation, self.seq = incarnation, 0
        rows, self._rows = self._rows, {}
        self._tombstones.clear()
        self._superseded.clear()
        again: dict[tuple[str, str], bytes | None] = {
            name: row.value for name, row in rows.items() if row.value is not None
        }
        self._changed = {name: value for name, value in (again | self._changed).items() if value is not None}
        self._floor_wanted = True

    def flush(self) -> list[Batch]:
        """What changed since the last call, signed."""
        changed, self._changed = self._changed, {}
        batches: list[Batch] = []
        held: list[Row] = []
        size = 0
        # What goes or changes is more urgent than what is new, and so not in one batch with it.
        new = {name: None for name, value in changed.items() if value is not None and name not in self._rows}
        for name in [*(name for name in changed if name not in new), *new]:
            kind, id_ = name
            value = changed[name]
            if name in new and held and (held[-1].kind, held[-1].id) not in new:
                batches += self._sign_rows(held)
                held, size = [], 0
            self.seq += 1
            if name not in new:
                self._superseded.append((self._rows[name].seq, name))
            row = Row(kind, id_, self.seq, value)
            self._rows[kind, id_] = row
            if value is None:
                self._tombstones[kind, id_] = self.seq
            else:
                self._tombstones.pop((kind, id_), None)
            octets = len(kind) + len(id_) + len(value or b"") + 12
            if held and size + octets > PLAIN_OCTETS:
                batches += self._sign_rows(held)
                held, size = [], 0
            held.append(row)
            size += octets
        if held:
            batches += self._sign_rows(held)
        # Before everything is put again a floor would deny what still lives.
        if self._is_complete and (self._floor_wanted or len(self._tombstones) > TOMBSTONES):
            batches.append(self._make_floor())
        return batches

    def _make_floor(self) -> Batch:
        self._floor_wanted = False
        for name in self._tombstones:
            del self._rows[name]
        self._tombstones.clear()
        live = {row.seq for row in self._rows.values()} | {seq for seq, name in self._superseded if name in self._rows}
        return self._sign((), self.seq, tuple(sorted(live)))

    def _sign_rows(self, rows: list[Row]) -> list[Batch]:
        batch = self._sign(tuple(rows))
        if len(batch.content) <= BATCH_OCTETS or len(rows) == 1:
            return [batch]
        half = len(rows) // 2
        return self._sign_rows(rows[:half]) + self._sign_rows(rows[half:])

    def _sign(self, rows: tuple[Row, ...], floor: int = 0, live: tuple[int, ...] = ()) -> Batch:
        content = pack_content(BatchContent(self.key.owner, self.key.key, self.incarnation, rows, floor, live))
        return Batch(content, self._signing_key.sign(to_be_signed(content)))
