"""partitions, ls, cat, stat, extract and diff, as they are typed."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import pytest

import vhdkit
from tests.cli.running import Outcome, environment, program
from tests.filesystem.guests import BIG, TEXT, ext4, in_layers, tree
from vhdkit.cli.main import run

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Cli = Callable[..., Outcome]


@pytest.fixture(autouse=True)
def _library() -> None:
    pytest.importorskip("pytsk3", reason="needs pytsk3")


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a chain, whose leaf has another a.txt than its parent."""
    folder = tmp_path_factory.mktemp("disk")
    disk = ext4(folder / "disk.img", tree(folder / "source")).read_bytes()
    (folder / "a:").mkdir()
    return in_layers(folder / "a:" / "chain", disk, disk.replace(TEXT, TEXT.upper())).parent


@pytest.fixture
def cli(chain: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    """Run one command line in this process, in the chain's folder."""
    monkeypatch.chdir(chain)

    def call(*arguments: object) -> Outcome:
        code = run([str(each) for each in arguments])
        said = capsys.readouterr()
        return Outcome(code=code, out=said.out, err=said.err)

    return call


LEAF = "layer-1.avhd"


def test_partitions(cli: Cli) -> None:
    assert "ext4      whole disk" in cli("partitions", LEAF).out
    (found,) = cli("partitions", LEAF, "--json").json
    assert found == {
        "number": 1,
        "start": 0,
        "size": 8 << 20,
        "description": "whole disk",
        "file-system": "ext4",
    }


def test_ls_escapes_names(cli: Cli) -> None:
    out = cli("ls", f"{LEAF}:/").out
    assert out.splitlines()[:2] == ["a.txt", "dir"]
    assert "odd\\udcff\\n\\x1b[31m" in out
    assert "\x1b" not in out
    long = cli("ls", "-l", f"{LEAF}:/").out
    assert "link -> /etc/passwd" in long
    assert "/dir/sub/deep" in cli("ls", "-R", f"{LEAF}:/dir").out.splitlines()
    assert {each["path"] for each in cli("ls", f"{LEAF}:/dir", "--json").json} == {"/dir/big", "/dir/sub"}


def test_an_image_whose_own_path_has_a_colon(cli: Cli, chain: Path) -> None:
    assert cli("ls", f"{chain}/{LEAF}:/dir").out.split() == ["big", "sub"]


def test_cat_writes_bytes(chain: Path) -> None:
    done = subprocess.run(
        program("cat", f"{LEAF}:/dir/big"), cwd=chain, env=environment(), capture_output=True, check=True
    )
    assert done.stdout == BIG


def test_stat(cli: Cli) -> None:
    found = cli("stat", f"{LEAF}:/a.txt", "--json").json
    assert (found["kind"], found["size"], found["mode"]) == ("file", len(TEXT), "0644")
    assert "size" in cli("stat", f"{LEAF}:/a.txt").out


def test_extract_tells_what_it_left_out(cli: Cli, tmp_path: Path) -> None:
    done = cli("extract", f"{LEAF}:/", tmp_path / "out", "--progress", "none")
    assert done.code == 1
    assert "left out: /link: it is a link to /etc/passwd" in done.err
    assert (tmp_path / "out" / "dir" / "big").read_bytes() == BIG
    assert cli("extract", f"{LEAF}:/dir", tmp_path / "two", "--progress", "none").code == 0


def test_the_files_of_an_image_without_a_parent_are_compared_with_nothing(cli: Cli, tmp_path: Path) -> None:
    vhdkit.create_image(str(tmp_path / "a.vhd"), size=1 << 20)
    assert "it has no parent" in cli("diff", tmp_path / "a.vhd").refused()


def test_diff(cli: Cli) -> None:
    assert cli("diff", LEAF).out == "M  /a.txt  (content)\n"
    for layer in ("1", "layer-0.vhd"):
        (found,) = cli("diff", LEAF, "--against", layer, "--json").json
        assert found == {"partition": 1, "path": "/a.txt", "change": "modified", "what": ["content"]}
    assert cli("diff", LEAF, "--against", "7").code == 64
    assert cli("diff", "layer-0.vhd").code == 1


def test_what_is_not_there_is_an_error(cli: Cli) -> None:
    assert "there is no /nope" in cli("cat", f"{LEAF}:/nope").refused()
    assert cli("ls", LEAF).code == 64
    assert cli("ls", "nope.vhd:/").code == 1
    assert "--partition" in cli("ls", "--help").out
