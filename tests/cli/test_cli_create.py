"""create, convert, compare: what is made reads as it should, to vhdkit and to the tests' own reader."""

from __future__ import annotations

import hashlib
import os
import shutil
from typing import TYPE_CHECKING

import pytest

from tests.cli.running import BASE, FIXTURES, LEAF, MANIFEST, snapshot, view_of
from tests.plaincheck import validate
from tests.plainvhd import DIFFERENCING, parse

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.cli.running import Outcome

    Cli = Callable[..., Outcome]
    Lay = Callable[..., Path]

WITH_VIEWS = sorted(name for name in MANIFEST if "view_sha256" in MANIFEST[name] and not name.startswith("raw-"))


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("40M", 40 << 20),
        ("40m", 40 << 20),
        ("40MiB", 40 << 20),
        ("40MB", 40 << 20),
        ("512", 512),
        ("17K", 17 << 10),
        ("2G", 2 << 30),
        ("1T", 1 << 40),
    ],
)
def test_a_created_disk_has_the_size_that_was_asked_for(cli: Cli, lay: Lay, text: str, size: int) -> None:
    path = lay() / "new.vhd"
    done = cli("create", "new.vhd", "--size", text, "--json")
    assert done.code == 0
    assert done.json["virtual-size"] == size
    assert done.json["file-size"] == path.stat().st_size
    assert parse(path).size == size
    assert validate(path) == []


@pytest.mark.parametrize("kind", ["dynamic", "fixed"])
def test_a_created_disk_is_of_the_kind_that_was_asked_for_and_reads_as_zeros(cli: Cli, lay: Lay, kind: str) -> None:
    path = lay() / "new.vhd"
    done = cli("create", "--type", kind, "--size", "3M", "new.vhd")
    assert done.code == 0
    for word in ("new.vhd", kind, "3.0 MiB"):
        assert word in done.out
    assert cli("info", "--json", "new.vhd").json["disk-type"] == kind
    assert view_of(path) == hashlib.sha256(bytes(3 << 20)).hexdigest()
    assert path.stat().st_blocks * 512 < 1 << 20
    assert validate(path) == []


def test_a_child_takes_size_and_block_size_from_its_parent_and_reads_as_it(cli: Cli, vms: Path) -> None:
    before = snapshot(vms)
    done = cli("create", "child.avhd", "--parent", BASE, "--json")
    assert (done.code, done.json["disk-type"]) == (0, "differencing")
    child = parse(vms / "child.avhd")
    assert (child.disk_type, child.size, child.block_size) == (DIFFERENCING, MANIFEST[BASE]["virtual_size"], 65536)
    assert child.parent_id == parse(vms / BASE).unique_id
    assert view_of(vms / "child.avhd", vms / BASE) == MANIFEST[BASE]["view_sha256"]
    assert validate(vms / "child.avhd") == []
    assert before.items() <= snapshot(vms).items()


def test_a_child_may_be_larger_and_have_other_blocks(cli: Cli, vms: Path) -> None:
    assert cli("create", "child.avhd", "--parent", BASE, "--size", "9M", "--block-size", "512K").code == 0
    child = parse(vms / "child.avhd")
    assert (child.size, child.block_size) == (9 << 20, 512 << 10)
    less = cli("create", "less.avhd", "--parent", BASE, "--size", "1M")
    assert less.code == 64
    assert "smaller" in less.err
    assert not (vms / "less.avhd").exists()


@pytest.mark.parametrize("parent", ["fixed.vhd", "small-base.vhd", LEAF, "orphan.vhd"])
def test_a_child_of_any_kind_of_image_can_be_made(cli: Cli, vms: Path, lay: Lay, parent: str) -> None:
    lay("fixed.vhd", "small-base.vhd", "orphan.vhd")
    assert cli("create", "child.avhd", "--parent", parent).code == 0
    assert cli("info", "--json", "child.avhd").json["parent-name"] == parent
    if parent != "orphan.vhd":
        assert cli("compare", "--strict", "child.avhd", parent).code == 0
    assert vms.is_dir()


