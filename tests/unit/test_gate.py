"""What an image may not do by naming files: the gate in front of parents (vhd.md 2.4, 4.4, guarantees.md).

In every tree the parent that the child wants, id and all, lies in `out/`, and the child in `own/`. So whatever gets
through the gate is found, and read, and the test fails.
"""

from __future__ import annotations

import os
import pickle
import re
import signal
import stat
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.plainbuild import ImageSpec, build, locator
from tests.plainvhd import DIFFERENCING, SECTOR
from tests.typed import as_typed
from vhdkit.chain.chain import open_chain
from vhdkit.errors import ChainError, ParentMismatchError, ParentNotFoundError, ParentRefusedError, SiblingsError
from vhdkit.storage.local_folder import LocalFolder

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.plainbuild import LocatorSpec
    from vhdkit.storage.protocols import Storage, Walk

SIZE = BLOCK = 8 * SECTOR
REFUSALS = (ParentRefusedError, ParentNotFoundError)


def ident(number: int) -> bytes:
    return bytes([number]) * 16


def base(number: int = 1, *, size: int = SIZE) -> bytes:
    return build(ImageSpec(size=size, block_size=BLOCK, unique_id=ident(number), sectors={0: b"secret!!" * 64}))


def child(*locators: LocatorSpec, name: str = "") -> bytes:
    return build(
        ImageSpec(
            disk_type=DIFFERENCING,
            size=SIZE,
            block_size=BLOCK,
            unique_id=ident(9),
            parent_id=ident(1),
            parent_name=name,
            locators=locators,
        )
    )


