"""The words of a filter, in WQL's spelling and in PowerShell's.

PowerShell's `$_.Name -eq 'text'` is read as the same words as WQL's `Name = 'text'`. A blank behind the hyphen, which
PowerShell itself refuses, is allowed.
"""

from __future__ import annotations

import re
from typing import NamedTuple

_TOKEN = re.compile(
    r"""\s*(?:(?P<text>'(?:[^']|'')*'|"(?:[^"]|"")*")"""
    r"""|(?P<property>\$(?:_|psitem)\s*\.\s*\w+)|(?P<constant>\$(?:true|false|null)\b)"""
    r"""|(?P<number>-?\d+)|(?P<dash>-\s*[a-z]\w*)|(?P<word>\w+)|(?P<sign><=|>=|<>|!=|=|<|>|\(|\)|!))""",
    re.IGNORECASE,
)
# PowerShell's operators, each as it is or with an `i` before it, by WQL's words for them.
_DASHED = {
    "eq": ("=",),
    "ne": ("<>",),
    "lt": ("<",),
    "le": ("<=",),
    "gt": (">",),
    "ge": (">=",),
    "like": ("like",),
    "notlike": ("not", "like"),
    "and": ("and",),
    "or": ("or",),
    "not": ("not",),
}
# What WQL has elsewhere, or here and not in this filter.
FOREIGN = {"isa", "within", "group", "having", "order", "by", "select", "from", "where", "datepart", "upper", "lower"}


class FilterError(ValueError):
    """An expression that cannot be read, or that compares what cannot be compared."""


class Token(NamedTuple):
    """A word, where it is, and whether PowerShell spells it so."""

    kind: str
    text: str
    at: int
    is_powershell: bool = False


def read_tokens(expression: str) -> list[Token]:
    """Return the words of an expression, and a last one that stands for its end.

    Raises:
        FilterError: something in it is no word, or one of PowerShell's that is not known here.

    """
    tokens: list[Token] = []
    text, at = expression.rstrip(), 0
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None:
            rest = text[at:].lstrip()
            where = len(text) - len(rest)
            raise FilterError(f"the filter cannot be read at character {where + 1}: {rest[:20]!r}")
        kind = match.lastgroup or ""
        tokens += _tokens_of(kind, match[kind], match.start(kind))
        at = match.end()
    return [*tokens, Token("end", "", len(text))]


def _tokens_of(kind: str, text: str, at: int) -> list[Token]:
    match kind:
        case "property":
            return [Token("word", text.partition(".")[2].strip(), at, is_powershell=True)]
        case "constant":
            return [Token("word", text[1:], at, is_powershell=True)]
        case "dash":
            return [_spelled(word, at) for word in _words_of(text, at)]
        case "sign" if text == "!":
            return [_spelled("not", at)]
        case _:
            return [Token(kind, text, at)]


def _spelled(word: str, at: int) -> Token:
    return Token("word" if word.isalpha() else "sign", word, at, is_powershell=True)


def _words_of(text: str, at: int) -> tuple[str, ...]:
    name = text[1:].strip().lower()
    known = _DASHED.get(name) or _DASHED.get(name.removeprefix("i"))
    if known is None:
        raise FilterError(f"PowerShell's -{name}, at character {at + 1}, is not known here; {_choice()} are")
    return known


def _choice() -> str:
    return ", ".join(f"-{name}" for name in _DASHED)
