"""``vxnet run``."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

import click

from vxnet.cli import output
from vxnet.cli.complete import network_names
from vxnet.cli.confinement import confinement, confinement_options
from vxnet.cli.group import FAILURES, report, usage_text
from vxnet.cli.options import address, command_of, not_built, pairs, session_options
from vxnet.cli.publish import SHORT, container_ports
from vxnet.cluster.client import Client
from vxnet.model.address import IPAddress
from vxnet.model.container import ContainerSpec, NetworkWish
from vxnet.model.errors import CallerError, NotFoundError, UnsupportedError, VxnetError

NOT_RUN: Final = 125
"""Docker's status for a fault of its own, beside 126 (not executable), 127 (not found) and the command's."""

NO_SUCH_COMMAND: Final = 127


class WronglyRunError(click.UsageError):
    exit_code = NOT_RUN


class RunCommand(click.Command):
    """Every failure of vxnet's own is 125, wrong usage too: the other statuses are the container's."""

    def make_context(self, *args: Any, **options: Any) -> click.Context:
        with _failing_as_run():
            return super().make_context(*args, **options)

    def invoke(self, ctx: click.Context) -> Any:
        with _failing_as_run():
            return super().invoke(ctx)


@contextlib.contextmanager
def _failing_as_run() -> Iterator[None]:
    try:
        yield
    except click.UsageError as error:
        raise WronglyRunError(usage_text(error), ctx=error.ctx) from None
    except FAILURES as error:
        report(error)
        raise click.exceptions.Exit(NOT_RUN) from None


@click.command(cls=RunCommand, context_settings={"allow_interspersed_args": False})
@click.option("-d", "--detach", is_flag=True, help="In the background; show the id.")
@click.option("-i", "--interactive", is_flag=True, help="Keep standard input open.")
@click.option("-t", "--tty", is_flag=True, help="With a terminal.")
@click.option("--rm", "remove", is_flag=True, help="Remove the container when it has ended.")
@click.option("--name", default="", help="Default: one is made up. Other containers find it by this name.")
@click.option(
    *("--network", "--net", "networks"),
    multiple=True,
    metavar="NETWORK",
    shell_complete=network_names,
    help="NAME, or name=NAME,ip=ADDRESS,alias=NAME,…; repeatable.",
)
@click.option("--ip", type=address, metavar="ADDRESS", help="On the first network.")
@click.option("--ip6", type=address, metavar="ADDRESS", help="On the first network, of IPv6 beside --ip.")
@click.option("--alias", "--network-alias", "aliases", multiple=True, metavar="NAME", help="On the first network.")
@click.option("-h", "--hostname", default="", metavar="NAME", help="Default: the id's first 12 digits.")
@click.option("-e", "--env", "env", multiple=True, metavar="KEY[=VALUE]", help="KEY alone: its value here.")
@click.option("--env-file", "env_files", multiple=True, type=click.Path(exists=True, dir_okay=False), metavar="FILE")
@click.option("-w", "--workdir", default="", metavar="DIRECTORY", help="Default: /.")
@click.option(
    *("-p", "--publish", "ports"),
    multiple=True,
    metavar=SHORT,
    help="A port of this host, or published=N,target=N,ip=ADDRESS,…; repeatable.",
)
@click.option("-l", "--label", "labels", multiple=True, callback=pairs, metavar="KEY=VALUE")
@confinement_options
@session_options
@not_built(
    *("--mount", "--memory-swap"),
    *(
        "--cpuset-cpus",
        "-c --cpu-shares",
        "--ulimit",
        "--shm-size",
        "--entrypoint",
    ),
    *("--mac-address", "--link", "--expose", "--domainname"),
    *("--device", "--group-add", "--pid", "--ipc", "--uts"),
    *("--userns", "--cgroupns", "--cgroup-parent", "--log-driver", "--log-opt"),
    *("--health-cmd", "--health-interval", "--health-retries", "--health-timeout", "-a --attach", "--cidfile"),
    *("--label-file", "--volumes-from"),
    flags=["-P --publish-all", "--privileged", "--init", "--no-healthcheck", "--oom-kill-disable"],
)
@click.argument("command", nargs=-1, type=click.UNPROCESSED, metavar="[--] COMMAND [ARG]...")
@click.pass_obj
def run(
    client: Client,
    /,
    detach: bool,
    interactive: bool,
    tty: bool,
    remove: bool,
    name: str,
    networks: tuple[str, ...],
    ip: IPAddress | None,
    ip6: IPAddress | None,
    aliases: tuple[str, ...],
    hostname: str,
    env: tuple[str, ...],
    env_files: tuple[str, ...],
    workdir: str,
    ports: tuple[str, ...],
    labels: dict[str, str],
    sig_proxy: bool,
    detach_keys: str,
    command: tuple[str, ...],
    **bounds: Any,
) -> None:
    """Run a command in a new container.

    It sees this host's root file system; what it writes goes with the container.
    """
    spec = ContainerSpec(
        name=name,
        argv=command_of(command),
        env=environment(env, env_files, os.environ),
        workdir=workdir,
        hostname=hostname,
        terminal=tty,
        stdin=interactive,
        remove=remove,
        networks=network_wishes(networks, ip, aliases, ip6),
        ports=container_ports(ports),
        labels=labels,
        **confinement(bounds),
    )
    if detach:
        container = client.create_container(spec)
        with _told_apart(client, container.id, spec):
            client.start(container.id)
        click.echo(container.id)
        if any(port.addresses or port.interface for port in spec.ports):
            _warn_of_ports(client, container.spec.name)
    else:
        raise click.exceptions.Exit(_run_attached(client, spec, sig_proxy, detach_keys))


def _warn_of_ports(client: Client, name: str) -> None:
    """Of those at an address or a link that this host has not, yet."""
    for warning in client.info().warnings:
        if f" of container {name}: " in warning:
            click.echo(f"WARNING: {output.printable(warning)}", err=True)


def _run_attached(client: Client, spec: ContainerSpec, sig_proxy: bool, detach_keys: str) -> int:
    """The command's exit status, 0 after the detach keys. Attached before the command starts, so that nothing it says
    is lost; back when ``--rm`` has removed it, so that its name is free again.
    """
    from vxnet.cluster import terminal

    need_terminal(spec.terminal and spec.stdin)
    terminal.parse_keys(detach_keys)  # refused before anything is made
    id = client.create_container(spec).id
    with _told_apart(client, id, spec):
        status = terminal.attach(
            client.shim(id),
            stdin=spec.stdin,
            sig_proxy=sig_proxy,
            detach_keys=detach_keys,
            start=lambda: client.start(id),
        )
        if spec.remove and status is not None:
            with contextlib.suppress(NotFoundError):  # it has gone already
                client.wait(id)
        return status or 0


@contextlib.contextmanager
def _told_apart(client: Client, id: str, spec: ContainerSpec) -> Iterator[None]:
    """A container that did not start: end with the status that says whose fault it was, and keep ``--rm``'s promise."""
    try:
        yield
    except FAILURES as error:
        if (
            isinstance(error, VxnetError)
            and error.exit_status == NO_SUCH_COMMAND
            and not error.hint
            and spec.argv[0][:1] not in ("/", ".")
        ):
            error.hint = "there are no images: the first word is the command"
        report(error)
        if spec.remove:
            with contextlib.suppress(VxnetError):  # it may be gone already
                client.remove(id, force=True)
        status = error.exit_status if isinstance(error, VxnetError) else 0
        raise click.exceptions.Exit(status or NOT_RUN) from None


