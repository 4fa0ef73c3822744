"""The filter of `job list --where`: what the WHERE of a WQL query says, over the properties of `cim`.

    expression   one OR two, one AND two, NOT one, ( expression ), or a comparison
    comparison   Name OPERATOR value, Name IS [NOT] NULL, Name [NOT] LIKE 'pattern'
    OPERATOR     = <> != < <= > >=
    value        'text', "text", a whole number, TRUE, FALSE, NULL

Words, names and texts are compared without regard to case, as WQL does; `%` in a pattern stands for any text, `_` for
one character. Of an array it is enough that one element fits. What has no value fits nothing but `IS NULL`. An
expression is read in one pass, and nothing in it is ever run.
"""

from __future__ import annotations

import operator
import re
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from vhdkit.findings import Advice, with_hint
from vhdkit.job.cim import UNKNOWN, Unknown

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from vhdkit.job.cim import CimValue


_MOST_CHARACTERS = 4096
_DEEPEST = 32
_TOKEN = re.compile(
    r"""\s*(?:(?P<text>'(?:[^']|'')*'|"(?:[^"]|"")*")|(?P<number>-?\d+)|(?P<word>\w+)|(?P<sign><=|>=|<>|!=|=|<|>|\(|\)))"""
)
_OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    "=": operator.eq,
    "<>": operator.ne,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_WORDS = {"and", "or", "not", "is", "like", "null", "true", "false"}


# A test of an object: whether it fits, None if that hangs on what is unknown.
_Test: TypeAlias = "Callable[[Mapping[str, CimValue | Unknown]], bool | None]"


class FilterError(ValueError):
    """An expression that cannot be read, or that compares what cannot be compared."""


class _Token(NamedTuple):
    kind: str
    text: str
    at: int


class Where:
    """A filter that was read.

    >>> where = Where("ElementName = 'merge in progress' and PercentComplete < 50")
    >>> where.matches({"ElementName": "Merge in Progress", "PercentComplete": 12})
    True
    """

    def __init__(self, expression: str) -> None:
        """Read an expression.

        Raises:
            FilterError: it is none.

        """
        self.expression = expression
        if len(expression) > _MOST_CHARACTERS:
            raise FilterError(f"the filter has {len(expression)} characters; at most {_MOST_CHARACTERS} are read")
        self._tokens = _tokens(expression)
        self._next = 0
        self._names: list[str] = []
        self._test = self._any(0)
        if self._peek().kind != "end":
            raise self._wrong("AND, OR or the end")

    def matches(self, properties: Mapping[str, CimValue | Unknown]) -> bool:
        """Whether an object is among those asked for; one with properties that are UNKNOWN, whether it may be.

        >>> Where("JobState = 4 and PercentComplete < 50").matches({"JobState": 4, "PercentComplete": UNKNOWN})
        True

        Raises:
            FilterError: it has no property of a name, or a value of another type than the filter has.

        """
        values = {name.lower(): value for name, value in properties.items()}
        for name in self._names:
            # One that AND or OR would not come to is a mistake all the same.
            _value(values, name)
        return self._test(values) is not False

    # What the expression says, from the loosest to the tightest

    def _any(self, depth: int) -> _Test:
        if depth > _DEEPEST:
            raise FilterError(f"the filter has more than {_DEEPEST} parentheses and NOTs within each other")
        tests = [self._all(depth)]
        while self._takes("or"):
            tests.append(self._all(depth))
        return tests[0] if len(tests) == 1 else lambda values: _decided(tests, values, by=True)

    def _all(self, depth: int) -> _Test:
        tests = [self._one(depth)]
        while self._takes("and"):
            tests.append(self._one(depth))
        return tests[0] if len(tests) == 1 else lambda values: _decided(tests, values, by=False)

    def _one(self, depth: int) -> _Test:
        if depth > _DEEPEST:
            raise FilterError(f"the filter has more than {_DEEPEST} parentheses and NOTs within each other")
        if self._takes("not"):
            denied = self._one(depth + 1)
            return lambda values: None if (fits := denied(values)) is None else not fits
        if self._takes("("):
            test = self._any(depth + 1)
            if not self._takes(")"):
                raise self._wrong("AND, OR or )")
            return test
        name = self._peek().text
        compares = self._comparison()
        return lambda values: None if _value(values, name) is UNKNOWN else compares(values)

    def _comparison(self) -> _Test:
        name = self._peek()
        if name.kind != "word" or name.text.lower() in _WORDS:
            raise self._wrong("the name of a property")
        self._next += 1
        self._names.append(name.text)
        if self._takes("is"):
            is_set = self._takes("not")
            if not self._takes("null"):
                raise self._wrong("NULL")
            return lambda values: (_value(values, name.text) is None) != is_set
        is_unlike = self._takes("not")
        if self._takes("like"):
            pattern = self._literal()
            if not isinstance(pattern, str):
                raise FilterError(f"LIKE takes a text, not {pattern!r}")
            parts = _pattern(pattern.lower())
            return lambda values: (
                _fits(values, name.text, "", lambda value, _: _is_like(value, parts)) != is_unlike
                and _value(values, name.text) is not None
            )
        return self._sign_and_literal(name.text, is_unlike=is_unlike)

    def _sign_and_literal(self, name: str, *, is_unlike: bool) -> _Test:
        sign = self._peek()
        if is_unlike or sign.text not in _OPERATORS:
            raise self._wrong("LIKE" if is_unlike else "one of = <> < <= > >=, LIKE or IS")
        self._next += 1
        wanted = self._literal()
        if wanted is None:
            if sign.text not in {"=", "<>", "!="}:
                raise FilterError("NULL is neither less nor greater than anything; write IS NULL")
            is_equal = sign.text == "="
            return lambda values: (_value(values, name) is None) == is_equal
        return lambda values: _fits(values, name, wanted, _OPERATORS[sign.text])

    def _literal(self) -> str | int | bool | None:
        token = self._peek()
        self._next += 1
        if token.kind == "text":
            quote = token.text[0]
            return token.text[1:-1].replace(quote * 2, quote)
        if token.kind == "number":
            return int(token.text[:20])
        words: dict[str, bool | None] = {"true": True, "false": False, "null": None}
        if token.kind == "word" and token.text.lower() in words:
            return words[token.text.lower()]
        self._next -= 1
        raise self._wrong("a value: 'text', a whole number, TRUE, FALSE or NULL")

    # The tokens

    def _peek(self) -> _Token:
        return self._tokens[self._next]

    def _takes(self, word: str) -> bool:
        token = self._peek()
        if token.kind in {"word", "sign"} and token.text.lower() == word:
            self._next += 1
            return True
        return False

    def _wrong(self, expected: str) -> FilterError:
        token = self._peek()
        found = repr(token.text) if token.text else "the end"
        return FilterError(f"the filter cannot be read at character {token.at + 1}: expected {expected}, found {found}")


