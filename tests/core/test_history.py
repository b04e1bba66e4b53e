"""What happened between two looks, and in which order it is told."""

from __future__ import annotations

import ipaddress

import pytest
from msgspec.structs import replace

from vxnet.core.history import Look, happened
from vxnet.model.cluster import Network
from vxnet.model.container import Attachment, Container, ContainerSpec
from vxnet.model.service import PublicService

NET = Network(id="n1", name="blue")


def attachment(network: str) -> Attachment:
    return Attachment(
        network=network,
        ifname="eth0",
        addresses=(ipaddress.ip_interface("10.0.0.3/20"),),
        mac="02:00:0a:00:00:03",
    )


WEB = Container(id="c1", spec=ContainerSpec(name="web", argv=("sh",), labels={"team": "x"}), created_at=1.0)
RUNNING = replace(WEB, state="running", started_at=2.0, pid=7)
ENDED = replace(RUNNING, state="exited", exit_status=3, finished_at=9.0, pid=0)


def look(*containers: Container, **fields: object) -> Look:
    return Look({one.id: one for one in containers}, **{"networks": {"n1": NET}, **fields})  # type: ignore[arg-type]


# before, after → type action (attributes)
CASES: dict[str, tuple[Look, Look, list[str]]] = {
    "created": (look(), look(WEB), ["container create"]),
    "created and started": (look(), look(RUNNING), ["container create", "container start"]),
    "all of a short life": (look(), look(ENDED), ["container create", "container start", "container die exitCode=3"]),
    "started": (look(WEB), look(RUNNING), ["container start"]),
    "ended, and its shim knows better when it began": (
        look(RUNNING),
        look(replace(ENDED, started_at=2.1)),
        ["container die exitCode=3"],
    ),
    "ended": (look(RUNNING), look(ENDED), ["container die exitCode=3"]),
    "ended and gone": (look(RUNNING), look(), ["container die", "container destroy"]),
    "gone": (look(ENDED), look(), ["container destroy"]),
    "restarted": (look(RUNNING), look(replace(RUNNING, started_at=5.0, pid=8)), ["container die", "container start"]),
    "started anew": (look(ENDED), look(replace(RUNNING, started_at=12.0)), ["container start"]),
    "started anew and ended": (
        look(ENDED),
        look(replace(ENDED, started_at=12.0, finished_at=13.0, exit_status=0)),
        ["container start", "container die exitCode=0"],
    ),
    "renamed": (
        look(RUNNING),
        look(replace(RUNNING, spec=replace(RUNNING.spec, name="shop"))),
        ["container rename oldName=web"],
    ),
    "connected": (
        look(RUNNING),
        look(replace(RUNNING, attachments=(attachment("n1"),))),
        ["network connect container=c1"],
    ),
    "moved": (
        look(replace(RUNNING, attachments=(attachment("n1"),))),
        look(replace(RUNNING, attachments=(attachment("n2"),))),
        ["network disconnect container=c1", "network connect container=c1"],
    ),
    "gone from a network": (
        look(replace(ENDED, attachments=(attachment("n1"),))),
        look(),
        ["network disconnect container=c1", "container destroy"],
    ),
    "nothing": (look(RUNNING), look(replace(RUNNING)), []),
    "a network comes": (look(networks={}), look(), ["network create driver=overlay"]),
    "a network goes": (look(), look(networks={}), ["network remove"]),
    "a network changes": (look(), look(networks={"n1": replace(NET, mtu=1400)}), ["network update driver=overlay"]),
    "a service comes": (look(), look(services=(PublicService(id="s", name="shop"),)), ["service create"]),
    "a service goes": (look(services=(PublicService(id="s", name="shop"),)), look(), ["service remove"]),
    "a service changes": (
        look(services=(PublicService(id="s", name="shop"),)),
        look(services=(PublicService(id="s", name="shop", endpoint_mode="dnsrr"),)),
        ["service update"],
    ),
    "a node comes": (look(), look(nodes={"i": ("h1", "ready")}), ["node create state.new=ready"]),
    "a node falls silent": (
        look(nodes={"i": ("h1", "ready")}),
        look(nodes={"i": ("h1", "down")}),
        ["node update state.new=down,state.old=ready"],
    ),
    "a node goes": (look(nodes={"i": ("h1", "ready")}), look(), ["node remove"]),
    "drift": (look(repairs=1), look(repairs=3), ["daemon repair repairs=3"]),
}


@pytest.mark.parametrize("before, after, told", CASES.values(), ids=list(CASES))
def test_what_is_told(before: Look, after: Look, told: list[str]) -> None:
    events = happened(before, after, 50.0)
    words = []
    for event in events:
        attributes = {key: value for key, value in event.attributes.items() if key != "team"}
        text = ",".join(f"{key}={value}" for key, value in sorted(attributes.items()))
        words.append(f"{event.type} {event.action} {text}".strip())
        assert event.time == 50.0 and (event.name or event.type == "daemon")
    assert words == told
    if any(event.type == "container" for event in events):
        assert all(event.attributes["team"] == "x" for event in events if event.type == "container")


def test_a_network_that_is_not_known_any_more_has_no_name() -> None:
    (event,) = happened(look(RUNNING), look(replace(RUNNING, attachments=(attachment("n9"),))), 1.0)
    assert (event.id, event.name) == ("n9", "?")
