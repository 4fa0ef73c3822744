"""The verbs over many chains: fleet scan, check, hash, convert, merge."""

from __future__ import annotations

import functools
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from vhdkit.cli.exit_codes import ExitCode
from vhdkit.cli.options import FOLDER, Size, json_option, parent_map_option, progress_option
from vhdkit.cli.output import echo

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from vhdkit.fleet import FoundChains, ParentPolicy
    from vhdkit.fleet.cluster import Cluster
    from vhdkit.fleet.cluster_security import TlsFiles


@click.group()
def fleet() -> None:
    """Do one verb for many chains at once, each ending by itself.

    PATTERN names images: `*` and `?` stand for letters of a name, `**` for any number of folders; quote it, or the
    shell takes it apart. An image that a PATTERN means is a chain unless it is the parent of another one. With
    --scheduler, HOST:/PATTERN names those of a machine on which a `vhdkit fleet worker` runs.

    Exit codes: 0 all done, 1 some failed, 75 some were in use (try later), 130 interrupted; `fleet check` has those of
    check, the worst of all chains.
    """


def _secured(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the files of TLS, which `_tls` takes."""
    options = [
        click.option("--tls-ca", metavar="FILE", help="The certificate of the cluster's own authority, as PEM."),
        click.option("--tls-cert", metavar="FILE", help="A certificate of that authority for this process."),
        click.option("--tls-key", metavar="FILE", help="The key of that certificate."),
    ]
    return functools.reduce(lambda inner, option: option(inner), reversed(options), command)


def _shared(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the patterns, and the options that say where parents are and who does the work."""
    options: list[Callable[[Callable[..., Any]], Callable[..., Any]]] = [
        click.argument("patterns", nargs=-1, required=True, metavar="PATTERN..."),
        click.option(
            "--search",
            multiple=True,
            type=FOLDER,
            metavar="DIR",
            help="Look for parents in this folder too, and below.",
        ),
        parent_map_option,
        click.option(
            "--scheduler",
            metavar="ADDRESS",
            help="Have the workers of this Dask scheduler do it (pip install 'vhdkit[fleet]'): tls://HOST:PORT.",
        ),
        _secured,
        json_option,
    ]
    return functools.reduce(lambda inner, option: option(inner), reversed(options), command)


def _running(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of the verbs that do something for each chain, which hand them on to `_run`."""
    options = [
        click.option(
            "--parallel",
            type=click.IntRange(1, 1024),
            metavar="N",
            help="Run at most N chains at once.  [default: as many as there are processors]",
        ),
        click.option(
            "--per-target",
            type=click.IntRange(1, 1024),
            default=2,
            show_default=True,
            metavar="N",
            help="Run at most N chains at once on one file system.",
        ),
        click.option(
            "--report",
            "reports",
            multiple=True,
            metavar="FILE",
            help="Write what came of each chain to FILE: .csv, .json, .html, or .prom for the node exporter.",
        ),
        click.option("--dry-run", is_flag=True, help="Say what would be done, and what stands in the way; do nothing."),
        click.option("--keep-going", is_flag=True, help="Begin though nothing can be done for some of the chains."),
        progress_option,
    ]
    return functools.reduce(lambda inner, option: option(inner), reversed(options), _shared(command))


@fleet.command()
@_shared
def scan(
    patterns: tuple[str, ...],
    *,
    search: tuple[str, ...],
    parent_map: tuple[tuple[str, str], ...],
    scheduler: str | None,
    as_json: bool,
    **tls: str | None,
) -> int:
    """List the chains that the PATTERNs mean, leaf and base of each.

    Exit code 1 if something cannot be read, or a chain cannot be opened.
    """
    from vhdkit.cli.fleet_view import print_chains
    from vhdkit.fleet.join import join_found

    with _cluster(scheduler, _tls(**tls)) as cluster:
        found = join_found(_found(patterns, _parents(search, parent_map), cluster))
    return ExitCode.FAILED if print_chains(found, as_json=as_json) else ExitCode.DONE


@fleet.command()
@_running
@click.option("--deep", is_flag=True, help="Also read the data that the bitmaps say are not there.")
def check(*, deep: bool, **asked: Any) -> int:
    """Check each chain, its leaf and everything below."""
    return _run("check", {"deep": deep}, **asked)


@fleet.command("hash")
@_running
@click.option("--blake3", is_flag=True, help="Take BLAKE3 instead of SHA-256 (pip install 'vhdkit[blake3]').")
def hash_(*, blake3: bool, **asked: Any) -> int:
    """Print the SHA-256 of what each chain's leaf shows, in the lines of sha256sum."""
    if blake3:
        _check_blake3()
    return _run("hash", {"algorithm": "blake3" if blake3 else "sha256"}, **asked)


@fleet.command()
@_running
@click.option("--to", "destination", required=True, metavar="DIR", help="Where the new files go.")
@click.option(
    "-O",
    "output_format",
    type=click.Choice(["raw", "fixed", "dynamic"]),
    default="dynamic",
    show_default=True,
    help="Format of the new files.",
)
def convert(*, destination: str, output_format: str, **asked: Any) -> int:
    """Write what each chain's leaf shows to a new file in DIR, named for the leaf.

    A file of that name that shows the same was made by an earlier run; any other one is never replaced.
    """
    from vhdkit.storage import paths

    return _run("convert", {"destination": paths.abspath(destination), "output_format": output_format}, **asked)


@fleet.command()
@_running
@click.option("--verify", is_flag=True, help="Read both before and after; remove nothing unless they agree.")
@click.option("--rate", type=Size(), metavar="SIZE", help="Most bytes to copy a second in each merge: 8M.")
def merge(*, verify: bool, rate: int | None, **asked: Any) -> int:
    """Merge, in each chain, all images that the PATTERNs mean into the first below that they do not, or the base.

    What was merged is REMOVED. The command may be repeated after any end: merges that were cut off go on, those that
    are done are left alone. Each is a job: `vhdkit job list` shows how far it is.
    """
    if rate == 0:
        raise click.UsageError("--rate 0 would never be done")
    return _run("merge", {"verify": verify, "rate": rate}, **asked)


@fleet.command()
@click.argument("scheduler")
@click.option(
    "--allow",
    "folders",
    multiple=True,
    required=True,
    type=FOLDER,
    metavar="DIR",
    help="Work in this folder and below; what a request names elsewhere is refused.",
)
@click.option("--host", metavar="NAME", default="", help="The name in HOST:/PATTERN; this machine's by default.")
@click.option(
    "--threads",
    type=click.IntRange(1, 256),
    default=2,
    show_default=True,
    metavar="N",
    help="Do at most N chains at once.",
)
@_secured
def worker(scheduler: str, *, folders: tuple[str, ...], host: str, threads: int, **tls: str | None) -> None:
    """Do what the clients of a Dask SCHEDULER ask for, in the folders that are allowed, until Ctrl-C.

    Anyone who may talk to the scheduler can have this process run anything: away from this machine's loopback it is
    reached by TLS only, and its certificates say who may.
    """
    from vhdkit.cli.signals import stopping
    from vhdkit.fleet.cluster_service import ClusterWorker, serve_cluster

    started = ClusterWorker(scheduler=scheduler, folders=folders, tls=_tls(**tls), host=host, threads=threads)
    with stopping() as stop:
        serve_cluster(started, stop, functools.partial(echo, err=True))


def _run(
    verb: str,
    chosen: dict[str, Any],
    *,
    patterns: tuple[str, ...],
    search: tuple[str, ...],
    parent_map: tuple[tuple[str, str], ...],
    per_target: int,
    scheduler: str | None,
    reports: tuple[str, ...],
    tls_ca: str | None,
    tls_cert: str | None,
    tls_key: str | None,
    **how: Any,
) -> int:
    """Find the chains, plan, and carry that out or say what it is."""
    from vhdkit.cli.fleet_run import check_reports, say_or_do
    from vhdkit.fleet import FleetOptions, FleetVerb, plan_fleet

    check_reports(reports)
    parents = _parents(search, parent_map)
    options = FleetOptions(verb=FleetVerb(verb), parents=parents, per_target=per_target, **chosen)
    with _cluster(scheduler, _tls(tls_ca, tls_cert, tls_key)) as cluster:
        plan = plan_fleet(_found(patterns, parents, cluster), options)
        return say_or_do(plan, options, cluster, reports, **how)


def _tls(tls_ca: str | None, tls_cert: str | None, tls_key: str | None) -> TlsFiles | None:
    """Return the files of TLS, all or none."""
    if not (tls_ca or tls_cert or tls_key):
        return None
    if not (tls_ca and tls_cert and tls_key):
        raise click.UsageError("--tls-ca, --tls-cert and --tls-key go together")
    from vhdkit.fleet.cluster_security import TlsFiles

    return TlsFiles(ca=tls_ca, cert=tls_cert, key=tls_key)


@contextmanager
def _cluster(scheduler: str | None, tls: TlsFiles | None) -> Iterator[Cluster | None]:
    """Lend the workers of a scheduler, None without one."""
    if scheduler is None:
        if tls is not None:
            raise click.UsageError("--tls-ca, --tls-cert and --tls-key go with --scheduler")
        yield None
        return
    from vhdkit.fleet.cluster import Cluster

    with Cluster(scheduler, tls=tls) as cluster:
        yield cluster


def _found(patterns: Sequence[str], parents: ParentPolicy, cluster: Cluster | None) -> Sequence[FoundChains]:
    from vhdkit.fleet import Pattern, find_chains

    if "" in patterns:
        raise click.UsageError("a pattern is empty: `.` is the folder that this is run in")
    try:
        meant = [Pattern.of(text) for text in patterns]
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    if cluster is not None:
        return cluster.find(meant, parents)
    for pattern in meant:
        if pattern.host:
            raise click.UsageError(f"{pattern}: a pattern with a host needs workers there, and --scheduler")
    return [find_chains(pattern, parents) for pattern in meant]


def _parents(search: tuple[str, ...], parent_map: tuple[tuple[str, str], ...]) -> ParentPolicy:
    from vhdkit.fleet import ParentPolicy
    from vhdkit.storage import paths

    return ParentPolicy.of(
        [paths.abspath(path) for path in search], {name: paths.abspath(path) for name, path in parent_map}
    )


def _check_blake3() -> None:
    """Refuse before anything is begun what would fail for every chain."""
    from vhdkit.errors import MissingExtraError
    from vhdkit.extras import load_extra

    try:
        load_extra("blake3", "blake3", "BLAKE3")
    except MissingExtraError as error:
        raise click.UsageError(str(error)) from error
