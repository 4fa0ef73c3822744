"""The table of docs/readers.md: vhdkit reads every kind of file, and each is in the table."""

from __future__ import annotations

from pathlib import Path

from benchmarks.readers import TOOLS, samples, verdict


def test_vhdkit_reads_every_kind(tmp_path: Path) -> None:
    (own,) = (tool for tool in TOOLS if tool.name == "vhdkit")
    found = {sample.name: verdict(own, sample, tmp_path / "out.raw") for sample in samples(tmp_path)}
    assert set(found.values()) == {"yes"}
    table = Path(__file__).parents[1] / "docs" / "readers.md"
    rows = [line.split(" | ")[:2] for line in table.read_text().splitlines() if line.startswith("| ")][1:]
    assert [(name.removeprefix("| "), own) for name, own in rows] == list(found.items())
