"""How fast a job is, of late."""

from __future__ import annotations

from collections import deque

# The rate is measured over this many seconds.
_RATE_SECONDS = 10.0
# A shorter time gives no rate: the first bytes of a run, or after a pause, come in a burst.
_RATE_LEAST_SECONDS = 1.5


class RateMeter:
    """The bytes a second of a job that says now and then how many are done."""

    def __init__(self) -> None:
        self._samples: deque[tuple[float, int]] = deque()

    def sample(self, now: float, done: int) -> float:
        """Record how many bytes are done at a moment; return the rate, 0 while it is unknown."""
        self._samples.append((now, done))
        while now - self._samples[0][0] > _RATE_SECONDS:
            self._samples.popleft()
        seconds = now - self._samples[0][0]
        rate = (done - self._samples[0][1]) / seconds if seconds >= _RATE_LEAST_SECONDS else 0.0
        return max(0.0, rate)

    def clear(self) -> None:
        """Begin anew, as after a pause."""
        self._samples.clear()
