from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Generator

pytest_plugins = ["pytester"]
CORPUS = Path(__file__).resolve().parents[2] / "shared" / "corpus"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Let no test be skipped where everything is there: VHDKIT_NO_SKIPS=1 says that it should be."""
    report = yield
    if report.skipped and os.environ.get("VHDKIT_NO_SKIPS"):
        report.outcome = "failed"
    return report


@pytest.fixture(scope="session")
def corpus() -> Path:
    """Images made by other tools: a folder beside the repository, read and never copied."""
    folder = (Path(__file__).resolve().parents[2] / "shared" / "corpus").resolve()
    if not (folder / "MANIFEST.tsv").exists():
        pytest.skip("the corpus folder is not beside the repository")
    return folder
