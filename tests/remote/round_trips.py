"""How many round trips a client makes for each file, counted at the server.

Requests that are on the way together are one round trip. Here a server holds its answers until all the requests have
come that the client makes without waiting: were they made one after the other, no answer would ever be sent. So the
count is of what depends on what, and not of how quick a machine is.
"""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from typing import TYPE_CHECKING, Any

import asyncssh.sftp

from vhdkit.storage import transport

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import pytest

    from vhdkit.storage.remote_paths import RemotePlace

PATIENCE_SECONDS = 60.0
# A task that has been woken goes through the loop a few times before it sends.
_TURNS = 50


class RoundTrips:
    """Trips by the names of files; requests about side files are counted under their own names."""

    def __init__(self) -> None:
        self.of: Counter[str] = Counter()
        self.is_broken = False
        self._in_this_trip: set[str] = set()
        self._arrived = 0
        self._change = threading.Condition()

    def of_layer(self, path: str) -> int:
        """Return the trips for a file and the side files that it may have."""
        return sum(count for name, count in self.of.items() if name.startswith(path))

    def _count(self, name: str) -> None:
        self._arrived += 1
        if name not in self._in_this_trip:
            self._in_this_trip.add(name)
            self.of[name] += 1
        self._change.notify_all()

    def _wait(self, until: Callable[[], bool]) -> None:
        if not self.is_broken:
            self.is_broken = not self._change.wait_for(until, PATIENCE_SECONDS)


class HttpTrips(RoundTrips):
    """Those of a client that announces how many requests it makes at once."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self._announced = 0
        plain = transport.Transport._together  # noqa: SLF001 - where requests are made together

        def together(on: transport.Transport, place: RemotePlace, requests: Sequence[Any]) -> list[Any]:
            # So many run at once that here each batch is one trip.
            assert len(requests) <= transport.MOST_AT_ONCE
            with self._change:
                self._announced += len(requests)
                self._in_this_trip.clear()
            return plain(on, place, requests)

        monkeypatch.setattr(transport.Transport, "_together", together)

    def arrive(self, name: str) -> None:
        """Count a request, and return when it may be answered."""
        with self._change:
            self._count(name)
            self._wait(lambda: self._arrived >= self._announced)


class SftpTrips(RoundTrips):
    """Those of a client whose packets are counted when they are sent."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__()
        self._sent = 0
        self._loop = loop
        self._is_answered = False
        plain = asyncssh.sftp.SFTPHandler.send_packet

        def send_packet(handler: asyncssh.sftp.SFTPHandler, kind: int, number: int | None, *parts: bytes) -> None:
            # What begins a session, and what asks for limits, has no place in a trip for a file.
            if isinstance(handler, asyncssh.sftp.SFTPClientHandler) and kind not in {1, 200}:
                self._sent += 1
            plain(handler, kind, number, *parts)

        monkeypatch.setattr(asyncssh.sftp.SFTPHandler, "send_packet", send_packet)

    def arrive(self, name: str) -> None:
        """Count a request."""
        with self._change:
            if self._is_answered:
                self._in_this_trip.clear()
                self._is_answered = False
            self._count(name)

    def hold(self) -> None:
        """Return when an answer may be sent: the client has sent all that it can without one."""
        before = -1
        while before != self._sent:
            before = self._sent
            asyncio.run_coroutine_threadsafe(_turns(), self._loop).result(PATIENCE_SECONDS)
        with self._change:
            self._wait(lambda: self._arrived >= before)
            self._is_answered = True


async def _turns() -> None:
    for _ in range(_TURNS):
        await asyncio.sleep(0)
