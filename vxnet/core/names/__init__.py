"""Names of containers: from the gossiped rows to DNS answers, as octets.

::

     rows, networks, services ──update──▶ table: (network, name, type) ──▶ RRset, packed
                                                  │
     datagram ──▶ message: checks ──▶ answer ──▶ octets | Forward | Rejected

Pure: :mod:`vxnet.cluster.dns` owns the sockets and asks the host's resolvers. A container sees the names of the
networks it is on (:class:`View`) and no others.
"""

from __future__ import annotations

from vxnet.core.names.message import Query, Rejected
from vxnet.core.names.records import TTL_S, RRset
from vxnet.core.names.table import Forward, Names, View, view_of

__all__ = ["TTL_S", "Forward", "Names", "Query", "RRset", "Rejected", "View", "view_of"]
