"""What a transport does: it reads ranges of another machine's files, and asks again for what fails for a while.

A file that has changed is never mixed with what it was: a transport compares each answer with the version that the file
had when it was opened.
"""

from __future__ import annotations

import asyncio
import errno
from abc import ABC, abstractmethod
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, NamedTuple

from vhdkit.extras import load_extra

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from vhdkit.storage.remote_paths import RemotePlace

EXTRA = "remote"
ATTEMPTS = 5
FIRST_PAUSE_SECONDS = 0.1
# Without a byte for so long a request is given up, and asked again.
STALL_SECONDS = 20.0
CHANGED = "it has changed since it was opened"
MOST_AT_ONCE = 32
# Of a folder with more names only a part could be looked through, and a second file with the same id be missed.
MOST_LISTED = 50_000


class Version(NamedTuple):
    """What a file is at one time: its size, its ETag ("" if the server has none), and its date ("" likewise)."""

    size: int
    etag: str
    date: str

    @property
    def mtime(self) -> float:
        """The date in Unix seconds; 0.0 if there is none."""
        try:
            return parsedate_to_datetime(self.date).timestamp()
        except ValueError:
            return 0.0


class Listed(NamedTuple):
    """A name in a folder of another machine."""

    name: str
    size: int
    is_folder: bool


class PassingError(Exception):
    """What may be better when it is tried again."""


def check_length(count: int, place: RemotePlace) -> None:
    """Refuse a listing that has too many names."""
    if count > MOST_LISTED:
        raise OSError(errno.E2BIG, f"it has more than {MOST_LISTED} names: search a folder further down", place.url)


class Transport(ABC):
    """Requests of one process; threads may ask at once."""

    def __init__(self, *passing: type[Exception]) -> None:
        """Make one that tries again after these exceptions as well."""
        self._passing: tuple[type[Exception], ...] = (TimeoutError, PassingError, *passing)
        self._asyn = load_extra("fsspec.asyn", EXTRA, "reading files of other machines")
        self._beginning: dict[str, asyncio.Lock] = {}

    @property
    def loop(self) -> Any:  # noqa: ANN401
        """The event loop, which a thread of its own runs."""
        return self._asyn.get_loop()

    @abstractmethod
    def version(self, place: RemotePlace) -> Version:
        """Return what a file is now.

        Raises:
            OSError: it is not there, is no regular file, or the server does not say.

        """

    @abstractmethod
    def ranges(self, place: RemotePlace, version: Version, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        """Return the bytes of ranges [start, stop) of a file, which are asked for together.

        Raises:
            OSError: ESTALE if the file is another one by now; what the server says otherwise.

        """

    @abstractmethod
    async def _session(self, place: RemotePlace) -> Any:  # noqa: ANN401
        """Return what a request is made with; for one server it is not called while it runs."""

    def exists(self, place: RemotePlace) -> bool:
        """Whether there is anything that this user may know of, be it a file or not.

        Of what is not there S3 says that it is forbidden, where the user may not list the bucket, and some web servers
        send elsewhere.
        """
        try:
            self.version(place)
        except OSError as error:
            if error.errno == errno.EIO:
                raise
            return error.errno not in {errno.ENOENT, errno.EACCES, errno.EREMOTE}
        return True

    def real(self, place: RemotePlace) -> RemotePlace:
        """Return where a file is with every link followed, where a server has links."""
        return place

    def listing(self, place: RemotePlace) -> list[Listed]:
        """Return what is in a folder.

        Raises:
            OSError: EOPNOTSUPP where the protocol has no listings.

        """
        raise OSError(errno.EOPNOTSUPP, f"folders cannot be listed by {place.scheme}", place.url)

    def release(self, place: RemotePlace, version: Version) -> None:  # noqa: B027 - most hold nothing
        """Give back what the server holds open for a file, if anything."""

    def close(self) -> None:  # noqa: B027 - what a library keeps, it closes
        """Close the connections."""

    def _together(self, place: RemotePlace, requests: Sequence[Callable[[Any], Awaitable[Any]]]) -> list[Any]:
        """Do requests together, each again if that may help; a request gets the session."""

        async def done() -> list[Any]:
            turn = asyncio.Semaphore(MOST_AT_ONCE)
            return await asyncio.gather(*(self._tried(each, turn, place) for each in requests))

        found: list[Any] = self._asyn.sync(self.loop, done)
        return found

    async def _tried(
        self,
        request: Callable[[Any], Awaitable[Any]],
        turn: asyncio.Semaphore,
        place: RemotePlace,
    ) -> Any:  # noqa: ANN401
        pause, last = FIRST_PAUSE_SECONDS, ""
        for attempt in range(ATTEMPTS):
            if attempt:
                await asyncio.sleep(pause)
                pause *= 2
            try:
                async with self._beginning.setdefault(place.authority, asyncio.Lock()):
                    session = await self._session(place)
                async with turn:
                    return await request(session)
            except self._passing as error:
                last = str(error) or type(error).__name__
        raise OSError(errno.EIO, f"it was asked for {ATTEMPTS} times in vain: {last}", place.url)
