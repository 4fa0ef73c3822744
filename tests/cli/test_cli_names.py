"""Names: odd ones work, hostile ones do not reach the terminal, and it does not matter where one stands."""

from __future__ import annotations

import os
import shutil
import sys
from typing import TYPE_CHECKING

import pytest

from tests.cli.running import BASE, CHAIN, FIXTURES, LEAF, MANIFEST, MIDDLE, environment, spawn, view_of
from tests.plainbuild import ImageSpec, build, locator
from tests.plainvhd import DIFFERENCING, SECTOR

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.cli.running import Outcome

    Cli = Callable[..., Outcome]
    Lay = Callable[..., Path]

ODD = [
    "with space",
    "é",
    "e\u0301",
    "日本",
    "new\nline",
    "-dash",
    "--json",
    "tab\there",
    "[red]markup[bold]",
    ":smile:",
    "100%s{0}",
    "quo'te\"",
    "back\\slash",
    "C:\\vms",
    "\x1b[31mred",
    *([os.fsdecode(b"\xff\xfe")] if sys.platform == "linux" else []),  # macOS takes UTF-8 only
    "x" * 120,
]
HOSTILE = "\x1b]0;owned\x07\nvhdkit: all is well\r\u202e"


def is_clean(text: str) -> bool:
    """Whether nothing in a program's output can move a cursor or change a terminal."""
    return all(c.isprintable() or c == "\n" for c in text)


@pytest.mark.parametrize("name", ODD, ids=ascii)
def test_any_name_works_with_every_verb(cli: Cli, lay: Lay, name: str) -> None:
    folder = lay()
    base, child, copy = f"{name}.vhd", f"{name} child.avhd", f"{name}.img"
    assert cli("create", "--size", "1M", "--block-size", "64K", "--", base).code == 0
    made = cli("create", f"--parent={base}", "--json", "--", child)
    assert made.json["filename"] == child
    for verb in ("info", "chain", "map"):
        text, json = cli(verb, "--", child), cli(verb, "--json", "--", child)
        assert (text.code, json.code) == (0, 0)
        assert is_clean(text.out + text.err)
        assert json.json
    layers = cli("chain", "--json", "--", child).json["layers"]
    assert [layer["filename"] for layer in layers] == [str(folder / child), str(folder / base)]
    assert cli("convert", "-O", "raw", "--", child, copy).code == 0
    assert cli("compare", "--", child, copy).code == 0
    trees = cli("scan", "--json", ".").json["bases"]
    assert [(tree["filename"], tree["children"][0]["filename"]) for tree in trees] == [
        (str(folder / base), str(folder / child))
    ]
    assert is_clean(cli("scan", ".").out)
    assert cli("merge", "--dry-run", f"--into={base}", "--", child).code == 0
    assert cli("merge", f"--to={name}.new", "--", child).code == 0
    done = cli("merge", "--", child)
    assert done.code == 0
    assert is_clean(done.out + done.err)
    assert sorted(os.listdir()) == sorted([base, copy, f"{name}.new"])


def test_names_keep_their_meaning_in_a_process(vms: Path) -> None:
    for number, name in enumerate(CHAIN):
        (vms / name).rename(vms / f"-é {number}\n.vhd")
    child = "-é 0\n.vhd"
    done = spawn("merge", "--json", "--into", "./-é 2\n.vhd", "--", child, cwd=vms)
    assert done.code == 0
    assert done.json["removed"] == [f"{vms}/-é {number}\n.vhd" for number in (0, 1)]
    assert view_of(vms / "-é 2\n.vhd") == MANIFEST[LEAF]["view_sha256"]


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
def test_names_that_the_terminals_encoding_lacks_stop_nothing(vms: Path, encoding: str) -> None:
    """A merge that is done must not be told as failed because its summary cannot be printed."""
    (vms / "日本 Ж").mkdir()
    for name in CHAIN:
        (vms / name).rename(vms / "日本 Ж" / name)
    env = environment(PYTHONIOENCODING=encoding, PYTHONUTF8="0")
    for words in (["scan", "日本 Ж"], ["map", f"日本 Ж/{LEAF}"], ["merge", f"日本 Ж/{LEAF}"]):
        done = spawn(*words, cwd=vms, env=env)
        assert (done.code, "codec" in done.err) == (0, False), done.err
        assert LEAF in done.out


