"""What holds of the whole source: no message below the command line is written for it."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import TYPE_CHECKING

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
VERBS = "|".join([*program.commands, "commit", "coalesce"])
COMMAND = re.compile(rf"(^|[^\w-])--[a-z]|\bvhdkit ({VERBS})\b")


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
