"""Who is who: the cluster's CA, node certificates, join tokens, signed records.

Pure: entropy and ``now`` (seconds since 1970) come in as arguments.

::

    CA (ECDSA P-256, 20 y) ── signs ──> node certificate (Ed25519, 90 d)
     │ digest in the join token          CN and URI SAN: the node's id; OU and a DNS SAN: its role
     └─ pinned by a joiner               signs row batches (owner) and lease sets (manager)

A node id is not an address: a client asks for the *role's* DNS name in the server's certificate (``vxnet-manager``),
so the TLS library refuses a worker that poses as a manager, and a manager may change its address.
"""

from __future__ import annotations

import datetime
import hashlib
import hmac
import re
from collections.abc import Sequence
from typing import NamedTuple, cast

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError

from vxnet.model.address import IPAddress
from vxnet.model.cluster import Record, Role, Signed
from vxnet.model.errors import CallerError, PeerError

LEASES_PURPOSE = "vxnet lease set"
ROWS_PURPOSE = "vxnet rows"
SUCCESSOR_PURPOSE = "vxnet succeeding CA"

BACKDATED_S = 86_400
"""Clocks of two hosts may differ by this much: one that takes local time for UTC is up to 14 hours wrong."""
CA_DAYS = 20 * 365
CERTIFICATE_DAYS = 90

ROLE_NAMES: dict[Role, str] = {"worker": "vxnet-worker", "manager": "vxnet-manager"}
"""In OU and as DNS SAN."""
_ROLES = {name: role for role, name in ROLE_NAMES.items()}

P256_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
UNREADABLE = (
    ValueError,
    TypeError,
    UnsupportedAlgorithm,
    x509.InvalidVersion,
    x509.ExtensionNotFound,
    x509.DuplicateExtension,
    x509.UnsupportedGeneralNameType,
)
"""What the library raises over octets that are no certificate (or request) of ours; only some are ValueErrors."""
_NODE_URI = "vxnet:node:"
_NODE_ID = re.compile(r"[0-9a-z]{1,64}")
_HOST_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9_.-]{0,62}[A-Za-z0-9_])?")
"""No wildcard, as it becomes a DNS SAN; at most 64 characters, as a common name has."""


class Identity(Record, frozen=True, kw_only=True):
    """What a certificate says of its holder."""

    node: str
    role: Role


class CertificateAuthority(Record, frozen=True, kw_only=True):
    certificate: bytes
    """DER."""
    key: bytes
    """PKCS#8, DER, unencrypted: the store's file is its only protection."""
    waiting: bool = False
    """It signs nothing yet: the nodes are to trust it first."""
    endorsement: bytes = b""
    """Its predecessor's signature over ``certificate``: who pins that one trusts this one too."""
    settled_at: float = 0.0
    """When all were seen to hold a certificate of it, if it succeeds another; 0: not yet."""


class Token(NamedTuple):
    digest: str
    secret: str


# Keys and certificates


def make_ca(entropy: bytes, cluster: str, now: float) -> CertificateAuthority:
    """The root of a new cluster with id ``cluster``; ``entropy`` is 48 octets."""
    if len(entropy) != 48:
        raise ValueError("a CA is made from 48 octets")
    key = ec.derive_private_key(int.from_bytes(entropy[:40], "big") % (P256_ORDER - 1) + 1, ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"vxnet {cluster}")])
    usage = _key_usage(key_cert_sign=True, crl_sign=True)
    certificate = (
        _builder(name, name, entropy[40:], now, CA_DAYS)
        .public_key(key.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256(), ecdsa_deterministic=True)
    )
    return CertificateAuthority(
        certificate=certificate.public_bytes(serialization.Encoding.DER),
        key=key.private_bytes(
            serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ),
    )


def node_key(entropy: bytes) -> Ed25519PrivateKey:
    """A node's key from 32 octets."""
    return Ed25519PrivateKey.from_private_bytes(entropy)


def make_csr(key: Ed25519PrivateKey, name: str) -> bytes:
    """PKCS#10, DER. Only its key counts: what the certificate says is the manager's choice. Raises as
    :func:`check_host_name`.
    """
    check_host_name(name)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    request = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, None)
    return request.public_bytes(serialization.Encoding.DER)