def family(folder: Path, *, sizes: tuple[int, int] = (8, 8), word: str = HOSTILE) -> tuple[str, str]:
    """Lay a child and its parent, every name and path in them hostile."""
    base, child = f"base{word}.vhd", f"child{word}.avhd"
    spec = ImageSpec(size=sizes[0] * SECTOR, block_size=8 * SECTOR, unique_id=b"p" * 16, creator_app=b"\x1b[5m")
    (folder / base).write_bytes(build(spec))
    over = ImageSpec(
        disk_type=DIFFERENCING,
        size=sizes[1] * SECTOR,
        block_size=8 * SECTOR,
        unique_id=b"c" * 16,
        parent_id=b"p" * 16,
        parent_name=base,
        creator_app=b"\x1b[5m",
        parent_timestamp=12345,
        sectors={0: b"x" * SECTOR},
        locators=(locator(0, b"W2ku", f"C:\\vms{word}\\{base}"), locator(1, b"W2ru", f".\\{base}")),
    )
    (folder / child).write_bytes(build(over))
    return base, child


def check_clean(done: Outcome, *, code: int) -> None:
    assert done.code == code, (done.out, done.err)
    assert "Traceback" not in done.err
    assert is_clean(done.out + done.err), repr(done.out + done.err)
    assert not [line for line in (done.out + done.err).splitlines() if line.startswith("vhdkit: all is well")]


@pytest.mark.parametrize("verb", [["info"], ["info", "--backing-chain"], ["chain"], ["map"], ["merge", "--dry-run"]])
@pytest.mark.parametrize("sizes", [(8, 8), (8, 16)])
def test_hostile_names_reach_the_terminal_escaped(cli: Cli, lay: Lay, verb: list[str], sizes: tuple[int, int]) -> None:
    _, child = family(lay(), sizes=sizes)
    check_clean(cli(*verb, child), code=0)


@pytest.mark.parametrize("sizes", [(8, 8), (8, 16)])
def test_a_merge_of_hostile_names_tells_them_escaped(cli: Cli, lay: Lay, sizes: tuple[int, int]) -> None:
    _, child = family(lay(), sizes=sizes)
    check_clean(cli("merge", child), code=0)


def test_a_scan_tells_hostile_names_escaped(cli: Cli, lay: Lay) -> None:
    folder = lay()
    base, child = family(folder)
    shutil.copy(base, f"copy{HOSTILE}.vhd")
    (folder / f"rubbish{HOSTILE}.vhd").write_bytes(b"rubbish" * 1000)
    orphan = ImageSpec(disk_type=DIFFERENCING, size=SECTOR, parent_id=b"o" * 16, parent_name=HOSTILE)
    (folder / f"orphan{HOSTILE}.vhd").write_bytes(build(orphan))
    check_clean(cli("scan", "."), code=0)
    os.remove(base)
    check_clean(cli("chain", child), code=0)
    os.remove(f"copy{HOSTILE}.vhd")
    check_clean(cli("chain", child), code=1)
    check_clean(cli("scan", "."), code=0)


def test_refusals_tell_hostile_names_escaped(cli: Cli, lay: Lay) -> None:
    folder = lay()
    base, child = family(folder)
    other = f"other{HOSTILE}.vhd"
    cli("create", other, "--size", "1M")
    check_clean(cli("chain", child, "--parent", other), code=1)
    check_clean(cli("chain", other, "--parent", base), code=1)
    check_clean(cli("merge", child, "--into", other), code=1)
    check_clean(cli("merge", child, "--to", other), code=1)
    check_clean(cli("merge", other), code=1)
    check_clean(cli("compare", child, f"nothing{HOSTILE}"), code=2)
    check_clean(cli("convert", child, other), code=1)
    cli("create", f"sibling{HOSTILE}.avhd", "--parent", base)
    check_clean(cli("merge", child), code=1)
    check_clean(cli("merge", child, "--dry-run"), code=1)


