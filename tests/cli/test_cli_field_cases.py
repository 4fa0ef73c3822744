"""Files as people met them: what other tools, a cut copy or an edit by hand have made of them."""

from __future__ import annotations

import os
import struct
import threading
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import numpy as np
import pytest

import vhdkit
from tests.cli.running import environment, spawn
from tests.plainbuild import ImageSpec, build, locator
from tests.plainvhd import DIFFERENCING, FIXED, FOOTER_CHECKSUM, HEADERS_LENGTH, SECTOR, seal
from vhdkit.corruption import Corruption
from vhdkit.findings import Level
from vhdkit.storage.memory import MemoryFolder

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.cli.running import Outcome

    Cli = Callable[..., Outcome]

BLOCK: Final = 64 << 10
PER_BLOCK: Final = BLOCK // SECTOR
TABLE: Final = HEADERS_LENGTH


def data(numbers: list[int], fill: int) -> dict[int, bytes]:
    return {number: bytes([fill, number % 251 + 1]) * (SECTOR // 2) for number in numbers}


BASE: Final = ImageSpec(size=8 * BLOCK, block_size=BLOCK, unique_id=b"base" * 4, sectors=data([0, 7, 200, 1023], 1))
CHILD: Final = replace(
    BASE,
    disk_type=DIFFERENCING,
    unique_id=b"leaf" * 4,
    parent_id=BASE.unique_id,
    parent_name="base.vhd",
    sectors=data([1, 300, 1022], 2),
    locators=(locator(0, b"W2ru", ".\\base.vhd"),),
)
FLAT: Final = ImageSpec(disk_type=FIXED, size=256 << 10, sectors=data([0, 1, 9, 511], 3))


def view(*specs: ImageSpec) -> bytes:
    """Return what a chain shows, leaf first, its base as large as its leaf."""
    shown = bytearray(specs[0].size)
    for spec in reversed(specs):
        for number, sector in spec.sectors.items():
            shown[number * SECTOR : (number + 1) * SECTOR] = sector
    return bytes(shown)


@pytest.fixture
def put(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Write files into a folder of their own and go there."""
    folder = tmp_path / "some vms"
    folder.mkdir()
    monkeypatch.chdir(folder)

    def write(**files: bytes) -> Path:
        for name, content in files.items():
            (folder / name.replace("_", ".")).write_bytes(content)
        return folder

    return write


def shows(cli: Cli, folder: Path, file: str, *options: str) -> bytes:
    """Return what convert makes of a file, which says on stderr what is wrong with it."""
    (folder / "view.raw").unlink(missing_ok=True)
    done = cli("convert", "-O", "raw", file, "view.raw", "--progress", "none", *options)
    assert done.code == 0, done.err
    return (folder / "view.raw").read_bytes()


# A table that was grown over zeros


def grown_over_zeros(spec: ImageSpec, entries: int) -> bytes:
    raw = bytearray(build(replace(spec, extra_entries=entries)))
    first = spec.size // spec.block_size
    raw[TABLE + 4 * first : TABLE + 4 * (first + entries)] = bytes(4 * entries)
    return bytes(raw)


def test_zeros_behind_the_last_entry_of_a_table_stop_no_reader(cli: Cli, put: Callable[..., Path]) -> None:
    folder = put(base_vhd=grown_over_zeros(BASE, 120), child_vhd=build(CHILD))
    assert shows(cli, folder, "base.vhd") == view(BASE)
    assert shows(cli, folder, "child.vhd") == view(CHILD, BASE)
    assert cli("check", "base.vhd").code == 0
    assert "block-beyond-disk" in cli("chain", "child.vhd").err
    assert cli("merge", "child.vhd", "--progress", "none").code == 0
    assert shows(cli, folder, "base.vhd") == view(CHILD, BASE)


def test_a_larger_disk_is_not_merged_over_entries_that_it_would_show(cli: Cli, put: Callable[..., Path]) -> None:
    larger = replace(CHILD, size=10 * BLOCK, sectors=data([1], 2))
    folder = put(base_vhd=grown_over_zeros(BASE, 2), child_vhd=build(larger))
    before = (folder / "base.vhd").read_bytes()
    merged = cli("merge", "child.vhd")
    assert (merged.code, "behind the disk's end" in merged.err) == (1, True)
    assert (folder / "base.vhd").read_bytes() == before
    assert cli("merge", "child.vhd", "--to", "new.vhd", "--progress", "none").code == 0


# Footers that are lost, differ, or lie elsewhere


@pytest.mark.parametrize("tail", ["cut", "zeros", "garbage"])
def test_a_lost_footer_is_an_error_that_can_be_read_and_mended(cli: Cli, put: Callable[..., Path], tail: str) -> None:
    spec = replace(BASE, sectors=data([0, 7, 200, 1000], 1))
    raw = build(spec)
    tails = {"cut": b"", "zeros": bytes(SECTOR), "garbage": b"\xc7" * SECTOR}
    folder = put(base_vhd=raw[:-SECTOR] + tails[tail])
    done = cli("check", "base.vhd")
    assert done.code == 2
    assert "footer-trailing-lost" in done.out
    assert "vhdkit check --repair-footers" in done.out
    assert "'" in next(line for line in done.out.splitlines() if "repair" in line)  # the folder has a blank
    assert "footer-trailing-lost" in cli("compare", "base.vhd", "base.vhd").err
    assert shows(cli, folder, "base.vhd") == view(spec)
    mended = cli("check", "--repair-footers", "base.vhd", "--json")
    assert (mended.code, "footer" in mended.json["repaired"]) == (0, True)
    assert (folder / "base.vhd").read_bytes()[-SECTOR:] == raw[-SECTOR:]
    assert shows(cli, folder, "base.vhd") == view(spec)
    assert cli("check", "--repair-footers", "base.vhd", "--json").json["repaired"] is None


def test_a_footer_that_differs_from_its_copy_is_an_error_that_is_mended(cli: Cli, put: Callable[..., Path]) -> None:
    raw = build(BASE)
    other = seal(raw[:24] + b"\1" + raw[25:SECTOR], FOOTER_CHECKSUM)
    folder = put(base_vhd=other + raw[SECTOR:])
    done = cli("check", "base.vhd")
    assert (done.code, "footer-copy-differs" in done.out) == (2, True)
    assert shows(cli, folder, "base.vhd") == view(BASE)
    assert cli("check", "--repair-footers", "base.vhd").code == 0
    assert (folder / "base.vhd").read_bytes() == raw


@pytest.mark.parametrize("tail", [b"\xc7" * SECTOR, bytes(SECTOR), b""])
def test_data_where_the_lost_footer_should_be_are_never_merged(cli: Cli, put: Callable[..., Path], tail: bytes) -> None:
    """The last sector of the leaf's data is gone, and what stands in its place is not known to be data."""
    leaf = build(replace(CHILD, sectors=data([1, 1023], 2)))
    cut = leaf[: -2 * SECTOR] + tail if tail else leaf[:-SECTOR]
    folder = put(base_vhd=build(BASE), child_vhd=cut)
    assert "block-in-footer" in cli("check", "child.vhd").out
    assert cli("check", "child.vhd").code == 2
    merged = cli("merge", "child.vhd")
    assert (merged.code, "block-in-footer" in merged.err) == (1, True)
    assert (folder / "child.vhd").read_bytes() == cut
    assert (folder / "base.vhd").read_bytes() == build(BASE)
    with pytest.raises(vhdkit.CorruptImageError):
        vhdkit.open_chain(str(folder / "child.vhd"), writable=True)
    assert "footer-trailing-lost" in cli("map", "child.vhd").err


@pytest.mark.parametrize("padding", [512, 5000, 1 << 20, 40 << 20])
def test_a_fixed_disk_whose_file_goes_on_behind_its_footer_is_read_and_mended(
    cli: Cli, put: Callable[..., Path], padding: int
) -> None:
    raw = build(FLAT)
    folder = put(disk_vhd=raw)
    os.truncate("disk.vhd", len(raw) + padding)
    done = cli("check", "disk.vhd")
    assert (done.code, "footer-misplaced" in done.out) == (2, True)
    assert shows(cli, folder, "disk.vhd") == view(FLAT)
    with pytest.raises(vhdkit.CorruptImageError):
        vhdkit.open_chain("disk.vhd", writable=True)
    assert cli("check", "--repair-footers", "disk.vhd").code == 0
    assert (folder / "disk.vhd").read_bytes() == raw


def test_no_repair_is_advised_of_an_image_that_is_too_damaged_for_it(cli: Cli, put: Callable[..., Path]) -> None:
    raw = build(replace(BASE, sectors=data([0, 7, 200, 1000], 1)))
    outside = entry(raw, 0, 0x7FFFFF)[:-SECTOR]
    folder = put(base_vhd=outside)
    done = cli("check", "base.vhd")
    assert (done.code, "footer-trailing-lost" in done.out, "block-outside-file" in done.out) == (2, True, True)
    assert "--repair-footers" not in done.out
    tried = cli("check", "--repair-footers", "base.vhd")
    assert (tried.code, "repaired" in tried.out) == (2, False)
    assert "block-outside-file" in tried.err
    assert (folder / "base.vhd").read_bytes() == outside


def test_data_behind_a_fixed_disks_footer_are_not_removed(cli: Cli, put: Callable[..., Path]) -> None:
    raw = build(FLAT) + bytes(9000) + b"x" + bytes(100)
    folder = put(disk_vhd=raw)
    done = cli("check", "--repair-footers", "disk.vhd")
    assert (done.code, "data lie behind" in done.err) == (2, True)
    assert (folder / "disk.vhd").read_bytes() == raw


def test_footers_that_a_guest_has_written_are_not_taken_for_a_disk_s() -> None:
    """Each says that it lies elsewhere; and a search among 40,000 of them ends soon."""
    footer = build(replace(FLAT, size=FLAT.size + (1 << 30), sectors={}))[-SECTOR:]
    folder = MemoryFolder({"/disk.vhd": footer * 40_000 + b"tail"})
    began = time.process_time()
    with pytest.raises(vhdkit.CorruptImageError) as caught:
        vhdkit.open_image("/disk.vhd", folder=folder)
    assert caught.value.corruption is Corruption.NOT_A_VHD
    assert time.process_time() - began < 20


def test_a_file_of_which_only_the_header_is_left_is_corrupt(cli: Cli, put: Callable[..., Path]) -> None:
    put(base_vhd=bytes(SECTOR) + build(BASE)[SECTOR:-SECTOR])
    done = cli("check", "base.vhd")
    assert (done.code, "footers-lost" in done.out) == (2, True)


# Parents


def test_a_parent_with_another_id_is_said_to_be_there_and_can_be_read(cli: Cli, put: Callable[..., Path]) -> None:
    folder = put(base_vhd=build(replace(BASE, unique_id=b"else" * 4)), child_vhd=build(CHILD))
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    for options in ([], ["--parent", "base.vhd"]):
        message = cli("chain", "child.vhd", *options).refused()
        assert message.startswith(f"vhdkit: {folder / 'child.vhd'}: {folder / 'base.vhd'} is there")
        assert "another id" in message
        assert "--ignore-id-mismatch" not in message
        assert "lost" in message
        assert "verbs that only read have --accept-id-mismatch" in message
    assert cli("check", "--chain", "child.vhd").code == 2
    done = cli("chain", "child.vhd", "--accept-id-mismatch")
    assert done.code == 0
    assert "parent-id-differs" in done.err
    assert shows(cli, folder, "child.vhd", "--accept-id-mismatch") == view(CHILD, BASE)
    assert cli("compare", "child.vhd", "view.raw", "--accept-id-mismatch").code == 0
    (folder / "view.raw").unlink()
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    with pytest.raises(ValueError, match="only be read"):
        vhdkit.open_chain("child.vhd", writable=True, accept_id_mismatch=True)
    assert cli("rebase", "child.vhd", "-b", "base.vhd", "--ignore-id-mismatch").code == 0
    assert shows(cli, folder, "child.vhd") == view(CHILD, BASE)


def test_the_right_id_is_preferred_to_an_accepted_one(put: Callable[..., Path]) -> None:
    put(base_vhd=build(replace(BASE, unique_id=b"else" * 4)), moved_vhd=build(BASE), child_vhd=build(CHILD))
    with vhdkit.open_chain("child.vhd", accept_id_mismatch=True) as chain:
        assert chain.layers[1].path.endswith("moved.vhd")


def test_rebase_takes_a_parent_that_was_made_larger(cli: Cli, put: Callable[..., Path]) -> None:
    folder = put(base_vhd=build(replace(BASE, size=16 * BLOCK)), child_vhd=build(CHILD))
    assert "parent-size" in cli("chain", "child.vhd").err
    (folder / "base.vhd").rename(folder / "moved.vhd")
    done = cli("rebase", "child.vhd", "-b", "moved.vhd")
    assert done.code == 0
    assert "its disk has" in done.err
    assert shows(cli, folder, "child.vhd") == view(CHILD, BASE)


@pytest.mark.parametrize(
    ("named", "mapped"),
    [
        ("\\\\?\\C:\\vms\\base.vhd", "C:\\vms"),
        ("\\\\?\\c:\\VMs\\base.vhd", "C:/vms/"),
        ("\\\\.\\C:\\vms\\base.vhd", "C:\\vms"),
        ("C:\\vms\\base.vhd", "\\\\?\\C:\\vms"),
        ("\\\\?\\UNC\\server\\share\\base.vhd", "\\\\server\\share"),
        ("\\\\?\\unc\\Server\\share\\x\\base.vhd", "\\\\?\\UNC\\server\\share\\x"),
        ("\\\\server\\share\\base.vhd", "\\\\?\\UNC\\server\\share\\"),
    ],
)
def test_every_form_of_a_windows_path_is_mapped(put: Callable[..., Path], named: str, mapped: str) -> None:
    child = replace(CHILD, parent_name=named, locators=(locator(0, b"W2ku", named),))
    folder = put(child_vhd=build(child))
    (folder / "there").mkdir()
    (folder / "there" / "base.vhd").write_bytes(build(BASE))
    with vhdkit.open_chain("child.vhd", parent_map={mapped: "there"}) as chain:
        assert chain.read(0, chain.size) == view(CHILD, BASE)


def test_a_header_that_was_edited_by_hand_is_taken_on_request(cli: Cli, put: Callable[..., Path]) -> None:
    raw = bytearray(build(replace(CHILD, parent_name="old.vhd", locators=(locator(0, b"W2ru", ".\\old.vhd"),))))
    text = "new.vhd".encode("utf-16-be")
    raw[SECTOR + 64 : SECTOR + 64 + len(text)] = text
    folder = put(new_vhd=build(BASE), child_vhd=bytes(raw))
    assert "--accept-header-checksum" in cli("rebase", "child.vhd", "-b", "new.vhd").refused()
    assert (folder / "child.vhd").read_bytes() == raw
    assert cli("rebase", "child.vhd", "-b", "new.vhd", "--accept-header-checksum").code == 0
    assert cli("check", "--chain", "child.vhd").code == 0
    assert shows(cli, folder, "child.vhd") == view(CHILD, BASE)


def test_a_header_with_other_damage_is_not_taken(cli: Cli, put: Callable[..., Path]) -> None:
    raw = bytearray(build(CHILD))
    raw[SECTOR + 28 : SECTOR + 32] = struct.pack(">I", 2)
    folder = put(base_vhd=build(BASE), child_vhd=bytes(raw))
    assert "bat-too-short" in cli("rebase", "child.vhd", "-b", "base.vhd", "--accept-header-checksum").refused()
    assert (folder / "child.vhd").read_bytes() == raw


def test_a_locator_with_letters_that_the_locale_lacks_ends_no_verb(put: Callable[..., Path]) -> None:
    named = replace(CHILD, parent_name="größe.vhd", locators=(locator(0, b"W2ru", ".\\größe.vhd"),))
    folder = put(child_vhd=build(named))
    env = environment(LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0")
    refused = spawn("chain", "child.vhd", cwd=folder, env=env)
    assert "codec" not in refused.err
    assert "locale" in refused.err
    (folder / "plain.vhd").write_bytes(build(BASE))
    for verb in ("chain", "info", "map"):
        done = spawn(verb, "child.vhd", cwd=folder, env=env)
        assert (done.code, "codec" in done.err) == (0, False), done.err
    assert spawn("check", "--chain", "child.vhd", cwd=folder, env=env).code == 0


# Blocks that lie on one another


def entry(raw: bytes, block: int, sector: int) -> bytes:
    return raw[: TABLE + 4 * block] + struct.pack(">I", sector) + raw[TABLE + 4 * block + 4 :]


def first_entry(raw: bytes) -> int:
    sector: int = struct.unpack_from(">I", raw, TABLE)[0]
    return sector


@pytest.mark.parametrize("is_leaf", [True, False])
@pytest.mark.parametrize("shift", [0, 1, PER_BLOCK])
def test_no_verb_gives_bytes_from_blocks_that_share_them(
    cli: Cli, put: Callable[..., Path], is_leaf: bool, shift: int
) -> None:
    leaf, base = build(CHILD), build(BASE)
    damaged = entry(leaf, 5, first_entry(leaf) + shift) if is_leaf else entry(base, 5, first_entry(base) + shift)
    put(child_vhd=damaged if is_leaf else leaf, base_vhd=base if is_leaf else damaged, good_raw=view(CHILD, BASE))
    chain = cli("chain", "child.vhd")
    assert (chain.code, "blocks-overlap" in chain.err) == (0, True)
    assert "blocks-overlap" in cli("info", "child.vhd" if is_leaf else "base.vhd").err
    assert cli("check", "--chain", "child.vhd").code == 2
    for verb in (
        ("map", "child.vhd"),
        ("map", "child.vhd", "--json"),
        ("convert", "child.vhd", "new.vhd"),
        ("convert", "-O", "raw", "child.vhd", "new.raw"),
        ("merge", "child.vhd", "--to", "new.vhd"),
        ("merge", "child.vhd"),
        ("snapshot", "init", "child.vhd"),
    ):
        done = cli(*verb)
        assert (done.code, "share bytes" in done.err) == (1, True), verb
        assert not any(os.path.exists(name) for name in ("new.vhd", "new.raw"))
    compared = cli("compare", "child.vhd", "good.raw")
    assert (compared.code, "share bytes" in compared.err) == (2, True)


def test_eight_thousand_entries_that_lead_to_one_block_end_at_once(cli: Cli, put: Callable[..., Path]) -> None:
    """104 KiB on disk, and 2,000,000,000 stretches: resolving them took hours."""
    block = 256 << 20
    spec = ImageSpec(size=8000 * block, block_size=block, sectors={0: b"x" * SECTOR})
    raw = bytearray(build(replace(spec, size=block, extra_entries=7999))[: 1 << 20])
    at = first_entry(bytes(raw)) * SECTOR
    raw[TABLE : TABLE + 4 * 8000] = np.full(8000, at // SECTOR, ">u4").tobytes()
    raw[at : at + block // SECTOR // 8] = b"\x55" * (block // SECTOR // 8)
    footer = bytearray(raw[:SECTOR])
    footer[48:56] = struct.pack(">Q", spec.size)
    sealed = seal(bytes(footer), FOOTER_CHECKSUM)
    folder = put(bomb_vhd=sealed + bytes(raw[SECTOR:]))
    with (folder / "bomb.vhd").open("r+b") as file:
        file.seek(at + block // SECTOR // 8 + block)
        file.write(sealed)
    began = time.process_time()
    for verb in (("map", "bomb.vhd"), ("convert", "bomb.vhd", "new.vhd")):
        assert "share bytes" in cli(*verb).refused()
    assert cli("compare", "bomb.vhd", "bomb.vhd").code == 2
    assert cli("check", "bomb.vhd").code == 2
    assert time.process_time() - began < 20


def test_a_damaged_layer_does_not_hide_the_others(cli: Cli, put: Callable[..., Path]) -> None:
    put(base_vhd=entry(build(BASE), 0, 0), child_vhd=build(CHILD))
    text = cli("chain", "child.vhd").refused()
    assert "block-in-headers" in text
    assert [line.split()[0] for line in text.splitlines() if line.startswith("  ")] == ["0", "1"]
    told = cli("chain", "child.vhd", "--json")
    assert (told.code, [layer["disk-type"] for layer in told.json["layers"]]) == (1, ["differencing", "dynamic"])
    assert "block-in-headers" in told.json["error"]
    info = cli("info", "base.vhd", "--json")
    assert (info.code, info.json["virtual-size"]) == (0, BASE.size)
    assert [item["rule"] for item in info.json["warnings"]] == ["block-in-headers"]


def test_check_deep_counts_the_sectors_that_hold_data_under_clear_bits(put: Callable[..., Path]) -> None:
    raw = bytearray(build(BASE))
    at = first_entry(bytes(raw)) * SECTOR + SECTOR
    raw[at + 10 * SECTOR : at + 50 * SECTOR] = b"x" * (40 * SECTOR)
    put(base_vhd=bytes(raw))
    report = vhdkit.check("base.vhd", deep=True)
    (found,) = (item for item in report.findings if item.corruption is Corruption.CLEAR_SECTOR_DATA)
    assert found.level is Level.WARNING
    assert "40 sectors" in found.message
    assert "the first is sector 10" in found.message


def test_merging_into_a_fixed_disk_speaks_of_no_blocks(cli: Cli, put: Callable[..., Path]) -> None:
    flat = replace(FLAT, size=BASE.size, unique_id=BASE.unique_id)
    put(base_vhd=build(flat), child_vhd=build(CHILD))
    assert "blocks" not in cli("merge", "child.vhd", "--dry-run").out
    assert "blocks" not in cli("merge", "child.vhd", "--progress", "none").out


# Merges and their undo images


def test_a_kept_undo_image_remembers_its_parent_as_it_is(cli: Cli, put: Callable[..., Path]) -> None:
    folder = put(base_vhd=build(BASE), child_vhd=build(CHILD))
    os.utime(folder / "base.vhd", (1e9, 1e9))
    assert cli("merge", "child.vhd", "--undo", "undo.vhd", "--progress", "none").code == 0
    looked = cli("check", "--chain", "base.vhd")
    assert "undo image of the merge into base.vhd [undo-image]" in looked.out
    assert "[siblings]" not in looked.out.replace("child.vhd [siblings]", "")
    assert "undo image of the merge into base.vhd" in cli("scan", ".").out
    assert cli("undo", "drop", "undo.vhd", "--keep-file").code == 0
    assert "parent-timestamp" not in cli("check", "--chain", "undo.vhd").out
    assert shows(cli, folder, "undo.vhd") == view(BASE)
    assert "undo image" not in cli("scan", ".").out


def test_the_room_of_an_unfinished_merge_is_not_lost_space(put: Callable[..., Path]) -> None:
    leaf = replace(CHILD, sectors=data([1, 300, 400, 500, 600], 2))
    put(base_vhd=build(BASE), child_vhd=build(leaf))
    cancel = threading.Event()

    def stop(at: vhdkit.Progress) -> None:
        if at.phase == vhdkit.Phase.COPYING:
            cancel.set()

    with pytest.raises(vhdkit.MergeCancelled):
        vhdkit.merge(vhdkit.plan_merge("child.vhd"), progress=stop, cancel=cancel)
    report = vhdkit.check("base.vhd")
    assert Corruption.MERGE_UNFINISHED in {item.corruption for item in report.findings}
    assert (report.exit_code, report.leaked_bytes) == (0, 0)
    os.remove("base.vhd.vhdkit-journal")
    assert vhdkit.check("base.vhd").exit_code == 3
