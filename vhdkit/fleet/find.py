"""The chains that a pattern means, found where their files are: plain values for the planner."""

from __future__ import annotations

import errno
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from vhdkit.chain.catalog import Catalog, Parents, Unreadable, is_called_as_image, read_entries
from vhdkit.chain.chain import open_chain_with
from vhdkit.disk import unique_id
from vhdkit.errors import JournalError, VhdError
from vhdkit.fleet.patterns import Pattern
from vhdkit.fleet.plan import FleetTarget
from vhdkit.journal.merge_journal import SUFFIX as JOURNAL_SUFFIX
from vhdkit.journal.merge_journal import read_journal
from vhdkit.merging.completion import SUFFIX as COMPLETION_SUFFIX
from vhdkit.merging.completion import read_completions
from vhdkit.storage import paths
from vhdkit.storage.local_folder import LocalFolder
from vhdkit.storage.mounts import mount_point, shared_source

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from vhdkit.chain.catalog import Cataloged
    from vhdkit.journal.merge_journal import Journal
    from vhdkit.options import ParentPolicy
    from vhdkit.storage.protocols import Entry, Folder


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundLayer:
    """One image of a chain; `is_matched` says whether the pattern means it. Sizes in bytes.

    `is_source` says whether a fleet may merge it: it has a parent, and was not made to take a merge into that back.
    """

    path: str
    unique_id: bytes
    identity: tuple[int, int]
    file_size: int
    is_matched: bool
    is_source: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundChain:
    """A chain whose topmost matched image is its first layer; `size` is that of the disk, in bytes.

    `problem` is why the chain cannot be opened: then only the first layer is known.
    """

    layers: tuple[FoundLayer, ...]
    size: int
    problem: VhdError | OSError | None = None

    @property
    def leaf(self) -> FoundLayer:
        """The topmost image that the pattern means."""
        return self.layers[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class UnfinishedMerge:
    """A merge that was begun and not finished: `leaf_id` is a GUID, `sources` are paths, leaf first.

    `undo_image` is the path of what is kept for taking it back if it is complete but for dropping that, else "".
    """

    sources: tuple[str, ...]
    leaf_id: str
    destination: str
    identity: tuple[int, int]
    payload_bytes: int
    undo_image: str = ""

    @property
    def leaf(self) -> str:
        """The topmost source, which may be gone."""
        return self.sources[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class UnmatchedPattern:
    """A pattern that means no image; `has_neighbours` says whether its folders hold images of other names."""

    text: str
    has_neighbours: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class FinishedMerge:
    """A merge with a completion record, of a leaf that is gone; `leaf_id` is a GUID."""

    leaf: str
    leaf_id: str
    destination: str
    identity: tuple[int, int]
    payload_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundChains:
    """What a pattern means on one machine.

    `unreadable` are files and folders that the system does not let be read, `unfinished` merges whose topmost source
    the pattern means, `finished` those that are said to have merged the one file that it means, which is gone.
    `unmatched` is the pattern if it means nothing at all. `mounts` says where the file system of a number is mounted,
    and `sources` what a server lends there. `place` is what a worker must have that sees the files, "" if all do.
    """

    host: str
    place: str = ""
    chains: tuple[FoundChain, ...]
    unfinished: tuple[UnfinishedMerge, ...] = ()
    finished: tuple[FinishedMerge, ...] = ()
    unreadable: Mapping[str, VhdError | OSError] = field(default_factory=dict)
    unmatched: tuple[UnmatchedPattern, ...] = ()
    mounts: Mapping[int, str] = field(default_factory=dict)
    sources: Mapping[int, str] = field(default_factory=dict)

    def target(self, device: int) -> FleetTarget:
        """Return the file system of a number as all machines know it."""
        source = self.sources.get(device, "")
        return FleetTarget(host="", device=0, source=source) if source else FleetTarget(host=self.host, device=device)


def find_chains(
    pattern: Pattern, parents: ParentPolicy, *, check_root: Callable[[str], None] = lambda _root: None
) -> FoundChains:
    """Find the chains that a pattern means on this machine.

    An image that the pattern means is a chain of its own unless it is the parent of another that it means.
    `check_root` is called with the folder or file where the search begins, and may refuse it.

    Raises:
        FleetError: `check_root` raises it.

    """
    folder = LocalFolder()
    search = _search(pattern, folder)
    check_root(search.start)
    unreadable: dict[str, VhdError | OSError] = {}
    matched: dict[str, Entry] = {}
    unfinished: list[UnfinishedMerge] = []
    finished: list[FinishedMerge] = []
    neighbours: list[str] = []
    for entry in _entries(search, folder, unreadable):
        if entry.path.endswith(JOURNAL_SUFFIX):
            unfinished += _unfinished(folder, entry.path, search)
        elif search.is_gone and entry.path.endswith(COMPLETION_SUFFIX):
            finished += _finished(folder, entry.path, search)
        elif search.means(entry.path):
            matched[entry.path] = entry
        elif is_called_as_image(entry.path):
            neighbours.append(entry.path)
    chains = tuple(_chains(matched, folder, parents, unreadable))
    mounts = _mounts(chains, [*unfinished, *finished])
    return FoundChains(
        host=pattern.host,
        chains=chains,
        unfinished=tuple(unfinished),
        finished=tuple(finished),
        unreadable=unreadable,
        unmatched=() if any((chains, unfinished, unreadable)) else (_unmatched(pattern, folder, neighbours),),
        mounts=mounts,
        sources=_sources(mounts),
    )


def _unmatched(pattern: Pattern, folder: Folder, neighbours: Sequence[str]) -> UnmatchedPattern:
    """Return a pattern that means nothing; `neighbours` are images below its root."""
    has_neighbours = False
    if pattern.is_wild and not folder.exists(pattern.text):
        root, beside = folder.real(pattern.root), Pattern(text=paths.join(paths.dirname(pattern.text), "*"))
        relative = (paths.relpath(path, root).replace(paths.sep, "/") for path in neighbours)
        has_neighbours = any(map(beside.matches, relative))
    return UnmatchedPattern(text=pattern.text, has_neighbours=has_neighbours)


def _chains(
    matched: Mapping[str, Entry], folder: Folder, parents: ParentPolicy, unreadable: dict[str, VhdError | OSError]
) -> Iterator[FoundChain]:
    """Yield the chains of files that are meant, damaged images last; what cannot be read goes into `unreadable`."""
    images: dict[str, Cataloged] = {}
    damaged: list[FoundChain] = []
    for each in read_entries(folder, matched.values()):
        match each:
            case Unreadable(path, VhdError() as error):
                damaged.append(_damaged(matched[path], error))
            case Unreadable(path, error):
                unreadable[path] = error
            case image:
                images[image.path] = image
    yield from _opened(images, folder, parents)
    yield from damaged


def _mounts(chains: Iterable[FoundChain], begun: Iterable[UnfinishedMerge | FinishedMerge]) -> dict[int, str]:
    """Return where each file system is mounted, by its number."""
    files = {layer.identity[0]: layer.path for chain in chains for layer in chain.layers}
    files |= {each.identity[0]: each.destination for each in begun}
    return {device: mount_point(path)[1] for device, path in files.items()}


def _sources(mounts: Mapping[int, str]) -> dict[int, str]:
    """Return what a server lends on each file system that is one of those."""
    return {device: source for device, place in mounts.items() if (source := shared_source(place))}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Search:
    """Where a pattern's files are looked for: `root` is a folder; with a `name` one file in it is meant.

    `is_path` says that the pattern is a path, whatever letters it has, and `is_gone` that the file is not there.
    """

    pattern: Pattern
    root: str
    name: str = ""
    is_path: bool = False
    is_gone: bool = False

    @property
    def start(self) -> str:
        """The file that is meant, or the folder."""
        return paths.join(self.root, self.name) if self.name else self.root

    @property
    def is_deep(self) -> bool:
        return not self.name if self.is_path else self.pattern.is_deep

    def means(self, path: str) -> bool:
        """Whether the pattern means a file, which may be gone."""
        if not paths.is_below(paths.dirname(path), [self.root]):
            return False
        relative = paths.relpath(path, self.root).replace(paths.sep, "/")
        return (not self.name or relative == self.name) if self.is_path else self.pattern.matches(relative)


def _search(pattern: Pattern, folder: Folder) -> _Search:
    # A name with brackets may be just that.
    is_path = not pattern.is_wild or folder.exists(pattern.text)
    root = folder.real(pattern.text if is_path else pattern.root)
    if is_path and not folder.names(root):
        above, name = paths.dirname(root), paths.basename(root)
        return _Search(pattern=pattern, root=above, name=name, is_path=True, is_gone=not folder.exists(root))
    return _Search(pattern=pattern, root=root, is_path=is_path)


def _entries(search: _Search, folder: Folder, unreadable: dict[str, VhdError | OSError]) -> Iterator[Entry]:
    """Yield the files where the search begins; what is not there, or cannot be listed, goes into `unreadable`."""
    if search.is_gone:
        unreadable[search.start] = FileNotFoundError(errno.ENOENT, "No such file or directory", search.start)
    try:
        folder.check_directory(search.root)
    except OSError as error:
        if not search.is_gone:
            unreadable[search.root] = error
        return
    walk = folder.walk(search.root, deep=search.is_deep)
    yield from walk
    unreadable.update(walk.unlisted)


def _opened(images: Mapping[str, Cataloged], folder: Folder, parents: ParentPolicy) -> Iterator[FoundChain]:
    """Yield the chains of the images that are no parent of another one."""
    matched = {image.identity for image in images.values()}
    reached: set[tuple[int, int]] = set()
    for image in _topmost(images):
        # A link or a second name leads to the same file; and where ids are ambiguous the chain has to be opened.
        if image.identity in reached:
            continue
        chain = _chain(image, matched, folder, parents)
        if chain.problem is not None and not folder.exists(image.path):
            # It went since the folder was listed, as the sources of another merge do.
            continue
        reached.update(layer.identity for layer in chain.layers)
        yield chain


def _topmost(images: Mapping[str, Cataloged]) -> Iterable[Cataloged]:
    """Return the images that are no parent, then those that are reached from none: loops of parents."""
    known = Parents(Catalog(images=dict(images)))
    parents = {path: known.of(image) for path, image in images.items()}
    below = {found[0].path for found in parents.values() if len(found) == 1}
    top = [image for path, image in images.items() if path not in below]
    seen: set[str] = set()
    for image in top:
        at = image.path
        while at not in seen:
            seen.add(at)
            at = parents[at][0].path if len(parents[at]) == 1 else at
    return [*top, *(image for path, image in images.items() if path not in seen)]


def _chain(image: Cataloged, matched: set[tuple[int, int]], folder: Folder, parents: ParentPolicy) -> FoundChain:
    try:
        with open_chain_with(image.path, parents, folder, lock=False) as chain:
            layers = tuple(
                FoundLayer(
                    path=layer.path,
                    unique_id=layer.unique_id,
                    identity=layer.storage.identity,
                    file_size=layer.storage.size(),
                    is_matched=layer.storage.identity in matched,
                    is_source=layer.parent is not None and not layer.is_undo_image,
                )
                for layer in chain.layers
            )
            return FoundChain(layers=layers, size=chain.size)
    except (VhdError, OSError) as error:
        return _alone(image.path, image.identity, image.unique_id, image.metadata.size, error)


def _damaged(entry: Entry, error: VhdError) -> FoundChain:
    """Return a file that should be an image and is none as it stands; a check says more."""
    return _alone(entry.path, entry.identity, unique_id.NULL, entry.size, error)


def _alone(path: str, identity: tuple[int, int], own_id: bytes, size: int, problem: VhdError | OSError) -> FoundChain:
    layer = FoundLayer(path=path, unique_id=own_id, identity=identity, file_size=0, is_matched=True, is_source=False)
    return FoundChain(layers=(layer,), size=size, problem=problem)


def _unfinished(folder: Folder, path: str, search: _Search) -> list[UnfinishedMerge]:
    """Return the merge that a journal is of; none if the pattern does not mean it, or it cannot be gone on with."""
    destination = path.removesuffix(JOURNAL_SUFFIX)
    try:
        journal = read_journal(folder, destination)
        if journal is None or journal.rolling_back or (journal.begin.undo and not _waits_for_drop(journal)):
            return []
        sources = tuple(journal.resolve(source.path) for source in journal.begin.sources)
        if not search.means(sources[0]):
            return []
        with folder.open(destination) as storage:
            identity = storage.identity
    except (JournalError, OSError, ValueError):
        # The chain itself says so when its turn comes.
        return []
    found = UnfinishedMerge(
        sources=sources,
        leaf_id=unique_id.guid(bytes.fromhex(journal.begin.sources[0].unique_id)),
        destination=destination,
        identity=identity,
        payload_bytes=journal.begin.payload_bytes,
        undo_image=journal.resolve(journal.begin.undo) if journal.begin.undo else "",
    )
    return [found]


def _waits_for_drop(journal: Journal) -> bool:
    """Whether a merge with an undo image is complete, and kept as it is until that is dropped or rolled back."""
    return bool(journal.begin.undo) and journal.merged and not journal.dropping


def _finished(folder: Folder, path: str, search: _Search) -> list[FinishedMerge]:
    """Return the merge of the file that is gone, if the completion record at `path` has one; nothing is proven yet."""
    destination = path.removesuffix(COMPLETION_SUFFIX)
    try:
        known = [each for each in read_completions(folder, destination) if paths.basename(each.leaf) == search.name]
        with folder.open(destination) as storage:
            identity = storage.identity
    except (JournalError, OSError):
        return []
    return [
        FinishedMerge(
            leaf=search.start,
            leaf_id=unique_id.guid(bytes.fromhex(each.leaf_id)),
            destination=destination,
            identity=identity,
        )
        for each in known[-1:]
    ]
