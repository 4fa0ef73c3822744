"""What forbids a child to read through another parent."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vhdkit.chain.children import children_of, ended_advice
from vhdkit.disk import unique_id
from vhdkit.disk.image import DiskKind
from vhdkit.errors import (
    ChainError,
    JournalError,
    MergeError,
    ParentMismatchError,
    ReadOnlyImageError,
    SiblingsError,
    SnapshotError,
    WindowsCode,
)
from vhdkit.findings import Advice
from vhdkit.journal.claims import Claim, claims_on
from vhdkit.journal.ended_view import ended_view
from vhdkit.journal.merge_journal import read_journal

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vhdkit.chain.parent_search import ParentSearch
    from vhdkit.disk.image import Image
    from vhdkit.formats import RelinkableImage
    from vhdkit.storage.protocols import Folder


def check_claims(child: RelinkableImage, found: bytes, parents: ParentSearch) -> tuple[Claim, ...]:
    """Refuse to let a machine's layer read through another image than its snapshots say; return what claims it.

    A parent of the same id that shows the same, as far as both can be read, was only moved or renamed.

    Raises:
        SnapshotError: it is another.

    """
    claims = claims_on(parents.scope, [child.path])
    for claim in claims:
        if claim.parent_id != found.hex():
            raise _not_its_parent(child, claim)
    return claims


def _not_its_parent(child: RelinkableImage, claim: Claim) -> SnapshotError:
    message = f"it is {claim.text()}, which would show something else through another parent"
    return SnapshotError(message, path=child.path)


def check_not_ended(child: RelinkableImage, parent: Image, folder: Folder, *, is_accepted: bool) -> None:
    """Refuse a parent that a merge went past, unless the child is what was merged, which hides the rest.

    Raises:
        JournalError: its view has ended.

    """
    if is_accepted or parent.kind is DiskKind.RAW:
        return
    view = ended_view(folder, parent.storage, parent)
    if view is not None and view.leaf_id != child.unique_id:
        what = f"it cannot become the parent of {child.path} unless that is accepted"
        raise view.refusal(what, Advice.ACCEPT_ENDED.hint("{} accepts it"))


def check_difference(
    child: RelinkableImage, parent: Image, before: str, at: int | None, claims: Sequence[Claim], *, is_ignored: bool
) -> str:
    """Return what is to be said of a parent that shows other data.

    Raises:
        SnapshotError: snapshots of a machine need the child as it is.
        ChainError: that is not to be ignored.

    """
    for claim in claims:
        raise _not_its_parent(child, claim)
    message = f"{before}, through which it reads, and {parent.path} show other data, first at byte {at}"
    if not is_ignored:
        text = "{} takes the other all the same, and the child shows other data then"
        raise ChainError(message, path=child.path, hint=Advice.IGNORE_OTHER_ID.hint(text))
    return message


def check_children(child: RelinkableImage, parents: ParentSearch) -> None:
    """Refuse while images read through the child that would show other data, as far as is known.

    Raises:
        SiblingsError: there are some.

    """
    children = children_of(child, parents.scope)
    if children:
        message = (
            f"{len(children)} image(s) read through it, and nothing proves that they would still show what they do:"
            f" {', '.join(children)}{ended_advice(children, parents.folder)}"
        )
        hint = Advice.CONVERT_EACH.hint("turn each into one of its own ({}), and move it elsewhere")
        raise SiblingsError(message, path=child.path, siblings=children, hint=hint)


def check_free(child: RelinkableImage, parent: Image, folder: Folder) -> None:
    """Refuse images of a saved machine state, and those that a merge is not finished with.

    Raises:
        ReadOnlyImageError, JournalError: one is.

    """
    for image in (child, parent):
        if image.is_saved_state:
            raise ReadOnlyImageError("it belongs to a saved machine state, which would no longer fit", path=image.path)
        check_merged(child, image.path, folder)


def check_merged(child: RelinkableImage, path: str, folder: Folder) -> None:
    """Refuse while a merge is not finished: it counts on the child's header, and ends the views of what lies between.

    Raises:
        JournalError: one into the file at that path is not.

    """
    journal = read_journal(folder, path)
    if journal is not None:
        message = f"its parent cannot change now: {journal.status}"
        raise JournalError(message, path=child.path, hint=journal.hint)


def check_size(child: RelinkableImage, parent: Image) -> None:
    """Refuse a larger parent with another id; one with the right id was made larger since, and is read as before."""
    if child.size < parent.size:
        message = f"its disk has {child.size} bytes, and that of {parent.path} {parent.size}: data would be cut off"
        raise MergeError(message, path=child.path, windows_code=WindowsCode.VHD_CHILD_PARENT_SIZE_MISMATCH)


def mismatch_error(child: RelinkableImage, parent: Image, found: bytes, old_path: str) -> ParentMismatchError:
    """Return the error that the new parent has another id."""
    expected = child.parent.unique_id if child.parent is not None else unique_id.NULL
    message = f"{parent.path} has the id {unique_id.guid(found)}, and the child looks for {unique_id.guid(expected)}"
    message += f", which {old_path} has" if old_path else ""
    text = (
        "only if it is known to show what the parent showed when the child was made, {} takes it all the same;"
        " otherwise what the child shows is lost"
    )
    hint = Advice.IGNORE_OTHER_ID.hint(text)
    return ParentMismatchError(message, path=child.path, expected=expected, found=found, hint=hint)
