"""What is to be done to the kernel, in words and in messages, and what came of it.

Ensure, don't create: :func:`mend` gives the difference between a link as wished and as found, attribute by attribute.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal, NamedTuple

from vxnet.host import links
from vxnet.host.links import Link, Wish
from vxnet.host.netlink import GONE, Netlink
from vxnet.model.host import Change


class Step(NamedTuple):
    verb: Literal["add", "replace", "delete"]
    object: str
    messages: list[bytes]


def carry_out(netlink: Netlink, steps: list[Step]) -> list[Change]:
    """Send all messages of all steps at once, and tell of each step. A deletion of what is gone is no event."""
    failures = netlink.batch([one for step in steps for one in step.messages])
    changes = []
    position = 0
    for step in steps:
        failed = [failures[at] for at in range(position, position + len(step.messages)) if at in failures]
        position += len(step.messages)
        if step.verb == "delete":
            failed = [failure for failure in failed if failure[0] not in GONE]
            if not failed and any(at in failures for at in range(position - len(step.messages), position)):
                continue
        changes.append(Change(verb=step.verb, object=step.object, error=failed[0][1] if failed else ""))
    return changes


def unless_new(changes: list[Change], made: list[str]) -> list[Change]:
    """Leave out what only completes a link that was just made (``made``: ``link NAME``), unless it failed."""
    names = {words.split()[1] for words in made if words.startswith("link ")}
    return [change for change in changes if change.error or change.object.split()[1] not in names]


def mend(wish: Wish, link: Link, master: int | None = None) -> Step | None:
    """What makes an existing, compatible link as wished; None: it is. ``master``: index of its bridge; None: any."""
    settings: dict[str, Any] = {}
    if not link.up:
        settings["up"] = True
    if link.mtu != wish.mtu:
        settings["mtu"] = wish.mtu
    if master is not None and link.master != master:
        settings["master"] = master
    if wish.alias and link.alias != wish.alias:
        settings["alias"] = wish.alias
    if wish.mac is not None and link.mac != wish.mac:
        settings["mac"] = wish.mac
    messages = [links.change(link.ifindex, **settings)] if settings else []
    names = [f"{name} {value}" if name != "up" else name for name, value in settings.items()]
    differing = links.differing(wish.data, link.data, wish.kind) if wish.data else []
    if differing:
        messages += links.change_data(link.ifindex, wish, differing)
        names += differing
    return Step("replace", f"link {wish.name} {', '.join(names)}", messages) if messages else None


def mend_port(name: str, link: Link, flags: Mapping[str, int]) -> Step | None:
    """What sets the bridge port's flags; None: they are. A link that was enslaved just now shows none: set all."""
    differing = [flag for flag in links.differing(flags, link.port, "port") if links.has_flag(flag, link.port)]
    if not differing:
        return None
    words = ", ".join(f"{flag.removeprefix('IFLA_BRPORT_').lower()} {flags[flag]}" for flag in differing)
    return Step("replace", f"port {name} {words}", [links.change_port(link.ifindex, {f: flags[f] for f in differing})])


def present(steps: Iterable[Step | None]) -> list[Step]:
    return [step for step in steps if step is not None]
