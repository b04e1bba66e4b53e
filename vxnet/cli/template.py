"""``--format TEMPLATE``: of Go's templates what people write for Docker's commands.

``{{.Name}}``, ``{{.Spec.Labels.team}}``, ``{{json .}}``, ``{{join .Networks ","}}``, ``{{range .Subnets}}…{{end}}``,
``{{if eq .State "running"}}…{{else}}…{{end}}``, and ``table`` before it for a heading. A record's fields go by their
names in JSON or as Go writes them (``.DataPathAddr``), a row's columns by their headings (``.ManagerStatus``).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple

import msgspec

from vxnet.cli import output
from vxnet.model.errors import CallerError

_ACTION: Final = re.compile(r"(\s*\{\{-\s|\{\{)(.*?)(\s-\}\}\s*|\}\})", re.DOTALL)
_WORD: Final = re.compile(r'\s*("(?:[^"\\]|\\.)*"|`[^`]*`|\||[^\s|"`]+)\s*')
_BLOCKS: Final = ("if", "range", "with")


class Row(NamedTuple):
    """One of a list: what the table shows of it, by heading, and all of it."""

    columns: Mapping[str, str]
    record: object


class _Block(NamedTuple):
    kind: str
    words: tuple[str, ...]
    """Empty: text."""
    body: tuple[_Block, ...] = ()
    otherwise: tuple[_Block, ...] = ()


class Template:
    """Raises :class:`CallerError` on one that is torn."""

    def __init__(self, text: str) -> None:
        self.is_table = text == "table" or text.startswith("table ")
        text = text.removeprefix("table ") if self.is_table else text
        parts = _parts(text)
        self._blocks, end = _read(parts, 0)
        if end < len(parts):
            raise _wrong("{{end}} or {{else}} without a beginning")

    def render(self, value: object) -> str:
        """Raises :class:`CallerError` if ``value`` has not what it asks for."""
        return _render(self._blocks, value, value)

    def heading(self, headers: Sequence[str]) -> list[str]:
        """Of a table: the headings of its columns; of what has none, its name."""
        known = {name: header for header in headers for name in _names(header)}
        found: list[str] = []
        for cell in _cells(self._blocks):
            fields = [word.rpartition(".")[2] for word in cell if word.startswith(".")]
            found.append(" ".join(known.get(_plain(field), field.upper()) for field in fields))
        return found


# Reading


def _parts(text: str) -> list[str | tuple[str, ...]]:
    """Texts, and the words of what stands in braces."""
    parts: list[str | tuple[str, ...]] = []
    at = 0
    for found in _ACTION.finditer(text):
        parts += [_literal(text[at : found.start()]), _words(found[2])]
        at = found.end()
    parts.append(_literal(text[at:]))
    if any(isinstance(part, str) and "{{" in part for part in parts):
        raise _wrong(f"a {{{{ has no }}}} behind it: {text!r}")
    return parts


def _literal(text: str) -> str:
    return text.replace(r"\t", "\t").replace(r"\n", "\n")


def _words(text: str) -> tuple[str, ...]:
    if text.strip().startswith("/*"):
        return ()
    words = tuple(_WORD.findall(text))
    if not words:
        raise _wrong("there is nothing between {{ and }}")
    return words


def _read(parts: Sequence[str | tuple[str, ...]], at: int) -> tuple[tuple[_Block, ...], int]:
    """The blocks from ``at`` to the ``end`` or ``else`` that belongs to them, and where that is."""
    blocks = []
    while at < len(parts):
        match parts[at]:
            case str() as text:
                blocks.append(_Block(text, ()))
            case ():
                pass
            case ("end" | "else", *_):
                return tuple(blocks), at
            case (kind, *words) if kind in _BLOCKS:
                block, at = _read_block(parts, at, kind, tuple(words))
                blocks.append(block)
            case tuple() as words:
                blocks.append(_Block("", words))
        at += 1
    return tuple(blocks), at


def _read_block(
    parts: Sequence[str | tuple[str, ...]], at: int, kind: str, words: tuple[str, ...]
) -> tuple[_Block, int]:
    body, at = _read(parts, at + 1)
    otherwise: tuple[_Block, ...] = ()
    if at < len(parts) and parts[at][0] == "else":
        if parts[at][1:]:  # else if …: a block of its own, which ends where this one does
            inner, at = _read_block(parts, at, parts[at][1], tuple(parts[at][2:]))
            return _Block(kind, words, body, (inner,)), at
        otherwise, at = _read(parts, at + 1)
    if at >= len(parts):
        raise _wrong(f"{{{{{kind} …}}}} has no {{{{end}}}}")
    return _Block(kind, words, body, otherwise), at


def _cells(blocks: Sequence[_Block]) -> list[list[str]]:
    """The words of a table's columns, which tabs part."""
    cells: list[list[str]] = [[]]
    for block in blocks:
        if block.words:
            cells[-1] += block.words
        else:
            cells += [[] for _ in range(block.kind.count("\t"))]
    return cells


