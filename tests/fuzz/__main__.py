"""Fuzz one target, or all of them one after another: `python -m tests.fuzz images --seconds 60`.

It ends with 1 where a fault was found, and leaves the bytes that show it in the current directory; `--input FILE` shows
it again. Needs atheris (`pip install .[fuzz]`), which Python up to 3.13 has.
"""

from __future__ import annotations

import argparse
import importlib
import pkgutil
import random
import re
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

NAMES = ("images", "side-files", "manifests", "headers", "vhdx")


def fuzz(name: str, seconds: int, corpus: str, *, seed: int) -> None:
    """Fuzz a target in this process, which ends with it."""
    import atheris  # type: ignore[import-untyped] # noqa: PLC0415 - showing an input again needs none of it

    # Only the code that reads hostile bytes: instrumenting numpy would cost more than it finds.
    with atheris.instrument_imports(include=["vhdkit"], enable_loader_override=False):
        _import_all()
        from tests.cutting import small_checkpoints  # noqa: PLC0415 - imported under instrumentation
        from tests.fuzz.targets import TARGETS  # noqa: PLC0415 - the same
    _small(small_checkpoints)
    options = [
        f"-max_total_time={seconds}",
        "-max_len=512",
        "-len_control=0",
        f"-seed={seed}",
        "-print_final_stats=1",
        "-timeout=60",
    ]
    atheris.Setup([sys.argv[0], *options, "-rss_limit_mb=4096", corpus], TARGETS[name])
    atheris.Fuzz()


def _import_all() -> None:
    """Import every module of the package: what is imported when it is first needed would not be instrumented."""
    import vhdkit  # noqa: PLC0415 - imported under instrumentation

    for module in pkgutil.walk_packages(vhdkit.__path__, "vhdkit."):
        if not module.name.startswith("vhdkit.cli") and not module.name.endswith("__main__"):
            importlib.import_module(module.name)


def show(name: str, path: str) -> None:
    """Run a target on the bytes of a file."""
    from tests.cutting import small_checkpoints  # noqa: PLC0415 - not instrumented here
    from tests.fuzz.targets import TARGETS  # noqa: PLC0415 - the same

    _small(small_checkpoints)
    TARGETS[name](Path(path).read_bytes())


def _small(small_checkpoints: object) -> None:
    import pytest  # noqa: PLC0415 - for its way of patching alone

    with suppress(AttributeError):
        small_checkpoints(pytest.MonkeyPatch())  # type: ignore[operator]


def each(seconds: int, seed: int) -> int:
    """Fuzz all targets, each in a process of its own; print what each did, and return how many found a fault."""
    failed = 0
    for name in NAMES:
        command = [
            sys.executable,
            "-m",
            "tests.fuzz",
            name,
            "--seconds",
            str(seconds // len(NAMES)),
            "--seed",
            str(seed),
        ]
        run = subprocess.run(command, capture_output=True, text=True, check=False)
        text = run.stdout + run.stderr
        figures = {key: int(value) for key, value in re.findall(r"stat::(\w+):\s+(\d+)", text)}
        count, peak = figures.get("number_of_executed_units", 0), figures.get("peak_rss_mb", 0)
        print(f"{name}: {count:,} executions in {seconds // len(NAMES)} s, peak {peak} MiB, exit {run.returncode}")  # noqa: T201 - the figures
        if run.returncode:
            failed += 1
            print(text[-4000:])  # noqa: T201 - the fault
    return failed


def main() -> int:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Fuzz what reads hostile files.")
    parser.add_argument("target", choices=[*NAMES, "all"])
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--input", help="show again what these bytes do")
    chosen = parser.parse_args()
    if chosen.target == "all":
        return each(chosen.seconds, chosen.seed)
    if chosen.input:
        show(chosen.target, chosen.input)
        return 0
    with tempfile.TemporaryDirectory() as corpus:
        # A few bytes choose little: it begins with some that choose much.
        draw = random.Random(chosen.seed)
        for number in range(200):
            (Path(corpus) / str(number)).write_bytes(draw.randbytes(16 + number))
        fuzz(chosen.target, chosen.seconds, corpus, seed=chosen.seed)
    return 0


if __name__ == "__main__":
    sys.exit(main())