def check_host_name(name: str) -> None:
    """Raises :class:`CallerError` on a name that a certificate cannot carry, or that would give its holder a role."""
    if not _HOST_NAME.fullmatch(name):
        raise CallerError(
            f"{name!r} cannot be a node's name",
            hint="a host name has at most 64 letters, digits, dots, hyphens and underscores",
        )
    if name.lower() in _ROLES:
        raise CallerError(f"{name!r} cannot be a node's name: it is reserved", hint="give the host another name")


def issue(
    ca: CertificateAuthority,
    csr: bytes,
    identity: Identity,
    name: str,
    addresses: Sequence[IPAddress],
    serial_entropy: bytes,
    now: float,
    days: float = CERTIFICATE_DAYS,
) -> bytes:
    """A node's certificate, DER; ``serial_entropy`` is 8 octets. Raises :class:`CallerError` on a bad request."""
    check_host_name(name)
    try:
        request = x509.load_der_x509_csr(csr)
        key = request.public_key()
        good = isinstance(key, Ed25519PublicKey) and request.is_signature_valid
    except UNREADABLE:
        good = False
    if not good:
        raise CallerError("the certificate request is not one for an Ed25519 key, signed with that key")
    if not _NODE_ID.fullmatch(identity.node):
        raise CallerError(f"{identity.node!r} is not a node id")
    issuer = x509.load_der_x509_certificate(ca.certificate)
    ca_key = cast(ec.EllipticCurvePrivateKey, serialization.load_der_private_key(ca.key, None))
    role = ROLE_NAMES[identity.role]
    subject = x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, role),
            x509.NameAttribute(NameOID.COMMON_NAME, identity.node),
        ]
    )
    names: list[x509.GeneralName] = [
        x509.UniformResourceIdentifier(_NODE_URI + identity.node),
        x509.DNSName(role),
        x509.DNSName(name),
        *(x509.IPAddress(address) for address in addresses),
    ]
    issuer_key_id = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    certificate = (
        _builder(subject, issuer.subject, serial_entropy, now, days)
        .public_key(cast(Ed25519PublicKey, key))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(digital_signature=True), critical=True)
        .add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH]), critical=False
        )
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(issuer_key_id),
            critical=False,
        )
        .sign(ca_key, hashes.SHA256(), ecdsa_deterministic=True)
    )
    return certificate.public_bytes(serialization.Encoding.DER)


def verify_certificate(der: bytes, roots: Sequence[bytes], now: float) -> Identity:
    """Who ``der`` is, by one of the CA certificates ``roots``. Raises :class:`PeerError` saying why it is nobody.

    Costs about 0.3 ms: who sees the same certificate often keeps the answer, by its octets and until it ends.
    """
    try:
        certificate = x509.load_der_x509_certificate(der)
        store = Store([x509.load_der_x509_certificate(root) for root in roots])
        verifier = PolicyBuilder().store(store).time(time_of(now)).build_client_verifier()
        verifier.verify(certificate, [])
        return _identity(certificate)
    except VerificationError as error:
        raise PeerError(f"a certificate is not of this cluster, or not valid now ({error})") from error
    except UNREADABLE as error:
        raise PeerError(f"a certificate is not one of vxnet's ({error})") from error


def issuer(der: bytes, roots: Sequence[bytes]) -> bytes | None:
    """Which of ``roots`` signed a certificate, which may have ended since. Raises :class:`PeerError` if it is none."""
    certificate = _load(der)
    for root in roots:
        try:
            certificate.verify_directly_issued_by(_load(root))
        except (InvalidSignature, *UNREADABLE):
            continue
        return root
    return None


def validity(der: bytes) -> tuple[float, float]:
    """(first, last) second of a certificate. Raises :class:`PeerError` if it is none."""
    certificate = _load(der)
    return certificate.not_valid_before_utc.timestamp(), certificate.not_valid_after_utc.timestamp()