# Filling in


def _render(blocks: Sequence[_Block], dot: object, root: object) -> str:
    return "".join(_one(block, dot, root) for block in blocks)


def _one(block: _Block, dot: object, root: object) -> str:
    if not block.words:
        return block.kind
    value = _pipeline(block.words, dot, root)
    match block.kind:
        case "":
            return _text(value)
        case "range":
            items = list(value.values()) if isinstance(value, dict) else value
            if items and isinstance(items, list | tuple):
                return "".join(_render(block.body, item, root) for item in items)
            return _render(block.otherwise, dot, root)
        case _:
            inner = value if block.kind == "with" else dot
            return _render(block.body, inner, root) if value else _render(block.otherwise, dot, root)


def _pipeline(words: Sequence[str], dot: object, root: object) -> Any:
    stages: list[list[str]] = [[]]
    for word in words:
        if word == "|":
            stages.append([])
        else:
            stages[-1].append(word)
    given: list[object] = []
    for stage in stages:
        if not stage:
            raise _wrong("there is nothing beside a |")
        first, *rest = stage
        arguments = [_operand(word, dot, root) for word in rest] + given
        if first in _FUNCTIONS:
            try:
                given = [_FUNCTIONS[first](*arguments)]
            except (TypeError, ValueError, LookupError, AttributeError):
                raise _wrong(f"{first} cannot be made of {' '.join(rest) or 'nothing'}") from None
        elif arguments:
            raise _wrong(f"there is no function {first}; there are {_listed(_FUNCTIONS)}")
        else:
            given = [_operand(first, dot, root)]
    return given[0]


def _operand(word: str, dot: object, root: object) -> object:
    if word[0] in '"`':
        return word[1:-1].replace('\\"', '"').replace(r"\t", "\t").replace(r"\n", "\n")
    if re.fullmatch(r"-?\d{1,9}", word):
        return int(word)
    if word in ("true", "false"):
        return word == "true"
    start, _, path = word.partition(".")
    if start not in ("", "$"):
        raise _wrong(f"there is no function {word}; there are {_listed(_FUNCTIONS)}")
    value = root if start else dot
    for name in filter(None, path.split(".")):
        value = _field(value, name)
    return output.printable(value) if isinstance(value, str) else value


def _field(value: object, name: str) -> object:
    wanted = _plain(name)
    match value:
        case Row(columns, record):
            for header, cell in columns.items():
                if wanted in _names(header):
                    return cell
            return _field(record, name)
        case msgspec.Struct():
            for field in value.__struct_fields__:
                if _plain(field) == wanted:
                    return getattr(value, field)
            # A view has its record in it: `{{.Labels}}` of a node is the node's.
            for field in value.__struct_fields__:
                if isinstance(inner := getattr(value, field), msgspec.Struct) and wanted in map(
                    _plain, inner.__struct_fields__
                ):
                    return _field(inner, name)
            raise _wrong(f"there is no .{name}; there are {_listed(value.__struct_fields__)}")
        case dict():
            return value.get(name, "<no value>")
    raise _wrong(f"there is no .{name} in {_text(value)}")


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower().replace("%", "perc"))


def _names(header: str) -> tuple[str, ...]:
    """Docker's for a column: ``CONTAINER ID`` is ``.ID``, ``MEM USAGE / LIMIT`` is ``.MemUsage``."""
    short = header.partition(" / ")[0]
    return _plain(short), "id" if header.endswith(" ID") else _plain(header)


def _text(value: object) -> str:
    match value:
        case str():
            return value
        case None:
            return "<nil>"
        case bool():
            return str(value).lower()
        case Row() | msgspec.Struct() | dict() | list() | tuple():
            return _json(value)
        case _:
            return str(value)  # a number, an address


def _json(value: object) -> str:
    record = value.record if isinstance(value, Row) else value
    return msgspec.json.encode(output.complete(record)).decode()


def _join(items: Sequence[object], between: str) -> str:
    return between.join(output.printable(_text(item)) for item in items)


def _index(value: Any, *keys: Any) -> Any:
    for key in keys:
        value = value.get(key, "<no value>") if isinstance(value, dict) else value[key]
    return output.printable(value) if isinstance(value, str) else value


_FUNCTIONS: Final[Mapping[str, Callable[..., object]]] = {
    "json": _json,
    "join": _join,
    "split": lambda text, between: text.split(between),
    "upper": lambda text: text.upper(),
    "lower": lambda text: text.lower(),
    "title": lambda text: text.title(),
    "truncate": lambda text, length: text[:length],
    "len": len,
    "index": _index,
    "println": lambda value: _text(value) + "\n",
    "eq": lambda one, *others: any(_text(one) == _text(other) for other in others),
    "ne": lambda one, other: _text(one) != _text(other),
    "not": lambda value: not value,
}


def _listed(names: Any) -> str:
    *most, last = names
    return f"{', '.join(most)} and {last}" if most else str(last)


def _wrong(what: str) -> CallerError:
    return CallerError(f"--format: {what}")
