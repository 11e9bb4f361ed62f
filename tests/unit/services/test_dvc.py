"""Which paths dvc.yaml in the working directory keeps, and which values of a command it does not know."""

from pathlib import Path

import pytest

from align.cli import main
from align.config.params import load_params
from align.errors import ConfigError
from align.services.dvc.outs import is_tracked, overridden, require_stated_values, stage_of
from tests.support.params import PARAMS_FILE
from tests.support.small_data import jpeg

PARAMS = """
paths: {raw: data/raw, reports: reports, archive: data/a.warc.gz}
ingest: {source: warc, columns: {url: url, text: caption}}
download: {user_agent: ours, allow_networks: []}
"""
PIPELINE = """
stages:
  ingest:
    cmd: align ingest
    outs: ["${paths.raw}", {"${ paths.reports }/ingest": {cache: false}}, "${paths.nowhere}/x"]
  pretrain: {cmd: align pretrain, outs: [models/pretrained]}
  none: {cmd: echo}
"""


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_STAGE", raising=False)
    (tmp_path / "params.yaml").write_text(PARAMS)
    (tmp_path / "dvc.yaml").write_text(PIPELINE)
    return tmp_path


def test_outs_by_name_and_by_value(project):
    assert stage_of(Path("data/raw")) == stage_of(project / "data/../data/raw") == "ingest"
    assert stage_of(Path("reports/ingest")) == "ingest"
    assert stage_of(Path("models/pretrained")) == "pretrain"
    assert stage_of(Path("models")) == "pretrain"  # around an out
    assert stage_of(Path("models/pretrained/tokenizer")) == "pretrain"  # in one
    for free in ("trial/raw", "data/raw2", "reports/filter", "None/x", "x"):
        assert stage_of(Path(free)) is None


def test_what_dvc_would_remove_is_not_written_by_hand(project, capsys):
    """As the commands are typed; what they would read need not be there."""
    (project / "theirs").mkdir()
    params = ["--params", str(PARAMS_FILE)]
    commands = (
        ("--out models/pretrained", ["import_model", "--from", "theirs"]),
        ("--out models", ["import_model", "--from", "theirs"]),
        ("--out models/pretrained/mine", ["export", "--format", "hf", "--images", "theirs", "--texts", "texts.txt"]),
        ("--out models/pretrained/mine.parquet", ["embed", "theirs"]),
        ("--html models/pretrained/hits.html", ["search", "a fox"]),
    )
    (project / "theirs/one.jpg").write_bytes(jpeg(1))
    (project / "texts.txt").write_text("a fox\n")
    for option, words in commands:
        assert main([words[0], *params, *words[1:], *option.split(" ")]) == 1
        said = capsys.readouterr().err.splitlines()
        why = "stage pretrain of dvc.yaml writes there, and `dvc repro` removes what is there before"
        assert said == [f"align: error: {option}: {why}; choose another place"]
        assert not (project / "models").exists()


def test_no_project_no_outs(project):
    (project / "dvc.yaml").unlink()
    assert stage_of(Path("data/raw")) is None
    assert not is_tracked()
    (project / ".dvc").mkdir()
    assert is_tracked()


def test_a_broken_pipeline_is_named(project):
    (project / "dvc.yaml").write_text("stages: [")
    with pytest.raises(ConfigError, match=r"dvc\.yaml: not readable as YAML"):
        stage_of(Path("data/raw"))


def test_only_values_that_really_differ_are_overridden(project):
    same = ["download.user_agent=ours", "paths.archive=data/a.warc.gz", "paths.raw=elsewhere"]
    keys = ("ingest", "download", "paths.archive")
    assert overridden(load_params(None, same), keys) == []
    other = ["download.allow_networks=[10.0.0.0/8]", "ingest.columns.url=URL", "paths.archive=b.warc"]
    assert overridden(load_params(None, other), keys) == ["ingest.columns", "download.allow_networks", "paths.archive"]
    (project / "other.yaml").write_text(PARAMS.replace("ours", "theirs"))
    assert overridden(load_params(project / "other.yaml"), keys) == ["download.user_agent"]


def test_an_out_is_made_with_the_values_of_params_yaml_only(project, monkeypatch):
    outs = {"raw": Path("data/raw"), "reports": Path("reports/ingest")}
    other = load_params(None, ["download.user_agent=theirs"])
    require_stated_values(load_params(), ("download",), outs)
    require_stated_values(other, ("ingest",), outs)
    require_stated_values(other, ("download",), {"raw": Path("trial/raw"), "reports": Path("trial/reports/ingest")})
    with pytest.raises(ConfigError) as error:
        require_stated_values(other, ("download",), outs)
    assert str(error.value) == (
        "data/raw: is an out of dvc.yaml, so it is made with the values of params.yaml only, and these differ: "
        "download.user_agent; put them into params.yaml and repeat the command, or write elsewhere: "
        "--set paths.raw=trial/raw --set paths.reports=trial/reports"
    )
    with pytest.raises(ConfigError, match=r"^reports/ingest: is an out"):
        require_stated_values(other, ("download",), {"raw": Path("trial/raw"), "reports": Path("reports/ingest")})
    monkeypatch.setenv("DVC_STAGE", "ingest")  # then DVC knows the command line
    require_stated_values(other, ("download",), outs)
