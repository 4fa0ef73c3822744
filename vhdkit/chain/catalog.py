"""The images of some folders, and which of them is whose parent.

Read for the family trees of `scan`, for the siblings that a merge would harm, and to find a parent that was moved
or renamed by its id. One bad file never stops the rest.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from vhdkit.chain.parent_paths import named_paths
from vhdkit.corruption import Corruption
from vhdkit.disk import unique_id
from vhdkit.errors import CorruptImageError, UnsupportedImageError, VhdError
from vhdkit.formats import IMAGE_SUFFIXES, SMALLEST_FILE_BYTES, may_be_image, read_summary
from vhdkit.storage import paths

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from vhdkit.disk.image import ImageSummary
    from vhdkit.disk.parent_link import ParentLink
    from vhdkit.storage.protocols import Entry, Folder, Reach

_NO_IMAGE = frozenset({Corruption.NOT_A_VHD, Corruption.FILE_TOO_SHORT})


@dataclass(frozen=True, slots=True, kw_only=True)
class Cataloged:
    """One image of a catalog."""

    path: str
    identity: tuple[int, int]
    metadata: ImageSummary

    @property
    def unique_id(self) -> bytes:
        """Its own id."""
        return self.metadata.unique_id

    @property
    def parent_id(self) -> bytes | None:
        """The id that it looks for, None if it needs no parent."""
        link = self.metadata.parent
        return None if link is None else link.unique_id

    @property
    def parent(self) -> ParentLink | None:
        """What it says of its parent, None if it needs none."""
        return self.metadata.parent


class Unreadable(NamedTuple):
    """A file that should be an image, and why it cannot be read."""

    path: str
    error: VhdError | OSError


@dataclass(frozen=True, slots=True, kw_only=True)
class Catalog:
    """Images by path and by id, and the files that should be images but do not parse."""

    images: dict[str, Cataloged] = field(default_factory=dict)
    unreadable: dict[str, VhdError | OSError] = field(default_factory=dict)


def is_called_as_image(path: str) -> bool:
    """Whether a file has the name of an image, whatever it holds."""
    return paths.splitext(path)[1].lower() in IMAGE_SUFFIXES


class Parents:
    """Which images of a catalog may be whose parents: looked up, so that families cost no more than their files."""

    def __init__(self, catalog: Catalog) -> None:
        self._images = catalog.images
        self._by_id: dict[bytes, list[Cataloged]] = {}
        self._by_name: dict[str, list[Cataloged]] = {}
        for path, image in catalog.images.items():
            self._by_id.setdefault(image.unique_id, []).append(image)
            self._by_name.setdefault(path.lower(), []).append(image)

    def of(self, child: Cataloged) -> list[Cataloged]:
        """Return the images that may be the child's parent: one if it is clear, several if only the ids decide.

        The id must fit. Of several that fit, the one that the child names wins, in other case if need be; nothing is
        its own parent.
        """
        link = child.parent
        if link is None:
            return []
        with_id = [image for wanted in link.ids for image in self._by_id.get(wanted, ())]
        if not with_id:
            return []
        for image in self._named(link, paths.dirname(child.path)):
            if image.unique_id in link.ids and image.identity != child.identity:
                return [image]
        # A null id says nothing: then only a name decides.
        if link.unique_id == unique_id.NULL:
            return []
        fitting = [image for image in with_id if image.identity != child.identity]
        return list({image.identity: image for image in reversed(fitting)}.values())[::-1]

    def _named(self, link: ParentLink, directory: str) -> Iterator[Cataloged]:
        """Yield the images that a link names, then those whose names differ in case alone."""
        named = list(named_paths(link, directory))
        yield from (self._images[path] for path in named if path in self._images)
        yield from (image for path in named for image in reversed(self._by_name.get(path.lower(), ())))


def read_catalog(
    folder: Folder,
    directories: Iterable[str],
    *,
    deep: bool = True,
    one_device: bool = False,
    reach: Reach | None = None,
) -> Catalog:
    """Read every image in the directories and below them; links are followed only as far as a reach goes."""
    catalog = Catalog()
    for directory in dict.fromkeys(folder.real(directory) for directory in directories):
        walk = folder.walk(directory, deep=deep, one_device=one_device, reach=reach)
        new = (entry for entry in walk if entry.path not in catalog.images)
        for found in read_entries(folder, new):
            match found:
                case Cataloged():
                    catalog.images[found.path] = found
                case Unreadable(path, error):
                    catalog.unreadable[path] = error
        catalog.unreadable.update(walk.unlisted)
    return catalog


def read_entries(folder: Folder, entries: Iterable[Entry]) -> Iterator[Cataloged | Unreadable]:
    """Yield the files that are images, and those that should be and cannot be read."""
    for entry in entries:
        looks_like_one = is_called_as_image(entry.path)
        if entry.size < SMALLEST_FILE_BYTES and not looks_like_one:
            continue
        try:
            with folder.open(entry.path) as storage:
                if not looks_like_one and not may_be_image(storage):
                    continue
                metadata = read_summary(folder, storage)
        except FileNotFoundError:
            # It went since the folder was listed, as the sources of another merge do: it is no image that could be
            # harmed, or harm.
            continue
        except (VhdError, OSError) as error:
            if looks_like_one or _is_damaged_image(error):
                yield Unreadable(entry.path, error)
            continue
        yield Cataloged(path=entry.path, identity=entry.identity, metadata=metadata)


def _is_damaged_image(error: VhdError | OSError) -> bool:
    if isinstance(error, CorruptImageError):
        return error.corruption not in _NO_IMAGE
    return not isinstance(error, (UnsupportedImageError, OSError))