def public_key(der: bytes) -> bytes:
    """Of a node's certificate: Ed25519, 32 octets. Raises :class:`PeerError`."""
    try:
        key = _load(der).public_key()
    except UNREADABLE as error:
        raise PeerError(f"a certificate is not one of vxnet's ({error})") from error
    if not isinstance(key, Ed25519PublicKey):
        raise PeerError("a certificate's key is not an Ed25519 key")
    return key.public_bytes_raw()


def addresses(der: bytes) -> frozenset[IPAddress]:
    """Those that a manager wrote into a certificate: of the gossip and of the data path. Raises :class:`PeerError`."""
    try:
        names = _load(der).extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        found = names.get_values_for_type(x509.IPAddress)
    except UNREADABLE as error:
        raise PeerError(f"a certificate is not one of vxnet's ({error})") from error
    return frozenset(address for address in found if isinstance(address, IPAddress))


def role_of(der: bytes) -> Role | None:
    """What a certificate says, whether or not it is still valid. Raises :class:`PeerError` if it is none."""
    units = _load(der).subject.get_attributes_for_oid(NameOID.ORGANIZATIONAL_UNIT_NAME)
    return _ROLES.get(str(units[0].value)) if units else None


def renewal_time(der: bytes) -> float:
    """When to ask for a new certificate: at half its life, which begins when it was signed."""
    first, last = validity(der)
    return (first + BACKDATED_S + last) / 2


def key_digest(csr: bytes) -> str:
    """SHA-256 of the public key in a request, in hexadecimal. Raises :class:`CallerError`."""
    try:
        key = x509.load_der_x509_csr(csr).public_key()
    except UNREADABLE as error:
        raise CallerError("that is not a certificate request") from error
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    return hashlib.sha256(key.public_bytes(serialization.Encoding.DER, form)).hexdigest()


def certificate_digest(der: bytes) -> str:
    """SHA-256 in hexadecimal."""
    return hashlib.sha256(der).hexdigest()


# A CA vouches for its successor


def endorse(ca: CertificateAuthority, successor: bytes) -> bytes:
    """ECDSA over the successor's certificate."""
    key = cast(ec.EllipticCurvePrivateKey, serialization.load_der_private_key(ca.key, None))
    return key.sign(_to_be_signed(SUCCESSOR_PURPOSE, successor), ec.ECDSA(hashes.SHA256(), deterministic_signing=True))


def is_endorsed(successor: bytes, endorsement: bytes, root: bytes) -> bool:
    try:
        key = _load(root).public_key()
        if not isinstance(key, ec.EllipticCurvePublicKey):
            return False
        key.verify(endorsement, _to_be_signed(SUCCESSOR_PURPOSE, successor), ec.ECDSA(hashes.SHA256()))
    except (PeerError, InvalidSignature, *UNREADABLE):
        return False
    return True


# Signed records


def sign_bytes(purpose: str, content: bytes, key: Ed25519PrivateKey) -> bytes:
    """64 octets. A signature for one purpose is worth nothing for another."""
    return key.sign(_to_be_signed(purpose, content))


def is_signed_by(key: bytes, purpose: str, content: bytes, signature: bytes) -> bool:
    """Whether the holder of ``key`` (32 octets) did; whose that is, is another question."""
    try:
        Ed25519PublicKey.from_public_bytes(key).verify(signature, _to_be_signed(purpose, content))
    except (InvalidSignature, ValueError):
        return False
    return True


def sign(purpose: str, content: bytes, key: Ed25519PrivateKey, certificate: bytes) -> Signed:
    return Signed(content=content, signature=sign_bytes(purpose, content, key), certificate=certificate)


# Join tokens: VXTKN-1-<SHA-256 of the CA's certificate, base 36>-<secret>


def make_id(entropy: bytes) -> str:
    """Of a node, network or cluster, from 16 octets: 25 digits and lower-case letters, as Swarm's."""
    return make_secret(entropy)


def make_secret(entropy: bytes) -> str:
    """The secret part from 16 octets: 25 digits and lower-case letters."""
    if len(entropy) != 16:
        raise ValueError("a secret is made from 16 octets")
    return _base36(entropy, 25)


