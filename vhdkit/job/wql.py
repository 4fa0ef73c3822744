"""The filter of `job list`: what the WHERE of a WQL query says, or PowerShell's, over the properties of `cim`.

    expression   one OR two, one AND two, NOT one, ( expression ), or a comparison
    comparison   Name OPERATOR value, Name IS [NOT] NULL, Name [NOT] LIKE 'pattern'
    OPERATOR     = <> != < <= > >=
    value        'text', "text", a whole number, TRUE, FALSE, NULL

PowerShell writes `$_.Name` for Name, `-eq -ne -lt -le -gt -ge -like -notlike -and -or -not` for the operators, and
`$true`, `$false`, `$null`; a property that is a truth value is a condition by itself. There AND and OR bind alike, from
left to right, and -not binds closer than a comparison, so that only a condition in parentheses can be denied.

Words, names and texts are compared without regard to case, as WQL does; `%` in a pattern stands for any text, `_` for
one character, `[a-f]` for one of these; PowerShell has `*` and `?`. Of an array it is enough that one element fits.
What has no value fits nothing but `IS NULL`. An expression is read in one pass, and nothing in it is ever run.
"""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Any, TypeAlias

from vhdkit.findings import Advice, with_hint
from vhdkit.job.cim import UNKNOWN, Unknown
from vhdkit.job.like_pattern import LikePattern, PatternError
from vhdkit.job.pasted_query import conditions_of
from vhdkit.job.wql_tokens import FOREIGN, FilterError, Token, read_tokens

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from vhdkit.job.cim import CimValue


_MOST_CHARACTERS = 4096
_DEEPEST = 32
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


class Where:
    """A filter that was read: an expression, or a query that is pasted whole; see `pasted_query`.

    >>> where = Where("select * from Msvm_ConcreteJob where ElementName = 'merge in progress' and PercentComplete < 50")
    >>> where.matches({"ElementName": "Merge in Progress", "PercentComplete": 12})
    True
    >>> Where("$_.PercentComplete -lt 50 -and $_.JobState -eq 4").matches({"PercentComplete": 50, "JobState": 4})
    False
    """

    def __init__(self, expression: str) -> None:
        """Read an expression.

        Raises:
            FilterError: it is none.

        """
        self.expression = expression
        if len(expression) > _MOST_CHARACTERS:
            raise FilterError(f"the filter has {len(expression)} characters; at most {_MOST_CHARACTERS} are read")
        readers = [_Reader(condition) for condition in conditions_of(expression)]
        self._tests = [reader.read() for reader in readers]
        self._names = [name for reader in readers for name in reader.names]

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
        return _decided(self._tests, values, by=False) is not False


