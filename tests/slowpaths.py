"""Running the tests without fast paths: `pytest --without NAME`, repeated, or `--without all`.

They are off in this process, and in every one that a test starts (see vhdkit.storage.fast_paths). Tests about a path
itself bear the mark `fast_path(NAME)`: without it they are left out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from vhdkit.storage.fast_paths import FastPath

if TYPE_CHECKING:
    from collections.abc import Iterable

# `together` off is the contrary of `alone` off.
ALL: Final = tuple(path for path in FastPath if path is not FastPath.TOGETHER)


def chosen(names: Iterable[str]) -> tuple[FastPath, ...]:
    """Return the paths that are meant, `all` spelled out; raise ValueError for others."""
    wanted = [each for name in names for each in (ALL if name == "all" else (name,))]
    if unknown := sorted(set(wanted) - set(FastPath)):
        raise ValueError(f"no fast path is called {', '.join(unknown)}; there are: all, {', '.join(FastPath)}")
    return tuple(dict.fromkeys(map(FastPath, wanted)))
