"""Clients of every kind read what the model shows, and what they write is in the leaf."""

from __future__ import annotations

import errno
import os
import random
import shutil
import signal
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, urlsplit

import pytest

import vhdkit
from tests.conformance.tools import requires, run
from tests.model import Kind, ModelChain
from tests.plainvhd import flat, parse
from tests.serve.disks import SIZE, on_disk, three_layers
from tests.serve.nbd_client import FLUSH, READ, TRIM, WRITE_ZEROES, NbdClient, Refused
from vhdkit.errors import ImageInUseError, ServeError
from vhdkit.serve import nbd_server
from vhdkit.serve.address import TcpPort, UnixSocket
from vhdkit.serve.nbd_server import serve_nbd

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vhdkit.serve.nbd_server import NbdServer


@pytest.fixture(autouse=True)
def _nbdkit() -> None:
    requires("nbdkit")


@pytest.fixture
def server(leaf: Path) -> Iterator[NbdServer]:
    with vhdkit.open_chain(leaf) as chain, serve_nbd(chain) as found:
        yield found


def socket_of(server: NbdServer) -> Path:
    return Path(parse_qs(urlsplit(server.uri).query)["socket"][0])


def shown_by(leaf: Path) -> bytes:
    """What the chain of a leaf of this folder shows to the tests' own reader."""
    folder = leaf.parent
    names = sorted(folder.glob("layer-*"), reverse=True)
    return flat([parse(path) for path in names]).tobytes()


# Reading


@pytest.mark.parametrize("base", [Kind.DYNAMIC, Kind.FIXED])
def test_the_bytes_are_those_of_the_model(base: Kind, tmp_path: Path) -> None:
    model = three_layers(base)
    leaf = on_disk(model, tmp_path / "chain")
    with vhdkit.open_chain(leaf) as chain, serve_nbd(chain) as server, NbdClient(server.uri) as client:
        assert client.size == SIZE
        assert client.is_read_only
        assert client.read(0, SIZE) == model.read(0, SIZE)
        dice = random.Random(1)
        for _ in range(200):
            offset = dice.randrange(SIZE)
            length = dice.randint(1, min(SIZE - offset, 30_000))
            assert client.read(offset, length) == model.read(offset, length)


def test_a_server_says_whether_it_runs(leaf: Path) -> None:
    with vhdkit.open_chain(leaf) as chain, serve_nbd(chain) as server:
        assert repr(server) == f"<NbdServer {server.uri!r}: running>"
    assert repr(server).endswith(": ended>")


def test_bytes_that_are_in_no_file_as_they_are_come_from_vhdkit(
    model: ModelChain, leaf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nbd_server, "descriptor_of", lambda _storage: None)
    with vhdkit.open_chain(leaf) as chain, serve_nbd(chain) as server, NbdClient(server.uri) as client:
        assert client.read(0, SIZE) == model.read(0, SIZE)


def test_a_raw_parent_is_read_through(tmp_path: Path) -> None:
    model = three_layers(Kind.RAW)
    leaf = on_disk(model, tmp_path / "chain")
    with (
        vhdkit.open_chain(leaf, parent=leaf.parent / "layer-0.img") as chain,
        serve_nbd(chain) as server,
        NbdClient(server.uri) as client,
    ):
        assert client.read(0, SIZE) == model.read(0, SIZE)


def test_qemu_img_converts_and_compares(model: ModelChain, server: NbdServer, tmp_path: Path) -> None:
    raw, out = tmp_path / "model.raw", tmp_path / "out.qcow2"
    raw.write_bytes(model.read(0, SIZE))
    run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", server.uri, out)
    run("qemu-img", "compare", "-f", "raw", "-F", "qcow2", raw, out)
    run("qemu-img", "compare", "-f", "raw", "-F", "raw", raw, server.uri)


def test_nbdcopy_copies(model: ModelChain, server: NbdServer, tmp_path: Path) -> None:
    out = tmp_path / "out.raw"
    run("nbdcopy", server.uri, out)
    assert out.read_bytes() == model.read(0, SIZE)


