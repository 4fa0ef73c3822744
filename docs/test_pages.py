"""The commands that the pages tell people to type are typed here, each page in a folder of its own.

A block of shell behind `<!-- run -->` is run; a block behind `<!-- prints -->` is what the last one printed, and one
behind `<!-- prints-last-lines -->` how that ended. A page begins where the images are below `fixtures/`, as in a clone.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
BLOCK = re.compile(r"^<!-- (run|prints|prints-last-lines) -->\n```\w+\n(.*?)^```", re.DOTALL | re.MULTILINE)
END_OF_BLOCK = "-- end of a block --"


def blocks(page: Path) -> list[tuple[str, str]]:
    return BLOCK.findall(page.read_text(encoding="utf-8"))


PAGES = [page for page in sorted((ROOT / "docs").rglob("*.md")) if any(kind == "run" for kind, _ in blocks(page))]


def run(script: str, folder: Path) -> list[str]:
    """Return what each block of a script printed."""
    programs = Path(sys.executable).parent
    variables = {"PATH": f"{programs}:{os.environ['PATH']}", "HOME": str(folder), "VHDKIT_STATE": str(folder / "state")}
    done = subprocess.run(
        ["bash", "-eu", "-c", script],
        cwd=folder,
        env=os.environ | variables | {"LC_ALL": "C.UTF-8"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split(f"{END_OF_BLOCK}\n")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_pages_commands_do_what_it_says(page: Path, tmp_path: Path) -> None:
    shutil.copytree(ROOT / "fixtures", tmp_path / "fixtures", ignore=shutil.ignore_patterns("__pycache__"))
    found = blocks(page)
    script = "".join(f"{text}\necho '{END_OF_BLOCK}'\n" for kind, text in found if kind == "run")
    printed = iter(run(script, tmp_path))
    last = ""
    for kind, text in found:
        match kind:
            case "run":
                last = next(printed)
            case "prints":
                assert last == text
            case _:
                assert last.endswith(text)


def test_there_are_pages_with_commands() -> None:
    assert "rescue" in {page.stem for page in PAGES}
