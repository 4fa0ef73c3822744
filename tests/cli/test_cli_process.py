"""The program as a process: exit codes, streams, terminals, signals, pipes."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import shutil
import signal
import struct
import subprocess
import sys
import termios
import time
from typing import TYPE_CHECKING, Any

import pytest

import vhdkit
from tests.cli.running import (
    BASE,
    CHAIN,
    FIXTURES,
    LEAF,
    MANIFEST,
    MIDDLE,
    ROOT,
    Outcome,
    environment,
    program,
    snapshot,
    spawn,
    view_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Cli = Callable[..., Outcome]
    Lay = Callable[..., Path]

VERBS = ["info", "chain", "scan", "map", "merge", "create", "convert", "compare"]
VIEW = MANIFEST[LEAF]["view_sha256"]


def test_help_names_every_verb_and_goes_to_stdout(tmp_path: Path) -> None:
    done = spawn("--help", cwd=tmp_path)
    assert (done.code, done.err) == (0, "")
    for verb in VERBS:
        assert re.search(rf"^  {verb}\s+[A-Z]", done.out, re.MULTILINE)


@pytest.mark.parametrize("verb", [*VERBS, "commit", "coalesce"])
@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_every_verb_helps(cli: Cli, verb: str, flag: str) -> None:
    done = cli(verb, flag)
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith("Usage: vhdkit ")
    assert max(len(line) for line in done.out.splitlines()) <= 100


OPTIONS = {
    "info": ["--backing-chain", "--json", "--search", "--parent-map", "--parent"],
    "chain": ["--json", "--search", "--parent-map", "--parent"],
    "scan": ["--json", "--search"],
    "map": ["--json", "--search", "--parent-map", "--parent"],
    "merge": [
        *["--into", "--to", "--keep-sources", "--dry-run", "--progress"],
        *["--json", "--search", "--parent-map", "--parent"],
    ],
    "create": ["--size", "--type", "--parent", "--json"],
    "convert": ["-O", "--progress", "--json", "--search", "--parent-map", "--parent"],
    "compare": ["--strict", "--json", "--search", "--parent-map", "--parent"],
}


@pytest.mark.parametrize("verb", VERBS)
def test_help_explains_every_option_of_a_verb(cli: Cli, verb: str) -> None:
    text = " ".join(cli(verb, "--help").out.split())
    for option in OPTIONS[verb]:
        assert re.search(rf" {option}[ ,]", text), option


def test_the_version_is_told(tmp_path: Path) -> None:
    done = spawn("--version", cwd=tmp_path)
    assert (done.code, done.err) == (0, "")
    assert re.search(rf"^vhdkit {re.escape(vhdkit.__version__)}$", done.out, re.MULTILINE)


NOT_FOR_HELP = [
    *("numpy", "construct", "rich", "sqlite3", "msgspec", "importlib.metadata", "ctypes"),
    "vhdkit.storage.local_folder",
]


def loaded_by(*words: str, cwd: Path) -> list[str]:
    """Return the modules that a process has loaded when it has run one command."""
    script = (
        "import sys\nfrom vhdkit.cli.main import run\nassert run(sys.argv[1:]) == 0\nprint(' '.join(sys.modules))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *words], cwd=cwd, env=environment(), capture_output=True, text=True, check=True
    )
    return done.stdout.splitlines()[-1].split()


@pytest.mark.parametrize(
    ("words", "spared"),
    [
        (["--help"], NOT_FOR_HELP),
        (["--version"], ["numpy", "construct", "rich", "vhdkit.cli.merge"]),
        (["merge", "--help"], ["vhdkit.cli.snapshot", "vhdkit.cli.job"]),
        *[([verb, "--help"], NOT_FOR_HELP) for verb in (*VERBS, "check", "rollback", "undo")],
        (["undo", "drop", "--help"], NOT_FOR_HELP),
        (["job", "list"], ["numpy", "construct", "rich"]),
        (["scan", str(FIXTURES)], ["numpy", "rich", "sqlite3"]),
        (["info", str(FIXTURES / LEAF)], ["rich", "numpy.ma", "sqlite3"]),
        (["chain", str(FIXTURES / LEAF)], ["rich", "numpy.ma", "sqlite3"]),
    ],
    ids=lambda value: value[0] if value[0] in NOT_FOR_HELP else "-".join(value[:2]),
)
def test_a_verb_loads_only_what_it_needs(tmp_path: Path, words: list[str], spared: list[str]) -> None:
    loaded = loaded_by(*words, cwd=tmp_path)
    assert "click" in loaded
    assert [name for name in spared if name in loaded] == []


def test_a_merge_loads_no_machines_where_there_are_none(vms: Path) -> None:
    loaded = loaded_by("merge", "--progress", "none", LEAF, cwd=vms)
    assert "vhdkit.merging.run.engine" in loaded
    assert [name for name in ("rich", "numpy.ma", "vhdkit.snapshot.manifest_file") if name in loaded] == []


def test_the_program_starts_no_threads_for_linear_algebra(vms: Path) -> None:
    """numpy would start one a processor; merging has need of none of them."""
    script = (
        "import os, sys\n"
        "import vhdkit.cli.main as program\n"
        "real = program.run\n"
        "def run(words):\n"
        "    code = real(words)\n"
        "    assert 'numpy' in sys.modules\n"
        "    print(len(os.listdir('/proc/self/task')), flush=True)\n"
        "    return code\n"
        "program.run = run\n"
        "program.main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, "chain", LEAF],
        cwd=vms,
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines()[-1] == "1"


def test_help_answers_fast(tmp_path: Path) -> None:
    """Processor time above a bare interpreter's is what a busy machine leaves comparable (docs/reference/limits.md)."""

    def best(command: list[str]) -> float:
        times = []
        for _ in range(5):
            before = os.times()
            subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, check=True)
            after = os.times()
            used = after.children_user - before.children_user + after.children_system - before.children_system
            times.append(used)
        return min(times)

    assert best(program("--help")) - best([sys.executable, "-c", "pass"]) < 0.2


