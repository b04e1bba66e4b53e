"""`vxnet bundle`: what somebody needs who is to help, in one file, and none of the cluster's secrets.

The keys of the gossip, tokens, certificates' keys and the store are never asked for. What people put into containers
themselves (environments) is left out by name, and whatever looks like a join token is blotted out everywhere.
"""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from vxnet import __version__
from vxnet.cluster.client import Client
from vxnet.model.codec import to_json
from vxnet.model.errors import VxnetError

COMMANDS = {
    "uname": "uname -a",
    "links": "ip -d link",
    "addresses": "ip address",
    "routes": "ip route show table all",
    "rules": "ip rule",
    "sockets": "ss -tulnp",
    "nft": "nft list ruleset",
    "datapath-links": "ip netns exec vxnet ip -d link",
    "datapath-fdb": "ip netns exec vxnet bridge fdb",
    "datapath-neighbours": "ip netns exec vxnet ip neigh",
    "datapath-ports": "ip netns exec vxnet bridge -d link",
    "processes": "ps -eo pid,ppid,user,etime,rss,comm",
    "disk": "df -h /var/lib/vxnet /run",
    "log": "journalctl -u vxnetd -n 5000 --no-pager",
    "kernel-log": "dmesg",
}
"""By the file's name. One that is not there leaves its error in its place."""
COMMAND_S = 20
OCTETS = 8 << 20
"""Of one command's output, its end."""
EVENTS_S = 86400.0
LEFT_OUT = "(left out)"
_TOKEN = re.compile(r"VXTKN-[\w-]+")
_SECRET_NAMES = frozenset({"env", "environment", "secret", "token", "keys", "key", "password"})


def write(
    client: Client,
    path: Path | None,
    findings: Callable[[], object],
    progress: Callable[[str], None] = lambda text: None,
) -> list[str]:
    """Names of the files in it. ``findings``: what a doctor finds. Only root may read it; interrupted, it is not there.
    Without a ``path`` to standard output.

    Raises OSError, also if ``path`` is there already: nobody's link is followed.
    """
    if path is None:
        with tarfile.open(fileobj=sys.stdout.buffer, mode="w|gz") as tar:
            return _fill(tar, _files(client, findings, progress))
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file, tarfile.open(fileobj=file, mode="w:gz") as tar:
            return _fill(tar, _files(client, findings, progress))
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def _fill(tar: tarfile.TarFile, files: Iterable[tuple[str, bytes]]) -> list[str]:
    top = f"vxnet-support-{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}"
    names = []
    for name, data in files:
        about = tarfile.TarInfo(f"{top}/{name}")
        about.size, about.mtime, about.mode = len(data), int(time.time()), 0o600
        tar.addfile(about, io.BytesIO(data))
        names.append(name)
    return names


def _files(
    client: Client, findings: Callable[[], object], progress: Callable[[str], None]
) -> Iterator[tuple[str, bytes]]:
    yield "version", f"vxnet {__version__}\n".encode()
    asked: dict[str, Callable[[], object]] = {
        "info": client.info,
        "diagnosis": client.diagnosis,
        "gossip": client.gossip,
        "nodes": client.nodes,
        "networks": lambda: [client.network(one.id, verbose=True) for one in client.networks()],
        "services": client.services,
        "containers": lambda: [client.container(one.id) for one in client.containers(all=True)],
        "guests": client.guests,
        "events": lambda: list(client.events(since=time.time() - EVENTS_S, until=time.time())),
        "doctor": findings,
    }
    for name, ask in asked.items():
        progress(name)
        yield f"{name}.json", _scrubbed(_or_error(ask))
    for name, command in COMMANDS.items():
        progress(name)
        yield f"{name}.txt", _blotted(_said(command))
    config = Path("/etc/vxnet/vxnet.toml")
    if config.is_file():
        yield "vxnet.toml", _blotted(config.read_bytes())


def _or_error(ask: Callable[[], object]) -> object:
    try:
        return ask()
    except (VxnetError, OSError) as error:
        return {"error": str(error)}


def _said(command: str) -> bytes:
    try:
        done = subprocess.run(
            command.split(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=COMMAND_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{command}: {error}\n".encode()
    return done.stdout[-OCTETS:]


def _scrubbed(record: object) -> bytes:
    """JSON without the values of what may be secret."""
    plain = json.loads(to_json(record))
    return _blotted(msgspec.json.format(json.dumps(_without(plain)).encode(), indent=2)) + b"\n"


def _without(value: Any) -> Any:
    match value:
        case dict():
            return {
                name: _covered(part) if name.lower() in _SECRET_NAMES else _without(part)
                for name, part in value.items()
            }
        case list():
            return [_without(part) for part in value]
        case _:
            return value


def _covered(value: Any) -> Any:
    """The names of an environment are no secret, and may explain much."""
    match value:
        case list():
            return [f"{part.partition('=')[0]}={LEFT_OUT}" if isinstance(part, str) else LEFT_OUT for part in value]
        case dict():
            return dict.fromkeys(value, LEFT_OUT)
        case _:
            return LEFT_OUT


def _blotted(data: bytes) -> bytes:
    return _TOKEN.sub("VXTKN-" + LEFT_OUT, data.decode(errors="replace")).encode()
