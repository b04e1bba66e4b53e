"""What ``-p/--publish`` takes, as :class:`PublishedPort` records."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple, TypeVar

from vxnet.model.address import IPAddress, IPNetwork
from vxnet.model.errors import CallerError, UnsupportedError
from vxnet.model.published import PortProtocol, PublishedPort, PublishMode, PublishPolicy

T = TypeVar("T")

SHORT: Final = "[[IP:]PUBLISHED:]TARGET[/PROTOCOL]"
_HINT: Final = f"write {SHORT}, such as 8080:80/tcp, or published=8080,target=80,…"
_NUMBER: Final = re.compile(r"[0-9]{1,5}")
_INTERFACE: Final = re.compile(r"[a-zA-Z][a-zA-Z0-9_.@-]{0,14}")
"""A link's name has at most 15 characters (IFNAMSIZ)."""
_PROTOCOLS: Final[dict[str, PortProtocol]] = {"tcp": "tcp", "udp": "udp"}
_MODES: Final[dict[str, PublishMode]] = {"ingress": "ingress", "host": "host"}
_POLICIES: Final[dict[str, PublishPolicy]] = {one: one for one in ("prefer-local", "local", "cluster")}
_KEYS: Final = ("published", "target", "protocol", "mode", "ip", "from", "policy")
RANGE_MAX: Final = 1000


class _Wish(NamedTuple):
    """The parts of one value, as text; empty: not given."""

    text: str
    published: str = ""
    target: str = ""
    protocol: str = ""
    mode: str = ""
    places: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()
    policy: str = ""

    def wrong(self, why: str, hint: str = _HINT) -> CallerError:
        return CallerError(f"--publish {self.text!r}: {why}", hint=hint)


def published_ports(text: str, default_mode: PublishMode = "ingress") -> tuple[PublishedPort, ...]:
    """One value in either form; of a range one record for each port. Raises :class:`CallerError`,
    :class:`UnsupportedError`.
    """
    wish = _long(text) if "=" in text else _short(text)
    if not wish.target:
        raise wish.wrong("the container's port is missing")
    targets = _range(wish, wish.target, 1)
    numbers = _range(wish, wish.published, 0) if wish.published else range(1)
    if numbers == range(1):
        numbers = range(0)
    elif len(numbers) != len(targets):
        raise wish.wrong(
            f"{len(numbers)} published ports cannot lead to {len(targets)} of the container's",
            "give ranges of the same length: 8000-8003:80-83",
        )
    addresses, interface = _places(wish)
    protocol = _one_of(wish, "protocol", wish.protocol.lower() or "tcp", _PROTOCOLS)
    mode = _one_of(wish, "mode", wish.mode or default_mode, _MODES)
    policy = _one_of(wish, "policy", wish.policy or "prefer-local", _POLICIES)
    if mode == "host" and wish.policy:
        raise wish.wrong("policy= is the routing mesh's, and mode=host goes round that", "leave one of them out")
    return tuple(
        PublishedPort(
            target=target,
            published=numbers[place] if numbers else 0,
            protocol=protocol,
            mode=mode,
            addresses=addresses,
            interface=interface,
            sources=tuple(_source(wish, source) for source in wish.sources),
            policy=policy,
        )
        for place, target in enumerate(targets)
    )


def container_ports(texts: Iterable[str]) -> tuple[PublishedPort, ...]:
    """Those of `run`. Raises as :func:`published_ports`."""
    ports = [port for text in texts for port in published_ports(text, "host")]
    if any(port.mode != "host" for port in ports):
        raise CallerError(
            "mode=ingress is for services: a container's port is one of its host alone",
            hint="leave mode= out, or make a service",
        )
    return tuple(ports)


def with_ports(
    before: Sequence[PublishedPort], removed: Iterable[str], added: Iterable[str]
) -> tuple[PublishedPort, ...]:
    """What `service update` makes of a service's ports: first what goes, then what comes. One that is there already is
    replaced. Raises :class:`CallerError`, also about one that is to go and is not there.
    """
    kept = list(before)
    for text in removed:
        going = [port for port in kept if _is_meant(port, text)]
        if not going:
            there = ", ".join(f"{port.published}:{port.target}/{port.protocol}" for port in before)
            hint = f"published are {there}" if there else "it publishes none"
            raise CallerError(f"--publish-rm: there is no {text!r}", hint=hint)
        kept = [port for port in kept if port not in going]
    new = [port for text in added for port in published_ports(text)]
    replaced = {_place(port) for port in new if port.published}
    return (*(port for port in kept if _place(port) not in replaced), *new)


def _place(port: PublishedPort) -> tuple[object, ...]:
    return port.published, port.protocol, port.addresses, port.interface


