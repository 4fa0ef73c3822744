"""The results of the race: kept as JSON row by row, and shown as a table on a terminal and in results.md."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

from rich.table import Table

if TYPE_CHECKING:
    from benchmarks.measuring import Figures
    from benchmarks.rows import Row

_HEAD = """# What was measured

`python benchmarks/race.py FOLDER`, on two shared cores: whole processes, interpreter start included, until the last
sync is done. FOLDER was an ext4 as mkfs makes it and mount mounts it, journal on, in a file that its loop device opens
direct, so that its pages are in memory once. The machine's own disk has no journal and discards each freed block at
once, so that removing 2 GiB takes it 0.5 to 0.9 s. W6 is measured on file systems in files there. Medians of runs in
turn with the rival, from inputs restored in place, synced and read before each; the least of each beside them. Ratios
are what counts; a shared machine's seconds are not. cp and vhd-lib remove nothing, and qemu-img empties its overlay:
the ratio without the removal of our sources (`--keep-sources`) stands beside ours as users run it. `cp` copies the
payload alone to a new file, which is then synced. `qemu-img commit` syncs by itself; its overlay has the same
sectors, neither more nor fewer, in subclusters of 16 KiB clusters, and in a row without a bar whole clusters of 64
KiB, as a guest's writes would have filled them. vhd-lib 0.7.2 is the newest that npm can install; 4.15.0 runs once
three packages that the registry lacks are stood in for. Their caller syncs. Every result's bytes were compared with
what the leaf read: a tool that wrote others is told of in its row. MiB read and written are those of calls that say
how many: what goes from file to file by a pipe, as our long pieces do since commit b6fb693, is not among them.

FATtools in W2 is of 2026-11-24, older than long writes past the page cache, and was measured on the machine's own
disk. W2 twice is of commit 2201718 and of that disk: its inputs and what is touched beside them take more memory than
the machine has. FATtools' bytes were right wherever it came to an end. The figures differ from hour to hour, from
machine to machine and from disk to disk. With FATtools in turn, whose minute leaves memory in another state, W1 took
0.97 s an hour before what is in the table: 0.65 of cp, 0.67 of qemu-img, 0.62 of vhd-lib 0.7.2 and 0.57 of 4.15.0; in
the race before, of commit 1435c7a, 0.49, 0.76, 0.54 and 0.63, and W5 in one pass 0.43 of ten merges. In a file that was
not opened direct, W1 took 1.13 of qemu-img and 0.63 of cp.
"""
_HEAD_SMALL = """# What was measured

By a race at less than its full size, or run once for the sake of the bytes: the seconds are mostly those of starting,
and the ratios say nothing. What a row calls its size is that of scale 1.
"""
_BOUNDS = """
## What bounds the rows that are not met

- W6 on XFS: of the shared merge's 0.31 s loading takes about 0.12 (numpy 0.05, construct 0.02), 1,024 calls of
  FICLONERANGE 0.05, reading bitmaps, planning and checkpoints 0.06, the list of jobs and the journal 0.02; the rival,
  which writes direct, takes 1.22. In a quieter minute it took 0.24 s, and the rival 1.07 to 1.20. Sharing neighbouring
  new blocks by one call was tried: 520 calls instead of 1,024 gave nothing that could be told from noise.
- W6 on Btrfs: letting go of what the page cache has of the source takes half a second of processor time (15 ms for 64
  MiB; on XFS 0.5 ms), beside the merge or when the source is removed; and each call of FICLONERANGE, which lets go of
  the destination's pages, takes 0.3 to 0.9 ms.
- `compare` with a raw disk: 1 GiB of either is read. As a bare loop of preadv into two buffers of 256 KiB and memcmp
  that takes 0.35 s of processor time where qemu-img takes 0.44 to 0.56; by two mappings, without a copy, 0.40: memory's
  rate bounds it. Loading takes as much again (0.2 of it numpy), and 4,096 cells about 0.1. The processor time was 3.4
  of qemu-img's and is 1.7 since commit cff5e50; the seconds above are older.
- `merge --to`: since it looks through what it copies for zeros, it reads 1 GiB that `cp` of the base does not, 0.25 s
  of processor time; loading and the list of jobs take 0.3. The seconds above are older than its writing while it reads.
- Streams are not in the table yet. With other programs at work on both processors, in turn with the raw file: eight
  reads of 512 bytes in a row 2.1 to 4.4, 300 files listed by dissect.extfs 0.7 to 1.4, NTFS listed by pytsk3 through
  ten layers 1.4 to 3.4, 1 MiB a read through ten layers 1.5 to 2.0. Of the last, sixteen preadv of 64 KiB take 0.8 of
  the time of one of 1 MiB, and 3 us of Python around each make up the rest. The program `ls` through ten layers took
  0.99 (NTFS) and 0.97 (ext4) of its time of the raw file, medians of fifteen pairs, and 1.03 and 1.01 of the processor.

The rows of whole disks are medians of three runs on the machine's own disk.

## Kernels

