"""Section `download`: how `align ingest` fetches pictures from the web."""

from __future__ import annotations

from ipaddress import ip_network
from typing import Annotated, ClassVar

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, field_validator

from align.config.params import Section


class DownloadConfig(Section):
    """Bounds of requests, politeness towards hosts, and how the bytes are stored."""

    section: ClassVar[str] = "download"

    #: The name that we send; state there how to reach you.
    user_agent: Annotated[str, Field(min_length=1)]
    #: Whether robots.txt and X-Robots-Tag (noai, noimageai, noindex, noimageindex) are obeyed.
    obey_robots: bool
    #: Requests in flight to all hosts together, and to one host.
    max_connections: PositiveInt
    max_connections_per_host: PositiveInt
    #: Requests started per second to one host; None: only the connections limit it.
    max_requests_per_host_per_s: PositiveFloat | None
    #: Time for name resolution, connection and TLS.
    connect_timeout_s: PositiveFloat
    #: Time for one attempt, redirects included, from its start to the last byte.
    timeout_s: PositiveFloat
    #: Time for a picture, including all attempts and the waits between them.
    deadline_s: PositiveFloat
    #: Larger bodies are given up, even if their headers state less.
    max_image_bytes: PositiveInt
    #: Bytes of all bodies in flight; one picture may exceed it, so that there is progress.
    max_bytes_in_flight: PositiveInt
    max_redirects: NonNegativeInt
    #: More attempts after a failure that may be temporary: time-outs, lost connections, DNS, 408, 425, 429, 5xx.
    num_retries: NonNegativeInt
    #: After this many temporary failures in a row, a host is given up for `deadline_s`: its other pictures fail
    #: at once.
    max_failures_per_host: PositiveInt
    #: Time from the start of an attempt to the next one, doubled each time; a server's Retry-After counts if longer.
    backoff_s: NonNegativeFloat
    #: CIDR ranges to allow although they are private; other private, loopback and link-local addresses are refused.
    allow_networks: Annotated[tuple[str, ...], Field(strict=False)]
    #: Larger pictures are shrunk to this shorter side and re-encoded as JPEG; None stores the bytes as they came.
    resize_px: PositiveInt | None
    #: The quality of these re-encoded pictures.
    jpeg_quality: Annotated[int, Field(ge=1, le=100)]

    @field_validator("allow_networks")
    @classmethod
    def _are_networks(cls, networks: tuple[str, ...]) -> tuple[str, ...]:
        for network in networks:
            ip_network(network)  # its ValueError states the problem
        return networks
