from pathlib import Path

import numpy as np
from PIL import Image
from ruamel.yaml import YAML

from align.config.suite import SuiteSet
from tests.golden import align_base
from tests.support import own_model


def _table(tmp_path, published):
    """A set that is here, and one that is not."""
    one = {
        "name": "colours", "needs": ["val", "classnames.txt"], "source": "https://example.org/colours",
        "suite": {"format": "folder", "split": "val", "tasks": ["zero_shot"], "classnames": "classnames.txt",
                  "templates": ["a {} flower"]},
        "published": {"zero_shot/accuracy": published},
    }  # fmt: skip
    gone = one | {"name": "gone", "source": "https://example.org/gone"}
    path = tmp_path / "table.yaml"
    with path.open("w") as file:
        YAML(typ="safe", pure=True).dump(align_base.read_table() | {"sets": [one, gone]}, file)
    return path


def _set(folder):
    for number, name in enumerate(("n1", "n2")):
        (folder / "val" / name).mkdir(parents=True)
        for seed in range(3):
            pixels = np.random.default_rng(10 * number + seed).integers(0, 256, (40, 40, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "val" / name / f"{seed}.png")
    (folder / "classnames.txt").write_text("red\nblue\n")


def test_every_set_of_the_table_is_one_that_a_suite_may_have(tmp_path):
    table = align_base.read_table()
    assert sum(len(one["published"]) for one in table["sets"]) == 7
    for one in table["sets"]:
        entry = SuiteSet.model_validate(align_base.suite_entry(one, tmp_path))
        assert Path(entry.path).is_relative_to(tmp_path)
        measured = {
            "zero_shot": {"zero_shot/accuracy"},
            "retrieval": {"image_to_text/recall@1", "text_to_image/recall@1"},
        }
        assert set(one["published"]) == measured[entry.tasks[0]]


def test_without_weights_and_sets_each_row_says_where_to_get_them(tmp_path, capsys):
    given = ["--model", str(tmp_path / "none"), "--sets", str(tmp_path / "sets"), "--work", str(tmp_path / "work")]
    assert align_base.main(given) == align_base.NOT_MEASURED
    lines = capsys.readouterr().out.splitlines()
    rows = [line for line in lines if "not measured:" in line and "/" in line.split()[0]]
    assert len(rows) == 7
    assert all("model.safetensors, preprocessor_config.json or" in row for row in rows)
    assert all("https://huggingface.co/kakaobrain/align-base" in row for row in rows)
    assert "dataset_coco.json, val2014 missing" in next(row for row in rows if row.startswith("coco/"))
    assert "huggingface.co/datasets/mteb/food101" in next(row for row in rows if row.startswith("food101/"))
    assert lines[-1].endswith("0 agrees, 0 differs, 7 not measured")
    assert not (tmp_path / "work").exists()


def test_a_folder_of_transformers_is_imported_measured_and_compared(tmp_path, capsys):
    own_model.write_align_base(tmp_path)
    _set(tmp_path / "sets" / "colours")
    given = [
        "--model", str(tmp_path / "align-base"), "--sets", str(tmp_path / "sets"), "--work", str(tmp_path / "work"),
    ]  # fmt: skip
    assert align_base.main([*given, "--table", str(_table(tmp_path, 150.0))]) == align_base.DIFFERS
    row = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("colours/"))
    assert row.endswith("differs")
    measured = float(row.split()[2])
    for published, code in ((measured, align_base.NOT_MEASURED), (measured + 0.2, align_base.NOT_MEASURED),
                            (measured + 0.3, align_base.DIFFERS)):  # fmt: skip
        table = align_base.read_table(_table(tmp_path, published))
        rows = list(align_base.compare(table, {"colours/zero_shot/accuracy": measured / 100}, _reasons(table)))
        assert align_base.code(rows) == code
    assert align_base.code(rows[:1]) == align_base.DIFFERS
    (tmp_path / "align-base" / "model.safetensors").write_bytes(b"cut off")
    assert align_base.main([*given, "--table", str(_table(tmp_path, measured))]) == align_base.DIFFERS
    assert "align import_model failed" in capsys.readouterr().err


def _reasons(table):
    return {one["name"]: "" if one["name"] == "colours" else "gone" for one in table["sets"]}


def test_all_rows_that_agree_are_code_0():
    row = align_base.Row("a/b", 62.7, 62.6, "agrees")
    assert align_base.code([row, row]) == align_base.AGREES
