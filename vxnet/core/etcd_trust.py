"""Who may speak with etcd: a CA of its own, which no node's certificate is of.

Pure: entropy and ``now`` (seconds since 1970) come in as arguments.

::

    etcd's CA (ECDSA P-256) ── signs ──> one certificate a manager's host: of its member, as server to managers and to
                                         the other members, and of its manager, as client
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence
from typing import cast

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from vxnet.core.trust import BACKDATED_S, P256_ORDER, UNREADABLE, CertificateAuthority, make_ca
from vxnet.core.trust import time_of as _time
from vxnet.model.address import IPAddress
from vxnet.model.errors import CallerError

MEMBER_DAYS = 20 * 365
"""As the CA's own: who could not renew it in time would be locked out of the very store that the new one comes from.
What ends a certificate is the list of those that are revoked, which every member looks at."""


def make_etcd_ca(entropy: bytes, cluster: str, now: float) -> CertificateAuthority:
    """``entropy`` is 48 octets, ``cluster`` an id."""
    return make_ca(entropy, f"etcd {cluster}", now)


def member_key(entropy: bytes) -> ec.EllipticCurvePrivateKey:
    """From 40 octets."""
    return ec.derive_private_key(int.from_bytes(entropy, "big") % (P256_ORDER - 1) + 1, ec.SECP256R1())


def member_key_to_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """PKCS#8, unencrypted."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def member_csr(key: ec.EllipticCurvePrivateKey) -> bytes:
    """PKCS#10, DER. Only its key counts."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "etcd")])
    request = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256())
    return request.public_bytes(serialization.Encoding.DER)


def member_addresses(advertise: IPAddress, data_path: IPAddress) -> list[IPAddress]:
    """Those that stand in a member's certificate: of its host, and the loopback."""
    loopback = ipaddress.ip_address("127.0.0.1" if advertise.version == 4 else "::1")
    return sorted({advertise, data_path, loopback}, key=str)


def issue_member(
    ca: CertificateAuthority, csr: bytes, name: str, addresses: Sequence[IPAddress], serial: bytes, now: float
) -> bytes:
    """A certificate, DER, for server and client; ``serial`` is 8 octets. Raises :class:`CallerError` on a bad
    request.
    """
    try:
        request = x509.load_der_x509_csr(csr)
        key = request.public_key()
        good = isinstance(key, ec.EllipticCurvePublicKey) and request.is_signature_valid
    except UNREADABLE:
        good = False
    if not good:
        raise CallerError("the certificate request is not one for an ECDSA key, signed with that key")
    issuer = x509.load_der_x509_certificate(ca.certificate)
    ca_key = cast(ec.EllipticCurvePrivateKey, serialization.load_der_private_key(ca.key, None))
    usages = [ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH]
    certificate = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
        .issuer_name(issuer.subject)
        .public_key(cast(ec.EllipticCurvePublicKey, key))
        # RFC 5280, 4.1.2.2: positive.
        .serial_number(int.from_bytes(serial, "big") | 1)
        .not_valid_before(_time(now - BACKDATED_S))
        .not_valid_after(_time(now + MEMBER_DAYS * 86400))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(one) for one in addresses]), critical=False)
        .sign(ca_key, hashes.SHA256())
    )
    return certificate.public_bytes(serialization.Encoding.DER)


def serial_of(certificate: bytes) -> int:
    """Of a certificate, DER. Raises :class:`CallerError` if it is none."""
    try:
        return x509.load_der_x509_certificate(certificate).serial_number
    except UNREADABLE as error:
        raise CallerError("that is no certificate") from error


def make_crl(ca: CertificateAuthority, serials: Iterable[int], now: float) -> bytes:
    """The list (RFC 5280, 5) of the certificates that are refused, DER."""
    issuer = x509.load_der_x509_certificate(ca.certificate)
    ca_key = cast(ec.EllipticCurvePrivateKey, serialization.load_der_private_key(ca.key, None))
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(issuer.subject)
        .last_update(_time(now - BACKDATED_S))
        .next_update(_time(now + MEMBER_DAYS * 86400))
    )
    for serial in sorted(serials):
        one = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(_time(now - BACKDATED_S)).build()
        builder = builder.add_revoked_certificate(one)
    return builder.sign(ca_key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)
