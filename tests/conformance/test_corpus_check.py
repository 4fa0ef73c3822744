"""Images of other makers are what the format says; the few of which something is said are listed with the reason."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import pytest

from tests.conformance.test_corpus import CORPUS, MANIFEST, REFUSALS
from vhdkit.chain.check import check
from vhdkit.corruption import Corruption
from vhdkit.findings import Level

if TYPE_CHECKING:
    from pathlib import Path

C: Final = Corruption

# Why a file that cannot be opened is refused, test_corpus.py says.
ERRORS: Final = {path: {refusal.corruption} for path, refusal in REFUSALS.items() if refusal.corruption} | {
    # Both footers were edited, of the child the header as well.
    "dfvfs/image-differential.vhd": {C.FOOTER_CHECKSUM, C.HEADER_CHECKSUM},
    "virtualbox-made/max.vhd.gz": {C.UNSUPPORTED},
    "node-vhd/header.bin": {C.BAT_OUTSIDE_FILE, C.FOOTER_TRAILING_LOST},  # footer copy and header alone
}
WARNINGS: Final = {
    "bximage-made/bx10.vhd": {C.UNIQUE_ID_NULL},  # bximage writes none
    # DOSBox-X and MiniVHD give the files that they make in one second the same id.
    "dosbox-x-made/same-b.vhd": {C.PARENT_ID_IS_OWN},
    "minivhd-made/child.vhd": {C.PARENT_ID_IS_OWN},
    "minivhd-made/childfix.vhd": {C.PARENT_ID_IS_OWN},
    "minivhd-made/sub/grand.vhd": {C.PARENT_ID_IS_OWN},
    "vhdutil-made/child-of-raw.vhd": {C.PARENT_ID_NULL},
}
RAW_CHILD: Final = "vhdutil-made/child-of-raw.vhd"
CHAIN_ERRORS: Final = {
    # The edited pair: neither can be trusted to be the other's.
    "dfvfs/image-differential.vhd": {C.FOOTER_CHECKSUM, C.HEADER_CHECKSUM, C.PARENT_NOT_FOUND},
    RAW_CHILD: {C.PARENT_REFUSED},  # a raw parent has to be named
}
# What is no fault of an image: it could not be checked.
NOT_JUDGED: Final = {C.UNSUPPORTED, C.NOT_A_VHD, C.FILE_TOO_SHORT}


@pytest.mark.usefixtures("corpus")
@pytest.mark.parametrize("path", sorted(MANIFEST))
def test_no_false_alarm_about_an_image_of_another_maker(path: str) -> None:
    report = check(str(CORPUS / path), deep=True)
    told = {level: {item.corruption for item in report.findings if item.level is level} for level in Level}
    expected = ERRORS.get(path, set())
    assert told[Level.ERROR] == expected, [str(item) for item in report.findings]
    assert told[Level.WARNING] == WARNINGS.get(path, set()), [str(item) for item in report.findings]
    assert report.exit_code == (2 if expected - NOT_JUDGED else 1 if expected else 0)
    assert report.leaked_bytes == 0


@pytest.mark.usefixtures("corpus")
@pytest.mark.parametrize("path", [path for path in sorted(MANIFEST) if MANIFEST[path]["parent_present"]])
def test_chains_of_other_makers_fit(path: str) -> None:
    report = check(str(CORPUS / path), chain=True, search=[str(CORPUS)])
    errors = {item.corruption for item in report.findings if item.level is Level.ERROR}
    assert errors == CHAIN_ERRORS.get(path, set())
    if path == RAW_CHILD:
        return
    layers = [path]
    while MANIFEST[layers[-1]]["parent_present"]:
        layers.append(MANIFEST[layers[-1]]["parent_present"])
    assert report.paths == tuple(str(CORPUS / layer) for layer in layers)


def test_the_exceptions_are_in_the_corpus(corpus: Path) -> None:
    assert corpus == CORPUS
    assert set(ERRORS) | set(WARNINGS) <= set(MANIFEST)
