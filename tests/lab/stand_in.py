"""Stands in for a daemon where a test is about the lab alone: answers ``GET /v1/info`` and starts a child."""

from __future__ import annotations

import os
import socket
import socketserver
import subprocess
import sys
from http.server import BaseHTTPRequestHandler
from pathlib import Path

SOCKET = Path("/run/vxnet/vxnet.sock")


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = b'{"version": "0", "name": "%s"}' % socket.gethostname().encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def address_string(self) -> str:
        return "unix"


def main() -> None:
    print(f"stand-in starts, pid {os.getpid()}", flush=True)
    if "--fail" in sys.argv:
        sys.exit("no such luck")
    SOCKET.parent.mkdir(exist_ok=True)
    SOCKET.unlink(missing_ok=True)
    subprocess.Popen(["sleep", "1000"])  # as a container's shim would: it outlives the daemon
    with socketserver.UnixStreamServer(str(SOCKET), Handler) as server:
        server.serve_forever()


if __name__ == "__main__":
    main()