def test_a_child_in_another_folder_finds_its_parent_when_that_is_allowed(cli: Cli, vms: Path) -> None:
    (vms / "snapshots").mkdir()
    assert cli("create", "snapshots/child.avhd", "--parent", BASE).code == 0
    assert "--search" in cli("chain", "snapshots/child.avhd").refused()
    assert cli("chain", "snapshots/child.avhd", "--search", ".").code == 0


def test_a_path_map_puts_the_windows_path_into_a_child_and_finds_the_parent_by_it(cli: Cli, vms: Path) -> None:
    (vms / "snapshots").mkdir()
    child = "snapshots/child.avhd"
    assert cli("create", child, "--parent", BASE, "--parent-map", f"C:\\vms={vms}").code == 0
    locators = cli("info", "--json", child).json["header"]["parent-locators"]
    assert {entry["platform-code"]: entry["path"] for entry in locators} == {
        "W2ku": f"C:\\vms\\{BASE}",
        "W2ru": f"..\\{BASE}",
    }
    os.rename(BASE, "renamed.vhd")
    os.mkdir("moved")
    shutil.move("renamed.vhd", f"moved/{BASE}")
    assert cli("chain", child).code == 1
    for windows in ("C:\\vms", "c:\\VMS", "C:\\vms\\"):
        assert cli("chain", child, "--parent-map", f"{windows}=moved").code == 0
    assert cli("chain", child, "--parent-map", "D:\\vms=moved").code == 1


@pytest.mark.parametrize("pair", ["nonsense", "=x", "C:\\vms=", ""])
def test_a_path_map_that_is_no_pair_is_wrong_usage(cli: Cli, vms: Path, pair: str) -> None:
    before = snapshot(vms)
    for words in (["create", "new.vhd", "--parent", BASE], ["chain", LEAF], ["merge", LEAF], ["compare", BASE, BASE]):
        assert cli(*words, "--parent-map", pair).code == 64
    assert snapshot(vms) == before


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--size", "0"], "0"),
        (["--size", "1000"], "512"),
        (["--size", "3T"], "at most 2190433320960"),
        (["--size", "1M", "--block-size", "3M"], "power of two"),
        (["--size", "1M", "--block-size", "1G"], "power of two"),
    ],
)
def test_a_size_that_the_format_does_not_allow_is_told(cli: Cli, lay: Lay, options: list[str], said: str) -> None:
    folder = lay()
    done = cli("create", "new.vhd", *options)
    assert done.code in {1, 64}
    assert "Traceback" not in done.err
    assert said in done.err
    assert os.listdir(folder) == []


@pytest.mark.parametrize("name", WITH_VIEWS)
def test_a_raw_copy_is_the_view(cli: Cli, lay: Lay, name: str) -> None:
    folder = lay()
    done = cli("convert", "-O", "raw", FIXTURES / name, "new.img", "--json")
    assert done.code == 0
    assert snapshot(folder) == {"new.img": MANIFEST[name]["view_sha256"]}
    assert done.json["file-size"] == MANIFEST[name]["virtual_size"]


@pytest.mark.parametrize("kind", ["fixed", "dynamic"])
@pytest.mark.parametrize("name", WITH_VIEWS)
def test_a_converted_image_shows_the_view_and_keeps_every_rule(cli: Cli, lay: Lay, name: str, kind: str) -> None:
    path = lay() / "new.vhd"
    assert cli("convert", "-O", kind, FIXTURES / name, "new.vhd").code == 0
    assert os.listdir() == ["new.vhd"]
    assert cli("info", "--json", "new.vhd").json["disk-type"] == kind
    assert view_of(path) == MANIFEST[name]["view_sha256"]
    assert validate(path) == []
    assert cli("compare", "--strict", FIXTURES / name, "new.vhd").code == 0


