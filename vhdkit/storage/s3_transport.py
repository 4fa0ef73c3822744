"""Ranges of objects in a bucket, many at a time: s3fs's client, with the credentials that it finds in its own places.

Those are the AWS command line's: variables of the environment (AWS_PROFILE, AWS_ENDPOINT_URL and others), its files,
and the machine's role. None of it is ever part of a URL, or printed.
"""

from __future__ import annotations

import errno
from contextlib import contextmanager
from email.utils import formatdate
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from vhdkit.extras import load_extra
from vhdkit.storage import http_transport
from vhdkit.storage.http_transport import EXTRA, HttpTransport, PassingError, Version

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Sequence


class S3Transport(HttpTransport):
    """The same for `s3://BUCKET/KEY`."""

    def __init__(self) -> None:
        super().__init__()
        purpose = "reading objects of S3"
        self._exceptions = load_extra("botocore.exceptions", EXTRA, purpose)
        seconds = http_transport.STALL_SECONDS
        config = {"read_timeout": seconds, "connect_timeout": seconds, "retries": {"max_attempts": 0}}
        self._system = load_extra("s3fs", EXTRA, purpose).S3FileSystem(skip_instance_cache=True, config_kwargs=config)

    def version(self, url: str) -> Version:
        """Return what an object is now; see `HttpTransport`."""

        async def ask(client: Any) -> Version:  # noqa: ANN401
            with self._told(url):
                answer = await client.head_object(**_object(url))
            return Version(int(answer["ContentLength"]), answer["ETag"], _date(answer))

        found: list[Version] = self._all([ask], url)
        return found[0]

    def ranges(self, url: str, version: Version, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        """Return the bytes of ranges [start, stop) of an object; see `HttpTransport`."""

        def request(start: int, stop: int) -> Callable[[Any], Awaitable[bytes]]:
            async def ask(client: Any) -> bytes:  # noqa: ANN401
                with self._told(url):
                    wanted = {"Range": f"bytes={start}-{stop - 1}", "IfMatch": version.etag}
                    answer = await client.get_object(**_object(url), **wanted)
                    async with answer["Body"] as body:
                        # Not every store heeds the conditions.
                        if answer["ETag"] != version.etag:
                            raise OSError(errno.ESTALE, http_transport.CHANGED, url)
                        http_transport.check_range(answer.get("ContentRange", ""), version, start, stop, url)
                        return await http_transport.read_body(body, stop - start)

            return ask

        found: list[bytes] = self._all([request(start, stop) for start, stop in ranges], url)
        return found

    @contextmanager
    def _told(self, url: str) -> Iterator[None]:
        """Raise a failure by its status, or let it be tried again."""
        try:
            yield
        except self._exceptions.ClientError as error:
            self._check(int(error.response["ResponseMetadata"]["HTTPStatusCode"]), url)
            raise OSError(errno.EIO, str(error), url) from None
        except (self._exceptions.NoCredentialsError, self._exceptions.PartialCredentialsError) as error:
            raise OSError(errno.EACCES, f"there are no credentials for S3: {error}", url) from None
        except self._exceptions.BotoCoreError as error:
            raise PassingError(str(error)) from None


def _object(url: str) -> dict[str, str]:
    parts = urlsplit(url)
    return {"Bucket": parts.netloc, "Key": unquote(parts.path).lstrip("/")}


def _date(answer: Any) -> str:  # noqa: ANN401
    return formatdate(answer["LastModified"].timestamp(), usegmt=True)
