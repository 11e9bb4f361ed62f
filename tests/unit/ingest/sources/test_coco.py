"""COCO's captions and Karpathy's splits."""

import json
from collections import Counter

import pytest

from align.errors import DataError
from tests.support.reading import read_all, rows_of, short, source_at
from tests.support.warc_records import picture

RED, BLUE = picture(3, 2), picture(4, 2, "blue", "JPEG")


def coco(path, **more):
    path.parent.mkdir(parents=True, exist_ok=True)
    images = [
        {"id": 7, "file_name": "7.jpg", "coco_url": "http://images.example/train2014/7.jpg"},
        {"id": 8, "file_name": "8.jpg"},
        {"id": 9, "file_name": "../../../secret.png"},
        {"id": 10, "file_name": "half \ud800.png", "coco_url": 7},
    ]
    captions = [(8, "acht"), (7, "seven"), (7, "sieben"), (9, "escape"), (99, "of nothing"), (10, "half")]
    annotations = [{"id": at, "image_id": image, "caption": text} for at, (image, text) in enumerate(captions)]
    path.write_text(json.dumps({"info": {}, "images": images, "annotations": annotations, **more}))


@pytest.mark.parametrize("folder", ["train2014", "images/train2014", "images", "annotations/images", "."])
def test_coco_in_each_usual_folder(tmp_path, folder):
    (tmp_path / "secret.png").write_bytes(RED)
    root = tmp_path / "coco"
    coco(root / "annotations/captions_train2014.json")
    (root / "annotations/instances_val2014.json").write_text("{}")
    (root / folder).mkdir(parents=True, exist_ok=True)
    (root / folder / "7.jpg").write_bytes(RED)
    (root / folder / "8.jpg").write_bytes(BLUE)
    counts = Counter()
    assert short(read_all(root, "coco", counts), "url", "text", "problem", "bytes") == [
        ("http://images.example/train2014/7.jpg", "seven", None, RED),
        ("http://images.example/train2014/7.jpg", "sieben", None, RED),
        ("train2014/8.jpg", "acht", None, BLUE),
        ("train2014/../../../secret.png", "escape", "no such file", None),
        ("train2014/half ?.png", "half", "no such file", None),
        ("train2014", "of nothing", "a caption of no picture in the list", None),
    ]
    assert counts == {"rows": 6, "rows_unreadable": 1}


def test_captions_of_coco_that_are_lists_or_no_texts(tmp_path):
    images = [{"id": 1, "file_name": "1.jpg", "coco_url": "http://images.example/1.jpg"}]
    captions = [["one", None, "two"], None, {"raw": "three"}, "four"]
    annotations = [{"image_id": 1, "caption": caption} for caption in captions]
    (tmp_path / "captions_x.json").write_text(json.dumps({"images": images, "annotations": annotations}))
    counts = Counter()
    nested = "an object or a list where a text is expected"
    assert short(read_all(tmp_path, "coco", counts), "text", "problem") == [
        ("one", None), ("two", None), ("", None), ("", nested), ("four", None),
    ]  # fmt: skip
    assert (counts["rows"], counts["rows_unreadable"]) == (5, 1)


def test_coco_without_pictures_and_what_is_no_coco(tmp_path):
    coco(tmp_path / "captions_train2014.json")
    assert short(read_all(tmp_path, "coco"), "url", "file", "problem")[1:3] == [
        ("http://images.example/train2014/7.jpg", None, None),
        ("train2014/8.jpg", None, "no such file"),
    ]
    for text in ("{", "[" * 100_000, "[]", '{"images": [{}]}', '{"annotations": [{"image_id": 1}], "images": []}'):
        (tmp_path / "captions_train2014.json").write_text(text)
        with pytest.raises(DataError, match="neither COCO's captions nor Karpathy's"):
            read_all(tmp_path, "coco")
    (tmp_path / "captions_train2014.json").rename(tmp_path / "a.json")
    (tmp_path / "b.json").write_text("{}")
    with pytest.raises(DataError, match="captions_"):
        source_at(tmp_path, "source=coco")


