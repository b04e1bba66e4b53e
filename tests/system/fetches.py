"""HTTP through a service's virtual IP: so many requests a second, a new connection each, and which of them failed."""

from __future__ import annotations

import json
import subprocess
from typing import NamedTuple

from vxnet.lab import Lab

PORT = 8080
PATIENCE_S = 10

# Answers with its host name, ends on SIGTERM once what it was asked is answered.
SERVER = rf"""
import http.server, signal, socket, sys, threading
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = socket.gethostname().encode() + b"\n"
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *args):
        pass
class Server(http.server.ThreadingHTTPServer):
    request_queue_size = 128
    daemon_threads = False
server = Server(("", {PORT}), Handler)
signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.shutdown).start())
server.serve_forever()
server.server_close()
"""

_ASK = f"""
import json, select, sys, threading, time, urllib.request
name, rate, failed = sys.argv[1], float(sys.argv[2]), []
def ask():
    begun = time.monotonic()
    try:
        with urllib.request.urlopen(f"http://{{name}}:{PORT}", timeout={PATIENCE_S}) as answer:
            answer.read()
    except OSError as error:
        failed.append(f"after {{time.monotonic() - begun:.1f}} s: {{error}}")
print("asks", flush=True)
begun, asked = time.monotonic(), []
while not select.select([sys.stdin], [], [], 0)[0]:
    asked.append(threading.Thread(target=ask))
    asked[-1].start()
    time.sleep(max(begun + len(asked) / rate - time.monotonic(), 0))
for one in asked:
    one.join()
rate = len(asked) / (time.monotonic() - begun)
print(json.dumps({{"asked": len(asked), "failed": failed, "rate": rate}}), flush=True)
"""


class Fetched(NamedTuple):
    asked: int
    failed: list[str]
    rate: float
    """Requests a second."""


class Fetches:
    """From a container that runs on ``host``, of the service ``name``, until :meth:`stop`."""

    def __init__(self, lab: Lab, host: str, container: str, name: str, rate: float) -> None:
        argv = ["vxnet", "exec", "-i", container, "python3", "-c", _ASK, name, str(rate)]
        self._child = lab.popen(host, argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._child.stdout and self._child.stdout.readline() == "asks\n"

    def stop(self) -> Fetched:
        out, _ = self._child.communicate(timeout=60)
        return Fetched(**json.loads(out))
