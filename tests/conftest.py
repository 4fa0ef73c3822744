from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

from tests.keeping import close_kept
from tests.slowpaths import chosen
from vhdkit.storage.fast_paths import FastPath, turn_off

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

pytest_plugins = ["pytester"]
# How long one example takes says nothing on a machine that is shared: it has failed of a pause between two.
settings.register_profile("shared", deadline=None, max_examples=50)
settings.load_profile("shared")
CORPUS = Path(__file__).resolve().parents[2] / "shared" / "corpus"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--without",
        action="append",
        default=[],
        metavar="NAME",
        help=f"force a fast path off: all, {', '.join(FastPath)}; see tests/slowpaths.py",
    )


def pytest_configure(config: pytest.Config) -> None:
    try:
        turn_off(chosen(config.getoption("without")))
    except ValueError as error:
        raise pytest.UsageError(str(error)) from None


def pytest_sessionstart() -> None:
    """Heed the signals that the tests send to programs: who runs the tests in the background may ignore them."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for name in ("SIGHUP", "SIGTERM"):
        if hasattr(signal, name) and signal.getsignal(getattr(signal, name)) is signal.SIG_IGN:
            signal.signal(getattr(signal, name), signal.SIG_DFL)


def pytest_report_header(config: pytest.Config) -> list[str]:
    off = chosen(config.getoption("without"))
    return [f"fast paths forced off: {', '.join(off)}"] if off else []


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the tests about what is forced off."""
    off = set(chosen(config.getoption("without")))
    about = [item for item in items if any(mark.args[0] in off for mark in item.iter_markers("fast_path"))]
    if about:
        config.hook.pytest_deselected(items=about)
        items[:] = [item for item in items if item not in about]


@pytest.fixture(autouse=True)
def _nothing_stays_open() -> Iterator[None]:
    """Close what the test kept; everything else that it leaves open is a warning, and so an error."""
    yield
    close_kept()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Let no test be skipped where everything is there: VHDKIT_NO_SKIPS=1 says that it should be."""
    report = yield
    if report.skipped and os.environ.get("VHDKIT_NO_SKIPS"):
        report.outcome = "failed"
    return report


@pytest.fixture(scope="session", autouse=True)
def _state_of_its_own(tmp_path_factory: pytest.TempPathFactory) -> Generator[None]:
    """No test writes into the state of whoever runs the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VHDKIT_STATE", str(tmp_path_factory.mktemp("state")))
        patch.setenv("VHDKIT_CONFIG", str(tmp_path_factory.mktemp("config")))
        yield


@pytest.fixture(scope="session")
def corpus() -> Path:
    """Images made by other tools: a folder beside the repository, read and never copied."""
    folder = (Path(__file__).resolve().parents[2] / "shared" / "corpus").resolve()
    if not (folder / "MANIFEST.tsv").exists():
        pytest.skip("the corpus folder is not beside the repository")
    return folder
