"""Create a file that gets its name only when it is whole and durable.

Until then it has a temporary name beside that: `NAME.01234567.partial`. A run that is killed leaves such a file.
"""

from __future__ import annotations

import errno
import re
import uuid
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from vhdkit.errors import ImageInUseError
from vhdkit.storage import paths
from vhdkit.storage.remote_paths import is_remote, refusal_to_write, remote_place

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vhdkit.storage.protocols import Folder, Storage

_PARTIAL = re.compile(r"\.[0-9a-f]{8}\.partial$")


def partial_name(path: str, token: str) -> str:
    """Return the temporary name of a file that will be named `path`; `token` is hexadecimal.

    >>> partial_name("x.vhd", "0123abcdef")
    'x.vhd.0123abcd.partial'
    """
    return f"{path}.{token[:8]}.partial"


def is_partial(path: str) -> bool:
    """Whether a name is that of a file that was left half made: nobody's image, whatever it looks like."""
    return _PARTIAL.search(path) is not None


@contextmanager
def new_file(folder: Folder, path: str) -> Iterator[Storage]:
    """Create a file to write into; name it, durably, if the block ends well, and remove it if not.

    **Order**: 1 content, sync · 2 name, folder sync. A cut before 2 leaves a file with a temporary name.

    Raises:
        FileExistsError: the name is taken.
        ReadOnlyImageError: it is one on another machine.

    """
    if is_remote(path):
        raise refusal_to_write(remote_place(path))
    real = folder.real(path)
    if folder.exists(path):
        raise FileExistsError(errno.EEXIST, "the file exists already", path)
    folder.check_directory(paths.dirname(real))
    temporary = partial_name(real, uuid.uuid4().hex)
    try:
        storage = folder.create(temporary)
        try:
            yield storage
            storage.sync()
            storage.close()
            folder.publish(temporary, real)
            folder.sync(paths.dirname(real))
        except BaseException:
            storage.close()
            # An error after the file has its name leaves it with two names, or with the new one.
            for name in (temporary, real):
                _remove_if(folder, name, storage.identity)
            raise
    except OSError as error:
        if error.filename == temporary:
            error.filename = path
        raise


def remove_partial_files(folder: Folder, path: str) -> None:
    """Remove the files that killed runs have left half made for a name; those that another run has locked stay.

    An empty one may be about to be locked by the run that has just made it, and stays as well.
    """
    real = folder.real(path)
    directory, name = paths.dirname(real), paths.basename(real)
    length = len(partial_name(name, "0" * 8))
    for other in folder.names(directory):
        if other.startswith(f"{name}.") and is_partial(other) and len(other) == length:
            with (
                suppress(OSError, ImageInUseError),
                folder.open(paths.join(directory, other), writable=True) as storage,
            ):
                storage.lock(exclusive=True)
                if storage.size():
                    folder.remove(storage.path)
    folder.sync(directory)


def replace_file(folder: Folder, path: str, content: bytes, *, private: bool = False) -> None:
    """Write a file over an earlier one, so that a reader sees either whole; its folder is the caller's to sync.

    **Order**: 1 content under a temporary name, sync · 2 name. After a failure the temporary name is gone.

    Raises:
        OSError: it cannot be written; an earlier file is still there.

    """
    temporary = partial_name(path, uuid.uuid4().hex)
    try:
        with folder.create(temporary, private=private) as storage:
            storage.write_at(0, content)
            storage.sync()
        folder.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            folder.remove(temporary)
        raise


def make_missing(folder: Folder, path: str, *, private: bool = False) -> None:
    """Make an empty file if none has the name."""
    with suppress(FileExistsError):
        folder.create(path, private=private).close()


def _remove_if(folder: Folder, path: str, identity: tuple[int, int]) -> None:
    """Remove a name if it leads to the file of that identity; an error leaves the name."""
    with suppress(OSError):
        named = folder.open(path)
        named.close()
        if named.identity == identity:
            folder.remove(path)
