"""Names of services on one network.

::

    my-app, its aliases           virtual IPs; with endpoint mode dnsrr, or before there are any: the tasks
    tasks.my-app, tasks.ALIAS     all tasks
    _http._tcp.my-app             SRV: where each task serves its port ``http:80/tcp``
    PTR of a virtual IP           my-app.network

Each also as ``name.network``. Of the tasks, those that run and are healthy count: rows in state *ready*.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

from vxnet.core.names.message import PTR, SRV, encode_name, encode_reverse
from vxnet.core.names.records import Answers, pack_addresses, pack_names, serving, split_addresses
from vxnet.model.row import Endpoint, RowKey, Version
from vxnet.model.service import PublicService, ServiceNetwork

_SRV = struct.Struct(">HHH")
"""priority, weight, port"""

Rows = Mapping[RowKey, tuple[Version, Endpoint]]
Service = tuple[PublicService, ServiceNetwork]
"""And its place on the network."""


class _Meaning(NamedTuple):
    """What a name stands for. Of several the least counts: a service's name before another's alias."""

    is_alias: bool
    service: str
    """Id."""
    kind: str
    """``service``, ``tasks`` or ``ptr``."""


class ServiceNames:
    def __init__(self, qualify: Callable[[bytes], bytes | None]) -> None:
        self._qualify = qualify
        self._services: dict[str, Service] = {}
        self._tasks: dict[str, set[RowKey]] = {}
        """By service: the rows of its tasks."""
        self._meanings: dict[bytes, list[_Meaning]] = {}

    def follow(self, services: Mapping[str, Service], rows: Rows) -> set[bytes]:
        """All services on this network, by id. Returns the names that may mean something else now."""
        touched: set[bytes] = set()
        before, self._services = self._services, dict(services)
        for service_id in before.keys() | services.keys():
            old, new = before.get(service_id), services.get(service_id)
            if old is new or old == new:
                continue
            for service, add in ((old, False), (new, True)):
                if service is None:
                    continue
                touched |= self._with_ports(service, (rows[key][1] for key in self._tasks.get(service_id, ())))
                for name, meaning in self._names(service):
                    touched.add(name)
                    if add:
                        self._meanings.setdefault(name, []).append(meaning)
                    else:
                        self._meanings[name].remove(meaning)
                        if not self._meanings[name]:
                            del self._meanings[name]
        return touched

    def claim(self, key: RowKey, endpoint: Endpoint, *, add: bool) -> set[bytes]:
        """A task's row that has come, or is about to go. Returns the names that may mean something else now."""
        tasks = self._tasks.setdefault(endpoint.service, set())
        if add:
            tasks.add(key)
        else:
            tasks.discard(key)
            if not tasks:
                del self._tasks[endpoint.service]
        service = self._services.get(endpoint.service)
        if service is None:
            return set()
        return self._with_ports(service, iter((endpoint,))) | {name for name, _ in self._names(service)}

    def pack(self, name: bytes, rows: Rows) -> Answers | None:
        """None: no service has this name here."""
        meanings = self._meanings.get(name)
        if meanings is None:
            return self._pack_ports(name, rows)
        meaning = min(meanings)
        service, place = self._services[meaning.service]
        if meaning.kind == "ptr":
            target = encode_name(service.name)
            qualified = self._qualify(target) if target else None
            return {PTR: pack_names(PTR, [qualified])} if qualified else {}
        if meaning.kind == "service" and place.vips:
            return split_addresses(address.packed for address in place.vips)
        return pack_addresses(self._endpoints(meaning.service, rows))

    def _endpoints(self, service: str, rows: Rows) -> list[Endpoint]:
        return [rows[key][1] for key in self._tasks.get(service, ())]

    def _pack_ports(self, name: bytes, rows: Rows) -> Answers | None:
        asked = _split_port(name)
        if asked is None:
            return None
        port, protocol, base = asked
        meaning = min((one for one in self._meanings.get(base, ()) if one.kind == "service"), default=None)
        if meaning is None:
            return None
        endpoints = self._endpoints(meaning.service, rows)
        if not any((port, protocol) == found[:2] for endpoint in endpoints for found in _ports(endpoint)):
            return None
        targets = []
        for endpoint in serving(endpoints):
            plain = encode_name(endpoint.name)
            target = self._qualify(plain) if plain else None
            if target:
                numbers = [number for *found, number in _ports(endpoint) if found == [port, protocol]]
                targets += [_SRV.pack(0, 1, number) + target for number in numbers]
        return {SRV: pack_names(SRV, targets)} if targets else {}

    def _names(self, service: Service) -> Iterator[tuple[bytes, _Meaning]]:
        public, place = service
        for text in dict.fromkeys((public.name, *place.aliases)):
            for kind, full in (("service", text), ("tasks", f"tasks.{text}")):
                for name in self._both(full):
                    yield name, _Meaning(text != public.name, public.id, kind)
        for address in place.vips:
            yield encode_reverse(address), _Meaning(False, public.id, "ptr")

    def _both(self, text: str) -> Iterator[bytes]:
        if plain := encode_name(text):
            yield plain
            if qualified := self._qualify(plain):
                yield qualified

    def _with_ports(self, service: Service, endpoints: Iterator[Endpoint]) -> set[bytes]:
        """The SRV names that these tasks give the service."""
        ports = {found[:2] for endpoint in endpoints for found in _ports(endpoint)}
        texts = (service[0].name, *service[1].aliases)
        return {
            name for port, protocol in ports for text in texts for name in self._both(f"_{port}._{protocol}.{text}")
        }


def _ports(endpoint: Endpoint) -> Iterator[tuple[str, str, int]]:
    """(name, protocol, number) of each port with a name; others' rows are not trusted to be well written."""
    for text in endpoint.ports:
        name, _, rest = text.partition(":")
        number, _, protocol = rest.partition("/")
        if name and number.isascii() and number.isdigit() and len(number) < 6 and int(number) < 65536:
            yield name.lower(), (protocol or "tcp").lower(), int(number)


def _split_port(name: bytes) -> tuple[str, str, bytes] | None:
    """``_http._tcp.my-app``, on the wire: port, protocol, and the rest on the wire."""
    labels = []
    at = 0
    for _ in range(2):
        size = name[at]
        label = name[at + 1 : at + 1 + size]
        if not label.startswith(b"_"):
            return None
        labels.append(label[1:].decode("utf-8", "surrogateescape"))
        at += 1 + size
    return labels[0], labels[1], name[at:]
