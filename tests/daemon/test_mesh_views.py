"""What `vxnet mesh` says of each node."""

from __future__ import annotations

import ipaddress

from vxnet.core.facts import Facts
from vxnet.daemon.mesh_views import mesh
from vxnet.model.mesh import MeshTraffic
from vxnet.model.published import PublishedPort
from vxnet.model.row import Endpoint, Gateway, RowKey, Version
from vxnet.model.service import PublicService

VTEP = ipaddress.ip_address("192.0.2.1")


def foot(node: str) -> tuple[RowKey, Version, Gateway]:
    row = Gateway(network="i", vni=1, addresses=(), mac="", vtep=VTEP)
    return RowKey(node, "gateway", "i"), Version(1, 1), row


def task(node: str, number: int) -> tuple[RowKey, Version, Endpoint]:
    addresses = tuple(ipaddress.ip_address(f"{prefix}{number}") for prefix in ("10.0.0.", "fd00::"))
    row = Endpoint(network="i", vni=1, addresses=addresses, mac="", vtep=VTEP, name=f"web.{number}", service="s")
    return RowKey(node, "endpoint", str(number)), Version(1, 1), row


def test_each_node_has_its_choice_and_tells_why() -> None:
    ports = (PublishedPort(published=80, target=8080), PublishedPort(published=81, target=81, mode="host"))
    services = [PublicService(id="s", name="web", ports=ports), PublicService(id="t", name="app")]
    rows = Facts.gather([foot("a"), foot("b"), task("a", 1), task("a", 2), task("c", 3)])
    traffic = [MeshTraffic(protocol="tcp", published=80, connections=5, refused=1, received=10, sent=20)]
    (view,) = mesh(services, "i", rows, {"a": "h1", "b": "h2"}, traffic)
    assert (view.service, view.port, view.connections, view.sent) == ("web", ports[0], 5, 20)
    assert [(one.node, [each.task for each in one.tasks], one.why) for one in view.choices] == [
        ("h1", ["web.1", "web.2"], "prefer-local: ready here"),
        ("h2", ["web.1", "web.2", "web.3"], "prefer-local: none is ready here, so any"),
    ]
    assert {each.node for one in view.choices for each in one.tasks} == {"h1", "c"}