def test_refusals_over_sizes_tell_hostile_names_escaped(cli: Cli, lay: Lay) -> None:
    _, child = family(lay(), sizes=(16, 8))
    check_clean(cli("merge", child), code=1)


def test_wrong_usage_tells_hostile_words_escaped(cli: Cli, vms: Path) -> None:
    assert vms.is_dir()
    for words in (
        [HOSTILE],
        ["info", HOSTILE, HOSTILE],
        ["create", "x", "--size", HOSTILE],
        ["chain", LEAF, "--parent-map", HOSTILE],
        ["chain", LEAF, f"--{HOSTILE}"],
        ["convert", "-O", HOSTILE, LEAF, "x"],
    ):
        done = cli(*words)
        assert done.code == 64
        assert "\x1b" not in done.err
        assert "\x07" not in done.err


@pytest.mark.parametrize("where", ["vms", ".", "vms/below", "elsewhere"])
def test_it_does_not_matter_where_one_stands(
    cli: Cli, vms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    (tmp_path / where).mkdir(exist_ok=True)
    monkeypatch.chdir(tmp_path / where)
    path = os.path.relpath(vms)
    assert [layer["filename"] for layer in cli("chain", "--json", f"{path}/{LEAF}").json["layers"]] == [
        str(vms / name) for name in CHAIN
    ]
    assert cli("merge", f"{path}/{LEAF}", "--into", f"{path}/{BASE}").code == 0
    assert view_of(vms / BASE) == MANIFEST[LEAF]["view_sha256"]


def test_a_link_to_an_image_is_followed_to_its_family(cli: Cli, vms: Path, tmp_path: Path) -> None:
    (tmp_path / "link.avhd").symlink_to(vms / LEAF)
    layers = cli("chain", "--json", "../link.avhd").json["layers"]
    assert [layer["filename"] for layer in layers] == [str(vms / name) for name in CHAIN]


def test_a_renamed_parent_is_found_by_its_id_and_a_warning_says_so(cli: Cli, vms: Path) -> None:
    (vms / BASE).rename(vms / "renamed.vhd")
    done = cli("chain", LEAF)
    assert done.code == 0
    assert "renamed.vhd" in done.out
    assert "renamed.vhd" in done.err
    assert cli("merge", MIDDLE).code == 0
    assert view_of(vms / LEAF, vms / "renamed.vhd") == MANIFEST[LEAF]["view_sha256"]


def test_search_folders_are_looked_through_below_as_well(cli: Cli, vms: Path, tmp_path: Path) -> None:
    far = tmp_path / "store" / "deep" / "er"
    far.mkdir(parents=True)
    shutil.move(BASE, far / "renamed.vhd")
    assert cli("chain", LEAF).code == 1
    for verb in ("chain", "map", "info"):
        done = cli(verb, "--json", LEAF, "--search", ".", "--search", "../store")
        assert done.code == 0
        assert str(far / "renamed.vhd") in done.out
    assert cli("compare", LEAF, FIXTURES / LEAF, "--search", "../store").code == 0
    assert cli("merge", LEAF, "--into", far / "renamed.vhd", "--search", "../store").code == 0
    assert view_of(far / "renamed.vhd") == MANIFEST[LEAF]["view_sha256"]
    assert os.listdir(vms) == []


@pytest.mark.parametrize("verb", ["info", "chain", "map", "merge"])
def test_a_parent_given_by_name_is_taken_for_the_layer_that_it_fits(
    cli: Cli, vms: Path, tmp_path: Path, verb: str
) -> None:
    shutil.move(BASE, tmp_path / "other.name")
    assert str(vms) in cli("chain", LEAF).refused()
    options = ["--dry-run"] if verb == "merge" else []
    assert cli(verb, "--json", LEAF, *options, "--parent", "../other.name").code == 0
