"""service logs."""

from __future__ import annotations

import sys

import click

from vxnet.cli.complete import service_names
from vxnet.cli.options import moment, not_built, tail
from vxnet.cli.stream import lines, split_cri
from vxnet.cluster.client import Client


@click.command()
@click.option("-f", "--follow", is_flag=True, help="Go on, also with tasks that come later.")
@click.option("-t", "--timestamps", is_flag=True, help="Begin each line with its time.")
@click.option("-n", "--tail", type=tail, default="all", metavar="NUMBER", help="Only as many lines of each task.")
@click.option("--since", type=moment, default="", metavar="TIME", help="A time, or how long ago.")
@click.option("--raw", is_flag=True, help="Without the tasks' names.")
@click.option("--no-task-ids", is_flag=True, help="Only the slots in the tasks' names.")
@click.argument("service", metavar="SERVICE|TASK", shell_complete=service_names)
@not_built(flags=["--details", "--no-resolve", "--no-trunc"])
@click.pass_obj
def logs(
    client: Client,
    follow: bool,
    timestamps: bool,
    tail: int,
    since: str,
    raw: bool,
    no_task_ids: bool,
    service: str,
) -> None:
    """Show what a service's tasks have written, wherever they run."""
    outputs = {b"stdout": sys.stdout.buffer, b"stderr": sys.stderr.buffer}
    for line in lines(client.logs_of_service(service, follow=follow, tail=tail, since=since)):
        task, node, rest = line.split(b" ", 2)
        time, stream, tag, text = split_cri(rest)
        target = outputs[stream]
        if timestamps:
            target.write(time + b" ")
        if not raw:
            target.write((task.rpartition(b".")[0] if no_task_ids else task) + b"@" + node + b"    | ")
        # CRI cuts long lines (tag P). Other tasks' may come in between: each part is a line here, the cut is marked.
        target.write(text + (b"\n" if tag == b"F" else b" \\\n"))
        target.flush()