class Spy(LocalFolder):
    """The machine's files, every use of them noted by the path that was asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.opened: list[str] = []
        self.listed: list[str] = []

    def open(self, path: str, *, writable: bool = False) -> Storage:
        self.opened.append(path)
        return super().open(path, writable=writable)

    def names(self, directory: str) -> tuple[str, ...]:
        self.listed.append(directory)
        return super().names(directory)

    def walk(self, directory: str, **options: Any) -> Walk:
        self.listed.append(directory)
        return super().walk(directory, **options)

    def outside(self, paths: list[str], *allowed: Path) -> list[str]:
        """Return those of the paths that lead to nothing in or below the allowed folders."""
        real = {path: Path(os.path.realpath(path)) for path in paths}  # unlike resolve, puts up with loops
        return [path for path in paths if not any(real[path].is_relative_to(folder) for folder in allowed)]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path.resolve()
    (root / "own").mkdir()
    (root / "out").mkdir()
    (root / "out/base.vhd").write_bytes(base())
    return root


def refused(tree: Path, leaf: bytes, **options: Any) -> ChainError:
    """Open a leaf that must not open; nothing outside of own/ is touched meanwhile."""
    (tree / "own/leaf.avhd").write_bytes(leaf)
    spy = Spy()
    with within(10), pytest.raises(ChainError) as caught:
        open_chain(str(tree / "own/leaf.avhd"), folder=spy, **options)
    assert spy.opened, "the spy was not asked"
    assert spy.outside(spy.opened, tree / "own") == []
    return caught.value


def tried(error: ChainError) -> set[str]:
    return {os.path.normpath(candidate.path) for candidate in error.candidates}


@contextmanager
def within(seconds: int) -> Iterator[None]:
    """Fail instead of hanging for ever, where the system has alarms."""

    def fail(_number: int, _frame: object) -> None:
        raise TimeoutError(f"more than {seconds} seconds")

    if not hasattr(signal, "SIGALRM"):
        yield
        return
    previous = signal.signal(signal.SIGALRM, fail)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)


# Paths that lead out


@pytest.mark.parametrize("code", [b"W2ru", b"W2ku", b"MacX", b"Wi2r", b"Wi2k"])
@pytest.mark.parametrize("text", ["..\\out\\base.vhd", ".\\a\\..\\..\\out\\base.vhd", "..\\out\\..\\out\\BASE.VHD"])
def test_a_path_that_climbs_out_is_refused_and_not_opened(tree: Path, code: bytes, text: str) -> None:
    text = f"file://{text}".replace("\\", "/") if code == b"MacX" else text
    error = refused(tree, child(locator(0, code, text)))
    assert type(error) is ParentRefusedError
    assert error.windows_code == 0xC03A0016
    (candidate,) = [item for item in error.candidates if "--search" in as_typed(item)]
    assert "outside" in candidate.reason
    assert candidate.origin == code.decode()


def test_escapes_in_a_url_hide_no_climbing(tree: Path) -> None:
    error = refused(tree, child(locator(0, b"MacX", "file://%2e%2e%2Fout/base.vhd")))
    assert type(error) is ParentRefusedError


def test_a_folder_whose_name_begins_like_an_allowed_one_is_outside(tree: Path) -> None:
    (tree / "own-too").mkdir()
    (tree / "own-too/base.vhd").write_bytes(base())
    assert type(refused(tree, child(locator(0, b"W2ru", "..\\own-too\\base.vhd")))) is ParentRefusedError


@pytest.mark.parametrize("text", ["..\\OUT\\base.vhd", "..\\OUT\\..\\own\\gone.vhd", "..\\..\\SECRET\\x.vhd"])
def test_folders_outside_are_not_even_listed(tree: Path, text: str) -> None:
    (tree / "own/leaf.avhd").write_bytes(child(locator(0, b"W2ru", text)))
    spy = Spy()
    with pytest.raises(ChainError) as caught:
        open_chain(str(tree / "own/leaf.avhd"), folder=spy)
    assert spy.listed
    assert spy.outside(spy.listed, tree / "own") == []
    assert str(tree / "out") not in str(caught.value), "the message tells what the names outside are like"


ABSOLUTE = [(b"W2ku", "{}"), (b"W2ru", "{}"), (b"Wi2k", "{}"), (b"MacX", "file://{}"), (b"MacX", "file://localhost{}")]


@pytest.mark.parametrize(("code", "form"), ABSOLUTE)
def test_an_absolute_path_is_text_and_not_opened(tree: Path, code: bytes, form: str) -> None:
    target = str(tree / "out/base.vhd")
    error = refused(tree, child(locator(0, code, form.format(target))))
    assert isinstance(error, REFUSALS)
    (candidate,) = [item for item in error.candidates if item.path == target]
    assert "absolute" in candidate.reason
    assert "--parent-map" in as_typed(candidate)


def test_an_absolute_name_field_is_text_and_not_opened(tree: Path) -> None:
    target = str(tree / "out/base.vhd")
    error = refused(tree, child(name=target))
    assert isinstance(error, REFUSALS)
    assert target in tried(error)


def test_a_name_field_that_climbs_out_is_a_base_name(tree: Path) -> None:
    error = refused(tree, child(name="..\\out\\base.vhd"))
    assert str(tree / "own/base.vhd") in tried(error)


FOREIGN = [
    "C:\\etc\\passwd",
    "c:etc\\passwd",
    "D:\\..\\..\\etc\\passwd",
    "\\etc\\passwd",
    "//etc/passwd",
    "\\\\server\\share\\base.vhd",
    "//server/share/base.vhd",
    "\\\\?\\C:\\vms\\base.vhd",
    "\\\\?\\UNC\\server\\share\\base.vhd",
    "\\\\?\\Volume{26a21bda-a627-11d7-9931-806e6f6e6963}\\base.vhd",
    "\\\\.\\PhysicalDrive0",
    "\\\\.\\pipe\\x",
    "CON",
    "NUL",
    "nul.vhd",
    "COM1:",
    "/dev/zero",
    "/dev/stdin",
    "/proc/self/mem",
    "..",
    ".",
    "\\",
    ".\\",
    "..\\..\\..\\..\\..\\..\\..\\..\\..\\..\\..\\..\\dev\\zero",
    "file:///dev/mem",
    "http://attacker/base.vhd",
]


@pytest.mark.parametrize("code", [b"W2ku", b"W2ru", b"MacX", b"name"])
@pytest.mark.parametrize("text", FOREIGN)
def test_what_other_systems_call_a_file_is_looked_for_in_the_own_folder_at_most(
    tree: Path, code: bytes, text: str
) -> None:
    if code == b"name":
        leaf = child(name=text)
    else:
        leaf = child(locator(0, code, f"file://{text}" if code == b"MacX" else text))
    assert isinstance(refused(tree, leaf), REFUSALS)


# Links and things that are no files


def test_a_link_to_a_file_outside_is_refused(tree: Path) -> None:
    (tree / "own/base.vhd").symlink_to(tree / "out/base.vhd")
    assert type(refused(tree, child(locator(0, b"W2ru", ".\\base.vhd")))) is ParentRefusedError


def test_a_link_to_a_folder_outside_is_refused(tree: Path) -> None:
    (tree / "own/link").symlink_to(tree / "out")
    assert type(refused(tree, child(locator(0, b"W2ru", ".\\link\\base.vhd")))) is ParentRefusedError


def test_a_linked_folder_outside_is_not_listed(tree: Path) -> None:
    (tree / "own/link").symlink_to(tree / "out")
    (tree / "own/leaf.avhd").write_bytes(child(locator(0, b"W2ru", ".\\link\\BASE.vhd")))
    spy = Spy()
    with pytest.raises(ChainError):
        open_chain(str(tree / "own/leaf.avhd"), folder=spy)
    assert spy.outside(spy.listed, tree / "own") == []


def test_links_are_not_followed_in_the_search_by_id(tree: Path) -> None:
    (tree / "own/link").symlink_to(tree / "out")
    (tree / "own/file.vhd").symlink_to(tree / "out/base.vhd")
    assert isinstance(refused(tree, child(locator(0, b"W2ru", ".\\gone.vhd"))), REFUSALS)


def test_a_chain_of_links_that_ends_outside_is_refused(tree: Path) -> None:
    (tree / "own/a.vhd").symlink_to("b.vhd")
    (tree / "own/b.vhd").symlink_to("../out/base.vhd")
    assert type(refused(tree, child(locator(0, b"W2ru", ".\\a.vhd")))) is ParentRefusedError


def test_a_link_that_leads_to_itself_is_no_parent(tree: Path) -> None:
    (tree / "own/base.vhd").symlink_to("base.vhd")
    assert isinstance(refused(tree, child(locator(0, b"W2ru", ".\\base.vhd"))), REFUSALS)


def test_a_link_that_stays_inside_is_followed(tree: Path) -> None:
    (tree / "own/sub").mkdir()
    (tree / "own/sub/real.vhd").write_bytes(base())
    (tree / "own/decoy.vhd").write_bytes(base())
    (tree / "own/base.vhd").symlink_to("sub/real.vhd")
    (tree / "own/leaf.avhd").write_bytes(child(locator(0, b"W2ru", ".\\base.vhd")))
    with open_chain(str(tree / "own/leaf.avhd")) as chain:
        assert chain.layers[1].path == str(tree / "own/sub/real.vhd")


needs_fifos = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")


@needs_fifos
@pytest.mark.parametrize("leaf", [child(locator(0, b"W2ru", ".\\base.vhd")), child(name="base.vhd")])
def test_a_named_pipe_is_no_parent_and_nobody_waits_for_it(tree: Path, leaf: bytes) -> None:
    os.mkfifo(tree / "own/base.vhd")
    error = refused(tree, leaf)
    assert "not a regular file" in {candidate.reason for candidate in error.candidates}


@needs_fifos
def test_a_named_pipe_is_no_explicit_parent_and_no_leaf(tree: Path) -> None:
    os.mkfifo(tree / "own/pipe.vhd")
    (tree / "own/leaf.avhd").write_bytes(child(name="base.vhd"))
    with within(10), pytest.raises(OSError, match="not a regular file"):
        open_chain(str(tree / "own/leaf.avhd"), parent=str(tree / "own/pipe.vhd"))
    for writable in (False, True):
        with within(10), pytest.raises(OSError, match="not a regular file"):
            open_chain(str(tree / "own/pipe.vhd"), writable=writable)


def test_a_directory_is_no_parent(tree: Path) -> None:
    (tree / "own/base.vhd").mkdir()
    error = refused(tree, child(locator(0, b"W2ru", ".\\base.vhd")))
    assert str(tree / "own/base.vhd") in tried(error)


def test_a_device_is_no_parent(tree: Path) -> None:
    device = tree / "own/base.vhd"
    try:
        os.mknod(device, stat.S_IFCHR | 0o600, os.makedev(1, 5))
        device.open("rb").close()
    except (AttributeError, OSError):
        pytest.skip("devices can be made by the superuser of Linux only")
    error = refused(tree, child(locator(0, b"W2ru", ".\\base.vhd")))
    assert "not a regular file" in {candidate.reason for candidate in error.candidates}


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="this system has no /dev/zero")
def test_a_device_is_no_explicit_parent(tree: Path) -> None:
    (tree / "own/leaf.avhd").write_bytes(child(name="base.vhd"))
    with pytest.raises(OSError, match="not a regular file"):
        open_chain(str(tree / "own/leaf.avhd"), parent="/dev/zero")


# What the caller allows


def test_the_option_that_a_refusal_names_allows_it(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tree / "own")
    error = refused(tree, child(locator(0, b"W2ru", "..\\out\\base.vhd")))
    option = re.search(r"--search (\S+)", as_typed(error))
    assert option is not None
    assert option[1] == "../out"
    with open_chain("leaf.avhd", search=[option[1]]) as chain:
        assert chain.layers[1].path == str(tree / "out/base.vhd")


def test_search_of_the_folder_above_allows_a_parent_there(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tree / "own")
    (tree / "out/base.vhd").rename(tree / "base.vhd")
    error = refused(tree, child(locator(0, b"W2ru", "..\\base.vhd")))
    assert "--search .. " in as_typed(error)
    with open_chain("leaf.avhd", search=[".."]) as chain:
        assert chain.read(0, 6) == b"secret"


def test_a_link_into_a_search_folder_is_followed(tree: Path) -> None:
    (tree / "own/base.vhd").symlink_to(tree / "out/base.vhd")
    (tree / "out/decoy.vhd").write_bytes(base())
    (tree / "own/leaf.avhd").write_bytes(child(locator(0, b"W2ru", ".\\base.vhd")))
    with open_chain(str(tree / "own/leaf.avhd"), search=[str(tree / "out")]) as chain:
        assert chain.layers[1].path == str(tree / "out/base.vhd")


# Hyper-V's own layout


@pytest.fixture
def host(tree: Path) -> Path:
    """A base in one folder of the layout, and the other folder beside it."""
    (tree / "Virtual Hard Disks").mkdir()
    (tree / "Snapshots").mkdir()
    (tree / "Virtual Hard Disks/base.vhd").write_bytes(base())
    return tree


@pytest.mark.parametrize(
    "text", ["..\\Virtual Hard Disks\\base.vhd", "C:\\vms\\Virtual Hard Disks\\base.vhd", "gone.vhd"]
)
def test_a_snapshot_finds_its_parent_where_hyper_v_has_it_and_the_other_way_round(host: Path, text: str) -> None:
    leaf = host / "Snapshots/leaf.avhd"
    leaf.write_bytes(child(locator(0, b"W2ku" if ":" in text else b"W2ru", text)))
    with open_chain(str(leaf)) as chain:
        assert chain.layers[1].path == str(host / "Virtual Hard Disks/base.vhd")
    (host / "Virtual Hard Disks/base.vhd").rename(host / "Snapshots/base.vhd")
    leaf = leaf.rename(host / "Virtual Hard Disks/leaf.avhd")
    with open_chain(str(leaf)) as chain:
        assert chain.layers[1].path == str(host / "Snapshots/base.vhd")


def test_a_base_in_hyper_vs_layout_has_the_children_beside_it(host: Path) -> None:
    (host / "Snapshots/leaf.avhd").write_bytes(child())
    (host / "Snapshots/other.avhd").write_bytes(child())
    with pytest.raises(SiblingsError, match="would ruin 2 other image"):
        open_chain(str(host / "Virtual Hard Disks/base.vhd"), writable=True)


def test_the_layout_needs_its_names_the_right_id_and_no_links(host: Path) -> None:
    leaf = child(locator(0, b"W2ru", "..\\Virtual Hard Disks\\base.vhd"))
    (host / "Snapshots/leaf.avhd").write_bytes(leaf)
    refused(host, leaf)
    (host / "Virtual Hard Disks/base.vhd").write_bytes(base(2))
    with pytest.raises(ParentMismatchError):
        open_chain(str(host / "Snapshots/leaf.avhd"))
    (host / "Virtual Hard Disks/base.vhd").unlink()
    (host / "Virtual Hard Disks/base.vhd").symlink_to(host / "out/base.vhd")
    with pytest.raises(ParentRefusedError):
        open_chain(str(host / "Snapshots/leaf.avhd"))
    (host / "Virtual Hard Disks").rename(host / "elsewhere")
    (host / "Virtual Hard Disks").symlink_to(host / "out")
    spy = Spy()
    with pytest.raises(ParentRefusedError):
        open_chain(str(host / "Snapshots/leaf.avhd"), folder=spy)
    assert spy.outside([*spy.opened, *spy.listed], host / "Snapshots") == []


def test_search_folders_allow_no_absolute_path(tree: Path) -> None:
    (tree / "out/base.vhd").unlink()
    (tree / "out/deep").mkdir()
    (tree / "out/deep/one.vhd").write_bytes(base())
    (tree / "out/deep/two.vhd").write_bytes(base())
    (tree / "own/leaf.avhd").write_bytes(child(locator(0, b"W2ku", str(tree / "out/deep/one.vhd"))))
    with pytest.raises(ChainError):
        open_chain(str(tree / "own/leaf.avhd"), search=[str(tree / "out")])


def test_a_mapped_folder_is_allowed_for_mapped_paths_alone(tree: Path) -> None:
    (tree / "mnt").mkdir()
    leaf = child(locator(0, b"W2ru", "..\\mnt\\base.vhd"), locator(1, b"W2ku", "C:\\vms\\other.vhd"))
    (tree / "mnt/base.vhd").write_bytes(base())
    assert type(refused(tree, leaf, parent_map={"D:\\": str(tree / "mnt")})) is ParentRefusedError


@pytest.mark.parametrize("text", ["C:\\vms\\..\\out\\base.vhd", "\\\\?\\C:\\vms\\..\\out\\base.vhd"])
def test_a_mapped_path_that_climbs_out_of_its_folder_is_not_opened(tree: Path, text: str) -> None:
    (tree / "mnt").mkdir()
    folders = {"C:\\vms": str(tree / "mnt"), "\\\\?\\C:\\vms": str(tree / "mnt")}
    assert isinstance(refused(tree, child(locator(0, b"W2ku", text)), parent_map=folders), REFUSALS)


def test_a_link_in_a_mapped_folder_that_leads_out_is_refused(tree: Path) -> None:
    (tree / "mnt").mkdir()
    (tree / "mnt/base.vhd").symlink_to(tree / "out/base.vhd")
    leaf = child(locator(0, b"W2ku", "C:\\vms\\base.vhd"))
    assert type(refused(tree, leaf, parent_map={"C:\\vms": str(tree / "mnt")})) is ParentRefusedError


def test_an_explicit_parent_may_lie_anywhere(tree: Path) -> None:
    (tree / "own/link.vhd").symlink_to(tree / "out/base.vhd")
    (tree / "own/leaf.avhd").write_bytes(child(locator(0, b"W2ru", "..\\out\\base.vhd")))
    for explicit in (tree / "out/base.vhd", tree / "own/link.vhd"):
        with open_chain(str(tree / "own/leaf.avhd"), parent=str(explicit)) as chain:
            assert chain.layers[1].path == str(tree / "out/base.vhd")


# Errors


def test_a_parent_that_is_nowhere_is_not_found_and_everything_tried_is_told(tree: Path) -> None:
    (tree / "far").mkdir()
    (tree / "own/leaf.avhd").write_bytes(
        child(
            locator(0, b"W2ru", ".\\gone\\a.vhd"),
            locator(1, b"W2ku", "C:\\vms\\b.vhd"),
            locator(2, b"MacX", "file:///srv/c.vhd"),
            name="d.vhd",
        )
    )
    with pytest.raises(ParentNotFoundError) as caught:
        open_chain(str(tree / "own/leaf.avhd"), search=[str(tree / "far")], parent_map={"C:\\vms": str(tree / "mnt")})
    error = caught.value
    assert error.windows_code == 0xC03A000D
    assert error.path == str(tree / "own/leaf.avhd")
    names = [f"{folder}/{name}.vhd" for folder in ("own", "far") for name in "abcd"]
    assert {str(tree / name) for name in ["own/gone/a.vhd", "mnt/b.vhd", *names]} | {"/srv/c.vhd"} <= tried(error)
    assert all(candidate.origin and candidate.reason for candidate in error.candidates)
    for candidate in error.candidates:
        assert str(candidate) in str(error)
    assert "01010101-0101-0101-0101-010101010101" in str(error)


def test_candidates_are_told_once(tree: Path) -> None:
    leaf = child(locator(0, b"W2ru", ".\\base.vhd"), locator(1, b"W2ku", "C:\\vms\\base.vhd"), name="base.vhd")
    paths = [candidate.path for candidate in refused(tree, leaf).candidates]
    assert len(paths) == len(set(paths))


def test_a_parent_with_another_id_is_a_mismatch_that_tells_both(tree: Path) -> None:
    (tree / "own/base.vhd").write_bytes(base(7))
    error = refused(tree, child(locator(0, b"W2ru", ".\\base.vhd")))
    assert isinstance(error, ParentMismatchError)
    assert (error.expected, error.found) == (ident(1), ident(7))
    assert error.windows_code == 0xC03A000E
    assert str(tree / "own/base.vhd") in tried(error)


def test_an_error_survives_the_way_to_another_process(tree: Path) -> None:
    (tree / "own/base.vhd").write_bytes(base(7))
    error = refused(tree, child(locator(0, b"W2ru", ".\\base.vhd")))
    copy = pickle.loads(pickle.dumps(error))  # noqa: S301 - what was pickled a moment ago
    assert (str(copy), vars(copy)) == (str(error), vars(error))


# Names that are odd text

HOSTILE = ["\x1b[31mred.vhd", "two\nlines.vhd", "back\rwards.vhd", "bidi\u202edhv.vhd", "\x9b31m.vhd", "\u2028.vhd"]


def assert_plain(text: str) -> None:
    assert text.isprintable(), repr(text)


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("form", [".\\{}", "..\\out\\{}", "C:\\vms\\{}", "{}\\base.vhd"])
def test_a_name_cannot_speak_to_the_terminal_through_an_error(tree: Path, name: str, form: str) -> None:
    text = form.format(name)
    error = refused(tree, child(locator(0, b"W2ru", text), locator(1, b"W2ku", text), name=text))
    lines = str(error).split("\n")
    assert len(lines) == 1 + len(error.candidates)
    assert "\\" in str(error)
    for line in lines:
        assert_plain(line)


@pytest.mark.parametrize("name", HOSTILE)
def test_a_files_own_name_cannot_speak_to_the_terminal_through_a_finding(tree: Path, name: str) -> None:
    (tree / "own" / name).write_bytes(base(size=2 * SIZE))
    leaf = tree / "own" / f"leaf{name}"
    leaf.write_bytes(child(locator(0, b"W2ru", ".\\gone.vhd")))
    with open_chain(str(leaf)) as chain:
        assert len(chain.findings) == 2, "found elsewhere, and of another size"
        for finding in chain.findings:
            assert_plain(str(finding))


@pytest.mark.parametrize("name", HOSTILE)
def test_an_explicit_parents_name_cannot_speak_to_the_terminal(tree: Path, name: str) -> None:
    (tree / "out" / name).write_bytes(base(7))
    (tree / "own/leaf.avhd").write_bytes(child(locator(0, b"W2ru", "..\\out\\base.vhd")))
    for search in ([], [str(tree / "out")]):
        with pytest.raises(ChainError) as caught:
            open_chain(str(tree / "own/leaf.avhd"), parent=str(tree / "out" / name), search=search)
        for line in str(caught.value).split("\n  tried "):
            assert_plain(line)


UNPAIRED = ["\ud800.vhd", "a\udfff\\base.vhd", ".\\\udc41.vhd", "\udcff.vhd"]


@pytest.mark.parametrize("name", UNPAIRED)
@pytest.mark.parametrize("code", [b"W2ru", b"W2ku", b"name"])
def test_unpaired_surrogates_in_a_name_are_one_more_name_that_is_not_there(tree: Path, code: bytes, name: str) -> None:
    error = refused(tree, child(name=name) if code == b"name" else child(locator(0, code, name)))
    assert isinstance(error, REFUSALS)
    assert str(error).encode()


def test_unpaired_surrogates_in_one_name_hide_no_other(tree: Path) -> None:
    (tree / "own/base.vhd").write_bytes(base())
    (tree / "own/leaf.avhd").write_bytes(child(locator(0, b"W2ru", ".\\\ud800.vhd"), name="base.vhd"))
    with open_chain(str(tree / "own/leaf.avhd")) as chain:
        assert chain.layers[1].path == str(tree / "own/base.vhd")


@pytest.mark.parametrize(
    ("code", "text"),
    [
        (b"W2ru", ".\\base.vhd\0..\\..\\out\\base.vhd"),
        (b"W2ku", "base\0.vhd"),
        (b"Wi2r", "base.vhd\0.img"),
        (b"MacX", "file://base.vhd%00.img"),
    ],
)
def test_a_text_with_a_nul_inside_names_nothing(tree: Path, code: bytes, text: str) -> None:
    (tree / "own/base.vhd").write_bytes(base(7))
    error = refused(tree, child(locator(0, code, text)))
    assert type(error) is ParentNotFoundError
    assert error.candidates == ()


def test_the_name_field_ends_at_its_first_nul(tree: Path) -> None:
    error = refused(tree, child(name="short.vhd\0../../out/base.vhd"))
    assert {Path(candidate.path).stem for candidate in error.candidates} == {"short"}


LONG = [".\\" + "a" * 30000, "A\\" * 16000 + "b", ".\\" * 16000 + "b", "own\\..\\" * 4000 + "b", "OWN\\..\\" * 4000]


@pytest.mark.parametrize("text", LONG)
def test_a_path_of_64_kib_is_answered_quickly_and_in_few_words(tree: Path, text: str) -> None:
    (tree / "own/own").mkdir()
    for number in range(200):
        (tree / f"own/{number}").touch()
    error = refused(tree, child(locator(0, b"W2ru", text), locator(1, b"W2ku", text)))
    assert isinstance(error, REFUSALS)
    assert len(str(error)) < 3 * 4096, "names longer than 4096 bytes are no paths (4.5)"


# Folders that are replaced while a parent is opened


class Swapping(LocalFolder):
    """The machine's files, where a folder becomes a link to another one between the look at a path and its opening."""

    def __init__(self, folder: Path, target: Path, *, back: bool) -> None:
        super().__init__()
        self.folder = folder
        self.target = target
        self.back = back
        self.swaps = 0

    def open(self, path: str, *, writable: bool = False) -> Storage:
        if not path.startswith(f"{self.folder}/"):
            return super().open(path, writable=writable)
        self.swaps += 1
        aside = self.folder.with_name("aside")
        self.folder.rename(aside)
        self.folder.symlink_to(self.target)
        try:
            return super().open(path, writable=writable)
        finally:
            if self.back:
                self.folder.unlink()
                aside.rename(self.folder)
            else:
                aside.rename(self.folder.with_name(f"aside{self.swaps}"))


