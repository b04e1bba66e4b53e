"""An operator at the shared lab, who takes away what he made."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.lab_fixture import lab, make_lab, shared_lab  # noqa: F401 - fixtures
from tests.system.operator import Session
from vxnet.lab import Lab


@pytest.fixture
def session(lab: Lab) -> Iterator[Session]:  # noqa: F811 - pytest's way
    session = Session(lab)
    yield session
    session.forget()
