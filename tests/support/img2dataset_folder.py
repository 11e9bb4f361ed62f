"""What img2dataset makes of a table of addresses: folders as its release 1.47 writes them, and itself."""

import hashlib
import io
import json
import os
import subprocess
import tarfile
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, UnidentifiedImageError

from tests.support.pictures import blurred_png

#: Rows of its tables that are written together, and of a shard (its default: 10,000).
_BUFFER_ROWS, _SHARD_ROWS = 100, 20
_STATUSES = {"success": "successes", "failed_to_download": "failed_to_download", "failed_to_resize": "failed_to_resize"}


@dataclass(frozen=True)
class Options:
    """Its options, by their names there; `resize_mode` is `border`, `keep_ratio` or `no`."""

    output_format: str = "webdataset"
    encode_format: str = "jpg"
    resize_mode: str = "border"
    image_size: int = 64
    compute_hash: str | None = "sha256"
    disable_all_reencoding: bool = False


@dataclass(frozen=True)
class Row:
    """A row of the table that it is given; `body` is what the server answers, None: 404."""

    path: str
    caption: str
    page: str
    body: bytes | None


def plain(size, colour, form="PNG"):
    """A picture of one colour: those of one shape are equal once they are shrunk, whatever size they had."""
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, form)
    return buffer.getvalue()


def scenario():
    """Pictures of all sizes, some twice, and what fails: everything about which the two ways could differ."""
    pictures = [blurred_png(seed, (230 + 2 * seed, 240)) for seed in range(12)]
    rows = [Row(f"/p/{n}", f"a drawing of thing {n % 5} here", f"/page/{n}", body) for n, body in enumerate(pictures)]
    rows += [
        Row("/small", "a drawing of something small", "/a", plain((100, 90), "red")),
        Row("/red-small", "a red picture of some size", "/a", plain((100, 100), "red")),
        Row("/red-large", "a red picture of another size", "/a", plain((800, 800), "red")),  # the same once shrunk
        Row("/red-copy", "a red picture of another size", "/a", plain((800, 800), "red")),
        Row("/wide", "a drawing of something wide", "/a", plain((1200, 300), "blue")),
        Row("/gif", "a drawing that was a GIF", "/a", plain((400, 300), "yellow", "GIF")),
        Row("/html", "a page and no picture", "/a", b"<html>no picture</html>"),
        Row("/cut", "a drawing that is cut off", "/a", pictures[0][:300]),
        Row("/p/1", "the same picture with other words", "/b", pictures[1]),
        Row("/p/1", "a drawing of thing 1 here", "/b", pictures[1]),
        Row("/p/3", "", "/b", pictures[3]),
    ]
    # One text of more than ten pictures that are missing, or broken in the same way; and of one good picture.
    rows += [Row(f"/missing/{n}", "a text of many", "/c", None) for n in range(6)]
    rows += [Row(f"/broken/{n}", "a text of many", "/c", b"broken in the same way") for n in range(5)]
    rows += [Row("/p/5", "a text of many", "/c", pictures[5])]
    # Eleven spellings of one missing picture are one.
    rows += [Row(f"/missing#{n}", "a text of one", "/c", None) for n in range(11)]
    return rows


def write_folder(folder, rows, options, host="http://127.0.0.1:9"):
    """The folder that img2dataset would write, pictures apart: it resizes with OpenCV, this with Pillow."""
    folder.mkdir(parents=True)
    for number, start in enumerate(range(0, len(rows), _SHARD_ROWS)):
        of_shard = rows[start : start + _SHARD_ROWS]
        samples = [_sample(row, f"{number:05d}{index:02d}", host, options) for index, row in enumerate(of_shard)]
        # rows come in the order in which downloads end
        samples = [*samples[1::2], *samples[0::2]]
        name = f"{number:05d}"
        if options.output_format != "dummy":
            _write_table(folder / f"{name}.parquet", samples, options)
        if options.output_format == "webdataset":
            _write_tar(folder / f"{name}.tar", samples, options)
        elif options.output_format == "files":
            (folder / name).mkdir()
            for member, data in _members(samples, options):
                (folder / name / member).write_bytes(data)
        elif options.output_format == "tfrecord":
            (folder / f"{name}.tfrecord").write_bytes(b"records")
        counts = {key: sum(meta["status"] == status for meta, _ in samples) for status, key in _STATUSES.items()}
        (folder / f"{name}_stats.json").write_text(json.dumps({"count": len(samples), **counts}, indent=4))
    return folder