def make_token(ca_der: bytes, secret: str) -> str:
    return f"VXTKN-1-{_digest36(ca_der)}-{secret}"


def parse_token(text: str) -> Token:
    """Raises :class:`CallerError`. Never repeats the token: it is a secret."""
    match = re.fullmatch(r"VXTKN-1-([0-9a-z]{50})-([0-9a-z]{25})", text.strip())
    if match is None:
        raise CallerError(
            "that is not a join token: one looks like VXTKN-1-<50 letters and digits>-<25 letters and digits>",
            hint="`vxnet join-token worker` on a manager prints it",
        )
    return Token(match[1], match[2])


def pins(token: Token, ca_der: bytes) -> bool:
    """Whether ``ca_der`` is the CA that the token speaks of."""
    return hmac.compare_digest(token.digest, _digest36(ca_der))


def same_secret(one: str, other: str) -> bool:
    """In a time that does not tell where they differ."""
    return hmac.compare_digest(one.encode(), other.encode())


# PEM, for the state directory and the TLS library


def certificate_to_pem(der: bytes) -> bytes:
    return _load(der).public_bytes(serialization.Encoding.PEM)


def certificate_from_pem(pem: bytes) -> bytes:
    """DER. Raises :class:`CallerError`."""
    try:
        return x509.load_pem_x509_certificate(pem).public_bytes(serialization.Encoding.DER)
    except ValueError as error:
        raise CallerError("that is not a certificate in PEM") from error


def key_to_pem(key: Ed25519PrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def key_from_pem(pem: bytes) -> Ed25519PrivateKey:
    """Raises :class:`CallerError`."""
    try:
        key = serialization.load_pem_private_key(pem, None)
    except (ValueError, TypeError) as error:
        raise CallerError("that is not a private key in PEM") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise CallerError("a node's key is an Ed25519 key")
    return key


# Parts


def _load(der: bytes) -> x509.Certificate:
    try:
        return x509.load_der_x509_certificate(der)
    except UNREADABLE as error:
        raise PeerError(f"that is not a certificate ({error})") from error


def _identity(certificate: x509.Certificate) -> Identity:
    """Of a certificate that verified. Its two statements of the node's id must agree."""

    def only(oid: x509.ObjectIdentifier) -> str:
        found = certificate.subject.get_attributes_for_oid(oid)
        if len(found) != 1 or not isinstance(found[0].value, str):
            raise ValueError("its subject is not a node's")
        return found[0].value

    role = _ROLES.get(only(NameOID.ORGANIZATIONAL_UNIT_NAME))
    node = only(NameOID.COMMON_NAME)
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    if names.get_values_for_type(x509.UniformResourceIdentifier) != [_NODE_URI + node] or role is None:
        raise ValueError("it does not name one node and one role")
    if not isinstance(certificate.public_key(), Ed25519PublicKey):
        raise ValueError("its key is not an Ed25519 key")
    return Identity(node=node, role=role)


def _builder(
    subject: x509.Name, issuer: x509.Name, serial_entropy: bytes, now: float, days: float
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        # RFC 5280, 4.1.2.2: positive, and at most 20 octets.
        .serial_number(int.from_bytes(serial_entropy, "big") | 1)
        .not_valid_before(time_of(now - BACKDATED_S))
        .not_valid_after(time_of(now + days * 86400))
    )


def _key_usage(
    *, digital_signature: bool = False, key_cert_sign: bool = False, crl_sign: bool = False
) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=key_cert_sign,
        crl_sign=crl_sign,
        encipher_only=False,
        decipher_only=False,
    )


def _to_be_signed(purpose: str, content: bytes) -> bytes:
    return purpose.encode() + b"\0" + content


def time_of(seconds: float) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC)


def _digest36(der: bytes) -> str:
    return _base36(hashlib.sha256(der).digest(), 50)


def _base36(data: bytes, width: int) -> str:
    number, digits = int.from_bytes(data, "big"), ""
    for _ in range(width):
        number, digit = divmod(number, 36)
        digits = "0123456789abcdefghijklmnopqrstuvwxyz"[digit] + digits
    return digits
