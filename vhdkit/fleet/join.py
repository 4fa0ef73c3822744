"""What several patterns mean together on one machine: as if they were one pattern.

A shell that takes a pattern apart makes a pattern of each file; what is the parent of another image that is meant is
no chain of its own then either.
"""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from vhdkit.fleet.find import FoundChain, FoundChains

_Found = TypeVar("_Found")


def join_found(found: Iterable[FoundChains]) -> tuple[FoundChains, ...]:
    """Return what was found on each machine, every chain and every unfinished merge once."""
    of: dict[tuple[str, str], list[FoundChains]] = {}
    for each in found:
        of.setdefault((each.host, each.place), []).append(each)
    return tuple(_joined(here) for here in of.values())


def _joined(here: Sequence[FoundChains]) -> FoundChains:
    first, *others = here
    if not others:
        return first
    return replace(
        first,
        chains=tuple(_chains(list(itertools.chain.from_iterable(each.chains for each in here)))),
        unfinished=_each_once(each.unfinished for each in here),
        finished=_each_once(each.finished for each in here),
        unreadable={path: error for each in here for path, error in each.unreadable.items()},
        unmatched=_each_once(each.unmatched for each in here),
        mounts={device: name for each in here for device, name in each.mounts.items()},
        sources={device: name for each in here for device, name in each.sources.items()},
    )


def _each_once(found: Iterable[tuple[_Found, ...]]) -> tuple[_Found, ...]:
    return tuple(dict.fromkeys(itertools.chain.from_iterable(found)))


def _chains(chains: Sequence[FoundChain]) -> Iterator[FoundChain]:
    """Yield the chains whose leaf is in no other one, with all of their layers that any pattern means."""
    meant = {layer.identity for chain in chains for layer in chain.layers if layer.is_matched}
    below = {layer.identity for chain in chains for layer in chain.layers[1:]}
    leaves = {chain.leaf.identity: chain for chain in reversed(chains)}
    for identity, chain in reversed(leaves.items()):
        if identity not in below:
            layers = (replace(layer, is_matched=layer.identity in meant) for layer in chain.layers)
            yield replace(chain, layers=tuple(layers))
