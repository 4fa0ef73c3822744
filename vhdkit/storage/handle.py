"""What every open thing has in common: it is closed once, of no use after that, and never copied or pickled."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, ClassVar, NoReturn, Protocol, Self

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import SupportsIndex


class Closable(Protocol):
    """What can be closed."""

    def close(self) -> None:
        """Close it."""
        ...


class ClosedAtEnd:
    """Something that is closed at the end of a `with` block."""

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self.close()

    def close(self) -> None:
        """Give back what is held."""
        raise NotImplementedError


class Handle(ClosedAtEnd):
    """Something that holds open files and their locks: a context manager that closes itself.

    A copy would have the same descriptors and would close them a second time, when other files have their numbers; in
    another process the numbers mean other files from the start.
    """

    handle_kind: ClassVar[str] = "file"
    _closed = False

    def __enter__(self) -> Self:
        self.check_open()
        return self

    def __reduce_ex__(self, protocol: SupportsIndex, /) -> NoReturn:
        message = f"a {type(self).__name__} cannot be pickled or copied: it holds open files; pass the path on instead"
        raise TypeError(message)

    @property
    def path(self) -> str:
        """Where the file is."""
        raise NotImplementedError

    @property
    def closed(self) -> bool:
        """Whether it was closed."""
        return self._closed

    def close(self) -> None:
        """Close what is held; closing twice is allowed."""
        raise NotImplementedError

    def check_open(self) -> None:
        """Refuse to go on with what was closed.

        Raises:
            ValueError: it was.

        """
        if self._closed:
            raise ValueError(f"{self.path}: the {self.handle_kind} is closed")


@contextmanager
def closing_on_error(*opened: Closable) -> Iterator[None]:
    """Close what was opened if the block raises; else it is whoever's the block gives it to."""
    with closing_all_on_error(opened):
        yield


@contextmanager
def closing_all_on_error(opened: Iterable[Closable]) -> Iterator[None]:
    """Do the same for a list to which the block adds what it opens."""
    try:
        yield
    except BaseException:
        with ExitStack() as closing:
            for each in opened:
                closing.callback(each.close)
        raise
