"""What a container gets: an answer to a name, and a way out. Tried from within its namespace, by what it would send."""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import struct
from collections.abc import Iterator, Sequence
from ipaddress import ip_address
from typing import NamedTuple

from vxnet.core.names.message import encode_name
from vxnet.host import netns
from vxnet.host.echo import echo
from vxnet.model.address import IPAddress
from vxnet.model.checkup import Diagnosis
from vxnet.model.host import Sandbox

CONTAINERS = 20
"""So many are looked into: what is wrong with the host is wrong with each."""
ANSWER_S = 1.0
TRIES = 2
OCTETS = 84
"""Of an echo, as ping(8) sends them."""


class Inside(NamedTuple):
    name: str
    """The container's."""
    names: bool | None
    """Whether its name server answers; None: it has none."""
    gateway: bool | None
    """Whether vxnet_gw answers; None: it has no way out."""
    beyond: IPAddress | None
    """Another host that this host reaches, and …"""
    reached: bool
    """… whether the container does."""


def look_inside(diagnosis: Diagnosis | None, others: Sequence[IPAddress]) -> Iterator[Inside]:
    if diagnosis is None:
        return
    beyond = next((one for one in others if one.version == 4 and _reaches(None, one)), None)
    for box in [one for one in diagnosis.plan.sandboxes if not one.foreign][:CONTAINERS]:
        namespace = netns.open_path(box.netns)
        if namespace is None:
            continue
        try:
            name = diagnosis.containers.get(box.id, box.id[:12])
            yield netns.inside(namespace, lambda box=box, name=name: _look(box, name, beyond))  # type: ignore[misc]
        finally:
            os.close(namespace)


def _look(box: Sandbox, name: str, beyond: IPAddress | None) -> Inside:
    answers = resolver_answers(box.resolver) if box.dns_port else None
    way_out = next((one for one in box.interfaces if one.vni is None), None)
    gateway = next((via for via in box.default_via if via.version == 4), None)
    source = next((one.ip for one in way_out.addresses if one.version == 4), None) if way_out is not None else None
    if gateway is None or source is None:
        return Inside(name, answers, None, None, False)
    reached = beyond is not None and _reaches(source, beyond)
    return Inside(name, answers, _reaches(source, gateway), beyond, reached)


def _reaches(source: IPAddress | None, destination: IPAddress) -> bool:
    with contextlib.suppress(OSError):
        return bool(echo(source or _source_to(destination), [(destination, OCTETS)]))
    return False


def _source_to(destination: IPAddress) -> IPAddress:
    """The address that the kernel would use. Raises OSError."""
    family = socket.AF_INET if destination.version == 4 else socket.AF_INET6
    with socket.socket(family, socket.SOCK_DGRAM) as one:
        one.connect((str(destination), 9))
        return ip_address(one.getsockname()[0])


def resolver_answers(server: IPAddress) -> bool:
    """Whether it says anything to a question for ``localhost``; a refusal is an answer too."""
    identifier = secrets.token_bytes(2)
    question = identifier + struct.pack("!HHHHH", 0x0100, 1, 0, 0, 0) + (encode_name("localhost") or b"\0")
    family = socket.AF_INET if server.version == 4 else socket.AF_INET6
    for _ in range(TRIES):
        with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as one:
            one.settimeout(ANSWER_S)
            one.connect((str(server), 53))
            one.send(question + struct.pack("!HH", 1, 1))
            if one.recv(4096)[:2] == identifier:
                return True
    return False
