"""What people and scripts get to read: Docker's tables, short ids and durations; JSON on request."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click
import msgspec

from vxnet.cli.group import FAILED, FAILURES, report
from vxnet.model.published import PublishedPort

if TYPE_CHECKING:
    from vxnet.cli.options import Form
    from vxnet.cli.template import Template

R = TypeVar("R")
SHORT_ID: Final = 12
"""Digits of an id that people see."""
_COLUMN_MIN: Final = 10
_COLUMN_GAP: Final = 3
"""Go's tabwriter as Docker sets it: a column is at least 10 wide, with 3 blanks behind its longest cell."""

now: Callable[[], float] = time.time
"""Seconds since 1970; tests put another clock here."""


def table(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print ``rows`` below ``headers``, the last column unpadded."""
    lines = [[printable(cell) for cell in row] for row in (headers, *rows)]
    widths = [max(_COLUMN_MIN, *(len(line[i]) + _COLUMN_GAP for line in lines)) for i in range(len(headers) - 1)]
    for line in lines:
        cells = [cell.ljust(width) for cell, width in zip(line, widths, strict=False)]
        click.echo("".join([*cells, line[-1]]).rstrip())


def fields(pairs: Iterable[tuple[str, object]]) -> None:
    """Print ``name: value`` lines."""
    for name, value in pairs:
        click.echo(f"{name}: {printable(str(value))}".rstrip())


def json_lines(records: Iterable[object]) -> None:
    """One JSON document a line, as Docker's ``ls --format json``."""
    for record in records:
        click.echo(msgspec.json.encode(complete(record)))


def json_array(records: Iterable[object]) -> None:
    """One JSON array, indented, as Docker's ``inspect``."""
    click.echo(msgspec.json.format(msgspec.json.encode([complete(record) for record in records]), indent=4))


def listing(
    records: Iterable[R],
    form: Form,
    headers: Sequence[str],
    row: Callable[[R], Sequence[str]],
    *,
    id: Callable[[R], str] | None = None,
    quiet: bool = False,
) -> None:
    """What everything that lists prints; ``id``: what is left of a record with ``quiet``, and is a template's .ID."""
    if quiet:
        assert id is not None
        for record in records:
            click.echo(id(record))
    elif form == "json":
        json_lines(records)
    elif form == "table":
        table(headers, map(row, records))
    else:
        _fill(records, form, headers, row, id)


def _fill(
    records: Iterable[R],
    form: Template,
    headers: Sequence[str],
    row: Callable[[R], Sequence[str]],
    id: Callable[[R], str] | None,
) -> None:
    from vxnet.cli.template import Row

    lines = []
    for record in records:
        columns = dict(zip(headers, row(record), strict=True))
        if id is not None:
            columns |= {header: id(record) for header in headers if header == "ID" or header.endswith(" ID")}
        lines.append(form.render(Row(columns, record)))
    if form.is_table:
        heading = form.heading(headers)
        table(heading, ((line.split("\t") + [""] * len(heading))[: len(heading)] for line in lines))
    else:
        for line in lines:
            click.echo(line)


def one(record: object, form: Form) -> None:
    """A record that is no list's, as JSON or by a template."""
    if isinstance(form, str):
        json_lines([record])
    else:
        click.echo(form.render(record))


def inspect(refs: Iterable[str], look: Callable[[str], object], form: Form = "json") -> None:
    """Print what ``look`` finds for each of ``refs``: in one array, or each by a template; with status 1 at the end if
    it missed any.
    """
    found, failed = [], False
    for ref in refs:
        try:
            found.append(look(ref))
        except FAILURES as error:
            report(error)
            failed = True
    if isinstance(form, str):
        json_array(found)
    else:
        for record in found:
            click.echo(form.render(record))
    if failed:
        raise click.exceptions.Exit(FAILED)


def complete(record: object) -> Any:
    """``record`` in dicts and lists with every field in it, so that a script's key is there whatever its value.

    (The codec leaves defaults out: right for the wire and the store.)
    """
    match record:
        case msgspec.Struct():
            return {name: complete(getattr(record, name)) for name in record.__struct_fields__}
        case dict():
            return {str(key): complete(value) for key, value in record.items()}
        case list() | tuple():
            return [complete(item) for item in record]
        case None | bool() | int() | float() | str():
            return record
        case _:
            return str(record)  # an address


def short(id: str, *, whole: bool = False) -> str:
    return id if whole else id[:SHORT_ID]


def printable(text: str) -> str:
    """``text`` without anything that could move a terminal's cursor."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


def ellipsis(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: width - 1]}…"


def duration(seconds: float) -> str:
    """Docker's words: ``About a minute``, ``3 hours`` (docker/go-units, ``HumanDuration``)."""
    whole = int(seconds)
    if whole < 1:
        return "Less than a second"
    if whole == 1:
        return "1 second"
    if whole < 60:
        return f"{whole} seconds"
    minutes = whole // 60
    if minutes == 1:
        return "About a minute"
    if minutes < 60:
        return f"{minutes} minutes"
    hours = int(seconds / 3600 + 0.5)
    if hours == 1:
        return "About an hour"
    if hours < 48:
        return f"{hours} hours"
    days = hours // 24
    if days < 14:
        return f"{days} days"
    if days < 60:
        return f"{days // 7} weeks"
    if days < 730:
        return f"{days // 30} months"
    return f"{days // 365} years"


def since(moment: float | None) -> str:
    """How long ago ``moment`` (seconds since 1970) was; a clock that went back counts as now."""
    return "" if moment is None else duration(max(0.0, now() - moment))


# Published ports


def ports(published: Iterable[PublishedPort]) -> str:
    """As ``PORTS`` has it: ``*:80->8080/tcp, 192.168.56.11:53->53/udp``; neighbours of one kind as a range."""
    runs: list[list[PublishedPort]] = []
    for port in sorted(published, key=lambda one: (one.protocol, _where(one), one.published, one.target)):
        if runs and _follows(runs[-1][-1], port):
            runs[-1].append(port)
        else:
            runs.append([port])
    return ", ".join(_run(run) for run in runs)


def _where(port: PublishedPort) -> str:
    if port.interface:
        return port.interface
    return ",".join(f"[{one}]" if one.version == 6 else str(one) for one in port.addresses) or "*"


def _follows(one: PublishedPort, other: PublishedPort) -> bool:
    return bool(one.published) and (_where(one), one.protocol, one.published + 1, one.target + 1) == (
        _where(other),
        other.protocol,
        other.published,
        other.target,
    )


def _run(run: Sequence[PublishedPort]) -> str:
    first, last = run[0], run[-1]

    def span(low: int, high: int) -> str:
        return str(low) if low == high else f"{low}-{high}"

    published = f"{_where(first)}:{span(first.published, last.published)}->" if first.published else ""
    return f"{published}{span(first.target, last.target)}/{first.protocol}"