def test_nbdinfo_maps_data_and_holes_as_the_layers_hold_them(model: ModelChain, server: NbdServer) -> None:
    reported = [line.split() for line in run("nbdinfo", "--map", server.uri).decode().splitlines()]
    held = bytearray()
    for start, length, kind, _ in reported:
        assert int(start) == len(held)
        held += bytes([kind == "0"]) * int(length)
    assert len(held) == SIZE
    assert list(held[::512]) == [source >= 0 for source in model.sources()]


def test_a_hole_of_terabytes_is_mapped_in_a_few_answers(tmp_path: Path) -> None:
    path = tmp_path / "large.vhd"
    vhdkit.create_image(path, size=2040 << 30)
    with vhdkit.open_chain(path) as chain, serve_nbd(chain) as server:
        reported = run("nbdinfo", "--map", server.uri).decode().splitlines()
    assert [line.split()[1:] for line in reported] == [[str(2040 << 30), "3", "hole,zero"]]


def test_holes_of_a_fixed_disk_are_holes(tmp_path: Path) -> None:
    path = tmp_path / "fixed.vhd"
    vhdkit.create_image(path, size=64 << 20, disk_type="fixed")
    with path.open("r+b") as file:
        file.seek(32 << 20)
        file.write(b"x" * 4096)
    with vhdkit.open_chain(path) as chain, serve_nbd(chain) as server:
        reported = [line.split() for line in run("nbdinfo", "--map", server.uri).decode().splitlines()]
    data = sum(int(line[1]) for line in reported if line[2] == "0")
    assert 4096 <= data <= 2 << 20


def test_ten_clients_read_at_once(model: ModelChain, server: NbdServer) -> None:
    expected = model.read(0, SIZE)

    def read_some(seed: int) -> bool:
        dice = random.Random(seed)
        with NbdClient(server.uri) as client:
            for _ in range(50):
                offset = dice.randrange(SIZE - 1)
                length = dice.randint(1, SIZE - offset)
                if client.read(offset, length) != expected[offset : offset + length]:
                    return False
        return True

    with ThreadPoolExecutor(10) as clients:
        assert all(clients.map(read_some, range(10)))


def test_a_client_that_hangs_up_harms_nobody(model: ModelChain, server: NbdServer) -> None:
    for length in (SIZE, 512):
        with NbdClient(server.uri) as gone:
            for _ in range(20):
                gone.send(READ, 0, length)
    with NbdClient(server.uri) as client:
        assert client.read(0, SIZE) == model.read(0, SIZE)


def test_nobody_writes_to_what_is_served_for_reading(leaf: Path, server: NbdServer) -> None:
    with NbdClient(server.uri) as client, pytest.raises(Refused) as caught:
        client.write(0, b"x" * 512)
    assert caught.value.number == errno.EPERM
    with pytest.raises(ImageInUseError):
        vhdkit.open_chain(leaf, writable=True)


def test_a_damaged_place_is_an_error_and_the_rest_is_read(model: ModelChain, tmp_path: Path) -> None:
    leaf = on_disk(model, tmp_path / "chain")
    with vhdkit.open_chain(leaf) as chain, serve_nbd(chain) as server, NbdClient(server.uri) as client:
        base = leaf.parent / "layer-0.vhd"
        # Only a file that is cut off while it is served ends before its blocks: opening would refuse it.
        os.truncate(base, base.stat().st_size - 512 - 4000)
        with pytest.raises(Refused) as caught:
            client.read(229_376, 4096)
        assert caught.value.number == errno.EIO
        assert client.read(12_288, 512) == model.read(12_288, 512)


# Writing


def test_what_clients_write_is_in_the_leaf(model: ModelChain, leaf: Path) -> None:
    below = {path: path.read_bytes() for path in leaf.parent.iterdir() if path != leaf}
    dice, expected = random.Random(2), bytearray(model.read(0, SIZE))
    with vhdkit.open_chain(leaf, writable=True) as chain, serve_nbd(chain) as server, NbdClient(server.uri) as client:
        for _ in range(60):
            offset = dice.randrange(SIZE - 1)
            length = dice.randint(1, min(SIZE - offset, 20_000))
            data = dice.randbytes(length) if dice.random() < 0.7 else bytes(length)
            if any(data):
                client.write(offset, data)
            else:
                client.ask(WRITE_ZEROES, offset, length)
            expected[offset : offset + length] = data
            look = dice.randrange(SIZE - 1)
            assert client.read(look, min(SIZE - look, 9_000)) == expected[look : look + 9_000]
        client.ask(FLUSH, 0, 0)
        assert client.read(0, SIZE) == expected
    assert shown_by(leaf) == expected
    assert {path: path.read_bytes() for path in below} == below


