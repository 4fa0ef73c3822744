"""Which worker sees which files: what workers say of their folders, and what tasks ask for, as Dask's resources.

A worker that may work below /vms of the host hv07 has `disk:hv07:/vms` for what is asked of that host by name, and
`disk::/vms` for what any worker may do that sees /vms: a folder that many hosts share, or one of this machine.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vhdkit.errors import FleetError
from vhdkit.storage import paths

if TYPE_CHECKING:
    from collections.abc import Iterable

    from vhdkit.fleet.patterns import Pattern

_PREFIX = "disk:"
# A task takes one of it: it says where, not how much.
PLENTY = 1e9


def places_of(host: str, folders: Iterable[str]) -> dict[str, float]:
    """Return the resources of a worker.

    >>> sorted(places_of("hv07", ["/vms"]))
    ['disk::/vms', 'disk:hv07:/vms']
    """
    return {f"{_PREFIX}{name}:{folder}": PLENTY for folder in folders for name in ("", host)}


def place_for(pattern: Pattern, offered: Iterable[str]) -> str:
    """Return the resource that a worker has which sees all that a pattern may mean: of several the narrowest.

    Raises:
        FleetError: no worker does.

    """
    # What has wildcards may also be the name of a file or a folder.
    meant = [paths.normpath(pattern.root), paths.normpath(pattern.text)]
    start = f"{_PREFIX}{pattern.host}:"
    fitting = [name for name in offered if name.startswith(start) and _holds(name.removeprefix(start), meant)]
    if not fitting:
        where = f"of {pattern.host} " if pattern.host else ""
        raise FleetError(f"{pattern}: no worker {where}is allowed into {meant[0]}")
    return max(fitting, key=len)


def _holds(folder: str, meant: Iterable[str]) -> bool:
    return all(paths.is_below(path, [folder]) for path in meant)
