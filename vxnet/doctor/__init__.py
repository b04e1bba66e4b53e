"""`vxnet doctor`: everything about this host and its ways to the others that can be wrong, looked at.

::

    look() ── Patient ── CHECKS (pure) ──> findings ──> statuses
                                   └─ --fix: what a machine may mend by itself
"""

from vxnet.doctor.examine import cure, examine, judge, status, with_cures

__all__ = ["cure", "examine", "judge", "status", "with_cures"]