benchmarks/test_kernels.py, as pytest runs it, prints theirs. count, whose bar is half of what one pass of numpy
streams, reached 0.53 to 0.55 of it in six runs; 0.43 to 0.54 with other programs at work on both processors.
"""


def row(row: Row, done: dict[str, Figures], skipped: dict[str, str]) -> dict[str, Any]:
    """Return one row's results as plain values."""
    found: dict[str, Any] = {"what": row.what, "bar": row.bar, "limit": row.limit, "group": row.group}
    missing = [skipped[key] for key in (row.ours, row.rival) if key in skipped]
    if missing:
        return found | {"against": row.rival, "skipped": missing[0]}
    ours, rival = done[row.ours], done[row.rival]
    found |= {
        "against": rival.name,
        "ratio": ours.seconds / rival.seconds,
        "ratio-least": ours.least / rival.least,
        "ours": ours.as_json(),
        "rival": rival.as_json(),
    }
    if "keep" in done and row.rival not in {"near", "pairs"}:
        found |= {"keep": done["keep"].as_json(), "ratio-keep": done["keep"].seconds / rival.seconds}
    return found


def load(folder: str) -> dict[str, Any]:
    """Return the results that are there."""
    try:
        with open(os.path.join(folder, "results.json")) as file:
            kept: dict[str, Any] = json.load(file)
    except FileNotFoundError:
        return {"rows": {}, "series": {}}
    return kept


def save(folder: str, kept: dict[str, Any]) -> None:
    """Write results.json and results.md."""
    with open(os.path.join(folder, "results.json"), "w") as file:
        json.dump(kept, file, indent=1, sort_keys=True)
        file.write("\n")
    with open(os.path.join(folder, "results.md"), "w") as file:
        file.write(_page(kept["rows"]))


def met(row: dict[str, Any]) -> bool:
    """Whether a row keeps its bar and its limit."""
    return (row["bar"] is None or row["ratio"] <= row["bar"]) and (
        row["limit"] is None or row["ours"]["seconds"] <= row["limit"]
    )


def _counts(row: dict[str, Any]) -> bool:
    """Whether its figures say anything: they do not where it was run small, or once, for the sake of the bytes."""
    return bool(row["scale"] >= 1 and row.get("timed", True))


def _bar(row: dict[str, Any]) -> str:
    parts = [f"{row['bar']:g}"] if row["bar"] is not None else []
    parts += [f"{row['limit']:g} s"] if row["limit"] is not None else []
    return ", ".join(parts)


def _skipped(reason: str) -> str:
    line = reason.splitlines()[0][:120]
    return line if line.startswith("failed") else f"skipped: {line}"


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    if "skipped" in row:
        return row["what"], row["against"], _skipped(row["skipped"]), "", "", _bar(row), "", _when(row)
    note = row["rival"]["note"]
    against = f"{row['against']} ({note})" if note else row["against"]
    keep = f"{row['ratio-keep']:.2f}" if "ratio-keep" in row else ""
    verdict = "" if not _bar(row) or not _counts(row) else "yes" if met(row) else "no"
    ratios = f"{row['ratio']:.2f}", f"{row['ratio-least']:.2f}", keep
    return row["what"], against, *ratios, _bar(row), verdict, _when(row)


def _when(row: dict[str, Any]) -> str:
    return f"{row['date']}, {row['commit']}"


_COLUMNS = ("What", "Against", "Ratio", "of the least", "sources kept", "At most", "Met", "Measured")
_TOOL_COLUMNS = (
    *("What", "Who", "Seconds", "least", "user", "system", "Peak MiB"),
    *("MiB read", "written", "Reads", "writes", "syncs", "Runs", "Measured"),
)


def _tools(rows: dict[str, Any]) -> list[tuple[str, ...]]:
    """Return a line for every contender of every group, once, as it was measured last."""
    lines: dict[tuple[str, str], tuple[str, ...]] = {}
    for row in sorted(rows.values(), key=lambda each: (each["group"], each["date"])):
        for side in ("ours", "keep", "rival"):
            taken = row.get(side)
            if taken is None:
                continue
            lines[row["group"], taken["name"]] = (
                row["group"],
                taken["name"] + (f" ({taken['note']})" if taken["note"] else ""),
                *(f"{taken[key]:.2f}" for key in ("seconds", "least", "user", "system")),
                f"{taken['peak'] / (1 << 20):.0f}",
                *(f"{taken[key] / (1 << 20):.0f}" for key in ("bytes_read", "bytes_written")),
                *(str(taken[key]) for key in ("reads", "writes")),
                str(taken["syncs"]) if taken["syncs"] >= 0 else "",
                str(taken["runs"]),
                _when(row),
            )
    return list(lines.values())


def _markdown(columns: tuple[str, ...], lines: list[tuple[str, ...]]) -> str:
    rows = [columns, ("---",) * len(columns), *lines]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in rows)


def _page(rows: dict[str, Any]) -> str:
    commits = sorted({(row["date"], row["commit"], f"{row['scale']:g}") for row in rows.values()})
    stands = "; ".join(f"{date}, commit {commit}, scale {scale}" for date, commit, scale in commits)
    table = _markdown(_COLUMNS, [_cells(row) for row in rows.values()])
    tools = _markdown(_TOOL_COLUMNS, _tools(rows))
    # What is said of the machine and of the limits is of the full race.
    head, bounds = (_HEAD, _BOUNDS) if all(map(_counts, rows.values())) else (_HEAD_SMALL, "")
    return f"{head}\n{stands}.\n\n## Ratios of wall time\n\n{table}{bounds}\n## What each took\n\n{tools}"


def table(rows: dict[str, Any]) -> Table:
    """Return the table of ratios for a terminal."""
    shown = Table(*_COLUMNS)
    for row in rows.values():
        shown.add_row(*_cells(row))
    return shown
