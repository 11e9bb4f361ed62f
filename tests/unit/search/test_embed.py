import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from align.errors import ConfigError, DataError
from align.model.embedder import Embedder
from align.search.embed import embed
from align.search.inputs import open_source
from tests.support import bombs, tiny_model
from tests.support.colours import square


@pytest.fixture(scope="module")
def embedder(tmp_path_factory):
    return Embedder.load(tiny_model.write(tmp_path_factory.mktemp("tiny")))


def run(embedder, location, out, column=None):
    source = open_source(location, column)
    num_rows, num_failed = embed(source, embedder=embedder, out=out)
    rows = pq.read_table(out).to_pylist()
    assert num_rows == len(rows)
    assert num_failed == sum(row["error"] is not None for row in rows)
    return rows


def test_a_folder_of_images_in_any_format(embedder, tmp_path):
    folder = tmp_path / "pictures"
    (folder / "deep").mkdir(parents=True)
    (folder / "a.jpg").write_bytes(square("red"))
    (folder / "b.png").write_bytes(square("blue", format="PNG"))
    (folder / "deep" / "c.WEBP").write_bytes(square("green", format="WEBP"))
    (folder / "d.gif").write_bytes(b"GIF89a and then nothing")
    (folder / "e.jpg").write_bytes(b"")
    (folder / "notes.txt").write_text("no image")
    rows = run(embedder, folder, tmp_path / "out.parquet")
    assert [row["path"] for row in rows] == ["a.jpg", "b.png", "d.gif", "deep/c.WEBP", "e.jpg"]
    assert [row["error"] is None for row in rows] == [True, True, False, True, False]
    assert [row["embedding"] is None for row in rows] == [False, False, True, False, True]
    assert rows[0]["embedding"] == pytest.approx(embedder.embed_images([square("red")])[0].tolist(), abs=1e-6)
    assert np.linalg.norm(rows[3]["embedding"]) == pytest.approx(1, abs=1e-5)
    assert "text" not in rows[0]


def test_names_and_texts_that_are_no_utf_8(embedder, tmp_path):
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures/\udcff.jpg").write_bytes(square("red"))
    assert [row["path"] for row in run(embedder, tmp_path / "pictures", tmp_path / "out.parquet")] == ["\ufffd.jpg"]
    raw = pa.array([b"a \xff", b"fox"])
    pq.write_table(pa.table({"text": pa.Array.from_buffers(pa.string(), 2, raw.buffers())}), tmp_path / "in.parquet")
    rows = run(embedder, tmp_path / "in.parquet", tmp_path / "out.parquet", "text")
    assert [row["text"] for row in rows] == ["a \ufffd", "fox"]


