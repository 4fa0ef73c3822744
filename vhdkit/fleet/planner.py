"""Planning a fleet's run: from the chains that were found, or from requests that the caller has spelled out.

Nothing is written, and no chain is looked into more than finding it took: each merge is planned to the byte where and
when its turn comes.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import msgspec

from vhdkit.disk.unique_id import guid
from vhdkit.errors import FleetError
from vhdkit.fleet.join import join_found
from vhdkit.fleet.plan import DEFAULT_PER_TARGET, FleetPlan, FleetTarget, FleetTask, Obstacle, WaitingMerge
from vhdkit.fleet.requests import (
    CheckRequest,
    ConvertRequest,
    FleetRequest,
    FleetVerb,
    HashRequest,
    path_of,
    verb_of,
    written_path,
)
from vhdkit.options import EnsureRequest, MergeRequest, OutputFormat, ParentPolicy
from vhdkit.storage import paths
from vhdkit.storage.mounts import mount_point, shared_source

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence

    from vhdkit.fleet.find import FinishedMerge, FoundChain, FoundChains, FoundLayer, UnfinishedMerge

_CONVERTED = {"raw": ".img", "fixed": ".vhd", "dynamic": ".vhd"}


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetOptions:
    """How each chain is treated: the options of the single verbs that mean something for many chains.

    `destination` is the folder of converted disks. `rate` is the most bytes a second of one merge.
    """

    verb: FleetVerb
    parents: ParentPolicy = field(default_factory=ParentPolicy)
    per_target: int = DEFAULT_PER_TARGET
    verify: bool = False
    rate: int | None = None
    deep: bool = False
    algorithm: str = "sha256"
    destination: str = ""
    output_format: OutputFormat = "dynamic"


def plan_fleet(found: Sequence[FoundChains], options: FleetOptions) -> FleetPlan:
    """Turn the chains that were found into tasks.

    A merge takes every run of images that the patterns mean, with one image below them as its destination: the first
    that they do not mean, or the base. What shares files with a merge that changes them is in one group, lower merges
    first.
    """
    machines = join_found(found)
    planned = _Planned(options)
    for here in machines:
        planned.add(here)
    return FleetPlan(
        verb=options.verb,
        tasks=tuple(planned.tasks()),
        per_target=options.per_target,
        obstacles=tuple(planned.obstacles),
        waiting=tuple(planned.waiting),
        mounts={here.target(device): name for here in machines for device, name in here.mounts.items()}
        | planned.mounts,
    )


def plan_requests(requests: Iterable[FleetRequest], *, per_target: int = DEFAULT_PER_TARGET) -> FleetPlan:
    """Plan what the caller has spelled out, on the file systems of this machine; all requests are of one verb.

    Two requests that write the same file run one after another.

    Raises:
        ValueError: there is no request, or they are of different verbs.
        OSError: a file is not there to be worked with.

    """
    given = list(requests)
    verbs = {verb_of(request) for request in given}
    if len(verbs) != 1:
        raise ValueError(f"the requests are of {len(verbs)} verbs: expected at least one request, and of one verb")
    mounts: dict[FleetTarget, str] = {}
    groups: dict[str, int] = {}
    tasks = []
    for number, request in enumerate(given):
        written = written_path(request)
        targets = [_target_of(path, mounts) for path in (_folder_of(written), path_of(request)) if path]
        group = number if written is None else groups.setdefault(paths.abspath(written), number)
        tasks.append(
            FleetTask(
                number=number,
                request=_with_slots(request, per_target),
                targets=tuple(dict.fromkeys(targets)),
                group=group,
                cost=1.0,
            )
        )
    return FleetPlan(verb=verbs.pop(), tasks=tuple(tasks), per_target=per_target, mounts=mounts)


def _folder_of(path: str | None) -> str:
    return "" if path is None else paths.dirname(paths.abspath(path))


def _target_of(path: str, mounts: dict[FleetTarget, str]) -> FleetTarget:
    try:
        device, name = mount_point(path)
    except FileNotFoundError:
        # A leaf that was merged by an earlier run is gone; its folder says where it was.
        device, name = mount_point(_folder_of(path))
    source = shared_source(name)
    target = FleetTarget(host="", device=0 if source else device, source=source)
    mounts.setdefault(target, name)
    return target


@dataclass(frozen=True, slots=True, kw_only=True)
class _Draft:
    """A task before it has its number and its group: the files that it changes, and those that it reads or changes.

    `depth` is higher for what has to wait for others of its group.
    """

    request: FleetRequest
    host: str
    place: str
    targets: tuple[FleetTarget, ...]
    cost: float
    depth: int
    written: frozenset[Hashable]
    touched: frozenset[Hashable]


class _Planned:
    """What was planned so far, over all machines."""

    def __init__(self, options: FleetOptions) -> None:
        self._options = options
        self._drafts: list[_Draft] = []
        self._names: dict[str, str] = {}
        self.obstacles: list[Obstacle] = []
        self.waiting: list[WaitingMerge] = []
        self.mounts: dict[FleetTarget, str] = {}

    def add(self, found: FoundChains) -> None:
        """Plan what was found on one machine."""
        known = self._merges_known(found)
        self.obstacles += [
            Obstacle(path=path, host=found.host, error=error)
            for path, error in found.unreadable.items()
            if path not in known
        ]
        # Where images are left that are in no snapshot's way, all merges may have been done by earlier runs.
        self.obstacles += [
            Obstacle(path=each.text, host=found.host, error=FleetError("no image is there", path=each.text))
            for each in found.unmatched
            if not (each.has_neighbours and self._options.verb is FleetVerb.MERGE)
        ]
        if self._options.verb is FleetVerb.MERGE:
            self._add_merges(found)
            return
        for chain in found.chains:
            self._add_reading(found, chain)

    def _merges_known(self, found: FoundChains) -> set[str]:
        """Return the leaves that may be gone because an earlier run has merged them, or has nearly."""
        if self._options.verb is not FleetVerb.MERGE:
            return set()
        return {each.leaf for each in found.unfinished} | {each.leaf for each in found.finished}

    def tasks(self) -> Iterator[FleetTask]:
        """Yield the tasks, groups and numbers given."""
        groups = _groups(self._drafts)
        order = sorted(range(len(self._drafts)), key=lambda at: (groups[at], self._drafts[at].depth))
        for number, at in enumerate(order):
            draft = self._drafts[at]
            yield FleetTask(
                number=number,
                request=draft.request,
                targets=draft.targets,
                group=groups[at],
                cost=draft.cost,
                host=draft.host,
                place=draft.place,
            )

    def _add_reading(self, found: FoundChains, chain: FoundChain) -> None:
        path, options = chain.leaf.path, self._options
        if chain.problem is not None and options.verb is not FleetVerb.CHECK:
            self.obstacles.append(Obstacle(path=path, host=found.host, error=chain.problem))
            return
        request: FleetRequest
        targets = [found.target(layer.identity[0]) for layer in chain.layers]
        match options.verb:
            case FleetVerb.HASH:
                request = HashRequest(path=path, algorithm=options.algorithm, parents=options.parents)
            case FleetVerb.CONVERT:
                request = ConvertRequest(
                    path=path,
                    destination=self._new_name(path),
                    output_format=options.output_format,
                    parents=options.parents,
                )
                if not self._is_new(request, found.host):
                    return
                targets = [*self._destination_target(found.place), *targets]
            case _:
                request = CheckRequest(path=path, deep=options.deep, parents=options.parents)
        self._drafts.append(
            _Draft(
                request=request,
                host=found.host,
                place=found.place,
                targets=tuple(dict.fromkeys(targets)),
                cost=float(sum(layer.file_size for layer in chain.layers)),
                depth=0,
                written=frozenset(),
                touched=frozenset(),
            )
        )

    def _new_name(self, path: str) -> str:
        stem = paths.splitext(paths.basename(path))[0]
        return paths.join(self._options.destination, stem + _CONVERTED[self._options.output_format])

    def _is_new(self, request: ConvertRequest, host: str) -> bool:
        """Whether no other chain gets the same new file; else it is an obstacle."""
        other = self._names.setdefault(request.destination, request.path)
        if other == request.path:
            return True
        message = f"its new file would have the name of that of {other}: {request.destination}"
        self.obstacles.append(Obstacle(path=request.path, host=host, error=FleetError(message, path=request.path)))
        return False

    def _destination_target(self, place: str) -> list[FleetTarget]:
        """Return the file system of the folder of converted disks, if it is one of this machine."""
        if place:
            return []
        target = _target_of(self._options.destination, self.mounts)
        return [target]

    def _add_begun(self, found: FoundChains, begun: set[str]) -> None:
        """Plan what earlier runs have begun; `begun` are the sources of merges that are not finished."""
        for each in found.unfinished:
            if each.undo_image:
                self.waiting.append(WaitingMerge(path=each.leaf, host=found.host, undo_image=each.undo_image))
            else:
                self._drafts.append(self._finishing(found, each))
        for done in found.finished:
            if done.leaf not in begun:
                self._drafts.append(self._finishing(found, done))

    def _add_merges(self, found: FoundChains) -> None:
        # Where a pattern means less than that of the run that was cut off, the leaf is merged further down than asked.
        begun = {source for each in found.unfinished for source in each.sources}
        self._add_begun(found, begun)
        seen: set[tuple[str, str]] = set()
        for chain in found.chains:
            if chain.problem is not None:
                self.obstacles.append(Obstacle(path=chain.leaf.path, host=found.host, error=chain.problem))
                continue
            for top, bottom in _merges_in(chain.layers):
                leaf, into = chain.layers[top], chain.layers[bottom]
                if leaf.path not in begun and (leaf.path, into.path) not in seen:
                    seen.add((leaf.path, into.path))
                    self._drafts.append(self._merge(found, chain.layers, top, bottom))

    def _merge(self, found: FoundChains, layers: Sequence[FoundLayer], top: int, bottom: int) -> _Draft:
        leaf, into, sources = layers[top], layers[bottom], layers[top:bottom]
        # An image right above the leaf is relinked to the destination.
        written = _keys(found.host, {layer.path: layer.identity for layer in layers[max(0, top - 1) : bottom + 1]})
        targets = [found.target(layer.identity[0]) for layer in (into, *sources)]
        return _Draft(
            request=self._ensure(leaf.path, into.path, guid(leaf.unique_id)),
            host=found.host,
            place=found.place,
            targets=tuple(dict.fromkeys(targets)),
            cost=float(sum(layer.file_size for layer in sources)),
            depth=len(layers) - bottom,
            written=written,
            touched=_keys(found.host, {layer.path: layer.identity for layer in layers}),
        )

    def _finishing(self, found: FoundChains, begun: UnfinishedMerge | FinishedMerge) -> _Draft:
        changed = _keys(found.host, {begun.destination: begun.identity})
        return _Draft(
            request=self._ensure(begun.leaf, begun.destination, begun.leaf_id),
            host=found.host,
            place=found.place,
            targets=(found.target(begun.identity[0]),),
            cost=float(begun.payload_bytes),
            depth=0,
            written=changed,
            touched=changed,
        )

    def _ensure(self, leaf: str, into: str, leaf_id: str) -> EnsureRequest:
        options = self._options
        merge = MergeRequest.of(
            leaf,
            into=into,
            verify=options.verify,
            search=options.parents.search,
            parent_map=options.parents.parent_map,
            rate=options.rate,
            parallel=options.per_target,
        )
        return EnsureRequest(merge=merge, leaf_id=leaf_id)


def _merges_in(layers: Sequence[FoundLayer]) -> Iterator[tuple[int, int]]:
    """Yield where the topmost source and the destination of each merge are in a chain, from the leaf down."""
    top: int | None = None
    for at, layer in enumerate(layers):
        is_source = layer.is_matched and layer.is_source
        if top is not None and not is_source:
            yield top, at
            top = None
        elif top is None and is_source:
            top = at


def _keys(host: str, identities: Mapping[str, tuple[int, int]]) -> frozenset[Hashable]:
    """Return what identifies files besides their paths: a host, or the place of the workers that see them.

    One that is meant by HOST:/PATH and by /PATH has the second key in common. Two hosts may have different files with
    the same numbers at one path: they are then worked with one after another, which costs time alone.
    """
    return frozenset(key for path, identity in identities.items() for key in ((host, identity), (path, identity)))


def _groups(drafts: Sequence[_Draft]) -> list[int]:
    """Return the group of each task: those that touch a file which one of them changes are together."""
    parents = list(range(len(drafts)))

    def root(at: int) -> int:
        while parents[at] != at:
            parents[at] = parents[parents[at]]
            at = parents[at]
        return at

    changers: dict[Hashable, int] = {}
    for at, draft in enumerate(drafts):
        for file in draft.written:
            parents[root(at)] = root(changers.setdefault(file, at))
    for at, draft in enumerate(drafts):
        for file in draft.touched:
            if file in changers:
                parents[root(at)] = root(changers[file])
    named: dict[int, int] = {}
    return [named.setdefault(root(at), len(named)) for at in range(len(drafts))]


def _with_slots(request: FleetRequest, per_target: int) -> FleetRequest:
    """Return a merge that shares its file system with no fewer others of this user than a run begins at once."""
    if not isinstance(request, EnsureRequest) or request.merge.parallel is not None:
        return request
    return replace(request, merge=msgspec.structs.replace(request.merge, parallel=per_target))