@pytest.mark.parametrize("kind", ["raw", "fixed", "dynamic"])
def test_a_copy_of_a_large_empty_disk_takes_no_space(cli: Cli, lay: Lay, kind: str) -> None:
    path = lay() / "new"
    cli("create", "empty.vhd", "--size", "20G")
    assert cli("convert", "-O", kind, "empty.vhd", "new").code == 0
    assert path.stat().st_blocks * 512 < 1 << 20


def test_dynamic_is_the_kind_when_none_is_told(cli: Cli, vms: Path) -> None:
    done = cli("convert", LEAF, "new.vhd")
    assert done.code == 0
    for word in ("new.vhd", "dynamic"):
        assert word in done.out
    assert view_of(vms / "new.vhd") == MANIFEST[LEAF]["view_sha256"]


def test_a_raw_parent_is_part_of_what_is_converted_and_compared(cli: Cli, lay: Lay) -> None:
    folder = lay("raw-child.vhd", "raw-parent.img")
    given = ["--parent", "raw-parent.img"]
    assert "--parent" in cli("convert", "-O", "raw", "raw-child.vhd", "new.img").refused()
    assert cli("convert", "-O", "raw", "raw-child.vhd", "new.img", *given).code == 0
    assert snapshot(folder)["new.img"] == MANIFEST["raw-child.vhd"]["view_sha256"]
    assert cli("compare", "--strict", "raw-child.vhd", "new.img", *given).code == 0
    assert cli("compare", "raw-child.vhd", "raw-parent.img", *given).code == 1


def test_compare_tells_same_different_and_not_compared_apart(cli: Cli, vms: Path) -> None:
    cli("convert", "-O", "raw", LEAF, "view.img")
    same = cli("compare", LEAF, "view.img")
    assert (same.code, same.err) == (0, "")
    assert "same" in same.out
    with (vms / "view.img").open("r+b") as file:
        file.seek(2_000_001)
        file.write(b"x")
    other = cli("compare", LEAF, "view.img")
    assert (other.code, other.err) == (1, "")
    assert "2000001" in other.out
    assert cli("compare", LEAF, "nothing.img").refused(2)


@pytest.mark.parametrize("offset", [0, 511, 512, 4096, 65536, 4 << 20, MANIFEST[BASE]["virtual_size"] - 1])
def test_compare_finds_the_first_byte_that_differs(cli: Cli, vms: Path, offset: int) -> None:
    cli("convert", "-O", "raw", BASE, "view.img")
    raw = bytearray((vms / "view.img").read_bytes())
    raw[offset] ^= 0x80
    raw[-1] ^= 0x01
    (vms / "view.img").write_bytes(raw)
    for pair in ([BASE, "view.img"], ["view.img", BASE]):
        done = cli("compare", "--json", *pair)
        assert (done.code, done.json["equal"], done.json["first-difference"]) == (1, False, offset)


def test_disks_that_differ_in_size_alone_are_the_same_unless_strict(cli: Cli, vms: Path) -> None:
    size = MANIFEST[BASE]["virtual_size"]
    cli("convert", "-O", "raw", BASE, "view.img")
    os.truncate(vms / "view.img", size + 5120)
    loose, strict = (cli("compare", "--json", BASE, "view.img", *options) for options in ([], ["--strict"]))
    assert (loose.code, strict.code) == (0, 1)
    for done in (loose, strict):
        assert (done.json["size-a"], done.json["size-b"]) == (size, size + 5120)
        assert done.json["first-difference"] is None
    for options in ([], ["--strict"]):
        text = cli("compare", BASE, "view.img", *options).out
        assert str(size) in text
        assert str(size + 5120) in text
    with (vms / "view.img").open("r+b") as file:
        file.seek(size + 4000)
        file.write(b"x")
    assert cli("compare", "--json", BASE, "view.img").json["first-difference"] == size + 4000