def test_a_damaged_picture_is_a_row_and_starts_no_program(embedder, tmp_path, monkeypatch):
    bin_folder, folder, ran = tmp_path / "bin", tmp_path / "pictures", tmp_path / "ghostscript-ran"
    bin_folder.mkdir()
    folder.mkdir()
    for name in ("gs", "gswin32c", "gswin64c"):
        (bin_folder / name).write_text(f"#!/bin/sh\ntouch {ran}\n")
        (bin_folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{bin_folder}:{os.environ['PATH']}")
    monkeypatch.setattr("PIL.EpsImagePlugin.gs_binary", None)  # asked again
    avif = square("green", format="AVIF")
    pixels = avif.index(b"mdat") + 4
    (folder / "a.avif").write_bytes(avif[:pixels] + bytes(len(avif) - pixels))  # decoders raise a RuntimeError
    (folder / "b.avif").write_bytes(avif.replace(b"av1C", b"none"))
    (folder / "c.jpg").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 72 72\n%%EndComments\nshowpage\n")
    (folder / "d.jpg").write_bytes(square("red"))
    rows = run(embedder, folder, tmp_path / "out.parquet")
    assert [row["error"] is None for row in rows] == [False, False, False, True]
    assert rows[2]["error"] == "not an image that can be decoded: not a picture that we decode"
    assert not ran.exists()


def test_a_text_file_keeps_its_line_numbers(embedder, tmp_path):
    path = tmp_path / "texts.txt"
    path.write_bytes("\ufeffa red heart\r\n\n  \nthe yellow sun".encode() + b"\n\xff\xfe\n")
    rows = run(embedder, path, tmp_path / "out.parquet")
    assert [row["row"] for row in rows] == [0, 1, 2, 3, 4]
    assert [row["text"] for row in rows] == ["a red heart", None, None, "the yellow sun", None]
    assert [row["error"] for row in rows] == [None, "empty text", "empty text", None, "not UTF-8"]
    assert rows[3]["embedding"] == pytest.approx(embedder.embed_texts(["the yellow sun"])[0].tolist(), abs=1e-6)


def test_columns_of_texts_bytes_and_image_structs(embedder, tmp_path):
    path = tmp_path / "table.parquet"
    images = [square("red"), None, square("blue"), b"broken"]
    pq.write_table(
        pa.table(
            {
                "caption": ["a red heart", "the yellow sun", None, ""], "image": images,
                "nested": [{"bytes": data, "path": "x"} for data in images], "number": [1, 2, 3, 4],
            }
        ),
        path,
        row_group_size=2,
    )  # fmt: skip
    texts = run(embedder, path, tmp_path / "texts.parquet", "caption")
    assert [row["error"] for row in texts] == [None, None, "null", "empty text"]
    plain = run(embedder, path, tmp_path / "image.parquet", "image")
    assert [row["error"] is None for row in plain] == [True, False, True, False]
    assert plain == run(embedder, path, tmp_path / "nested.parquet", "nested")
    assert plain[2]["embedding"] == pytest.approx(embedder.embed_images([square("blue")])[0].tolist(), abs=1e-6)
    with pytest.raises(ConfigError, match="int64"):
        open_source(path, "number")


def test_pictures_of_a_small_table_that_need_much_memory_are_refused(tmp_path, monkeypatch):
    path = bombs.repeated_value(tmp_path / "table.parquet", "image", bytes(8 << 20))
    monkeypatch.setattr("align.formats.parquet._BATCH_BYTES", 64 << 20)
    with pytest.raises(DataError, match=r"table\.parquet: 64 row\(s\) of row group 0 need more than 64 MiB"):
        list(open_source(path, "image").rows())


def test_many_inputs_are_embedded_some_at_a_time_and_a_killed_run_leaves_nothing(
    embedder, tmp_path, monkeypatch, with_small_blocks
):
    path, out = tmp_path / "texts.txt", tmp_path / "small.parquet"
    path.write_text("".join(f"a red heart {number}\n" for number in range(10)))
    whole, small = with_small_blocks(lambda name: run(embedder, path, tmp_path / f"{name}.parquet"))
    assert [row | {"embedding": None} for row in small] == [row | {"embedding": None} for row in whole]
    assert pq.read_metadata(out).num_row_groups == 4
    np.testing.assert_allclose(
        pq.read_table(out)["embedding"].to_pylist(), [row["embedding"] for row in whole], atol=1e-6
    )
    out.unlink()

    def killed(rows, embedder, first):
        raise KeyboardInterrupt

    monkeypatch.setattr("align.search.embed.embed_rows", killed)
    with pytest.raises(KeyboardInterrupt):
        run(embedder, path, out)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["texts.txt", "usual.parquet"]


def test_an_input_that_cannot_be_used_is_explained(embedder, tmp_path):
    (tmp_path / "empty.txt").write_text("")
    with pytest.raises(DataError, match="nothing in it"):
        run(embedder, tmp_path / "empty.txt", tmp_path / "out.parquet")
    (tmp_path / "bad.parquet").write_bytes(b"not parquet")
    with pytest.raises(DataError, match="not a parquet file"):
        open_source(tmp_path / "bad.parquet", "text")
