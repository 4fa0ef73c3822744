"""Failures: one clear message, exit 1, every file as it was, nothing left behind."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import vhdkit
from tests.cli.running import BASE, CHAIN, FIXTURES, LEAF, MANIFEST, MIDDLE, snapshot, view_of
from tests.plainbuild import ImageSpec, build, locator
from tests.plainvhd import DIFFERENCING, SECTOR
from vhdkit.errors import MergeCancelled

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.cli.running import Outcome

    Cli = Callable[..., Outcome]
    Lay = Callable[..., Path]

# What the verbs say is the same whichever meets the file first.
READERS = [["info"], ["chain"], ["map"], ["map", "--json"], ["merge"], ["merge", "--to=new.vhd"], ["convert"]]


def reading(words: list[str], name: str) -> list[str]:
    """Return a command line that reads a file, and would write `new.vhd` if it could."""
    return [*words, name, "new.vhd"] if words == ["convert"] else [*words, name]


def put_not_a_vhd(folder: Path) -> None:
    (folder / "bad.vhd").write_bytes(b"once upon a time" * 1000)


def put_empty(folder: Path) -> None:
    (folder / "bad.vhd").touch()


def put_vhdx(folder: Path) -> None:
    (folder / "bad.vhd").write_bytes(b"vhdxfile" + bytes(100_000))


def put_folder(folder: Path) -> None:
    (folder / "bad.vhd").mkdir()


def put_nothing(folder: Path) -> None:
    assert folder.is_dir()


def put_pipe(folder: Path) -> None:
    os.mkfifo(folder / "bad.vhd")


@pytest.mark.parametrize("words", READERS, ids=" ".join)
@pytest.mark.parametrize(
    ("put", "said"),
    [
        (put_not_a_vhd, "not a VHD"),
        (put_empty, "not a VHD"),
        (put_vhdx, "VHDX"),
        (put_folder, "not a regular file"),
        (put_nothing, "No such file"),
        (put_pipe, "not a regular file"),
    ],
)
def test_what_is_no_image_is_named_and_refused(
    cli: Cli, lay: Lay, words: list[str], put: Callable[[Path], None], said: str
) -> None:
    folder = lay()
    put(folder)
    names = os.listdir()
    message = cli(*reading(words, "bad.vhd")).refused()
    assert said in message
    assert "bad.vhd" in message
    assert os.listdir() == names


@pytest.mark.parametrize(
    "length", [1, 8, 511, 512, 513, 1023, 1536, 1537, 2048, 4096, 8192, 70_000, 100_001, 221_183 - 512, 221_182]
)
def test_a_truncated_image_is_read_right_or_refused(cli: Cli, vms: Path, length: int) -> None:
    """Only the copy of the footer may stand in for what is lost: then the view is whole, and a warning tells."""
    with (vms / LEAF).open("r+b") as file:
        file.truncate(length)
    before = snapshot(vms)
    for words in READERS[:4]:
        done = cli(*words, LEAF)
        if done.code:
            assert LEAF in done.refused()
    done = cli("convert", "-O", "raw", LEAF, "new.img", "--progress", "none")
    if done.code:
        done.refused()
        assert snapshot(vms) == before
        assert LEAF in cli("merge", LEAF).refused()
        assert snapshot(vms) == before
        return
    assert snapshot(vms).pop("new.img") == MANIFEST[LEAF]["view_sha256"]
    assert "footer-trailing-lost" in cli("chain", LEAF).err
    assert cli("merge", LEAF).code == 0
    assert view_of(vms / MIDDLE, vms / BASE) == MANIFEST[LEAF]["view_sha256"]


@pytest.mark.parametrize("words", [*READERS[1:], ["info", "--backing-chain"]], ids=" ".join)
def test_a_missing_parent_is_told_with_its_id_and_where_it_was_looked_for(
    cli: Cli, vms: Path, words: list[str]
) -> None:
    wanted = cli("info", "--json", BASE).json["unique-id"]
    (vms / BASE).rename(vms.parent / BASE)
    before = snapshot(vms)
    message = cli(*reading(words, LEAF)).refused()
    assert wanted in message
    assert str(vms / BASE) in message
    assert "--search" in message
    assert snapshot(vms) == before
    done = cli(*reading(words, LEAF), "--search", "..")
    assert (done.code, done.err.count("Traceback")) == (0, 0)


def test_a_wrong_parent_is_told_with_both_ids(cli: Cli, vms: Path) -> None:
    """The right name, another image in it."""
    wanted = cli("info", "--json", BASE).json["unique-id"]
    shutil.copy2(FIXTURES / "dynamic-2m.vhd", vms / BASE)
    found = cli("info", "--json", BASE).json["unique-id"]
    before = snapshot(vms)
    for words in READERS[1:]:
        message = cli(*reading(words, LEAF)).refused()
        assert wanted in message
        assert found in message
        assert snapshot(vms) == before


def test_a_given_parent_that_does_not_fit_is_told_with_the_ids_that_info_shows(cli: Cli, vms: Path) -> None:
    shutil.copy2(FIXTURES / "dynamic-2m.vhd", vms / "other.vhd")
    message = cli("chain", LEAF, "--parent", "other.vhd").refused()
    assert cli("info", "--json", "other.vhd").json["unique-id"] in message
    assert cli("info", "--json", LEAF).json["parent-unique-id"] in message


def test_a_parent_outside_of_the_folder_is_refused_and_the_option_in_the_message_allows_it(
    cli: Cli, lay: Lay, tmp_path: Path
) -> None:
    folder = lay()
    (tmp_path / "other").mkdir()
    ids = {"parent": b"p" * 16, "child": b"c" * 16}
    size = block = 8 * SECTOR
    parent = ImageSpec(size=size, block_size=block, unique_id=ids["parent"])
    (tmp_path / "other" / "base.vhd").write_bytes(build(parent))
    child = ImageSpec(
        disk_type=DIFFERENCING,
        size=size,
        block_size=block,
        unique_id=ids["child"],
        parent_id=ids["parent"],
        parent_name="base.vhd",
        locators=(locator(0, b"W2ru", "..\\other\\base.vhd"),),
    )
    (folder / "leaf.avhd").write_bytes(build(child))
    for words in READERS[1:]:
        message = cli(*reading(words, "leaf.avhd")).refused()
        options = re.findall(r"--search (\S+)", message)
        assert os.listdir() == ["leaf.avhd"]
        assert cli("chain", "leaf.avhd", "--search", options[0]).code == 0


def test_a_read_only_parent_is_not_merged_into(cli: Cli, vms: Path) -> None:
    (vms / MIDDLE).chmod(0o444)
    before = snapshot(vms)
    message = cli("merge", LEAF).refused()
    assert "read-only" in message
    assert MIDDLE in message
    assert snapshot(vms) == before
    assert (vms / MIDDLE).stat().st_mode & 0o777 == 0o444
    assert cli("chain", LEAF).code == 0


NEW_FILES = [
    ["merge", LEAF, "--to", "{}"],
    ["convert", "-O", "raw", LEAF, "{}"],
    ["convert", "-O", "fixed", LEAF, "{}"],
    ["convert", LEAF, "{}"],
    ["create", "{}", "--size", "1M"],
    ["create", "{}", "--size", "1M", "--type", "fixed"],
    ["create", "{}", "--parent", BASE],
]


@pytest.mark.parametrize("words", NEW_FILES, ids=" ".join)
@pytest.mark.parametrize("taken", ["taken", BASE, "folder", "dangling"])
def test_a_new_file_never_replaces_anything(cli: Cli, vms: Path, words: list[str], taken: str) -> None:
    (vms / "taken").write_text("mine")
    (vms / "folder").mkdir()
    (vms / "dangling").symlink_to(vms / "nothing")
    before = snapshot(vms)
    message = cli(*(word.format(taken) for word in words)).refused()
    assert snapshot(vms) == before
    assert "exists" in message
    assert taken in message


@pytest.mark.parametrize("words", NEW_FILES, ids=" ".join)
@pytest.mark.parametrize("where", ["nowhere/new.disk", f"{BASE}/new.disk"])
def test_a_missing_target_folder_is_told_in_the_users_own_words(
    cli: Cli, vms: Path, words: list[str], where: str
) -> None:
    before = snapshot(vms)
    message = cli(*(word.format(where) for word in words)).refused()
    assert snapshot(vms) == before
    assert os.path.dirname(where) in message
    assert "No such file or directory" in message or "Not a directory" in message
    assert ".partial" not in message


@contextmanager
def as_nobody() -> Iterator[None]:
    """Be someone whom the permissions of files concern, root that one is."""
    if os.getuid():
        yield
        return
    os.setresgid(65534, 65534, 0)
    os.setresuid(65534, 65534, 0)
    try:
        yield
    finally:
        os.setresuid(0, 0, 0)
        os.setresgid(0, 0, 0)


@pytest.fixture
def shared(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The chain of three, nobody's if root is running this, in a folder that nobody can reach; pytest's own cannot."""
    # The interpreter's own files may be out of reach for nobody: load now what verbs load lazily.
    cli("compare", FIXTURES / LEAF, FIXTURES / LEAF)
    cli("merge", FIXTURES / LEAF, "--dry-run")
    cli("scan", FIXTURES)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        for image in CHAIN:
            shutil.copy2(FIXTURES / image, folder / image)
        if not os.getuid():
            for path in [folder, *folder.iterdir()]:
                os.chown(path, 65534, 65534)
        with monkeypatch.context() as patch:
            patch.chdir(folder)
            yield folder
        folder.chmod(0o755)


