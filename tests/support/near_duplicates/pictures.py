"""The sample's pictures, by content: those of the archive (training images) and of the evaluation sets."""

import hashlib

from fastwarc.warc import ArchiveIterator, WarcRecordType

from align.formats.evaluation_sets.align_tar import load_sets

#: The project's own cap (filter.max_image_pixels).
MAX_PIXELS = 10**8


def archive_pictures(sample, wanted=None):
    """image_id -> bytes, image_id -> its first address; of `wanted` only, or of all responses that are not text."""
    pictures = {}
    addresses = {}
    with (sample / "archive.warc.gz").open("rb") as file:
        for record in ArchiveIterator(file, record_types=WarcRecordType.response):
            if record.http_headers.status_code != 200 or (record.http_content_type or "").startswith("text/"):
                continue
            data = record.reader.read()
            image_id = hashlib.sha256(data).hexdigest()
            if (wanted is None or image_id in wanted) and image_id not in pictures:
                pictures[image_id], addresses[image_id] = data, record.headers["WARC-Target-URI"]
    return pictures, addresses


def evaluation_pictures(sample):
    """set/key -> bytes; an image in several sets has its first name."""
    sets = load_sets(sample / "evaluation")
    named = {one.name_of(position): picture for one in sets for position, picture in one.read()}
    first = {}
    for name in sorted(named):
        first.setdefault(named[name], name)
    return {name: data for data, name in first.items()}


def drawn(names, count):
    """`count` of the names, by the hash of each: always the same."""
    return sorted(names, key=lambda name: hashlib.sha256(name.encode()).digest())[:count]