def _is_meant(port: PublishedPort, text: str) -> bool:
    """By the container's port, as Docker has it, or by any value that publishes it so."""
    for one in published_ports(text):
        same = (port.target, port.protocol) == (one.target, one.protocol)
        if same and one.published in (0, port.published) and one.addresses in ((), port.addresses):
            return True
    return False


# The two forms


def _short(text: str) -> _Wish:
    body, slash, protocol = text.partition("/")
    wish = _Wish(text, protocol=protocol)
    if slash and not protocol:
        raise wish.wrong("the protocol behind / is missing")
    place = ""
    if body.startswith("["):
        place, bracket, body = body[1:].partition("]")
        if not bracket or not body.startswith(":") or ":" not in place:
            raise wish.wrong("an IPv6 address stands in brackets, with a colon behind them")
        body = body[1:]
        if ":" not in body:
            raise wish.wrong("behind an address come two ports", "write IP:PUBLISHED:TARGET; PUBLISHED may be empty")
    parts = body.split(":")
    if not place and len(parts) == 3:
        place, *parts = parts
        if not place:
            raise wish.wrong("the address before the first colon is missing")
    if len(parts) > 2:
        raise wish.wrong("there are too many colons", "an IPv6 address stands in brackets: [fd00::1]:8080:80")
    if not place and len(parts) == 2 and not parts[0]:
        raise wish.wrong("the published port before the colon is missing")
    *published, target = parts
    return wish._replace(target=target, published="".join(published), places=(place,) if place else ())


def _long(text: str) -> _Wish:
    wish = _Wish(text)
    given: dict[str, list[str]] = {}
    for part in text.split(","):
        key, sign, value = part.partition("=")
        if key not in _KEYS or not sign:
            raise wish.wrong(f"{part!r} is unknown", f"there are {'=, '.join(_KEYS)}=")
        if not value:
            raise wish.wrong(f"{key}= is empty", "give it a value, or leave it out")
        if key in given and key not in ("ip", "from"):
            raise wish.wrong(f"{key}= is given twice", "leave one of them out")
        given.setdefault(key, []).append(value)
    single = {key: values[0] for key, values in given.items() if key not in ("ip", "from")}
    return wish._replace(**single, places=tuple(given.get("ip", ())), sources=tuple(given.get("from", ())))


# Values


def _range(wish: _Wish, text: str, least: int) -> range:
    first, sign, last = text.partition("-")
    ends = []
    for end in (first, last) if sign else (first,):
        if not _NUMBER.fullmatch(end) or not least <= int(end) < 65536:
            raise wish.wrong(
                f"{end!r} is no port", f"a port is a number from {least} to 65535, or a range such as 80-83"
            )
        ends.append(int(end))
    if ends[-1] < ends[0]:
        raise wish.wrong(f"the range {text} runs backwards", f"write {ends[-1]}-{ends[0]}")
    if sign and not ends[0]:
        raise wish.wrong(f"the range {text} begins with 0", "0 alone means: any that is free")
    if ends[-1] - ends[0] >= RANGE_MAX:
        raise wish.wrong(f"the range {text} has more than {RANGE_MAX} ports", "publish fewer")
    return range(ends[0], ends[-1] + 1)


def _places(wish: _Wish) -> tuple[tuple[IPAddress, ...], str]:
    """(addresses, interface)."""
    addresses: list[IPAddress] = []
    interfaces: list[str] = []
    for text in wish.places:
        try:
            address = ipaddress.ip_address(text)
        except ValueError:
            if not _INTERFACE.fullmatch(text):
                why = f"{text!r} is neither an address nor an interface"
                raise wish.wrong(why, "such as 192.168.56.11, or eth1") from None
            interfaces.append(text)
            continue
        if address.is_multicast or str(address) == "255.255.255.255" or "%" in text:
            raise wish.wrong(f"{text} is no address of a node", "name one of its unicast addresses, without a zone")
        addresses.append(address)
    if len(interfaces) > 1 or (interfaces and addresses):
        raise wish.wrong("a port is bound to addresses, or to one interface", "publish it once for each")
    if len({*addresses}) < len(addresses):
        raise wish.wrong("an address is given twice", "leave one of them out")
    return tuple(addresses), "".join(interfaces)


def _source(wish: _Wish, text: str) -> IPNetwork:
    try:
        return ipaddress.ip_network(text)
    except ValueError as error:
        raise wish.wrong(f"from={text} is no prefix ({error})", "such as from=192.168.0.0/16") from None


def _one_of(wish: _Wish, key: str, value: str, known: dict[str, T]) -> T:
    if key == "protocol" and value == "sctp":
        raise UnsupportedError("sctp ports are not published", hint="tcp and udp are")
    if value not in known:
        raise wish.wrong(f"there is no {key} {value!r}", f"there are {', '.join(known)}")
    return known[value]
