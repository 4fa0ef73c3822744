"""What deletions owe, on every tree of up to seven layers: everything needed reads as before, and nothing is left over.

The rule is written a second time here, one step at a time and by what layers show, as vhd.md 5.2 words it.
"""

from __future__ import annotations

from itertools import combinations, islice, product
from typing import TYPE_CHECKING

import pytest

from vhdkit.journal.manifest import Fold
from vhdkit.snapshot.layer_tree import Removal, carried_out, children_by_parent, line_of, owed, waiting

if TYPE_CHECKING:
    from collections.abc import Iterator

    Tree = dict[str, str | None]
    # What each layer holds: the layers whose data ended up in it, topmost first.
    Held = dict[str, tuple[str, ...]]


def trees(count: int) -> Iterator[Tree]:
    """Every tree of that many layers in which parents come first."""
    names = [f"layer{number}" for number in range(count)]
    for parents in product(*(range(number) for number in range(1, count))):
        yield {names[0]: None, **{names[at + 1]: names[parent] for at, parent in enumerate(parents)}}


def needs(tree: Tree) -> Iterator[set[str]]:
    """Every choice of named layers, with every leaf that none of them is as the active one."""
    leaves = [path for path, children in children_by_parent(tree).items() if not children]
    for active in leaves:
        others = [path for path in tree if path != active]
        for count in range(len(others) + 1):
            for named in combinations(others, count):
                yield {active, *named}


def shown(tree: Tree, held: Held, layer: str) -> tuple[str, ...]:
    """Return whose data a layer shows, topmost first."""
    return tuple(part for path in line_of(tree, layer) for part in held[path])


def one_step(tree: Tree, needed: set[str]) -> Removal | Fold | None:
    """Return a thing that docs/reference/vhd.md 5.2 asks for, None if it asks for nothing."""
    for layer in tree:
        children = [path for path in tree if tree[path] == layer]
        if layer not in needed and not children:
            return Removal(layer=layer)
        if layer not in needed and len(children) == 1:
            return Fold(sources=(children[0],), destination=layer)
    return None


def act(tree: Tree, held: Held, needed: set[str], names: dict[str, str], step: Removal | Fold) -> Tree:
    """Carry out a step on what layers hold as well; `names` says where the views that are needed are now."""
    after = carried_out(tree, (step,))
    if isinstance(step, Removal):
        assert step.layer not in needed
        assert step.layer not in tree.values(), "something reads through it"
        del held[step.layer]
        return after
    assert step.destination not in needed
    for upper, lower in zip(step.sources, step.layers[1:], strict=True):
        assert [path for path in tree if tree[path] == lower] == [upper], "a sibling is harmed"
        assert upper == step.top or upper not in needed, "a view that is needed ends"
    held[step.destination] = tuple(part for path in step.layers for part in held[path])
    for path in step.sources:
        del held[path]
    for view, path in names.items():
        if path == step.top:
            names[view] = step.destination
    needed.difference_update(step.sources)
    needed.update(path for path in names.values() if path == step.destination)
    return after


@pytest.mark.parametrize(("count", "every"), [*((count, 1) for count in range(1, 7)), (7, 7)])
def test_what_is_owed_leaves_every_needed_layer_reading_as_before(count: int, every: int) -> None:
    assert_all(islice(trees(count), 0, None, every))


@pytest.mark.slow
def test_what_is_owed_leaves_every_needed_layer_of_seven_reading_as_before() -> None:
    assert_all(trees(7))


def assert_all(some: Iterator[Tree]) -> None:
    for tree in some:
        for needed in needs(tree):
            check(tree, needed)


def check(tree: Tree, needed: set[str]) -> None:
    held: Held = {path: (path,) for path in tree}
    before = {path: shown(tree, held, path) for path in needed}
    names, left, wanted = {path: path for path in needed}, dict(tree), set(needed)
    for step in owed(tree, needed):
        left = act(left, held, wanted, names, step)
    assert {view: shown(left, held, path) for view, path in names.items()} == before
    assert owed(left, wanted) == ()
    assert waiting(left, wanted) == waiting(tree, needed)
    # The same, a step at a time.
    slow_held: Held = {path: (path,) for path in tree}
    slow_names, slow, slow_wanted = {path: path for path in needed}, dict(tree), set(needed)
    while (single := one_step(slow, slow_wanted)) is not None:
        slow = act(slow, slow_held, slow_wanted, slow_names, single)
    assert (slow, slow_held, slow_names) == (left, held, names)


def test_layers_that_several_read_through_wait() -> None:
    tree: Tree = {"base": None, "a": "base", "b": "base"}
    assert owed(tree, {"a", "b"}) == ()
    assert waiting(tree, {"a", "b"}) == ("base",)
    assert owed(tree, {"b"}) == (Removal(layer="a"), Fold(sources=("b",), destination="base"))
    assert waiting(tree, {"b"}) == ()


def test_a_line_is_merged_in_one_pass_into_its_lowest() -> None:
    tree: Tree = {"base": None, **{f"l{at}": f"l{at - 1}" if at else "base" for at in range(5)}}
    assert owed(tree, {"base", "l4"}) == (Fold(sources=("l4", "l3", "l2", "l1"), destination="l0"),)
    assert owed(tree, {"l2", "l4"}) == (
        Fold(sources=("l2", "l1", "l0"), destination="base"),
        Fold(sources=("l4",), destination="l3"),
    )


def test_a_branch_that_nobody_needs_goes_from_its_leaves_down() -> None:
    tree: Tree = {"base": None, "a": "base", "b": "a", "c": "a", "active": "base"}
    assert owed(tree, {"base", "active"}) == (Removal(layer="b"), Removal(layer="c"), Removal(layer="a"))
