"""Who tells that it carries a path, and who is waited for."""

from __future__ import annotations

import ipaddress

from vxnet.core.applied import RESIDENTS_LIMIT, Acknowledgements
from vxnet.model.row import Applied, Endpoint, EndpointState, Gateway, RowKey, Value, Version

Row = tuple[RowKey, Version, Value]

acknowledgement, unaware = Acknowledgements().to_tell, Acknowledgements().unaware


def endpoint(owner: str, id_: str, seq: int, vni: int = 65536, state: EndpointState = "ready") -> Row:
    value = Endpoint(
        network=f"net{vni}",
        vni=vni,
        addresses=(ipaddress.ip_address("10.0.0.8"),),
        mac="02:00:0a:00:00:08",
        vtep=ipaddress.ip_address("192.168.56.11"),
        name=id_,
        state=state,
    )
    return RowKey(owner, "endpoint", id_), Version(1, seq), value


def applied(owner: str, *versions: tuple[str, int, int]) -> Row:
    return RowKey(owner, "applied", ""), Version(1, 9), Applied(versions=versions)


def test_only_who_waits_is_told() -> None:
    rows = [endpoint("a", "x", 3), endpoint("b", "y", 4), endpoint("b", "z", 5, state="starting")]
    assert acknowledgement(rows, "me", {65536}) == Applied(versions=(("b", 1, 5),))
    assert acknowledgement(rows[:2], "me", {65536}) is None


def test_a_segment_that_is_not_here_is_not_told_of() -> None:
    rows = [endpoint("b", "z", 5, state="starting"), endpoint("me", "w", 2, state="starting")]
    assert acknowledgement(rows, "me", {65537}) is None
    assert acknowledgement(rows, "b", {65537}) is None


def test_residents_of_its_networks_are_waited_for() -> None:
    mine = endpoint("me", "new", 7, state="starting")
    others = [endpoint("a", "x", 3), endpoint("b", "y", 4, vni=65537)]
    assert unaware([mine, *others], "me", {"new"}) == {"a"}
    assert unaware([mine, *others], "me", {"other"}) == frozenset()


def test_until_they_have_told() -> None:
    rows = [endpoint("me", "new", 7, state="starting"), endpoint("a", "x", 3)]
    assert unaware([*rows, applied("a", ("me", 1, 6))], "me", {"new"}) == {"a"}
    assert unaware([*rows, applied("a", ("b", 1, 9))], "me", {"new"}) == {"a"}
    assert unaware([*rows, applied("a", ("me", 1, 7))], "me", {"new"}) == frozenset()
    assert unaware([*rows, applied("a", ("me", 2, 1))], "me", {"new"}) == frozenset()


def test_nobody_waits_for_a_row_that_is_ready() -> None:
    assert unaware([endpoint("me", "new", 7), endpoint("a", "x", 3)], "me", {"new"}) == frozenset()


def test_of_a_crowd_nobody_is_waited_for_but_in_its_drain() -> None:
    """Each of a thousand would tell a thousand others."""
    crowd = [endpoint(f"n{number}", f"c{number}", 3) for number in range(RESIDENTS_LIMIT)]
    assert len(unaware([endpoint("me", "new", 7, state="starting"), *crowd[1:]], "me", {"new"})) == RESIDENTS_LIMIT - 1
    rows = [endpoint("me", "new", 7, state="starting"), *crowd]
    assert unaware(rows, "me", {"new"}) == frozenset()
    assert acknowledgement(rows, "n0", {65536}) is None
    rows = [endpoint("me", "new", 7, state="draining"), *crowd]
    assert acknowledgement(rows, "n0", {65536}) is not None
    assert len(unaware(rows, "me", {"new"}, "draining")) == RESIDENTS_LIMIT
    # Another network of the same nodes is not crowded.
    elsewhere = [endpoint("me", "new", 7, vni=65537, state="starting"), endpoint("n0", "x", 4, vni=65537), *crowd]
    assert unaware(elsewhere, "me", {"new"}) == {"n0"}


def test_a_nodes_foot_in_the_ingress_network_lives_there() -> None:
    """It sends connections to the tasks of published services, whether it has one itself or not."""
    foot = Gateway(
        network="net65536",
        vni=65536,
        addresses=(ipaddress.ip_address("10.0.0.16"),),
        mac="02:00:0a:00:00:10",
        vtep=ipaddress.ip_address("192.168.56.12"),
    )
    rows = [
        endpoint("me", "web", 7, state="draining"),
        (RowKey("a", "gateway", "net65536"), Version(1, 3), foot),
        endpoint("b", "y", 4, vni=65537),
    ]
    assert unaware(rows, "me", {"web"}, "draining") == {"a"}
    told = acknowledgement(rows, "a", {65536})
    assert told == Applied(versions=(("me", 1, 7),))
    answered = (RowKey("a", "applied", ""), Version(1, 4), told)
    assert unaware([*rows, answered], "me", {"web"}, "draining") == frozenset()
