"""The verbs about snapshots: init, take, list, show, apply, revert, delete, rename, export, check, settle, run."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from vhdkit.cli.new_files import NewFile
from vhdkit.cli.options import FOLDER, Size, json_option, parallel_option, progress_option
from vhdkit.cli.output import echo, path_text, print_json, progress_shown, size_text, table
from vhdkit.cli.snapshot_run import how_it_goes, make_way, run, start_pending, watch
from vhdkit.findings import printable

if TYPE_CHECKING:
    from vhdkit.job.handle import MergeJob
    from vhdkit.snapshot.machine import Machine
    from vhdkit.snapshot.operation import Applied
    from vhdkit.snapshot.remark import Remark

# As `check` has them: corrupt, and something is left over.
_DAMAGED = 2
_LEFT_OVER = 3

_disk = click.argument("disk")
_directory = click.option("--dir", "directory", type=FOLDER, metavar="DIR", help="Make the new files in this folder.")


@click.group()
def snapshot() -> None:
    """Keep the disks of a machine that is off or saved as they are at an instant, and go back to that.

    DISK is any file of the machine: a base, the active layer, or any between. Its snapshots are listed in one file
    beside the base of its first disk; the images can be read and merged without it.
    """


@snapshot.command()
@click.argument("disks", nargs=-1, required=True, metavar="DISK...")
@click.option("--machine", metavar="NAME", default="", help="The machine's name; the first disk's by default.")
@click.option("--dir", "directory", type=FOLDER, metavar="DIR", help="Where new layers are made; beside the base.")
@click.option("--search", multiple=True, type=FOLDER, metavar="DIR", help="Look for layers in this folder too.")
@click.option(
    "--state-to", type=FOLDER, metavar="DIR", help="Where its saved state belongs: `apply` puts it back there."
)
@json_option
def init(
    disks: tuple[str, ...],
    *,
    machine: str,
    directory: str | None,
    search: tuple[str, ...],
    state_to: str | None,
    as_json: bool,
) -> None:
    """Begin to keep snapshots of a machine with these disks, or bring what is known of it up to date.

    Images that read through a disk become its layers, and all of them but the one that the machine writes to become
    snapshots, named for their files. Where several could be what it writes to, name that one.
    """
    from vhdkit.snapshot.machine import Machine

    adopted = Machine.adopt(disks, machine=machine, directory=directory, search=search)
    if state_to is not None:
        from vhdkit.snapshot.state_files import keep_state_at

        keep_state_at(adopted.file, state_to)
    _show(adopted, as_json=as_json)


@snapshot.command()
@click.argument("name")
@_disk
@click.option("--note", default="", help="Free-text note.")
@click.option("--state", multiple=True, metavar="FILE", help="Keep a copy of this file with it, such as saved memory.")
@_directory
@json_option
def take(name: str, disk: str, *, note: str, state: tuple[str, ...], directory: str | None, as_json: bool) -> None:
    """Freeze the disks of DISK's machine as they are, as NAME; the machine goes on in new files."""
    machine = _machine(disk)
    taken = machine.take(name, note=note, state=state, directory=directory)
    if as_json:
        from vhdkit.cli.snapshot_view import describe_snapshot

        print_json(describe_snapshot(machine, machine.manifest, taken) | {"active": list(machine.active)})
        return
    table([("taken", taken.name), *(("active", path_text(path)) for path in machine.active)])


@snapshot.command("list")
@_disk
@json_option
def list_(disk: str, *, as_json: bool) -> None:
    """Show the tree of snapshots, what the machine writes to, and what is pending."""
    _show(_machine(disk), as_json=as_json)


@snapshot.command()
@click.argument("name")
@_disk
@json_option
def show(name: str, disk: str, *, as_json: bool) -> None:
    """Show one snapshot: its layers, sizes, note and kept files."""
    from vhdkit.cli.snapshot_view import describe_snapshot

    machine = _machine(disk)
    record = machine.steadily(lambda manifest: describe_snapshot(machine, manifest, manifest.find(name)))
    if as_json:
        print_json(record)
        return
    above = machine.manifest.by_id(record["parent"])
    rows: list[tuple[str, object]] = [("name", record["name"]), ("id", record["id"]), ("taken", record["taken"] or "-")]
    rows += [("note", record["note"])] if record["note"] else []
    rows += [("after", above.name if above is not None else "-")]
    rows += [("above now", "yes" if record["is-above-now"] else "no")]
    for layer in record["layers"]:
        size = "missing" if layer["file-size"] is None else size_text(layer["file-size"])
        rows.append((f"disk {layer['disk']}", f"{path_text(layer['filename'])}, {size}"))
    rows += [("kept", f"{file['name']} in {path_text(file['filename'])}") for file in record["state"]]
    table(rows)


