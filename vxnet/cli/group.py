"""Groups that load a command when it is asked for, and the last word on errors.

Exit statuses: 0; 1 it could not be done; 2 wrongly called; 130 interrupted; `run` has Docker's 125, 126, 127 beside
the container's own. An error is one line on standard error: ``vxnet: what was wanted and found; what to do next``.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, NamedTuple, NoReturn

import click

from vxnet.model.errors import CallerError, NotFoundError, VxnetError

FAILED: Final = 1
INTERRUPTED: Final = 130
"""128 + SIGINT, as the shell says it."""


class Section(NamedTuple):
    """A command that has commands: ``vxnet network``."""

    help: str
    table: Table
    alone: str = ""
    """What it does without any of them; empty: it says which there are."""


Table = dict[str, "str | Section"]

FAILURES: Final = (VxnetError, OSError, UnicodeEncodeError)
"""What a command may end with; anything else is a bug and shows its traceback."""

_SYNONYMS: Final = {"list": "ls", "remove": "rm"}
"""Docker takes both."""


class Group(click.Group):
    """Commands by a :data:`Table`; a command's module is imported when the command is called or listed."""

    def __init__(self, *args: Any, table: Table, **options: Any) -> None:
        super().__init__(*args, **options)
        self._table = table

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self._table)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        entry = self._table.get(cmd_name) or self._table.get(_SYNONYMS.get(cmd_name, ""))
        match entry:
            case None:
                return None
            case Section(help=text, table=table, alone=""):
                return Group(cmd_name, help=text, table=table)
            case Section(help=text, table=table, alone=alone):
                return _section(cmd_name, text, table, _load(alone))
            case _:
                return _load(entry)


def _load(entry: str) -> click.Command:
    module, _, attribute = entry.partition(":")
    command = getattr(importlib.import_module(f"vxnet.cli.{module}"), attribute)
    assert isinstance(command, click.Command)
    return command


def _section(name: str, text: str, table: Table, alone: click.Command) -> Group:
    """``alone`` with commands below it."""

    def act(**options: Any) -> None:
        context = click.get_current_context()
        if context.invoked_subcommand is None:
            context.invoke(alone, **options)

    more = (alone.help or "").partition("\n\n")[2]
    return Group(
        name,
        help="\n\n".join(filter(None, (text, more))),
        table=table,
        params=alone.params,
        callback=act,
        invoke_without_command=True,
    )


class Root(Group):
    """The whole command: runs it and ends the process with the right status."""

    def __init__(self, *args: Any, elsewhere: dict[str, str], **options: Any) -> None:
        super().__init__(*args, **options)
        self._elsewhere = elsewhere

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] in self._elsewhere:
            raise click.UsageError(f"no such command {args[0]!r}: {self._elsewhere[args[0]]}")
        return super().resolve_command(ctx, args)

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> NoReturn:
        sys.exit(_flushed(self._run(args, prog_name, complete_var, extra)))

    def _run(
        self, args: Sequence[str] | None, prog_name: str | None, complete_var: str | None, extra: dict[str, Any]
    ) -> int:
        try:
            status = super().main(args, prog_name, complete_var, standalone_mode=False, **extra)
        except click.exceptions.NoArgsIsHelpError as error:
            error.show()
            return error.exit_code
        except click.UsageError as error:
            say(usage_text(error) + (f"; see `{error.ctx.command_path} --help`" if error.ctx else ""))
            return error.exit_code
        except click.ClickException as error:
            say(_one_line(error.format_message()))
            return error.exit_code
        except (KeyboardInterrupt, click.Abort):
            return INTERRUPTED
        except FAILURES as error:
            report(error)
            return FAILED
        return status if isinstance(status, int) else 0


def say(line: str) -> None:
    click.echo(f"vxnet: {line}", err=True)


def report(error: Exception) -> None:
    """The one line about one of :data:`FAILURES`. A reader that went away (``vxnet ps | head``) needs none."""
    match error:
        case BrokenPipeError():
            pass
        case UnicodeEncodeError():
            # Python reads octets of an argument that are no UTF-8 as lone surrogates.
            say(f"expected text in UTF-8, found {error.object!r}")
        case OSError():
            reason = error.strerror or str(error) or type(error).__name__
            say(f"{error.filename}: {reason}" if error.filename else reason)
        case _:
            say(_one_line(str(error)))


def confirm(question: str) -> None:
    """Ends the command with status 1 unless somebody says yes. Raises :class:`CallerError` where nobody can."""
    try:
        agreed = click.confirm(question)
    except click.Abort:
        if sys.stdin.isatty():  # Ctrl-C
            raise
        click.echo()
        raise CallerError("nobody answered, so nothing was removed", hint="--force does not ask") from None
    if not agreed:
        click.echo("Nothing was removed.", err=True)
        raise click.exceptions.Exit(FAILED)


def for_each(
    targets: Iterable[str], act: Callable[[str], object], *, echo: bool = True, may_be_gone: bool = False
) -> None:
    """Do it to every target, whatever happens to the others; names those it was done to (``echo``), as Docker does.

    Ends the command with status 1 if any failed; ``may_be_gone``: one that is not there is said, and no failure.
    """
    failed = False
    for target in targets:
        try:
            act(target)
        except FAILURES as error:
            report(error)
            failed |= not (may_be_gone and isinstance(error, NotFoundError))
        else:
            if echo:
                click.echo(target)
    if failed:
        raise click.exceptions.Exit(FAILED)


def usage_text(error: click.UsageError) -> str:
    """click's words in our form: one line, and no guess at options that are not built."""
    if isinstance(error, click.NoSuchOption) and error.possibilities and error.ctx:
        hidden = {name for param in error.ctx.command.params if getattr(param, "hidden", False) for name in param.opts}
        built = [name for name in error.possibilities if name not in hidden]
        error = click.NoSuchOption(error.option_name, possibilities=built, ctx=error.ctx)
    text = _one_line(error.format_message()).rstrip(".")
    return text[:1].lower() + text[1:]


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _flushed(status: int) -> int:
    """Write out what is buffered while there is still somebody to handle the error."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        # Python flushes once more at its end and would complain: give it a place to flush to.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return status or FAILED
    except OSError as error:  # a full disk
        if status == 0:  # else it has been said: Python 3.11.2 keeps what it could not write, and tries again
            report(error)
        return status or FAILED
    return status
