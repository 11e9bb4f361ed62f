import io
import json
import shutil
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from align.config.infrastructure import EngineConfig
from align.errors import DataError, FormatError
from align.formats.image_index import ImageIndex
from align.formats.indexed_images import PairAddress
from align.search import index
from align.search.addresses import with_addresses
from align.search.embed_shards import thumbnail
from align.search.index import read_rules
from align.search.surely import Asked, promised
from align.services.vector_index import VectorIndex
from tests.support import colour_index
from tests.support.colour_index import PAGE, RULES, write_raw, write_report
from tests.support.colours import ColourEncoder, square
from tests.support.params import load_params

QUERIES = {
    "schema_version": 1,
    "queries": [
        {"query": "something blue", "expected": ["blue"]},
        {"query": "a red thing", "expected": ["crimson", "red"]},
        {"query": "a green thing", "expected": ["emerald"]},  # found, but no text says emerald
    ],
    "composed": [{"image_text": "yellow square", "minus": "yellow", "expected": ["red", "green"]}],
}


def build(root, queries=QUERIES, *, exact_below=100):
    path = root / "queries.json"
    root.mkdir(parents=True, exist_ok=True)
    if queries:
        path.write_text(json.dumps(queries))
    return colour_index.build(root, queries=str(path) if queries else None, exact_below=exact_below, thumbnail_px=32)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A folder with an index and its reports, which no test changes, and what the build returned."""
    root = tmp_path_factory.mktemp("index") / "built"
    return root, build(root)


def bytes_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.usefixtures("any_blocks")
def test_every_image_of_every_split_is_found_with_its_texts_and_bytes(tmp_path):
    report = build(tmp_path, queries=None)
    assert report.metrics == {"index/num_images": 12}
    found = ImageIndex.load(tmp_path / "index", VectorIndex.load)
    assert [item.split for item in found.items].count("test") == 4
    for item in found.items:
        vector = ColourEncoder().embed_images([item.image(tmp_path / "shards" / item.shard)])[0]
        assert found.vector(item.key) == pytest.approx(vector)
        assert found.search(vector, 1)[0].score == pytest.approx(1.0, abs=1e-5)
        assert found.addresses(item.key) == (PairAddress(PAGE, f"https://example.com/{item.key}.jpg"),) * 2
    assert found.header.rules == RULES
    hits = found.search(ColourEncoder().embed_texts(["blue"])[0], 3)
    assert all("a blue square" in hit.item.texts for hit in hits)


def test_thumbnails_need_no_shards_and_are_no_larger_than_the_picture(tmp_path, built):
    shutil.copytree(built[0] / "index", tmp_path / "index")
    found = ImageIndex.load(tmp_path / "index", VectorIndex.load)
    for item in found.items:
        with Image.open(io.BytesIO(found.thumbnail(item.key))) as picture:
            assert (picture.format, picture.size) == ("JPEG", (32, 32))
        vector = ColourEncoder().embed_images([found.thumbnail(item.key)])[0]
        assert found.search(vector, 1)[0].score == pytest.approx(1.0, abs=1e-3)
    assert thumbnail(square("red"), 160) == thumbnail(square("red"), 48)  # it has 48 px
    assert thumbnail(square("red"), 0) == b""


def test_an_approximate_index_reports_as_an_exact_one(tmp_path, built):
    root, exact = built
    approximate = build(tmp_path, exact_below=1)
    assert (tmp_path / "index/vectors.npy").exists() and not (root / "index/vectors.npy").exists()
    assert exact.metrics == approximate.metrics


def test_labelled_queries_are_judged_by_the_texts_of_what_they_find(built):
    report = built[1]
    assert [outcome["right"] for outcome in report.queries] == [True, True, False]
    assert report.metrics["index/queries/num_right_in_top_5"] == 2
    assert report.metrics["index/queries/num_asked"] == 3
    # Three of twelve are blue, three red, none emerald: twice 1 - C(9, 5) / C(12, 5).
    assert report.metrics["index/queries/num_right_in_top_5/chance"] == pytest.approx(2 * (1 - 126 / 792), abs=1e-3)
    (composed,) = report.composed
    assert composed["image_key"] == "000000009"
    # Eleven others, two of them yellow, ten shown: minus yellow the yellow ones are the farthest, and one is left out.
    assert (composed["share_before"], composed["share_after"]) == (0.2, 0.1)
    assert report.metrics["index/minus/share_ratio"] == 0.5
    assert (composed["expected_before"], composed["expected_after"]) == (0.6, 0.6)


def test_an_index_with_texts_enough_promises_and_reports_how_well_it_holds(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    asked = Asked(np.arange(200), rng.random(200), np.zeros(200), rng.random(200) < 0.5)
    monkeypatch.setattr(index, "ask_held_out", lambda *_: asked)
    report = build(tmp_path)
    promise = ImageIndex.load(tmp_path / "index", VectorIndex.load).header.promise
    assert promise == promised(asked)
    assert 0.2 < report.metrics["index/surely/0.75/loss"] < 0.3
    assert [query["surely"] for query in report.queries] == [[0.75, 0.9]] * 3  # all have a score of nearly 1
    assert report.metrics["index/queries/num_sure/0.9"] == 3
    assert report.metrics["index/queries/num_sure_and_wrong/0.9"] == 1
    assert (tmp_path / "reports/index/surely.png").exists()
    assert "How sure the first picture is" in (tmp_path / "reports/index/report.html").read_text()


def test_the_same_bytes_again(tmp_path, built):
    build(tmp_path)
    for folder in ("index", "reports/index"):
        assert bytes_of(tmp_path / folder) == bytes_of(built[0] / folder)
    assert bytes_of(tmp_path / "reports/index").keys() == {
        ".align.json",
        "report.json",
        "metrics.json",
        "report.html",
        "queries.png",
    }


def test_a_query_about_an_image_that_is_not_indexed_is_counted_and_not_asked(tmp_path):
    pink = {"image_text": "pink", "minus": "pink", "expected": ["pink"]}
    report = build(tmp_path, QUERIES | {"composed": [*QUERIES["composed"], pink]})
    assert report.composed[1] == {"image_text": "pink", "image_key": None, "minus": "pink"}
    assert report.metrics["index/minus/num_asked"] == report.metrics["index/minus/num_without_image"] == 1
    assert report.metrics["index/minus/share_ratio"] == 0.5


def test_data_that_is_missing_is_said_before_anything_is_embedded(tmp_path, monkeypatch):
    def embed(*_):
        pytest.fail("embedded in spite of it")

    monkeypatch.setattr(ColourEncoder, "embed_images", embed)
    data = colour_index.write_data(tmp_path, tmp_path / "reports")

    def build_again():
        monkeypatch.setattr(colour_index, "write_data", lambda *_: data)
        colour_index.build(tmp_path)

    shutil.rmtree(data.raw)
    with pytest.raises(DataError, match="run `align ingest`"):
        build_again()
    shutil.rmtree(data.filter_report)
    with pytest.raises(DataError, match="run `align filter` first"):
        build_again()
    assert not (tmp_path / "index").exists()


def test_a_killed_run_embeds_no_tar_twice_and_leaves_the_old_index(tmp_path, built):
    class Stops(ColourEncoder):
        left = 0

        def embed_images(self, images):
            self.left -= 1
            if self.left < 0:
                raise KeyboardInterrupt
            return super().embed_images(images)

    shutil.copytree(built[0], tmp_path / "other")
    other = bytes_of(tmp_path / "other/index")
    queries, encoder = str(tmp_path / "other/queries.json"), Stops()
    encoder.left = 1
    again = partial(colour_index.build, tmp_path / "other", queries=queries, model_digest="new", thumbnail_px=32)
    with pytest.raises(KeyboardInterrupt):
        again(encoder=encoder)
    assert bytes_of(tmp_path / "other/index") == other
    made = [path.name for path in (tmp_path / "other/.index.part/.embedded").iterdir()]
    assert made == ["train-00000"]
    encoder.left = len(list((tmp_path / "other/shards").rglob("*.tar"))) - 1
    again(encoder=encoder)
    new = bytes_of(tmp_path / "other/index")
    assert {name for name in new if new[name] != other[name]} == {"index.json"}


def row(key, **values):
    return {"key": key, "url": f"https://a.example/{key}.jpg", "caption": key, "sha256": f"id-{key}",
            "page_url": f"https://a.example/{key}"} | values  # fmt: skip


def found(raw, *images):
    """The addresses of images, each given by the keys of its pairs."""
    tables = [pa.table({"keys": [list(keys)], "image_id": [f"id-{keys[0]}"]}) for keys in images]
    whole = list(with_addresses(raw, lambda: iter(tables), raw / "scratch", load_params().section(EngineConfig)))
    assert not (raw / "scratch").exists() and [table.select([0, 1]) for table in whole] == tables
    return [
        pair for table in whole for row in table.to_pylist() for pair in zip(row["page_urls"], row["urls"], strict=True)
    ]


def test_they_follow_the_order_of_the_pairs_over_all_tables(tmp_path):
    write_raw(tmp_path, [row("a"), row("b"), row("dropped", sha256=None, status="failed_to_download")], "00000")
    write_raw(tmp_path, [], "00001")
    write_raw(
        tmp_path, [row("f", page_url=None), row("g", url="HTTP://b.example/d.png"), row("h", sha256="id-g")], "00002"
    )
    write_raw(tmp_path, [row("x"), row("z")], "00003")
    assert found(tmp_path, "gh", "a", "z", "f") == [
        ("https://a.example/g", "HTTP://b.example/d.png"), ("https://a.example/h", "https://a.example/h.jpg"),
        ("https://a.example/a", "https://a.example/a.jpg"),
        ("https://a.example/z", "https://a.example/z.jpg"), ("", "https://a.example/f.jpg"),
    ]  # fmt: skip
    with pytest.raises(DataError, match="has not 2 of the 4 pairs of the shards, such as y:"):
        found(tmp_path, "z", "y", "a", "e")


@pytest.mark.parametrize(
    "url",
    ["/home/somebody/photographs/1.jpg", "file:///etc/passwd", "javascript:alert(1)", "data:image/png;sha256=0", ""],
)
def test_only_a_web_address_of_a_picture_counts(tmp_path, url):
    write_raw(tmp_path, [row("a", url=url, page_url="javascript:alert(1)")])
    assert found(tmp_path, "a") == [("javascript:alert(1)", "")]  # shown as text: what the source says of its page


def test_another_version_of_the_data_is_refused(tmp_path):
    write_raw(
        tmp_path, [row("a"), row("b", sha256="id-of another picture"), row("c", sha256=None, status="failed_to_resize")]
    )
    for key in ("b", "c", "d"):
        with pytest.raises(DataError, match=f"has not 1 of the 2 pairs of the shards, such as {key}: .*dvc repro"):
            found(tmp_path, "a", key)


def test_a_table_of_img2dataset_knows_no_pictures_and_perhaps_no_pages(tmp_path):
    """Its sha256 is of other bytes; the tar beside it is empty, so nothing reads it."""
    table = {"url": ["https://a.example/1"], "caption": ["x"], "key": ["000000000"], "status": ["success"],
             "sha256": ["0" * 64]}  # fmt: skip
    pq.write_table(pa.table(table), tmp_path / "00000.parquet")
    (tmp_path / "00000.tar").write_bytes(b"")
    assert found(tmp_path, ["000000000"]) == [("", "https://a.example/1")]
    pq.write_table(pa.table({name: values * 2 for name, values in table.items()}), tmp_path / "00000.parquet")
    with pytest.raises(DataError, match="has 1 keys of the pairs twice"):
        found(tmp_path, ["000000000"])


def test_no_tables_damaged_ones_and_no_report(tmp_path):
    with pytest.raises(DataError, match="run `align ingest`"):
        found(tmp_path, "a")
    write_raw(tmp_path, [row("a")])
    (tmp_path / "00000.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match=r"00000.parquet: not a readable parquet file"):
        found(tmp_path, "a")
    with pytest.raises(DataError, match="run `align filter` first"):
        read_rules(tmp_path)
    assert read_rules(write_report(tmp_path / "filter")) == RULES
    for text in (b"", b"{", b"[]", b'{"funnel": 1}', b'{"funnel": [{"reason": "a"}]}', b"\xff"):
        (tmp_path / "filter/report.json").write_bytes(text)
        with pytest.raises(FormatError, match="names no rules; run `align filter` again"):
            read_rules(tmp_path / "filter")
