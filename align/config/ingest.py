"""Sections `ingest` (the source of pairs, and how data/raw is made from it) and `download` (fetching from the web)."""

from __future__ import annotations

from ipaddress import ip_network
from typing import Annotated, ClassVar, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, field_validator

from align.config.params import Section, Strict

#: Where a page may have the text of a picture.
TextSource = Literal["alt", "figcaption", "title", "aria-label"]


class Columns(Strict):
    """The names of a table's columns. A table without a header has them in this order."""

    #: The picture: its address, its file's name, or in parquet its bytes. None: found where the table has a usual name.
    url: str | None
    #: The text: the column with it, found in the same way; or several, each of which gives a pair.
    text: str | Annotated[tuple[Annotated[str, Field(min_length=1)], ...], Field(strict=False, min_length=1)] | None
    #: The page that shows the picture; None if the table has no such column.
    page_url: str | None

    @property
    def texts(self) -> tuple[str, ...]:
        """The columns of the texts that are named; empty: none is."""
        return (self.text,) if isinstance(self.text, str) else tuple(dict.fromkeys(self.text or ()))


class IngestConfig(Section):
    """From a source of image/text pairs to data/raw."""

    section: ClassVar[str] = "ingest"

    #: The kind of `paths.archive`: pictures with a table or texts beside them, WARC or WAT files, a table of URLs, a
    #: folder of img2dataset or webdataset, or the JSON of COCO (or Karpathy).
    source: Literal["folder", "warc", "url_table", "shards", "coco"]
    #: The prefix of relative lines in a list of files: a folder, s3://..., https://...; None: the folder of the list.
    paths_root: Annotated[str, Field(min_length=1)] | None
    #: Where to get pictures that pages name: the archive itself, the web, or the web if the archive has none.
    images_from: Literal["archive", "web", "archive_then_web"]
    #: Do not fetch a picture from the web if none of its texts can pass the filter (`align.pairs.text_cuts`).
    skip_hopeless: bool
    #: Where to look for a page's texts; the first non-empty one is the text, or each gives a pair.
    text_from: Annotated[tuple[TextSource, ...], Field(strict=False, min_length=1)]
    texts_per_picture: Literal["first", "all"]
    #: The columns of a table of pictures or addresses.
    columns: Columns
    #: The splits of COCO or Karpathy whose pictures are taken, with pictures that state no split; None: all.
    splits: Annotated[tuple[Annotated[str, Field(min_length=1)], ...], Field(strict=False, min_length=1)] | None
    #: The text for a picture in a folder that has no text; `{}` is the name of its folder. None: it is left out.
    folder_text: str | None
    #: Take from the data/raw before what the web has answered: pictures, and failures that stay.
    reuse: bool
    #: Pages to take from the archive, spread evenly over it; None takes all.
    max_pages: PositiveInt | None
    #: Approximate pairs per shard: all pairs of one picture stay in one shard.
    shard_size: int = Field(ge=1, le=100_000)
    #: Write a tar sample for every pair that has a picture, with its bytes repeated, instead of one for every picture.
    #: Pictures with more pixels are not decoded; the header states width and height.
    max_image_pixels: PositiveInt
    #: Bytes of one record, page or member, as stored and after each decoding; larger ones are not read.
    max_record_bytes: PositiveInt
    #: The share of the files that may be cut off or damaged: their readable parts are taken, the rest is counted.
    max_damaged_share: float = Field(ge=0, le=1)

    @field_validator("folder_text")
    @classmethod
    def _has_a_place(cls, text: str | None) -> str | None:
        if text is not None and text.count("{}") != 1:
            raise ValueError("expected a text with one {} for the name of the folder, such as 'a photo of {}'")
        return text

    @field_validator("paths_root")
    @classmethod
    def _is_readable(cls, root: str | None) -> str | None:
        if root is not None and "://" in root and not root.startswith(("s3://", "https://", "http://")):
            raise ValueError("expected a folder, s3://... or https://...")
        return root


class DownloadConfig(Section):
    """Bounds of requests, politeness towards hosts, and how the bytes are stored."""

    section: ClassVar[str] = "download"

    #: The name that we send; state there how to reach you.
    user_agent: Annotated[str, Field(min_length=1)]
    #: Whether robots.txt, X-Robots-Tag (noai, noimageai, noml, noindex, noimageindex), Content-Usage, Content-Signal
    #: and reservations of pages (`align.ingest.sources.rights`) are obeyed.
    obey_robots: bool
    #: With it: what robots.txt forbids to one of these robots by name is not fetched.
    training_robots: Annotated[tuple[Annotated[str, Field(pattern="^[A-Za-z_-]+$")], ...], Field(strict=False)]
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
