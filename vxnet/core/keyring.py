"""The gossip's keys: AES-GCM as memberlist lays it out.

::

    version (1) │ nonce (12) │ ciphertext │ tag (16)

Version 0 pads the plaintext to 16 octets (PKCS#7), version 1 does not; agents that speak protocol 2 or newer write
version 1. The authenticated data of a packet is the cluster's label (empty without one), that of a stream its five
octets of header and the label. Source: memberlist, security.go and label.go.
"""

from __future__ import annotations

from collections.abc import Sequence

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from vxnet.core.oldpack import MalformedError
from vxnet.model.errors import CallerError

NONCE = 12
TAG = 16
OVERHEAD = 1 + NONCE + TAG
"""Octets that version 1 adds."""


class KeyRing:
    """The first key seals, all open: a new key is first accepted everywhere, then used, then the old one removed."""

    def __init__(self, keys: Sequence[bytes]) -> None:
        """``keys`` of 16, 24 or 32 octets. Raises :class:`CallerError`; never repeats a key."""
        if not keys:
            raise CallerError("a key ring needs a key")
        for key in keys:
            if len(key) not in (16, 24, 32):
                raise CallerError(f"a gossip key has 16, 24 or 32 octets, not {len(key)}")
        self._ciphers = [AESGCM(key) for key in keys]

    def __len__(self) -> int:
        return len(self._ciphers)

    def seal(self, plain: bytes, associated: bytes, nonce: bytes) -> bytes:
        """Version 1. A nonce must never be used twice with a key: 12 random octets."""
        return b"\x01" + nonce + self._ciphers[0].encrypt(nonce, plain, associated)

    def open(self, sealed: bytes, associated: bytes) -> bytes:
        """Raises :class:`MalformedError`."""
        if len(sealed) < OVERHEAD:
            raise MalformedError("too short to be encrypted")
        version = sealed[0]
        if version > 1:
            raise MalformedError("unknown version of encryption")
        nonce, body = sealed[1 : 1 + NONCE], sealed[1 + NONCE :]
        for cipher in self._ciphers:
            try:
                plain = cipher.decrypt(nonce, body, associated)
            except InvalidTag:
                continue
            return plain if version else _unpad(plain)
        raise MalformedError("no key opens it")


def _unpad(plain: bytes) -> bytes:
    if not plain or not 1 <= plain[-1] <= min(16, len(plain)):
        raise MalformedError("bad padding")
    return plain[: -plain[-1]]
