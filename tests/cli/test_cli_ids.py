"""One spelling of ids: whichever tool made the images, what is printed can be compared."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

import vhdkit
from vhdkit.disk import unique_id
from vhdkit.vhd.constants import FOOTER_SIZE
from vhdkit.vhd.footer import Footer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.cli.running import Outcome

    Cli = Callable[..., Outcome]

CREATORS = (b"win ", b"d2v\0", b"vpc ", b"vs  ", b"qemu", b"qem2", b"tap\0", b"CTXS", b"vbox", b"DBox", b"\0\0\0\0")
ID = re.compile(r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}|\b[0-9a-f]{32}\b")


def made_by(path: Path, creator: bytes) -> bytes:
    """Let an image say that another tool made it, and return its id."""
    raw = bytearray(path.read_bytes())
    footer = replace(Footer.from_bytes(bytes(raw[-FOOTER_SIZE:])), creator_application=creator)
    raw[:FOOTER_SIZE] = raw[-FOOTER_SIZE:] = footer.to_bytes()
    path.write_bytes(raw)
    return footer.unique_id


@pytest.fixture
def family(lay: Callable[..., Path]) -> tuple[Path, dict[str, str], dict[str, bytes]]:
    """A base by each maker, and a child of each by each; the paths of the children's parents, and the ids."""
    folder = lay()
    parents: dict[str, str] = {}
    ids: dict[str, bytes] = {}
    for number, of in enumerate(CREATORS):
        base = folder / f"base{number}.vhd"
        vhdkit.create_image(str(base), size=1 << 20)
        ids[str(base)] = made_by(base, of)
        for other, by in enumerate(CREATORS):
            child = folder / f"base{number}_{other}.avhd"
            vhdkit.create_image(str(child), parent=str(base))
            ids[str(child)] = made_by(child, by)
            parents[str(child)] = str(base)
    return folder, parents, ids


def records(trees: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    todo = list(trees)
    while todo:
        image = todo.pop()
        yield image
        todo += image["children"]


def test_joined_on_their_ids_the_images_of_a_scan_give_the_tree(
    cli: Cli, family: tuple[Path, dict[str, str], dict[str, bytes]]
) -> None:
    folder, parents, ids = family
    record = cli("scan", "--json", folder).json
    images = list(records(record["bases"] + record["orphans"]))
    owners = {image["unique-id"]: image["filename"] for image in images}
    joined = {image["filename"]: owners[image["parent-unique-id"]] for image in images if image["parent-unique-id"]}
    assert joined == parents
    by_bytes = {image["unique-id-big-endian"].replace("-", ""): image["filename"] for image in images}
    assert by_bytes == {value.hex(): path for path, value in ids.items()}
    first = next(image for image in images if image["parent-unique-id"])
    parent = next(image for image in images if image["unique-id"] == first["parent-unique-id"])
    assert first["parent-unique-id-big-endian"] == parent["unique-id-big-endian"]


def without_extras(text: str) -> str:
    """Leave out the fields that say in their names which other spelling they are."""
    return "\n".join(line for line in text.splitlines() if "-big-endian" not in line)


@pytest.mark.parametrize(("of", "by"), [(b"qemu", b"win "), (b"win ", b"qemu"), (b"tap\0", b"vbox")])
def test_every_verb_and_message_spells_an_id_in_the_same_way(
    cli: Cli, lay: Callable[..., Path], of: bytes, by: bytes
) -> None:
    folder = lay()
    vhdkit.create_image("base.vhd", size=1 << 20)
    vhdkit.create_image("leaf.avhd", parent="base.vhd")
    vhdkit.create_image("other.vhd", size=1 << 20)
    makers = {"base.vhd": of, "leaf.avhd": by, "other.vhd": of}
    ids = {unique_id.guid(made_by(folder / name, maker)) for name, maker in makers.items()}
    (folder / "copy.vhd").write_bytes((folder / "other.vhd").read_bytes())
    said: list[str] = []

    def ask(*words: str) -> None:
        done = cli(*words)
        said.append(done.out + done.err)

    def ask_all() -> None:
        for words in (("info",), ("chain",), ("check", "--chain"), ("merge", "--dry-run")):
            ask(*words, "leaf.avhd")
            ask(*words, "leaf.avhd", "--json")
        for more in (("scan", "."), ("rebase", "leaf.avhd", "-b", "other.vhd", "--dry-run")):
            ask(*more)
            ask(*more, "--json")
        ask("rebase", "leaf.avhd", "-b", "other.vhd", "--dry-run", "--ignore-id-mismatch")
        ask("rebase", "leaf.avhd", "-b", "other.vhd", "--dry-run", "--ignore-id-mismatch", "--json")
        ask("chain", "leaf.avhd", "--parent", "other.vhd")

    ask_all()
    ask("info", "base.vhd", "--json")
    (folder / "base.vhd").rename(folder.parent / "away.vhd")
    ask_all()
    (folder / "copy.vhd").rename(folder / "base.vhd")
    ask_all()
    found = {id_ for text in said for id_ in ID.findall(without_extras(text))}
    assert found - {unique_id.guid(unique_id.NULL)} == ids