def need_terminal(wanted: bool) -> None:
    if wanted and not sys.stdin.isatty():
        raise CallerError("-t with -i needs a terminal as standard input", hint="leave -t out when piping")


# ------------------------------------------------------------------------------------------------------ environment


def environment(pairs: Sequence[str], files: Sequence[str], own: os._Environ[str] | dict[str, str]) -> tuple[str, ...]:
    """``KEY=value`` lines from ``--env-file`` and then ``-e``, of which the last of a key counts.

    A KEY alone takes its value from ``own``, and is left out if that has none. Raises :class:`CallerError`.
    """
    found: dict[str, str] = {}
    for line in [line for file in files for line in _env_lines(file)] + list(pairs):
        key, sign, value = line.partition("=")
        if not key or "\0" in line or any(letter.isspace() for letter in key):
            raise CallerError(f"an environment variable is KEY=VALUE or KEY, found {line!r}")
        if sign:
            found[key] = value
        elif key in own:
            found[key] = own[key]
    return tuple(f"{key}={value}" for key, value in found.items())


def _env_lines(file: str) -> Iterable[str]:
    """The lines of a ``--env-file`` that are neither empty nor comments."""
    try:
        with open(file, encoding="utf-8") as lines:
            stripped = [line.rstrip("\n").lstrip() for line in lines]
    except UnicodeDecodeError:
        raise CallerError(f"--env-file {file}: expected text in UTF-8") from None
    return [line for line in stripped if line and not line.startswith("#")]


# --------------------------------------------------------------------------------------------------------- networks


def network_wishes(
    networks: Sequence[str], ip: IPAddress | None, aliases: tuple[str, ...], ip6: IPAddress | None = None
) -> tuple[NetworkWish, ...]:
    """``--network`` in both of Docker's forms; ``--ip``, ``--ip6`` and ``--alias`` belong to the first. Raises
    :class:`CallerError`.
    """
    wishes = [network_wish(text) for text in networks]
    if ip is not None or ip6 is not None or aliases:
        if not wishes:
            raise CallerError("--ip, --ip6 and --alias need a --network that they are for")
        first = wishes[0]
        twice = (ip and first.ip, ip6 and first.ip6, aliases and first.aliases)
        if any(twice):
            raise CallerError(f"address or alias on {first.network} is given twice, within --network and beside it")
        wishes[0] = NetworkWish(
            network=first.network, ip=ip or first.ip, ip6=ip6 or first.ip6, aliases=aliases or first.aliases
        )
    names = [wish.network for wish in wishes]
    for name in names:
        if names.count(name) > 1:
            raise CallerError(f"--network {name} is given more than once")
    return tuple(wishes)


def network_wish(text: str) -> NetworkWish:
    """``my-net``, or ``name=my-net,ip=10.0.16.9,ip6=fd00:16::9,alias=web,alias=www``."""
    if "=" not in text:
        if not text:
            raise CallerError("--network takes the name of a network, found nothing")
        return NetworkWish(network=text)
    name = ""
    chosen: dict[str, IPAddress] = {}
    aliases: list[str] = []
    for part in text.split(","):
        key, _, value = part.partition("=")
        match key:
            case "name":
                name = value
            case "ip" | "ip6":
                try:
                    chosen[key] = address(value)
                except click.BadParameter as error:
                    raise CallerError(f"--network {text}: {error.message}") from None
            case "alias":
                aliases.append(value)
            case "mac-address" | "link-local-ip" | "driver-opt" | "gw-priority":
                raise UnsupportedError(f"`--network {key}=` is not built yet")
            case _:
                raise CallerError(f"--network takes name=, ip=, ip6= and alias=, found {part!r}")
    if not name:
        raise CallerError(f"--network {text}: name= is missing")
    return NetworkWish(network=name, ip=chosen.get("ip"), ip6=chosen.get("ip6"), aliases=tuple(aliases))
