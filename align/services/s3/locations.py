"""Addresses of objects, s3://bucket/key, and what is known of an object before it is read."""

from __future__ import annotations

import re
from dataclasses import dataclass

from align.errors import ConfigError


@dataclass(frozen=True)
class Stat:
    """An object's size in bytes, and its ETag."""

    num_bytes: int
    etag: str


def is_s3(location: str) -> bool:
    """Whether a location is on a server."""
    return location.startswith("s3://")


def split_uri(uri: str) -> tuple[str, str]:
    """`s3://bucket/key` -> bucket and key. Raises ConfigError if it names no bucket."""
    match = re.fullmatch(r"s3://([^/]+)/?(.*)", uri, re.DOTALL)
    if match is None:
        raise ConfigError(f"{uri}: expected s3://bucket/key")
    return match[1], match[2]
