"""The door of the public functions: a wrong argument is refused by its name, and paths may be of any kind."""

from __future__ import annotations

import inspect
import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import vhdkit
from vhdkit.arguments import checked
from vhdkit.storage.memory import MemoryFolder

if TYPE_CHECKING:
    from collections.abc import Callable

FUNCTIONS = {name: getattr(vhdkit, name) for name in vhdkit.__all__ if inspect.isfunction(getattr(vhdkit, name))}
METHODS = {
    f"Machine.{name}": getattr(vhdkit.Machine, name)
    for name, _ in inspect.getmembers(vhdkit.Machine, inspect.isroutine)
    if name == "__init__" or not name.startswith("_")
}
# Neither has arguments, or takes a function of our own only.
INNER = {"Machine.owed", "Machine.is_running", "Machine.steadily"}
PUBLIC = FUNCTIONS | {name: method for name, method in METHODS.items() if name not in INNER}


class Wordy:
    """A path of its own kind."""

    def __init__(self, path: Any) -> None:
        self._path = path

    def __fspath__(self) -> Any:
        return self._path


# Of each annotation a right value, and wrong ones.
RIGHT: dict[str, Any] = {
    "StrPath": "x.vhd",
    "Sequence[StrPath]": (),
    "Mapping[str, StrPath]": {},
    "str": "text",
    "DiskTypeName": "dynamic",
    "OutputFormat": "dynamic",
    "QemuFormat": "qcow2",
    "ReadFormat": "raw",
    "bool": False,
    "bytes": bytes(16),
    "int": 512,
    "float": 1.0,
    "Cancel": threading.Event(),
    "Folder": MemoryFolder(),
}
TYPES: dict[str, tuple[Any, ...]] = {
    "StrPath": (b"x.vhd", 5, 1.0, Wordy(b"x.vhd"), ["x.vhd"], object()),
    "Sequence[StrPath]": (".", Path(), b".", Wordy("."), 5, [5], [b"."], (Path(), object())),
    "Mapping[str, StrPath]": (".", 5, ["C:"], {"C:": 5}, {5: "."}, {"C:": b"."}),
    "Sequence[str]": ("true", 5, [5], [b"true"]),
    "str": (b"text", 5, Path()),
    **dict.fromkeys(("DiskTypeName", "OutputFormat", "QemuFormat", "ReadFormat"), (b"raw", 5, Path())),
    "bool": ("no", 1, 0.0, []),
    "bytes": ("a" * 16, 5, [1]),
    "RateLimit | int": ("40M", 1.0, True, b"1", [1]),
    "int": ("40M", 1.0, True, b"1", [1]),
    "float": ("1", True, [1]),
    "Cancel": (True, "yes", lambda: True),
    "Clock": (1.0, object()),
    "Folder": (Path(), ".", object()),
    "Chain": ("x", None, object()),
    "DiskView": ("x", None, object()),
    "Endpoint": ("x", object()),
    "GuestFiles": ("x", None, object()),
    "MergePlan": ("x", None, object()),
    "Completion": ("x", object()),
    "Follow": ("x", object()),
    "EventTarget": ("x", object()),
}
VALUES: dict[str, tuple[Any, ...]] = {
    "StrPath": ("", Wordy(""), "a\0b", Wordy("a\0b")),
    "Sequence[StrPath]": ([""], ["a\0b"], [".", ""]),
    "Mapping[str, StrPath]": ({"C:": ""}, {"C:": "a\0b"}),
}


def kind_of(parameter: inspect.Parameter) -> str:
    text = str(parameter.annotation).removesuffix(" | None")
    return "Callable" if text.startswith("Callable[") else text


def parameters_of(function: Callable[..., object]) -> dict[str, inspect.Parameter]:
    found = inspect.signature(function).parameters
    return {name: each for name, each in found.items() if each.annotation is not each.empty}


