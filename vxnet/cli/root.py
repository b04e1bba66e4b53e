"""The one table of commands, and where every command ends: its exit status and its one line about what went wrong."""

from __future__ import annotations

from typing import Final

import click

from vxnet import __version__
from vxnet.cli.group import Root, Section, Table
from vxnet.cluster.client import SOCKET_VARIABLE, Client

TABLE: Final[Table] = {
    "init": "cluster:init",
    "join": "cluster:join",
    "leave": "cluster:leave",
    "join-token": "cluster:join_token",
    "info": "cluster:info",
    "node": Section(
        "Manage the cluster's nodes.",
        {
            "ls": "cluster:node_ls",
            "inspect": "cluster:node_inspect",
            "rm": "cluster:node_rm",
            "ps": "nodes:ps",
            "update": "nodes:update",
            "promote": "nodes:promote",
            "demote": "nodes:demote",
        },
    ),
    "store": Section(
        "What the managers know: move it, save it, bring it back.",
        {"migrate": "store:migrate", "backup": "store:backup", "restore": "store:restore"},
    ),
    "network": Section(
        "Manage networks.",
        {
            "create": "network:create",
            "ls": "network:ls",
            "inspect": "network:inspect",
            "rm": "network:rm",
            "connect": "network:connect",
            "disconnect": "network:disconnect",
            "guests": "network:guests",
            "update": "network:update",
            "peer": Section(
                "VXLAN endpoints without vxnet.",
                {"add": "network:peer_add", "ls": "network:peer_ls", "rm": "network:peer_rm"},
            ),
            "prune": "network:prune",
        },
    ),
    "gossip": Section(
        "The gossip on 7946: members, rows, keys.",
        {"keys": "gossip:keys", "rotate-keys": "gossip:rotate_keys"},
        "gossip:show",
    ),
    "ca": Section("The CA that makes nodes' certificates.", {"rotate": "ca:rotate"}, "ca:show"),
    "run": "run:run",
    "ps": "container:ps",
    "inspect": "container:inspect",
    "exec": "stream:exec_",
    "attach": "stream:attach",
    "logs": "stream:logs",
    "start": "stream:start",
    "stop": "container:stop",
    "restart": "container:restart",
    "rename": "container:rename",
    "kill": "container:kill",
    "rm": "container:rm",
    "wait": "container:wait",
    "cp": "copy:cp",
    "top": "container:top",
    "stats": "stats:stats",
    "update": "stats:update",
    "prune": "container:prune",
    "service": Section(
        "Manage services.",
        {
            "create": "service:create",
            "ls": "service:ls",
            "ps": "service:ps",
            "inspect": "service:inspect",
            "logs": "service_logs:logs",
            "scale": "service:scale",
            "update": "service:update",
            "rollback": "service:rollback",
            "rm": "service:rm",
        },
    ),
    "mesh": "mesh:show",
    "events": "events:events",
    "doctor": "doctor:doctor",
    "trace": "trace:trace",
    "bundle": "bundle:bundle",
    "bench": "bench:bench",
    "capture": "capture:capture",
    "lab": Section(
        "Several hosts on this machine, each with its own daemon.",
        {
            "up": "lab:up",
            "ls": "lab:ls",
            "exec": "lab:exec_",
            "shell": "lab:shell",
            "cut": "lab:cut",
            "heal": "lab:heal",
            "kill": "lab:kill",
            "start": "lab:start",
            "down": "lab:down",
            "demo": "lab:demo",
        },
    ),
    "daemon": "program:daemon",
    "version": "program:version",
    "completion": "program:completion",
}
"""Command → ``module:attribute`` below ``vxnet.cli``."""


_IMAGES: Final = "there are no images; a container sees its host's files, or `vxnet run --rootfs DIRECTORY`"
ELSEWHERE: Final = {
    "swarm": "`vxnet init`, `join`, `leave`, `join-token` and `ca` are its commands here",
    "container": "its commands stand alone here, such as `vxnet ps` and `vxnet rm`",
    "system": "`vxnet info`, `vxnet events` and `vxnet prune` are its commands here",
    "port": "`vxnet ps` shows the ports of containers",
    "create": "`vxnet run -d` makes a container and starts it",
    "volume": "there are no named volumes; `vxnet run -v` shows a container a directory of its host",
    **dict.fromkeys(("build", "commit", "image", "images", "pull", "push", "rmi"), _IMAGES),
    **dict.fromkeys(("config", "secret", "stack"), "that is not built yet"),
}
"""Docker's commands that vxnet has not, and what it has in their place."""


@click.command(cls=Root, table=TABLE, elsewhere=ELSEWHERE, invoke_without_command=False)
@click.option(
    "--socket",
    envvar=SOCKET_VARIABLE,
    show_envvar=True,
    metavar="PATH",
    help="The daemon's. Default: /run/vxnet/vxnet.sock.",
)
@click.version_option(__version__, message="vxnet %(version)s")
@click.pass_context
def root(context: click.Context, socket: str | None) -> None:
    """Docker Swarm's overlay networking for plain Linux hosts, without Docker."""
    context.obj = Client(socket or "")