def test_a_fixed_disk_of_four_tebibytes_is_made_read_and_converted(cli: Cli, lay: Lay) -> None:
    """Only tables have the bound of 2040 GiB; and what is hole is not read, or this would take an hour."""
    folder = lay()
    assert cli("create", "disk.vhd", "--type", "fixed", "--size", "4T").code == 0
    with (folder / "disk.vhd").open("r+b") as file:
        file.seek((3 << 40) + 4096)
        file.write(b"x" * 1000)
    assert cli("check", "disk.vhd").code == 0
    assert cli("info", "disk.vhd", "--json").json["virtual-size"] == 4 << 40
    assert cli("convert", "-O", "fixed", "disk.vhd", "copy.vhd").code == 0
    assert cli("convert", "-O", "raw", "disk.vhd", "copy.img").code == 0
    assert cli("compare", "disk.vhd", "copy.vhd").out == "they are the same\n"
    assert cli("compare", "disk.vhd", "copy.img").out == "they are the same\n"
    assert (folder / "copy.img").stat().st_blocks < 100
    refused = cli("convert", "-O", "dynamic", "disk.vhd", "new.vhd")
    assert (refused.code, "2040 GiB" in refused.err) == (1, True)
    assert cli("create", "dynamic.vhd", "--size", "4T").code == 64


def test_raw_files_are_compared_as_they_are(cli: Cli, lay: Lay) -> None:
    folder = lay()
    for name, content in {"a": b"", "b": bytes(1000), "c": b"x" * 1000, "d": b"x" * 1000}.items():
        (folder / name).write_bytes(content)
    assert cli("compare", "c", "d").code == 0
    assert cli("compare", "a", "b").code == 0
    assert cli("compare", "--strict", "a", "b").code == 1
    assert cli("compare", "b", "c").code == 1


@pytest.mark.parametrize("name", ["cut.vhd", "cut.avhd", "cut.VUD", "cut.vhdx", "cut.img", "cut"])
@pytest.mark.parametrize("content", [b"", bytes(300), bytes(40 << 10)])
def test_a_file_that_is_no_image_is_not_called_equal_to_one(cli: Cli, lay: Lay, name: str, content: bytes) -> None:
    folder = lay()
    assert cli("create", "zeros.vhd", "--size", "40K").code == 0
    (folder / name).write_bytes(content)
    is_raw = bool(content) and name in {"cut.img", "cut"}
    for pair, option in (((name, "zeros.vhd"), "-f"), (("zeros.vhd", name), "-F")):
        done = cli("compare", *pair)
        assert done.code == (0 if is_raw else 2)
        assert is_raw or f"{option} raw" in done.err
        told = cli("compare", *pair, option, "raw", "--json")
        assert (told.code, told.json["equal"], told.json["same-size"]) == (0, True, len(content) == 40 << 10)
        assert cli("compare", *pair, option, "vhd").code == 2


def test_the_sizes_of_raw_files_are_told_to_the_byte(cli: Cli, lay: Lay) -> None:
    folder = lay()
    (folder / "a").write_bytes(b"x" * 1000)
    (folder / "b").write_bytes((b"x" * 1000).ljust(1024, b"\0"))
    assert cli("compare", "a", "b").code == 0
    strict = cli("compare", "--strict", "--json", "a", "b")
    assert (strict.code, strict.json["size-a"], strict.json["size-b"]) == (1, 1000, 1024)


@pytest.mark.parametrize("bad", ["nothing", ".", "orphan.vhd", "image.vhdx", "broken.vhd"])
def test_what_cannot_be_compared_is_2_and_says_why(cli: Cli, vms: Path, lay: Lay, bad: str) -> None:
    lay("orphan.vhd")
    (vms / "image.vhdx").write_bytes(b"vhdxfile" + bytes(2000))
    raw = bytearray((vms / BASE).read_bytes())
    raw[600] ^= 1
    (vms / "broken.vhd").write_bytes(raw)
    for pair in ([BASE, bad], [bad, BASE], [bad, bad]):
        assert os.path.realpath(bad) in cli("compare", *pair).refused(2)
        assert os.path.realpath(bad) in cli("compare", "--json", "--strict", *pair).refused(2)
