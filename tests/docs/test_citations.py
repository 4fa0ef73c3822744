"""What is cited is there: the sections that docstrings name, and the files that pages name."""

from __future__ import annotations

import re
from itertools import chain
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = [
    path
    for folder in ("vhdkit", "tests", "fixtures", "benchmarks", "examples")
    for path in sorted((ROOT / folder).rglob("*.py"))
]
PAGES = sorted((ROOT / "docs").rglob("*.md")) + sorted(ROOT.glob("*.md"))
# A page, and the sections and rows that stand behind it up to the end of the sentence.
CITATION = re.compile(r"docs/(?P<page>[\w/-]+\.md)(?P<places>(?:[ ,;]|\n *|and|to|rows?|B?\d[\d.]*\d|B?\d)*)")
SECTION = re.compile(r"^#{2,3} (\d+(?:\.\d+)?) ", re.MULTILINE)
ROW = re.compile(r"^\| (B?\d+) \|", re.MULTILINE)
# Documents that a reader of the repository does not have.
ELSEWHERE = re.compile(r"\bDESIGN \w|\b[A-Z]+-REFERENCE\b|\b[Rr]eference B?\d|\.\./shared")


def cited() -> list[tuple[str, str]]:
    """Return every page that a source cites, with the places in it."""
    texts = chain.from_iterable(CITATION.finditer(path.read_text(encoding="utf-8")) for path in SOURCES)
    return sorted({(found["page"], found["places"]) for found in texts})


def test_nothing_is_cited_that_is_not_here() -> None:
    here = Path(__file__)
    assert [
        f"{path.relative_to(ROOT)}: {found[0]}"
        for path in (*SOURCES, *PAGES)
        if path != here
        for found in ELSEWHERE.finditer(path.read_text(encoding="utf-8"))
    ] == []


@pytest.mark.parametrize(("page", "places"), cited())
def test_a_cited_section_is_there(page: str, places: str) -> None:
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    known = {*SECTION.findall(text), *ROW.findall(text)}
    named = re.findall(r"B?\d+(?:\.\d+)?", places)
    assert [place for place in named if place not in known] == []


def test_a_file_that_a_page_links_to_is_there() -> None:
    assert [
        f"{page.relative_to(ROOT)}: {target}"
        for page in PAGES
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[\w-]+)?\)", page.read_text(encoding="utf-8"))
        if "://" not in target and not (page.parent / target).exists()
    ] == []


def test_every_step_of_ci_is_on_the_page_for_contributors() -> None:
    steps = re.search(r"^STEPS=\((.*)\)$", (ROOT / ".ci" / "run").read_text(encoding="utf-8"), re.MULTILINE)
    assert steps is not None
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    assert [step for step in steps[1].split() if f"`{step}`" not in page] == []
