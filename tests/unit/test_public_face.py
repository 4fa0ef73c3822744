from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest

import vhdkit

ROOT = Path(__file__).resolve().parents[2]
LEAF = "web01_3A7F2C10-5D0E-4B7B-9C55-0D1E6A3B9F42.avhd"


def test_every_public_name_is_there_and_sorted() -> None:
    assert vhdkit.__all__ == sorted(vhdkit.__all__)
    assert all(getattr(vhdkit, name) is not None for name in vhdkit.__all__)
    assert dir(vhdkit) == vhdkit.__all__


def test_a_name_that_is_not_public_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="nonsense"):
        vhdkit.nonsense  # noqa: B018 - looking it up is the test


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = "import sys, vhdkit, vhdkit.cli.main; print(sorted({'numpy', 'construct', 'rich'} & set(sys.modules)))"
    assert subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, text=True).strip() == "[]"


def test_a_vhd_is_opened_and_checked_where_what_vhdx_needs_is_missing(tmp_path: Path) -> None:
    path = str(tmp_path / "base.vhd")
    vhdkit.create_image(path, size=1 << 20)
    code = (
        "import sys\nsys.modules['google_crc32c'] = None\nimport vhdkit\n"
        "with vhdkit.open_chain(sys.argv[1]) as chain:\n    print(chain.size, vhdkit.check(sys.argv[1]).exit_code)"
    )
    assert subprocess.check_output([sys.executable, "-c", code, path], cwd=ROOT, text=True).split() == ["1048576", "0"]


def test_the_readmes_first_screen_runs_as_it_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    screen = re.search(r"```python\n(.*?)```", text, re.DOTALL)
    assert screen is not None
    for image in (ROOT / "fixtures").glob("web01*"):
        shutil.copy(image, tmp_path)
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(compile(screen[1], "README.md", "exec"), names)  # noqa: S102 - it is what the README tells people to run
    assert isinstance(names["result"], vhdkit.MergeResult)
    assert not (tmp_path / LEAF).exists()


def test_the_screen_of_snapshots_runs_as_it_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (ROOT / "docs" / "command-line.md").read_text(encoding="utf-8")
    screen = re.search(r"<!-- snapshots-python -->\n```python\n(.*?)```", text, re.DOTALL)
    assert screen is not None
    shutil.copy(ROOT / "fixtures" / "web01.vhd", tmp_path)
    monkeypatch.chdir(tmp_path)
    exec(compile(screen[1], "command-line.md", "exec"), {})  # noqa: S102 - the page tells people to run it
    assert vhdkit.Machine("web01.vhd").snapshots == ()


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 100


def test_the_readme_names_every_verb() -> None:
    from vhdkit.cli.main import program  # noqa: PLC0415 - the command line is only loaded here

    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert [verb for verb in program.list_commands(click.Context(program)) if f"vhdkit {verb} " not in text] == []
