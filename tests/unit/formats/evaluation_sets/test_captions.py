"""Files of captions: COCO, Karpathy's splits, lines of text, and captions in tars and parquet."""

import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset

from align.errors import DataError
from tests.support import bombs
from tests.support.caption_sets import CAPTIONS, PICTURES, karpathy, pictures
from tests.support.suites import read


def coco(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    images = [{"id": number, "file_name": name} for number, name in enumerate(CAPTIONS)]
    annotations = [{"image_id": n, "caption": text} for n, of in enumerate(CAPTIONS.values()) for text in of]
    annotations += [{"image_id": 9, "caption": "of nothing"}, {"image_id": 1, "caption": 7}]
    path.write_text(json.dumps({"images": images, "annotations": annotations}))
    return path


def lines(path):
    rows = [f"{name},{text}" for name, of in CAPTIONS.items() for text in of]
    path.write_text("\n".join(["image,caption", *rows, "nothing here", "3.jpg, "]) + "\n")
    return path


def multi30k(root):
    """Two captions a picture; the second file is packed. A caption has a break that is no end of a line."""
    (root / "test_2016.txt").write_text("".join(f"{name}\n" for name in PICTURES))
    (root / "test_2016.1.de").write_text("eine Katze\neine\u2028Katze, die schläft\neine Eule\n", "utf-8")
    (root / "test_2016.2.de.gz").write_bytes(gzip.compress(b"Katze\n\nEule\n"))
    captions = [str(root / name) for name in ("test_2016.1.de", "test_2016.2.de.gz")]
    return {"captions": captions, "images": str(root / "images")}


def test_multi30k_as_published(tmp_path):
    pictures(tmp_path / "images")
    more = multi30k(tmp_path)
    one = read(tmp_path, tmp_path / "test_2016.txt", "multi30k", "retrieval", "multi30k", **more)
    assert [(image.key, list(image.texts)) for image in one.images] == [
        ("0.jpg", ["eine Katze", "Katze"]),
        ("1.jpg", ["eine\u2028Katze, die schläft"]),
        ("2.jpg", ["eine Eule", "Eule"]),
    ]
    assert one.unusable == {"line 2 of test_2016.2.de.gz": "an empty caption"}
    assert [data for _, data in one.read()] == list(PICTURES.values())
    without = {"captions": more["captions"]}  # `images` is a usual folder beside the list
    assert len(read(tmp_path, tmp_path / "test_2016.txt", "multi30k", "retrieval", **without).images) == 3


@pytest.mark.parametrize(("name", "data", "message"), [
    ("test_2016.1.de", b"eine Katze\n", r"1\.de: 1 captions, but .*test_2016\.txt lists 3 pictures"),
    ("test_2016.1.de", b"\xff\n\n\n", r"1\.de: the captions: not readable as text"),
    ("test_2016.2.de.gz", b"no gzip", r"2\.de\.gz: the captions: not readable as text"),
    ("test_2016.2.de.gz", gzip.compress(b"a\nb\nc\n")[:-9], r"2\.de\.gz: the captions: not readable as text"),
    ("test_2016.2.de.gz", gzip.compress(bytes(65 << 20), 9), r"2\.de\.gz: the captions: more than 64 MiB"),
    ("test_2016.2.de.gz", None, r"2\.de\.gz: the captions cannot be read"),
    ("test_2016.txt", b"", r"test_2016\.txt: the list of pictures: an empty file"),
])  # fmt: skip
def test_damaged_files_of_multi30k(tmp_path, name, data, message):
    pictures(tmp_path / "images")
    more = multi30k(tmp_path)
    (tmp_path / name).unlink()
    if data is not None:
        (tmp_path / name).write_bytes(data)
    with pytest.raises(DataError, match=message):
        read(tmp_path, tmp_path / "test_2016.txt", "multi30k", "retrieval", **more)


def test_karpathys_test_split_is_read_in_place(tmp_path):
    pictures(tmp_path / "flickr30k-images")
    one = read(tmp_path, karpathy(tmp_path / "dataset_flickr30k.json"), "karpathy", "retrieval")
    assert [(image.key, image.concept, list(image.texts)) for image in one.images] == [
        (name, name, CAPTIONS[name]) for name in ("0.jpg", "1.jpg")
    ]
    assert [item.text for item in one.texts] == ["a cat", "A cat", "a cat", "a cat, asleep"]  # repeats stay items
    assert [data for _, data in one.read()] == [PICTURES["0.jpg"], PICTURES["1.jpg"]]
    train = read(tmp_path, tmp_path / "dataset_flickr30k.json", "karpathy", "retrieval", split="train")
    assert [image.key for image in train.images] == ["2.jpg"]
    with pytest.raises(DataError, match=r"no picture of val; it has test, train: correct `split` of the set one"):
        read(tmp_path, tmp_path / "dataset_flickr30k.json", "karpathy", "retrieval", split="val")


def test_ids_of_pictures_and_captions_stay_with_them(tmp_path):
    pictures(tmp_path / "images")
    path = karpathy(tmp_path / "dataset.json")
    data = json.loads(path.read_text())
    number = iter(range(100, 200))
    for image in data["images"]:
        image |= {"cocoid": next(number), "sentences": [one | {"sentid": next(number)} for one in image["sentences"]]}
    data["images"][0]["sentences"].insert(1, {"raw": " ", "sentid": 7})
    path.write_text(json.dumps(data))
    one = read(tmp_path, path, "karpathy", "retrieval", texts_per_image=2)
    assert [(image.number, image.text_numbers) for image in one.images] == [(100, (101, 102)), (104, (105,))]
    assert [list(image.texts) for image in one.images] == [["a cat", "A cat"], ["a cat, asleep"]]
    del data["images"][0]["sentences"][3]["sentid"]
    path.write_text(json.dumps(data))
    assert read(tmp_path, path, "karpathy", "retrieval").images[0].text_numbers == ()


def test_coco_and_lines_of_text(tmp_path):
    pictures(tmp_path / "coco/val2017")
    one = read(tmp_path, coco(tmp_path / "coco/annotations/captions_val2017.json"), "coco", "retrieval")
    assert [image.key for image in one.images] == ["val2017/0.jpg", "val2017/1.jpg", "val2017/2.jpg"]
    assert one.unusable == {"caption 'of nothing'": "of no picture in the list", "a caption of 1.jpg": "no text"}
    path = lines(tmp_path / "flickr30k_test_karpathy.txt")
    other = read(tmp_path, path, "retrieval_txt", "retrieval", images=str(tmp_path / "coco/val2017"))
    for found in (one, other):
        assert [list(image.texts) for image in found.images] == list(CAPTIONS.values())
        assert [data for _, data in found.read()] == list(PICTURES.values())
    assert list(other.unusable.values()) == ["no NAME.jpg,CAPTION", "an empty caption"]


def test_captions_in_tars_and_in_parquet(tmp_path):
    (tmp_path / "tars/test").mkdir(parents=True)
    with webdataset.TarWriter(str(tmp_path / "tars/test/0.tar")) as writer:
        for number, (name, of) in enumerate(CAPTIONS.items()):
            writer.write({"__key__": f"s{number}", "jpg": PICTURES[name], "txt": "\n".join(of)})
    (tmp_path / "tars/test/nshards.txt").write_text("1")
    (tmp_path / "tars/dataset_type.txt").write_text("retrieval")
    images = [{"bytes": data, "path": name} for name, data in PICTURES.items()]
    pq.write_table(pa.table({"image": images, "caption": list(CAPTIONS.values())}), tmp_path / "one.parquet")
    for path, kind in ((tmp_path / "tars", "webdataset"), (tmp_path / "one.parquet", "parquet")):
        one = read(tmp_path, path, kind, "retrieval")
        assert one.kind == "retrieval" and [list(image.texts) for image in one.images] == list(CAPTIONS.values())
        assert [data for _, data in one.read()] == list(PICTURES.values())


def test_captions_of_a_small_table_that_need_much_memory_are_refused(tmp_path, monkeypatch):
    picture = {"bytes": PICTURES["0.jpg"], "path": "0.jpg"}
    path = bombs.repeated_value(tmp_path / "one.parquet", "caption", "a " * (4 << 20), image=picture)
    monkeypatch.setattr("align.formats.parquet._BATCH_BYTES", 64 << 20)
    with pytest.raises(DataError, match=r"one\.parquet: 64 row\(s\) of row group 0 need more than 64 MiB"):
        read(tmp_path, path, "parquet", "retrieval")


def test_a_file_for_other_images_and_a_picture_that_is_gone(tmp_path):
    path = karpathy(tmp_path / "dataset.json")
    with pytest.raises(DataError, match=r"none of the first pictures .*0\.jpg.* is it a file for other images\?"):
        read(tmp_path, path, "karpathy", "retrieval")
    pictures(tmp_path / "images")
    (tmp_path / "images/1.jpg").unlink()
    one = read(tmp_path, path, "karpathy", "retrieval")
    told = {}
    assert len(list(one.read(fault=told.__setitem__))) == 1
    assert "1.jpg: cannot be read (No such file" in told[1]


@pytest.mark.parametrize("name", ["../secret.jpg", "/etc/passwd", "a/../../x.jpg"])
def test_a_name_that_leads_out_is_no_picture(tmp_path, name):
    pictures(tmp_path / "images")
    one = read(tmp_path, karpathy(tmp_path / "dataset.json", filename=name), "karpathy", "retrieval")
    assert one.unusable == {name: "its name leads out of the folder of pictures"} and len(one.images) == 1


def test_no_captions_at_all(tmp_path):
    (tmp_path / "x.txt").write_text("nothing\nof use\n")
    with pytest.raises(DataError, match="none of the first pictures"):
        read(tmp_path, tmp_path / "x.txt", "retrieval_txt", "retrieval")
    with pytest.raises(DataError, match=r"gone\.json"):
        read(tmp_path, tmp_path / "gone.json", "karpathy", "retrieval")
    (tmp_path / "bad.json").write_bytes(b"[" * 10_000)
    with pytest.raises(DataError, match="neither COCO's captions nor Karpathy's"):
        read(tmp_path, tmp_path / "bad.json", "coco", "retrieval")
