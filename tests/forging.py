"""JSON documents as a forger would have them: every field of one changed, by value and by type.

`forgeries` goes through a document and yields it with one thing changed, as text: much of what a forger writes has no
Python value (NaN, repeated keys, lone surrogates, numbers of 400 digits). `drawn` picks some of them by a seed.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


class Raw(str):
    """JSON text that stands for itself."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Forgery:
    """A document with one thing changed: where (`.sources[0].path`), into what, and the JSON text."""

    where: str
    what: str
    text: str

    def __str__(self) -> str:
        return f"{self.where or '.'} {self.what}"


NUMBERS: Final[tuple[object, ...]] = (
    *(0, 1, -1, 512, 4096, 2**31, 2**32 - 1, 2**32, 2**53, 2**60, 2**63 - 1, 2**63, 2**64, -(2**63)),
    *(0.5, 1e12, -1e13, 1e300, -1e300, 253402300800),
    *(Raw(text) for text in ("1" + "0" * 400, "-1" + "0" * 400, "1e400", "NaN", "Infinity", "-Infinity", "-0", "1.0")),
)
TEXTS: Final[tuple[str, ...]] = (
    *(
        "",
        ".",
        "..",
        "/",
        "\\",
        "~",
        "x",
        "-",
        " ",
        "../x",
        "../../x",
        "a/../../x",
        "./x",
        "x/",
        "//x/y",
        "/etc/hostname",
    ),
    *(
        "C:\\x",
        "\\\\server\\share\\x",
        "\\\\.\\pipe\\x",
        "/dev/zero",
        "/proc/self/mem",
        "x\0y",
        "x\ny",
        "\x1b[2J\x9b",
        "\u202e",
    ),
    *(
        "é",
        "\udc80",
        "\ud800",
        "x\udfff/..",
        "\U0001f600",
        "0" * 31,
        "0" * 32,
        "0" * 33,
        "z" * 32,
        "f" * 64,
        "0" * 1024,
    ),
    *("x" * 255, "x" * 5000, "../" * 2000 + "x", "x" * 100_000),
)
OTHERS: Final[tuple[object, ...]] = (
    *(None, True, False, [], {}, "text", 7, 1.5, [[]], {"a": 1}),
    *(Raw("[" * 20_000 + "]" * 20_000), Raw('{"a":' * 20_000 + "1" + "}" * 20_000), Raw("[" + "0," * 20_000 + "0]")),
)


def forgeries(document: object, *, texts: Sequence[str] = (), numbers: Sequence[object] = ()) -> Iterator[Forgery]:
    """Yield the document with each of its parts changed in turn; `texts` and `numbers` are tried besides the usual."""
    for steps, value in _parts(document):
        for what, changed in _changes(value, (*TEXTS, *texts), (*NUMBERS, *numbers)):
            yield Forgery(_shown(steps), what, dumps(_with(document, steps, changed)))
        if steps and isinstance(steps[-1], str):
            inside = _at(document, steps[:-1])
            without = {key: item for key, item in inside.items() if key != steps[-1]}
            yield Forgery(_shown(steps), "left out", dumps(_with(document, steps[:-1], without)))


def drawn(
    document: object, seed: int, count: int, *, texts: Sequence[str] = (), numbers: Sequence[object] = ()
) -> list[Forgery]:
    """Return some of the forgeries, the same for the same seed."""
    found = list(forgeries(document, texts=texts, numbers=numbers))
    return random.Random(seed).sample(found, min(count, len(found)))


def dumps(value: object) -> str:
    """Return JSON as the standard library writes it, `Raw` texts as they are."""
    match value:
        case Raw():
            return str(value)
        case dict():
            # A key is a `_Key` if it stands there twice.
            return "{" + ",".join(f"{json.dumps(str(key))}:{dumps(item)}" for key, item in value.items()) + "}"
        case list() | tuple():
            return "[" + ",".join(map(dumps, value)) + "]"
        case _:
            return json.dumps(value)


class _Key(str):
    """A key that equals no other, and is written as its text."""

    __slots__ = ()

    def __hash__(self) -> int:
        return id(self)

    def __eq__(self, other: object) -> bool:
        return self is other


def _parts(value: object, steps: tuple[str | int, ...] = ()) -> Iterator[tuple[tuple[str | int, ...], Any]]:
    yield steps, value
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _parts(item, (*steps, key))
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _parts(item, (*steps, index))


def _changes(value: Any, texts: Sequence[str], numbers: Sequence[object]) -> Iterator[tuple[str, object]]:
    others = [other for other in OTHERS if type(other) is not type(value) or other != value]
    yield from ((f"is {_brief(other)}", other) for other in others)
    match value:
        case dict():
            yield from _changed_objects(value)
        case list() | tuple():
            yield from _changed_lists(list(value))
        case bool():
            yield from (("is the contrary", not value), ("is a number", int(value)))
        case int() | float():
            found = (*numbers, value + 1, value - 1, value * 2, float(value), str(value))
            yield from ((f"is {_brief(number)}", number) for number in found)
        case str():
            changed = (
                value + "x",
                value[:-1],
                value.upper(),
                value + "\0",
                "../" + value,
                "/" + value,
                value + "/../x",
            )
            for text in dict.fromkeys((*texts, *changed)):
                if text != value:
                    yield f"is {_brief(text)}", text
            yield "is a list of letters", list(value[:100])


def _changed_objects(value: dict[str, Any]) -> Iterator[tuple[str, object]]:
    for name, key in (("an unknown key", "more"), ("a key with a NUL", "\0"), ("a lone surrogate as a key", "\ud800")):
        yield f"has {name}", {**value, key: 1}
    for key, item in value.items():
        yield f"has {key} twice", {**value, _Key(key): item}
        yield f"has {key} twice, first as null", {_Key(key): None, **value}


def _changed_lists(items: list[Any]) -> Iterator[tuple[str, object]]:
    yield from (("is longer", [*items, *items]), ("is reversed", items[::-1]), ("is cut", items[:-1]))
    if items and len(dumps(items)) < 10_000:
        yield "is 3,000 times as long", items * 3000


def _at(document: Any, steps: tuple[str | int, ...]) -> Any:
    for step in steps:
        document = document[step]
    return document


def _with(document: Any, steps: tuple[str | int, ...], changed: object) -> object:
    if not steps:
        return changed
    first, *rest = steps
    if isinstance(document, dict):
        return {key: _with(item, tuple(rest), changed) if key == first else item for key, item in document.items()}
    return [_with(item, tuple(rest), changed) if at == first else item for at, item in enumerate(document)]


def _shown(steps: tuple[str | int, ...]) -> str:
    return "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in steps)


def _brief(value: object) -> str:
    text = dumps(value)
    return text if len(text) < 60 else f"{text[:40]}... ({len(text)} characters)"
