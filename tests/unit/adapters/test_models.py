import shutil
from pathlib import Path

import pytest

from align.adapters.models import open_model
from align.errors import AlignError, DataError, FormatError
from align.formats.model_folder import model_digest
from tests.support import own_model, tiny_model


def test_a_model_folder_and_the_same_model_packaged(tmp_path: Path) -> None:
    model = tiny_model.write(tmp_path)
    packaged = tmp_path / "packaged"
    shutil.copytree(model, packaged / "artifacts" / "finetuned")
    (packaged / "MLmodel").write_text("flavors: {}\n")
    plain, held = open_model(model), open_model(str(packaged))
    assert plain.digest == held.digest == model_digest(model)
    assert plain.name.endswith("-model")
    assert held.name.endswith("-packaged")
    shutil.copytree(model, packaged / "artifacts" / "another")
    with pytest.raises(DataError, match="2 model folders among the artifacts"):
        open_model(packaged)


@pytest.mark.parametrize("hostile", ["../m o d e l", "-rf", "$(touch x)", "m" * 200])
def test_a_name_is_fit_for_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hostile: str) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    Path(hostile).parent.mkdir(exist_ok=True)
    shutil.move(tiny_model.write(tmp_path), hostile)
    name = open_model(hostile).name
    assert name
    assert not name.startswith(("-", "."))
    assert set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789_.-")
    assert len(name) <= 60


def test_a_model_that_took_the_place_of_another_has_another_digest(tmp_path: Path) -> None:
    first = open_model(tiny_model.write(tmp_path / "a"))
    shutil.rmtree(tmp_path / "a")
    second = open_model(tiny_model.write(tmp_path / "a", seed=1))
    assert first.name == second.name
    assert first.digest != second.digest


def test_what_is_no_model_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    own_model.write_align_base(tmp_path)
    cases: list[tuple[str, type[AlignError], str]] = [
        ("gone", DataError, "gone: no such folder"),
        (".", DataError, "no model here"),
        ("align-base", FormatError, "align import_model"),
        ("models:/align", DataError, "write models:/align@champion"),
        ("models:/align/0", DataError, "not a version"),
        ("models:/a/b/c@champion", DataError, "not a version"),
        ("models:/align@champion", DataError, "no MLflow here"),
    ]
    for source, kind, words in cases:
        with pytest.raises(kind, match=words) as caught:
            open_model(source)
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "mlflow.db").exists()
