"""`vxnet mesh`: who gets a connection to a published port."""

from __future__ import annotations

import json

from tests.cli.conftest import Vxnet
from tests.daemon.memory_agent import Daemon


def test_ports_and_who_gets_a_connection(server: Daemon, vxnet_: Vxnet) -> None:
    vxnet_("init")
    lines = [" ".join(line.split()) for line in vxnet_("mesh").stdout.splitlines()]
    assert lines == [
        "PORT SERVICE POLICY NODES CONNECTIONS REFUSED RECEIVED SENT",
        "80/tcp web prefer-local 1/2 3 1 900 7000",
    ]
    for name in ("80", "80/tcp"):
        lines = [" ".join(line.split()) for line in vxnet_("mesh", name).stdout.splitlines()]
        assert lines == [
            "Port: 80/tcp, 8080 in the tasks",
            "Service: web",
            "Policy: prefer-local",
            "Bound to: all addresses",
            "For: everybody",
            "Through this node: 3 connections, 1 refused",
            "Octets: 900 received, 7000 sent",
            "",
            "NODE TASKS WHY",
            "h1 web.1.x (10.0.0.11 on h1) prefer-local: ready here",
            "h2 - no task is ready, so it is refused",
        ]
    found = json.loads(vxnet_("mesh", "80", "--format", "json").stdout)
    assert found["choices"][0]["tasks"][0]["task"] == "web.1.x"
    for name in ("81", "80/udp"):
        assert vxnet_("mesh", name).stderr == (
            f"vxnet: nobody has published port {name}; `vxnet mesh` shows the ports that are published\n"
        )