def test_zeros_over_zeros_take_no_space(leaf: Path) -> None:
    before = leaf.stat().st_size
    with vhdkit.open_chain(leaf, writable=True) as chain, serve_nbd(chain) as server, NbdClient(server.uri) as client:
        client.ask(WRITE_ZEROES, 240_000, 40_000)
    assert leaf.stat().st_size == before


def test_trimmed_data_of_the_leaf_read_as_zeros_and_take_no_space(tmp_path: Path) -> None:
    path = tmp_path / "disk.vhd"
    vhdkit.create_image(path, size=8 << 20)
    with vhdkit.open_chain(path, writable=True) as chain, serve_nbd(chain) as server, NbdClient(server.uri) as client:
        client.write(0, b"x" * (4 << 20))
        client.ask(FLUSH, 0, 0)
        full = path.stat().st_blocks
        client.ask(TRIM, 512, (3 << 20) - 512)
        assert client.read(0, 4 << 20) == b"x" * 512 + bytes((3 << 20) - 512) + b"x" * (1 << 20)
        assert path.stat().st_blocks * 512 <= full * 512 - (3 << 20) + 16_384
    assert vhdkit.check(path).findings == ()


def test_trimming_leaves_what_lower_layers_hold(model: ModelChain, leaf: Path) -> None:
    with vhdkit.open_chain(leaf, writable=True) as chain, serve_nbd(chain) as server, NbdClient(server.uri) as client:
        client.ask(TRIM, 0, SIZE)
        found = client.read(0, SIZE)
    for number, source in enumerate(model.sources()):
        expected = bytes(512) if source == 0 else model.sector(number)
        assert found[number * 512 : number * 512 + 512] == expected


def test_qemu_io_writes_and_flushes(leaf: Path) -> None:
    with vhdkit.open_chain(leaf, writable=True) as chain, serve_nbd(chain) as server:
        run(
            "qemu-io",
            "-f",
            "raw",
            *("-c", "write -P 7 100k 64k", "-c", "write -f -P 8 300 700", "-c", "flush", "-c", "read -P 7 100k 64k"),
            server.uri,
        )
    view = shown_by(leaf)
    assert view[102_400 : 102_400 + 65_536] == b"\7" * 65_536
    assert view[300:1000] == b"\10" * 700


def test_ten_clients_write_each_its_own_part(leaf: Path) -> None:
    share = SIZE // 10 // 512 * 512

    def fill(uri: str, number: int) -> None:
        dice = random.Random(number)
        with NbdClient(uri) as client:
            for at in range(0, share, 512):
                client.write(number * share + at, bytes([number + 1]) * 512)
                if dice.random() < 0.1:
                    look = dice.randrange(at + 1)
                    assert client.read(number * share + look, at + 512 - look) == bytes([number + 1]) * (
                        at + 512 - look
                    )

    with (
        vhdkit.open_chain(leaf, writable=True) as chain,
        serve_nbd(chain) as server,
        ThreadPoolExecutor(10) as clients,
    ):
        list(clients.map(fill, [server.uri] * 10, range(10)))
    assert shown_by(leaf)[: 10 * share] == b"".join(bytes([number + 1]) * share for number in range(10))


