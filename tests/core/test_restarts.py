"""Docker's restart policies, as a table."""

from __future__ import annotations

import pytest

from vxnet.core.restarts import FIRST_S, LONGEST_S, pause_s, runs_again
from vxnet.model.container import Container, ContainerSpec, RestartName, RestartPolicy

NEVER, AT_START, ALWAYS = "never", "when a daemon starts", "at once"


def when(
    name: RestartName, *, retries: int = 0, status: int | None = 0, restarts: int = 0, stopped: bool = False,
    error: str = "", started_at: float | None = 1.0,
) -> str:  # fmt: skip
    spec = ContainerSpec(argv=("true",), restart=RestartPolicy(name=name, retries=retries))
    container = Container(
        id="c", spec=spec, state="dead" if status is None else "exited", exit_status=status, restarts=restarts,
        stopped=stopped, error=error, created_at=0, started_at=started_at,
    )  # fmt: skip
    if runs_again(container):
        assert runs_again(container, daemon_starts=True)
        return ALWAYS
    return AT_START if runs_again(container, daemon_starts=True) else NEVER


@pytest.mark.parametrize(
    ("name", "end", "expected"),
    [
        ("no", {"status": 1}, NEVER),
        ("always", {}, ALWAYS),
        ("always", {"status": None}, ALWAYS),
        ("always", {"stopped": True}, AT_START),
        ("always", {"error": "no such program"}, AT_START),
        ("always", {"started_at": None}, NEVER),
        ("unless-stopped", {}, ALWAYS),
        ("unless-stopped", {"stopped": True}, NEVER),
        ("unless-stopped", {"error": "no such program"}, NEVER),
        ("on-failure", {"status": 0}, NEVER),
        ("on-failure", {"status": 1}, ALWAYS),
        ("on-failure", {"status": None}, ALWAYS),
        ("on-failure", {"status": 137, "stopped": True}, NEVER),
        ("on-failure", {"status": 1, "restarts": 1000}, ALWAYS),
        ("on-failure", {"status": 1, "retries": 3, "restarts": 2}, ALWAYS),
        ("on-failure", {"status": 1, "retries": 3, "restarts": 3}, NEVER),
    ],
)
def test_policies(name: RestartName, end: dict[str, object], expected: str) -> None:
    assert when(name, **end) == expected  # type: ignore[arg-type]


def test_pauses_double_up_to_a_minute() -> None:
    pauses = [0.0]
    for _ in range(12):
        pauses.append(pause_s(pauses[-1], ran_s=0.5))
    assert pauses[1:5] == [0.1, 0.2, 0.4, 0.8]
    assert pauses[-1] == LONGEST_S


def test_who_ran_ten_seconds_begins_anew() -> None:
    assert pause_s(LONGEST_S, ran_s=10) == FIRST_S
    assert pause_s(LONGEST_S, ran_s=9.9) == LONGEST_S
