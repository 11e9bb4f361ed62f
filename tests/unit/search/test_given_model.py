"""`--model`: a folder, an alias, a version; what MLflow has is kept in the folder of the project."""

from contextlib import contextmanager
from pathlib import Path

import pytest

from align.errors import DataError
from align.formats.model_folder import model_digest
from align.search import given_model as module
from align.search.given_model import given_model
from tests.support import tiny_model
from tests.support.params import load_params


def test_a_folder_an_alias_and_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    params, model = load_params(), tiny_model.write(tmp_path)
    assert given_model(None, params).name == "finetuned"
    assert given_model(str(model), params) == model
    with pytest.raises(DataError, match=r"no such folder.*hf download kakaobrain/align-base --local-dir align-base"):
        given_model("kakaobrain/align-base", params)
    with pytest.raises(DataError, match="nobody: no folder of this name, and no MLflow here"):
        given_model("nobody", params)
    with pytest.raises(DataError, match="not a version of the registry"):
        given_model("models:/align", params)
    asked = []

    @contextmanager
    def fetched(source):
        asked.append(source)
        yield model

    monkeypatch.setattr(module, "model_files", fetched)
    kept = given_model("champion", params)
    assert kept.parent == Path(".align/models") and model_digest(kept) == model_digest(model)
    assert given_model("models:/align@champion", params) == kept  # twice in a row
    assert asked == [f"models:/{params.values['register']['model_name']}@champion", "models:/align@champion"]
