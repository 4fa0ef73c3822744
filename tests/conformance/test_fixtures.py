"""fixtures/ is what its maker makes, small, wholly listed, and reads as its manifest says."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any, Final

import pytest

import vhdkit
from tests.plaincheck import validate

FIXTURES: Final = Path(__file__).resolve().parents[2] / "fixtures"
IMAGES: Final[list[dict[str, Any]]] = tomllib.loads((FIXTURES / "MANIFEST.toml").read_text("utf-8"))["image"]
BY_NAME: Final = {image["file"]: image for image in IMAGES}
DISKS: Final = [image for image in IMAGES if image["disk_type"] != "raw"]
# What is wrong with them on purpose; all others pass the strict judge.
FLAWED: Final = {"footer-511.vhd", "no-trailing-footer.vhd"}


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def chain_of(image: dict[str, Any]) -> list[str]:
    below = image.get("parent")
    return [image["file"], *(chain_of(BY_NAME[below]) if below in BY_NAME else [])]


def named(images: list[dict[str, Any]]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("image", images, ids=[image["file"] for image in images])


def test_the_fixtures_are_what_their_maker_makes() -> None:
    done = subprocess.run([sys.executable, FIXTURES / "make.py", "--check"], capture_output=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_manifest_lists_every_file_of_the_folder_once() -> None:
    files = [path.name for path in FIXTURES.iterdir() if path.name != "__pycache__"]
    assert sorted(files) == sorted(["make.py", "MANIFEST.toml", *(image["file"] for image in IMAGES)])


def test_the_fixtures_are_small() -> None:
    assert sum((FIXTURES / name).stat().st_size for name in BY_NAME) < 2 * 1024 * 1024


def test_the_fixtures_are_of_each_kind_and_chains_of_one_to_three() -> None:
    assert {image["disk_type"] for image in IMAGES} == {"raw", "fixed", "dynamic", "differencing"}
    assert {len(chain_of(image)) for image in IMAGES} == {1, 2, 3}


@named(IMAGES)
def test_a_file_has_the_size_and_the_digest_that_the_manifest_says(image: dict[str, Any]) -> None:
    content = (FIXTURES / image["file"]).read_bytes()
    assert (len(content), sha256(content)) == (image["file_size"], image["sha256"])


@named([image for image in DISKS if "view_sha256" in image])
def test_a_disk_reads_as_the_manifest_says(image: dict[str, Any]) -> None:
    parent = str(FIXTURES / "raw-parent.img") if image["file"] == "raw-child.vhd" else None
    with vhdkit.open_chain(str(FIXTURES / image["file"]), parent=parent) as chain:
        assert [Path(layer.path).name for layer in chain.layers] == chain_of(image)
        assert chain.size == image["virtual_size"]
        assert sha256(chain.read(0, chain.size)) == image["view_sha256"]


def test_a_raw_parent_is_not_taken_unless_it_is_given() -> None:
    with pytest.raises(vhdkit.ParentRefusedError):
        vhdkit.open_chain(str(FIXTURES / "raw-child.vhd"))


def test_the_orphan_says_where_its_parent_was_looked_for() -> None:
    with pytest.raises(vhdkit.ParentNotFoundError) as caught:
        vhdkit.open_chain(str(FIXTURES / "orphan.vhd"))
    assert [image["file"] for image in DISKS if "view_sha256" not in image] == ["orphan.vhd"]
    assert str(FIXTURES / "lost.vhd") in {candidate.path for candidate in caught.value.candidates}


@named(DISKS)
def test_a_disk_is_sound_unless_it_is_there_for_its_flaw(image: dict[str, Any]) -> None:
    is_raw_parented = image["file"] == "raw-child.vhd"
    problems = validate(FIXTURES / image["file"], raw_parent=is_raw_parented)
    assert bool(problems) == (image["file"] in FLAWED), problems
