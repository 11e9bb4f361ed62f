"""`align finetune` as it is typed: it starts from any model folder and takes tokenizer and picture size from it."""

import json
import shutil

import pytest
from ruamel.yaml import YAML
from tokenizers import Tokenizer

from align.cli import main
from align.formats.shards import read_manifest
from align.model.tokenizer import fit_wordpiece, save_tokenizer
from align.training.stage import train_stage
from tests.support import training_data
from tests.support.training_data import MODEL, RECIPE, plan, pretrain_config
from tests.support.training_project import write_project


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A project whose `paths.tokenizer` does not exist, and the folder `earlier` with a trained model."""
    root = tmp_path_factory.mktemp("project")
    data = training_data.write(root)
    train_stage(
        plan(data, root / "ck", pretrain_config(num_steps=1, warmup_steps=0)), out=root / "earlier", reports=root / "r"
    )
    write_project(root, data, RECIPE)
    yaml = YAML()
    values = yaml.load(root / "params.yaml")
    values["paths"]["tokenizer"] = "data/none"
    values["model"] |= {"resize_px": 300, "image_px": 300}  # of another model: not read
    values["finetune"] = {"from": "earlier", "num_steps": 1, "warmup_steps": 0, "learning_rate": 1e-9}
    yaml.dump(values, root / "params.yaml")
    return root


def finetune(root, monkeypatch, *overrides):
    monkeypatch.chdir(root)
    return main(["finetune", *(word for override in overrides for word in ("--set", override))])


def contents(folder):
    """Path in the folder -> bytes, without the mark of who made it."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != ".align.json"
    }


def test_it_starts_from_the_folder_and_keeps_its_tokenizer(project, monkeypatch, capsys):
    assert finetune(project, monkeypatch) == 0
    assert "finetune: from earlier" in capsys.readouterr().err.splitlines()
    made, start = contents(project / "models/finetuned"), contents(project / "earlier")
    assert made["tokenizer/tokenizer.json"] == start["tokenizer/tokenizer.json"]
    assert made["model.safetensors"] != start["model.safetensors"]
    config, before = json.loads(made["config.json"]), json.loads(start["config.json"])
    assert config["model"]["resize_px"] == MODEL.resize_px
    assert (config["stage"], before["stage"]) == ("finetune", "pretrain")
    digest = read_manifest(project / "shards").digest
    assert config["trained_on"] == before["trained_on"] == [digest] and config["imported"] is None


def test_data_that_trained_the_start_stays_in_the_history(project, monkeypatch):
    digest = read_manifest(project / "shards").digest
    shutil.copytree(project / "earlier", project / "older", dirs_exist_ok=True)
    config = json.loads((project / "earlier/config.json").read_text())
    (project / "older/config.json").write_text(json.dumps(config | {"trained_on": ["a" * 64]}))
    assert finetune(project, monkeypatch, "finetune.from=older") == 0
    assert json.loads((project / "models/finetuned/config.json").read_text())["trained_on"] == ["a" * 64, digest]


def test_another_folder_with_the_same_model_is_the_same_run(project, monkeypatch):
    def runs():
        return sorted(path.name for path in (project / "checkpoints").glob("finetune-*"))

    assert finetune(project, monkeypatch) == 0
    before = runs()
    shutil.copytree(project / "earlier", project / "moved", dirs_exist_ok=True)
    assert finetune(project, monkeypatch, "finetune.from=moved") == 0
    assert runs() == before
    content = json.loads((project / "moved/tokenizer/tokenizer.json").read_text())
    words = content["model"]["vocab"]
    words["red"], words["green"] = words["green"], words["red"]
    swapped = Tokenizer.from_str(json.dumps(content))
    save_tokenizer(swapped, project / "moved/tokenizer", max_tokens=MODEL.max_tokens)
    assert finetune(project, monkeypatch, "finetune.from=moved") == 0
    assert len(runs()) == len(before) + 1  # another vocabulary: another run
    other = fit_wordpiece([*training_data.COLOURS, *training_data.SIDES, "bar"], vocab_size=100, min_count=1)
    save_tokenizer(other, project / "moved/tokenizer", max_tokens=MODEL.max_tokens)
    assert finetune(project, monkeypatch, "finetune.from=moved") == 1  # of another size: refused, before it is a run
    assert len(runs()) == len(before) + 1


def test_a_start_that_pretrain_wrote_follows_the_root(project, monkeypatch):
    shutil.copytree(project / "earlier", project / "trial/models/pretrained", dirs_exist_ok=True)
    shutil.copytree(project / "reports/quality_shards", project / "trial/reports/quality_shards", dirs_exist_ok=True)
    sizes = ("model.resize_px=36", "model.image_px=32")  # as the model has them
    assert finetune(project, monkeypatch, "finetune.from=models/pretrained", "paths.root=trial", *sizes) == 0
    assert (project / "trial/models/finetuned/config.json").is_file()
    assert not (project / "models/pretrained").exists()


