"""Which model a person names in the form of `evaluate`, and below which run it is measured."""

import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from align.durable.files import sha256_folder
from align.errors import AlignError, DataError, RefusedError
from align.formats.query_ranks import RANKS, write_ranks
from align.release.promotion import evidence as module
from align.release.promotion.evidence import Evidence, model_folder
from align.release.promotion.measured import AskedModel, asked_model
from align.release.registration.shown import pictures
from align.services.tracking.registry import MODEL_DIGEST, Version
from tests.support import tiny_model
from tests.support.empty_versions import version
from tests.support.memory_mlflow import MemoryTracker
from tests.support.registered import SETS, ranks


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
    for name in ("pets-37_confusion.png", "tiere_ü_confusion.png", "recall.png"):
        (folder / name).touch()
    assert sorted(pictures([folder])) == ["pets-37/confusion", "retrieval/recall"]


OTHERS = {"concepts": "e" * 64}


@pytest.fixture
def tracker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MemoryTracker:
    monkeypatch.chdir(tmp_path)
    return MemoryTracker(tmp_path / "mlflow")


@pytest.fixture
def made(tracker: MemoryTracker) -> Version:
    """A version with a model folder, measured on other sets than today's."""
    made = version(tracker, Path(), ranks(0.5, OTHERS))
    config = tracker.root / made.run_id / "model/artifacts/finetuned/config.json"
    config.parent.mkdir(parents=True)
    config.write_text("{}")
    return made


def judged(tracker: MemoryTracker, made: Version) -> Evidence:
    recorded = module.from_run(made, tracker)
    return module.evidence(made, recorded, SETS, tracker=tracker, today=SETS, command=["--set=x=1"])


@pytest.mark.parametrize(("found", "is_used"), [(SETS, True), (OTHERS, False)])
def test_what_was_measured_now_counts_if_it_is_of_the_wanted_sets(
    tracker: MemoryTracker, made: Version, monkeypatch: pytest.MonkeyPatch, found: Mapping[str, str], is_used: bool
) -> None:
    measured = []

    def measure(model: Path, out: Path, options: Sequence[str]) -> None:
        measured.append((model.name, options))
        out.mkdir(parents=True, exist_ok=True)
        write_ranks(ranks(0.7, found), out / RANKS)

    monkeypatch.setattr(module, "_measure", measure)
    for _ in range(2):
        if is_used:
            done = judged(tracker, made)
            assert done.ranks.sets == SETS and done.origin.endswith("its registered model was measured on today's sets")
        else:
            with pytest.raises(DataError, match="the sets changed while they were measured; repeat the command"):
                judged(tracker, made)
    assert measured == [("finetuned", ["--set=x=1"])] * (1 if is_used else 2)  # what fits is kept


def test_a_model_that_cannot_be_measured_says_so_in_its_last_words(
    tracker: MemoryTracker, made: Version, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = Path("python").absolute()
    program.write_text("#!/bin/sh\necho loading >&2\necho 'align: error: no such tower' >&2\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    with pytest.raises(DataError, match=r"^the model could not be measured: no such tower$"):
        judged(tracker, made)


@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_version_has_one_model_folder(tracker: MemoryTracker, made: Version, number: int) -> None:
    packaged = tracker.root / made.run_id / "model"
    if number == 2:
        shutil.copytree(packaged / "artifacts/finetuned", packaged / "artifacts/other")
    if number == 0:
        shutil.rmtree(packaged / "artifacts")
    if number == 1:
        assert model_folder(packaged, made) == packaged / "artifacts/finetuned"
        return
    with pytest.raises(DataError, match="version 1: its registered files hold no model folder that this code reads"):
        model_folder(packaged, made)
