"""The door of every public function: its arguments are what its annotations say, or an error names the one that isn't.

    @checked
    def open_chain(path: StrPath, *, search: Sequence[StrPath] = (), ...) -> Chain: ...

    open_chain(b"a.vhd")            TypeError: open_chain(): 'path' must be a str or os.PathLike, not bytes
    open_chain("")                  ValueError: open_chain(): 'path' is empty
    open_chain("a.vhd", search=".") TypeError: open_chain(): 'search' must be a sequence of paths, not one path

What is checked is found by the text of an annotation, so that what a type checker reads and what is true at run time
cannot differ: a parameter whose annotation is not known here fails when its module is imported. Paths reach the
function as text, numbers as int, sequences as tuples.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Mapping
from os import PathLike, fspath
from typing import TYPE_CHECKING, ParamSpec, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")

_OPTIONAL = " | None"


def checked(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """Check and convert the arguments of a public function by its annotations.

    Raises (when called):
        TypeError: an argument has another type, which the message names with the argument.
        ValueError: a path is empty or has a null character in it.

    """
    code = function.__code__
    positional = code.co_varnames[: code.co_argcount]
    names = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
    checks = {name: _check_for(function.__annotations__[name]) for name in names if name in function.__annotations__}
    place = function.__qualname__.removesuffix(".__init__")

    def converted(name: str, value: object) -> object:
        check = checks.get(name)
        try:
            return value if check is None else check(value)
        except (TypeError, ValueError) as error:
            # From here, not from the check: the caller's own line is the next in the traceback.
            raise type(error)(f"{place}(): {name!r} {error}") from None

    @functools.wraps(function)
    def door(*given: Parameters.args, **named: Parameters.kwargs) -> Result:
        values = [converted(name, value) for name, value in zip(positional, given, strict=False)]
        others = {name: converted(name, value) for name, value in named.items()}
        return function(*values, *given[len(values) :], **others)  # type: ignore[arg-type] # they are what they were

    return door


def _check_for(annotation: str) -> Callable[[object], object]:
    """Return what checks a value against an annotation and converts it.

    Raises:
        TypeError: it is none that is known.

    """
    text = annotation.removesuffix(_OPTIONAL)
    if text.startswith("Callable["):
        check: Callable[[object], object] | None = _function
    else:
        check = _CHECKS.get(text)
    if check is None:
        raise TypeError(f"no check is known for the annotation {annotation!r}: it belongs in arguments._CHECKS")
    if text == annotation:
        return check
    return lambda value: None if value is None else check(value)


def _wrong(expected: str, value: object) -> TypeError:
    return TypeError(f"must be {expected}, not {type(value).__name__}")


def _path(value: object) -> str:
    if not isinstance(value, (str, PathLike)):
        raise _wrong("a str or os.PathLike", value)
    text: object = fspath(value)
    if not isinstance(text, str):
        raise _wrong("a str or os.PathLike of str", text)
    if not text:
        raise ValueError("is empty")
    if "\0" in text:
        raise ValueError("has a null character in it")
    return text


def _paths(value: object) -> tuple[str, ...]:
    if isinstance(value, (str, bytes, PathLike)):
        raise TypeError("must be a sequence of paths, not one path")
    try:
        return tuple(map(_path, value))  # type: ignore[call-overload] # what is no sequence raises
    except TypeError as error:
        if str(error).startswith("must be"):
            raise TypeError(f"must be a sequence of paths, and one of them {error}") from None
        raise _wrong("a sequence of paths", value) from None


def _words(value: object) -> tuple[str, ...]:
    if not isinstance(value, (list, tuple)) or not all(isinstance(word, str) for word in value):
        raise _wrong("a list of str", value)
    return tuple(value)


def _path_map(value: object) -> dict[str, str]:
    if not isinstance(value, Mapping):
        raise _wrong("a mapping of folders to paths", value)
    for name in value:
        if not isinstance(name, str):
            raise _wrong("a mapping whose keys are str", name)
    return {name: _path(path) for name, path in value.items()}


def _whole(value: object) -> int:
    if isinstance(value, bool):
        raise _wrong("an int", value)
    try:
        return operator.index(value)  # type: ignore[arg-type] # what is none raises
    except TypeError:
        raise _wrong("an int", value) from None


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise _wrong("a number", value)
    return value


def _instance_of(*kinds: type, named: str) -> Callable[[object], object]:
    def check(value: object) -> object:
        if not isinstance(value, kinds):
            raise _wrong(named, value)
        return value

    return check


def _with_methods(*methods: str, named: str) -> Callable[[object], object]:
    def check(value: object) -> object:
        if not all(callable(getattr(value, method, None)) for method in methods):
            raise _wrong(named, value)
        return value

    return check


def _with_attributes(*names: str, named: str) -> Callable[[object], object]:
    def check(value: object) -> object:
        if not all(hasattr(value, name) for name in names):
            raise _wrong(named, value)
        return value

    return check


def _one_of_our(name: str) -> Callable[[object], object]:
    """Return a check by the name of a class: the door lies below the rooms whose classes it lets through."""

    def check(value: object) -> object:
        if all(kind.__name__ != name for kind in type(value).__mro__):
            raise _wrong(f"a {name}", value)
        return value

    return check


def _function(value: object) -> object:
    if not callable(value):
        raise _wrong("callable", value)
    return value


_CHECKS: dict[str, Callable[[object], object]] = {
    "StrPath": _path,
    "Sequence[StrPath]": _paths,
    "Mapping[str, StrPath]": _path_map,
    "Sequence[str]": _words,
    "str": _instance_of(str, named="a str"),
    # Which words there are the functions say, to callers without a type checker.
    "DiskTypeName": _instance_of(str, named="a str"),
    "OutputFormat": _instance_of(str, named="a str"),
    "QemuFormat": _instance_of(str, named="a str"),
    "ReadFormat": _instance_of(str, named="a str"),
    "bool": _instance_of(bool, named="a bool"),
    "bytes": _instance_of(bytes, named="bytes"),
    "int": _whole,
    "float": _number,
    "Cancel": _with_methods("is_set", named="a threading.Event, or something else with is_set()"),
    "Clock": _with_methods("monotonic", "sleep", named="a clock, such as the module time"),
    "Folder": _with_methods("open", "create", "real", named="a Folder (see vhdkit.storage.protocols)"),
    "Chain": _one_of_our("Chain"),
    "DiskView": _one_of_our("DiskView"),
    "Endpoint": _with_attributes("uri", "arguments", named="a UnixSocket or a TcpPort"),
    "GuestFiles": _one_of_our("GuestFiles"),
    "MergePlan": _one_of_our("MergePlan"),
    "Completion": _one_of_our("Completion"),
    "Follow": _one_of_our("Follow"),
    "EventTarget": _one_of_our("EventTarget"),
    "RateLimit | int": lambda value: value if hasattr(value, "rate") else _whole(value),
}