def test_karpathy_splits(tmp_path):
    def image(name, path, *texts):
        sentences = [{"raw": text, "tokens": text.split(), "sentid": 0} for text in texts]
        return {"filename": name, "split": "train", "sentences": sentences, **({"filepath": path} if path else {})}

    images = [image("1.jpg", "val2014", "one", "eins"), image("2.jpg", "train2014", "two")]
    (tmp_path / "dataset_coco.json").write_text(json.dumps({"images": images, "dataset": "coco"}))
    for name, folder, data in (("1.jpg", "val2014", RED), ("2.jpg", "train2014", BLUE)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / name).write_bytes(data)
    assert short(read_all(tmp_path / "dataset_coco.json", "coco"), "url", "text", "bytes") == [
        ("val2014/1.jpg", "one", RED), ("val2014/1.jpg", "eins", RED), ("train2014/2.jpg", "two", BLUE),
    ]  # fmt: skip
    (tmp_path / "flickr30k-images").mkdir()
    (tmp_path / "flickr30k-images/3.jpg").write_bytes(RED)
    images = [image("gone.jpg", None, "gone"), image("3.jpg", None, "three"), image("4.jpg", None)]
    (tmp_path / "dataset_flickr30k.json").write_text(json.dumps({"images": images}))
    assert short(read_all(tmp_path / "dataset_flickr30k.json", "coco"), "url", "text", "text_source", "bytes") == [
        ("gone.jpg", "gone", "caption", None), ("3.jpg", "three", "caption", RED), ("4.jpg", "", None, None),
    ]  # fmt: skip


@pytest.mark.parametrize("link", ["file", "folder"])
def test_a_link_that_leads_out_of_the_data_set_is_no_picture(tmp_path, link):
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret/7.jpg").write_bytes(RED)
    root = tmp_path / "coco"
    coco(root / "annotations/captions_train2014.json")
    if link == "folder":
        (root / "train2014").symlink_to(tmp_path / "secret")
    else:
        (root / "train2014").mkdir()
        (root / "train2014/7.jpg").symlink_to(tmp_path / "secret/7.jpg")
    (root / "train2014/8.jpg").write_bytes(BLUE)
    assert short(read_all(root, "coco"), "text", "problem", "bytes")[:3] == [
        ("seven", "outside the folder", None),
        ("sieben", "outside the folder", None),
        ("acht", "outside the folder" if link == "folder" else None, None if link == "folder" else BLUE),
    ]


def test_a_link_within_the_data_set_is_a_picture(tmp_path):
    coco(tmp_path / "captions_x.json")
    for folder in ("images", "stored"):
        (tmp_path / folder).mkdir()
    (tmp_path / "stored/7.jpg").write_bytes(RED)
    (tmp_path / "images/7.jpg").symlink_to("../stored/7.jpg")
    assert short(read_all(tmp_path, "coco"), "text", "problem", "bytes")[0] == ("seven", None, RED)


def test_karpathys_test_split_is_not_trained_on(tmp_path):
    splits = ("train", "restval", "val", "test")
    images = [{"filename": f"{n}.jpg", "split": n, "sentences": [{"raw": n}, {"raw": f"{n} 2"}]} for n in splits]
    images.append({"filename": "x.jpg", "sentences": [{"raw": "not stated"}]})
    (tmp_path / "dataset_coco.json").write_text(json.dumps({"images": images}))
    counts = Counter()
    texts = [text for (text,) in short(read_all(tmp_path, "coco", counts), "text")]
    assert texts == ["train", "train 2", "restval", "restval 2", "not stated"]
    assert (counts["rows"], counts["rows_of_other_splits"]) == (5, 4)


def test_a_file_of_cocos_val2014_is_not_trained_on(tmp_path):
    coco(tmp_path / "captions_val2014.json")
    with pytest.raises(DataError, match=r"val2014\.json: no picture of train, restval; it has val: correct ingest"):
        read_all(tmp_path, "coco")
    assert len(rows_of(source_at(tmp_path, "source=coco", "splits=null"))[0]) == 6
    coco(tmp_path / "captions_train2014.json")
    counts = Counter()
    assert len(read_all(tmp_path, "coco", counts)) == 6 and counts["rows_of_other_splits"] == 6
