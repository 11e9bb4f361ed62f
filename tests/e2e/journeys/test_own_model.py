"""docs/own-model.md as it is typed, with a small model in place of align-base."""

import json

import pytest

from tests.support import own_model
from tests.support.journeys import AUTHOR, travel


@pytest.mark.journeys
def test_align_base_from_a_folder_to_the_registry_and_back(folder):
    own_model.write(folder)
    said = travel(folder, "own-model", "align-base", AUTHOR)
    project = folder / "mymodel"
    assert "finetune: num_steps is 0: models/finetuned is the model in imported, as it is" in said
    assert "align version 1 (registered)" in said and "align version 2 (registered)" in said
    for stage in ("fit_tokenizer", "pretrain"):
        assert f"Running stage '{stage}'" not in said and not (project / "reports" / stage).exists()
    config = json.loads((project / "models/finetuned/config.json").read_text())
    assert (config["stage"], config["imported"]["folder"]) == ("finetune", "align-base") and len(
        config["trained_on"]
    ) == 1
    assert json.loads((project / "imported/config.json").read_text())["trained_on"] == []
    for made in ("photos.parquet", "hits.html", "exported/config.json", "programs/text_encoder.onnx"):
        assert (project / made).is_file(), made
