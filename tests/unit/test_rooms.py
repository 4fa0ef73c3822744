"""What import-linter cannot see of the rooms."""

from __future__ import annotations

from pathlib import Path

import vhdkit

PACKAGE = Path(vhdkit.__file__).parent


def test_nothing_below_the_command_line_names_it_not_even_in_a_string() -> None:
    above = {PACKAGE / "__main__.py"}
    below = [path for path in PACKAGE.rglob("*.py") if PACKAGE / "cli" not in path.parents and path not in above]
    assert len(below) > 100
    assert [str(path) for path in below if "vhdkit.cli" in path.read_text(encoding="utf-8")] == []