@pytest.mark.parametrize("back", [True, False], ids=["and back", "for good"])
def test_a_folder_that_becomes_a_link_while_a_parent_is_opened_leads_nowhere(tree: Path, *, back: bool) -> None:
    (tree / "own/sub").mkdir()
    (tree / "own/sub/base.vhd").write_bytes(base(2))
    (tree / "own/leaf.avhd").write_bytes(child(locator(0, b"W2ru", ".\\sub\\base.vhd")))
    folder = Swapping(tree / "own/sub", tree / "out", back=back)
    with pytest.raises(ChainError) as caught:
        open_chain(str(tree / "own/leaf.avhd"), folder=folder)
    assert folder.swaps
    assert "replaced" in str(caught.value)


def test_without_links_is_told_of_the_opened_file(tree: Path) -> None:
    (tree / "own/sub").symlink_to(tree / "out")
    folder = LocalFolder()
    straight, crooked = str(tree / "out/base.vhd"), str(tree / "own/sub/base.vhd")
    with closing(folder.open(straight)) as storage:
        identity = storage.identity
        assert folder.is_without_links(straight, identity)
        assert not folder.is_without_links(crooked, identity)
        assert not folder.is_without_links(straight, (identity[0], identity[1] + 1))
        assert not folder.is_without_links(str(tree / "out/gone.vhd"), identity)
