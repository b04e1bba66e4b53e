"""Which addresses this host is reached at, and which it should tell the others.

An address is never guessed where a guess could be wrong: Vagrant gives every VirtualBox machine 10.0.2.15 on its first
interface, and flannel's users have met it since 2014. With several candidates the operator must say which.
"""

from __future__ import annotations

import ipaddress

from vxnet.model.address import IPAddress
from vxnet.model.errors import CallerError
from vxnet.model.host import HostFacts

VIRTUALBOX_NAT = ipaddress.ip_network("10.0.2.0/24")


def choose_address(wanted: str, facts: HostFacts, flag: str) -> IPAddress:
    """The address that ``wanted`` (an address or an interface) means; with an empty one the host's only candidate.

    Raises :class:`CallerError` naming the candidates when there is none, or more than one.
    """
    own = {entry.address.ip: entry.interface for entry in facts.addresses}
    listed = ", ".join(f"{address} ({interface})" for address, interface in own.items()) or "none"
    if not wanted:
        candidates = [address for address in own if address not in VIRTUALBOX_NAT]
        preferred = [address for address in candidates if address.version == 4] or candidates
        if len(preferred) != 1:
            raise CallerError(
                f"cannot tell which address the other nodes reach this host at (found: {listed})",
                hint=f"say it with {flag}",
            )
        return preferred[0]
    try:
        address = ipaddress.ip_address(wanted)
    except ValueError:
        of_interface = [address for address, interface in own.items() if interface == wanted]
        if not of_interface:
            raise CallerError(
                f"{flag} {wanted}: neither an address nor an interface with one (found: {listed})"
            ) from None
        return min(of_interface, key=lambda address: address.version)
    if address not in own:
        raise CallerError(f"{flag} {wanted}: this host does not have that address (found: {listed})")
    return address
