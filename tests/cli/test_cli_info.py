"""info, chain, scan, map: what they tell agrees with the manifest and with the tests' own reader."""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from tests.cli.running import BASE, CHAIN, FIXTURES, LEAF, MANIFEST, MIDDLE, snapshot, view_of
from tests.plainbuild import ImageSpec, build
from tests.plainvhd import DIFFERENCING

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.cli.running import Outcome

    Cli = Callable[..., Outcome]
    Lay = Callable[..., Path]

IMAGES = sorted(name for name in MANIFEST if name != "raw-parent.img")
CHAINS = sorted(name for name in IMAGES if name not in {"orphan.vhd", "raw-child.vhd"})
INFO_TYPES: dict[str, type | tuple[type, ...]] = {
    "filename": str,
    "format": str,
    "virtual-size": int,
    "actual-size": int,
    "disk-type": str,
    "block-size": (int, type(None)),
    "unique-id": str,
    "parent-unique-id": (str, type(None)),
    "parent-name": (str, type(None)),
    "creator": str,
    "checksum-ok": bool,
    "backing-chain": list,
}
MAP_TYPES: dict[str, type | tuple[type, ...]] = {
    "start": int,
    "length": int,
    "depth": int,
    "present": bool,
    "zero": bool,
    "data": bool,
    "offset": (int, type(None)),
    "file": (str, type(None)),
}


def check_types(record: dict[str, Any], types: dict[str, type | tuple[type, ...]]) -> None:
    for key, kind in types.items():
        assert isinstance(record[key], kind), key
        assert not (isinstance(record[key], bool) and kind is int), key


@pytest.mark.parametrize("name", IMAGES)
def test_info_has_the_promised_keys_and_the_manifests_values(cli: Cli, name: str) -> None:
    record = cli("info", "--json", FIXTURES / name).json
    check_types(record, INFO_TYPES)
    assert record["filename"] == str(FIXTURES / name)
    assert record["format"] == "vhd"
    assert record["virtual-size"] == MANIFEST[name]["virtual_size"]
    assert record["file-size"] == MANIFEST[name]["file_size"]
    assert record["disk-type"] == MANIFEST[name]["disk_type"]
    assert record["checksum-ok"] is True


def test_info_tells_the_chain_below_leaf_first(cli: Cli, vms: Path) -> None:
    record = cli("info", "--json", LEAF).json
    assert [layer["filename"] for layer in record["backing-chain"]] == [str(vms / name) for name in CHAIN]
    ids = [layer["unique-id"] for layer in record["backing-chain"]]
    parents = [layer["parent-unique-id"] for layer in record["backing-chain"]]
    assert parents == [*ids[1:], None]
    assert record["unique-id"] == ids[0]
    assert record["parent-name"] == MIDDLE


def test_info_as_text_has_every_field_of_footer_and_header(cli: Cli) -> None:
    done = cli("info", FIXTURES / LEAF)
    record = cli("info", "--json", FIXTURES / LEAF).json
    assert done.code == 0
    for part in ("footer", "header"):
        for field in record[part]:
            if field != "parent-locators":
                assert f"{part}: {field} " in done.out
    for locator in record["header"]["parent-locators"]:
        assert locator["path"] in done.out


def test_info_with_backing_chain_tells_the_same_of_every_layer(cli: Cli) -> None:
    done = cli("info", "--backing-chain", FIXTURES / LEAF)
    assert done.code == 0
    for part in ("filename ", "unique-id ", "footer: timestamp ", "header: table-offset "):
        assert sum(line.startswith(part) for line in done.out.splitlines()) == len(CHAIN)
    assert sum(line.startswith("filename ") for line in cli("info", FIXTURES / LEAF).out.splitlines()) == 1


def test_info_of_an_image_without_its_parent_needs_no_parent_unless_asked_for_the_chain(cli: Cli) -> None:
    record = cli("info", "--json", FIXTURES / "orphan.vhd").json
    assert record["backing-chain"] == []
    assert "parent" in cli("info", "--json", "--backing-chain", FIXTURES / "orphan.vhd").refused()


