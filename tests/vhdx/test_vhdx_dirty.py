"""No verb shows stale bytes of a file whose log was not replayed, its own or a parent's; and none changes a file."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import pytest

import vhdkit
from tests import plainvhdx
from tests.plainvhd import flat, parse
from tests.plainvhdx import FULL, PARTIAL, ZERO, Disk, linked
from tests.vhdx.test_vhdx_corpus import READ, ROWS, files_of
from tests.vhdx_chains import left_dirty

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.cli.running import Outcome

    Cli = Callable[..., Outcome]

MIB: Final = 1 << 20
A, B, C = b"a" * 16, b"b" * 16, b"c" * 16
LAYERS: Final = {
    "base.vhdx": Disk(size=4 * MIB, data_id=A, blocks={1: (FULL, b"\x77" * MIB), 3: (FULL, b"\x55" * MIB)}),
    "child.avhdx": Disk(
        size=4 * MIB,
        data_id=B,
        texts=linked(A, relative="base.vhdx"),
        blocks={0: (PARTIAL, {9: b"\x99" * 512}), 3: (ZERO, b"")},
    ),
    "leaf.avhdx": Disk(
        size=4 * MIB,
        data_id=C,
        texts=linked(B, relative="child.avhdx"),
        blocks={1: (PARTIAL, {0: b"\x11" * 512, 2047: b"\x22" * 512})},
    ),
}
CLEAN: Final = {name: plainvhdx.write(disk) for name, disk in LAYERS.items()}
DIRTY: Final = {name: left_dirty(disk) for name, disk in LAYERS.items()}
VIEW: Final = plainvhdx.read(list(CLEAN.values())[::-1])
# What each verb prints of the files, or makes of them; `info` tells of the log as well.
VERBS: Final = (
    "chain leaf.avhdx",
    "scan .",
    "map leaf.avhdx",
    "map --json leaf.avhdx",
    "hash --layers leaf.avhdx",
    "compare leaf.avhdx child.avhdx",
    "compare --json leaf.avhdx base.vhdx",
    "compare -F raw leaf.avhdx view.raw",
    "convert -O raw leaf.avhdx new",
    "convert -O fixed leaf.avhdx new.vhd",
    "convert leaf.avhdx new.vhd",
    "merge leaf.avhdx --to new.vhd",
    "info --json leaf.avhdx",
    "info --backing-chain leaf.avhdx",
    "check --chain --deep --json leaf.avhdx",
)


def laid(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    (folder / "view.raw").write_bytes(VIEW)
    return folder


def said(cli: Cli, folder: Path, line: str, patch: pytest.MonkeyPatch) -> tuple[int, str, bytes]:
    """What a verb answers, and the disk that it makes."""
    patch.chdir(folder)
    before = {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.iterdir()}
    done = cli(*line.split())
    for name, (content, changed) in before.items():
        assert ((folder / name).read_bytes(), (folder / name).stat().st_mtime_ns) == (content, changed)
    made = [path for path in folder.iterdir() if path.name not in before]
    content = b""
    for path in made:
        raw = path.read_bytes()
        content = flat([parse(raw)]).tobytes() if path.suffix == ".vhd" else raw
        path.unlink()
    return done.code, done.out.replace(str(folder), "FOLDER"), content


@pytest.mark.parametrize("line", VERBS)
@pytest.mark.parametrize("names", [["leaf.avhdx"], ["base.vhdx"], list(LAYERS)], ids=["leaf", "base", "all"])
def test_a_verb_says_of_dirty_files_what_it_says_of_clean_ones(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, names: list[str]
) -> None:
    clean = said(cli, laid(tmp_path / "clean", CLEAN), line, monkeypatch)
    files = CLEAN | {name: DIRTY[name] for name in names}
    dirty = said(cli, laid(tmp_path / "dirty", files), line, monkeypatch)
    assert dirty[0] == clean[0]
    assert without_log(dirty[1]) == without_log(clean[1])
    if "new" in line:
        assert dirty[2] == VIEW


def without_log(text: str) -> Any:
    """What a verb says of files apart from their logs."""
    try:
        return plain(json.loads(text))
    except json.JSONDecodeError:
        return [line for line in text.splitlines() if "log" not in line.lower() and "took " not in line]


def plain(value: Any) -> Any:
    """JSON without what is said of logs, and of the space that files take."""
    if isinstance(value, dict):
        left_out = {"actual-size", "warnings"}
        return {key: plain(each) for key, each in value.items() if "log-" not in key and key not in left_out}
    if isinstance(value, list):
        return [plain(each) for each in value if not (isinstance(each, dict) and "log" in each.get("corruption", ""))]
    return value


def test_a_stream_and_a_reader_in_python_show_what_the_log_says(tmp_path: Path) -> None:
    folder = laid(tmp_path / "vms", DIRTY)
    with vhdkit.open_chain(folder / "leaf.avhdx") as chain:
        assert chain.open_stream().read() == VIEW
        assert chain.read(0, chain.size) == VIEW
    with vhdkit.open_image(folder / "base.vhdx") as image:
        assert image.resolve(0, image.size).total == 4 * MIB
    assert {name: (folder / name).read_bytes() for name in DIRTY} == DIRTY


def test_pages_that_the_log_zeroes_are_zeros_for_every_verb(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A log may hold zeros for payload: nothing that is copied file to file is stale then."""
    disk = replace(LAYERS["base.vhdx"], log_guid=b"L" * 16)
    log = plainvhdx.log_entry(b"L" * 16, 5, 0, [(4 * MIB + 8192, 65536), (5 * MIB, b"\x44" * 4096)])
    raw = plainvhdx.write(replace(disk, log=log))
    expected = plainvhdx.read([raw])
    assert expected != plainvhdx.read([CLEAN["base.vhdx"]])
    folder = laid(tmp_path / "vms", {"d.vhdx": raw})
    for line in (line for line in VERBS if "new" in line):
        assert said(cli, folder, line.replace("leaf.avhdx", "d.vhdx"), monkeypatch)[2] == expected
    assert said(cli, folder, "hash d.vhdx", monkeypatch)[1].split()[0] == hashlib.sha256(expected).hexdigest()


# Of other makers

SMALL: Final = sorted(
    path for path, row in READ.items() if row["log_to_replay"] and int(row["virtual_size"]) <= 64 * MIB
)


@pytest.mark.skipif(not ROWS, reason="the corpus folder is not beside the repository")
@pytest.mark.parametrize("path", SMALL)
def test_dirty_images_of_other_makers_are_shown_as_replayed(cli: Cli, tmp_path: Path, path: str) -> None:
    digest = ROWS[path]["sha256_of_virtual_disk"]
    names = []
    for name, content in files_of(path).items():
        names.append(tmp_path / name.rpartition("/")[2])
        names[-1].write_bytes(content)
    before = [name.read_bytes() for name in names]
    assert cli("hash", names[0]).out.split()[0] == digest
    assert cli("convert", "-O", "raw", names[0], tmp_path / "new.raw").code == 0
    assert hashlib.sha256((tmp_path / "new.raw").read_bytes()).hexdigest() == digest
    assert cli("merge", names[0], "--to", tmp_path / "new.vhd").code == 0
    assert cli("hash", tmp_path / "new.vhd").out.split()[0] == digest
    assert cli("compare", "-F", "raw", names[0], tmp_path / "new.raw").code == 0
    assert [name.read_bytes() for name in names] == before
