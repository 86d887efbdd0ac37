"""The seconds that a training took, without what interrupts it."""

from __future__ import annotations

import time

from torch import Tensor


class TrainingClock:
    """A clock that runs from the beginning of a step until it is stopped.

    Attributes:
        seconds: Seconds that it has run.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self._started: float | None = None

    def start(self) -> None:
        """Go on, unless the clock runs already."""
        if self._started is None:
            self._started = time.perf_counter()

    def stop(self, last: Tensor | None) -> None:
        """Stop, unless the clock stands already.

        Args:
            last: What the device computes last; it is waited for. None to wait for nothing.
        """
        if self._started is None:
            return
        if last is not None:
            last.cpu()
        self.seconds += time.perf_counter() - self._started
        self._started = None
