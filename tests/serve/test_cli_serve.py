"""vhdkit serve: what its user sees, and how its processes end together."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, urlsplit

import pytest

import vhdkit
from tests.cli.running import environment, program, spawn
from tests.conformance.tools import requires
from tests.plainvhdx import FULL, MIB, Disk, linked, write
from tests.plainvhdx import read as read_vhdx
from tests.serve.disks import SIZE
from tests.serve.nbd_client import NbdClient

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.model import ModelChain

WAIT_SECONDS = 30


@pytest.fixture(autouse=True)
def _nbdkit() -> None:
    requires("nbdkit")


@contextmanager
def served(*arguments: object) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Run the program without COMMAND; lend its process and the URI that it prints."""
    process = subprocess.Popen(
        program("serve", *map(str, arguments)),
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        assert process.stdout is not None
        yield process, process.stdout.readline().strip()
    finally:
        process.kill()
        process.communicate()


def socket_of(uri: str) -> Path:
    return Path(parse_qs(urlsplit(uri).query)["socket"][0])


def children_of(pid: int) -> list[int]:
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def gone(path: Path) -> bool:
    """Whether a path goes away in time."""
    until = time.monotonic() + WAIT_SECONDS
    while path.exists() and time.monotonic() < until:
        time.sleep(0.02)
    return not path.exists()


def can_be_had(leaf: Path) -> bool:
    """Whether nobody holds the leaf any more."""
    until = time.monotonic() + WAIT_SECONDS
    while time.monotonic() < until:
        try:
            vhdkit.open_chain(leaf, writable=True).close()
        except vhdkit.ImageInUseError:
            time.sleep(0.02)
        else:
            return True
    return False


# With a command


def test_a_command_gets_the_disk_and_ends_it_all(model: ModelChain, leaf: Path, tmp_path: Path) -> None:
    requires("qemu-img")
    done = spawn(
        "serve", str(leaf), "--", "qemu-img", "convert", "-f", "raw", "-O", "raw", "{}", "out.raw", cwd=tmp_path
    )
    assert (done.code, done.out, done.err) == (0, "", "")
    assert (tmp_path / "out.raw").read_bytes() == model.read(0, SIZE)


def test_the_exit_code_is_that_of_the_command(leaf: Path, tmp_path: Path) -> None:
    assert spawn("serve", str(leaf), "--", "sh", "-c", "exit 7", cwd=tmp_path).code == 7
    assert spawn("serve", str(leaf), "--", "sh", "-c", "kill -9 $$", cwd=tmp_path).code == 137


def test_the_address_is_in_the_environment_and_in_the_middle_of_words(leaf: Path, tmp_path: Path) -> None:
    done = spawn("serve", str(leaf), "--", "sh", "-c", 'test "a=$VHDKIT_URI" = "$0" && echo so', "a={}", cwd=tmp_path)
    assert (done.code, done.out) == (0, "so\n")


def test_a_command_that_is_not_there_is_named(leaf: Path, tmp_path: Path) -> None:
    assert "no-such-program" in spawn("serve", str(leaf), "--", "no-such-program", cwd=tmp_path).refused()


def test_a_command_whose_server_is_killed_is_ended(leaf: Path, tmp_path: Path) -> None:
    script = 'kill -9 $(cat /proc/$PPID/task/$PPID/children | tr " " "\\n" | head -1); exec sleep 60'
    done = spawn("serve", str(leaf), "--", "sh", "-c", script, cwd=tmp_path)
    assert done.code == 1
    assert "nbdkit was ended by signal 9" in done.err


def test_a_command_writes_into_the_leaf_if_it_may(leaf: Path, tmp_path: Path) -> None:
    requires("qemu-io")
    write = ("qemu-io", "-f", "raw", "-c", "write -P 9 0 1024", "{}")
    refused = spawn("serve", str(leaf), "--", *write, cwd=tmp_path)
    assert refused.code != 0
    assert spawn("serve", str(leaf), "--writable", "--", *write, cwd=tmp_path).code == 0
    with vhdkit.open_chain(leaf) as chain:
        assert chain.read(0, 1024) == b"\t" * 1024


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_reaches_the_command(leaf: Path, tmp_path: Path, number: signal.Signals) -> None:
    words = program("serve", str(leaf), "--", "sh", "-c", "trap 'echo bye; exit 3' TERM; echo up; sleep 60 & wait")
    with subprocess.Popen(words, env=environment(), stdout=subprocess.PIPE, text=True, cwd=tmp_path) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        process.send_signal(number)
        assert process.stdout.readline() == "bye\n"
        assert process.wait(WAIT_SECONDS) == 3


def test_a_ctrl_c_leaves_the_command_to_decide_and_a_second_one_ends_it(leaf: Path, tmp_path: Path) -> None:
    script = (
        "import signal, time; signal.signal(signal.SIGINT, lambda *_: print('no', flush=True));"
        "print('up', flush=True); time.sleep(60)"
    )
    words = program("serve", str(leaf), "--", sys.executable, "-c", script)
    process = subprocess.Popen(
        words, env=environment(), stdout=subprocess.PIPE, text=True, cwd=tmp_path, start_new_session=True
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        os.killpg(process.pid, signal.SIGINT)
        assert process.stdout.readline() == "no\n"
        assert process.poll() is None
        os.killpg(process.pid, signal.SIGINT)
        try:
            process.wait(WAIT_SECONDS)
        except subprocess.TimeoutExpired:
            # Two that come before Python has seen the first are one.
            os.killpg(process.pid, signal.SIGINT)
        assert process.wait(WAIT_SECONDS) == 128 + signal.SIGTERM


# Without a command


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_a_good_end(model: ModelChain, leaf: Path, number: signal.Signals) -> None:
    with served(leaf) as (process, uri):
        with NbdClient(uri) as client:
            assert client.read(0, SIZE) == model.read(0, SIZE)
        process.send_signal(number)
        assert process.wait(WAIT_SECONDS) == 0
        assert process.communicate() == ("", "")
        assert not socket_of(uri).exists()


def test_a_port_of_the_loopback(model: ModelChain, leaf: Path, free_port: int) -> None:
    with served(leaf, "--port", free_port) as (_, uri):
        assert uri == f"nbd://127.0.0.1:{free_port}"
        with NbdClient(uri) as client:
            assert client.read(0, SIZE) == model.read(0, SIZE)


def test_an_address_that_others_reach_is_warned_of(leaf: Path, free_port: int) -> None:
    with served(leaf, "--port", free_port, "--bind", "0.0.0.0") as (process, _):  # noqa: S104 - that is the test
        process.send_signal(signal.SIGTERM)
        assert "every host that reaches" in process.communicate()[1]


def test_a_socket_by_name(leaf: Path, tmp_path: Path) -> None:
    with served(leaf, "--socket", tmp_path / "s p") as (process, uri):
        assert uri == f"nbd+unix:///?socket={tmp_path}/s%20p"
        process.send_signal(signal.SIGTERM)
        process.wait(WAIT_SECONDS)
        assert not (tmp_path / "s p").exists()


def test_everything_ends_when_vhdkit_is_killed(leaf: Path) -> None:
    with served(leaf, "--writable") as (process, uri), NbdClient(uri) as client:
        client.write(0, b"x" * 512)
        (nbdkit,) = children_of(process.pid)
        process.kill()
        process.wait()
        assert gone(Path(f"/proc/{nbdkit}")) or Path(f"/proc/{nbdkit}/stat").read_text().split()[2] == "Z"
    assert gone(socket_of(uri).parent)
    assert can_be_had(leaf)


def test_it_ends_when_nbdkit_is_killed(leaf: Path) -> None:
    with served(leaf) as (process, uri):
        (nbdkit,) = children_of(process.pid)
        os.kill(nbdkit, signal.SIGKILL)
        assert process.wait(WAIT_SECONDS) == 1
        assert "nbdkit was ended by signal 9" in process.communicate()[1]
        assert not socket_of(uri).exists()


# What is asked for


@pytest.mark.parametrize(
    "options",
    [
        ("--socket", "s", "--port", "10809"),
        ("--socket", "s", "--bind", "127.0.0.1"),
        ("--port", "0"),
        ("--writable", "-U"),
        ("--writable", "-f", "raw"),
    ],
)
def test_options_that_exclude_each_other(leaf: Path, tmp_path: Path, options: tuple[str, ...]) -> None:
    assert spawn("serve", str(leaf), *options, "--", "true", cwd=tmp_path).code == 64


def test_a_file_in_use_is_not_served(leaf: Path, tmp_path: Path) -> None:
    with vhdkit.open_chain(leaf, writable=True):
        assert spawn("serve", str(leaf), "--", "true", cwd=tmp_path).code == 75


def test_without_nbdkit_its_packages_are_named(leaf: Path, tmp_path: Path) -> None:
    done = spawn("serve", str(leaf), "--", "true", cwd=tmp_path, env=environment(PATH=str(tmp_path)))
    assert "nbdkit-plugin-python" in done.refused()


def test_a_raw_disk_is_served(tmp_path: Path) -> None:
    (tmp_path / "a.img").write_bytes(b"raw" * 1024)
    done = spawn("serve", "a.img", "--", "nbdinfo", "--size", "{}", cwd=tmp_path)
    assert (done.code, done.out) == (0, "3072\n")


def test_a_vhdx_is_served(tmp_path: Path) -> None:
    base = Disk(size=4 * MIB, blocks={0: (FULL, b"b" * MIB), 2: (FULL, b"c" * MIB)})
    child = Disk(
        size=4 * MIB,
        data_id=bytes(range(16, 32)),
        texts=linked(base.data_id, relative=".\\base.vhdx"),
        blocks={1: (FULL, b"d" * MIB)},
    )
    (tmp_path / "base.vhdx").write_bytes(write(base))
    (tmp_path / "leaf.avhdx").write_bytes(write(child))
    with served(tmp_path / "leaf.avhdx") as (_, uri), NbdClient(uri) as client:
        assert client.read(0, 4 * MIB) == read_vhdx([write(child), write(base)])
    assert spawn("serve", "leaf.avhdx", "--writable", "--", "true", cwd=tmp_path).code == 1