USAGE = [
    [],
    ["frobnicate"],
    ["--frobnicate"],
    *[[verb] for verb in VERBS],
    *[[verb, "--frobnicate"] for verb in VERBS],
    ["info", LEAF, BASE],
    ["merge", LEAF, "--into", BASE, "--to", "new.vhd"],
    ["merge", LEAF, "--into"],
    ["merge", LEAF, "--progress", "loud"],
    ["convert", LEAF, "new", "-O", "qcow"],
    ["convert", LEAF],
    ["compare", LEAF],
    ["create", "new.vhd"],
    ["create", "new.vhd", "--size", "big"],
    ["create", "new.vhd", "--size", "-1"],
    ["create", "new.vhd", "--size", "1.5G"],
    ["create", "new.vhd", "--size", ""],
    ["create", "new.vhd", "--size", "1M", "--type", "differencing"],
    ["create", "new.vhd", "--type", "fixed", "--parent", BASE],
    ["chain", LEAF, "--parent-map", "nonsense"],
    ["chain", LEAF, "--search", "no such folder"],
]


@pytest.mark.parametrize("words", USAGE, ids=" ".join)
def test_wrong_usage_is_64_and_touches_nothing(cli: Cli, vms: Path, words: list[str]) -> None:
    before = snapshot(vms)
    done = cli(*words)
    assert (done.code, done.out) == (64, "")
    assert re.search("^(Usage: vhdkit|vhdkit: |Error: )", done.err, re.MULTILINE)
    assert "Traceback" not in done.err
    assert snapshot(vms) == before


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["chain", LEAF], 0),
        (["chain", "nothing.vhd"], 1),
        (["scan", "nothing"], 1),
        (["merge", BASE], 1),
        (["compare", LEAF, LEAF], 0),
        (["compare", LEAF, MIDDLE], 1),
        (["compare", LEAF, "nothing.vhd"], 2),
        (["frobnicate"], 64),
        (["compare", LEAF], 64),
        (["create", "new.vhd"], 64),
    ],
)
def test_exit_codes_leave_the_process(vms: Path, words: list[str], code: int) -> None:
    done = spawn(*words, cwd=vms)
    assert done.code == code
    assert "Traceback" not in done.err
    assert bool(done.err) is not bool(done.out)


def progress_of(err: str) -> list[tuple[str, int]]:
    """Return the (phase, percent) of plain lines."""
    lines = [re.fullmatch(r"(\w+): (\d+) %, \d+ of \d+ bytes", line) for line in err.splitlines()]
    assert all(lines), err
    return [(line[1], int(line[2])) for line in lines if line]