@snapshot.command()
@click.argument("name")
@_disk
@click.option("--take", "take_as", metavar="NEWNAME", help="Take a snapshot of the machine as it is, before.")
@click.option(
    "--state-to", type=NewFile(), metavar="DIR", help="Put copies of the files kept with it there; made if need be."
)
@_directory
@json_option
def apply(
    name: str, disk: str, *, take_as: str | None, state_to: str | None, directory: str | None, as_json: bool
) -> None:
    """Let the machine go on from snapshot NAME, in new files.

    What it has written since the last snapshot is DISCARDED, unless --take keeps it.
    """
    machine = _machine(disk)
    machine.manifest.find(name)
    if take_as is not None:
        machine.take(take_as, directory=directory)
    _print_applied(machine.apply(name, state_to=state_to, directory=directory), as_json=as_json)


@snapshot.command()
@_disk
@click.option("--state-to", type=NewFile(), metavar="DIR", help="Put copies of its kept files there; made if need be.")
@_directory
@json_option
def revert(disk: str, *, state_to: str | None, directory: str | None, as_json: bool) -> None:
    """Let the machine go back to the snapshot above now; what it has written since is DISCARDED."""
    machine = _machine(disk)
    _print_applied(machine.revert(state_to=state_to, directory=directory), as_json=as_json)


@snapshot.command()
@click.argument("name")
@_disk
@click.option("--subtree", is_flag=True, help="Delete all that came after it as well.")
@click.option("--no-settle", is_flag=True, help="Leave the pending merges to `snapshot settle`.")
@json_option
def delete(name: str, disk: str, *, subtree: bool, no_settle: bool, as_json: bool) -> None:
    """Delete snapshot NAME; the merges that this asks for begin in the background, if the machine is off.

    Where what the machine writes to is merged down, it goes on in another file from then on; which one is said.
    """
    from vhdkit.cli.snapshot_view import describe_owed

    machine = _machine(disk)
    active = machine.active
    gone = machine.delete(name, subtree=subtree)
    owed = machine.owed().merges
    jobs, postponed = start_pending(machine, None) if not no_settle else ((), "")
    if as_json:
        record = {"deleted": [each.name for each in gone], "jobs": [job.id for job in jobs]}
        print_json(record | {"postponed": postponed or None, "owed": describe_owed(machine.owed())})
        return
    for each in gone:
        echo(f"deleted: {printable(each.name)}")
    for sources, into in owed:
        if sources[0] in active:
            where = f"{path_text(into)} instead of {path_text(sources[0])}"
            echo(f"active: {where}, once that is merged into it")
    _print_started(machine, jobs, postponed)


@snapshot.command()
@click.argument("name")
@click.argument("new_name")
@_disk
@click.option("--note", help="A free-text note that replaces the old one.")
@json_option
def rename(name: str, new_name: str, disk: str, *, note: str | None, as_json: bool) -> None:
    """Give snapshot NAME another name."""
    renamed = _machine(disk).rename(name, new_name, note=note)
    if as_json:
        print_json({"id": renamed.id, "name": renamed.name, "note": renamed.note})
    else:
        echo(f"{printable(name)} is called {printable(renamed.name)} now")


@snapshot.command()
@click.argument("name")
@click.argument("directory", type=NewFile())
@_disk
@click.option("--flat/--chain", default=True, help="One disk that needs no other, or the layers as they are.")
@progress_option
@json_option
def export(name: str, directory: str, disk: str, *, flat: bool, progress: str | None, as_json: bool) -> None:
    """Write what snapshot NAME shows into a folder, which is made if need be."""
    machine = _machine(disk)
    with progress_shown(progress, "exporting") as advance:
        files = machine.export(name, directory, chain=not flat, progress=advance)
    if as_json:
        print_json({"name": name, "files": list(files)})
    else:
        table([("wrote", path_text(path)) for path in files])


