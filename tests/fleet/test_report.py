"""The report of a run: the same facts in each of its formats, whatever an image is called."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import re
from html.parser import HTMLParser
from typing import TYPE_CHECKING

import pytest

from vhdkit.errors import FleetError
from vhdkit.findings import Advice
from vhdkit.fleet.outcome import ChainOutcome
from vhdkit.fleet.report import (
    REPORT_FORMATS,
    ChainReport,
    FleetReport,
    as_csv,
    as_html,
    as_json,
    as_prometheus,
    write_report,
)
from vhdkit.fleet.requests import FleetVerb

if TYPE_CHECKING:
    from pathlib import Path

ODD = '/vms/<script>alert(1)</script> "a",\\b\x1b[31m\n=1+1.avhd'
REPORT = FleetReport(
    verb=FleetVerb.MERGE,
    chains=(
        ChainReport(path="/vms/a.avhd", outcome=ChainOutcome.DONE, detail="/vms/a.vhd", total_bytes=7, seconds=1.25),
        ChainReport(
            path=ODD,
            host="hv07",
            outcome=ChainOutcome.FAILED,
            error=FleetError("it <b>broke</b>", path=ODD),
            hint=Advice.MERGE.hint(path=ODD),
            attempts=3,
        ),
    ),
    started=1.0e9,
    seconds=2.5,
)


def test_json_and_csv_hold_every_chain() -> None:
    record = json.loads(as_json(REPORT))
    assert record["outcomes"] == {"done": 1, "failed": 1}
    assert (record["bytes"], record["seconds"], record["started"]) == (7, 2.5, "2001-09-09T01:46:40.000+00:00")
    assert [chain["filename"] for chain in record["chains"]] == ["/vms/a.avhd", ODD]
    rows = list(csv.DictReader(io.StringIO(as_csv(REPORT))))
    assert [row["filename"] for row in rows] == ["/vms/a.avhd", ODD]
    assert (rows[1]["attempts"], rows[1]["error-class"], rows[0]["bytes"]) == ("3", "FleetError", "7")


def test_no_cell_of_a_table_is_a_formula() -> None:
    report = FleetReport(
        verb=FleetVerb.HASH,
        chains=(ChainReport(path="=cmd|' /C calc'!A0", outcome=ChainOutcome.DONE),),
        started=0,
        seconds=0,
    )
    (row,) = csv.DictReader(io.StringIO(as_csv(report)))
    assert row["filename"].startswith("'=")


class Tags(HTMLParser):
    """The tags of a page, and its text."""

    def __init__(self) -> None:
        super().__init__()
        self.opened: list[str] = []
        self.closed: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert not {name for name, _ in attrs} - {"class", "lang", "charset"}
        self.opened.append(tag)

    def handle_endtag(self, tag: str) -> None:
        self.closed.append(tag)

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_is_whole_and_a_name_stays_a_name() -> None:
    page = Tags()
    page.feed(as_html(REPORT))
    alone = {"meta", "br"}
    assert sorted(tag for tag in page.opened if tag not in alone) == sorted(page.closed)
    assert "script" not in page.opened
    assert "b" not in page.opened
    assert "hv07:/vms/<script>alert(1)</script>" in page.text
    assert "merge(plan_merge(" in page.text
    # What went wrong comes first.
    assert page.text.index("failed", page.text.index("Details")) < page.text.index("/vms/a.avhd")
    assert "\x1b" not in as_html(REPORT)


def test_the_metrics_are_lines_of_the_text_format() -> None:
    text = as_prometheus(REPORT)
    label = r'[a-z]+="(?:[^"\\\n]|\\["\\n])*"'
    line = re.compile(rf"vhdkit_fleet_[a-z_]+\{{{label}(?:,{label})*\}} [0-9.e+]+|# (?:HELP|TYPE) vhdkit_fleet_.+")
    lines = text.splitlines()
    assert [each for each in lines if not line.fullmatch(each)] == []
    assert 'vhdkit_fleet_chains{verb="merge",outcome="done"} 1' in lines
    assert 'vhdkit_fleet_chains{verb="merge",outcome="corrupt"} 0' in lines
    assert sum(each.startswith("vhdkit_fleet_chain_failed{") for each in lines) == 1


def test_names_that_differ_are_labels_that_differ() -> None:
    odd = [dataclasses.replace(REPORT.chains[1], path=path) for path in ("/vms/a\nb.vhd", "/vms/a\\nb.vhd")]
    lines = as_prometheus(dataclasses.replace(REPORT, chains=tuple(odd))).splitlines()
    assert len({each for each in lines if each.startswith("vhdkit_fleet_chain_failed{")}) == 2


@pytest.mark.parametrize("suffix", REPORT_FORMATS)
def test_a_report_takes_the_place_of_an_earlier_one(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"night{suffix}"
    path.write_text(REPORT_FORMATS[suffix](dataclasses.replace(REPORT, chains=())))
    write_report(REPORT, str(path))
    assert path.read_text() == REPORT_FORMATS[suffix](REPORT)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("suffix", REPORT_FORMATS)
@pytest.mark.parametrize("content", ["notes", '{"version": 1, "layers": []}', "x" * 4096])
def test_no_report_takes_the_place_of_another_file(tmp_path: Path, suffix: str, content: str) -> None:
    path = tmp_path / f"web01{suffix}"
    path.write_text(content)
    with pytest.raises(FileExistsError, match="no report"):
        write_report(REPORT, str(path))
    assert path.read_text() == content
    assert list(tmp_path.iterdir()) == [path]


def test_an_empty_file_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "night.csv").touch()
    write_report(REPORT, str(tmp_path / "night.csv"))
    assert (tmp_path / "night.csv").read_text() == as_csv(REPORT)


@pytest.mark.parametrize("is_there", [False, True])
def test_no_link_is_followed(tmp_path: Path, is_there: bool) -> None:
    image, link = tmp_path / "web01.vhd", tmp_path / "night.json"
    if is_there:
        image.write_text(as_json(REPORT))
    link.symlink_to(image)
    with pytest.raises(FileExistsError, match="link"):
        write_report(dataclasses.replace(REPORT, chains=()), str(link))
    assert link.is_symlink()
    assert image.exists() == is_there
    assert not is_there or image.read_text() == as_json(REPORT)


def test_a_carriage_return_in_a_name_ends_no_row() -> None:
    report = dataclasses.replace(REPORT, chains=(ChainReport(path="/vms/a\rb.avhd", outcome=ChainOutcome.DONE),))
    (row,) = csv.DictReader(io.StringIO(as_csv(report), newline=""))
    assert row["filename"] == "/vms/a\rb.avhd"


def test_a_report_of_no_known_format_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"\.csv, \.json, \.html, \.prom"):
        write_report(REPORT, str(tmp_path / "night.txt"))
    assert list(tmp_path.iterdir()) == []
