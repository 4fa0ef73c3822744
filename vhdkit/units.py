"""Sizes, and what stands for a path: the words that every room shares."""

from __future__ import annotations

from os import PathLike, fspath
from typing import TYPE_CHECKING, TypeAlias, overload

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

StrPath: TypeAlias = "str | PathLike[str]"

SECTOR = 512
KiB = 1 << 10
MiB = 1 << 20
GiB = 1 << 30
TiB = 1 << 40


def ceil_div(value: int, step: int) -> int:
    """Return how many steps it takes to reach a value.

    >>> ceil_div(0, 512), ceil_div(512, 512), ceil_div(513, 512)
    (0, 1, 2)
    """
    return -(-value // step)


def round_up(value: int, step: int) -> int:
    """Return the next multiple of a step that is not below a value.

    >>> round_up(0, 512), round_up(512, 512), round_up(513, 512)
    (0, 512, 1024)
    """
    return -(-value // step) * step


@overload
def as_text(path: StrPath) -> str: ...
@overload
def as_text(path: None) -> None: ...


def as_text(path: StrPath | None) -> str | None:
    """Return a path as text; None for None."""
    return None if path is None else fspath(path)


def as_texts(paths: Iterable[StrPath]) -> tuple[str, ...]:
    """Return paths as text."""
    return tuple(fspath(path) for path in paths)


def as_text_map(paths: Mapping[str, StrPath] | None) -> dict[str, str]:
    """Return the paths that names stand for as text; none for None."""
    return {name: fspath(path) for name, path in (paths or {}).items()}
