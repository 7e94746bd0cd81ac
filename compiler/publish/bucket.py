"""A bucket that speaks S3 (Amazon's, MinIO, Ceph, R2, ...) as the destination of a push, by boto3.

Credentials, region and endpoint are boto3's own: ``~/.aws``, ``AWS_PROFILE``, ``AWS_ENDPOINT_URL_S3``, a role of the machine.
Objects appear whole or not at all, and a conditional PUT (If-Match, If-None-Match) keeps publishers from overwriting each other.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from compiler.errors import ExtraMissing, PublishError
from compiler.publish.destinations import conflict

_FOREVER = "public, max-age=31536000, immutable"  # names with versions and digests
_ASK_AGAIN = "no-cache"  # timestamp.json: a cache that kept it would hold releases back
_PER_DELETE = 1000  # DeleteObjects takes no more
_MISSING = ("404", "NoSuchKey", "NotFound")
_CHANGED = ("PreconditionFailed", "412", "ConditionalRequestConflict", "409")


class BucketDestination:
    """``s3://BUCKET/PREFIX``."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._bucket, _, prefix = address.removeprefix("s3://").strip("/").partition("/")
        self._prefix = f"{prefix}/" if prefix else ""
        if not self._bucket:
            raise PublishError(f"{address} names no bucket.", remedy="Write s3://BUCKET or s3://BUCKET/PREFIX.")
        self._client = _client()

    def session(self) -> AbstractContextManager[None]:
        return nullcontext()  # every write that matters is conditional

    def read(self, name: str) -> bytes | None:
        return self._get(name)[0]

    def _get(self, name: str) -> tuple[bytes | None, str | None]:
        """An object's bytes and its ETag."""
        found: dict[str, Any] = {}
        data = None
        with self._told(_MISSING):
            found = self._client.get_object(Bucket=self._bucket, Key=self._prefix + name)
            data = found["Body"].read()
        return data, found.get("ETag")

    def send(self, source: Path, files: Sequence[str], *, replace: bool) -> int:
        if not files:
            return 0
        there = dict(self._list(f"{files[0].partition('/')[0]}/"))
        # A target's name carries its digest, and an object is never half there: the same size is the same content.
        lacking = [name for name in files if there.get(name) != (source / name).stat().st_size or not replace]
        return sum(self._upload(source, name) if replace else self._create(source, name) for name in lacking)

    def _upload(self, source: Path, name: str) -> int:
        with self._told():
            how = {"CacheControl": _FOREVER, "ContentType": _type(name)}
            self._client.upload_file(str(source / name), self._bucket, self._prefix + name, ExtraArgs=how)
        return 1

    def _create(self, source: Path, name: str) -> int:
        data = (source / name).read_bytes()
        there = self.read(name)
        if there is None and self._put(name, data, _FOREVER, IfNoneMatch="*"):
            return 1
        if (self.read(name) if there is None else there) != data:
            raise conflict(self._address, name)
        return 0

    def switch(self, source: Path, name: str, seen: bytes | None) -> int:
        data = (source / name).read_bytes()
        if data == seen:
            return 0
        now, etag = self._get(name)
        condition = {"IfNoneMatch": "*"} if etag is None else {"IfMatch": etag}
        put = now == seen and self._put(name, data, _ASK_AGAIN, **condition)
        # A PUT whose answer was lost is tried again by boto3, and then refused although it is ours that is there.
        if not put and self.read(name) != data:
            raise conflict(self._address, name)
        return 1

    def _put(self, name: str, data: bytes, cache: str, **condition: str) -> bool:
        """Whether the condition held."""
        with self._told(_CHANGED) as changed:
            self._client.put_object(
                Bucket=self._bucket,
                Key=self._prefix + name,
                Body=data,
                CacheControl=cache,
                ContentType=_type(name),
                **condition,
            )
        return not changed

    def remove_others(self, source: Path) -> int:
        gone = [
            name
            for folder in ("metadata/", "targets/")
            for name, _ in self._list(folder)
            if not (source / name).exists()
        ]
        for start in range(0, len(gone), _PER_DELETE):
            keys = [{"Key": self._prefix + name} for name in gone[start : start + _PER_DELETE]]
            with self._told():
                done = self._client.delete_objects(Bucket=self._bucket, Delete={"Objects": keys, "Quiet": True})
                if done.get("Errors"):
                    raise self._failed(done["Errors"][0].get("Message", "an object could not be deleted"))
        return len(gone)

    def _list(self, folder: str) -> Iterator[tuple[str, int]]:
        """Names and sizes of the objects below a folder."""
        with self._told():
            pages = self._client.get_paginator("list_objects_v2")
            for page in pages.paginate(Bucket=self._bucket, Prefix=self._prefix + folder):
                for item in page.get("Contents", ()):
                    yield item["Key"].removeprefix(self._prefix), item["Size"]

    @contextmanager
    def _told(self, expected: Sequence[str] = ()) -> Iterator[list[str]]:
        """boto3's errors in our words; a code in ``expected`` ends the block and lands in the list that is yielded."""
        from boto3.exceptions import Boto3Error
        from botocore.exceptions import BotoCoreError, ClientError

        met: list[str] = []
        try:
            yield met
        except ClientError as error:
            code = str(error.response.get("Error", {}).get("Code", ""))
            if code not in expected:
                raise self._failed(str(error)) from error
            met.append(code)
        except (Boto3Error, BotoCoreError) as error:
            raise self._failed(str(error)) from error

    def _failed(self, said: str) -> PublishError:
        return PublishError(
            f"The bucket of {self._address} refuses: {said.rstrip('.')}.",
            remedy="Check its name, the credentials and AWS_ENDPOINT_URL_S3; run it again: it goes on.",
        )


def _type(name: str) -> str:
    return "application/json" if name.endswith(".json") else "application/octet-stream"


def _client() -> Any:
    try:
        import boto3
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError
    except ImportError as error:
        raise ExtraMissing(
            f"Pushing to a bucket needs a package: {error}.", remedy="Install it: pip install 'edgewright[s3]'."
        ) from error
    # Many servers that speak S3 do not know the checksums that boto3 sends unasked.
    settings = Config(
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        retries={"mode": "standard", "max_attempts": 5},
    )
    try:
        return boto3.session.Session().client("s3", config=settings)
    except (BotoCoreError, ValueError) as error:
        raise PublishError(
            f"boto3 has no client for buckets: {error}.", remedy="Set AWS_DEFAULT_REGION, or ~/.aws/config."
        ) from error
