from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.cli.running import BASE, CHAIN, LEAF, snapshot

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.cli.running import Outcome

    Cli = Callable[..., Outcome]


def damage(path: Path, offset: int, new: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset if offset >= 0 else path.stat().st_size + offset)
        file.write(new)


def table_of(path: Path) -> int:
    return int.from_bytes(path.read_bytes()[512 + 16 : 512 + 24], "big")


def test_a_sound_image_is_clean_and_left_alone(cli: Cli, vms: Path) -> None:
    before = snapshot(vms)
    done = cli("check", LEAF)
    assert (done.code, done.err) == (0, "")
    assert done.out.splitlines()[-1].startswith(f"{LEAF}: clean: 0 errors, ")
    assert snapshot(vms) == before


def test_a_sound_chain_is_clean(cli: Cli, vms: Path) -> None:
    done = cli("check", "--chain", "--deep", LEAF, "--json")
    assert done.code == 0
    assert done.json["files"] == [str(vms / name) for name in CHAIN]
    assert (done.json["check-errors"], done.json["corruptions"], done.json["leaks"]) == (0, 0, 0)
    assert done.json["filename"] == LEAF
    assert not [item for item in done.json["findings"] if item["level"] == "error"]


def test_an_error_is_one_line_with_its_place_and_name(cli: Cli, vms: Path) -> None:
    damage(vms / BASE, table_of(vms / BASE), bytes(4))
    done = cli("check", BASE)
    assert done.code == 2
    assert done.err == ""
    line = next(line for line in done.out.splitlines() if line.startswith("error: "))
    assert line.startswith(f"error: {BASE} at 0x0: block 0 lies at 0x0, ")
    assert line.endswith(" [block-in-headers]")
    assert done.out.splitlines()[-1].startswith(f"{BASE}: corrupt: ")


def test_an_error_below_is_found_with_chain_only(cli: Cli, vms: Path) -> None:
    damage(vms / BASE, table_of(vms / BASE), bytes(4))
    assert cli("check", LEAF).code == 0
    done = cli("check", "--chain", LEAF)
    assert done.code == 2
    assert f"error: {BASE} at 0x0" in done.out
    assert "(3 files): corrupt" in done.out


def test_a_chain_whose_parent_is_missing_could_not_be_checked(cli: Cli, lay: Callable[..., Path]) -> None:
    lay(LEAF)
    done = cli("check", "--chain", LEAF, "--json")
    assert done.code == 1
    assert [item["corruption"] for item in done.json["findings"] if item["level"] == "error"] == ["parent-not-found"]
    assert (done.json["corruptions"], done.json["check-errors"]) == (0, 1)


@pytest.mark.parametrize("raw", [b"", bytes(512), b"raw " * 5000, b"vhdxfile" + bytes(70000), b"QFI\xfb" + bytes(600)])
def test_what_is_no_vhd_at_all_could_not_be_checked(cli: Cli, tmp_path: Path, raw: bytes) -> None:
    (tmp_path / "x.vhd").write_bytes(raw)
    done = cli("check", str(tmp_path / "x.vhd"))
    assert done.code == 1
    assert "could not be checked" in done.out


def test_json_has_every_finding_whole(cli: Cli, vms: Path) -> None:
    damage(vms / BASE, -512 + 64, b"\0\0\0\0")
    done = cli("check", BASE, "--json")
    found = next(item for item in done.json["findings"] if item["corruption"] == "footer-trailing-lost")
    assert set(found) == {"corruption", "level", "path", "offset", "message"}
    assert found["level"] == "error"
    assert found["path"] == str(vms / BASE)
    assert found["offset"] == (vms / BASE).stat().st_size - 512
    assert done.code == 2
    assert done.json["corruptions"] >= 1


def test_lost_space_has_a_code_of_its_own(cli: Cli, vms: Path) -> None:
    raw = (vms / BASE).read_bytes()
    (vms / BASE).write_bytes(raw[:-512] + bytes(1 << 20) + raw[-512:])
    done = cli("check", BASE)
    assert done.code == 3
    assert "sound, but space is lost" in done.out
    assert cli("check", BASE, "--json").json["leaked-bytes"] >= 1 << 20


@pytest.mark.parametrize("name", ["nowhere.vhd", "."])
def test_what_cannot_be_opened_could_not_be_checked(cli: Cli, vms: Path, name: str) -> None:
    assert vms.is_dir()
    assert cli("check", name).refused(1)


def test_another_format_could_not_be_checked(cli: Cli, vms: Path) -> None:
    (vms / "x.vhdx").write_bytes(b"vhdxfile" + bytes(70000))
    done = cli("check", "x.vhdx")
    assert (done.code, done.err) == (1, "")
    assert "VHDX" in done.out
    assert cli("check", "x.vhdx", "--json").json["check-errors"] == 1


def test_options_about_parents_need_the_chain(cli: Cli, vms: Path) -> None:
    done = cli("check", LEAF, "--search", vms)
    assert (done.code, done.out) == (64, "")
    assert "--chain" in done.err
    assert cli("check", LEAF, "--chain", "--search", vms).code == 0


def test_names_in_an_image_cannot_paint_the_terminal(cli: Cli, vms: Path) -> None:
    damage(vms / LEAF, 512 + 64, "\x1b[31mred".encode("utf-16-be") + b"\0\0")
    done = cli("check", LEAF)
    assert "\x1b" not in done.out
