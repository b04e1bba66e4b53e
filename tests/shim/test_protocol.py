"""The messages of ``vxnet.model.shim`` alone."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vxnet.model import shim
from vxnet.model.errors import CallerError, ConflictError, HostError
from vxnet.model.shim import Kind

KEYS = st.from_regex(r"\A[a-z_]{1,10}\Z")
VALUES = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20)


def test_octets_are_what_the_header_file_says() -> None:
    packet = shim.encode(Kind.EXEC, 0x01020304, [("arg", "ls"), ("env", "A=b=c"), ("arg", "")])
    assert packet == b"\x01\x05\0\0\x04\x03\x02\x01arg=ls\0env=A=b=c\0arg=\0"


@given(st.sampled_from(Kind), st.integers(0, 2**32 - 1), st.dictionaries(KEYS, VALUES))
def test_there_and_back(kind: Kind, tag: int, fields: dict[str, str]) -> None:
    assert shim.decode(shim.encode(kind, tag, fields.items())) == (kind, tag, fields)


def test_octets_that_are_no_text_pass() -> None:
    """Arguments and environment are octets on Linux."""
    assert shim.encode(Kind.EXEC, 1, [("arg", "\udcff")]).endswith(b"arg=\xff\0")


@pytest.mark.parametrize("value", ["a\0b", "\0", "x" * shim.MESSAGE_MAX])
def test_what_cannot_be_sent(value: str) -> None:
    with pytest.raises(CallerError):
        shim.encode(Kind.EXEC, 1, [("arg", value)])


@pytest.mark.parametrize("packet", [b"", b"\x01\x40\0\0\0\0\0", b"\x02\x40\0\0\0\0\0\0"])
def test_what_is_none_of_ours(packet: bytes) -> None:
    with pytest.raises(ValueError):
        shim.decode(packet)


def test_refusals_become_errors() -> None:
    error = shim.refusal({"kind": "conflict", "message": "taken"})
    assert (type(error), error.message) == (ConflictError, "taken")
    assert type(shim.refusal({"kind": "of a newer shim"})) is HostError
