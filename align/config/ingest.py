"""Parameters of `align ingest`."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveInt

from align.config.params import Section

#: Where a page may say what a picture shows.
TextPlace = Literal["alt", "figcaption", "title", "aria-label"]


class Columns(BaseModel):
    """The names of a URL table's columns; a table without a header has them in this order."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    url: str
    text: str
    #: The page that shows the picture; None where the table does not say.
    page_url: str | None


class IngestConfig(Section):
    """From a source of image/text pairs to data/raw."""

    section: ClassVar[str] = "ingest"

    #: What `paths.archive` is: WARC or WAT files, saved pages, a table of URLs, img2dataset's or webdataset's folder,
    #: or COCO's (or Karpathy's) JSON.
    source: Literal["warc", "html", "url_table", "shards", "coco"]
    #: Pictures that pages name: out of the archive itself, from the web, or from the web where the archive has none.
    images_from: Literal["archive", "web", "archive_then_web"]
    #: Where a page's texts are looked for; the first of these that says something is the text.
    text_from: Annotated[tuple[TextPlace, ...], Field(strict=False, min_length=1)]
    #: Of a URL table.
    columns: Columns
    #: Pages taken from the archive, spread evenly over it; None takes all.
    max_pages: PositiveInt | None
    #: Pairs per shard, nearly: the pairs of one picture stay in one shard.
    shard_size: int = Field(ge=1, le=100_000)
    #: Larger pictures are not decoded: width x height from the header.
    max_image_pixels: PositiveInt
    #: Take the readable part of a file that is cut off, instead of an error.
    allow_truncated: bool
