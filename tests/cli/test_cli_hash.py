"""hash: the digest of a view is that of the raw file that it would make."""

from __future__ import annotations

import hashlib
import sys
import threading
from typing import TYPE_CHECKING

import pytest

import vhdkit
from tests.cli.running import BASE, CHAIN, FIXTURES, LEAF, MANIFEST, view_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.cli.running import Outcome

    Cli = Callable[..., Outcome]
    Lay = Callable[..., Path]

WITH_VIEWS = sorted(name for name in MANIFEST if "view_sha256" in MANIFEST[name] and not name.startswith("raw-"))


@pytest.mark.parametrize("name", WITH_VIEWS)
def test_a_hash_is_that_of_the_view(cli: Cli, lay: Lay, name: str) -> None:
    lay()
    done = cli("hash", FIXTURES / name)
    assert done.code == 0
    assert done.out.split()[0] == MANIFEST[name]["view_sha256"]


def test_each_layer_has_a_hash_of_what_it_shows(cli: Cli, lay: Lay) -> None:
    folder = lay(*CHAIN)
    done = cli("hash", LEAF, "--layers", "--json")
    (record,) = done.json
    expected = [view_of(*(folder / name for name in CHAIN[depth:])) for depth in range(len(CHAIN))]
    assert [layer["digest"] for layer in record["layers"]] == expected
    assert record["digest"] == expected[0]
    assert record["algorithm"] == "sha256"


def test_a_raw_parent_that_ends_inside_of_a_sector_has_the_hash_of_its_file(cli: Cli, lay: Lay) -> None:
    folder = lay("raw-child.vhd", "raw-parent.img")
    raw = (folder / "raw-parent.img").read_bytes()[:-100]
    (folder / "raw-parent.img").write_bytes(raw)
    done = cli("hash", "raw-child.vhd", "--parent", "raw-parent.img", "--layers", "--json")
    assert done.json[0]["layers"][-1]["digest"] == hashlib.sha256(raw).hexdigest()


def test_the_lines_are_those_of_sha256sum(cli: Cli, lay: Lay) -> None:
    folder = lay(BASE)
    (folder / "odd.img").write_bytes(b"\x55" * 700_001)
    done = cli("hash", "odd.img", BASE)
    assert done.code == 0
    assert done.out.splitlines() == [
        f"{hashlib.sha256(b'U' * 700_001).hexdigest()}  odd.img",
        f"{view_of(folder / BASE)}  {BASE}",
    ]


def test_a_file_that_cannot_be_read_is_reported_and_the_others_are_hashed(cli: Cli, lay: Lay) -> None:
    folder = lay(BASE)
    done = cli("hash", "missing.vhd", BASE)
    assert (done.code, done.out.split()[0]) == (1, view_of(folder / BASE))
    assert "missing.vhd" in done.err
    assert cli("hash", "missing.vhd").code == 1


def test_a_file_in_use_is_75_and_can_be_read_all_the_same(cli: Cli, lay: Lay) -> None:
    folder = lay(BASE)
    with vhdkit.open_chain(str(folder / BASE), writable=True):
        assert cli("hash", BASE).code == 75
        assert cli("hash", BASE, BASE).code == 75
        assert cli("hash", BASE, "missing.vhd").code == 1
        assert cli("hash", BASE, "--force-share").code == 0


def test_blake3_is_an_extra_and_said_so_where_it_is_missing(
    cli: Cli, lay: Lay, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = lay(BASE)
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "blake3", None)
        done = cli("hash", "--blake3", BASE)
    assert done.code == 64
    assert "blake3" in done.err
    blake3 = pytest.importorskip("blake3")
    view = b"".join(view_bytes(str(folder / BASE)))
    assert cli("hash", "--blake3", BASE).out.split()[0] == blake3.blake3(view).hexdigest()


def view_bytes(path: str) -> list[bytes]:
    with vhdkit.open_chain(path) as chain:
        return [chain.read(0, chain.size)]


def test_progress_counts_every_byte_of_every_layer(lay: Lay) -> None:
    folder = lay(*CHAIN)
    seen: list[vhdkit.Progress] = []
    found = vhdkit.hash_image(str(folder / LEAF), layers=True, progress=seen.append)
    total = sum(view.size for view in found)
    done = [each.bytes_done for each in seen]
    assert {(each.phase, each.bytes_total) for each in seen} == {(vhdkit.Phase.HASHING, total)}
    assert (done, done[-1]) == (sorted(done), total)


def test_hashing_can_be_stopped(lay: Lay) -> None:
    folder = lay(*CHAIN)
    stop = threading.Event()
    stop.set()
    with pytest.raises(vhdkit.Cancelled, match="hashing"):
        vhdkit.hash_image(str(folder / LEAF), cancel=stop)


def test_other_names_of_formats_and_algorithms_are_refused(lay: Lay) -> None:
    folder = lay(BASE)
    with pytest.raises(ValueError, match="md5"):
        vhdkit.hash_image(str(folder / BASE), algorithm="md5")
    with pytest.raises(ValueError, match="vhdx"):
        vhdkit.hash_image(str(folder / BASE), image_format="vhdx")  # type: ignore[arg-type]