@pytest.mark.parametrize("style", ["bar", "plain", "json", "none", ""])
@pytest.mark.parametrize(
    "words", [["merge", LEAF], ["merge", LEAF, "--to", "new"], ["convert", LEAF, "new"]], ids=" ".join
)
def test_results_parse_whatever_the_progress(cli: Cli, vms: Path, words: list[str], style: str) -> None:
    done = cli(*words, "--json", *([f"--progress={style}"] if style else []))
    assert done.code == 0
    assert done.json
    assert "Traceback" not in done.err
    assert vms.is_dir()
    if style == "none":
        assert done.err == ""
    else:
        assert "100" in done.err


@pytest.mark.parametrize(
    "words", [["merge", LEAF], ["merge", LEAF, "--to", "new"], ["convert", LEAF, "new"]], ids=" ".join
)
def test_progress_as_json_is_a_line_a_record_and_never_goes_back(cli: Cli, vms: Path, words: list[str]) -> None:
    records: list[dict[str, Any]] = [json.loads(line) for line in cli(*words, "--progress=json").err.splitlines()]
    assert vms.is_dir()
    events = [record for record in records if "event-id" in record]
    ends = [event["event-id"] for event in events if event["event-id"]]
    assert ends == ([19070, 19080] if words[0] == "merge" else [])
    assert len(events) > 2 or words[0] != "merge"
    numbers = {"phase": str, "percent-complete": int, "bytes-done": int, "bytes-total": int}
    for record in records:
        assert {key: type(record[key]) for key in numbers} == numbers
        assert set(record) == set(numbers) or record in events
        assert 0 <= record["bytes-done"] <= record["bytes-total"]
    done = [record["bytes-done"] for record in records]
    assert done == sorted(done)
    assert records[-1]["percent-complete"] == 100


def test_a_pipe_gets_plain_lines(vms: Path) -> None:
    done = spawn("merge", LEAF, "--json", cwd=vms)
    assert done.json["removed"]
    steps = progress_of(done.err)
    assert [phase for phase, _ in steps] == sorted((phase for phase, _ in steps), key=lambda p: "rcf".index(p[0]))
    assert steps[-1] == ("finishing", 100)


def on_terminal(*arguments: str, cwd: Path) -> Outcome:
    """Run the program with a terminal of 80 columns for its messages and a pipe for its results."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    env = {key: value for key, value in environment(TERM="xterm").items() if key not in {"COLUMNS", "NO_COLOR"}}
    with subprocess.Popen(program(*arguments), cwd=cwd, env=env, stdout=subprocess.PIPE, stderr=theirs) as process:
        os.close(theirs)
        shown = b""
        while True:
            try:
                piece = os.read(ours, 65536)
            except OSError:  # Linux says so when the last writer has gone
                break
            if not piece:
                break
            shown += piece
        out, _ = process.communicate(timeout=60)
    os.close(ours)
    return Outcome(code=process.returncode, out=out.decode(), err=shown.decode())


@pytest.mark.parametrize("words", [["merge", LEAF], ["convert", LEAF, "new"]], ids=" ".join)
def test_a_terminal_gets_a_bar(vms: Path, words: list[str]) -> None:
    done = on_terminal(*words, "--json", cwd=vms)
    assert done.code == 0
    assert done.json
    assert "\x1b[" in done.err
    assert "100%" in done.err
    assert "━" in done.err
    assert " of " not in done.err


def test_a_terminal_gets_plain_lines_or_nothing_when_asked(vms: Path) -> None:
    done = on_terminal("convert", LEAF, "one", "--progress", "plain", cwd=vms)
    assert progress_of(done.err)[-1] == ("copying", 100)
    done = on_terminal("convert", LEAF, "two", "--progress", "none", cwd=vms)
    assert (done.code, done.err) == (0, "")


def test_a_failure_under_a_bar_is_one_clear_message(vms: Path) -> None:
    (vms / MIDDLE).chmod(0o444)
    done = on_terminal("merge", LEAF, cwd=vms)
    assert (done.code, done.out) == (1, "")
    assert "Traceback" not in done.err
    assert "read-only" in done.err


LARGE = 300 << 20
# A merge tells how far it is every 4 MiB: this comes to ten lines and more.
PIECE = 160 << 10


def piece(offset: int, step: int, length: int = 4096) -> bytes:
    return bytes([1 + offset // step % 255]) * length


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A child of 300 MiB that holds 160 KiB of every MiB, over a parent that holds a little."""
    folder = tmp_path_factory.mktemp("large")
    base, leaf = str(folder / "base.vhd"), str(folder / "leaf.avhd")
    vhdkit.create_image(base, size=LARGE)
    with vhdkit.open_chain(base, writable=True) as chain:
        for offset in range(0, LARGE, 50 << 20):
            chain.write(offset, piece(offset, 1 << 19))
            chain.write(offset + PIECE + 8192, piece(offset, 1 << 19))
    vhdkit.create_image(leaf, parent=base)
    with vhdkit.open_chain(leaf, writable=True) as chain:
        for offset in range(0, LARGE, 1 << 20):
            chain.write(offset, piece(offset, 1 << 20, PIECE))
    return folder