def test_info_shows_a_damaged_header_that_reading_refuses(cli: Cli, vms: Path) -> None:
    raw = bytearray((vms / BASE).read_bytes())
    raw[512 + 1000] ^= 1
    (vms / BASE).write_bytes(raw)
    done = cli("info", "--json", BASE)
    assert (done.code, done.json["checksum-ok"]) == (0, False)
    assert "checksum" in cli("info", BASE).err
    assert "header-checksum" in cli("chain", BASE).refused()


def test_chain_tells_layers_leaf_first(cli: Cli, vms: Path) -> None:
    record = cli("chain", "--json", LEAF).json
    assert record["virtual-size"] == MANIFEST[LEAF]["virtual_size"]
    assert [layer["filename"] for layer in record["layers"]] == [str(vms / name) for name in CHAIN]
    assert [layer["disk-type"] for layer in record["layers"]] == ["differencing", "differencing", "dynamic"]
    lines = cli("chain", LEAF).out.splitlines()
    assert [line.split()[-1] for line in lines] == list(CHAIN)


def test_warnings_are_in_the_json_and_on_stderr_but_not_among_the_results(cli: Cli) -> None:
    name = FIXTURES / "no-trailing-footer.vhd"
    assert [entry["rule"] for entry in cli("chain", "--json", name).json["warnings"]] == ["footer-trailing-lost"]
    done = cli("chain", name)
    assert "warning" not in done.out
    assert "footer-trailing-lost" in done.err


def test_scan_sorts_the_fixtures_into_families(cli: Cli) -> None:
    record = cli("scan", "--json", FIXTURES).json
    assert sorted(record) == ["ambiguous", "bases", "duplicates", "orphans", "unfinished", "unreadable"]
    children: dict[str, str] = {}
    todo = list(record["bases"])
    while todo:
        image = todo.pop()
        for child in image["children"]:
            children[child["filename"]] = image["filename"]
            assert child["parent-unique-id"] == image["unique-id"]
            todo.append(child)
    folder = str(FIXTURES)
    expected = {f"{folder}/{n}": f"{folder}/{MANIFEST[n]['parent']}" for n in CHAINS if "parent" in MANIFEST[n]}
    assert children == expected
    assert sorted(image["filename"] for image in record["orphans"]) == [
        f"{folder}/orphan.vhd",
        f"{folder}/raw-child.vhd",
    ]


def test_scan_draws_children_below_their_parents_and_says_what_orphans_look_for(cli: Cli) -> None:
    done = cli("scan", FIXTURES)
    assert done.code == 0
    lines = done.out.splitlines()
    rows = [next(i for i, line in enumerate(lines) if f"{name}  " in line) for name in (BASE, MIDDLE, LEAF)]
    assert rows == list(range(rows[0], rows[0] + 3))
    columns = [line.index("web01") for line in lines[rows[0] : rows[2] + 1]]
    assert columns == sorted(set(columns))
    orphan = next(line for line in lines if "orphan.vhd" in line)
    assert cli("info", "--json", FIXTURES / "orphan.vhd").json["parent-unique-id"] in orphan


def test_scan_names_duplicates_and_what_does_not_parse_and_goes_on(cli: Cli, vms: Path) -> None:
    shutil.copy2(BASE, "copy.vhd")
    (vms / "rubbish.vhd").write_bytes(b"rubbish" * 1000)
    (vms / "empty.avhd").touch()
    (vms / "notes.txt").write_text("no image\n" * 200)
    before = snapshot(vms)
    record = cli("scan", "--json", ".").json
    assert sorted(entry["filename"] for entry in record["unreadable"]) == [f"{vms}/empty.avhd", f"{vms}/rubbish.vhd"]
    assert [sorted(entry["filenames"]) for entry in record["duplicates"]] == [[f"{vms}/copy.vhd", f"{vms}/{BASE}"]]
    text = cli("scan", ".").out
    for name in ("copy.vhd", "rubbish.vhd", "empty.avhd", *CHAIN):
        assert name in text
    assert "notes.txt" not in text
    assert snapshot(vms) == before


