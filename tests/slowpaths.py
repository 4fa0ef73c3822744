"""The fast paths, each of which can be forced off: `pytest --without NAME`, repeated, or `--without all`.

A path is off when what decides on it is patched: in this process, and in every one that a test starts. Those look into
`VHDKIT_WITHOUT` when Python starts (see elsewhere/sitecustomize.py). A module is patched when it is loaded, so that
none is loaded for the sake of it. Tests about a path itself bear the mark `fast_path(NAME)`: without it they are left
out.
"""

from __future__ import annotations

import os
import sys
from importlib.machinery import PathFinder
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType

VARIABLE: Final = "VHDKIT_WITHOUT"
_ROOT: Final = Path(__file__).resolve().parents[1]
_HUGE: Final = 1 << 62


class Ended:
    """A sync that was made at once."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def is_done(self) -> bool:
        return False

    def wait(self) -> float:
        return self._seconds


def _sync_at_once(image: Any) -> None:
    def begin_sync(layer: Any) -> Ended:
        import time  # noqa: PLC0415 - in the processes that sync only

        begun = time.monotonic()
        layer.sync()
        return Ended(time.monotonic() - begun)

    image.FileImage.begin_sync = begin_sync


def _copy_through_memory(file: Any) -> None:
    file.copy_in_kernel = lambda *_: 0


def _share_nothing(copying: Any) -> None:
    copying.LongCopies._share = lambda *_: False  # noqa: SLF001 - what decides on it


def _write_by_the_cache(copying: Any) -> None:
    copying._DIRECT_FILE_SYSTEMS = frozenset()  # noqa: SLF001


def _write_one_at_a_time(copying: Any) -> None:
    copying._AT_ONCE = 1  # noqa: SLF001


def _copy_one_by_one(file: Any) -> None:
    def copy_many_from(
        self: Any, source: Any, source_offsets: Any, offsets: Any, lengths: Any, until: float = _HUGE
    ) -> Any:
        return file.copy_one_by_one(source, source_offsets, self, offsets, lengths, until)

    file.LocalStorage.copy_many_from = copy_many_from


def _stage_nothing(pieces: Any) -> None:
    pieces.MANY_PIECES = _HUGE


def _stage_everything(pieces: Any) -> None:
    pieces.MANY_PIECES = 1


def _count_runs(layout: Any) -> None:
    layout._are_alike = lambda *_: False  # noqa: SLF001


def _resolve_one_by_one(resolve: Any) -> None:
    resolve._STACKED = _HUGE  # noqa: SLF001


def _close_at_once(file: Any) -> None:
    def begin_close(self: Any) -> None:
        self.close()

    file.LocalStorage.begin_close = begin_close


def _forget_nothing(page_cache: Any) -> None:
    page_cache.CacheDropper.passed = lambda *_: None


# The name of a path, the module that decides on it, and what forces it off.
PATHS: Final[dict[str, tuple[str, Callable[[Any], None]]]] = {
    # The disk takes one checkpoint while the next is copied; without it each is synced before anything else is done.
    "overlap": ("vhdkit.disk.file_image", _sync_at_once),
    # Long pieces are copied by the kernel.
    "kernel-copy": ("vhdkit.storage.local_file", _copy_through_memory),
    # Long pieces are shared, where the file system can.
    "share": ("vhdkit.storage.file_copy", _share_nothing),
    # Long pieces are written past the page cache.
    "direct": ("vhdkit.storage.file_copy", _write_by_the_cache),
    # Two of them are under way at once.
    "at-once": ("vhdkit.storage.file_copy", _write_one_at_a_time),
    # Many short pieces are copied in one bare loop.
    "many": ("vhdkit.storage.local_file", _copy_one_by_one),
    # Many pieces close together become one write; without it each is copied alone.
    "together": ("vhdkit.merging.plan.destination_pieces", _stage_nothing),
    # A piece far from others is copied file to file; without it everything goes through the staging buffer.
    "alone": ("vhdkit.merging.plan.destination_pieces", _stage_everything),
    # The payload is counted from bits, where all sources are alike.
    "counting": ("vhdkit.merging.plan.placement", _count_runs),
    # Three layers and more are resolved together, by their bitmaps.
    "stacked": ("vhdkit.chain.resolve_layers", _resolve_one_by_one),
    # A file that was removed is given back while its directory is synced.
    "closing": ("vhdkit.storage.local_file", _close_at_once),
    # What a merge has read of a file that goes is let go of before.
    "forgetting": ("vhdkit.merging.run.page_cache", _forget_nothing),
}
# `together` off is the contrary of `alone` off.
ALL: Final = tuple(name for name in PATHS if name != "together")


def chosen(names: Iterable[str]) -> tuple[str, ...]:
    """Return the paths that are meant, `all` spelled out; raise ValueError for others."""
    wanted = [each for name in names for each in (ALL if name == "all" else (name,))]
    if unknown := sorted(set(wanted) - set(PATHS)):
        raise ValueError(f"no fast path is called {', '.join(unknown)}; there are: all, {', '.join(PATHS)}")
    return tuple(dict.fromkeys(wanted))


def turn_off(names: Iterable[str]) -> None:
    """Force paths off in this process, and in those that it starts with this environment."""
    names = chosen(names)
    if not names:
        return
    before = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    ours = [str(_ROOT / "tests" / "elsewhere"), str(_ROOT)]
    os.environ["PYTHONPATH"] = os.pathsep.join([*ours, *(path for path in before if path not in ours)])
    os.environ[VARIABLE] = ",".join(names)
    turn_off_here(names)


def turn_off_here(names: Iterable[str]) -> None:
    """Force paths off in this process, each when its module is loaded, or now."""
    patches: dict[str, list[Callable[[Any], None]]] = {}
    for name in names:
        module, patch = PATHS[name]
        patches.setdefault(module, []).append(patch)
    sys.meta_path.insert(0, _Patching(patches))
    for module in sorted(set(patches) & set(sys.modules)):
        for patch in patches[module]:
            patch(sys.modules[module])


class _Patching:
    """Finds the modules that are to be patched where Python does, and patches them once they are executed."""

    def __init__(self, patches: dict[str, list[Callable[[Any], None]]]) -> None:
        self._patches = patches

    def find_spec(self, name: str, path: Sequence[str] | None, _target: ModuleType | None = None) -> ModuleSpec | None:
        spec = PathFinder.find_spec(name, path) if name in self._patches else None
        if spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def execute_and_patch(module: ModuleType) -> None:
            execute(module)
            for patch in self._patches[name]:
                patch(module)

        spec.loader.exec_module = execute_and_patch  # type: ignore[method-assign] # of this loader alone
        return spec
