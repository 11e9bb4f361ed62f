"""Section `download`: how pictures are fetched from the web. Part of `align ingest`."""

from __future__ import annotations

from ipaddress import ip_network
from typing import Annotated, ClassVar

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, field_validator

from align.config.params import Section


class DownloadConfig(Section):
    """Bounds of one request, politeness towards a host, and what is done with the bytes."""

    section: ClassVar[str] = "download"

    #: How we call ourselves; say there how to reach you.
    user_agent: Annotated[str, Field(min_length=1)]
    #: Whether robots.txt and X-Robots-Tag (noai, noimageai, noindex, noimageindex) are obeyed.
    obey_robots: bool
    #: Requests in flight over all hosts, and towards one.
    max_connections: PositiveInt
    max_connections_per_host: PositiveInt
    #: Requests started per second towards one host; None for no limit but the connections.
    max_requests_per_host_per_s: PositiveFloat | None
    #: Time for name resolution, connection and TLS.
    connect_timeout_s: PositiveFloat
    #: Time for one attempt, redirects included, from its start to the last byte.
    timeout_s: PositiveFloat
    #: Time for a picture, all attempts and waits between them included.
    deadline_s: PositiveFloat
    #: Larger bodies are given up, whatever their headers say.
    max_image_bytes: PositiveInt
    #: Of all bodies under way; one picture may exceed it, so that things go on.
    max_bytes_in_flight: PositiveInt
    max_redirects: NonNegativeInt
    #: Further attempts after a failure that may pass: time-outs, lost connections, DNS, 408, 425, 429, 5xx.
    num_retries: NonNegativeInt
    #: So many failures that may pass, in a row, and a host is given up for `deadline_s`: what else is asked of it
    #: fails at once.
    max_failures_per_host: PositiveInt
    #: From an attempt's start to the next, doubled each time; a server's Retry-After counts where it is longer.
    backoff_s: NonNegativeFloat
    #: CIDR ranges that may be asked although private; other private, loopback and link-local addresses are refused.
    allow_networks: Annotated[tuple[str, ...], Field(strict=False)]
    #: Shorter side to which larger pictures are shrunk and re-encoded as JPEG; None stores the bytes as they came.
    resize_px: PositiveInt | None
    #: Of those re-encoded pictures.
    jpeg_quality: Annotated[int, Field(ge=1, le=100)]

    @field_validator("allow_networks")
    @classmethod
    def _are_networks(cls, networks: tuple[str, ...]) -> tuple[str, ...]:
        for network in networks:
            ip_network(network)  # its ValueError says what is wrong
        return networks
