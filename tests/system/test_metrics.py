"""The figures of a running daemon, as a scraper gets them."""

from __future__ import annotations

import json

import pytest

from tests.daemon.test_metrics import scraped
from tests.system.operator import Session, eventually
from vxnet.cluster.http1 import Exchange

pytestmark = [pytest.mark.lab, pytest.mark.slow]


def get(session: Session, host: str, target: str) -> tuple[int, str]:
    with Exchange(session.lab.client(host).socket_path, "GET", target, None, 10.0) as exchange:
        return exchange.status, exchange.read().decode()


def test_what_a_host_tells_prometheus(session: Session) -> None:
    session.network("blue")
    session.container("h1", "web", "blue")
    session.container("h2", "db", "blue")
    # From the second time on a look that finds something else is drift.
    eventually(lambda: session.inside("h1", "web", "ping -c1 -W2 db").returncode == 0)
    eventually(lambda: scraped(get(session, "h1", "/metrics")[1])["vxnet_nodes"] == {"alive": 3})
    before = scraped(get(session, "h1", "/metrics")[1])
    assert before["vxnet_containers"]["running"] >= 1
    assert before["vxnet_manager_reachable"][""] == 1 and before["vxnet_segments"][""] >= 1
    assert before["vxnet_dns_queries_total"]["udp"] > 0 and before["vxnet_gossip_sent_bytes_total"][""] > 0

    row = next(line for line in session.datapath("h1", "bridge fdb show").splitlines() if " dst " in line)
    mac, _, device = row.split()[:3]
    session.datapath("h1", f"bridge fdb del {mac} dev {device} self")

    def repaired() -> float:
        return scraped(get(session, "h1", "/metrics")[1])["vxnet_kernel_repairs_total"][""]

    assert eventually(lambda: repaired() == before["vxnet_kernel_repairs_total"][""] + 1)
    status, body = get(session, "h2", "/healthz")
    assert status == 200 and json.loads(body)["healthy"] is True
