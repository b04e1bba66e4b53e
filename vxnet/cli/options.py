"""Options that several commands take, and how their values are read."""

from __future__ import annotations

import ipaddress
import math
import re
import signal
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias, TypeVar

import click
from click.shell_completion import CompletionItem

from vxnet.cli import output
from vxnet.cluster.client import Client
from vxnet.model.address import IPAddress, IPNetwork
from vxnet.model.container import RestartPolicy
from vxnet.model.errors import CallerError, ConflictError, UnsupportedError

if TYPE_CHECKING:
    from vxnet.cli.template import Template

F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")
Format = Literal["table", "json"]
Form: TypeAlias = "Format | Template"
LONGEST_S: Final = 100 * 365.25 * 86400
"""No wait is longer: Python's and the kernel's clocks end at 292 years."""


def address(text: str) -> IPAddress:
    """An option's type: an IPv4 or IPv6 address."""
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        raise click.BadParameter(f"expected an address such as 10.0.16.5, found {text!r}") from None


def octets(text: str) -> int:
    """An option's type: a size in Docker's notation, ``64m``, 1024 octets to a k."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([bkmgt]?)(i?b)?", text.strip().lower())
    size = float(found[1]) * 1024 ** "bkmgt".index(found[2] or "b") if found else math.inf
    if math.isinf(size):
        raise click.BadParameter(f"expected a size such as 64m or 2g, found {text!r}")
    return int(size)


def amount(text: str) -> float:
    """An option's type: a number, with or without a fraction."""
    try:
        found = float(text)
    except ValueError:
        found = math.nan
    if not math.isfinite(found):
        raise click.BadParameter(f"expected a number such as 1.5, found {text!r}")
    return found


def ratio(text: str) -> float:
    """An option's type: from 0 to 1."""
    found = amount(text)
    if not 0 <= found <= 1:
        raise click.BadParameter(f"expected a number from 0 to 1, found {text!r}")
    return found


def seconds(text: str) -> float:
    """An option's type: a duration in Docker's notation, ``500ms``, ``1m30s``; a bare number means seconds."""
    found = _seconds(text)
    if found > LONGEST_S:
        raise click.BadParameter(f"{text!r} is longer than 100 years")
    return found


def _seconds(text: str) -> float:
    if re.fullmatch(r"\d+(\.\d+)?", text):
        return amount(text)
    units = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
    parts = re.findall(r"(\d+(?:\.\d+)?)(ns|us|µs|ms|s|m|h)", text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise click.BadParameter(f"expected a duration such as 10s or 1m30s, found {text!r}")
    return sum(amount(number) * units[unit] for number, unit in parts)


def restart_policy(text: str) -> RestartPolicy:
    """An option's type: ``always``, ``on-failure:3`` …"""
    if found := re.fullmatch(r"on-failure(?::(\d{1,9}))?", text):
        return RestartPolicy(name="on-failure", retries=int(found[1] or 0))
    match text:
        case "" | "no":
            return RestartPolicy()
        case "always" | "unless-stopped":
            return RestartPolicy(name=text)
    raise click.BadParameter(f"expected no, on-failure[:TIMES], unless-stopped or always, found {text!r}")


def signal_name(text: str) -> int:
    """An option's type: ``TERM``, ``SIGTERM``, ``15``; empty: 0."""
    if text.isascii() and text.isdecimal() and 1 <= int(text) < signal.NSIG:
        return int(text)
    name = text.upper()
    try:
        return signal.Signals[name if name.startswith("SIG") else f"SIG{name}"].value if text else 0
    except KeyError:
        raise click.BadParameter(f"expected a signal such as TERM or 15, found {text!r}") from None


def tail(text: str) -> int:
    """An option's type: a number of lines, or ``all`` (-1)."""
    if text == "all":
        return -1
    if not text.isascii() or not text.isdecimal():
        raise click.BadParameter(f"expected a number of lines or all, found {text!r}")
    return int(text)


def moment(text: str) -> str:
    """An option's type: a time as logs have it, from RFC 3339 (here, if it names no zone), seconds since 1970, or how
    long ago (``90s``, ``1h30m``).
    """
    if not text:
        return ""
    ago = re.fullmatch(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+(?:\.\d+)?)s)?", text)
    try:
        if ago:
            days, hours, minutes, seconds = (float(part or 0) for part in ago.groups())
            when = output.now() - (((days * 24 + hours) * 60 + minutes) * 60 + seconds)
            found = datetime.fromtimestamp(when, UTC)
        elif re.fullmatch(r"\d+(\.\d+)?", text):
            found = datetime.fromtimestamp(float(text), UTC)
        else:
            found = datetime.fromisoformat(text).astimezone(UTC)
    except (ValueError, OverflowError, OSError):
        raise click.BadParameter(f"expected a time such as 2026-01-31T12:00:00Z or 10m, found {text!r}") from None
    return found.strftime("%Y-%m-%dT%H:%M:%S.%f") + "000Z"


def node_of(client: Client, ref: str) -> str:
    """``ref``, and instead of ``self`` this node's id. Raises :class:`ConflictError` where there is no cluster."""
    if ref != "self":
        return ref
    own = client.info().node
    if not own:
        raise ConflictError("this host is in no cluster", hint="`vxnet init` makes one, `vxnet join` joins one")
    return own


def prefix(text: str) -> IPNetwork:
    """An option's type: an IPv4 or IPv6 prefix without host bits."""
    try:
        found = ipaddress.ip_network(text, strict=False)
    except ValueError:
        raise click.BadParameter(f"expected a prefix such as 10.0.16.0/20, found {text!r}") from None
    try:
        return ipaddress.ip_network(text)
    except ValueError:
        raise click.BadParameter(f"expected a prefix without host bits, such as {found}, found {text!r}") from None