def _sample(row, key, host, options):
    meta = {"page": row.page, "caption": row.caption, "url": host + row.path, "key": key}
    meta |= dict.fromkeys(("status", "error_message", "width", "height", "original_width", "original_height", "exif"))
    if options.compute_hash is not None:
        meta[options.compute_hash] = None
    if row.body is None:
        return meta | {"status": "failed_to_download", "error_message": "HTTP Error 404: Not Found"}, None
    try:
        data, size, original = _resized(row.body, options)
    except (UnidentifiedImageError, OSError):
        return meta | {"status": "failed_to_resize", "error_message": "Image decoding error"}, None
    meta |= {"status": "success", "exif": "{}", "width": size[0], "height": size[1]}
    meta |= {"original_width": original[0], "original_height": original[1]}
    if options.compute_hash is not None:
        meta[options.compute_hash] = hashlib.new(options.compute_hash, row.body).hexdigest()
    return meta, data


def _resized(body, options):
    """The bytes to store, their size and that before."""
    if options.disable_all_reencoding:
        return body, (None, None), (None, None)
    image = Image.open(io.BytesIO(body)).convert("RGB")
    original = image.size
    if options.resize_mode != "no":
        longest = max if options.resize_mode == "border" else min
        scale = options.image_size / longest(original)
        image = image.resize((max(1, round(original[0] * scale)), max(1, round(original[1] * scale))))
    if options.resize_mode == "border":
        square = Image.new("RGB", (options.image_size, options.image_size), "white")
        square.paste(image, ((square.width - image.width) // 2, (square.height - image.height) // 2))
        image = square
    buffer = io.BytesIO()
    image.save(buffer, {"jpg": "JPEG", "png": "PNG", "webp": "WEBP"}[options.encode_format], quality=95)
    return buffer.getvalue(), image.size, original


def _write_table(path, samples, options):
    numbers = ("width", "height", "original_width", "original_height")
    schema = pa.schema([(name, pa.int32() if name in numbers else pa.string()) for name in samples[0][0]])
    rows = [meta for meta, _ in samples]
    if options.output_format == "parquet":
        schema = schema.append(pa.field(options.encode_format, pa.binary()))
        rows = [meta | {options.encode_format: data} for meta, data in samples]
    with pq.ParquetWriter(path, schema) as writer:
        for start in range(0, len(rows), _BUFFER_ROWS):
            writer.write_table(pa.Table.from_pylist(rows[start : start + _BUFFER_ROWS], schema))


def _members(samples, options):
    for meta, data in samples:
        if data is not None:
            yield f"{meta['key']}.{options.encode_format}", data
            yield f"{meta['key']}.json", json.dumps(meta, indent=4).encode()
            yield f"{meta['key']}.txt", meta["caption"].encode()


def _write_tar(path, samples, options):
    with tarfile.open(path, "w") as tar:
        for name, data in _members(samples, options):
            member = tarfile.TarInfo(name)
            member.size, member.mode, member.mtime = len(data), 0o444, 1_700_000_000.25  # type: ignore[assignment]
            member.uname = member.gname = "bigdata"
            tar.addfile(member, io.BytesIO(data))


def run_img2dataset(python, folder, rows, options, host):
    """Img2dataset itself, in the environment of this interpreter, on a server that answers the rows."""
    table = folder.with_suffix(".parquet")
    urls, captions, pages = [host + row.path for row in rows], [row.caption for row in rows], [row.page for row in rows]
    pq.write_table(pa.table({"url": urls, "caption": captions, "page": pages}), table)
    given = {
        **{name: getattr(options, name) for name in Options.__dataclass_fields__},
        "url_list": table, "input_format": "parquet", "url_col": "url", "caption_col": "caption",
        "output_folder": folder, "save_additional_columns": '["page"]', "number_sample_per_shard": _SHARD_ROWS,
        "processes_count": 1, "thread_count": 4, "timeout": 10, "retries": 0, "enable_wandb": False,
    }  # fmt: skip
    if options.encode_format == "png":
        given["encode_quality"] = 6
    command = [str(python.parent / "img2dataset"), *(f"--{name}={value}" for name, value in given.items())]
    quiet = {"NO_ALBUMENTATIONS_UPDATE": "1", "PYTHONPATH": ""}
    done = subprocess.run(command, env=os.environ | quiet, capture_output=True, text=True, check=False, timeout=280)
    assert done.returncode == 0, (done.stdout + done.stderr)[-2000:]
    return folder
