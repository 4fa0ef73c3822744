"""Opening an image to write to it: other images may read through it, and would read something else from then on.

They are looked for as a merge does, once the image is held, and named in the refusal. Where that is overridden the
image gets another unique id before the first write: each of them then says that its parent has another id than it
remembers, in every tool and for as long as it lives, also where all of it happened within a second.
"""

from __future__ import annotations

import uuid
from contextlib import suppress
from typing import TYPE_CHECKING, Literal, overload

from vhdkit import formats as images
from vhdkit.arguments import checked
from vhdkit.chain.children import ended_advice, find_children
from vhdkit.corruption import Corruption
from vhdkit.errors import JournalError, MergeError, ReadOnlyImageError, SiblingsError, VhdError
from vhdkit.findings import Advice, Finding
from vhdkit.journal.claims import begun_layers, claims_on
from vhdkit.journal.merge_journal import find_journal
from vhdkit.storage.handle import closing_on_error
from vhdkit.storage.local_folder import LocalFolder
from vhdkit.storage.search_scope import SearchScope
from vhdkit.units import as_texts
from vhdkit.vhd.unique_id_change import change_unique_id

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vhdkit.disk.image import Image
    from vhdkit.storage.protocols import Folder
    from vhdkit.units import StrPath
    from vhdkit.vhd.open_image import Vhd


@overload
def open_image(
    path: StrPath,
    *,
    writable: Literal[True],
    verify: bool = ...,
    exclusive: bool | None = ...,
    search: Sequence[StrPath] = ...,
    break_children: bool = ...,
    folder: Folder | None = ...,
) -> Vhd: ...
@overload
def open_image(
    path: StrPath,
    *,
    writable: bool = ...,
    verify: bool = ...,
    exclusive: bool | None = ...,
    search: Sequence[StrPath] = ...,
    break_children: bool = ...,
    folder: Folder | None = ...,
) -> Image: ...
@checked
def open_image(
    path: StrPath,
    *,
    writable: bool = False,
    verify: bool = True,
    exclusive: bool | None = None,
    search: Sequence[StrPath] = (),
    break_children: bool = False,
    folder: Folder | None = None,
) -> Image:
    """Open one image of any format, without its parents; with `verify=False`, wrong checksums are tolerated.

    Unless `exclusive` is None it is locked before anything in it is believed: for nobody else to use, or to write. A
    change of its header that was cut off is finished if it is opened to be written.

    One to be written must not be read through by others, which are looked for in its folder, below it and just above,
    and in `search`. With `break_children` it may be: it is held exclusively, and gets another unique id before this
    returns, so that all of them say ever after that their parent is another.

    Raises:
        CorruptImageError, UnsupportedImageError: the file is no image that can be read safely.
        ReadOnlyImageError: it should be written and is marked read-only, or its format is only read.
        SiblingsError: it should be written, and other images read through it. Nothing was changed.
        MergeError: it should be written, and it is unknown whether a file near it reads through it.
        ImageInUseError: somebody else holds it.
        OSError: the file cannot be opened.

    """
    place, folders = folder or LocalFolder(), as_texts(search)
    image = images.open_image(
        path, writable=writable, verify=verify, exclusive=exclusive, finish_step=False, folder=place
    )
    with closing_on_error(image):
        if writable:
            written = images.as_writable(image)
            written.findings += claim_for_writing(written, SearchScope(place, folders), break_children=break_children)
            written.finish_step(place)
    return image


def claim_for_writing(image: Vhd, scope: SearchScope, *, break_children: bool) -> tuple[Finding, ...]:
    """Refuse an image that others read through; with `break_children` give it another id if there are such.

    Returns what could not be looked into, and which images were broken.

    Raises:
        SiblingsError: others read through it.
        MergeError: a file or a folder cannot be read, so that this is unknown.
        JournalError: they are to be broken, and a merge into it is not finished.
        ReadOnlyImageError: they are to be broken, and it is a layer of a machine, which knows it by its id.
        ImageInUseError: they are to be broken, and somebody else has it open.

    """
    folder = scope.folder
    if not break_children:
        children = find_children(image, scope)
        ruined = tuple(path for path in children.paths if path not in _begun(image, children.paths, folder))
        if ruined:
            raise _refusal(image, ruined, folder)
        return children.findings
    # From here on no child can be made of it.
    image.storage.lock(exclusive=True)
    try:
        children = find_children(image, scope)
        broken, findings = children.paths, children.findings
    except MergeError as error:
        broken, findings = (error.path,), ()
    if not broken:
        return findings
    _check_may_break(image, folder)
    image.finish_step(folder)
    change_unique_id(folder, image, uuid.uuid4().bytes_le)
    message = f"it has another id now, for what is written to it would ruin what reads through it: {', '.join(broken)}"
    return (*findings, Finding(corruption=Corruption.SIBLINGS, path=image.path, message=message))


def _begun(image: Vhd, children: Sequence[str], folder: Folder) -> set[str]:
    """Return the children that a machine's operation had begun to make when it was cut off, and that hold nothing.

    The machine goes on in the layer that it had, and its next operation removes them.
    """
    if not children:
        return set()
    found: set[str] = set()
    with suppress(VhdError, OSError):
        begun = begun_layers(folder, image.path)
        for path in filter(begun.__contains__, children):
            with images.open_image(path, follow_links=False, folder=folder) as child:
                if child.unique_id.hex() == begun[path] and child.is_empty():
                    found.add(path)
    return found


def _check_may_break(image: Vhd, folder: Folder) -> None:
    journal = find_journal(folder, image.path)
    if journal is not None:
        message = f"what reads through it cannot be broken now: {journal.status}"
        raise JournalError(message, path=image.path, hint=journal.hint)
    claims = claims_on(SearchScope(folder), [image.path])
    if claims:
        message = f"what reads through it cannot be broken, for it is known by its id: it is {claims[0].text()}"
        raise ReadOnlyImageError(message, path=image.path)


def _refusal(image: Vhd, children: tuple[str, ...], folder: Folder) -> SiblingsError:
    message = f"writing to it would ruin {len(children)} other image(s) that read through it: {', '.join(children)}"
    message += ended_advice(children, folder)
    new_child = Advice.CREATE_CHILD.hint("write to a new child of it instead ({})", path=image.path)
    convert = Advice.CONVERT_EACH.hint("or turn each of them into an image of its own first ({})")
    return SiblingsError(message, path=image.path, siblings=children, hint=new_child.then(convert))
