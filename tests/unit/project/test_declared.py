"""A stage is what dvc.yaml says it is, before it runs: under DVC no value of params.yaml makes a folder an out."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from align.config.params import write_params
from align.config.paths import WRITTEN_BY, PathsConfig, require_declared
from align.errors import ConfigError
from align.project.declared import declared_outs
from flows.dag import read_dag
from tests.support import ROOT
from tests.support.params import PARAMS_FILE, load_params
from tests.support.warm import commands

OUTS = declared_outs(ROOT)


def test_the_paths_of_params_are_the_outs_of_dvc() -> None:
    paths = load_params().section(PathsConfig)
    assert {getattr(paths, name).as_posix(): stage for name, stage in WRITTEN_BY.items()} == {
        out: stage for stage, outs in OUTS.items() for out in outs if not out.startswith(f"{paths.reports}/")
    }
    require_declared(load_params().values["paths"], OUTS)


def test_no_parameter_names_what_dvc_writes() -> None:
    document = YAML(typ="safe", pure=True).load((ROOT / "dvc.yaml").read_text())
    text = str({name: value for name, value in document.items() if name != "stages"})
    text += str([entry["outs"] for entry in document["stages"].values()])
    assert "${" not in text


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        *(
            ([f"paths.{name}=elsewhere"], rf"^paths\.{name} = elsewhere: stage {WRITTEN_BY.get(name, '')}.* writes ")
            for name in (*WRITTEN_BY, "reports")
        ),
        (
            ["paths.raw=data/filtered", "paths.filtered=data/raw"],  # swapped
            r"paths\.raw = data/filtered: stage ingest of dvc\.yaml writes data/raw",
        ),
        (["paths.root=trial"], r"^paths\.root = trial moves paths\.raw: .* put paths\.root back"),
    ],
)
def test_another_path_is_named_with_what_dvc_writes(changes: list[str], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        require_declared(load_params(PARAMS_FILE, changes).values["paths"], OUTS)


def test_the_pipeline_refuses_other_paths_before_any_stage(tmp_path: Path) -> None:
    for file in (ROOT / "dvc.yaml", PARAMS_FILE):
        shutil.copy(file, tmp_path)
    write_params(tmp_path / "params.yaml", {"paths.tokenizer": "theirs/tokenizer"})
    with pytest.raises(ConfigError, match=r"paths\.tokenizer = theirs/tokenizer: stage fit_tokenizer"):
        read_dag(tmp_path)


def test_dvc_leaves_a_folder_alone_that_params_yaml_names_as_an_output(tmp_path: Path) -> None:
    """The real `dvc repro`, which removes an out before it runs the stage."""
    for file in (ROOT / "dvc.yaml", PARAMS_FILE, ROOT / ".dvcignore"):
        shutil.copy(file, tmp_path)
    shutil.copytree(ROOT / "align", tmp_path / "align", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / ".dvc").mkdir()
    (tmp_path / ".dvc" / "config").write_text("[core]\n    no_scm = true\n    analytics = false\n")
    for path in (tmp_path / dep for stage in read_dag(tmp_path) for dep in stage.deps):
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("input")
    model = tmp_path / "theirs" / "model"
    model.mkdir(parents=True)
    (model / "model.safetensors").write_text("weights of somebody")
    write_params(tmp_path / "params.yaml", {"paths.pretrained": "theirs/model"})

    path = f"{commands()}{os.pathsep}{os.environ['PATH']}"
    env = os.environ | {"PATH": path, "PYTHONPATH": str(ROOT), "DVC_NO_ANALYTICS": "1"}
    done = subprocess.run(
        ["dvc", "repro", "--single-item", "code", "pretrain"], cwd=tmp_path, env=env, capture_output=True, text=True
    )
    assert done.returncode != 0
    assert (model / "model.safetensors").read_text() == "weights of somebody"
    said = [line for line in (done.stdout + done.stderr).splitlines() if line.startswith("align: error:")]
    assert len(said) == 1 and "paths.pretrained = theirs/model" in said[0], done.stdout + done.stderr
    assert "Traceback" not in done.stderr
