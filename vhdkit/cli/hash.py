"""The verb that names a disk's content: hash."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

import vhdkit
from vhdkit.cli.exit_codes import ExitCode
from vhdkit.cli.failure import describe_failure, explain
from vhdkit.cli.options import (
    accept_option,
    chain_options,
    force_share_option,
    image_format_option,
    json_option,
    progress_option,
    reading,
)
from vhdkit.cli.output import echo, path_text, print_json, progress_shown, warn_before_reading
from vhdkit.errors import ImageInUseError, VhdError
from vhdkit.storage import paths

if TYPE_CHECKING:
    from vhdkit.chain.hash import ViewHash


@click.command("hash")
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@click.option("--layers", is_flag=True, help="Hash what each layer shows as well, from the leaf down.")
@click.option("--blake3", is_flag=True, help="Take BLAKE3 instead of SHA-256 (pip install 'vhdkit[blake3]').")
@image_format_option
@force_share_option
@progress_option
@chain_options
@accept_option
@json_option
def hash_(
    files: tuple[str, ...],
    *,
    layers: bool,
    blake3: bool,
    image_format: Any,
    progress: str | None,
    as_json: bool,
    **options: Any,
) -> int:
    """Print the SHA-256 of what each FILE shows through its chain.

    It is that of the raw file that convert -O raw would make, and the lines are those of sha256sum. What is unallocated
    is not read. A file that cannot be read is reported (with --json in the list) and the others are hashed: exit 1, or
    75 if it is in use.
    """
    failures: list[VhdError | OSError] = []
    records: list[dict[str, Any]] = []
    for file in files:
        try:
            warn_before_reading(file, reading(**options))
            with progress_shown(progress, "hashing") as advance:
                found = vhdkit.hash_image(
                    file,
                    algorithm="blake3" if blake3 else "sha256",
                    layers=layers,
                    image_format=image_format,
                    progress=advance,
                    **reading(**options),
                )
        except (VhdError, OSError) as error:
            if len(files) == 1:
                raise
            _report(error)
            failures.append(error)
            records.append(
                {"filename": paths.as_given(paths.abspath(file)), "error": describe_failure(error, _exit_code([error]))}
            )
            continue
        except ModuleNotFoundError as error:
            raise click.UsageError("BLAKE3 needs an extra: pip install 'vhdkit[blake3]'") from error
        records.append(_record(found, with_layers=layers))
        if not as_json:
            for view in found:
                echo(f"{view.digest}  {path_text(file if view is found[0] else view.path)}")
    if as_json:
        print_json(records)
    return _exit_code(failures)


def _exit_code(failures: list[VhdError | OSError]) -> int:
    if not failures:
        return 0
    return ExitCode.IN_USE if all(isinstance(error, ImageInUseError) for error in failures) else ExitCode.FAILED


def _report(error: VhdError | OSError) -> None:
    echo(explain(error), err=True)


def _record(found: tuple[ViewHash, ...], *, with_layers: bool) -> dict[str, Any]:
    """Return the digests of one file as JSON has them."""
    rows = [
        {
            "filename": paths.as_given(view.path),
            "virtual-size": view.size,
            "algorithm": view.algorithm.value,
            "digest": view.digest,
        }
        for view in found
    ]
    return rows[0] | ({"layers": rows} if with_layers else {})
