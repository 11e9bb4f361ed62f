"""Which model a person names in the form of `evaluate`, and below which run it is measured."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from align.durable.files import sha256_folder
from align.errors import AlignError, RefusedError
from align.release.promotion.measured import AskedModel, asked_model
from align.release.registration.shown import pictures
from align.services.tracking.registry import MODEL_DIGEST, Version
from tests.support import tiny_model


class Registered:
    """Version 7, the champion, whose run is r7; nothing else. As a Tracker and its registry."""

    def __init__(self, packaged: Path, runs: tuple[str, ...] = ("r7",)) -> None:
        self.version = Version("align", 7, "r7", {MODEL_DIGEST: sha256_folder(packaged)})
        self.registry, self.packaged, self.runs = self, packaged, runs

    def version_at(self, model: str, alias: str) -> Version | None:
        return self.version if alias == "champion" else None

    def versions(self, model: str) -> list[Version]:
        return [self.version]

    def aliases(self, model: str) -> dict[str, int]:
        return {"champion": 7}

    def find_version(self, model: str, key: str, value: str) -> Version | None:
        return self.version if self.version.tags[key] == value else None

    def run(self, run_id: str) -> Any:
        if run_id not in self.runs:
            raise RefusedError("no such run")
        return SimpleNamespace(run_id=run_id)

    def model_files(self, version: Version, folder: Path) -> Path:
        return Path(shutil.copytree(self.packaged, folder / "model"))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout with models/finetuned, models/packaged, which is the same model, and models/other."""
    root = tmp_path_factory.mktemp("measured") / "checkout"
    for name, seed in (("finetuned", 0), ("other", 1)):
        tiny_model.write(root.parent / name, seed=seed).rename(_made(root / "models") / name)
    shutil.copytree(root / "models/finetuned", root / "models/packaged/artifacts/abc")
    (root / "models/packaged/MLmodel").touch()
    shutil.copytree(root / "models/other", root.parent / "outside")
    (root / "models/linked").symlink_to(root.parent / "outside")
    (root / "models/empty").mkdir()
    return root


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def ask(asked: str, root: Path, scratch: Path, tracker: Any = None) -> AskedModel:
    packaged = root / "models/packaged"
    tracker = Registered(packaged) if tracker is None else tracker
    return asked_model(asked, root, tracker, registered="align", packaged=packaged, scratch=scratch)


@pytest.mark.parametrize(
    ("asked", "name", "parent"),
    [
        ("champion", "align version 7", "r7"),
        (" 7 ", "align version 7", "r7"),
        ("models/finetuned", "models/finetuned", "r7"),  # what was packaged, and registered
        ("./models/packaged/", "./models/packaged/", "r7"),
        ("models/other", "models/other", None),
    ],
)
def test_a_version_or_a_folder(root: Path, tmp_path: Path, asked: str, name: str, parent: str | None) -> None:
    found = ask(asked, root, tmp_path)
    assert (found.name, found.parent) == (name, parent)
    assert (found.folder / "model.safetensors").is_file()
    assert found.folder.is_relative_to(tmp_path if "version" in name else root)


def test_a_run_that_mlflow_no_longer_has_is_no_parent(root: Path, tmp_path: Path) -> None:
    tracker = Registered(root / "models/packaged", runs=())
    assert ask("champion", root, tmp_path, tracker).parent is None
    assert ask("models/finetuned", root, tmp_path, tracker).parent is None


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ("chapion", "model chapion: 'align' has champion, and no such one; give an alias, a number, or a folder"),
        ("8", "model 'align' has no version 8; it has 7"),
        ("9" * 500, "has no version 999999999999999999; it has 7"),
        ("²", "model ²: 'align' has champion"),
        ("models/none", "model models/none: no such folder in the checkout"),
        ("models/empty", "no model here (config.json is missing)"),
        ("../outside", "../outside: not in the checkout"),
        ("models/linked", "models/linked: not in the checkout"),
        ("/etc/", "/etc/: not in the checkout"),
        ("a\0b/", "not in the checkout"),
        (f"{'x' * 900}/", f"{'x' * 100}: not in the checkout"),
    ],
)
def test_what_is_no_model_is_one_line(root: Path, tmp_path: Path, asked: str, said: str) -> None:
    with pytest.raises(AlignError) as raised:
        ask(asked, root, tmp_path)
    assert said in str(raised.value) and "\n" not in str(raised.value) and len(str(raised.value)) < 500


def test_pictures_of_each_set_have_keys_that_mlflow_takes(tmp_path: Path) -> None:
    folder = _made(tmp_path / "evaluation")
    (folder / "report.json").write_text(json.dumps({"classes": {"pets-37": {}, "tiere_ü": {}, "no picture": {}}}))
    for name in ("pets-37_confusion.png", "pets-37_calibration.png", "tiere_ü_confusion.png", "recall.png"):
        (folder / name).touch()
    assert sorted(pictures(tmp_path)) == ["pets-37/calibration", "pets-37/confusion", "retrieval/recall"]