def test_no_steps_take_the_model_as_it_is(project, monkeypatch, capsys):
    assert finetune(project, monkeypatch, "finetune.num_steps=0", "paths.finetuned=as_it_is") == 0
    assert "finetune: num_steps is 0: as_it_is is the model in earlier, as it is" in capsys.readouterr().err
    assert contents(project / "as_it_is") == contents(project / "earlier")
    reports = project / "reports/finetune"
    assert json.loads((reports / "report.json").read_text())["num_training_pairs"] == 0
    assert json.loads((reports / "metrics.json").read_text()) == {"finetune/num_steps": 0}
    assert (reports / "metrics.jsonl").read_text() == ""
    page = (reports / "report.html").read_text(encoding="utf-8")
    assert "parameters, as they were." in page and "Curves" not in page and not (reports / "loss.png").exists()


@pytest.mark.parametrize(("start", "line"), [
    ("shards", "finetune.from shards: no model here (config.json is missing)"),
    ("exported", "finetune.from exported: a model in Hugging Face's format; convert it with `align import_model"),
    ("bert", "finetune.from bert: not a model of this project"),
    ("old", "finetune.from old: the model has no tokenizer (tokenizer/tokenizer.json is missing)"),
    ("models/finetuned", "models/finetuned: would replace, or lie in, the input models/finetuned"),
])  # fmt: skip
def test_what_is_no_model_is_one_line(project, monkeypatch, capsys, start, line):
    for name, kind in (("exported", "align"), ("bert", "bert")):
        (project / name).mkdir(exist_ok=True)
        (project / name / "config.json").write_text(json.dumps({"model_type": kind}))
    shutil.copytree(project / "earlier", project / "old", dirs_exist_ok=True)
    shutil.rmtree(project / "old/tokenizer")
    assert finetune(project, monkeypatch, f"finetune.from={start}") == 1
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and line in said[0]


def test_too_small_shards_name_the_value_that_is_the_users(project, monkeypatch, capsys):
    config = json.loads((project / "earlier/config.json").read_text())
    shutil.copytree(project / "earlier", project / "large", dirs_exist_ok=True)
    config["model"] |= {"resize_px": 289, "image_px": 289}
    (project / "large/config.json").write_text(json.dumps(config))
    assert finetune(project, monkeypatch, "finetune.from=large") == 1
    said = capsys.readouterr().err
    assert "holds images of 36 px, the model in large needs 289: set shard.image_px to 289 or more in params.y" in said
    assert "resize_px" not in said


def test_no_steps_are_for_finetune_only(project, monkeypatch, capsys):
    monkeypatch.chdir(project)
    assert main(["pretrain", "--set", "pretrain.num_steps=0"]) == 1
    assert "parameter 'pretrain.num_steps' = 0" in capsys.readouterr().err


def test_it_trains_at_a_picture_size_and_depth_of_its_own(project, monkeypatch):
    changes = (
        "finetune.image_px=36", "finetune.resize_px=36", "finetune.stochastic_depth=0.3", "paths.finetuned=own_size",
    )  # fmt: skip
    assert finetune(project, monkeypatch, *changes) == 0
    shape = json.loads((project / "own_size/config.json").read_text())["model"]
    assert (shape["image_px"], shape["resize_px"], shape["stochastic_depth"]) == (36, 36, 0.3)
    assert shape == MODEL.model_dump(mode="json") | {"image_px": 36, "resize_px": 36, "stochastic_depth": 0.3}


def test_a_picture_size_that_the_shards_or_no_steps_cannot_have(project, monkeypatch, capsys):
    assert finetune(project, monkeypatch, "finetune.image_px=40") == 1  # from 45 px, in the model's proportion
    assert "images of 36 px, finetune.image_px 40 needs 45: lower it, or set shard.image_px" in capsys.readouterr().err
    assert finetune(project, monkeypatch, "finetune.image_px=40", "finetune.resize_px=36") == 1
    assert "finetune.image_px 40 is larger than resize_px 36, which it is cropped" in capsys.readouterr().err
    assert finetune(project, monkeypatch, "finetune.num_steps=0", "finetune.stochastic_depth=0.4") == 1
    assert "or stochastic_depth would be ignored; set them to null, or train" in capsys.readouterr().err


@pytest.mark.parametrize(("override", "says"), [
    ("model.image_px=48", "--set model.image_px=48: `align finetune` keeps the shape and the recipe"),
    ("model.stochastic_depth=0.3", "--set model.stochastic_depth=0.3: `align finetune` keeps the shape"),
    ("finetune.text_init_std=0.02", "so this would be ignored; set pretrain.text_init_std"),
])  # fmt: skip
def test_a_value_that_would_be_ignored_is_an_error(project, override, says, monkeypatch, capsys):
    assert finetune(project, monkeypatch, override) == 1
    assert says in capsys.readouterr().err
