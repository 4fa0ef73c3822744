"""Running the program, in this process or as a user does, and looking at folders without its help."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.plainvhd import flat, parse

if TYPE_CHECKING:
    from collections.abc import Mapping

ROOT = Path(__file__).resolve().parents[2]
FIXTURES = ROOT / "fixtures"
BASE = "web01.vhd"
MIDDLE = "web01_1CE6964B-29B6-4D37-97AA-E847195217F3.avhd"
LEAF = "web01_3A7F2C10-5D0E-4B7B-9C55-0D1E6A3B9F42.avhd"
CHAIN = (LEAF, MIDDLE, BASE)


def _manifest() -> dict[str, dict[str, Any]]:
    with (FIXTURES / "MANIFEST.toml").open("rb") as file:
        return {entry["file"]: entry for entry in tomllib.load(file)["image"]}


MANIFEST = _manifest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What one command line did."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The whole of stdout as JSON."""
        return json.loads(self.out)

    def refused(self, code: int = 1) -> str:
        """Hold it against the law of failures, and return the message: no result, no traceback, one message."""
        assert self.code == code, (self.code, self.out, self.err)
        # With --json stdout has one object all the same.
        assert self.out == "" or self.json["error"]["exit-code"] == code
        assert "Traceback" not in self.err
        assert self.err.count("vhdkit: ") == 1
        assert self.err.startswith("vhdkit: ")
        return self.err


def environment(**extra: str) -> dict[str, str]:
    """Return this environment, the package under test importable from any folder."""
    paths = [str(ROOT), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), **extra}


def program(*arguments: str) -> list[str]:
    """Return the command line of the program."""
    return [sys.executable, "-m", "vhdkit", *arguments]


def spawn(*arguments: str, cwd: Path, env: Mapping[str, str] | None = None) -> Outcome:
    """Run the program as a process of its own, both of its outputs pipes."""
    done = subprocess.run(
        program(*arguments), cwd=cwd, env=env or environment(), capture_output=True, timeout=60, check=False
    )
    return Outcome(code=done.returncode, out=done.stdout.decode(), err=done.stderr.decode())


def snapshot(folder: Path) -> dict[str, str]:
    """Return every name below a folder with the hash of its content."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "-"
        for path in sorted(folder.rglob("*"))
    }


def view_of(*paths: Path) -> str:
    """Return the SHA-256 of what a chain, leaf first, shows to the tests' own reader."""
    return hashlib.sha256(flat([parse(path) for path in paths]).tobytes()).hexdigest()
