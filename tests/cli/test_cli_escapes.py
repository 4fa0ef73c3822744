"""Everything that is printed is escaped: a terminal only gets text, whatever files and their fields hold."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.plainbuild import ImageSpec, LocatorSpec, build
from tests.plainvhd import DIFFERENCING
from vhdkit.cli import output
from vhdkit.cli.main import run
from vhdkit.errors import MergeCancelled

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.cli.running import Outcome

    Cli = Callable[..., Outcome]

CLI = Path(output.__file__).parent
# What a terminal acts on: C0 and C1 controls, DEL, and what turns the direction of writing.
ACTS = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\u2028\u2029]")


@pytest.mark.parametrize("code", [b"\x1b[2J", b"\x1b]0;", b"\nroo", b"\x07\x1bc\0", b"\x9b31m"])
def test_the_platform_code_of_a_locator_is_escaped(cli: Cli, tmp_path: Path, code: bytes) -> None:
    odd = LocatorSpec(slot=3, code=code, data=b"x")
    (tmp_path / "base.vhd").write_bytes(build(ImageSpec(size=4096, block_size=4096, unique_id=bytes([1]) * 16)))
    spec = ImageSpec(
        size=4096,
        block_size=4096,
        unique_id=bytes([2]) * 16,
        disk_type=DIFFERENCING,
        parent_id=bytes([1]) * 16,
        parent_name="base.vhd",
        locators=(odd,),
    )
    (tmp_path / "leaf.avhd").write_bytes(build(spec))
    for verb in (["info"], ["info", "--backing-chain"], ["chain"], ["check"], ["scan"]):
        done = cli(*verb, tmp_path if verb == ["scan"] else tmp_path / "leaf.avhd")
        assert done.code in {0, 2}
        assert ACTS.search(done.out + done.err) is None
        assert "\nroo" not in done.out
    escaped = code.decode("latin-1").encode("unicode_escape").decode()
    assert f": {escaped}" in cli("info", tmp_path / "leaf.avhd").out


@pytest.mark.parametrize("text", ["\x1b[2J", "\u202e", "\x9b", "\r", "\x00", "\udcff"])
def test_what_goes_through_the_one_door_is_escaped(capsys: pytest.CaptureFixture[str], text: str) -> None:
    output.echo(f"a{text}b")
    output.echo(f"c{text}d", err=True)
    output.table([(f"e{text}f", text)])
    shown = capsys.readouterr()
    assert ACTS.search(shown.out + shown.err) is None
    assert text not in shown.out + shown.err


def test_lines_stay_lines(capsys: pytest.CaptureFixture[str]) -> None:
    output.echo("one\ntwo \\x1b é 漢")
    assert capsys.readouterr().out == "one\ntwo \\x1b é 漢\n"


def test_all_of_the_program_prints_through_the_one_door() -> None:
    modules = {path.name: path.read_text() for path in CLI.glob("*.py")}
    assert len(modules) > 10
    doors = {name for name, text in modules.items() if re.search(r"click\.s?echo\(|(?<![\w.])print\(|\.write\(", text)}
    assert doors <= {"output.py"}


def test_what_was_noted_on_an_interrupted_merge_is_escaped(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        error = MergeCancelled("stopped")
        error.add_note("`vhdkit merge \x1b[2J.avhd`\ngoes on")
        raise error

    monkeypatch.setattr("vhdkit.cli.main.program.main", interrupted)
    assert run(["merge"]) == 130
    err = capsys.readouterr().err
    assert ACTS.search(err) is None
    assert "\\x1b[2J.avhd" in err
