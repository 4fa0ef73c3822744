"""What a caller asks for, spelled once: built at the door of a verb, and passed down whole."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Literal, TypeAlias

import msgspec
from msgspec import Meta
from msgspec.structs import replace

from vhdkit.arguments import checked
from vhdkit.units import as_text, as_text_map, as_texts

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from vhdkit.units import StrPath

# The longest path of Windows; Linux has 4,096 bytes.
_MOST_PATH = 32_768
# More than a chain of 1,024 layers with every child of every one of them.
_MOST_FILES = 1 << 20

# More merges at once than any file system gains from.
_MOST_PARALLEL = 1024

# How a file is read whatever it looks like; what is written; what qemu-img writes for us.
ReadFormat: TypeAlias = Literal["vhd", "raw"]
DiskTypeName: TypeAlias = Literal["fixed", "dynamic"]
OutputFormat: TypeAlias = Literal["raw", "fixed", "dynamic"]
QemuFormat: TypeAlias = Literal["qcow2", "vmdk", "vdi"]

Path = Annotated[str, Meta(max_length=_MOST_PATH)]
Files = Annotated[tuple[Path, ...], Meta(max_length=_MOST_FILES)]


@dataclass(frozen=True, slots=True, kw_only=True)
class ParentPolicy:
    """Which files may be opened as parents.

    A parent may lie in its child's folder, in the folders of `search` and below them. `parent_map` says which local
    folder stands for a folder that absolute paths in images name. `parent` is the parent of the image, or of the layer
    further down that it fits; a raw parent is only taken if it is named so. With `accept_id_mismatch` the file that the
    child names, or `parent`, is taken though its id is another, if none has the right one: for reading only.
    """

    search: tuple[str, ...] = ()
    parent_map: Mapping[str, str] = field(default_factory=dict)
    parent: str | None = None
    accept_id_mismatch: bool = False

    @classmethod
    def of(
        cls,
        search: Sequence[StrPath] = (),
        parent_map: Mapping[str, StrPath] | None = None,
        parent: StrPath | None = None,
        *,
        accept_id_mismatch: bool = False,
    ) -> ParentPolicy:
        """Return the policy that the arguments of a public function say."""
        return cls(
            search=as_texts(search),
            parent_map=as_text_map(parent_map),
            parent=as_text(parent),
            accept_id_mismatch=accept_id_mismatch,
        )

    @property
    def folders(self) -> tuple[str, ...]:
        """The folders that the caller named."""
        return (*self.search, *self.parent_map.values())

    def without_named_parent(self) -> ParentPolicy:
        """Return the policy for an image whose parent the caller has not named."""
        return dataclasses.replace(self, parent=None)


class Follow(StrEnum):
    """What a background job's process does once the job is complete.

    SETTLE: note the merge in the manifest of the machine that the destination is of, and begin the merges that waited.
    """

    SETTLE = "settle"


class EventTarget(StrEnum):
    """A log of the system's that gets the events of a job.

    SYSLOG: the local syslog · JOURNALD: systemd's journal · EVENTLOG: the Application log of Windows.
    """

    SYSLOG = "syslog"
    JOURNALD = "journald"
    EVENTLOG = "eventlog"


class MergeRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A merge as it is asked for: the arguments of `vhdkit.plan_merge`, and how it is to be carried out.

    `rate` is the most bytes a second, None for no bound; `parallel` how many jobs may run at once on the file system,
    None for the usual number. `log_file` and `event_log` get the events of a background job, `follow` is what its
    process does once the job is complete, and `on_end` the name of a command of the user's that is started when it has
    ended. The record `msgspec.to_builtins(request)`, which is JSON, is kept with a job; `msgspec.convert(record,
    MergeRequest)` holds it against the types here.
    """

    child: Path
    into: Path | None = None
    to: Path | None = None
    keep_sources: bool = False
    undo: Path | None = None
    relink_siblings: bool = False
    verify: bool = False
    resume: bool = False
    search: Files = ()
    parent_map: dict[Path, Path] = {}
    parent: Path | None = None
    accept_ended: bool = False
    rate: Annotated[int, Meta(ge=1, le=(1 << 63) - 1)] | None = None
    parallel: Annotated[int, Meta(ge=1, le=_MOST_PARALLEL)] | None = None
    log_file: Path | None = None
    event_log: EventTarget | None = None
    on_end: Annotated[str, Meta(max_length=64)] | None = None
    follow: Follow | None = None

    @classmethod
    @checked
    def of(
        cls,
        child: StrPath,
        *,
        into: StrPath | None = None,
        to: StrPath | None = None,
        keep_sources: bool = False,
        undo: StrPath | None = None,
        relink_siblings: bool = False,
        verify: bool = False,
        resume: bool = False,
        search: Sequence[StrPath] = (),
        parent_map: Mapping[str, StrPath] | None = None,
        parent: StrPath | None = None,
        accept_ended: bool = False,
        rate: int | None = None,
        parallel: int | None = None,
        log_file: StrPath | None = None,
        event_log: EventTarget | None = None,
        on_end: str | None = None,
        follow: Follow | None = None,
    ) -> MergeRequest:
        """Return the request that the arguments of a public function, or the options of a command, say.

        Raises:
            ValueError: the rate is none, or `parallel`.

        """
        if rate is not None and rate <= 0:
            raise ValueError(f"the rate is {rate}: expected bytes a second, more than none")
        if parallel is not None and not 1 <= parallel <= _MOST_PARALLEL:
            raise ValueError(f"parallel is {parallel}: expected 1 to {_MOST_PARALLEL} jobs")
        return cls(
            child=as_text(child),
            into=as_text(into),
            to=as_text(to),
            keep_sources=keep_sources,
            undo=as_text(undo),
            relink_siblings=relink_siblings,
            verify=verify,
            resume=resume,
            search=as_texts(search),
            parent_map=as_text_map(parent_map),
            parent=as_text(parent),
            accept_ended=accept_ended,
            rate=rate,
            parallel=parallel,
            log_file=as_text(log_file),
            event_log=event_log,
            on_end=on_end,
            follow=follow,
        )

    @property
    def parents(self) -> ParentPolicy:
        """Where parents may be opened."""
        return ParentPolicy(search=self.search, parent_map=self.parent_map, parent=self.parent)

    @property
    def paths(self) -> tuple[str, ...]:
        """Every path in the request."""
        named = (self.child, self.into, self.to, self.undo, self.parent, self.log_file)
        return (*(path for path in named if path is not None), *self.parents.folders)

    def with_paths(self, convert: Callable[[str], str]) -> MergeRequest:
        """Return the request with every path converted: to an absolute one, for example."""

        def converted(path: str | None) -> str | None:
            return None if path is None else convert(path)

        return replace(
            self,
            child=convert(self.child),
            into=converted(self.into),
            to=converted(self.to),
            undo=converted(self.undo),
            search=tuple(map(convert, self.search)),
            parent_map={remote: convert(local) for remote, local in self.parent_map.items()},
            parent=converted(self.parent),
            log_file=converted(self.log_file),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class EnsureRequest:
    """A merge that may have been done already: what `vhdkit.ensure_merged` is asked for.

    `merge` names the leaf and the ancestor that it is to be merged into; `leaf_id` is the leaf's unique id, a GUID in
    Windows' form.
    """

    merge: MergeRequest
    leaf_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RebaseRequest:
    """A child that shall read through `parent` from now on: what `vhdkit.plan_rebase` and `vhdkit.rebase` are asked.

    `parents` says where the old parent may lie.
    """

    child: str
    parent: str
    ignore_id_mismatch: bool = False
    accept_header_checksum: bool = False
    accept_ended: bool = False
    parents: ParentPolicy = field(default_factory=ParentPolicy)

    @classmethod
    @checked
    def of(
        cls,
        child: StrPath,
        parent: StrPath,
        *,
        ignore_id_mismatch: bool = False,
        accept_header_checksum: bool = False,
        accept_ended: bool = False,
        search: Sequence[StrPath] = (),
        parent_map: Mapping[str, StrPath] | None = None,
    ) -> RebaseRequest:
        """Return the request that the arguments of a public function, or the options of a command, say."""
        return cls(
            child=as_text(child),
            parent=as_text(parent),
            ignore_id_mismatch=ignore_id_mismatch,
            accept_header_checksum=accept_header_checksum,
            accept_ended=accept_ended,
            parents=ParentPolicy.of(search, parent_map),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class RollbackRequest:
    """A merge to roll back, named by its undo image: the arguments of `vhdkit.rollback`.

    `parents` says where the destination may lie.
    """

    path: str
    parents: ParentPolicy = field(default_factory=ParentPolicy)

    @classmethod
    @checked
    def of(
        cls, path: StrPath, *, search: Sequence[StrPath] = (), parent_map: Mapping[str, StrPath] | None = None
    ) -> RollbackRequest:
        """Return the request that the arguments of a public function, or the options of a command, say."""
        return cls(path=as_text(path), parents=ParentPolicy.of(search, parent_map))


@dataclass(frozen=True, slots=True, kw_only=True)
class DropUndoRequest:
    """A merge to make final, named by its undo image: the arguments of `vhdkit.drop_undo`.

    With `keep_file` the image stays; `parents` says where the destination may lie.
    """

    path: str
    keep_file: bool = False
    parents: ParentPolicy = field(default_factory=ParentPolicy)

    @classmethod
    @checked
    def of(
        cls,
        path: StrPath,
        *,
        keep_file: bool = False,
        search: Sequence[StrPath] = (),
        parent_map: Mapping[str, StrPath] | None = None,
    ) -> DropUndoRequest:
        """Return the request that the arguments of a public function, or the options of a command, say."""
        return cls(path=as_text(path), keep_file=keep_file, parents=ParentPolicy.of(search, parent_map))
