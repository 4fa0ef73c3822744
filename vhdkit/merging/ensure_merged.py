"""Merging again for a scheduler: a merge that is begun, gone on with, or found done already, each of them a success."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Protocol

import msgspec

from vhdkit.arguments import checked
from vhdkit.chain.chain import open_chain_with
from vhdkit.disk import unique_id
from vhdkit.errors import JournalError, MergeError
from vhdkit.formats import open_image
from vhdkit.journal.merge_journal import read_journal
from vhdkit.merging.completion import (
    Completion,
    MergedLeaf,
    completion_path,
    is_shown,
    read_completions,
)
from vhdkit.merging.plan.planner import plan_request
from vhdkit.merging.run.completion_draft import completion_of
from vhdkit.merging.run.engine import merge
from vhdkit.options import EnsureRequest, MergeRequest
from vhdkit.storage.local_folder import LocalFolder

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from vhdkit.merging.plan.plan import MergePlan
    from vhdkit.merging.run.engine import MergeResult
    from vhdkit.progress import Cancel, Progress
    from vhdkit.storage.protocols import Folder
    from vhdkit.units import StrPath


# As soon as a plan is made another call may outdate it. How often that happens is bounded by the number of calls.
_MOST_PLANS = 4


class _OutdatedError(Exception):
    """A plan that had no obstacles does not fit the files: they are to be looked at again."""

    def __init__(self, error: MergeError) -> None:
        super().__init__(str(error))
        self.error = error


class Ensured(StrEnum):
    """How a merge came to be complete: by this call alone, by this call after an earlier run, or before it."""

    BEGUN = "begun"
    RESUMED = "resumed"
    WAS_DONE = "was-done"


@dataclass(frozen=True, slots=True, kw_only=True)
class EnsuredMerge:
    """What `ensure_merged` found or did; `merge` is None if nothing was left to be done. Paths are absolute."""

    outcome: Ensured
    destination: str
    merge: MergeResult | None


class CarryOut(Protocol):
    """What carries out a plan with its completion record, None for a plan with obstacles, as `vhdkit.merge` does."""

    def __call__(self, plan: MergePlan, completion: Completion | None) -> MergeResult:
        """Carry out the plan."""
        ...


@checked
def ensure_merged(
    leaf: StrPath,
    *,
    into: StrPath,
    leaf_id: str,
    verify: bool = False,
    search: Sequence[StrPath] = (),
    parent_map: Mapping[str, StrPath] | None = None,
    rate: int | None = None,
    progress: Callable[[Progress], None] | None = None,
    cancel: Cancel | None = None,
    folder: Folder | None = None,
) -> EnsuredMerge:
    """Merge an image into an ancestor unless that is done: a call that may be repeated, after any end, on any host.

    `leaf_id` is the leaf's unique id as vhdkit prints it, a GUID in Windows' form; an image of another id that has the
    leaf's name is never merged. `into` is the ancestor, which every image between is merged into as well. The other
    arguments are those of `plan_merge` and `merge`.

    A completion record beside the ancestor, NAME.vhdkit-merged, says which leaves were merged by this function. Without
    it a leaf that is gone is an error, since it may be lost; so it is with one that the ancestor does not bear out.

    **Order**: that of `merge`; between its steps 8 and 9 the completion record is written, synced, with its folder.

    Raises:
        ValueError: `leaf_id` is no GUID.
        MergeError: the leaf is gone, or another image has its name, and nothing shows that it was merged.
        JournalError: the completion record cannot be read.
        ImageInUseError: another process holds one of the files, such as another call of this.
        VhdError, OSError: what `plan_merge` and `merge` raise.

    """
    request = EnsureRequest(
        merge=MergeRequest.of(leaf, into=into, verify=verify, search=search, parent_map=parent_map, rate=rate),
        leaf_id=leaf_id,
    )

    def carry_out(plan: MergePlan, completion: Completion | None) -> MergeResult:
        return merge(plan, progress=progress, cancel=cancel, rate=rate, folder=folder, completion=completion)

    return ensure(request, carry_out, folder or LocalFolder())


def ensure(request: EnsureRequest, carry_out: CarryOut, folder: Folder) -> EnsuredMerge:
    """Do what `ensure_merged` does, the merge itself being carried out by `carry_out`."""
    asked = request.merge
    leaf, into = folder.real(asked.child), folder.real(asked.into or "")
    asked = msgspec.structs.replace(asked, child=leaf, into=into)
    return _Ensuring(asked, leaf, into, _hexadecimal(request.leaf_id), folder).ensure(carry_out)


@dataclass(frozen=True, slots=True)
class _Ensuring:
    """A merge of a leaf into an ancestor, both by absolute paths; the leaf's id in hexadecimal."""

    request: MergeRequest
    leaf: str
    into: str
    leaf_id: str
    folder: Folder

    def ensure(self, carry_out: CarryOut) -> EnsuredMerge:
        for _ in range(_MOST_PLANS - 1):
            try:
                return self._ensure(carry_out)
            except FileNotFoundError:
                # Another call has merged and removed it since this one looked.
                if self.folder.exists(self.leaf):
                    raise
            except _OutdatedError:
                pass
        try:
            return self._ensure(carry_out)
        except _OutdatedError as outdated:
            raise outdated.error from None

    def _ensure(self, carry_out: CarryOut) -> EnsuredMerge:
        known = read_completions(self.folder, self.into)
        if self._has_leaf():
            return self._merge(carry_out, known)
        entry = next((each for each in reversed(known) if each.leaf_id == self.leaf_id), None)
        if entry is None:
            raise MergeError(f"{self._gone()}, and {self._no_record()}", path=self.leaf)
        if self._is_being_finished():
            return self._merge(carry_out, known)
        with open_chain_with(self.into, self.request.parents, self.folder) as destination:
            if not is_shown(entry, destination.layers):
                message = (
                    f"{self._gone()}. It was merged into {self.into}, which does not show that: it was put back from an"
                    " earlier version, or written over since; look for a copy of the leaf before that is used"
                )
                raise MergeError(message, path=self.leaf)
        return EnsuredMerge(outcome=Ensured.WAS_DONE, destination=self.into, merge=None)

    def _has_leaf(self) -> bool:
        if not self.folder.exists(self.leaf):
            return False
        with open_image(self.leaf, folder=self.folder) as image:
            return image.unique_id.hex() == self.leaf_id

    def _gone(self) -> str:
        return "another image has its name now" if self.folder.exists(self.leaf) else "the leaf is gone"

    def _no_record(self) -> str:
        path = completion_path(self.into)
        return f"{path} does not say that {unique_id.guid(bytes.fromhex(self.leaf_id))} was merged: it may be lost"

    def _is_being_finished(self) -> bool:
        """Whether a merge of the leaf is complete but for removing what is left of its sources."""
        journal = read_journal(self.folder, self.into)
        if journal is None or not journal.merged or journal.begin.undo:
            return False
        top = journal.begin.sources[0]
        return top.unique_id == self.leaf_id and not self.folder.exists(self.leaf)

    def _merge(self, carry_out: CarryOut, known: Sequence[MergedLeaf]) -> EnsuredMerge:
        plan = plan_request(self.request, self.folder)
        wanted = None
        try:
            if not plan.obstacles:
                wanted = completion_of(plan, self.leaf_id, known, self.request.parents, self.folder)
            done = carry_out(plan, wanted)
        except MergeError as error:
            # Errors of other types say more than that another call was faster.
            if plan.obstacles or type(error) not in {MergeError, JournalError}:
                raise
            raise _OutdatedError(error) from error
        outcome = Ensured.BEGUN if plan.resume is None else Ensured.RESUMED
        return EnsuredMerge(outcome=outcome, destination=plan.destination, merge=done)


def _hexadecimal(leaf_id: str) -> str:
    """Return a GUID in Windows' form as the bytes that images hold, in hexadecimal."""
    try:
        return uuid.UUID(leaf_id).bytes_le.hex()
    except (ValueError, AttributeError, TypeError) as error:
        raise ValueError(f"leaf_id: expected a GUID, as unique ids are shown, got {leaf_id!r}") from error
