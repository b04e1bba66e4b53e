"""What a manager asks of a node for somebody who waits."""

from __future__ import annotations

from vxnet.model.api import LogRequest
from vxnet.model.bench import BenchWish
from vxnet.model.cluster import Record


class Errand(Record, frozen=True, kw_only=True):
    """What a manager asks of a node: to deliver the log of one of its tasks, or to be one end of a measurement."""

    id: str
    manager: str = ""
    """Id of the one that waits for it, which may be another than the node follows; empty: the one that it follows."""
    task: str = ""
    request: LogRequest = LogRequest()
    bench: BenchWish | None = None
