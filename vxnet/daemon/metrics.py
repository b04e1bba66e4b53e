"""What Prometheus reads of a host, and whether the host is well.

Nothing counts for these alone: at each scrape the parts are asked for what they know. The names and what they mean are
in :data:`METRICS` and nowhere else; docs/metrics.md lists them, and a test compares.
"""

from __future__ import annotations

import contextlib
import ipaddress
import socket
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Literal, NamedTuple

from aiohttp import web

from vxnet.cluster.api import json_response, make_app, serving
from vxnet.cluster.manager_api import listen
from vxnet.core import trust
from vxnet.daemon.place import Place
from vxnet.daemon.views import REMOVED
from vxnet.model.api import Health, Info
from vxnet.model.container import Container
from vxnet.model.errors import CallerError
from vxnet.model.mesh import MeshTraffic

if TYPE_CHECKING:
    from prometheus_client.core import Metric


class Kind(NamedTuple):
    type: Literal["gauge", "counter"]
    meaning: str
    label: str = ""


METRICS: Mapping[str, Kind] = {
    "vxnet_build_info": Kind("gauge", "Always 1; the version of vxnet.", "version"),
    "vxnet_nodes": Kind("gauge", "Members of the cluster as gossip has them, this host included.", "status"),
    "vxnet_manager_reachable": Kind("gauge", "1 if a manager can be reached: without one nothing new can be made."),
    "vxnet_certificate_expiry_timestamp_seconds": Kind("gauge", "When this node's certificate ends."),
    "vxnet_networks": Kind("gauge", "Networks of the cluster."),
    "vxnet_segments": Kind("gauge", "Overlay networks that are live on this host."),
    "vxnet_containers": Kind("gauge", "Containers of this host.", "state"),
    "vxnet_kernel_repairs_total": Kind(
        "counter", "Drift: how often the kernel was found other than planned although no wish had changed, and mended."
    ),
    "vxnet_drain_timeouts_total": Kind(
        "counter", "Tasks that were told to end before every other node had said that it sends them nothing new."
    ),
    "vxnet_rows": Kind("gauge", "Endpoints and other rows of the cluster that count."),
    "vxnet_rows_refused": Kind("gauge", "Rows kept without effect.", "reason"),
    "vxnet_gossip_health_score": Kind(
        "gauge", "Lifeguard's awareness: 0 is healthy, more means that this host is slow."
    ),
    "vxnet_gossip_queue": Kind("gauge", "Pieces of news that wait to be passed on.", "kind"),
    "vxnet_gossip_key_epoch": Kind("gauge", "Number of the gossip key in use."),
    "vxnet_gossip_sent_bytes_total": Kind("counter", "Octets of gossip sent by datagram."),
    "vxnet_gossip_dropped_total": Kind("counter", "Packets and messages that were of no use.", "reason"),
    "vxnet_dns_queries_total": Kind("counter", "Queries of this host's containers.", "transport"),
    "vxnet_mesh_connections_total": Kind(
        "counter", "Connections to a published port that this node gave to a task; of UDP, flows.", "port"
    ),
    "vxnet_mesh_refused_total": Kind("counter", "Packets to a published port for which there was no task.", "port"),
    "vxnet_mesh_received_bytes_total": Kind("counter", "Octets from clients of a published port.", "port"),
    "vxnet_mesh_sent_bytes_total": Kind("counter", "Octets to clients of a published port.", "port"),
    "vxnet_tunnel_frames_total": Kind("counter", "Frames through tunnels in user space.", "direction"),
    "vxnet_tunnel_bytes_total": Kind("counter", "Octets of these frames.", "direction"),
    "vxnet_tunnel_dropped_total": Kind("counter", "What tunnels in user space did not pass on, or not well.", "reason"),
    "vxnet_dns_names": Kind("gauge", "Names that are answered from the table."),
}
"""Beside these, prometheus_client's ``process_*``: processor time, memory, descriptors, start."""


class Measured(NamedTuple):
    """One look at everything."""

    info: Info
    nodes: Mapping[str, int]
    """By gossip's word."""
    containers: Mapping[str, int]
    """By state."""
    gossip: Mapping[str, int]
    dropped: Mapping[str, int]
    dns: Mapping[str, int]
    certificate_ends: float | None
    mesh: tuple[MeshTraffic, ...] = ()
    tunnels: Mapping[str, int] = {}
    """In user space, as csrc/vxlan/vxlan.h names it."""


def measure(
    info: Info,
    place: Place | None,
    containers: Iterable[Container],
    dns: Mapping[str, int],
    mesh: tuple[MeshTraffic, ...],
    tunnels: Mapping[str, int],
) -> Measured:
    return Measured(
        info=info,
        nodes=Counter(member.status for member in place.members()) if place is not None else {},
        containers=Counter(container.state for container in containers),
        gossip=place.gossip.statistics() if place is not None else {},
        dropped=place.gossip.dropped() if place is not None else {},
        dns=dns,
        certificate_ends=trust.validity(place.certificate)[1] if place is not None else None,
        mesh=mesh,
        tunnels=tunnels,
    )


def health(place: Place | None, *, settled: bool) -> Health:
    """``settled``: the kernel is as it is planned. Silent managers harm nothing that there is: that is a warning."""
    problems = [] if settled else ["the kernel is not as planned: the log says what it refuses"]
    warnings = []
    if place is not None:
        if place.removed:
            problems.append(REMOVED)
        if not place.gossip.is_open:
            problems.append("the gossip has no socket: the log says who holds the port")
        if not place.manager_reachable:
            warnings.append("no manager can be reached")
    return Health(healthy=not problems, problems=tuple(problems), warnings=tuple(warnings))


