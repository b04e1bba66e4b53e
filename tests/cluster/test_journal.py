"""The rows of others on disk: what a crash or a full disk leaves of them."""

from __future__ import annotations

import contextlib
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from vxnet.cluster import journal
from vxnet.cluster.journal import Journal
from vxnet.core.rows import Batch

BATCHES = [Batch(bytes([number]) * 500, bytes(64)) for number in range(8)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "rows"


@contextlib.contextmanager
def room_for(octets: int) -> Iterator[None]:
    """No file of this process grows beyond that: a write that crosses it is cut short, as on a disk that is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (octets, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_what_was_kept_is_there_again_and_a_torn_end_is_not(path: Path) -> None:
    kept = Journal(path)
    assert kept.load() == []
    kept.rewrite(BATCHES[:2])
    kept.append(BATCHES[2])
    kept.close()
    assert Journal(path).load() == BATCHES[:3]
    whole = path.read_bytes()
    for cut in (1, 300, 567):
        path.write_bytes(whole[:-cut])
        assert Journal(path).load() == BATCHES[:2]


def test_a_full_disk_is_told_once_and_nothing_is_written_behind_half_a_row(path: Path) -> None:
    kept = Journal(path)
    kept.rewrite(BATCHES[:2])
    with capture_logs() as logs:
        with room_for(path.stat().st_size + 100):
            kept.append(BATCHES[2])
        torn = path.stat().st_size
        kept.append(BATCHES[3])
    assert [log["event"] for log in logs] == ["rows are not kept: a restart will cost packets"]
    assert path.stat().st_size == torn
    assert Journal(path).load() == BATCHES[:2]


def test_a_file_that_cannot_be_written_anew_is_not_tried_at_each_tick(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal, "SLACK", 100)
    kept = Journal(path)
    kept.rewrite(BATCHES[:4])
    with capture_logs() as logs, room_for(100):
        for _ in range(5):
            kept.tend(0, lambda: BATCHES[:1])
    assert len(logs) == 1
    assert Journal(path).load() == BATCHES[:4]


def test_what_no_longer_counts_is_left_out_when_it_is_most_of_it(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "SLACK", 100)
    kept = Journal(path)
    kept.rewrite(BATCHES)
    kept.tend(4000, lambda: BATCHES[:1])
    assert Journal(path).load() == BATCHES
    kept.tend(500, lambda: BATCHES[:1])
    kept.append(BATCHES[5])
    assert Journal(path).load() == [BATCHES[0], BATCHES[5]]
