"""The gossip's keys: AES-GCM as memberlist lays it out.

::

    version (1) │ nonce (12) │ ciphertext │ tag (16)

That is version 1. Version 0, of memberlist's protocol 1, which no agent that vxnet can talk to speaks any more, is not
read: the version is not authenticated, so that a packet whose first octet is changed to 0 would lose as much of its end
as its last octet says. The authenticated data of a packet is the cluster's label (empty without one), that of a stream
its five octets of header and the label. Source: memberlist, security.go and label.go.
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
        if sealed[0] != 1:
            raise MalformedError("unknown version of encryption")
        nonce, body = sealed[1 : 1 + NONCE], sealed[1 + NONCE :]
        for cipher in self._ciphers:
            try:
                return cipher.decrypt(nonce, body, associated)
            except InvalidTag:
                continue
        raise MalformedError("no key opens it")
