"""The forger itself: it changes every field, one at a time, and nothing else."""

from __future__ import annotations

import json

from tests.forging import drawn, forgeries

DOCUMENT = {"kind": "begin", "size": 4096, "time": 1.5, "is_kept": False, "undo": None, "files": [{"path": "a.vhd"}]}
FIELDS = {"", ".kind", ".size", ".time", ".is_kept", ".undo", ".files", ".files[0]", ".files[0].path"}


def test_every_field_is_changed_and_left_out() -> None:
    found = list(forgeries(DOCUMENT))
    assert {each.where for each in found} == FIELDS
    assert {each.where for each in found if each.what == "left out"} == FIELDS - {"", ".files[0]"}
    assert len(found) > 300


def test_what_json_cannot_say_is_among_it() -> None:
    texts = [each.text for each in forgeries(DOCUMENT)]
    for part in ('"size":NaN', '"size":1' + "0" * 400, '"path":"\\ud800"', '"path":"x\\u0000y"', '"path":"../x"'):
        assert any(part in text for text in texts), part
    assert any(text.count('"size":') == 2 for text in texts)


def test_one_thing_alone_is_changed() -> None:
    for each in forgeries(DOCUMENT):
        if each.where == ".files[0].path" and "characters" not in each.what:
            assert json.loads(each.text) | {"files": None} == DOCUMENT | {"files": None}


def test_a_seed_draws_the_same() -> None:
    assert drawn(DOCUMENT, 7, 20) == drawn(DOCUMENT, 7, 20) != drawn(DOCUMENT, 8, 20)
    assert len(drawn(DOCUMENT, 7, 20)) == 20