def shows_the_large_view(path: Path) -> bool:
    """Whether a chain reads as what was written into `large`; not by the tests' reader, which takes seconds here."""
    with vhdkit.open_chain(str(path)) as chain:
        for offset in range(0, LARGE, 1 << 20):
            expected = bytearray(piece(offset, 1 << 20, PIECE).ljust(1 << 20, b"\0"))
            if offset % (50 << 20) == 0:
                expected[PIECE + 8192 : PIECE + 12288] = piece(offset, 1 << 19)
            if chain.read(offset, 1 << 20) != expected:
                return False
        return chain.size == LARGE


@pytest.fixture
def work(large: Path, tmp_path: Path) -> Path:
    """A copy of the large chain, its holes kept."""
    folder = tmp_path / "work"
    shutil.copytree(large, folder, copy_function=sparse_copy)
    return folder


def sparse_copy(source: str, target: str) -> None:
    with open(source, "rb") as old, open(target, "wb") as new:
        end, at = os.fstat(old.fileno()).st_size, 0
        new.truncate(end)
        while at < end:
            try:
                at = os.lseek(old.fileno(), at, os.SEEK_DATA)
            except OSError:  # only a hole is left
                break
            stop = os.lseek(old.fileno(), at, os.SEEK_HOLE)
            os.pwrite(new.fileno(), os.pread(old.fileno(), stop - at, at), at)
            at = stop


def interrupt(*arguments: str, cwd: Path, room: int = 400) -> Outcome:
    """Send SIGINT in the middle of the work.

    Its stderr is a pipe that is full after a few lines of progress: where the program stands does not depend on the
    machine's speed.
    """
    ours, theirs = os.pipe()
    fcntl.fcntl(theirs, fcntl.F_SETPIPE_SZ, 4096)
    os.write(theirs, b"#" * (4096 - room))
    process = subprocess.Popen(program(*arguments), cwd=cwd, env=environment(), stdout=subprocess.PIPE, stderr=theirs)
    os.close(theirs)
    try:
        held, deadline = -1, time.monotonic() + 30
        while process.poll() is None and time.monotonic() < deadline:
            before, held = held, struct.unpack("i", fcntl.ioctl(ours, termios.FIONREAD, bytes(4)))[0]
            if held == before > 4096 - room:
                break
            time.sleep(0.2)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        err = b"".join(iter(lambda: os.read(ours, 65536), b""))
        out, _ = process.communicate(timeout=60)
    finally:
        os.close(ours)
        process.kill()
        process.communicate()
    return Outcome(code=process.returncode, out=out.decode(), err=err.decode().lstrip("#"))


needs_small_pipes = pytest.mark.skipif(not hasattr(fcntl, "F_SETPIPE_SZ"), reason="pipes cannot be made small here")


