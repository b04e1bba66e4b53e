"""Where managers keep the cluster: what was asked for, how it is reached, what is saved of it."""

from __future__ import annotations

from vxnet.model.address import IPAddress
from vxnet.model.cluster import Record

CLIENT_PORT = 2379
"""etcd's, as the next one: where its clients ask, and its members speak with each other."""
PEER_PORT = 2380


def etcd_url(address: IPAddress | str, port: int) -> str:
    """``address`` is an IP address, or its text."""
    text = str(address)
    return f"https://[{text}]:{port}" if ":" in text else f"https://{text}:{port}"


class StoreWish(Record, frozen=True, kw_only=True):
    """Where managers keep the cluster."""

    store: str = ""
    """``etcd://HOST:PORT,…[/PREFIX]``; empty: a file on this host."""
    store_ca: bytes = b""
    """PEM, as the next two."""
    store_certificate: bytes = b""
    store_key: bytes = b""
    managed_etcd: bool = False
    """An etcd that vxnet runs itself, a member on each manager."""


class Backup(Record, frozen=True, kw_only=True):
    """All records of a cluster. It holds its CA's key."""

    format: int
    cluster: str
    """Id."""
    revision: int
    made_at: float
    version: str = ""
    """Of the vxnet that made it."""
    records: dict[str, bytes]
    digest: str
    """SHA-256 over the records, in hexadecimal."""


class RestoreRequest(StoreWish, frozen=True, kw_only=True):
    backup: Backup
    advertise_addr: str = ""
    data_path_addr: str = ""
    force: bool = False
    """Also if the nodes that are there trust another CA than the backup's."""


class StoreAccess(Record, frozen=True, kw_only=True):
    """How managers reach the etcd that holds the cluster. It opens everything: for managers alone."""

    endpoints: tuple[str, ...]
    """``https://HOST:PORT``; the first is asked first."""
    names: dict[str, str] = {}
    """Of the members, for people, by endpoint."""
    prefix: str = "vxnet"
    """All keys begin with it: several clusters can share an etcd."""
    ca: bytes = b""
    """PEM, as the next two. Empty: the system's."""
    certificate: bytes = b""
    key: bytes = b""
    managed: bool = False
    """vxnet runs the members itself, on the managers' hosts."""
    revoked: bytes = b""
    """DER: the certificates of hosts that are no managers any more, for the members that vxnet runs."""


class StoreMember(Record, frozen=True, kw_only=True):
    """Of etcd."""

    id: int
    """Never given twice."""
    name: str = ""
    """Empty: it was never started."""
    peers: tuple[str, ...] = ()
    """URLs, as the next."""
    clients: tuple[str, ...] = ()
    learner: bool = False
    """It hears everything, and has no vote yet."""


class Leader(Record, frozen=True, kw_only=True):
    """The record ``lead``."""

    holder: str
    """Id of the manager that leads."""
