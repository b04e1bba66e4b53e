"""The cluster's CA: shown, and replaced step by step as :mod:`vxnet.core.succession` says."""

from __future__ import annotations

from collections.abc import Callable

import structlog

from vxnet.core import decisions, succession
from vxnet.daemon.commits import Commits
from vxnet.daemon.mirror import Mirror
from vxnet.model.ca import CaView

log = structlog.get_logger(__name__)


class Authorities:
    """All but :meth:`view` raise what the store does."""

    def __init__(
        self, mirror: Mirror, commits: Commits, entropy: Callable[[int], bytes], now: Callable[[], float]
    ) -> None:
        self._mirror = mirror
        self._commits = commits
        self._entropy = entropy
        self._now = now

    def view(self) -> CaView:
        """The CAs, and how far their change is."""
        wishes = self._mirror.wishes
        return succession.view(wishes.authorities, wishes.nodes.values())

    @property
    def endorsements(self) -> tuple[bytes, ...]:
        """By which one vouches for its successor."""
        return tuple(one.endorsement for one in self._mirror.wishes.authorities.values() if one.endorsement)

    async def rotate(self) -> CaView:
        """Another CA begins its way to all nodes; or one is on it already."""
        entropy, now = self._entropy(48), self._now()
        await self._commits.decide(lambda wishes: decisions.rotate_ca(wishes, entropy, now))
        log.info("another CA asked for", trusted=self._numbers())
        return self.view()

    async def turn(self) -> None:
        """The next step, if it is time for one. For the leader."""
        now = self._now()
        if await self._commits.decide_as_leader(lambda wishes: decisions.turn_ca(wishes, now)):
            log.info("CA turned", trusted=self._numbers())

    def _numbers(self) -> list[int]:
        """The one that signs first."""
        return [int(number) for number in succession.in_order(self._mirror.wishes.authorities)]
