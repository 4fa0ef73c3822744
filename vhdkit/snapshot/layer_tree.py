"""The pending merges and removals of one disk's layers, some of which are not needed. Pure: a tree in, steps out.

A layer is needed if a snapshot has it or the machine writes to it. One that is not needed and has no child is removed;
one that has exactly one child gets that child merged into it, and takes its place; with more children it waits.

**Source**: docs/reference/vhd.md 5.2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vhdkit.journal.manifest import Fold

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    # Each layer's parent, None for a base; layers are told apart by their paths.
    Parents = Mapping[str, str | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Removal:
    """A layer that nothing reads through and nobody needs."""

    layer: str


def owed(parents: Parents, needed: Collection[str]) -> tuple[Removal | Fold, ...]:
    """Return what is to be done, in an order in which it can be done: removals from the leaves down, then merges.

    >>> owed({"base": None, "a": "base", "b": "a", "dead": "a"}, {"b"})
    (Removal(layer='dead'), Fold(sources=('b', 'a'), destination='base'))
    """
    removals = _removals(parents, needed)
    gone = {removal.layer for removal in removals}
    return (*removals, *_folds({path: parent for path, parent in parents.items() if path not in gone}, needed))


def waiting(parents: Parents, needed: Collection[str]) -> tuple[str, ...]:
    """Return the layers that nobody needs and that stay all the same, since several others read through them."""
    steps = owed(parents, needed)
    left = carried_out(parents, steps)
    kept = {*needed, *(step.destination for step in steps if isinstance(step, Fold) and step.top in needed)}
    return tuple(path for path in left if path not in kept)


def carried_out(parents: Parents, steps: tuple[Removal | Fold, ...]) -> dict[str, str | None]:
    """Return the tree after some steps."""
    gone = {path for step in steps for path in ([step.layer] if isinstance(step, Removal) else step.sources)}
    # The destination of one merge may be what another's topmost source lies on, and no more.
    heirs = {step.top: step.destination for step in steps if isinstance(step, Fold)}
    return {
        path: parent if parent is None else heirs.get(parent, parent)
        for path, parent in parents.items()
        if path not in gone
    }


def children_by_parent(parents: Parents) -> dict[str, list[str]]:
    """Return each layer's children, in the order of the tree."""
    children: dict[str, list[str]] = {path: [] for path in parents}
    for path, parent in parents.items():
        if parent is not None:
            children[parent].append(path)
    return children


def line_of(parents: Parents, layer: str) -> tuple[str, ...]:
    """Return a layer with everything below it, topmost first."""
    line: dict[str, None] = {}
    at: str | None = layer
    while at is not None and at not in line:
        line[at] = None
        at = parents[at]
    return tuple(line)


def _removals(parents: Parents, needed: Collection[str]) -> tuple[Removal, ...]:
    counts = {path: len(children) for path, children in children_by_parent(parents).items()}
    ready = [path for path, count in counts.items() if not count and path not in needed]
    for path in ready:  # which grows
        below = parents[path]
        if below is not None:
            counts[below] -= 1
            if not counts[below] and below not in needed:
                ready.append(below)
    return tuple(Removal(layer=path) for path in ready)


def _folds(parents: Parents, needed: Collection[str]) -> tuple[Fold, ...]:
    """Return one merge for each stretch of layers of which all but the topmost are not needed and have one child."""
    children = children_by_parent(parents)
    passed = {path for path in parents if path not in needed and len(children[path]) == 1}
    folds = []
    for path in parents:
        below = parents[path]
        # A stretch begins with a layer that is passed on and hangs on none that is.
        if path not in passed or below in passed:
            continue
        stretch = [path]
        while stretch[-1] in passed:
            stretch.append(children[stretch[-1]][0])
        folds.append(Fold(sources=tuple(reversed(stretch[1:])), destination=path))
    return tuple(folds)
