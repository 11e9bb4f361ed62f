"""S3 through boto3: one client per process, ranges read with retries, and failures reported in one clear line.

The only module that imports boto3. Endpoint and credentials come from the environment (infra/env.example), timeouts and
the number of retries from section `store`.
"""

from __future__ import annotations

import functools
import hashlib
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import boto3
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    CredentialRetrievalError,
    NoCredentialsError,
    PartialCredentialsError,
    TokenRetrievalError,
)
from urllib3.exceptions import HTTPError

from align.config.infrastructure import StoreConfig
from align.errors import DataError, ServiceError, without_logins
from align.services.s3.locations import Stat, split_uri

T = TypeVar("T")

_MISSING = frozenset({"404", "NoSuchKey", "NotFound", "NoSuchBucket"})
_PRECONDITION = frozenset({"PreconditionFailed", "ConditionalRequestConflict", "412", "409"})
#: S3's limit on the parts of an upload.
_MAX_PARTS = 10_000
#: Of a part of an upload or a download; S3 takes none below 5 MiB.
_PART_BYTES = 16 << 20
#: Seconds before the second attempt at a body that was cut off; doubled each time.
_BACKOFF_S = 0.5


def client(config: StoreConfig) -> Any:
    """This process's boto3 client for these settings; several threads may call its methods."""
    settings = tuple(sorted((name, value) for name, value in os.environ.items() if name.startswith("AWS_")))
    return _client(config, os.getpid(), settings)


@functools.lru_cache(maxsize=8)
def _client(config: StoreConfig, _process: int, _environment: tuple[tuple[str, str], ...]) -> Any:
    settings = Config(
        connect_timeout=config.timeout_s,
        read_timeout=config.timeout_s,
        retries={"mode": "standard", "total_max_attempts": config.num_retries + 1},
        max_pool_connections=config.num_connections,
    )
    with explained("s3://"):
        return boto3.session.Session().client("s3", config=settings)