def samples(measured: Measured) -> dict[str, Mapping[str, float]]:
    """Value by label by name; the label is empty where the metric has none."""
    info, gossip, dns = measured.info, measured.gossip, measured.dns
    mesh = {f"{one.published}/{one.protocol}": one for one in measured.mesh}
    member = bool(info.cluster)
    frames, octets, dropped = _tunnels(measured.tunnels)
    return {
        "vxnet_build_info": {info.version: 1},
        "vxnet_nodes": measured.nodes,
        "vxnet_manager_reachable": {"": info.manager_reachable} if member else {},
        "vxnet_certificate_expiry_timestamp_seconds": (
            {"": measured.certificate_ends} if measured.certificate_ends is not None else {}
        ),
        "vxnet_networks": {"": info.networks},
        "vxnet_segments": {"": info.segments},
        "vxnet_containers": measured.containers,
        "vxnet_kernel_repairs_total": {"": info.drift},
        "vxnet_drain_timeouts_total": {"": info.drain_timeouts},
        "vxnet_rows": {"": info.rows},
        "vxnet_rows_refused": info.rows_refused,
        "vxnet_gossip_health_score": {"": info.health} if member else {},
        "vxnet_gossip_queue": {"news": gossip["news"], "rows": gossip["row_queue"]} if member else {},
        "vxnet_gossip_key_epoch": {"": info.key_epoch} if member else {},
        "vxnet_gossip_sent_bytes_total": {"": gossip["sent_octets"]} if member else {},
        "vxnet_gossip_dropped_total": measured.dropped,
        "vxnet_dns_queries_total": {"udp": dns.get("queries_udp", 0), "tcp": dns.get("queries_tcp", 0)},
        "vxnet_mesh_connections_total": {port: one.connections for port, one in mesh.items()},
        "vxnet_mesh_refused_total": {port: one.refused for port, one in mesh.items()},
        "vxnet_mesh_received_bytes_total": {port: one.received for port, one in mesh.items()},
        "vxnet_mesh_sent_bytes_total": {port: one.sent for port, one in mesh.items()},
        "vxnet_tunnel_frames_total": frames,
        "vxnet_tunnel_bytes_total": octets,
        "vxnet_tunnel_dropped_total": dropped,
        "vxnet_dns_names": {"": dns.get("names", 0)},
    }


def _tunnels(counted: Mapping[str, int]) -> tuple[dict[str, int], dict[str, int], dict[str, int]]:
    """Frames and octets by direction, and the rest, but for frames that were joined: they have passed."""
    if not counted:
        return {}, {}, {}
    both = ("sent", "received")
    passed = {f"{way}_{what}" for way in both for what in ("frames", "octets")} | {"joined_frames"}
    return (
        {way: counted[f"{way}_frames"] for way in both},
        {way: counted[f"{way}_octets"] for way in both},
        {reason.replace("_", " "): number for reason, number in counted.items() if reason not in passed},
    )


def exposition(measured: Measured) -> tuple[bytes, str]:
    """In Prometheus' text format, and its content type."""
    # Late: whom nobody scrapes shall not have it in memory.
    from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, ProcessCollector, generate_latest
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
    from prometheus_client.registry import Collector

    values = samples(measured)

    class Host(Collector):
        def collect(self) -> Iterator[Metric]:
            for name, kind in METRICS.items():
                family = GaugeMetricFamily if kind.type == "gauge" else CounterMetricFamily
                metric = family(name, kind.meaning, labels=[kind.label] if kind.label else [])
                for label, value in sorted(values[name].items()):
                    metric.add_metric([label] if kind.label else [], value)
                yield metric

    registry = CollectorRegistry(auto_describe=False)
    registry.register(Host())
    ProcessCollector(registry=registry)
    return generate_latest(registry), CONTENT_TYPE_LATEST


@contextlib.asynccontextmanager
async def serve(
    address: str, measured: Callable[[], Awaitable[Measured]], found: Callable[[], Health]
) -> AsyncIterator[None]:
    """Over TCP at ``ADDRESS:PORT``, for as long as the block lasts. Raises :class:`CallerError` on what is no address,
    :class:`HostError` on one that cannot be had."""
    app = make_app()
    app.router.add_routes(routes(measured, found))
    async with serving(app, _listener(address)):
        yield


def _listener(text: str) -> socket.socket:
    host, _, port = text.rpartition(":")
    try:
        address = ipaddress.ip_address(host.removeprefix("[").removesuffix("]"))
        number = int(port)
    except ValueError:
        raise CallerError(f"metrics-addr = {text!r}: expected an address and a port, such as 127.0.0.1:9323") from None
    return listen(address, number, "metrics are served")


def routes(measured: Callable[[], Awaitable[Measured]], found: Callable[[], Health]) -> list[web.RouteDef]:
    """``/metrics`` and ``/healthz``, without a version in front: everybody's scraper knows these two."""

    async def metrics(request: web.Request) -> web.Response:
        body, content_type = exposition(await measured())
        return web.Response(body=body, headers={"Content-Type": content_type})

    async def healthz(request: web.Request) -> web.Response:
        answer = found()
        return json_response(answer, status=200 if answer.healthy else 503)

    return [web.get("/metrics", metrics), web.get("/healthz", healthz)]
