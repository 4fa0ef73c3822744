"""No input makes a verb take more than what it holds is worth: counted in calls and bytes, not in seconds."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import vhdkit
from tests.cli.running import environment
from tests.counting import CountingFolder
from tests.plainbuild import ImageSpec, build, locator
from tests.plainvhd import DIFFERENCING, SECTOR
from vhdkit.cli.output import print_json

if TYPE_CHECKING:
    from collections.abc import Callable


BLOCK = 8 * SECTOR
# What memory promises on hostile input (docs/reference/limits.md), in KiB as the kernel counts it.
LIMIT = 150 * 1024
CODES = {b"W2ru": "", b"MacX": "file://./", b"Wi2r": "", b"W2ku": "", b"Wi2k": ""}


def ident(number: int) -> bytes:
    return number.to_bytes(16, "big")


def image(number: int, parent: int = 0, **more: Any) -> bytes:
    spec = ImageSpec(size=BLOCK, block_size=BLOCK, unique_id=ident(number), **more)
    if parent:
        spec = replace(spec, disk_type=DIFFERENCING, parent_id=ident(parent))
    return build(spec)


def line(folder: Path, count: int) -> Path:
    """Write a chain of images that remember nothing of their parents but the id; return the leaf."""
    for number in range(1, count + 1):
        (folder / f"i{number}.vhd").write_bytes(image(number, number - 1))
    return folder / f"i{count}.vhd"


def merge_plan(path: str, folder: CountingFolder) -> None:
    vhdkit.plan_merge(path, folder=folder)


def opened(path: str, folder: CountingFolder) -> None:
    vhdkit.open_chain(path, folder=folder).close()


VERBS: dict[str, Callable[[str, CountingFolder], object]] = {
    "chain": opened,
    "check": lambda path, folder: vhdkit.check(path, chain=True, folder=folder),
    "scan": lambda path, folder: vhdkit.scan(os.path.dirname(path), folder=folder),
    "merge": merge_plan,
}


# Locators of thousands of components

PATHS = {
    "missing": lambda count: "a\\" * count + "p.vhd",
    "to and fro": lambda count: "x\\..\\" * (count // 2) + "p.vhd",
    "dots": lambda count: ".\\" * count + "x\\p.vhd",
    "in other case": lambda count: "X\\" * count + "p.vhd",
    "up": lambda count: "..\\" * count + "p.vhd",
    "into a file": lambda count: "base.vhd\\" * (count // 8) + "p.vhd",
}


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("kind", PATHS)
def test_a_path_of_thousands_of_components_is_asked_about_a_few_times(tmp_path: Path, kind: str, verb: str) -> None:
    asked = []
    for count in (20, 1300):
        folder = tmp_path / str(count)
        (folder / "x").mkdir(parents=True)
        (folder / "base.vhd").write_bytes(image(1))
        text = PATHS[kind](count)
        texts = {code: start + (text.replace("\\", "/") if start else text) for code, start in CODES.items()}
        locators = tuple(locator(slot, code, each[:4096]) for slot, (code, each) in enumerate(texts.items()))
        (folder / "leaf.avhd").write_bytes(image(2, 1, locators=locators))
        counting = CountingFolder()
        VERBS[verb](str(folder / "leaf.avhd"), counting)
        asked.append(counting.calls)
    few, many = asked
    # What exists of a path is found by halving.
    assert many["exists"] <= few["exists"] + 250
    assert many["reals"] <= few["reals"] + 30
    assert (many["opens"], many["walks"]) == (few["opens"], few["walks"])
    assert many["names"] <= few["names"] + 10


def test_a_path_in_other_case_is_followed_for_so_many_folders_and_no_more(tmp_path: Path) -> None:
    def found(depth: int) -> bool:
        folder = tmp_path / str(depth)
        deep = folder
        for _ in range(depth):
            deep /= "d"
        deep.mkdir(parents=True)
        (deep / "base.vhd").write_bytes(image(1))
        (folder / "leaf.avhd").write_bytes(image(2, 1, locators=(locator(0, b"W2ru", "D\\" * depth + "base.vhd"),)))
        try:
            vhdkit.open_chain(str(folder / "leaf.avhd")).close()
        except vhdkit.ParentNotFoundError:
            return False
        return True

    assert (found(1), found(60), found(100)) == (True, True, False)


# Parents that are found by id


@pytest.mark.parametrize("verb", VERBS)
def test_layers_that_are_found_by_id_cost_no_more_than_their_number(tmp_path: Path, verb: str) -> None:
    asked = []
    for count in (30, 300):
        folder = tmp_path / str(count)
        folder.mkdir()
        counting = CountingFolder()
        VERBS[verb](str(line(folder, count)), counting)
        asked.append(counting.calls)
    few, many = asked
    assert max(many[call] / few[call] for call in few) <= 10.5
    assert many["walks"] == few["walks"] <= 6


def test_a_folder_that_fills_while_a_chain_is_opened_is_looked_at_as_it_was(tmp_path: Path) -> None:
    leaf = line(tmp_path, 3)
    with vhdkit.open_chain(str(leaf)) as chain:
        assert [Path(layer.path).name for layer in chain.layers] == ["i3.vhd", "i2.vhd", "i1.vhd"]
    (tmp_path / "copy.vhd").write_bytes((tmp_path / "i1.vhd").read_bytes())
    with pytest.raises(vhdkit.ParentNotFoundError, match="one of several"):
        vhdkit.open_chain(str(leaf))


# Holes


def holes(path: Path, *, blocks: int, block_size: int) -> Path:
    """Write a dynamic image of which all blocks are there, and neither bitmaps nor data take space."""
    size = blocks * block_size
    raw = build(ImageSpec(size=size, block_size=block_size, unique_id=ident(1)))
    footer, table_at, start = raw[-SECTOR:], 1536, -(-(1536 + blocks * 4) // 4096) * 4096
    bitmap = -(-block_size // SECTOR // 8 // SECTOR) * SECTOR
    stride = bitmap + block_size
    with path.open("wb") as file:
        file.write(raw[:1536])
        file.seek(table_at)
        file.write(b"".join(((start + n * stride) // SECTOR).to_bytes(4, "big") for n in range(blocks)))
        file.seek(start + blocks * stride)
        file.write(footer)
    return path


def test_a_deep_check_reads_no_holes(tmp_path: Path) -> None:
    path = holes(tmp_path / "bomb.vhd", blocks=500, block_size=1 << 31)
    assert path.stat().st_blocks * 512 < 1 << 20
    counting = CountingFolder()
    vhdkit.check(str(path), deep=True, folder=counting)
    # Bitmaps are read, 512 KiB a block; the data, 1,000 GiB, are not.
    assert counting.calls["bytes"] < 500 * (1 << 20)


# Families that are deeper than Python's stack


def family(count: int) -> dict[str, Any]:
    record: dict[str, Any] = {"filename": "leaf", "children": []}
    for number in range(count):
        record = {"filename": f"i{number}", "odd": [], "none": None, "children": [record]}
    return record


@pytest.mark.parametrize(
    "value",
    [{}, [], None, "text", 1.5, {"a": {}}, [[], {}], {"a": [1, 2, {"b": [3]}], "c": "\ud800\n"}, family(30)],
    ids=lambda value: str(value)[:20].encode("ascii", "backslashreplace").decode(),
)
def test_json_is_what_pythons_encoder_writes(capsys: pytest.CaptureFixture[str], value: object) -> None:
    print_json(value)
    assert capsys.readouterr().out == json.dumps(value, indent=2) + "\n"


def test_json_of_a_deep_family_grows_with_its_members_only(capsys: pytest.CaptureFixture[str]) -> None:
    lengths = []
    for count in (1000, 10_000):
        print_json(family(count))
        lengths.append(len(capsys.readouterr().out))
    assert lengths[1] <= 11 * lengths[0]


@pytest.mark.thorough
@pytest.mark.parametrize("options", [[], ["--json"]], ids=["text", "json"])
def test_scan_tells_a_family_of_thousands_of_generations(tmp_path: Path, options: list[str]) -> None:
    line(tmp_path, 3200)
    out, peak = measured("scan", *options, str(tmp_path))
    assert out.count(".vhd") == 3200
    assert len(out) < 20 << 20
    assert peak < LIMIT


def measured(*arguments: str) -> tuple[str, int]:
    """Run the program; return what it prints and its peak of memory in KiB.

    The peak is the kernel's for this program alone: ru_maxrss starts at what the process that forked it had.
    """
    if not os.path.exists("/proc/self/status"):
        pytest.skip("the peak is read from Linux's /proc")
    program = (
        "import re, sys\n"
        "from vhdkit.cli.main import run\n"
        "code = run(sys.argv[1:])\n"
        "peak = re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1]\n"
        "print(f'{code} {peak}', file=sys.stderr)\n"
    )
    command = [sys.executable, "-c", program, *arguments]
    done = subprocess.run(command, check=True, capture_output=True, timeout=600, text=True, env=environment())
    found = re.fullmatch(r"0 (\d+)\s*", done.stderr)
    assert found is not None, done.stderr
    return done.stdout, int(found[1])


# Paths that are none


@pytest.mark.parametrize("text", ["a\0b", "\ud800"], ids=["NUL", "half a pair"])
@pytest.mark.parametrize("argument", ["search", "parent_map", "parent"])
def test_what_can_name_no_file_is_refused_by_the_arguments_name(tmp_path: Path, argument: str, text: str) -> None:
    leaf = line(tmp_path, 2)
    value = {"search": [text], "parent_map": {"C:\\vms": text}, "parent": text}[argument]
    with pytest.raises(ValueError, match=argument):
        vhdkit.open_chain(str(leaf), **{argument: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["b\0ase.vhd", "\0", "x\\\0\\base.vhd", "\ud800.vhd"])
def test_a_locator_that_can_name_no_file_is_passed_over(tmp_path: Path, text: str) -> None:
    (tmp_path / "base.vhd").write_bytes(image(1))
    (tmp_path / "leaf.avhd").write_bytes(image(2, 1, locators=(locator(0, b"W2ru", text),), parent_name=""))
    with vhdkit.open_chain(str(tmp_path / "leaf.avhd")) as chain:
        assert chain.layers[1].path == str(tmp_path / "base.vhd")
