"""Labs for tests: one that many share, and as many of one's own as a test wants. All are gone at the end.

``lab`` is the shared one as a test should find it: all hosts up, every link whole; what a test makes in it (networks,
containers) it takes away itself. ``make_lab`` makes another for a test that wants its own.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pytest

from vxnet.model.errors import VxnetError

if TYPE_CHECKING:
    # Late below: conftest imports this module for all tests, also for those that run where no C was compiled.
    from vxnet.lab import Lab

_LOG_LINES = 40


@pytest.fixture(scope="session")
def shared_lab() -> Iterator[Lab]:
    """Three hosts in a cluster, one machine outside."""
    from vxnet.lab import Lab

    with Lab(hosts=3, outside=1) as lab:
        yield lab


@pytest.fixture
def lab(shared_lab: Lab, request: pytest.FixtureRequest) -> Iterator[Lab]:
    shared_lab.heal()
    for host in shared_lab.view().hosts:
        if host.status != "up":
            shared_lab.start(host.name)
    with _logs_on_failure(request, [shared_lab]):
        yield shared_lab


@pytest.fixture
def make_lab(request: pytest.FixtureRequest) -> Iterator[Callable[..., Lab]]:
    """Takes :class:`Lab`'s arguments, brings it up, and removes it after the test."""
    from vxnet.lab import Lab

    made: list[Lab] = []
    with contextlib.ExitStack() as stack:

        def make(name: str = "", **options: object) -> Lab:
            lab = stack.enter_context(Lab(name, **options))  # type: ignore[arg-type]
            made.append(lab)
            return lab

        with _logs_on_failure(request, made):
            yield make


@contextlib.contextmanager
def _logs_on_failure(request: pytest.FixtureRequest, labs: list[Lab]) -> Iterator[None]:
    """What the daemons wrote is the better half of a failure's report. Runs before the lab is taken away."""
    failed_before = request.session.testsfailed
    yield
    if request.session.testsfailed == failed_before:
        return
    for lab in labs:
        for host in lab.hosts:
            with contextlib.suppress(VxnetError, OSError):
                lines = lab[host].log.read_text(errors="replace").splitlines()[-_LOG_LINES:]
                print(f"--- {lab.name}: daemon of {host}", *lines, sep="\n")