def test_a_full_disk_reaches_the_client_by_name(leaf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with vhdkit.open_chain(leaf, writable=True) as chain, serve_nbd(chain) as server, NbdClient(server.uri) as client:

        def full(*_arguments: object, **_named: object) -> None:
            raise OSError(errno.ENOSPC, "no space left")

        monkeypatch.setattr(chain, "write", full)
        with pytest.raises(Refused) as caught:
            client.write(0, b"x" * 512)
        assert caught.value.number == errno.ENOSPC


# Beginning and ending


def test_the_socket_and_its_folder_are_private_and_go_with_the_server(leaf: Path) -> None:
    with vhdkit.open_chain(leaf) as chain, serve_nbd(chain) as server:
        path = socket_of(server)
        assert path.is_socket()
        assert path.parent.stat().st_mode & 0o077 == 0
    assert not path.exists()
    assert not path.parent.exists()
    with vhdkit.open_chain(leaf, writable=True):
        pass


def test_a_socket_of_ones_own_is_made_and_removed(leaf: Path, tmp_path: Path) -> None:
    path = tmp_path / "a socket"
    with vhdkit.open_chain(leaf) as chain, serve_nbd(chain, UnixSocket(path=str(path))) as server:
        assert run("nbdinfo", "--size", server.uri).decode().strip() == str(SIZE)
    assert not path.exists()


def test_what_has_the_sockets_name_already_is_left_alone(leaf: Path) -> None:
    before = leaf.read_bytes()
    with (
        vhdkit.open_chain(leaf) as chain,
        pytest.raises(ServeError, match="in use"),
        serve_nbd(chain, UnixSocket(path=str(leaf))),
    ):
        pass
    assert leaf.read_bytes() == before


def test_a_port_is_of_the_loopback(model: ModelChain, leaf: Path, free_port: int) -> None:
    with vhdkit.open_chain(leaf) as chain, serve_nbd(chain, TcpPort(port=free_port)) as server:
        assert server.uri == f"nbd://127.0.0.1:{free_port}"
        with NbdClient(server.uri) as client:
            assert client.read(0, SIZE) == model.read(0, SIZE)
        listening = Path("/proc/net/tcp").read_text()
        assert f"0100007F:{free_port:04X}" in listening
        assert f"00000000:{free_port:04X}" not in listening
        with (
            vhdkit.open_chain(leaf) as again,
            pytest.raises(ServeError, match="in use"),
            serve_nbd(again, TcpPort(port=free_port)),
        ):
            pass


def test_missing_programs_are_named(leaf: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with vhdkit.open_chain(leaf) as chain:
        with monkeypatch.context() as patch:
            patch.setenv("PATH", str(tmp_path))
            with pytest.raises(ServeError, match="nbdkit-plugin-python"), serve_nbd(chain):
                pass
        nbdkit = shutil.which("nbdkit")
        lacking = tmp_path / "nbdkit"
        change = '[ "$word" = python ] && word=nosuch; set -- "$@" "$word"'
        lacking.write_text(f'#!/bin/sh\nfor word; do shift; {change}; done\nexec {nbdkit} "$@"\n')
        lacking.chmod(0o755)
        monkeypatch.setattr(nbd_server, "NBDKIT", str(lacking))
        with pytest.raises(ServeError, match="nbdkit-plugin-python"), serve_nbd(chain):
            pass


def test_a_killed_nbdkit_is_noticed(leaf: Path) -> None:
    with vhdkit.open_chain(leaf) as chain, serve_nbd(chain) as server:
        os.kill(server._process.pid, signal.SIGKILL)  # noqa: SLF001 - as anybody could
        server.wait(30)
        assert not server.is_running
        assert "signal 9" in str(server.failure())
    assert not socket_of(server).parent.exists()


def test_the_server_ends_while_clients_are_connected(leaf: Path) -> None:
    with vhdkit.open_chain(leaf) as chain:
        with serve_nbd(chain) as server:
            client = NbdClient(server.uri)
            assert client.read(0, 512)
        with client, pytest.raises((ConnectionResetError, BrokenPipeError)):
            client.read(0, 512)


def test_no_thread_and_no_file_is_left(leaf: Path) -> None:
    def open_files() -> int:
        return len(os.listdir("/proc/self/fd"))

    before = threading.active_count(), open_files()
    for _ in range(2):
        with vhdkit.open_chain(leaf) as chain, serve_nbd(chain):
            pass
    assert (threading.active_count(), open_files()) == before


def test_a_python_of_the_users_own_does_not_disturb_nbdkit(
    leaf: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "socket.py").write_text("raise RuntimeError\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with vhdkit.open_chain(leaf) as chain, serve_nbd(chain) as server:
        assert subprocess.run(["nbdinfo", "--size", server.uri], check=False, capture_output=True).returncode == 0