class _Reader:
    """Reads one expression; `names` are those of the properties in it."""

    def __init__(self, expression: str) -> None:
        self._tokens = read_tokens(expression)
        self._is_powershell = any(token.is_powershell for token in self._tokens)
        self._next = 0
        self.names: list[str] = []

    def read(self) -> _Test:
        """Return the test that the expression says."""
        test = self._any(0)
        if self._peek().kind != "end":
            raise self._wrong("AND, OR or the end")
        return test

    # What the expression says, from the loosest to the tightest

    def _any(self, depth: int) -> _Test:
        if depth > _DEEPEST:
            raise _too_deep()
        if self._is_powershell:
            return self._from_left_to_right(depth)
        tests = [self._all(depth)]
        while self._takes("or"):
            tests.append(self._all(depth))
        return tests[0] if len(tests) == 1 else lambda values: _decided(tests, values, by=True)

    def _all(self, depth: int) -> _Test:
        tests = [self._one(depth)]
        while self._takes("and"):
            tests.append(self._one(depth))
        return tests[0] if len(tests) == 1 else lambda values: _decided(tests, values, by=False)

    def _from_left_to_right(self, depth: int) -> _Test:
        """Read AND and OR as PowerShell does, where neither binds closer."""
        steps = [(True, self._one(depth))]
        while (is_or := self._takes("or")) or self._takes("and"):
            steps.append((is_or, self._one(depth)))

        def test(values: Mapping[str, CimValue | Unknown]) -> bool | None:
            fits: bool | None = False
            for is_or, step in steps:
                fits = _combined(fits, step(values), by=is_or)
            return fits

        return test

    def _one(self, depth: int) -> _Test:
        if depth > _DEEPEST:
            raise _too_deep()
        if self._takes("not"):
            return self._denied(depth + 1)
        if self._takes("("):
            test = self._any(depth + 1)
            if not self._takes(")"):
                raise self._wrong("AND, OR or )")
            return test
        name = self._peek().text
        compares = self._comparison()
        return lambda values: None if _value(values, name) is UNKNOWN else compares(values)

    def _denied(self, depth: int) -> _Test:
        begin = self._peek()
        test = self._one(depth)
        # PowerShell would deny the property alone, and compare what comes of that.
        is_bare = begin.kind == "word" and begin.text.lower() != "not"
        if self._is_powershell and is_bare and not self._is_condition(self._tokens[self._next - 1]):
            raise FilterError(f"PowerShell's -not, before character {begin.at + 1}, needs parentheses: -not (...)")
        return lambda values: None if (fits := test(values)) is None else not fits

    @staticmethod
    def _is_condition(last: Token) -> bool:
        """Whether what ends with a word is a property that stands alone."""
        return last.kind == "word" and last.text.lower() not in _WORDS

    def _comparison(self) -> _Test:
        name = self._peek()
        if name.kind != "word" or name.text.lower() in _WORDS | FOREIGN:
            raise self._wrong("the name of a property")
        self._next += 1
        self.names.append(name.text)
        if name.is_powershell and self._ends_a_condition():
            return lambda values: _is_true(values, name.text)
        if self._takes("is"):
            is_set = self._takes("not")
            if not self._takes("null"):
                raise self._wrong("NULL")
            return lambda values: (_value(values, name.text) is None) != is_set
        is_unlike = self._takes("not")
        is_dashed = self._peek().is_powershell
        if self._takes("like"):
            pattern = self._pattern(is_dashed=is_dashed)
            return lambda values: (
                _fits(values, name.text, "", lambda value, _: pattern.fits(value)) != is_unlike
                and _value(values, name.text) is not None
            )
        return self._sign_and_literal(name.text, is_unlike=is_unlike)

    def _ends_a_condition(self) -> bool:
        token = self._peek()
        return token.kind == "end" or token.text.lower() in {")", "and", "or"}

    def _pattern(self, *, is_dashed: bool) -> LikePattern:
        pattern = self._literal()
        if not isinstance(pattern, str):
            raise FilterError(f"LIKE takes a text, not {pattern!r}")
        try:
            return LikePattern(pattern, many="*", one="?") if is_dashed else LikePattern(pattern, many="%", one="_")
        except PatternError as error:
            raise FilterError(str(error)) from error

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

    def _peek(self) -> Token:
        return self._tokens[self._next]

    def _takes(self, word: str) -> bool:
        token = self._peek()
        if token.kind in {"word", "sign"} and token.text.lower() == word:
            self._next += 1
            return True
        return False

    def _wrong(self, expected: str) -> FilterError:
        token = self._peek()
        if token.kind == "word" and token.text.lower() in FOREIGN:
            return FilterError(f"{token.text.upper()}, at character {token.at + 1}, is not known here")
        found = repr(token.text) if token.text else "the end"
        return FilterError(f"the filter cannot be read at character {token.at + 1}: expected {expected}, found {found}")


def _too_deep() -> FilterError:
    return FilterError(f"the filter has more than {_DEEPEST} parentheses and NOTs within each other")


def _combined(one: bool | None, other: bool | None, *, by: bool) -> bool | None:
    """Return what OR (`by` True) or AND makes of two answers; None is one that is open."""
    if by in {one, other}:
        return by
    return None if None in {one, other} else not by


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


def _is_true(values: Mapping[str, CimValue | Unknown], name: str) -> bool:
    is_so = True
    return _fits(values, name, is_so, operator.eq)


def _compares(value: str | int, name: str, wanted: str | int, compare: Callable[[Any, Any], bool]) -> bool:
    if _kind(value) != _kind(wanted):
        raise FilterError(f"{name} is {_kind(value)}, and is compared with {_kind(wanted)} {wanted!r}")
    if isinstance(value, str) and isinstance(wanted, str):
        return compare(value.lower(), wanted.lower())
    return compare(value, wanted)


def _kind(value: str | int) -> str:
    return "a truth value" if isinstance(value, bool) else "a number" if isinstance(value, int) else "a text"
