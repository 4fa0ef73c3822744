"""Patterns that name many images: shell wildcards, with `**` for any number of folders, and perhaps a host."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from vhdkit.storage import paths
from vhdkit.storage.remote_paths import is_remote

if TYPE_CHECKING:
    from collections.abc import Sequence

# A single letter before the colon is a drive of Windows.
_HOST = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]+):(/.*|[A-Za-z]:[\\/].*)", re.DOTALL)
_WILD = re.compile(r"[*?\[]")
# A set has at least one letter, which may be a closing bracket; any other bracket is a letter of the name.
_SET = re.compile(r"\[(!?+)(\][^\]]*+|[^\]]++)\]")
_RANGE_OR_LETTER = re.compile(r"(.)-(.)|(.)", re.DOTALL)


@dataclass(frozen=True)
class Pattern:
    """Which files are meant: `text` is a path with wildcards, on the machine `host`, or on any that sees it if "".

    `*` and `?` stand for letters of one name, `[abc]` for one of some letters, and `**` as a whole name for any number
    of folders. Names that begin with a dot are matched as all others.
    """

    text: str
    host: str = ""

    @classmethod
    def of(cls, given: str) -> Pattern:
        """Return the pattern that a caller wrote.

        >>> Pattern.of("hv07:/vms/**/*.avhd").host, Pattern.of("C:/vms/*.avhd").host
        ('hv07', '')

        Raises:
            ValueError: it names files of a web server, whose folders cannot be listed, or has a range that is none.

        """
        if is_remote(given):
            raise ValueError(f"{given}: a pattern names files in folders, and the folders of a server cannot be listed")
        found = _HOST.fullmatch(given)
        pattern = cls(text=given) if found is None else cls(text=found[2], host=found[1])
        pattern.matches("")
        return pattern

    def __str__(self) -> str:
        return f"{self.host}:{self.text}" if self.host else self.text

    @property
    def is_wild(self) -> bool:
        """Whether it has any wildcard; else it is the path of one file or folder."""
        return _WILD.search(self.text) is not None

    @property
    def root(self) -> str:
        """The folder below which all of its files lie.

        >>> Pattern.of("vms/web*/**/*.avhd").root, Pattern.of("*.avhd").root, Pattern.of("/*/a.vhd").root
        ('vms', '.', '/')
        """
        head = self.text[: len(self.text) - len(self._tail)]
        return head.rstrip("/") or ("/" if head else ".")

    @property
    def is_deep(self) -> bool:
        """Whether files below the root's own names are meant."""
        return "/" in self._tail or self._tail == "**"

    def matches(self, relative: str) -> bool:
        """Whether it means a file, which is given by its path from the root, with slashes.

        >>> [Pattern.of("vms/**/*.avhd").matches(path) for path in ("a.avhd", "x/y/a.avhd", "x/a.vhd")]
        [True, True, False]
        """
        return self._expression.fullmatch(relative) is not None

    @property
    def _tail(self) -> str:
        """The part from the first name on that has a wildcard."""
        names = self.text.replace(paths.sep, "/").split("/")
        first = next((at for at, name in enumerate(names) if _WILD.search(name)), len(names))
        return "/".join(names[first:])

    @cached_property
    def _expression(self) -> re.Pattern[str]:
        names = self._tail.split("/")
        *folders, last = names
        # Stretches of plain folders, between which any number of others may be.
        stretches = [""]
        for name in folders:
            if name == "**":
                stretches.append("")
            else:
                stretches[-1] += f"{_name_expression(name)}/"
        end = ".*" if last == "**" else _name_expression(last)
        return re.compile(_joined("(?:[^/]+/)*", stretches, end), re.DOTALL)


def _joined(anything: str, stretches: Sequence[str], end: str = "") -> str:
    """Join expressions so that `anything` may be between two of them, and `end` follows the last one.

    Where a stretch between two such places first fits is as good as any later place, so that it is never tried again:
    the time is that of the text's length times the pattern's, not exponential in the number of places.
    """
    first, *others = stretches
    if not others:
        return first + end
    *middle, last = others
    return "".join([first, *(f"(?>{anything}?{stretch})" for stretch in middle if stretch), anything, last, end])


def _name_expression(name: str) -> str:
    """Return the regular expression of one name of a pattern.

    >>> re.fullmatch(_name_expression("web[0-9]*.vh?"), "web07.vhd") is not None
    True
    """
    stretches, at = [""], 0
    while at < len(name):
        letters = _SET.match(name, at)
        if letters is not None:
            stretches[-1] += _set_expression(letters[2], is_negated=bool(letters[1]))
            at = letters.end()
            continue
        if name[at] == "*":
            stretches.append("")
        else:
            stretches[-1] += "[^/]" if name[at] == "?" else re.escape(name[at])
        at += 1
    return _joined("[^/]*", stretches)


def _set_expression(letters: str, *, is_negated: bool) -> str:
    """Return the regular expression of a set of letters and ranges, which never holds a slash.

    Raises:
        ValueError: a range ends before it begins.

    """
    parts = []
    for first, last, letter in _RANGE_OR_LETTER.findall(letters):
        if first > last:
            raise ValueError(f"[{letters}]: the range {first}-{last} ends before it begins")
        parts.append(re.escape(letter) or f"{re.escape(first)}-{re.escape(last)}")
    return f"(?!/)[{'^' if is_negated else ''}{''.join(parts)}]"