def test_an_image_that_may_not_be_read_is_told(cli: Cli, shared: Path) -> None:
    before = snapshot(shared)
    (shared / MIDDLE).chmod(0)
    with as_nobody():
        for words in [["info", MIDDLE], ["chain", MIDDLE], ["chain", LEAF], ["merge", LEAF], ["merge", MIDDLE]]:
            message = cli(*words).refused()
            assert MIDDLE in message
            assert "permission denied" in message.lower()
        assert MIDDLE in cli("scan", ".").out
        assert cli("compare", MIDDLE, BASE).refused(2)
    (shared / MIDDLE).chmod(0o600)
    assert snapshot(shared) == before


@pytest.mark.parametrize("words", [[], ["--keep-sources"], ["--undo", "undo.avhd"]], ids=" ".join)
def test_a_folder_that_may_not_be_written_is_told_before_anything_is_done(
    cli: Cli, shared: Path, words: list[str]
) -> None:
    """The journal lies beside the destination: without it a merge could not go on where a power cut ended it."""
    before = snapshot(shared)
    shared.chmod(0o555)
    with as_nobody():
        message = cli("merge", LEAF, *words).refused()
        planned = cli("merge", LEAF, *words, "--dry-run", "--json")
    assert f"{shared} may not be written" in message
    assert "journal" in message
    assert "--to" in message
    assert planned.code == 1
    assert [text for text in planned.json["obstacles"] if "journal" in text]
    assert "Permission denied" not in message
    assert snapshot(shared) == before


