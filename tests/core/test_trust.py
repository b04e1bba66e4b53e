"""Certificates, tokens and signatures: what is accepted, and that everything next to it is refused."""

from __future__ import annotations

import contextlib
import ipaddress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vxnet.core import trust
from vxnet.core.trust import Identity
from vxnet.model.errors import CallerError, PeerError

NOW = 1_800_000_000.0
DAY = 86400.0

CA = trust.make_ca(bytes(range(48)), "cluster1", NOW)
OTHER_CA = trust.make_ca(bytes(range(1, 49)), "cluster1", NOW)
KEY = trust.node_key(b"k" * 32)
ADDRESS = ipaddress.ip_address("192.0.2.1")


def certificate(ca=CA, node="node1", role="worker", key=KEY, name="h1", now=NOW, days=90.0):
    csr = trust.make_csr(key, name)
    return trust.issue(ca, csr, Identity(node=node, role=role), name, [ADDRESS], b"s" * 8, now, days)


@pytest.mark.parametrize("role", ["worker", "manager"])
def test_a_certificate_says_who(role):
    assert trust.verify_certificate(certificate(role=role), [CA.certificate], NOW) == Identity(node="node1", role=role)


def test_deterministic():
    assert certificate() == certificate()
    assert trust.make_ca(bytes(range(48)), "cluster1", NOW) == CA


def test_either_root_will_do_during_rotation():
    for ca in (CA, OTHER_CA):
        roots = [CA.certificate, OTHER_CA.certificate]
        assert trust.verify_certificate(certificate(ca), roots, NOW).node == "node1"


@pytest.mark.parametrize("roots", [[], [OTHER_CA.certificate]])
def test_foreign_ca_is_refused(roots):
    with pytest.raises(PeerError):
        trust.verify_certificate(certificate(), roots, NOW)


@pytest.mark.parametrize("later_days, good", [(-0.99, True), (-1.01, False), (89.9, True), (90.1, False)])
def test_valid_only_in_its_time(later_days, good):
    if good:
        trust.verify_certificate(certificate(), [CA.certificate], NOW + later_days * DAY)
    else:
        with pytest.raises(PeerError, match="not valid now"):
            trust.verify_certificate(certificate(), [CA.certificate], NOW + later_days * DAY)


def test_a_node_cannot_issue():
    """A node's certificate used as if it were a CA's."""
    rogue = trust.CertificateAuthority(certificate=CA.certificate, key=OTHER_CA.key)
    with pytest.raises(PeerError):
        trust.verify_certificate(certificate(rogue), [CA.certificate], NOW)


def test_renewal_is_at_half_life():
    der = certificate(days=90)
    assert trust.renewal_time(der) == pytest.approx(NOW + 45 * DAY, abs=3600)


def test_the_ca_itself_is_nobody():
    with pytest.raises(PeerError):
        trust.verify_certificate(CA.certificate, [CA.certificate], NOW)


@pytest.mark.parametrize("name", ["vxnet-manager", "VXNET-Manager", "*", "*.example", "", "a/b", "x" * 65, "a\nb", "é"])
def test_host_names_that_would_say_more_than_a_name(name):
    with pytest.raises(CallerError):
        trust.issue(CA, trust.make_csr(KEY, "h"), Identity(node="n", role="worker"), name, [], b"s" * 8, NOW)


def test_csr_must_be_signed_by_its_key():
    csr = bytearray(trust.make_csr(KEY, "h1"))
    csr[-1] ^= 1
    with pytest.raises(CallerError, match="Ed25519"):
        trust.issue(CA, bytes(csr), Identity(node="n", role="worker"), "h1", [], b"s" * 8, NOW)


def test_the_joiner_hears_of_a_bad_host_name_before_it_asks():
    with pytest.raises(CallerError, match="cannot be a node's name"):
        trust.make_csr(KEY, "x" * 65)


@pytest.mark.parametrize("name", ["my_host", "H1", "a.b.c", "x" * 64, "1", "a..b", "a_", "192.0.2.9"])
def test_every_host_name_that_is_taken_makes_a_good_certificate(name):
    assert trust.verify_certificate(certificate(name=name), [CA.certificate], NOW).node == "node1"


@given(st.binary(max_size=300))
def test_rubbish_is_refused_not_raised_through(data):
    with pytest.raises(PeerError):
        trust.verify_certificate(data, [CA.certificate], NOW)
    with pytest.raises(CallerError):
        trust.issue(CA, data, Identity(node="n", role="worker"), "h1", [], b"s" * 8, NOW)


