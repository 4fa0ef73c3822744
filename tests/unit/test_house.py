"""What holds of the whole source: its messages, its sizes, its names."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import TYPE_CHECKING

import click

import vhdkit
from tests.typed import as_typed
from vhdkit.cli.main import program
from vhdkit.command_hints import commands_of
from vhdkit.findings import Advice, Hint

if TYPE_CHECKING:
    from collections.abc import Iterator

PACKAGE = Path(vhdkit.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))
# Those that are written for a person at a shell.
WITH_COMMANDS = {"cli", "command_hints.py"}
VERBS = "|".join([*program.list_commands(click.Context(program)), "commit", "coalesce"])
COMMAND = re.compile(rf"(^|[^\w-])--[a-z]|(`|\bvhdkit )({VERBS})\b")


def texts(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yield (line, string) for every string of a module but the docstrings."""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    docstrings = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, documented) and node.body and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            yield node.lineno, node.value


def test_no_message_below_the_command_line_names_an_option_or_a_command() -> None:
    named = [
        f"{path.relative_to(PACKAGE)}:{line}: {text}"
        for path in MODULES
        if path.relative_to(PACKAGE).parts[0] not in WITH_COMMANDS
        for line, text in texts(ast.parse(path.read_text()))
        if COMMAND.search(text)
    ]
    assert named == []


def test_every_advice_has_words_for_the_command_line() -> None:
    names = ("path", "new_path", "parent", "folder", "job", "name")
    given: dict[str, str | tuple[str, ...]] = {**dict.fromkeys(names, "a b"), "paths": ("a", "b")}
    for advice in Advice:
        named = {name: value for name, value in given.items() if f"{{{name}!" in advice.value}
        hint = Hint(advice=advice, arguments=tuple(named.items()))
        assert "{" not in as_typed(hint)
        assert all(command.split()[0] in {"vhdkit", "qemu-img", "mv"} for command in commands_of(hint))


# Sizes

MOST_LINES, MOST_FUNCTION_LINES, MOST_COMPLEX = 400, 60, 12
Function = ast.FunctionDef | ast.AsyncFunctionDef


def branches(node: ast.AST) -> int:
    """Return how many ways a node adds to those through its function."""
    own = isinstance(
        node,
        ast.If | ast.IfExp | ast.ExceptHandler | ast.Assert | ast.For | ast.AsyncFor | ast.While | ast.comprehension,
    )
    otherwise = isinstance(node, ast.For | ast.AsyncFor | ast.While | ast.Try) and bool(node.orelse)
    tests = len(node.values) - 1 if isinstance(node, ast.BoolOp) else 0
    filters = len(node.ifs) if isinstance(node, ast.comprehension) else 0
    cases = len(node.cases) - 1 if isinstance(node, ast.Match) else 0
    return own + otherwise + tests + filters + cases


def functions(path: Path) -> Iterator[Function]:
    yield from (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, Function))


def named(path: Path, function: Function) -> str:
    return f"{path.relative_to(PACKAGE)}:{function.name}"


def test_no_module_is_longer_than_400_lines() -> None:
    long = {str(path.relative_to(PACKAGE)) for path in MODULES if len(path.read_text().splitlines()) > MOST_LINES}
    assert long == set()


def test_no_function_is_longer_than_60_lines() -> None:
    assert {
        named(path, each)
        for path in MODULES
        for each in functions(path)
        if (each.end_lineno or 0) - each.lineno >= MOST_FUNCTION_LINES
    } == set()


def test_no_function_has_more_than_twelve_ways_through_it() -> None:
    """As radon counts them: operators of conditions and comprehensions are ways, too."""
    assert {
        named(path, each)
        for path in MODULES
        for each in functions(path)
        if 1 + sum(map(branches, ast.walk(each))) > MOST_COMPLEX
    } == set()


# Names

# Of any format: each hands on to the function of that name of the file's format.
DISPATCHED = {"check_file", "examine", "fields", "image_of", "open_image", "step_findings"}


def test_no_two_public_names_are_alike() -> None:
    """A verb of the command line is called as what it does, and what its function is called is its own affair."""
    homes: dict[str, set[Path]] = {}
    for path in MODULES:
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, Function | ast.ClassDef) and not node.name.startswith("_"):
                homes.setdefault(node.name, set()).add(path.relative_to(PACKAGE))
    alike = {name for name, paths in homes.items() if len([each for each in paths if each.parts[0] != "cli"]) > 1}
    assert alike == DISPATCHED
