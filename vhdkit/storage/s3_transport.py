"""Ranges of objects in a bucket, many at a time: s3fs's client, with the credentials that it finds in its own places.

Those are the AWS command line's: variables of the environment (AWS_PROFILE, AWS_ENDPOINT_URL and others), its files,
and the machine's role. None of it is ever part of a URL, or printed.
"""

from __future__ import annotations

import errno
from contextlib import contextmanager
from email.utils import formatdate
from typing import TYPE_CHECKING, Any

from vhdkit.extras import load_extra
from vhdkit.storage import transport
from vhdkit.storage.http_transport import check_range, check_status, read_body
from vhdkit.storage.transport import CHANGED, EXTRA, Listed, PassingError, Transport, Version

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Sequence

    from vhdkit.storage.remote_paths import RemotePlace


class S3Transport(Transport):
    """The transport of `s3://BUCKET/KEY`."""

    def __init__(self) -> None:
        purpose = "reading objects of S3"
        super().__init__(load_extra("aiohttp", EXTRA, purpose).ClientError)
        self._exceptions = load_extra("botocore.exceptions", EXTRA, purpose)
        seconds = transport.STALL_SECONDS
        config = {
            "read_timeout": seconds,
            "connect_timeout": seconds,
            "retries": {"max_attempts": 0},
            # By itself it has ten connections, which would take 32 ranges in four round trips.
            "max_pool_connections": transport.MOST_AT_ONCE,
        }
        self._system = load_extra("s3fs", EXTRA, purpose).S3FileSystem(skip_instance_cache=True, config_kwargs=config)

    async def _session(self, _place: RemotePlace) -> Any:  # noqa: ANN401
        return await self._system.set_session()

    def version(self, place: RemotePlace) -> Version:
        """Return what an object is now; see `Transport`."""

        async def ask(client: Any) -> Version:  # noqa: ANN401
            with self._translated(place.url):
                answer = await client.head_object(**_object(place))
            return Version(int(answer["ContentLength"]), answer["ETag"], _date(answer))

        found: list[Version] = self._together(place, [ask])
        return found[0]

    def ranges(self, place: RemotePlace, version: Version, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        """Return the bytes of ranges [start, stop) of an object; see `Transport`."""
        url = place.url

        def request(start: int, stop: int) -> Callable[[Any], Awaitable[bytes]]:
            async def ask(client: Any) -> bytes:  # noqa: ANN401
                with self._translated(url):
                    wanted = {"Range": f"bytes={start}-{stop - 1}", "IfMatch": version.etag}
                    answer = await client.get_object(**_object(place), **wanted)
                    async with answer["Body"] as body:
                        # Not every store heeds the conditions.
                        if answer["ETag"] != version.etag:
                            raise OSError(errno.ESTALE, CHANGED, url)
                        check_range(answer.get("ContentRange", ""), version, start, stop, url)
                        return await read_body(body, stop - start)

            return ask

        found: list[bytes] = self._together(place, [request(start, stop) for start, stop in ranges])
        return found

    def listing(self, place: RemotePlace) -> list[Listed]:
        """Return the objects under a prefix up to the next slash, and the longer prefixes; see `Transport`."""
        prefix = f"{_object(place)['Key'].rstrip('/')}/".lstrip("/")

        def name(key: str) -> str:
            return key.removeprefix(prefix).rstrip("/")

        async def ask(client: Any) -> list[Listed]:  # noqa: ANN401
            found: list[Listed] = []
            wanted = {"Bucket": place.authority, "Prefix": prefix, "Delimiter": "/"}
            with self._translated(place.url):
                async for page in client.get_paginator("list_objects_v2").paginate(**wanted):
                    folders, objects = page.get("CommonPrefixes", ()), page.get("Contents", ())
                    found += (Listed(name(each["Prefix"]), 0, is_folder=True) for each in folders)
                    found += (Listed(name(each["Key"]), int(each["Size"]), is_folder=False) for each in objects)
                    transport.check_length(len(found), place)
            return found

        asked: list[list[Listed]] = self._together(place, [ask])
        return asked[0]

    @contextmanager
    def _translated(self, url: str) -> Iterator[None]:
        """Raise a failure by its status, or let it be tried again."""
        try:
            yield
        except self._exceptions.ClientError as error:
            check_status(int(error.response["ResponseMetadata"]["HTTPStatusCode"]), url)
            raise OSError(errno.EIO, str(error), url) from None
        except (self._exceptions.NoCredentialsError, self._exceptions.PartialCredentialsError) as error:
            raise OSError(errno.EACCES, f"there are no credentials for S3: {error}", url) from None
        except RecursionError:
            # The library follows a bucket to its region, and asks there where it is if it is not there.
            raise OSError(errno.EREMOTE, "the server sends elsewhere without end", url) from None
        except self._exceptions.BotoCoreError as error:
            raise PassingError(str(error)) from None


def _object(place: RemotePlace) -> dict[str, str]:
    return {"Bucket": place.authority, "Key": place.path.lstrip("/")}


def _date(answer: Any) -> str:  # noqa: ANN401
    return formatdate(answer["LastModified"].timestamp(), usegmt=True)
