"""--store and what belongs to it: for `init`, and for a cluster that moves."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from vxnet.model.errors import CallerError
from vxnet.model.store import StoreWish


def store_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The command gets a :class:`StoreWish` as ``store``."""

    @functools.wraps(command)
    def call(
        *args: Any, store: str, store_ca: str, store_cert: str, store_key: str, managed_etcd: bool, **kwargs: Any
    ) -> Any:
        wish = StoreWish(
            store=store,
            store_ca=_read(store_ca),
            store_certificate=_read(store_cert),
            store_key=_read(store_key),
            managed_etcd=managed_etcd,
        )
        return command(*args, store=wish, **kwargs)

    for option in (
        click.option("--managed-etcd", is_flag=True, help="In an etcd that vxnet runs, with a member on each manager."),
        click.option("--store-key", default="", metavar="FILE", help="The certificate's key."),
        click.option("--store-cert", default="", metavar="FILE", help="Certificate for that etcd."),
        click.option("--store-ca", default="", metavar="FILE", help="CA of that etcd's members."),
        click.option(
            "--store",
            default="",
            metavar="URL",
            help="etcd://HOST:2379,… for several managers; without: a file on this host (not for migrate).",
        ),
    ):
        call = option(call)
    return call


def _read(path: str) -> bytes:
    if not path:
        return b""
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise CallerError(f"cannot read {path}: {error.strerror}") from error
