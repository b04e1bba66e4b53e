"""Whether a container that has ended runs again, and after how long: ``--restart``, with Docker's rules.

======================  =============================================================
``no``                  never
``on-failure[:N]``      after a status other than 0 (also one that nobody knows), N times
``unless-stopped``      always, but after `stop`
``always``              always; after `stop` only once the daemon starts again
======================  =============================================================

A command that could not be executed is not tried again. Source: moby's ``restartmanager`` and its documentation.
"""

from __future__ import annotations

from typing import Final

from vxnet.model.container import Container

FIRST_S: Final = 0.1
"""Before the first restart; twice as long before each further one."""
LONGEST_S: Final = 60.0
STEADY_S: Final = 10.0
"""Who ran so long begins with ``FIRST_S`` again."""


def runs_again(container: Container, *, daemon_starts: bool = False) -> bool:
    """Of one that has ended. ``daemon_starts``: a daemon which has just begun found it so."""
    policy = container.spec.restart
    if container.started_at is None or container.state == "created":
        return False
    final = container.stopped or bool(container.error)
    match policy.name:
        case "no":
            return False
        case "always":
            return daemon_starts or not final
        case "unless-stopped":
            return not final
        case "on-failure":
            left = policy.retries == 0 or container.restarts < policy.retries
            return left and container.exit_status != 0 and not final


def pause_s(last_s: float, ran_s: float) -> float:
    """Until the next start of what ran for ``ran_s`` after a pause of ``last_s`` (0: there was none)."""
    if ran_s >= STEADY_S or last_s == 0:
        return FIRST_S
    return min(2 * last_s, LONGEST_S)