@snapshot.command()
@_disk
@click.option("--accept", is_flag=True, help="Take frozen layers that were changed as they are now.")
@click.option("--search", multiple=True, type=FOLDER, metavar="DIR", help="Look for orphans in this folder too.")
@json_option
def check(disk: str, *, accept: bool, search: tuple[str, ...], as_json: bool) -> int:
    """List what was changed behind vhdkit's back, missing, pending or left over, and the images that no tree claims.

    Exit codes: 0 nothing, 1 could not check, 2 a layer was changed or is missing, 3 something is pending or left over.
    """
    from vhdkit.cli.snapshot_view import describe_remark, print_remarks

    remarks = _machine(disk).check(search=search, accept=accept)
    if as_json:
        print_json({"remarks": [describe_remark(remark) for remark in remarks]})
    elif remarks:
        print_remarks(remarks)
    else:
        echo("nothing to say: every layer is there and as it was frozen, and nothing is pending")
    return _code(remarks)


@snapshot.command()
@_disk
@click.option("--wait", is_flag=True, help="Return when nothing is pending any longer.")
@click.option("--rate", type=Size(), metavar="SIZE", help="Copy at most so many bytes a second: 8M.")
@parallel_option
@progress_option
@json_option
def settle(
    disk: str, *, wait: bool, rate: int | None, parallel: int | None, progress: str | None, as_json: bool
) -> int:
    """Carry out pending merges and removals: in the background, or here with --wait.

    Exits 75 while the machine runs: what is pending waits until it is off.
    """
    from vhdkit.cli.snapshot_view import describe_owed

    machine = _machine(disk)
    if not wait:
        started = machine.start_settling(rate=rate, parallel=parallel)
        if as_json:
            print_json({"jobs": [job.id for job in started], "owed": describe_owed(machine.owed())})
        else:
            _print_started(machine, started, "")
        return 0
    from vhdkit.cli.signals import stopping

    with progress_shown(progress, "settling") as advance, stopping() as cancel:
        owed = machine.settle(rate=rate, parallel=parallel, progress=advance, cancel=cancel)
    if as_json:
        print_json({"jobs": [], "owed": describe_owed(owed)})
        return 0
    from vhdkit.cli.snapshot_view import print_owed

    if owed.is_nothing:
        echo("nothing is pending")
    print_owed(owed)
    return 0


for _verb in (run, make_way, watch):
    snapshot.add_command(_verb)


# Shared


def _machine(disk: str) -> Machine:
    from vhdkit.snapshot.machine import Machine

    return Machine(disk)


def _show(machine: Machine, *, as_json: bool) -> None:
    from vhdkit.cli.snapshot_view import describe_machine, print_machine

    if as_json:
        print_json(describe_machine(machine))
    else:
        print_machine(machine)


def _print_applied(applied: Applied, *, as_json: bool) -> None:
    if as_json:
        record = {"applied": applied.snapshot.name, "active": list(applied.active), "state": list(applied.state)}
        discarded = [{"filename": path, "actual-size": size} for path, size in applied.discarded]
        state = {"state-in-place": applied.is_state_in_place, "set-aside": list(applied.set_aside)}
        print_json(record | state | {"discarded": discarded})
        return
    rows: list[tuple[str, object]] = [("applied", applied.snapshot.name)]
    rows += [("active", path_text(path)) for path in applied.active]
    rows += [("discarded", f"{path_text(path)}, {size_text(size)}") for path, size in applied.discarded]
    word = "saved state" if applied.is_state_in_place else "kept file"
    rows += [(word, path_text(path)) for path in applied.state]
    rows += [("set aside", path_text(path)) for path in applied.set_aside]
    table(rows)
    if applied.state and not applied.is_state_in_place:
        files = "is a file" if len(applied.state) == 1 else "are files"
        echo(f"warning: there {files} of saved state: start nothing before it is in its place;", err=True)
        echo("         --state-to DIR puts it there, and `vhdkit snapshot init --state-to DIR` for good", err=True)


def _print_started(machine: Machine, jobs: tuple[MergeJob, ...], postponed: str) -> None:
    from vhdkit.cli.snapshot_view import print_owed

    for job in jobs:
        echo(f"merge: {how_it_goes(job)}")
        if job.unlisted:
            echo(f"warning: the merge runs, but could not be listed: {job.unlisted}", err=True)
    if postponed:
        echo(f"postponed: {printable(postponed)}", err=True)
    owed = machine.owed()
    if owed.is_nothing and not postponed and not jobs:
        echo("nothing is pending")
    print_owed(owed, but={job.job.destination for job in jobs})


def _code(remarks: tuple[Remark, ...]) -> int:
    from vhdkit.snapshot.remark import DAMAGES

    if any(remark.kind in DAMAGES for remark in remarks):
        return _DAMAGED
    return _LEFT_OVER if remarks else 0