def _tokens(expression: str) -> list[_Token]:
    tokens, at = [], 0
    text = expression.rstrip()
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None:
            rest = text[at:].lstrip()
            where = len(text) - len(rest)
            raise FilterError(f"the filter cannot be read at character {where + 1}: {rest[:20]!r}")
        kind = match.lastgroup or ""
        tokens.append(_Token(kind, match[kind], match.start(kind)))
        at = match.end()
    return [*tokens, _Token("end", "", len(text))]


def _decided(tests: Sequence[_Test], values: Mapping[str, CimValue | Unknown], *, by: bool) -> bool | None:
    """Return the answer that decides, True of OR and False of AND, if a test gives it; else the other, None if open."""
    is_open = False
    for test in tests:
        fits = test(values)
        if fits is by:
            return by
        is_open = is_open or fits is None
    return None if is_open else not by


def _value(values: Mapping[str, CimValue | Unknown], name: str) -> CimValue | Unknown:
    try:
        return values[name.lower()]
    except KeyError:
        raise FilterError(
            with_hint(f"there is no property {name}", Advice.CIM_JOBS.hint("{} shows those there are"))
        ) from None


def _fits(
    values: Mapping[str, CimValue | Unknown], name: str, wanted: str | int, compare: Callable[[Any, Any], bool]
) -> bool:
    value = _value(values, name)
    if value is None or isinstance(value, Unknown):
        return False
    return any(_compares(each, name, wanted, compare) for each in (value if isinstance(value, tuple) else (value,)))


def _compares(value: str | int, name: str, wanted: str | int, compare: Callable[[Any, Any], bool]) -> bool:
    if _kind(value) != _kind(wanted):
        raise FilterError(f"{name} is {_kind(value)}, and is compared with {_kind(wanted)} {wanted!r}")
    if isinstance(value, str) and isinstance(wanted, str):
        return compare(value.lower(), wanted.lower())
    return compare(value, wanted)


def _kind(value: str | int) -> str:
    return "a truth value" if isinstance(value, bool) else "a number" if isinstance(value, int) else "a text"


def _pattern(pattern: str) -> list[str]:
    """Return the parts between the `%` of a pattern."""
    return pattern.split("%")


def _is_like(value: object, parts: list[str]) -> bool:
    """Whether a text has the parts in their order, the first at its begin and the last at its end.

    Each is taken where it first fits, which leaves the most for the others: nothing is tried twice.
    """
    text = str(value).lower()
    first, *rest = parts
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


def _is_at(text: str, start: int, part: str) -> bool:
    return all(wanted in {"_", found} for wanted, found in zip(part, text[start : start + len(part)], strict=True))
