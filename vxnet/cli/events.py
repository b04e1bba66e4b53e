"""`vxnet events`: what happens on this host and in its cluster."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import get_args

import click

from vxnet.cli import output
from vxnet.cli.options import Form, filter_option, form_option, matches, moment
from vxnet.cluster.client import Client
from vxnet.model.api import Event, EventType

TIME = "A time, or how long ago: 2026-01-31T12:00:00Z, 10m."


@click.command()
@filter_option(*("container", "event", "label", "network", "node", "service"), f"type={'|'.join(get_args(EventType))}")
@click.option("--since", type=moment, default="", metavar="TIME", help=f"Also those from then on. {TIME}")
@click.option("--until", type=moment, default="", metavar="TIME", help="Only those up to then, and end.")
@form_option()
@click.pass_obj
def events(client: Client, filters: dict[str, list[str]], since: str, until: str, form: Form) -> None:
    """Show what happens, as it happens; ends with Ctrl-C.

    Containers of this host; networks, services and nodes of the cluster; repairs of the kernel's state. The daemon
    keeps the last 1000 events.
    """
    end = _seconds(until) if until else None
    # Up to a moment that has passed is a question about the past, whose beginning goes without saying.
    past = 0.0 if end is not None and end <= output.now() else None
    for event in client.events(since=_seconds(since) if since else past, until=end):
        if _wanted(event, filters):
            if form == "table":
                click.echo(_line(event))
            else:
                output.one(event, form)


def _seconds(text: str) -> float:
    return datetime.fromisoformat(text[:26]).replace(tzinfo=UTC).timestamp()


def _line(event: Event) -> str:
    stamp = datetime.fromtimestamp(event.time, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    attributes = {**event.attributes, **({"name": event.name} if event.name else {})}
    details = ", ".join(f"{key}={value}" for key, value in sorted(attributes.items()))
    words = [stamp, event.type, event.action, event.id, f"({details})" if details else ""]
    return output.printable(" ".join(filter(None, words)))


def _wanted(event: Event, filters: dict[str, list[str]]) -> bool:
    def about(type: str, *others: str) -> bool:
        return event.type == type and any(
            event.name == other or (other and event.id.startswith(other)) for other in others
        )

    def container(text: str) -> bool:
        return about("container", text) or bool(text and event.attributes.get("container", "").startswith(text))

    def label(text: str) -> bool:
        key, sign, value = text.partition("=")
        return key in event.attributes and (not sign or event.attributes[key] == value)

    return matches(
        filters,
        {
            "container": container,
            "event": lambda text: event.action == text,
            "label": label,
            "network": lambda text: about("network", text),
            "node": lambda text: about("node", text),
            "service": lambda text: about("service", text),
            "type": lambda text: event.type == text.lower(),
        },
    )
