"""Section `ingest`: the source of pairs, and how data/raw is made from it."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, field_validator

from align.config.params import Section

#: Where a page may have the text of a picture.
TextSource = Literal["alt", "figcaption", "title", "aria-label"]


class Columns(BaseModel):
    """The names of a table's columns. A table without a header has them in this order."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    #: The picture: its address, or its file's name. None: found where the table has a usual name for it.
    url: str | None
    #: The text: the column with it, found in the same way.
    text: str | None
    #: The page that shows the picture; None if the table has no such column.
    page_url: str | None


class IngestConfig(Section):
    """From a source of image/text pairs to data/raw."""

    section: ClassVar[str] = "ingest"

    #: The kind of `paths.archive`: pictures with a table or texts beside them, WARC, ARC or WAT files, saved pages, a
    #: table of URLs, a folder of img2dataset or webdataset, or the JSON of COCO (or Karpathy).
    source: Literal["folder", "warc", "html", "url_table", "shards", "coco"]
    #: The prefix of relative lines in a list of files: a folder, s3://..., https://...; None: the folder of the list.
    paths_root: Annotated[str, Field(min_length=1)] | None
    #: Where to get pictures that pages name: the archive itself, the web, or the web if the archive has none.
    images_from: Literal["archive", "web", "archive_then_web"]
    #: Do not fetch a picture from the web if none of its texts can pass the filter (`align.pairs.text_cuts`).
    skip_hopeless: bool
    #: Where to look for a page's texts; the first non-empty one is the text.
    text_from: Annotated[tuple[TextSource, ...], Field(strict=False, min_length=1)]
    #: The columns of a table of pictures or addresses.
    columns: Columns
    #: The splits of COCO or Karpathy whose pictures are taken, with pictures that state no split; None: all.
    splits: Annotated[tuple[Annotated[str, Field(min_length=1)], ...], Field(strict=False, min_length=1)] | None
    #: The text for a picture in a folder that has no text; `{}` is the name of its folder. None: it is left out.
    folder_text: str | None
    #: Pages to take from the archive, spread evenly over it; None takes all.
    max_pages: PositiveInt | None
    #: Approximate pairs per shard: all pairs of one picture stay in one shard.
    shard_size: int = Field(ge=1, le=100_000)
    #: Write a tar sample for every pair that has a picture, with its bytes repeated, instead of one for every picture.
    pairs_as_samples: bool
    #: Pictures with more pixels are not decoded; the header states width and height.
    max_image_pixels: PositiveInt
    #: Bytes of one record, page or member, as stored and after each decoding; larger ones are not read.
    max_record_bytes: PositiveInt
    #: Take the readable parts of a file that is cut off or damaged and count the rest, instead of stopping.
    allow_damaged: bool

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
