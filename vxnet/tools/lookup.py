"""A container's question for an address, asked of its own name server from within its namespace (RFC 1035)."""

from __future__ import annotations

import contextlib
import ipaddress
import secrets
import socket
import struct

from vxnet.core.names.message import encode_name
from vxnet.host import netns
from vxnet.model.address import IPAddress

TYPE_A = 1
ANSWER_S = 2.0
TRIES = 2


def addresses_of(namespace: int, server: IPAddress, name: str) -> list[IPAddress] | None:
    """IPv4 addresses of ``name``, in the server's order; None: it does not answer."""
    return netns.inside(namespace, lambda: _ask(server, name))


def _ask(server: IPAddress, name: str) -> list[IPAddress] | None:
    encoded = encode_name(name)
    if encoded is None:
        return []
    query = secrets.token_bytes(2) + struct.pack("!HHHHH", 0x0100, 1, 0, 0, 0) + encoded + struct.pack("!HH", TYPE_A, 1)
    for _ in range(TRIES):
        with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
            one.settimeout(ANSWER_S)
            one.connect((str(server), 53))
            one.send(query)
            answer = one.recv(4096)
            if answer[:2] == query[:2]:
                return _read(answer, len(query))
    return None


def _read(answer: bytes, offset: int) -> list[IPAddress]:
    """Behind the question, which is at the front of the answer as it was asked."""
    found: list[IPAddress] = []
    for _ in range(int.from_bytes(answer[6:8])):
        while offset < len(answer) and 0 < answer[offset] < 0xC0:
            offset += answer[offset] + 1
        offset += 2 if offset < len(answer) and answer[offset] >= 0xC0 else 1
        kind, _, _, length = struct.unpack_from("!HHIH", answer, offset)
        offset += 10
        if kind == TYPE_A and length == 4:
            found.append(ipaddress.ip_address(answer[offset : offset + 4]))
        offset += length
    return found