CASES = [
    pytest.param(name, parameter, id=f"{name}-{parameter}")
    for name, function in PUBLIC.items()
    for parameter in parameters_of(function)
]


def call(name: str, parameter: str, value: object) -> None:
    """Call with a wrong value, and right ones where others are needed; the door is before everything else."""
    function = PUBLIC[name]
    others = {
        other: RIGHT[kind_of(each)]
        for other, each in parameters_of(function).items()
        if each.default is each.empty and other != parameter and kind_of(each) in RIGHT
    }
    is_method = name in METHODS and not inspect.ismethod(function)
    function(*([None] if is_method else []), **others, **{parameter: value})


@pytest.mark.parametrize(("name", "parameter"), CASES)
def test_a_wrong_argument_is_refused_by_its_name(name: str, parameter: str) -> None:
    kind = kind_of(parameters_of(PUBLIC[name])[parameter])
    wrong = (5, "print") if kind == "Callable" else TYPES[kind]
    for value in wrong:
        with pytest.raises(TypeError, match=rf"\(\): '{parameter}' must be "):
            call(name, parameter, value)
    for value in VALUES.get(kind, ()):
        with pytest.raises(ValueError, match=rf"\(\): '{parameter}' "):
            call(name, parameter, value)


def test_every_public_function_has_the_door() -> None:
    assert len(FUNCTIONS) > 20
    for name, function in PUBLIC.items():
        if parameters_of(function):
            assert getattr(function, "__wrapped__", None) is not None, name


@pytest.mark.parametrize("kind", [str, Path, Wordy])
def test_every_kind_of_path_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: Callable[[str], Any]
) -> None:
    monkeypatch.chdir(tmp_path)
    vhdkit.create_image(kind("base.vhd"), size=1 << 20)
    vhdkit.create_image(kind("leaf.avhd"), parent=kind("base.vhd"), parent_map={"C:\\vms": kind(".")})
    search = [kind(".")]
    with vhdkit.open_chain(kind("leaf.avhd"), parent=kind("base.vhd"), search=search) as chain:
        assert isinstance(chain.path, str)
        assert len(chain.layers) == 2
    vhdkit.open_image(kind("leaf.avhd")).close()
    assert vhdkit.check(kind("leaf.avhd"), chain=True, search=search).exit_code == 0
    assert vhdkit.compare(kind("leaf.avhd"), kind("base.vhd")).equal
    assert len(vhdkit.scan(kind("."), search=search).bases) == 1
    vhdkit.convert(kind("leaf.avhd"), kind("flat.vhd"))
    assert vhdkit.rebase(kind("leaf.avhd"), kind("base.vhd"), search=search).changes_nothing
    plan = vhdkit.plan_merge(kind("leaf.avhd"), into=kind("base.vhd"), undo=kind("undo.vhd"), search=iter(search))  # type: ignore[arg-type]
    assert {type(path) for path in (*plan.sources, plan.destination, plan.undo_path, *plan.search)} == {str}
    vhdkit.merge(plan)
    vhdkit.rollback(kind("undo.vhd"), search=search)
    assert os.path.exists("leaf.avhd")


def test_a_function_whose_annotations_are_not_known_cannot_have_the_door() -> None:
    def strange(path: Path) -> None:
        del path

    with pytest.raises(TypeError, match="'Path'"):
        checked(strange)


def test_the_door_leaves_the_rest_to_python() -> None:
    @checked
    def twice(number: int, *, is_shown: bool = False) -> int:
        return number * 2 if is_shown is False else 0

    untyped: Any = twice

    class Index:
        def __index__(self) -> int:
            return 7

    assert (untyped(3), untyped(number=3), untyped(Index())) == (6, 6, 14)
    for given, named in (((), {}), ((1, 2), {}), ((1,), {"more": 2})):
        with pytest.raises(TypeError, match="twice"):
            untyped(*given, **named)
    assert inspect.signature(twice).parameters["is_shown"].default is False
