"""The patterns of a filter: WQL's LIKE, and PowerShell's -like, matched without going back."""

from __future__ import annotations

from dataclasses import dataclass


class PatternError(ValueError):
    """A pattern that cannot be read."""


@dataclass(frozen=True, slots=True)
class _Any:
    """One character, whichever."""

    def fits(self, _letter: str) -> bool:
        return True


@dataclass(frozen=True, slots=True)
class _Letter:
    letter: str

    def fits(self, letter: str) -> bool:
        return letter == self.letter


@dataclass(frozen=True, slots=True)
class _Set:
    """One character of some ranges, or with `is_denied` one that is in none."""

    ranges: tuple[tuple[str, str], ...]
    is_denied: bool

    def fits(self, letter: str) -> bool:
        return any(first <= letter <= last for first, last in self.ranges) != self.is_denied


_Part = list[_Any | _Letter | _Set]


class LikePattern:
    """A pattern, compared without regard to case.

    `many` stands for any text, `one` for one character; `[a-f]` for one of a range, `[^a-f]` for one that is not.

    >>> LikePattern("merge%[a-c]_", many="%", one="_").fits("Merge: by")
    True
    """

    def __init__(self, pattern: str, *, many: str, one: str) -> None:
        """Read a pattern.

        Raises:
            PatternError: a `[` has no `]`.

        """
        self._parts: list[_Part] = [[]]
        text, at = pattern.lower(), 0
        while at < len(text):
            letter = text[at]
            if letter == many:
                self._parts.append([])
            elif letter == one:
                self._parts[-1].append(_Any())
            elif letter == "[":
                end = text.find("]", at + 2)
                if end < 0:
                    raise PatternError(f"the pattern {pattern!r} has a [ without ]")
                self._parts[-1].append(_set_of(text[at + 1 : end]))
                at = end
            else:
                self._parts[-1].append(_Letter(letter))
            at += 1

    def fits(self, value: object) -> bool:
        """Whether a text has the parts in their order, the first at its begin and the last at its end.

        Each is taken where it first fits, which leaves the most for the others: nothing is tried twice.
        """
        text = str(value).lower()
        first, *rest = self._parts
        if not rest:
            return len(text) == len(first) and _is_at(text, 0, first)
        *middle, last = rest
        end = len(text) - len(last)
        if end < len(first) or not _is_at(text, 0, first) or not _is_at(text, end, last):
            return False
        at = len(first)
        for part in middle:
            at = next((start for start in range(at, end - len(part) + 1) if _is_at(text, start, part)), -1)
            if at < 0:
                return False
            at += len(part)
        return True


def _set_of(inside: str) -> _Set:
    """Return what stands between brackets: `^` denies, `a-c` and WQL's `a=c` are ranges."""
    is_denied = inside.startswith("^")
    letters = inside[is_denied:]
    ranges, at = [], 0
    while at < len(letters):
        is_range = letters[at + 1 : at + 2] in {"-", "="} and at + 2 < len(letters)
        last = letters[at + 2] if is_range else letters[at]
        ranges.append((letters[at], last))
        at += 3 if is_range else 1
    return _Set(tuple(ranges), is_denied)


def _is_at(text: str, start: int, part: _Part) -> bool:
    return all(each.fits(letter) for each, letter in zip(part, text[start : start + len(part)], strict=True))