def test_a_shared_id_is_written_as_everywhere_else(cli: Cli, vms: Path) -> None:
    shutil.copy2(BASE, "copy.vhd")
    shown = cli("info", "--json", BASE).json["unique-id"]
    assert vms.is_dir()
    assert [entry["unique-id"] for entry in cli("scan", "--json", ".").json["duplicates"]] == [shown]
    assert shown in cli("scan", ".").out


def test_scan_of_a_folder_without_images_says_so(cli: Cli, tmp_path: Path) -> None:
    done = cli("scan", tmp_path)
    assert done.code == 0
    assert "no images" in done.out


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_scan_tells_a_chain_that_is_deeper_than_pythons_stack(cli: Cli, tmp_path: Path, options: list[str]) -> None:
    for number in range(1024):
        spec = ImageSpec(size=4096, block_size=4096, unique_id=(number + 1).to_bytes(16, "big"))
        if number:
            spec = replace(spec, disk_type=DIFFERENCING, parent_id=number.to_bytes(16, "big"))
        (tmp_path / f"layer{number:04}.vhd").write_bytes(build(spec))
    done = cli("scan", tmp_path, *options)
    assert (done.code, done.err) == (0, "")
    assert done.out.count("layer") == 1024
    assert "children" in done.out or done.out.splitlines()[1024].startswith("    " * 1023 + "└── ")


def test_scan_joins_families_across_search_folders(cli: Cli, vms: Path, tmp_path: Path) -> None:
    (tmp_path / "bases").mkdir()
    (vms / BASE).rename(tmp_path / "bases" / BASE)
    orphans = cli("scan", "--json", ".").json["orphans"]
    assert [image["filename"] for image in orphans] == [f"{vms}/{MIDDLE}"]
    record = cli("scan", "--json", ".", "--search", tmp_path / "bases").json
    assert record["orphans"] == []
    assert record["bases"][0]["children"][0]["filename"] == f"{vms}/{MIDDLE}"


@pytest.mark.parametrize("name", CHAINS)
def test_a_map_covers_the_disk_and_its_extents_hold_the_view(cli: Cli, name: str) -> None:
    record = cli("map", "--json", FIXTURES / name).json
    layers = cli("chain", "--json", FIXTURES / name).json["layers"]
    view, end = hashlib.sha256(), 0
    for here in record:
        check_types(here, MAP_TYPES)
        assert here["start"] == end
        assert here["data"] is here["present"] is not here["zero"]
        end += here["length"]
        if not here["data"]:
            assert here["offset"] is here["file"] is None
            view.update(bytes(here["length"]))
            continue
        assert here["file"] == layers[here["depth"]]["filename"]
        with open(here["file"], "rb") as file:
            file.seek(here["offset"])
            view.update(file.read(here["length"]))
    assert end == MANIFEST[name]["virtual_size"]
    assert view.hexdigest() == MANIFEST[name]["view_sha256"]


def test_a_map_as_text_has_one_line_for_each_extent(cli: Cli) -> None:
    record = cli("map", "--json", FIXTURES / LEAF).json
    head, *lines = cli("map", FIXTURES / LEAF).out.splitlines()
    assert head.split() == ["start", "length", "depth", "content", "offset", "file"]
    assert [int(line.split()[0]) for line in lines] == [here["start"] for here in record]
    assert {line.split()[3] for line in lines} == {"data", "zero"}


@pytest.mark.parametrize("verb", ["info", "chain", "map"])
def test_a_raw_parent_is_read_when_it_is_named(cli: Cli, verb: str) -> None:
    child, parent = FIXTURES / "raw-child.vhd", FIXTURES / "raw-parent.img"
    done = cli(verb, "--json", child, "--parent", parent)
    assert done.code == 0
    assert str(parent) in done.out


def test_the_manifest_and_the_tests_own_reader_agree() -> None:
    assert view_of(*(FIXTURES / name for name in CHAIN)) == MANIFEST[LEAF]["view_sha256"]
