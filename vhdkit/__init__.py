"""Read, merge and inspect chains of VHD and AVHD snapshot images, without a hypervisor.

A snapshot of a Hyper-V, XenServer or Virtual PC machine is a differencing disk: it holds only the sectors written
since its parent was frozen. A chain is such a leaf with everything below it; a merge brings layers into one of them.

    with vhdkit.open_chain("web01_3A7F.avhd") as chain:   # leaf first, every link verified
        chain.read(0, 512)
        chain.open_stream()                               # a file object that others can take
    plan = vhdkit.plan_merge("web01_3A7F.avhd")           # into= an ancestor, to= a new file; writes nothing
    vhdkit.merge(plan)

How it is built, from the bottom up: `options` is what a caller asks for, and `progress` how far a verb is and how it is
stopped; both go down whole. `storage` is the one way to the machine; `disk` is what every image is, with the kernels
over its bitmaps; `journal` holds the side files; `vhd` turns bytes into frozen records, and reads, checks, writes and
creates one image; `chain` finds and verifies parents and reads through layers; `merging` plans with plain values and
then does, in an order that leaves the leaf readable at every instant; `job` runs that in the background and answers for
it; `snapshot` keeps a machine's tree of snapshots, and the merges that wait; `fleet` does the same verbs over many
chains; `cli` prints. Imports point down only.

The names below are loaded when they are first used: `vhdkit --help` needs neither numpy nor construct.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vhdkit.chain.chain import Chain, open_chain
    from vhdkit.chain.check import CheckReport, check
    from vhdkit.chain.compare import Comparison, compare
    from vhdkit.chain.convert import convert
    from vhdkit.chain.hash import HashAlgorithm, ViewHash, hash_image
    from vhdkit.chain.rebase import plan_rebase, rebase
    from vhdkit.chain.rebase_plan import Rebase
    from vhdkit.chain.repair_footers import repair_footers
    from vhdkit.chain.scan import Scan, ScannedImage, scan
    from vhdkit.chain.write_access import open_image
    from vhdkit.corruption import Corruption
    from vhdkit.disk.extents import Extent, Extents, Kind
    from vhdkit.disk.image import Image
    from vhdkit.errors import (
        Cancelled,
        ChainError,
        ChainLoopError,
        CorruptImageError,
        FileNameError,
        FleetError,
        GuestFileError,
        ImageInUseError,
        JobError,
        JournalError,
        MergeCancelled,
        MergeError,
        MissingExtraError,
        NotEnoughSpaceError,
        ParentMismatchError,
        ParentNotFoundError,
        ParentRefusedError,
        ReadOnlyImageError,
        ServeError,
        SiblingsError,
        SnapshotError,
        UnsupportedImageError,
        VerificationError,
        VhdError,
    )
    from vhdkit.filesystem.disk_source import Partition
    from vhdkit.filesystem.extract import Extraction, extract_files
    from vhdkit.filesystem.file_changes import FileChange, changed_files
    from vhdkit.filesystem.guest_files import GuestFile, GuestFiles, list_partitions, open_files
    from vhdkit.findings import Candidate, Finding, Level
    from vhdkit.job.change_rate import change_rate
    from vhdkit.job.control import (
        cancel_job,
        find_job,
        jobs,
        pause_job,
        remove_job,
        resume_job,
        rollback_job,
        wait_for_job,
    )
    from vhdkit.job.handle import MergeJob
    from vhdkit.job.history import job_history
    from vhdkit.job.job import Job, JobState, Wait, WaitReason
    from vhdkit.job.on_end import end_commands, set_end_command
    from vhdkit.job.registry import RegistryError
    from vhdkit.job.start import start_merge
    from vhdkit.journal.manifest import Snapshot
    from vhdkit.merging.drop_undo import drop_undo
    from vhdkit.merging.ensure_merged import Ensured, EnsuredMerge, ensure_merged
    from vhdkit.merging.plan.plan import MergePlan, Resume
    from vhdkit.merging.plan.planner import plan_merge
    from vhdkit.merging.rollback import rollback
    from vhdkit.merging.run.engine import MergeResult, merge
    from vhdkit.options import EventTarget
    from vhdkit.progress import Phase, Progress
    from vhdkit.serve.mount import mount_chain
    from vhdkit.serve.nbd_server import NbdServer, serve_nbd
    from vhdkit.serve.qemu_export import export_disk
    from vhdkit.snapshot.machine import Machine
    from vhdkit.snapshot.operation import Applied
    from vhdkit.snapshot.pending_jobs import pending_jobs
    from vhdkit.vhd.create import create_image
    from vhdkit.vhdx.corruption import VhdxCorruption

__version__ = "0.1.0"

_HOMES = {
    "vhdkit.chain.chain": ("Chain", "open_chain"),
    "vhdkit.chain.check": ("CheckReport", "check"),
    "vhdkit.chain.compare": ("Comparison", "compare"),
    "vhdkit.chain.convert": ("convert",),
    "vhdkit.chain.hash": ("HashAlgorithm", "ViewHash", "hash_image"),
    "vhdkit.chain.scan": ("Scan", "ScannedImage", "scan"),
    "vhdkit.errors": (
        "Cancelled",
        "ChainError",
        "ChainLoopError",
        "CorruptImageError",
        "FileNameError",
        "FleetError",
        "GuestFileError",
        "ImageInUseError",
        "JobError",
        "JournalError",
        "MergeCancelled",
        "MergeError",
        "MissingExtraError",
        "NotEnoughSpaceError",
        "ParentMismatchError",
        "ParentNotFoundError",
        "ParentRefusedError",
        "ReadOnlyImageError",
        "ServeError",
        "SiblingsError",
        "SnapshotError",
        "UnsupportedImageError",
        "VerificationError",
        "VhdError",
    ),
    "vhdkit.filesystem.disk_source": ("Partition",),
    "vhdkit.filesystem.extract": ("Extraction", "extract_files"),
    "vhdkit.filesystem.file_changes": ("FileChange", "changed_files"),
    "vhdkit.filesystem.guest_files": ("GuestFile", "GuestFiles", "list_partitions", "open_files"),
    "vhdkit.findings": ("Candidate", "Finding", "Level"),
    "vhdkit.corruption": ("Corruption",),
    "vhdkit.vhd.create": ("create_image",),
    "vhdkit.disk.extents": ("Extent", "Extents", "Kind"),
    "vhdkit.chain.write_access": ("open_image",),
    "vhdkit.disk.image": ("Image",),
    "vhdkit.vhdx.corruption": ("VhdxCorruption",),
    "vhdkit.job.control": (
        "cancel_job",
        "find_job",
        "jobs",
        "pause_job",
        "remove_job",
        "resume_job",
        "rollback_job",
        "wait_for_job",
    ),
    "vhdkit.job.handle": ("MergeJob",),
    "vhdkit.job.job": ("Job", "JobState", "Wait", "WaitReason"),
    "vhdkit.job.registry": ("RegistryError",),
    "vhdkit.job.change_rate": ("change_rate",),
    "vhdkit.job.history": ("job_history",),
    "vhdkit.job.on_end": ("end_commands", "set_end_command"),
    "vhdkit.options": ("EventTarget",),
    "vhdkit.job.start": ("start_merge",),
    "vhdkit.merging.run.engine": ("MergeResult", "merge"),
    "vhdkit.merging.drop_undo": ("drop_undo",),
    "vhdkit.merging.ensure_merged": ("Ensured", "EnsuredMerge", "ensure_merged"),
    "vhdkit.progress": ("Phase", "Progress"),
    "vhdkit.merging.plan.plan": ("MergePlan", "Resume"),
    "vhdkit.chain.rebase": ("plan_rebase", "rebase"),
    "vhdkit.chain.rebase_plan": ("Rebase",),
    "vhdkit.chain.repair_footers": ("repair_footers",),
    "vhdkit.merging.rollback": ("rollback",),
    "vhdkit.merging.plan.planner": ("plan_merge",),
    "vhdkit.serve.mount": ("mount_chain",),
    "vhdkit.serve.nbd_server": ("NbdServer", "serve_nbd"),
    "vhdkit.serve.qemu_export": ("export_disk",),
    "vhdkit.snapshot.machine": ("Machine",),
    "vhdkit.snapshot.operation": ("Applied",),
    "vhdkit.snapshot.pending_jobs": ("pending_jobs",),
    "vhdkit.journal.manifest": ("Snapshot",),
}

__all__ = [
    "Applied",
    "Cancelled",
    "Candidate",
    "Chain",
    "ChainError",
    "ChainLoopError",
    "CheckReport",
    "Comparison",
    "CorruptImageError",
    "Corruption",
    "Ensured",
    "EnsuredMerge",
    "EventTarget",
    "Extent",
    "Extents",
    "Extraction",
    "FileChange",
    "FileNameError",
    "Finding",
    "FleetError",
    "GuestFile",
    "GuestFileError",
    "GuestFiles",
    "HashAlgorithm",
    "Image",
    "ImageInUseError",
    "Job",
    "JobError",
    "JobState",
    "JournalError",
    "Kind",
    "Level",
    "Machine",
    "MergeCancelled",
    "MergeError",
    "MergeJob",
    "MergePlan",
    "MergeResult",
    "MissingExtraError",
    "NbdServer",
    "NotEnoughSpaceError",
    "ParentMismatchError",
    "ParentNotFoundError",
    "ParentRefusedError",
    "Partition",
    "Phase",
    "Progress",
    "ReadOnlyImageError",
    "Rebase",
    "RegistryError",
    "Resume",
    "Scan",
    "ScannedImage",
    "ServeError",
    "SiblingsError",
    "Snapshot",
    "SnapshotError",
    "UnsupportedImageError",
    "VerificationError",
    "VhdError",
    "VhdxCorruption",
    "ViewHash",
    "Wait",
    "WaitReason",
    "cancel_job",
    "change_rate",
    "changed_files",
    "check",
    "compare",
    "convert",
    "create_image",
    "drop_undo",
    "end_commands",
    "ensure_merged",
    "export_disk",
    "extract_files",
    "find_job",
    "hash_image",
    "job_history",
    "jobs",
    "list_partitions",
    "merge",
    "mount_chain",
    "open_chain",
    "open_files",
    "open_image",
    "pause_job",
    "pending_jobs",
    "plan_merge",
    "plan_rebase",
    "rebase",
    "remove_job",
    "repair_footers",
    "resume_job",
    "rollback",
    "rollback_job",
    "scan",
    "serve_nbd",
    "set_end_command",
    "start_merge",
    "wait_for_job",
]


def __getattr__(name: str) -> object:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(home), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
