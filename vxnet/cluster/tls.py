"""TLS 1.3 between nodes and managers: contexts from keys in memory.

A client asks for the *role's* name (:data:`MANAGER_NAME`) in the server's certificate, not for an address: see
:mod:`vxnet.core.trust`.
"""

from __future__ import annotations

import contextlib
import os
import ssl
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from vxnet.core.trust import ROLE_NAMES
from vxnet.model.errors import CallerError, HostError
from vxnet.model.store import StoreAccess

MANAGER_NAME = ROLE_NAMES["manager"]


class Credentials(NamedTuple):
    certificate: bytes
    """PEM."""
    key: bytes
    """PEM."""


def server_context(credentials: Credentials, roots: Sequence[bytes]) -> ssl.SSLContext:
    """A client may come without a certificate (to join), but not with one of another CA. ``roots`` are DER."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_OPTIONAL
    # Without tickets every connection shows its certificate anew.
    context.num_tickets = 0
    trust_roots(context, roots)
    use_credentials(context, credentials)
    return context


def client_context(roots: Sequence[bytes], credentials: Credentials | None = None) -> ssl.SSLContext:
    """Accepts managers of the CAs ``roots`` only, by the name :data:`MANAGER_NAME`."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    trust_roots(context, roots)
    if credentials is not None:
        use_credentials(context, credentials)
    return context


def blind_context() -> ssl.SSLContext:
    """Accepts anybody: for the one question whose answer the join token checks."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def etcd_context(access: StoreAccess) -> ssl.SSLContext | None:
    """For a client of etcd; None: without TLS. Raises :class:`CallerError` on what is no certificate or key."""
    if not any(endpoint.startswith("https://") for endpoint in access.endpoints):
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        if access.ca:
            context.load_verify_locations(cadata=access.ca.decode())
        else:
            context.load_default_certs()
        if access.certificate:
            with _as_file(access.certificate) as certificate, _as_file(access.key) as key:
                context.load_cert_chain(certificate, key)
    except (ssl.SSLError, OSError, ValueError) as error:
        raise CallerError(
            f"etcd's CA, or the certificate and key for it, cannot be used: {error}", hint="they are files in PEM"
        ) from error
    return context


def trust_roots(context: ssl.SSLContext, roots: Sequence[bytes]) -> None:
    """From the next handshake on, these (DER) too. Nothing is taken back: a removed CA is left to who looks at the
    certificate again."""
    context.load_verify_locations(cadata=b"".join(roots))


def use_credentials(context: ssl.SSLContext, credentials: Credentials) -> None:
    """For the next handshakes of a context that may be in use. Raises :class:`HostError`."""
    try:
        with _as_file(credentials.certificate) as certificate, _as_file(credentials.key) as key:
            context.load_cert_chain(certificate, key)
    except (ssl.SSLError, OSError) as error:
        raise HostError(f"this node's certificate and key cannot be used: {error}") from error


@contextlib.contextmanager
def _as_file(content: bytes) -> Iterator[str]:
    """A path for a library that only reads files; no disk sees the key."""
    fd = os.memfd_create("vxnet-tls", os.MFD_CLOEXEC)
    try:
        os.write(fd, content)
        yield f"/proc/self/fd/{fd}"
    finally:
        os.close(fd)
