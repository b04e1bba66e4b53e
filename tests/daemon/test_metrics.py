"""What a scraper gets, read by prometheus_client's own parser; and that the documentation tells the same names."""

from __future__ import annotations

import json
import re
import socket
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from vxnet.cluster.api import make_app, serve_unix
from vxnet.cluster.http1 import Exchange
from vxnet.daemon import metrics
from vxnet.daemon.metrics import METRICS, Measured
from vxnet.model.api import Health, Info
from vxnet.model.errors import CallerError, HostError
from vxnet.model.mesh import MeshTraffic

DOCS = Path(__file__).parents[2] / "docs"
ALONE = Measured(Info(version="1.2", name="h1"), {}, {}, {}, {}, {"queries_udp": 5}, None)
MEMBER = Measured(
    info=Info(
        version="1.2",
        name="h1",
        cluster="c",
        manager_reachable=True,
        networks=3,
        segments=2,
        rows=7,
        rows_refused={"no certificate": 2},
        drift=4,
        drain_timeouts=6,
        key_epoch=9,
        health=1,
    ),
    nodes={"alive": 2, "dead": 1},
    containers={"running": 5, "exited": 1},
    gossip={"news": 1, "row_queue": 2, "sent_octets": 1000},
    dropped={'odd "reason"\n': 3},
    dns={"queries_udp": 40, "queries_tcp": 2, "names": 11},
    certificate_ends=1.8e9,
    mesh=(MeshTraffic(protocol="tcp", published=80, connections=3, refused=1, received=900, sent=7000),),
    tunnels={
        "sent_frames": 9,
        "sent_octets": 90,
        "received_frames": 8,
        "received_octets": 80,
        "joined_frames": 2,
        "unknown_source": 1,
        "too_big": 0,
    },
)


def scraped(text: str) -> dict[str, dict[str, float]]:
    """Value by label by name."""
    found: dict[str, dict[str, float]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, {})[next(iter(sample.labels.values()), "")] = sample.value
    return found


def test_everything_is_told_of_a_member() -> None:
    body, content_type = metrics.exposition(MEMBER)
    assert content_type.startswith("text/plain; version=")
    found = scraped(body.decode())
    own = {name: values for name, values in found.items() if name.startswith("vxnet_")}
    assert own.keys() == METRICS.keys()
    assert own["vxnet_kernel_repairs_total"] == {"": 4}
    assert own["vxnet_drain_timeouts_total"] == {"": 6}
    assert own["vxnet_nodes"] == {"alive": 2, "dead": 1}
    assert own["vxnet_containers"] == {"running": 5, "exited": 1}
    assert own["vxnet_rows_refused"] == {"no certificate": 2}
    assert own["vxnet_gossip_dropped_total"] == {'odd "reason"\n': 3}
    assert own["vxnet_gossip_queue"] == {"news": 1, "rows": 2}
    assert own["vxnet_dns_queries_total"] == {"udp": 40, "tcp": 2}
    assert own["vxnet_mesh_connections_total"] == {"80/tcp": 3} and own["vxnet_mesh_refused_total"] == {"80/tcp": 1}
    assert own["vxnet_mesh_received_bytes_total"] == {"80/tcp": 900}
    assert own["vxnet_mesh_sent_bytes_total"] == {"80/tcp": 7000}
    assert own["vxnet_tunnel_frames_total"] == {"sent": 9, "received": 8}
    assert own["vxnet_tunnel_bytes_total"] == {"sent": 90, "received": 80}
    assert own["vxnet_tunnel_dropped_total"] == {"unknown source": 1, "too big": 0}
    assert own["vxnet_build_info"] == {"1.2": 1} and own["vxnet_manager_reachable"] == {"": 1}
    assert own["vxnet_certificate_expiry_timestamp_seconds"] == {"": 1.8e9}
    assert found["process_resident_memory_bytes"][""] > 0


def test_a_host_in_no_cluster_tells_of_itself_alone() -> None:
    found = scraped(metrics.exposition(ALONE)[0].decode())
    assert found["vxnet_dns_queries_total"] == {"udp": 5, "tcp": 0} and found["vxnet_networks"] == {"": 0}
    assert not {name for name in found if "gossip" in name or "manager" in name}


@pytest.mark.parametrize("healthy", [True, False])
async def test_routes(tmp_path: Path, healthy: bool) -> None:
    import asyncio

    async def measured() -> Measured:
        return MEMBER

    found = Health(healthy=healthy, problems=() if healthy else ("the kernel is not as planned",))
    app = make_app()
    app.router.add_routes(metrics.routes(measured, lambda: found))

    def get(target: str) -> tuple[int, bytes]:
        with Exchange(str(tmp_path / "s"), "GET", target, None, 10.0) as exchange:
            return exchange.status, exchange.read()

    async with serve_unix(app, tmp_path / "s"):
        status, body = await asyncio.to_thread(get, "/healthz")
        assert (status, json.loads(body)["healthy"]) == (200 if healthy else 503, healthy)
        status, body = await asyncio.to_thread(get, "/metrics")
        assert status == 200 and b"# TYPE vxnet_kernel_repairs_total counter" in body


async def test_over_tcp() -> None:
    async def measured() -> Measured:
        return ALONE

    with pytest.raises(CallerError, match="expected an address and a port"):
        async with metrics.serve("localhost", measured, lambda: Health(healthy=True)):
            pass
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(HostError, match="on which metrics are served, is in use by another program"):
            async with metrics.serve(f"127.0.0.1:{taken.getsockname()[1]}", measured, lambda: Health(healthy=True)):
                pass


def test_what_is_wrong_makes_a_host_unwell() -> None:
    assert metrics.health(None, settled=True) == Health(healthy=True)
    assert not metrics.health(None, settled=False).healthy


def test_the_documentation_tells_the_same_names() -> None:
    text = (DOCS / "metrics.md").read_text()
    told = {
        name: (kind, label.strip("` "), meaning)
        for name, kind, label, meaning in re.findall(
            r"^\| `(vxnet_\w+)` \| (\w+) \| ([^|]*) \| (.*) \|$", text, re.MULTILINE
        )
    }
    assert told == {name: (kind.type, kind.label, kind.meaning) for name, kind in METRICS.items()}


def test_the_dashboard_asks_for_what_there_is() -> None:
    board = json.loads((DOCS / "grafana-dashboard.json").read_text())
    asked = {
        name
        for panel in board["panels"]
        for target in panel["targets"]
        for name in re.findall(r"\b(?:vxnet|process)_\w+", target["expr"])
    }
    assert METRICS.keys() - asked <= {"vxnet_networks", "vxnet_manager_reachable", "vxnet_gossip_key_epoch",
                                      "vxnet_dns_names", "vxnet_build_info"}  # fmt: skip
    assert asked <= METRICS.keys() | {"process_cpu_seconds_total"}
