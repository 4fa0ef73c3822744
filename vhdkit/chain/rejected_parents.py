"""Files that were looked at and are not the parent, and the error that says so."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vhdkit.chain import parent_paths
from vhdkit.chain.parent_paths import Clue
from vhdkit.debug_log import debug
from vhdkit.disk import unique_id
from vhdkit.disk.parent_link import ParentLink
from vhdkit.errors import (
    ChainError,
    ParentMismatchError,
    ParentNotFoundError,
    ParentRefusedError,
    VhdError,
)
from vhdkit.findings import Advice, Candidate
from vhdkit.storage import paths

if TYPE_CHECKING:
    from vhdkit.chain.parent_search import Child, ParentSearch
    from vhdkit.findings import Hint
    from vhdkit.storage.protocols import Storage

EXPLICIT = "named by the caller"


class RejectedParents:
    """What a search for a parent has looked at and not taken.

    `refused` says that a name led outside of the folders allowed, `ambiguous` that several files fit; `mismatched` is
    the first that is named as the parent and has another id, `damaged` the first that could not be read.
    """

    def __init__(self, child: Child, parents: ParentSearch) -> None:
        self.child = child
        self.parents = parents
        self.link = child.parent or ParentLink()
        self.wanted = self.link.unique_id
        self.candidates: list[Candidate] = []
        self.refused = self.ambiguous = False
        self.mismatched: tuple[Clue, bytes] | None = None
        self.damaged: VhdError | None = None

    def reject(self, clue: Clue, reason: str, hint: Hint | None = None) -> None:
        """Note why a file was not taken."""
        debug("chain", "%s: %s (%s) is not its parent: %s", self.child.path, clue.path, clue.origin, reason)
        self.candidates.append(Candidate(path=paths.as_given(clue.path), origin=clue.origin, reason=reason, hint=hint))

    def reject_mismatch(self, clue: Clue, storage: Storage, found: bytes, *, is_above: bool) -> None:
        """Note that a file has another id than the parent; `is_above` says that it is part of the chain above."""
        if self.mismatched is None and not is_above:
            self.mismatched = Clue(storage.path, clue.origin), found
        self.reject(clue, f"its id is {unique_id.guid(found)}, expected {unique_id.guid(self.wanted)}")

    def failure(self) -> ChainError:
        """Return the error that says what was looked at, and what may help."""
        for clue in parent_paths.texts(self.link):
            if parent_paths.is_absolute(clue.path):
                self.reject(clue, "an absolute path is not followed", Advice.PARENT_MAP.hint("{} would allow it"))
        for clue in parent_paths.unnameable(self.link):
            self.reject(clue, "no file can have this name under the locale's encoding; a locale with UTF-8 has it")
        candidates = tuple(self.candidates)
        path = self.child.path
        if self.wanted == unique_id.NULL:
            hint = Advice.PARENT.hint("it is read only if {} names it")
            message = "its parent has no id: it is a raw file"
            return ParentRefusedError(message, path=path, candidates=candidates, hint=hint)
        looked_for = f"its parent, id {unique_id.guid(self.wanted)}"
        if self.ambiguous:
            message = f"{looked_for}, may be one of several files" + self._move_others
            return ParentNotFoundError(message, path=path, candidates=candidates, hint=self.choice)
        if self.mismatched is not None:
            return self._mismatch_error(*self.mismatched)
        if self.refused:
            message = f"{looked_for}, is named outside of the folders that may be looked into"
            return ParentRefusedError(message, path=path, candidates=candidates)
        error = ParentNotFoundError(
            f"{looked_for}, was not found", path=path, candidates=candidates, hint=self._more_places("add {}")
        )
        error.__cause__ = self.damaged
        return error

    def _more_places(self, text: str) -> Hint:
        return (Advice.SEARCH_OR_PARENT if self.parents.takes_parent else Advice.SEARCH).hint(text)

    @property
    def choice(self) -> Hint | None:
        """What chooses among several files that fit."""
        return Advice.PARENT.hint("choose with {}") if self.parents.takes_parent else None

    @property
    def _move_others(self) -> str:
        return "" if self.parents.takes_parent else "; move the others out of the folders looked into"

    def _mismatch_error(self, clue: Clue, found: bytes) -> ParentMismatchError:
        """Say first that the file is there: it is the commonest failure, where a parent was written to or replaced.

        Nothing shows which of the two it is, so no command is advised that would make the child read through the file.
        """
        named = "the parent given" if clue.origin == EXPLICIT else "where its parent should be"
        return ParentMismatchError(
            f"{paths.as_given(clue.path)} is there, {named}, and has another id: {unique_id.guid(found)}, and the"
            f" parent has {unique_id.guid(self.wanted)}. It is another file, or the parent was changed on purpose"
            " since: what the child showed is lost then, unless the parent is put back as it was",
            path=self.child.path,
            expected=self.wanted,
            found=found,
            candidates=tuple(self.candidates),
            hint=Advice.ACCEPT_OTHER_ID.hint("the verbs that only read have {} to show the child through it").then(
                self._more_places("if the parent lies elsewhere, add {}")
            ),
        )
