"""Merge a leaf into its base, and make that final only if the base shows what the leaf did.

`python examples/careful_merge.py LEAF BASE UNDO`. UNDO is a new file that keeps what is overwritten; it is removed at
the end, or stays for `vhdkit rollback UNDO`.
"""

from __future__ import annotations

import sys

import vhdkit


def shown(path: str) -> str:
    """Return the SHA-256 of the disk that an image shows."""
    (found,) = vhdkit.hash_image(path)
    return found.digest


def careful_merge(leaf: str, base: str, undo: str) -> None:
    """Merge, compare, and drop what was kept.

    Raises:
        vhdkit.VhdError: something stands in the way; nothing was changed.
        RuntimeError: the base shows another disk; the merge was taken back.

    """
    plan = vhdkit.plan_merge(leaf, into=base, undo=undo)
    if plan.obstacles:
        raise plan.obstacles[0]
    print(f"{plan.payload_bytes} bytes to copy, {plan.space_needed} of {plan.space_free} bytes of space needed")
    before = shown(leaf)
    vhdkit.merge(plan, progress=lambda state: print(state.phase, state.bytes_done, "of", state.bytes_total))
    if shown(base) != before:
        vhdkit.rollback(undo)
        raise RuntimeError(f"{base} does not show what {leaf} did; the merge was taken back")
    print("removed", *vhdkit.drop_undo(undo).removed)


if __name__ == "__main__":
    careful_merge(*sys.argv[1:4])