@settings(deadline=None)
@given(st.integers(0, len(certificate()) - 1), st.integers(1, 255))
def test_no_octet_of_a_certificate_can_be_changed(place, change):
    der = bytearray(certificate())
    der[place] ^= change
    with pytest.raises(PeerError):
        trust.verify_certificate(bytes(der), [CA.certificate], NOW)


def test_signed():
    """What is of another purpose, by another key or of other content is refused."""
    signed = trust.sign("a", b"content", KEY, certificate())
    assert trust.verify_certificate(signed.certificate, [CA.certificate], NOW) == Identity(node="node1", role="worker")
    key = trust.public_key(signed.certificate)
    assert trust.is_signed_by(key, "a", signed.content, signed.signature)
    stranger = trust.sign("a", b"content", trust.node_key(b"x" * 32), certificate())
    for wrong in (
        (key, "b", b"content", signed.signature),
        (key, "a", b"contenT", signed.signature),
        (key, "a", b"content", stranger.signature),
        (key, "a", b"content", b""),
        (b"rubbish", "a", b"content", signed.signature),
    ):
        assert not trust.is_signed_by(*wrong)
    for no_node in (b"rubbish", CA.certificate):
        with pytest.raises(PeerError):
            trust.public_key(no_node)


def test_purpose_and_content_do_not_run_into_each_other():
    signature = trust.sign_bytes("ab", b"c", KEY)
    assert not trust.is_signed_by(trust.public_key(certificate()), "a", b"bc", signature)


def test_token():
    secret = trust.make_secret(bytes(range(16)))
    text = trust.make_token(CA.certificate, secret)
    assert text.startswith("VXTKN-1-") and len(text) == 8 + 50 + 1 + 25
    token = trust.parse_token(text + "\n")
    assert token.secret == secret
    assert trust.pins(token, CA.certificate)
    assert not trust.pins(token, OTHER_CA.certificate)


@pytest.mark.parametrize("text", ["", "SWMTKN-1-x-y", "VXTKN-1-aa-bb", "VXTKN-2-" + "a" * 50 + "-" + "b" * 25])
def test_what_is_not_a_token_is_not_repeated(text):
    with pytest.raises(CallerError) as caught:
        trust.parse_token(text)
    assert not text or text not in str(caught.value)


def test_pem_both_ways():
    assert trust.certificate_from_pem(trust.certificate_to_pem(certificate())) == certificate()
    assert trust.key_from_pem(trust.key_to_pem(KEY)).private_bytes_raw() == b"k" * 32
    for parse in (trust.key_from_pem, trust.certificate_from_pem):
        with pytest.raises(CallerError):
            parse(b"-----BEGIN RUBBISH-----")


@pytest.mark.filterwarnings("ignore:Parsed a serial number which wasn't positive")
@settings(max_examples=300)
@given(st.data())
def test_octets_next_to_a_certificate_or_request_are_refused_in_our_own_words(data):
    """Whoever has the gossip's key sends such: anything but a PeerError would end every daemon that reads it."""
    der, csr = bytearray(certificate()), bytearray(trust.make_csr(KEY, "h1"))
    for octets in (der, csr):
        for _ in range(data.draw(st.integers(1, 3))):
            octets[data.draw(st.integers(0, len(octets) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(PeerError):
        trust.verify_certificate(bytes(der), [CA.certificate], NOW)
    with contextlib.suppress(PeerError):
        trust.public_key(bytes(der))
    for ask in (
        lambda: trust.key_digest(bytes(csr)),
        lambda: trust.issue(CA, bytes(csr), Identity(node="node1", role="worker"), "h1", [], b"s" * 8, NOW),
    ):
        with contextlib.suppress(CallerError):
            ask()


def test_a_certificate_of_another_version_or_key_is_refused_in_our_own_words():
    """The two that the library raises neither as ValueError nor as VerificationError."""
    version = certificate().replace(b"\xa0\x03\x02\x01\x02", b"\xa0\x03\x02\x01\x07", 1)
    oid = b"\x06\x03\x2b\x65\x70"
    csr = trust.make_csr(KEY, "h1").replace(oid, b"\x06\x03\x2b\x65\x7a", 1)
    with pytest.raises(PeerError):
        trust.verify_certificate(version, [CA.certificate], NOW)
    with pytest.raises(PeerError):
        trust.public_key(certificate().replace(oid, b"\x06\x03\x2b\x65\x7a"))
    with pytest.raises(CallerError):
        trust.key_digest(csr)