@needs_small_pipes
def test_an_interrupted_merge_leaves_the_view_and_the_same_command_completes_it(work: Path) -> None:
    words = ["merge", "leaf.avhd", "--progress", "json"]
    leaf = snapshot(work)["leaf.avhd"]
    done = interrupt(*words, cwd=work, room=2000)
    assert (done.code, done.out) == (130, "")
    assert '"phase": "copying"' in done.err
    assert '"percent-complete": 100' not in done.err
    assert "Traceback" not in done.err
    assert sorted(os.listdir(work)) == ["base.vhd", "base.vhd.vhdkit-journal", "leaf.avhd"]
    assert snapshot(work)["leaf.avhd"] == leaf
    assert shows_the_large_view(work / "leaf.avhd")
    plan = vhdkit.plan_merge(str(work / "leaf.avhd"))
    assert plan.resume is vhdkit.Resume.CONTINUES
    assert spawn(*words, cwd=work).code == 0
    assert os.listdir(work) == ["base.vhd"]
    assert shows_the_large_view(work / "base.vhd")


@needs_small_pipes
def test_an_interrupted_merge_says_what_state_it_left_and_how_to_go_on(work: Path) -> None:
    done = interrupt("merge", "leaf.avhd", "--progress", "json", cwd=work, room=2000)
    assert "vhdkit: interrupted" in done.err
    assert "reads as before" in done.err
    command = re.search(r"`vhdkit (merge [^`]*)` goes on", done.err)
    assert command is not None
    assert spawn(*command[1].split(), cwd=work).code == 0
    assert os.listdir(work) == ["base.vhd"]
    assert shows_the_large_view(work / "base.vhd")


@needs_small_pipes
@pytest.mark.parametrize("words", [["merge", "leaf.avhd", "--to", "new"], ["convert", "leaf.avhd", "new", "-O", "raw"]])
def test_an_interrupted_copy_leaves_nothing_behind(large: Path, words: list[str]) -> None:
    done = interrupt(*words, "--progress", "json", cwd=large)
    assert (done.code, done.out) == (130, "")
    assert "Traceback" not in done.err
    assert sorted(os.listdir(large)) == ["base.vhd", "leaf.avhd"]


@pytest.mark.parametrize("verb", ["map", "map --json"])
def test_a_reader_that_goes_away_is_no_traceback(large: Path, verb: str) -> None:
    line = f"{sys.executable} -m vhdkit {verb} leaf.avhd | head -n 1"
    done = subprocess.run(
        ["bash", "-c", line], cwd=large, env=environment(), capture_output=True, text=True, check=False
    )
    assert done.stderr == ""
    assert len(done.stdout.splitlines()) == 1


@pytest.mark.parametrize(
    "words", [["info", LEAF], ["scan", "."], ["merge", LEAF, "--dry-run"], ["--help"]], ids=" ".join
)
def test_output_that_nobody_reads_is_no_traceback(vms: Path, words: list[str]) -> None:
    ours, theirs = os.pipe()
    os.close(ours)
    done = subprocess.run(
        program(*words), cwd=vms, env=environment(), stdout=theirs, stderr=subprocess.PIPE, text=True, check=False
    )
    os.close(theirs)
    assert done.stderr == ""
    assert done.returncode in {0, 1}


def test_a_merge_whose_progress_nobody_reads_loses_nothing(vms: Path) -> None:
    ours, theirs = os.pipe()
    os.close(ours)
    done = subprocess.run(
        program("merge", LEAF), cwd=vms, env=environment(), stdout=subprocess.DEVNULL, stderr=theirs, check=False
    )
    os.close(theirs)
    merged = done.returncode == 0
    assert done.returncode in {0, 1}
    assert (vms / LEAF).exists() is not merged
    assert view_of(*(vms / name for name in CHAIN[merged:])) == VIEW


def test_a_merge_needs_no_stderr(vms: Path) -> None:
    command = ["sh", "-c", 'exec "$@" 2>&-', "sh", *program("merge", LEAF, "--json")]
    done = subprocess.run(command, cwd=vms, env=environment(), stdout=subprocess.PIPE, check=False)
    assert done.returncode == 0
    assert json.loads(done.stdout)["removed"] == [str(vms / LEAF)]
    assert view_of(*(vms / name for name in CHAIN[1:])) == VIEW


def test_a_user_merges_the_fixtures_from_the_shell(vms: Path) -> None:
    done = spawn("merge", LEAF, "--into", BASE, "--json", cwd=vms)
    assert (done.code, os.listdir(vms)) == (0, [BASE])
    assert view_of(vms / BASE) == VIEW
    assert spawn("compare", BASE, str(FIXTURES / LEAF), cwd=vms).code == 0
    assert ROOT.is_dir()
