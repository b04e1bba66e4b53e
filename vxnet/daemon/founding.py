"""A store for a new cluster, or for one that moves: SQLite's file, somebody's etcd, or one that vxnet runs itself."""

from __future__ import annotations

import contextlib
import re
import secrets
import time
from collections.abc import Mapping
from typing import NamedTuple

from vxnet.cluster.etcd_store import EtcdStore
from vxnet.cluster.sqlite_store import SqliteStore
from vxnet.cluster.store import Store
from vxnet.core import etcd_trust, trust
from vxnet.daemon.member import EtcdMember
from vxnet.daemon.scheduler import pieces
from vxnet.daemon.state import StateDirectory
from vxnet.host.etcd import EtcdProcess
from vxnet.model.address import IPAddress
from vxnet.model.errors import CallerError, ConflictError, HostError
from vxnet.model.store import CLIENT_PORT, StoreAccess, StoreWish

_URL = re.compile(r"(etcd|etcd\+http)://([^/\s]+)(?:/([A-Za-z0-9_.-]{1,64}))?/?")


class NewStore(NamedTuple):
    store: Store
    access: StoreAccess | None = None
    """How other managers reach it; None: there can be none."""
    etcd_ca: trust.CertificateAuthority | None = None
    """Of an etcd that vxnet runs itself."""


async def new_store(
    wish: StoreWish,
    state: StateDirectory,
    name: str,
    advertise: IPAddress,
    data_path: IPAddress,
    undo: contextlib.AsyncExitStack,
) -> NewStore:
    """The one that was asked for. ``undo`` takes its traces off this host; what is in somebody's etcd stays. Raises
    :class:`CallerError`, :class:`HostError`, :class:`UnavailableError`.
    """
    if wish.store and wish.managed_etcd:
        raise CallerError("--store and --managed-etcd exclude each other", hint="choose one of them")
    if wish.managed_etcd:
        ca = etcd_trust.make_etcd_ca(secrets.token_bytes(48), name, time.time())
        process = EtcdProcess(state.etcd_path)
        if process.has_data:
            raise ConflictError(
                f"{state.etcd_path} holds an etcd already", hint="move it away, or `vxnet leave --force` first"
            )
        undo.callback(process.wipe)
        undo.callback(process.stop)
        addresses = etcd_trust.member_addresses(advertise, data_path)
        managed = await EtcdMember(process, name, advertise).found(ca, sorted(addresses, key=str))
        return NewStore(await EtcdStore.open(managed, name), managed, ca)
    if wish.store:
        access = parse_store(wish)
        return NewStore(await EtcdStore.open(access, name), access)
    if wish.store_ca or wish.store_certificate or wish.store_key:
        raise CallerError("--store-ca, --store-cert and --store-key are for --store etcd://…")
    return NewStore(await SqliteStore.open(state.store_path))


async def fill(store: Store, records: Mapping[str, bytes], revision: int) -> None:
    """An empty store, from ``revision`` on. The cluster's own record comes last: without it there is no cluster yet.
    Raises :class:`ConflictError` if it is not empty.
    """
    if (await store.load()).records:
        raise ConflictError("the store holds a cluster already", hint="give another one, or another /PREFIX behind it")
    await store.start_from(revision)
    ordered = {key: value for key, value in records.items() if key != "cluster"} | {"cluster": records["cluster"]}
    for piece in pieces(ordered):
        await store.commit(piece)
    found = (await store.load()).records
    if {key: record.value for key, record in found.items()} != dict(records):
        raise HostError(
            "the new store does not hold what was written to it", hint="see its log; nothing else was changed"
        )


def parse_store(wish: StoreWish) -> StoreAccess:
    """Of ``etcd://HOST[:PORT],…[/PREFIX]``; ``etcd+http://`` is without TLS. Raises :class:`CallerError`."""
    match = _URL.fullmatch(wish.store)
    if match is None:
        raise CallerError(
            f"--store {wish.store}: that is no store", hint="etcd://HOST:2379,HOST:2379,HOST:2379, or leave it out"
        )
    scheme = "https" if match[1] == "etcd" else "http"
    if bool(wish.store_certificate) != bool(wish.store_key):
        raise CallerError("--store-cert and --store-key belong together")
    endpoints = []
    for place in match[2].split(","):
        host, port = place, ""
        if not place.startswith("[") or "]:" in place:
            host, _, port = place.rpartition(":") if ":" in place else (place, "", "")
        if not host or (port and not port.isdigit()):
            raise CallerError(f"--store {wish.store}: {place!r} is no HOST:PORT")
        endpoints.append(f"{scheme}://{host}:{port or CLIENT_PORT}")
    return StoreAccess(
        endpoints=tuple(endpoints),
        prefix=match[3] or "vxnet",
        ca=wish.store_ca,
        certificate=wish.store_certificate,
        key=wish.store_key,
    )
