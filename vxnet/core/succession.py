"""The CA is replaced without a node that finds itself among strangers: all trust the new one before it signs anything.

::

    (1) ── rotate ──> (1, 2) ── all trust 2 ──> (2, 1) ── all hold a certificate of 2, and a while ──> (2)
            install              sign                       remove

The first signs, all are roots. A node acknowledges by reporting the CAs that it trusts, its own certificate's first.
Unlike with the gossip's keys (:mod:`vxnet.core.rotation`) every node is waited for, also one that is away: once the
manager's certificate is of a CA that it has never heard of, it could not even ask. ``vxnet node rm`` ends the waiting
for one that will not come back.

Join tokens pin the CA that is oldest; it vouches for its successor, so that a token is good until its CA is removed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from msgspec.structs import replace

from vxnet.core import trust
from vxnet.core.stamps import is_over
from vxnet.core.trust import CertificateAuthority
from vxnet.model.ca import AuthorityView, CaView
from vxnet.model.cluster import Node

KEPT_S = 10.0
"""So long the old CA is trusted after the last node holds a certificate of the new one: by then the others have heard
of that certificate, and of the sets of leases that were signed anew. What they hold of the old CA counts for nothing
from its removal on."""


def in_order(authorities: Mapping[str, CertificateAuthority]) -> list[str]:
    """Their numbers: the one that signs first."""
    newest_first = sorted(authorities, key=int, reverse=True)
    return sorted(newest_first, key=lambda number: authorities[number].waiting)


def successor(
    authorities: Mapping[str, CertificateAuthority], cluster: str, entropy: bytes, now: float
) -> tuple[str, CertificateAuthority] | None:
    """The number of a new CA, and itself; None: one is on its way already. ``entropy`` is 48 octets."""
    if len(authorities) > 1:
        return None
    ((last, old),) = authorities.items()
    number = str(int(last) + 1)
    new = trust.make_ca(entropy, f"{cluster} {number}", now)
    return number, replace(new, waiting=True, endorsement=trust.endorse(old, new.certificate))


def unready(authorities: Mapping[str, CertificateAuthority], nodes: Iterable[Node]) -> Iterable[Node]:
    """Those that are waited for, one at a time."""
    if len(authorities) < 2:
        return
    number = max(authorities, key=int)
    newest = trust.certificate_digest(authorities[number].certificate)
    for node in nodes:
        known = node.authorities if authorities[number].waiting else node.authorities[:1]
        if newest not in known:
            yield node


def view(authorities: Mapping[str, CertificateAuthority], nodes: Iterable[Node]) -> CaView:
    """For people."""
    first, *_ = order = in_order(authorities)
    return CaView(
        authorities=tuple(
            AuthorityView(
                number=int(number),
                use="signs" if number == first else "next" if authorities[number].waiting else "old",
                digest=trust.certificate_digest(authorities[number].certificate),
                pem=trust.certificate_to_pem(authorities[number].certificate).decode(),
                ends_at=trust.validity(authorities[number].certificate)[1],
            )
            for number in order
        ),
        waiting=tuple(sorted(node.name for node in unready(authorities, nodes))),
    )


def step(
    authorities: Mapping[str, CertificateAuthority], nodes: Iterable[Node], now: float
) -> dict[str, CertificateAuthority | None]:
    """What is different in the next phase, by number (None: removed); empty if it is not time for it."""
    if len(authorities) < 2 or any(True for _ in unready(authorities, nodes)):
        return {}
    number = max(authorities, key=int)
    newest = authorities[number]
    if newest.waiting:
        return {number: replace(newest, waiting=False)}
    if not newest.settled_at:
        return {number: replace(newest, settled_at=now)}
    if not is_over(newest.settled_at, KEPT_S, now):
        return {}
    return {old: None for old in authorities if old != number}
