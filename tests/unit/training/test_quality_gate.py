"""Neither a tokenizer nor a model is made of shards that their gate did not let through."""

import argparse
from pathlib import Path
from types import ModuleType

import pytest

from align.errors import AlignError, DataError, GateError
from align.formats.shards import read_manifest
from align.training import fit_tokenizer, pretrain
from tests.support import training_data
from tests.support.params import load_params
from tests.support.small_data import write_verdict
from tests.support.training_project import write_project


@pytest.mark.parametrize(
    ("stage", "out"),
    [(fit_tokenizer, "paths.tokenizer"), (pretrain, "paths.pretrained")],
    ids=["fit_tokenizer", "pretrain"],
)
@pytest.mark.parametrize(
    ("judged", "passed", "error", "said"),
    [
        ("these", False, GateError, "the quality gate failed"),
        ("others", True, DataError, "this verdict is about other data"),
        (None, True, DataError, "no quality verdict on this data"),
    ],
)
def test_a_stage_refuses_shards_without_a_passed_verdict(
    stage: ModuleType, out: str, judged: str | None, passed: bool, error: type[AlignError], said: str,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    data = training_data.write(tmp_path, num_train=8)
    write_project(tmp_path, data, training_data.RECIPE | {"num_steps": 1, "warmup_steps": 0})
    digest, gate = read_manifest(data[0]).digest, tmp_path / "reports" / "quality_shards"
    write_verdict(tmp_path / "reports" / "quality", passed=True, data=digest)  # of another gate
    (gate / "verdict.json").unlink()
    if judged:
        write_verdict(gate, passed=passed, data=digest if judged == "these" else "0" * 64)
    params = load_params(tmp_path / "params.yaml", [f"{out}=made", "fit_tokenizer.vocab_size=90"])
    with pytest.raises(error, match=said):
        stage.main(params, argparse.Namespace(accept_code_change=None))
    assert not (tmp_path / "made").exists()
