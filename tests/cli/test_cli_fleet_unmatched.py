"""Patterns that mean nothing: a slip of the keyboard is no success."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.fleet.machines_on_disk import make_machines

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.cli.running import Outcome

    Cli = Callable[..., Outcome]


@pytest.fixture
def machines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with two machines, which is also the current one; one's name reads as a set of letters."""
    folder = tmp_path / "vms"
    folder.mkdir()
    make_machines(folder, 1, levels=1)
    (folder / "vm00").rename(folder / "[new] vm")
    make_machines(folder, 1, levels=1)
    (folder / "empty").mkdir()
    (folder / "broken.backup").write_bytes(bytes(4096))
    (folder / "disk.img").write_bytes(bytes(4096))
    subprocess.run(["mkfifo", "pipe.vhd"], cwd=folder, check=True)
    monkeypatch.chdir(folder)
    return folder


WORDS = [["check"], ["hash"], ["convert", "--to", "empty"], ["scan"]]


@pytest.mark.usefixtures("machines")
@pytest.mark.parametrize("verb", WORDS, ids=lambda words: words[0])
@pytest.mark.parametrize("pattern", ["vm00/*.typo", "[new] vm/*.avhd", "*/*/*.vhd"])
def test_a_pattern_that_means_no_image_is_a_failure(cli: Cli, verb: list[str], pattern: str) -> None:
    done = cli("fleet", *verb, pattern)
    assert done.code == 1
    assert f"{pattern}: no image" in done.err + done.out


@pytest.mark.usefixtures("machines")
@pytest.mark.parametrize("verb", [*WORDS, ["merge"]], ids=lambda words: words[0])
@pytest.mark.parametrize("path", ["broken.backup", "disk.img", "pipe.vhd", "empty", "/etc/passwd"])
def test_a_path_at_which_no_image_is_fails_by_name(cli: Cli, verb: list[str], path: str) -> None:
    done = cli("fleet", *verb, path)
    assert done.code == 1
    assert path in done.err + done.out


def test_a_merge_of_nothing_is_done_where_images_show_that(cli: Cli, machines: Path) -> None:
    (machines / "vm00" / "vm00_0.avhd").unlink()
    done = cli("fleet", "merge", "vm00/*.avhd")
    assert (done.code, "nothing to be done" in done.err) == (0, True)
    for pattern in ("[new] vm/*.avhd", "vmOO/*.avhd", "empty/*.avhd"):
        assert cli("fleet", "merge", pattern).code == 1


@pytest.mark.usefixtures("machines")
def test_a_pattern_of_no_letters_is_wrong_usage(cli: Cli) -> None:
    for verb in ("scan", "merge"):
        assert cli("fleet", verb, "").code == 64
