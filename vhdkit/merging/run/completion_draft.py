"""What the completion record of a merge will say, from the files as they are before the merge goes on.

A merge that `ensure_merged` has begun has one however it is finished: its journal keeps the samples for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vhdkit.chain.chain import open_chain_with
from vhdkit.chain.merged_layers import MergedLayers
from vhdkit.merging.completion import Completion, carried_on, is_shown, read_completions, samples_of
from vhdkit.merging.plan.plan import Resume
from vhdkit.merging.run.locked_files import open_planned
from vhdkit.options import ParentPolicy
from vhdkit.storage import paths

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vhdkit.merging.completion import MergedLeaf
    from vhdkit.merging.plan.plan import MergePlan
    from vhdkit.storage.protocols import Folder


def completion_of(
    plan: MergePlan,
    leaf_id: str,
    known: Sequence[MergedLeaf],
    policy: ParentPolicy,
    folder: Folder,
) -> Completion:
    """Return what is to be recorded of a plan without obstacles; `known` is what the record says now."""
    journal = plan.journal
    sampled, payload = (journal.samples, journal.begin.payload_bytes) if journal is not None else ((), 0)
    if plan.resume is Resume.FINISHES:
        with open_chain_with(plan.destination, policy, folder) as after:
            shown = [each for each in known if is_shown(each, after.layers)]
            own = [each for each in shown if each.leaf_id == leaf_id]
            earlier = [each for each in shown if each.leaf_id != leaf_id]
            samples = own[-1].samples if own else sampled
            kept = carried_on(earlier, after)
    else:
        with open_planned(plan, folder) as chain:
            merged = MergedLayers(chain.layers, len(plan.sources))
            earlier = [each for each in known if is_shown(each, merged.remaining)]
            samples = samples_of(merged, sampled)
            kept = carried_on(earlier, merged.view())
    return Completion(
        leaf_id=leaf_id,
        leaf=paths.basename(plan.sources[0]),
        payload_bytes=max(payload, plan.payload_bytes),
        samples=samples,
        earlier=kept,
    )


def completion_begun(plan: MergePlan, folder: Folder) -> Completion | None:
    """Return what is to be recorded of a merge that `ensure_merged` has begun, None if it has not.

    Raises:
        JournalError: the completion record that is there cannot be read.

    """
    journal = plan.journal
    if journal is None or journal.begin.undo or not journal.is_ensured:
        return None
    known = read_completions(folder, plan.destination)
    policy = ParentPolicy(search=plan.search)
    return completion_of(plan, journal.begin.sources[0].unique_id, known, policy, folder)