class _Form(click.ParamType):  # type: ignore[type-arg]
    """``table``, ``json`` or one of Docker's templates."""

    name = "form"

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:
        return "table|json|TEMPLATE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Form:
        if value in ("table", "json"):
            return value  # type: ignore[no-any-return]
        if "{{" not in value:
            self.fail(f"{value!r} is none of table, json and a template such as '{{{{.Name}}}}'")
        from vxnet.cli.template import Template

        try:
            return Template(value)
        except CallerError as error:
            self.fail(error.message.removeprefix("--format: "))

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        return [CompletionItem(word) for word in ("table", "json") if word.startswith(incomplete)]


FORM: Final = _Form()


def form_option(*names: str, help: str = "json: a document a line.") -> Callable[[F], F]:
    """``--format`` of what shows records one by one."""
    return click.option(*(names or ("--format",)), "form", type=FORM, default="table", help=help)


def list_options(command: F) -> F:
    """``--format``, ``-q`` and ``--no-trunc`` of everything that lists."""
    for option in (
        click.option("--no-trunc", is_flag=True, help="Show ids and commands in full."),
        click.option("-q", "--quiet", is_flag=True, help="Only show ids."),
        form_option(),
    ):
        command = option(command)
    return command


def session_options(command: F) -> F:
    """``--sig-proxy`` and ``--detach-keys`` of what attaches to a container's first command."""
    for option in (
        click.option(
            "--detach-keys", default="ctrl-p,ctrl-q", show_default=True, metavar="KEYS", help="Leave, and let it run."
        ),
        click.option("--sig-proxy/--no-sig-proxy", default=True, help="Pass signals on to the command; the default."),
    ):
        command = option(command)
    return command


def filter_option(*declared: str, short: bool = True) -> Callable[[F], F]:
    """``-f KEY=VALUE``, repeatable; see :func:`matches`. Not ``short`` where ``-f`` is Docker's ``--force``.

    ``declared``: a key, with the values that it may have if they are few: ``role=worker|manager``; of ``#``, numbers.
    """
    possible = {key: values.split("|") for key, _, values in (one.partition("=") for one in declared)}
    keys = list(possible)

    def parse(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for value in values:
            key, sign, wanted = value.partition("=")
            if not sign or key not in keys:
                raise click.BadParameter(f"takes KEY=VALUE with KEY one of {', '.join(keys)}; found {value!r}")
            if possible[key] == ["#"]:
                if not (wanted.isascii() and wanted.isdecimal()):
                    raise click.BadParameter(f"{key} is a number; found {wanted!r}")
            elif possible[key] != [""] and wanted.lower() not in possible[key]:
                raise click.BadParameter(f"{key} is one of {', '.join(possible[key])}; found {wanted!r}")
            found.setdefault(key, []).append(wanted)
        return found

    text = f"Only those with KEY=VALUE; keys: {', '.join(keys)}."
    names = ("-f", "--filter", "filters") if short else ("--filter", "filters")
    return click.option(*names, multiple=True, callback=parse, metavar="KEY=VALUE", help=text)


def matches(filters: dict[str, list[str]], tests: dict[str, Callable[[str], bool]]) -> bool:
    """Docker's rule: every key must hold, by any one of its values."""
    return all(any(tests[key](value) for value in values) for key, values in filters.items())


def name_matches(name: str, wanted: str) -> bool:
    """A part of it, or as Docker has it a regular expression: ``name=^web$``."""
    try:
        return wanted in name or re.search(wanted, name) is not None
    except re.error:
        return False


def label_matches(labels: dict[str, str], wanted: str) -> bool:
    """``label=KEY`` is any value of it, ``label=KEY=VALUE`` that one."""
    key, sign, value = wanted.partition("=")
    return key in labels and (not sign or labels[key] == value)


def inspect_format(command: F) -> F:
    """Docker's ``--format``: ``json`` is what ``inspect`` prints anyway."""
    return form_option("-f", "--format", help="json, which is what is shown anyway, or a template.")(command)


def pairs(ctx: click.Context, param: click.Parameter, values: Sequence[str]) -> dict[str, str]:
    """Callback for ``--label KEY[=VALUE]`` and ``--opt``: the last of equal keys counts."""
    found = {}
    for value in values:
        key, _, text = value.partition("=")
        if not key:
            raise click.BadParameter(f"takes KEY=VALUE, found {value!r}")
        found[key] = text
    return found


def not_built(*names: str, flags: Iterable[str] = ()) -> Callable[[F], F]:
    """Options of Docker's that a later version brings: they end the command with a line that says so.

    Each is written ``"-p --publish"``; those in ``flags`` take no value.
    """

    def refuse(ctx: click.Context, param: click.Parameter, value: object) -> None:
        if value is not None and value is not False:
            raise UnsupportedError(f"`{ctx.command_path} {param.opts[-1]}` is not built yet")

    def decorate(command: F) -> F:
        for declaration, is_flag in [*((name, False) for name in names), *((name, True) for name in flags)]:
            option = click.option(
                *declaration.split(), is_flag=is_flag, default=None, hidden=True, expose_value=False, callback=refuse
            )
            command = option(command)
        return command

    return decorate


def command_of(words: Sequence[str]) -> tuple[str, ...]:
    """The command behind a target; ``vxnet exec web -- ls`` and ``vxnet exec web ls`` are the same."""
    argv = tuple(words[1:] if words and words[0] == "--" else words)
    if not argv:
        raise CallerError("no command given to run")
    return argv
