"""Into and out of a running container: start, exec, attach, logs.

exec and attach talk to the container's shim itself, so that a session outlives the daemon.
"""

from __future__ import annotations

import itertools
import os
import sys
from collections import deque
from collections.abc import Iterable, Iterator

import click

from vxnet.cli.complete import container_names, running_names
from vxnet.cli.group import for_each
from vxnet.cli.options import command_of, moment, not_built, session_options, tail
from vxnet.cli.run import environment, need_terminal
from vxnet.cluster.client import Client
from vxnet.model.errors import CallerError


@click.command("exec", context_settings={"allow_interspersed_args": False})
@click.option("-d", "--detach", is_flag=True, help="In the background: what it says is lost.")
@click.option("-i", "--interactive", is_flag=True, help="Keep standard input open.")
@click.option("-t", "--tty", is_flag=True, help="With a terminal.")
@click.option("-e", "--env", "env", multiple=True, metavar="KEY[=VALUE]", help="KEY alone: its value here.")
@click.option("--env-file", "env_files", multiple=True, type=click.Path(exists=True, dir_okay=False), metavar="FILE")
@click.option("-w", "--workdir", default="", metavar="DIRECTORY", help="Default: /.")
@click.option("-u", "--user", default="", metavar="USER[:GROUP]", help="Default: the container's.")
@click.argument("container", shell_complete=running_names)
@click.argument("command", nargs=-1, type=click.UNPROCESSED, metavar="[--] COMMAND [ARG]...")
@not_built("--detach-keys", flags=["--privileged"])
@click.pass_obj
def exec_(
    client: Client,
    detach: bool,
    interactive: bool,
    tty: bool,
    env: tuple[str, ...],
    env_files: tuple[str, ...],
    workdir: str,
    user: str,
    container: str,
    command: tuple[str, ...],
) -> None:
    """Run a command in a running container.

    Ends with the command's exit status.
    """
    from vxnet.cluster import terminal

    if detach and (interactive or tty):
        raise CallerError("-d goes without -i and -t: nobody reads and types there")
    argv = command_of(command)
    variables = environment(env, env_files, os.environ)
    need_terminal(tty and interactive)
    status = terminal.execute(
        client.shim(container),
        argv,
        env=variables,
        workdir=workdir,
        user=user,
        terminal=tty,
        stdin=interactive,
        detach=detach,
    )
    raise click.exceptions.Exit(status)


@click.command()
@click.option("-a", "--attach", "attached", is_flag=True, help="Stay with it: its output, signals, exit status.")
@click.option("-i", "--interactive", is_flag=True, help="Also its standard input.")
@session_options
@click.argument("containers", nargs=-1, required=True, metavar="CONTAINER...", shell_complete=container_names)
@click.pass_obj
def start(
    client: Client,
    attached: bool,
    interactive: bool,
    sig_proxy: bool,
    detach_keys: str,
    containers: tuple[str, ...],
) -> None:
    """Start containers that have ended, or were only created.

    What they wrote to their files is still there.
    """
    if not (attached or interactive):
        for_each(containers, client.start)
        return
    if len(containers) > 1:
        raise CallerError("only one container can be attached to at a time")
    from vxnet.cluster import terminal

    terminal.parse_keys(detach_keys)  # refused before anything is made
    container = client.prepare(containers[0])
    need_terminal(container.spec.terminal and interactive)
    status = terminal.attach(
        client.shim(container.id),
        stdin=interactive,
        sig_proxy=sig_proxy,
        detach_keys=detach_keys,
        start=lambda: client.start(container.id),
    )
    raise click.exceptions.Exit(status or 0)


@click.command()
@click.option("--no-stdin", is_flag=True, help="Only watch.")
@session_options
@click.argument("container", shell_complete=running_names)
@click.pass_obj
def attach(client: Client, no_stdin: bool, sig_proxy: bool, detach_keys: str, container: str) -> None:
    """Read and write with a running container.

    Ends with the exit status of its first command; 0 after the detach keys.
    """
    from vxnet.cluster import terminal

    status = terminal.attach(client.shim(container), stdin=not no_stdin, sig_proxy=sig_proxy, detach_keys=detach_keys)
    raise click.exceptions.Exit(status or 0)


@click.command()
@click.option("-f", "--follow", is_flag=True, help="Go on until the container has ended.")
@click.option("-t", "--timestamps", is_flag=True, help="Begin each line with its time.")
@click.option("-n", "--tail", type=tail, default="all", metavar="NUMBER", help="Only as many lines from the end.")
@click.option(
    "--since", type=moment, default="", metavar="TIME", help="A time, or how long ago: 2026-01-31T12:00:00Z, 10m."
)
@click.option("--until", type=moment, default="", metavar="TIME", help="Only what was written up to then.")
@click.argument("container", shell_complete=container_names)
@not_built(flags=["--details"])
@click.pass_obj
def logs(client: Client, follow: bool, timestamps: bool, tail: int, since: str, until: str, container: str) -> None:
    """Show what a container has written.

    Its standard output and standard error each go to one of their own.
    """
    if follow and until:
        raise CallerError("--follow goes on and --until ends; leave one of them out")
    outputs = {b"stdout": sys.stdout.buffer, b"stderr": sys.stderr.buffer}
    begins = dict.fromkeys(outputs, True)
    written: Iterable[bytes] = lines(client.logs(container, follow=follow, tail=-1 if until else tail, since=since))
    if until:
        last = until.encode()
        # The daemon counts from the end of the log.
        written = deque(
            itertools.takewhile(lambda line: split_cri(line)[0] <= last, written), tail if tail >= 0 else None
        )
    for line in written:
        time, stream, tag, text = split_cri(line)
        target = outputs[stream]
        if timestamps and begins[stream]:
            target.write(time + b" ")
        target.write(text)
        # CRI cuts long lines: only the last part ends one (tag F).
        begins[stream] = tag == b"F"
        if begins[stream]:
            target.write(b"\n")
        target.flush()


def lines(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Whole lines, without their ends, out of pieces of any size. A last line without an end is still being written."""
    rest = b""
    for chunk in chunks:
        *whole, rest = (rest + chunk).split(b"\n")
        yield from whole


def split_cri(line: bytes) -> tuple[bytes, bytes, bytes, bytes]:
    """Time, ``stdout`` or ``stderr``, ``F`` or ``P``, text of a line of a log (Kubernetes' CRI format).

    What does not look like one, such as the rest of a line after a crash, is shown as it is.
    """
    parts = line.split(b" ", 3)
    if len(parts) == 4 and parts[1] in (b"stdout", b"stderr") and parts[2] in (b"F", b"P"):
        return parts[0], parts[1], parts[2], parts[3]
    return b"-", b"stdout", b"F", line
