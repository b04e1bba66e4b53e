"""What `service create` and `service update` take, as a :class:`ServiceSpec`: one table of options for both.

`create` lays them over the defaults, `update` over what the service is. Options that may be given several times replace
nothing in an update: there they have ``-add`` and ``-rm`` behind their names, as Docker's.
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Callable, Iterable
from typing import Any, Final, NamedTuple, TypeVar

import click
from msgspec.structs import replace

from vxnet.cli.complete import words
from vxnet.cli.confinement import host_line, volume
from vxnet.cli.options import amount, octets, pairs, ratio, seconds, signal_name
from vxnet.cli.publish import SHORT, with_ports
from vxnet.cli.run import environment, network_wish
from vxnet.model.address import IPAddress
from vxnet.model.capability import NAMES
from vxnet.model.errors import CallerError
from vxnet.model.service import HealthCheck, ServiceSpec

F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")

_COUNT: Final = click.IntRange(min=0)
_FAILURE: Final = click.Choice(["pause", "continue", "rollback"])
_CONDITION: Final = click.Choice(["none", "on-failure", "any"])
_ORDER: Final = click.Choice(["stop-first", "start-first"])


class _Value(NamedTuple):
    """An option with one value, which is a field of the specification."""

    flag: str
    path: str
    """Of the field: ``task.restart.delay_s``."""
    type: Any
    help: str
    metavar: str | None = None


_VALUES: Final = (
    _Value("--replicas", "replicas", _COUNT, "Number of tasks.", "NUMBER"),
    _Value("--endpoint-mode", "endpoint_mode", click.Choice(["vip", "dnsrr"]), "The name's answer: one, or all."),
    _Value("--affinity", "affinity", click.Choice(["", "client-ip"]), "client-ip: a client stays with its task."),
    _Value("--replicas-max-per-node", "task.placement.max_per_node", _COUNT, "0: any number.", "NUMBER"),
    _Value("--reserve-cpu", "task.reserve_cpus", amount, "Kept free for each task on its node.", "NUMBER"),
    _Value("--reserve-memory", "task.reserve_memory", octets, "Kept free for each task on its node.", "SIZE"),
    _Value("--limit-cpu", "task.container.cpus", amount, "Processors' worth of time.", "NUMBER"),
    _Value("--limit-memory", "task.container.memory", octets, "With b, k, m or g.", "SIZE"),
    _Value("--limit-pids", "task.container.pids_limit", _COUNT, "Processes and threads.", "NUMBER"),
    _Value("--restart-condition", "task.restart.condition", _CONDITION, "Default any."),
    _Value("--restart-delay", "task.restart.delay_s", seconds, "Default 5s.", "DURATION"),
    _Value("--restart-max-attempts", "task.restart.max_attempts", _COUNT, "Default 0: no end.", "NUMBER"),
    _Value("--restart-window", "task.restart.window_s", seconds, "After which a task has succeeded.", "DURATION"),
    _Value("--host-grace", "task.restart.host_grace_s", seconds, "A lost host is waited for; default 1s.", "DURATION"),
    _Value("--stop-grace-period", "task.stop_grace_s", seconds, "From SIGTERM to SIGKILL; default 10s.", "DURATION"),
    _Value("--drain-timeout", "task.drain_s", seconds, "Longest wait before SIGTERM; default 5s.", "DURATION"),
    _Value("-w --workdir", "task.container.workdir", str, "Default: /.", "DIRECTORY"),
    _Value("-u --user", "task.container.user", str, "Names as the container has them, or numbers.", "USER[:GROUP]"),
    _Value("--hostname", "task.container.hostname", str, "May hold {{.Task.Slot}} and the like.", "NAME"),
    _Value("--rootfs", "task.container.rootfs", str, "Instead of the hosts' root.", "DIRECTORY"),
    _Value("--stop-signal", "task.container.stop_signal", signal_name, "Instead of SIGTERM.", "NAME|NUMBER"),
    *(
        _Value(f"--{when}-{name}", f"{when}.{field}", type, text, metavar)
        for when in ("update", "rollback")
        for name, field, type, text, metavar in (
            ("parallelism", "parallelism", _COUNT, "Tasks replaced at once; default 1, 0: all.", "NUMBER"),
            ("delay", "delay_s", seconds, "Between them.", "DURATION"),
            ("order", "order", _ORDER, "Default stop-first.", None),
            ("monitor", "monitor_s", seconds, "How long a new task is watched; default 5s.", "DURATION"),
            ("failure-action", "failure_action", _FAILURE, "Default pause.", None),
            ("max-failure-ratio", "max_failure_ratio", ratio, "Default 0.", "NUMBER"),
        )
    ),
)
_FLAGS: Final = (
    _Value("--read-only", "task.container.read_only", bool, "No writes but to /tmp, /run and what is mounted."),
)
_HEALTH: Final = (
    _Value("--health-interval", "interval_s", seconds, "Default 30s.", "DURATION"),
    _Value("--health-timeout", "timeout_s", seconds, "Default 30s.", "DURATION"),
    _Value("--health-retries", "retries", click.IntRange(min=1), "Failures in a row; default 3.", "NUMBER"),
    _Value("--health-start-period", "start_period_s", seconds, "In which failures do not count.", "DURATION"),
    _Value("--health-start-interval", "start_interval_s", seconds, "Until a success; default 250ms.", "DURATION"),
)


class _List(NamedTuple):
    """An option that may be given several times."""

    flags: str
    """In `create`."""
    name: str
    """In `update`, before ``-add`` and ``-rm``."""
    metavar: str
    help: str


_LISTS: Final = (
    _List("-e --env", "env", "KEY[=VALUE]", "KEY alone: its value here. May hold templates."),
    _List("-v --volume", "volume", "SOURCE:TARGET[:ro]", "Show a directory or file of the host."),
    _List("--network", "network", "NETWORK", "NAME, or name=NAME,alias=NAME,…"),
    _List("-p --publish", "publish", SHORT, "A port of all nodes; or published=N,target=N,…"),
    _List("--expose", "expose", "[NAME:]PORT[/PROTOCOL]", "For SRV: _NAME._PROTOCOL.SERVICE."),
    _List("--constraint", "constraint", "KEY==VALUE", "Where tasks may be: node.labels.zone==a, node.hostname!=h1 …"),
    _List("--placement-pref", "placement-pref", "spread=KEY", "Spread over the values of node.labels.…"),
    _List("--dns", "dns", "ADDRESS", "Ask for names outside there."),
    _List("--dns-search", "dns-search", "DOMAIN", "Try names in there too."),
    _List("--dns-option", "dns-option", "OPTION", "For its resolv.conf."),
    _List("--host", "host", "NAME:ADDRESS", "For its /etc/hosts; the address host-gateway is its host's."),
    _List("--sysctl", "sysctl", "NAME=VALUE", "One of net.*"),
    _List("-l --label", "label", "KEY[=VALUE]", "Of the service."),
    _List("--container-label", "container-label", "KEY[=VALUE]", "Of its containers."),
)


def create_options(command: F) -> F:
    for one in reversed(_LISTS):
        names = (*one.flags.split(), _variable(one.name))
        command = click.option(*names, multiple=True, metavar=one.metavar, help=one.help)(command)
    command = click.option(
        *("--env-file", "env_files"),
        multiple=True,
        type=click.Path(exists=True, dir_okay=False),
        metavar="FILE",
        help="Lines KEY=VALUE.",
    )(command)
    return _shared(command)


def update_options(command: F) -> F:
    for one in reversed(_LISTS):
        for ending, text in (("rm", "Take it away."), ("add", one.help)):
            name = f"{one.name}-{ending}"
            key = one.metavar.partition("=")[0].partition("[")[0] or "PORT"
            metavar = key if ending == "rm" else one.metavar
            command = click.option(f"--{name}", _variable(name), multiple=True, metavar=metavar, help=text)(command)
    command = click.option("--args", metavar="COMMAND", help="The command, as a shell would split it.")(command)
    return _shared(command)


def _shared(command: F) -> F:
    for value in reversed((*_VALUES, *_HEALTH)):
        command = click.option(
            *value.flag.split(), _variable(_long(value.flag)), type=value.type, metavar=value.metavar, help=value.help
        )(command)
    for flag in _FLAGS:
        names = (flag.flag, _variable(_long(flag.flag)))
        command = click.option(*names, is_flag=True, default=None, help=flag.help)(command)
    for name, text in (("drop", "Take a capability, or ALL."), ("add", "Give a capability, or ALL.")):
        known = words("ALL", *NAMES)
        command = click.option(f"--cap-{name}", multiple=True, metavar="NAME", shell_complete=known, help=text)(command)
    command = click.option("--no-healthcheck", is_flag=True, help="No health check.")(command)
    return click.option("--health-cmd", metavar="COMMAND", help="For a shell in the container; 0 is healthy.")(command)


def _long(flags: str) -> str:
    return flags.split()[-1].removeprefix("--")


def _variable(name: str) -> str:
    return name.replace("-", "_")


def with_options(base: ServiceSpec, options: dict[str, Any]) -> ServiceSpec:
    """``base`` with all that was given. Raises :class:`CallerError`."""
    spec = base
    for value in (*_VALUES, *_FLAGS):
        given = options[_variable(_long(value.flag))]
        if given is not None:
            spec = _set(spec, value.path.split("."), given)
    return _with_health(_with_capabilities(spec, options["cap_add"], options["cap_drop"]), options)


def _set(record: Any, path: list[str], value: object) -> Any:
    head, *rest = path
    return replace(record, **{head: _set(getattr(record, head), rest, value) if rest else value})


def _with_capabilities(spec: ServiceSpec, add: tuple[str, ...], drop: tuple[str, ...]) -> ServiceSpec:
    """What is given is no longer taken, and the other way round."""
    container = spec.task.container
    container = replace(
        container,
        cap_add=tuple(dict.fromkeys((*(one for one in container.cap_add if one not in drop), *add))),
        cap_drop=tuple(dict.fromkeys((*(one for one in container.cap_drop if one not in add), *drop))),
    )
    return replace(spec, task=replace(spec.task, container=container))


def _with_health(spec: ServiceSpec, options: dict[str, Any]) -> ServiceSpec:
    numbers = {value.path: given for value in _HEALTH if (given := options[_variable(_long(value.flag))]) is not None}
    health = spec.task.health
    if options["no_healthcheck"]:
        if numbers or options["health_cmd"]:
            raise CallerError("--no-healthcheck and a health check exclude each other")
        health = None
    elif options["health_cmd"]:
        health = replace(health or HealthCheck(argv=("x",)), argv=("/bin/sh", "-c", options["health_cmd"]), **numbers)
    elif numbers:
        if health is None:
            raise CallerError("there is no health check", hint="give it a command with --health-cmd")
        health = replace(health, **numbers)
    return replace(spec, task=replace(spec.task, health=health))


# Lists


def _variable_of(text: str) -> str:
    """``KEY=value``; empty for a KEY alone that has no value here."""
    return next(iter(environment((text,), (), os.environ)), "")


def exposed(text: str) -> str:
    """``http:80/tcp`` of ``[NAME:]PORT[/PROTOCOL]``; without a name the number is the name."""
    name, _, rest = text.rpartition(":")
    number, _, protocol = rest.partition("/")
    return f"{name or number}:{number}/{protocol or 'tcp'}"


def preference(text: str) -> str:
    kind, _, key = text.partition("=")
    if kind != "spread" or not key:
        raise CallerError(f"--placement-pref takes spread=KEY, found {text!r}", hint="such as spread=node.labels.zone")
    return key


def resolver(text: str) -> IPAddress:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        raise CallerError(f"--dns takes an address, found {text!r}") from None


def _pairs(values: Iterable[str]) -> dict[str, str]:
    return pairs(None, None, tuple(values))  # type: ignore[arg-type]


def with_lists(base: ServiceSpec, options: dict[str, Any]) -> ServiceSpec:
    """What `create` was given. Raises :class:`CallerError`."""
    added = {f"{key}_add": value for key, value in options.items()}
    added["env_add"] = environment(options["env"], options["env_files"], os.environ)
    none = {_variable(f"{one.name}-rm"): () for one in _LISTS}
    return with_changed_lists(base, {**added, **none})


def with_changed_lists(base: ServiceSpec, options: dict[str, Any]) -> ServiceSpec:
    """What `update` was given: first what goes, then what comes. Of equal keys the last counts. Raises
    :class:`CallerError`, also about something that is to go and is not there.
    """
    task, container = base.task, base.task.container

    def changed(name: str, old: Iterable[T], parse: Callable[[str], T], key: Callable[[T], str]) -> tuple[T, ...]:
        merged = {key(one): one for one in old}
        for text in options[f"{name}_rm"]:
            if merged.pop(text, None) is None:
                raise CallerError(f"--{name.replace('_', '-')}-rm: there is no {text!r}")
        for one in map(parse, options[f"{name}_add"]):
            merged[key(one)] = one
        return tuple(merged.values())

    env = changed("env", container.env, _variable_of, lambda one: one.partition("=")[0])
    wishes = list(map(network_wish, options["network_add"]))
    if len({wish.network for wish in wishes}) < len(wishes):
        raise CallerError("a network is given twice", hint="write name=NAME,alias=A,alias=B")
    container = replace(
        container,
        env=tuple(one for one in env if one),
        mounts=changed("volume", container.mounts, volume, lambda mount: mount.target),
        networks=changed("network", container.networks, network_wish, lambda wish: wish.network),
        dns=changed("dns", container.dns, resolver, str),
        dns_search=changed("dns_search", container.dns_search, str, str),
        dns_options=changed("dns_option", container.dns_options, str, str),
        hosts=changed("host", container.hosts, host_line, str),
        sysctls=_changed_pairs("sysctl", container.sysctls, options),
        labels=_changed_pairs("container_label", container.labels, options),
    )
    placement = replace(
        task.placement,
        constraints=changed("constraint", task.placement.constraints, str, str),
        preferences=changed("placement_pref", task.placement.preferences, preference, str),
    )
    task = replace(
        task, container=container, placement=placement, ports=changed("expose", task.ports, exposed, lambda one: one)
    )
    return replace(
        base,
        task=task,
        ports=with_ports(base.ports, options["publish_rm"], options["publish_add"]),
        labels=_changed_pairs("label", base.labels, options),
    )


def _changed_pairs(name: str, old: dict[str, str], options: dict[str, Any]) -> dict[str, str]:
    kept = {key: value for key, value in old.items() if key not in options[f"{name}_rm"]}
    return kept | _pairs(options[f"{name}_add"])