@pytest.mark.parametrize("words", NEW_FILES, ids=" ".join)
def test_a_new_file_that_may_not_be_made_is_told_by_its_name(cli: Cli, shared: Path, words: list[str]) -> None:
    before = snapshot(shared)
    shared.chmod(0o555)
    with as_nobody():
        message = cli(*(word.format("new.disk") for word in words)).refused()
    assert snapshot(shared) == before
    assert "permission denied" in message.lower() or "may not be written" in message
    assert "new.disk" in message
    assert ".partial" not in message


@pytest.fixture
def small_disk(lay: Lay, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A file system of two megabytes, which is the current folder."""
    folder = lay() / "small"
    folder.mkdir()
    if os.getuid() or not sys.platform.startswith("linux"):
        pytest.skip("only root can mount")
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "none", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("no tmpfs can be mounted here")
    monkeypatch.chdir(folder)
    yield folder
    monkeypatch.chdir("/")
    subprocess.run(["umount", str(folder)], check=True)


def fill(folder: Path, leave: int) -> None:
    status = os.statvfs(folder)
    (folder / "filler").write_bytes(bytes(status.f_bavail * status.f_frsize - leave))


@pytest.mark.parametrize("words", [["merge", LEAF], ["merge", LEAF, "--to", "new.vhd"]], ids=" ".join)
def test_a_full_disk_is_seen_before_a_merge_and_the_merge_works_with_room(
    cli: Cli, small_disk: Path, words: list[str]
) -> None:
    for name in (LEAF, MIDDLE, BASE):
        shutil.copy2(FIXTURES / name, small_disk / name)
    fill(small_disk, 16384)
    before = snapshot(small_disk)
    message = cli(*words).refused()
    needed = cli(*words, "--dry-run", "--json").json["space-needed"]
    assert str(needed) in message
    assert "space" in message
    assert snapshot(small_disk) == before
    os.truncate("filler", 0)
    assert cli(*words).code == 0


@pytest.mark.parametrize("kind", ["raw", "fixed", "dynamic"])
def test_a_disk_that_fills_up_while_converting_leaves_nothing_behind(cli: Cli, small_disk: Path, kind: str) -> None:
    fill(small_disk, 16384)
    before = snapshot(small_disk)
    message = cli("convert", "-O", kind, FIXTURES / LEAF, "new.disk", "--progress", "none").refused()
    assert snapshot(small_disk) == before
    assert "No space left on device" in message
    assert "new.disk" in message
    assert ".partial" not in message


@pytest.mark.parametrize("options", [["--type", "fixed"], [], ["--block-size", "512"]], ids=" ".join)
def test_a_disk_too_full_to_create_an_image_leaves_nothing_behind(
    cli: Cli, small_disk: Path, options: list[str]
) -> None:
    fill(small_disk, 0)
    before = snapshot(small_disk)
    message = cli("create", "new.vhd", "--size", "20M", *options).refused()
    assert snapshot(small_disk) == before
    assert "No space left on device" in message
    assert "new.vhd" in message
    assert ".partial" not in message


def test_a_second_interruption_hides_nothing_of_what_the_first_has_to_say(
    cli: Cli, vms: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_arguments: object, **_options: object) -> None:
        try:
            stopped = MergeCancelled("stopped", path="a.vhd")
            stopped.add_note("The same command goes on with it.")
            raise stopped
        finally:
            raise KeyboardInterrupt

    monkeypatch.setattr("vhdkit.job.worker.merge", interrupted)
    outcome = cli("merge", str(vms / LEAF))
    assert outcome.code == 130
    assert "The same command goes on with it." in outcome.err
    (job,) = vhdkit.jobs(disk=str(vms / LEAF))
    assert job.state is vhdkit.JobState.TERMINATED