@contextmanager
def explained(uri: str) -> Iterator[None]:
    """Turns boto3's exceptions into ours. Raises DataError if the object does not exist, or the credentials are
    refused; ServiceError if the server is unavailable or refuses.
    """
    try:
        yield
    except (NoCredentialsError, PartialCredentialsError, CredentialRetrievalError, TokenRetrievalError) as error:
        raise DataError(
            f"{uri}: no credentials for S3 ({error}); set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        ) from None
    except ClientError as error:
        code, status = str(error.response["Error"].get("Code", "")), _status(error)
        if code == "NoSuchBucket":
            raise DataError(f"{uri}: there is no such bucket; create it, or correct its name") from None
        if code in _MISSING or status == 404:
            raise DataError(f"{uri}: no such object") from None
        if status in (401, 403):
            raise DataError(
                f"{uri}: the server refuses access ({code}); check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and "
                "their permissions"
            ) from None
        message = error.response["Error"].get("Message", "")
        raise ServiceError(f"{uri}: the server answers {code or status}: {message}; run again when it works") from None
    except (BotoCoreError, HTTPError, OSError) as error:
        if isinstance(error, OSError) and error.filename is not None:
            raise  # an error of a file on this machine
        endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or "AWS"
        text = without_logins(" ".join(str(error).split()))[:200]
        raise ServiceError(f"{uri}: no answer from {endpoint} ({text}); is it up? Nothing is lost; run again") from None
    except (LookupError, ValueError, TypeError) as error:  # a header is absent, or is not a number or a time
        why = " ".join(repr(error).split())[:200]
        raise ServiceError(f"{uri}: the server does not answer as S3 does: {why}; is the address right?") from None


def _body(answer: dict[str, Any]) -> bytes:
    """The bytes of an answer."""
    with closing(answer["Body"]) as body:  # not the body's own context: the stream below does not compare its length
        data: bytes = body.read()
    return data


def _status(error: ClientError) -> int:
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def retried(config: StoreConfig, attempt: Callable[[], T]) -> T:
    """Calls `attempt`, and repeats it if a body is cut off (the client itself retries requests, but not bodies)."""
    for number in range(config.num_retries + 1):
        try:
            return attempt()
        except ClientError:
            raise  # the server answered: a retry does not help
        except (BotoCoreError, HTTPError, ConnectionError):
            if number == config.num_retries:
                raise
            time.sleep(min(_BACKOFF_S * 2**number, 20.0))
    raise AssertionError("the last attempt returns or raises")


def stat(config: StoreConfig, uri: str) -> Stat | None:
    """Size and ETag of an object; None if it does not exist. Raises as `explained` for all other failures."""
    bucket, key = split_uri(uri)
    with explained(uri):
        try:
            head = client(config).head_object(Bucket=bucket, Key=key)
        except ClientError as error:
            if _status(error) == 404:
                return None
            raise
        return Stat(head["ContentLength"], head["ETag"])


def read_range(config: StoreConfig, uri: str, offset: int, size: int, etag: str | None = None) -> bytes:
    """Bytes of an object; fewer at its end.

    Args:
        config: section `store`.
        uri: of the object.
        offset, size: in bytes; size > 0.
        etag: the object's expected ETag.

    Raises:
        As `explained`; also DataError if the object has been replaced.
    """
    bucket, key = split_uri(uri)
    condition = {"IfMatch": etag} if etag else {}

    def attempt() -> bytes:
        answer = client(config).get_object(
            Bucket=bucket, Key=key, Range=f"bytes={offset}-{offset + size - 1}", **condition
        )
        if etag and answer.get("ETag", etag) != etag:
            raise DataError(f"{uri}: it was replaced while it was read; run again")
        return _body(answer)

    with explained(uri):
        try:
            return retried(config, attempt)
        except ClientError as error:
            if error.response["Error"].get("Code") in _PRECONDITION:
                raise DataError(f"{uri}: it was replaced while it was read; run again") from None
            if _status(error) == 416:
                return b""
            raise


def read_small(config: StoreConfig, uri: str, max_bytes: int) -> bytes | None:
    """A whole object that has few bytes; None if it does not exist.

    Raises:
        As `explained`; also DataError if it has more bytes.
    """
    bucket, key = split_uri(uri)

    def attempt() -> bytes | None:
        try:
            answer = client(config).get_object(Bucket=bucket, Key=key)
        except ClientError as error:
            if _status(error) == 404 and error.response["Error"].get("Code") != "NoSuchBucket":
                return None
            raise
        if answer.get("ContentLength", 0) > max_bytes:
            answer["Body"].close()
            raise DataError(f"{uri}: {answer['ContentLength']:,} bytes; at most {max_bytes:,} are expected")
        return _body(answer)

    with explained(uri):
        return retried(config, attempt)


def write_new(config: StoreConfig, uri: str, data: bytes) -> bool:
    """Writes a small object if there is none; returns whether it did.

    False is also the answer if the server obeyed, its answer was lost and the request was repeated: read the object to
    tell. Raises as `explained`.
    """
    bucket, key = split_uri(uri)
    return _is_new(uri, lambda: client(config).put_object(Bucket=bucket, Key=key, Body=data, IfNoneMatch="*"))


def _is_new(uri: str, write: Callable[[], object]) -> bool:
    """Writes under a condition; returns whether it held. Raises as `explained`."""
    with explained(uri):
        try:
            write()
        except ClientError as error:
            if error.response["Error"].get("Code") in _PRECONDITION:
                return False
            raise
    return True


def list_objects(config: StoreConfig, bucket: str, prefix: str) -> Iterator[str]:
    """Keys of all objects under a prefix, in order. Raises as `explained`."""
    return (key for key, _ in list_stats(config, bucket, prefix))


def list_stats(config: StoreConfig, bucket: str, prefix: str) -> Iterator[tuple[str, Stat]]:
    """As `list_objects`, each with its size and ETag, which the server lists, too."""
    with explained(f"s3://{bucket}/{prefix}"):
        for page in client(config).get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
            for item in page.get("Contents", []):
                yield item["Key"], Stat(item["Size"], item["ETag"])


def upload(config: StoreConfig, path: Path, uri: str) -> bool:
    """Writes an object under a free name, in parts if it is large. No reader ever sees a partial object.

    Returns:
        False if the name is taken, by the writer that was first; that object stays as it is.

    Raises:
        As `explained`.
    """
    bucket, key = split_uri(uri)
    num_bytes, target = path.stat().st_size, {"Bucket": bucket, "Key": key}
    part_bytes = max(_PART_BYTES, -(-num_bytes // _MAX_PARTS))

    def write() -> None:
        if num_bytes <= part_bytes:
            with path.open("rb") as body:
                client(config).put_object(**target, Body=body, IfNoneMatch="*")
        else:
            _upload_parts(config, path, target, range(0, num_bytes, part_bytes))

    return _is_new(uri, write)


def _upload_parts(config: StoreConfig, path: Path, target: dict[str, str], starts: range) -> None:
    s3 = client(config)
    upload_id = s3.create_multipart_upload(**target)["UploadId"]

    def put(start: int) -> dict[str, Any]:
        with path.open("rb") as file:
            file.seek(start)
            body = file.read(starts.step)
        number = start // starts.step + 1
        answer = s3.upload_part(**target, UploadId=upload_id, PartNumber=number, Body=body)
        return {"PartNumber": number, "ETag": answer["ETag"]}

    try:
        with ThreadPoolExecutor(config.num_connections) as pool:
            parts = list(pool.map(put, starts))
        s3.complete_multipart_upload(**target, UploadId=upload_id, MultipartUpload={"Parts": parts}, IfNoneMatch="*")
    except BaseException:
        with suppress(ClientError, BotoCoreError):  # the first error says what is wrong
            s3.abort_multipart_upload(**target, UploadId=upload_id)
        raise


def download(config: StoreConfig, uri: str, file: BinaryIO, status: Stat | None = None) -> str | None:
    """Writes an object into a file; returns the sha256 of its bytes, or None if there is no object.

    Memory: one part per connection.

    Args:
        config: section `store`.
        uri: of the object.
        file: where it goes.
        status: of the object, where it is known.

    Raises:
        As `explained`; also DataError if the object has been replaced since.
    """
    status = status or stat(config, uri)
    if status is None:
        return None
    digest = hashlib.sha256()
    starts = range(0, status.num_bytes, _PART_BYTES)
    with ThreadPoolExecutor(config.num_connections) as pool:
        for first in range(0, len(starts), config.num_connections):
            some = starts[first : first + config.num_connections]
            read = partial(read_range, config, uri, size=_PART_BYTES, etag=status.etag)
            for data in pool.map(read, some):
                digest.update(data)
                file.write(data)
    return digest.hexdigest()


def remove(config: StoreConfig, uri: str) -> None:
    """Deletes an object, if it exists. Raises as `explained`."""
    bucket, key = split_uri(uri)
    with explained(uri):
        client(config).delete_object(Bucket=bucket, Key=key)
