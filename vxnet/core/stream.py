"""One TCP connection of the gossip, without the TCP: what to write, what came, when it is over.

::

    dialled:   write to_send ──> [read the answer] ──> done
    accepted:  read the message ──> write to_send ──> done

The shell's part is the same for both: write ``to_send``; while not ``done`` read and hand over; then close.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from vxnet.core import wire
from vxnet.core.members import Address
from vxnet.core.oldpack import MalformedError

if TYPE_CHECKING:
    from vxnet.core.swim import Swim


class Stream:
    def __init__(
        self,
        swim: Swim,
        addr: Address,
        message: bytes | None = None,
        *,
        on_answer: Callable[[wire.Message, Address], bool] | None = None,
        on_failure: Callable[[], object] | None = None,
        timeout_s: float | None = None,
    ) -> None:
        """``message`` None: somebody else dialled. ``on_answer`` None: none is waited for."""
        self.addr = addr
        self.timeout_s = swim.settings.stream_timeout_s if timeout_s is None else timeout_s
        """For all of it."""
        self.to_send = b"" if message is None else swim.seal_stream(message)
        self._swim = swim
        self._accepted = message is None
        self._on_answer = on_answer
        self._on_failure = on_failure
        self._reader = swim.stream_reader()
        self.done = not self._accepted and on_answer is None
        """Nothing more is to be read."""

    def receive(self, data: bytes, now: float) -> bytes:
        """What to write in return. ``data`` empty: the peer has closed."""
        self._swim.handle_timer(now)
        if self.done:
            return b""
        if not data:
            self._swim.dropped["a stream that ends in the middle"] += 1
            self.fail(now)
            return b""
        try:
            message = self._reader.feed(data)
        except MalformedError as error:
            self._swim.dropped[str(error)] += 1
            self.fail(now)
            return b""
        if message is None:
            return b""
        self.done = True
        if self._accepted:
            answer = self._swim.receive_stream(message, self.addr)
            return self._swim.seal_stream(answer) if answer else b""
        if self._on_answer is not None and not self._on_answer(message, self.addr):
            self._give_up()
        return b""

    def fail(self, now: float) -> None:
        """It could not be opened, broke, or took too long. Harmless once it is done."""
        if not self.done or (self._on_answer is None and not self._accepted):
            self.done = True
            self._give_up()

    def _give_up(self) -> None:
        if self._on_failure is not None:
            self._on_failure()
