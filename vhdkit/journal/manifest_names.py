"""Which paths and names may stand in a manifest."""

from __future__ import annotations

import posixpath

from vhdkit.storage import paths

# Relative paths from one folder of a system to another, which has 4,096 letters at most for each.
_MAX_PATH, _MAX_COMPONENTS = 8192, 256


def check_path(path: str) -> None:
    """Refuse a path that is none as manifests have it: relative, plain, and of a file.

    Raises:
        ValueError: it is not.

    """
    is_plain = posixpath.normpath(path) == path and not path.startswith("/") and path.count("/") < _MAX_COMPONENTS
    is_other_kind = paths.sep != "/" and (paths.sep in path or ":" in path)
    if not is_plain or is_other_kind or len(path) > _MAX_PATH or posixpath.basename(path) in {"", ".", ".."}:
        raise ValueError(f"{path[:80]!r} is no path of a file as a manifest has it")


def is_plain_name(name: str) -> bool:
    """Whether text can be a file's name: it leads to no other folder."""
    return name not in {"", ".", ".."} and "/" not in name and paths.sep not in name and "\0" not in name
