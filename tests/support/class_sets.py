"""One set of classes as a folder, as webdataset's tars and as parquet of the hub, written by the formats' own tools."""

import io
import json

import pyarrow as pa
import pyarrow.parquet as pq
import webdataset
from PIL import Image

CLASSES = ("car", "house_cat", "owl")


def picture(number, split):
    buffer = io.BytesIO()
    Image.new("RGB", (8 + number, 8), (number * 20, 200 * (split == "train"), 0)).save(buffer, "JPEG")
    return buffer.getvalue()


#: Split -> (class, picture), in order.
ROWS = {split: [(n // 2, picture(n, split)) for n in range(6)] for split in ("test", "train")}


def folder(root):
    for split, rows in ROWS.items():
        for number, (label, data) in enumerate(rows):
            (root / split / CLASSES[label]).mkdir(parents=True, exist_ok=True)
            (root / split / CLASSES[label] / f"{number}.jpg").write_bytes(data)
    return root


def tars(root, **members):
    """By webdataset's writer, four samples a tar; `members` replaces those of the first sample."""
    for split, rows in ROWS.items():
        (root / split).mkdir(parents=True)
        for tar in range(2):
            with webdataset.TarWriter(str(root / split / f"{tar}.tar")) as writer:
                for number, (label, data) in list(enumerate(rows))[4 * tar : 4 * tar + 4]:
                    sample = {"jpg": data, "cls": str(label)}
                    sample = members if members and number == 0 and split == "test" else sample
                    writer.write({"__key__": f"s{number:07}", **sample})
        (root / split / "nshards.txt").write_text("2\n")
    (root / "classnames.txt").write_text("car\nhouse cat\nowl\n")
    (root / "zeroshot_classification_templates.txt").write_text("a photo of a {c}.\n")
    return root


def parquet(root, *, named=True):
    """As the hub's library writes it: a struct for the picture, names of classes in the schema's metadata."""
    features = {"image": {"_type": "Image"}, "label": {"names": list(CLASSES), "_type": "ClassLabel"}}
    (root / "data").mkdir(parents=True)
    for split, rows in ROWS.items():
        pictures = [{"bytes": data, "path": f"{number}.jpg"} for number, (_, data) in enumerate(rows)]
        table = pa.table({"image": pictures, "label": pa.array([label for label, _ in rows], pa.int64())})
        if named:
            table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
        pq.write_table(table, root / f"data/{split}-00000-of-00001.parquet", row_group_size=4)
    return root
