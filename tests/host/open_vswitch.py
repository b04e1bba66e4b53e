"""Open vSwitch with its user-space datapath, in a place and with files of its own.

::

    bridge "tunnel" (its TAP: the test's end) ── vxlan port ~~ routed by the TAP of ~~> bridge "underlay" ── card
"""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

from tests.host.throwaway import Place

SCHEMA = "/usr/share/openvswitch/vswitch.ovsschema"
PATIENCE_S = 30


class OpenVSwitch:
    """Its two processes. They end with the thread of the place at the latest."""

    def __init__(self, place: Place, directory: Path) -> None:
        self._place, self._directory = place, directory
        database, self._socket = directory / "conf.db", f"unix:{directory}/db.sock"
        place.run("ovsdb-tool", "create", str(database), SCHEMA)
        self._processes: list[subprocess.Popen[bytes]] = []
        self._start("ovsdb-server", str(database), f"--remote=p{self._socket}")
        self._configure("--no-wait", "init")
        self._start("ovs-vswitchd", self._socket)

    def _start(self, program: str, *argv: str) -> None:
        files = [f"--unixctl={self._directory}/{program}.ctl", f"--log-file={self._directory}/{program}.log"]
        command = ["setpriv", "--pdeathsig", "KILL", program, "-vconsole:off", *argv, *files]
        # Whatever else it keeps is to be here too, and nothing where an installed Open vSwitch has its own.
        places = {f"OVS_{name}DIR": str(self._directory) for name in ("RUN", "LOG", "DB", "SYSCONF")}
        self._processes.append(self._place.do(subprocess.Popen, command, env=os.environ | places))

    def _configure(self, *argv: str) -> None:
        self._place.run("ovs-vsctl", f"--db={self._socket}", "--retry", f"--timeout={PATIENCE_S}", *argv)

    def join(self, card: str, tunnel: str, mac: str, *, remote: str, vni: int, port: int) -> str:
        """Bridge ``tunnel``, with this MAC, to ``remote`` over ``card``; the device for the card's address."""
        self._configure(
            *("add-br", "underlay", "--", "set", "bridge", "underlay", "datapath_type=netdev"),
            *("--", "add-port", "underlay", card),
            *("--", "add-br", tunnel, "--", "set", "bridge", tunnel, "datapath_type=netdev"),
            # Another that is set by hand it would take back.
            f"other-config:hwaddr={mac}",
            *("--", "add-port", tunnel, "vxlan", "--", "set", "interface", "vxlan", "type=vxlan"),
            *(f"options:remote_ip={remote}", f"options:key={vni}", f"options:dst_port={port}"),
        )
        self._place.run("ip", "link", "set", "underlay", "up")
        return "underlay"

    def close(self) -> None:
        for process in reversed(self._processes):
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
