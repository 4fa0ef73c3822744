"""The gate's attack table over every scheme: whatever an image says, only files beside it are asked for."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

import vhdkit
from tests.plainbuild import ImageSpec, build, locator
from tests.remote.attacked_images import BASE, LEAF
from vhdkit.errors import ParentRefusedError
from vhdkit.storage import transport

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from tests.remote.conftest import Bucket
    from tests.remote.range_server import RangeServer
    from tests.remote.sftp_server import SftpServer
    from vhdkit.storage.remote_paths import RemotePlace

# The parent that would fit is `outside/base.vhd`, beside the folder of the leaf. Of addresses one is of each scheme.
NAMED = [
    "../outside/base.vhd",
    "..\\outside\\base.vhd",
    "%2e%2e/outside/base.vhd",
    *(f"//{scheme}/127.0.0.1:9/base.vhd" for scheme in ("http", "https", "s3", "sftp")),
    *(f"{scheme}://127.0.0.1:9/base.vhd" for scheme in ("http", "https", "s3", "sftp")),
    "//sftp/other@127.0.0.1:9/base.vhd",
    "sftp://other@127.0.0.1:9/base.vhd",
    ".//http/127.0.0.1:9/base.vhd",
    *("..\\" * 9 + f"{scheme}\\127.0.0.1:9\\base.vhd" for scheme in ("http", "s3", "sftp")),
    "http:\\\\127.0.0.1:9\\base.vhd",
    "file:///etc/passwd",
    "/etc/passwd",
    "C:\\vms\\..\\..\\base.vhd",
    "\\\\other\\share\\base.vhd",
    "\\\\http\\127.0.0.1:9\\base.vhd",
    "\\\\sftp\\127.0.0.1:9\\base.vhd",
]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The URLs that anything is asked of from now on."""
    found: list[str] = []
    plain = transport.Transport._together  # noqa: SLF001 - every request goes through it

    def noted(on: transport.Transport, place: RemotePlace, requests: Sequence[Callable[..., Any]]) -> list[Any]:
        found.append(place.url)
        return plain(on, place, requests)

    monkeypatch.setattr(transport.Transport, "_together", noted)
    return found


@pytest.fixture
def attacked(tmp_path: Path) -> Path:
    """A folder with one for each line of the table: an image in `vms` that says so, and its parent beside that."""
    folder = tmp_path / "attacked"
    for number, named in enumerate(NAMED):
        links = (locator(0, b"W2ku", named), locator(1, b"W2ru", named), locator(2, b"MacX", named))
        write(folder / str(number) / "vms" / "leaf.avhd", replace(LEAF, parent_name=named, locators=links))
        write(folder / str(number) / "outside" / "base.vhd", BASE)
    return folder


def write(path: Path, spec: ImageSpec) -> None:
    path.parent.mkdir(parents=True)
    path.write_bytes(build(spec))


def assert_asks_only_below(url: str, asked: list[str]) -> None:
    """Open each line's image: there is no parent, and nothing but its folder is asked about."""
    for number, named in enumerate(NAMED):
        folder = f"{url}/{number}/vms"
        with pytest.raises((ParentRefusedError, vhdkit.ParentNotFoundError)):
            vhdkit.open_chain(f"{folder}/leaf.avhd")
        assert asked, named
        assert all(each == folder or each.startswith(f"{folder}/") for each in asked), (named, asked)
        asked.clear()


def test_by_http(attacked: Path, server: RangeServer, asked: list[str]) -> None:
    server.folder = attacked
    assert_asks_only_below(server.url, asked)


def test_by_s3(attacked: Path, empty_bucket: Bucket, asked: list[str]) -> None:
    empty_bucket.upload(attacked, "")
    assert_asks_only_below("s3://backups", asked)


def test_by_sftp(attacked: Path, sftp_server: SftpServer, asked: list[str]) -> None:
    assert_asks_only_below(f"{sftp_server.url}{attacked}", asked)
    # The server is asked about no other file either, however its path is written.
    outside = [path for _, path in sftp_server.requests if not re.match(rf"{attacked}/\d+/vms(/[^/]|$)", path)]
    assert outside == []


@pytest.mark.parametrize("number", range(len(NAMED)), ids=NAMED)
def test_a_local_image_makes_nobody_ask_another_machine(attacked: Path, asked: list[str], number: int) -> None:
    with pytest.raises((ParentRefusedError, vhdkit.ParentNotFoundError)):
        vhdkit.open_chain(attacked / str(number) / "vms" / "leaf.avhd")
    assert asked == []


def test_links_at_a_server_of_sftp_lead_nowhere(tmp_path: Path, sftp_server: SftpServer) -> None:
    """A name beside the leaf that is a link to a file elsewhere is no parent, as on this machine."""
    links = (locator(0, b"W2ru", ".\\base.vhd"),)
    vms, outside = tmp_path / "vms", tmp_path / "outside"
    write(vms / "leaf.avhd", replace(LEAF, parent_name="base.vhd", locators=links))
    write(outside / "base.vhd", BASE)
    (vms / "base.vhd").symlink_to(outside / "base.vhd")
    with pytest.raises(ParentRefusedError, match="outside of the folders allowed"):
        vhdkit.open_chain(f"{sftp_server.url}{vms}/leaf.avhd")
    with vhdkit.open_chain(f"{sftp_server.url}{vms}/leaf.avhd", search=[f"{sftp_server.url}{outside}"]) as chain:
        assert len(chain.layers) == 2
