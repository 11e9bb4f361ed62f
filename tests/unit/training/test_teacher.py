"""Whole runs with a teacher whose embeddings `align embed` stored, and what a run refuses before it starts."""

import json
import pickle
import shutil
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch

from align.errors import ConfigError, CorruptError, DataError, TrainingError
from align.formats.model_folder import read_config
from align.formats.shards import iter_samples
from align.formats.stored_embeds import EmbedsManifest, read_embeds
from align.model.dual_encoder import save_model
from align.model.embedder import Embedder
from align.search.embed_split import embed_split
from align.training.batches.batch import Augmentation, Sampling
from align.training.batches.index import read_outline
from align.training.batches.loader import TrainLoader
from align.training.batches.samples import SplitSamples
from align.training.run import run
from align.training.stage import train_stage
from tests.support import tiny_model, training_data
from tests.support.training_data import TermAt, plan, pretrain_config


class World(NamedTuple):
    """Shards with a tokenizer, and a teacher's embeddings of them."""

    data: tuple[Path, Path]
    embedder: Embedder
    embeds: Path
    manifest: EmbedsManifest

    def teacher(self, **changes: object) -> dict[str, object]:
        embeds = [{"path": str(self.embeds), "digest": self.manifest.digest}]
        return {"embeds": embeds, "weight": 0.5, "temperature": None} | changes


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    root = tmp_path_factory.mktemp("world")
    data, embedder = training_data.write(root), Embedder.load(tiny_model.write(root))
    manifest = embed_split(data[0], "train", embedder=embedder, model_digest="mine", out=root / "teacher")
    return World(data, embedder, root / "teacher", manifest)


def copy(world: World, tmp_path: Path) -> Path:
    return Path(shutil.copytree(world.embeds, tmp_path / "copy"))


def test_a_taught_run_resumes_to_the_same_bits_and_names_its_teacher(world: World, tmp_path: Path) -> None:
    phases = [{"share": 0.5, "image_px": 32, "max_tokens": 8}]  # a teacher works in any phase
    taught = pretrain_config(teacher=world.teacher(), phases=phases, phrase_dropout=0.5)
    whole = run(plan(world.data, tmp_path / "whole", taught))
    with pytest.raises(TrainingError, match="stopped by SIGTERM after step 2 of 8"):
        run(plan(world.data, tmp_path / "parts", taught, log=TermAt(2)))
    resumed = run(plan(world.data, tmp_path / "parts", taught))
    assert resumed is not None and whole is not None and resumed.rows == whole.rows
    for name, weight in whole.model.state_dict().items():
        assert torch.equal(weight, resumed.model.state_dict()[name]), name
    out = tmp_path / "model"
    assert train_stage(plan(world.data, tmp_path / "whole", taught), out=out, reports=tmp_path / "reports") is not None
    assert read_config(out).taught_by == ("mine",)


def test_a_model_without_a_teacher_has_the_bytes_of_earlier_versions(world: World, tmp_path: Path) -> None:
    for name, taught_by in (("alone", ()), ("taught", ("one", "two"))):
        (tmp_path / name).mkdir()
        save_model(world.embedder._model, tmp_path / name, stage="pretrain", taught_by=taught_by)
        assert read_config(tmp_path / name).taught_by == taught_by
    assert "taught_by" not in json.loads((tmp_path / "alone/config.json").read_bytes())


def test_the_key_knows_the_teacher_and_not_where_it_is_stored(world: World, tmp_path: Path) -> None:
    def key(teacher: dict[str, object] | None) -> str:
        return plan(world.data, tmp_path, pretrain_config(teacher=teacher)).folder().directory.name

    moved = [{"path": str(copy(world, tmp_path)), "digest": world.manifest.digest}]
    other = embed_split(world.data[0], "train", embedder=world.embedder, model_digest="another", out=tmp_path / "other")
    same = key(world.teacher())
    assert key(world.teacher(embeds=moved)) == same
    assert key(world.teacher(temperature=world.manifest.temperature)) == same
    others = [None, world.teacher(weight=0.4), world.teacher(temperature=0.3)]
    others.append(world.teacher(embeds=[{"path": str(tmp_path / "other"), "digest": other.digest}]))
    assert len({same, *map(key, others)}) == 5


def loader(samples: SplitSamples, **changes: object) -> TrainLoader:
    return TrainLoader(
        samples, sampling=Sampling(0, 8, 1000),
        augmentation=Augmentation(image_px=32, num_draws=2, flip=True, phrase_dropout=0.9), **changes,
    )  # type: ignore[arg-type]  # fmt: skip


def test_each_row_has_the_vectors_of_its_whole_picture_and_text(world: World) -> None:
    """Also where another sample replaces an unreadable one."""
    outline = read_outline(world.data[0])
    rows = list(iter_samples(world.data[0], "train"))
    pictures = world.embedder.embed_images(row.image for row in rows)
    texts = {text: world.embedder.embed_texts([text])[0] for row in rows for text in row.texts}
    stored = read_embeds(world.embeds)
    samples = SplitSamples(outline.split("train"), 36, on_corrupt="quarantine", teacher=stored)
    plain = SplitSamples(outline.split("train"), 36, on_corrupt="quarantine")
    read, broken = samples.load, 3

    def load(location, *args, **kwargs):  # type: ignore[no-untyped-def]  # as `SplitSamples.load`
        if location.sample == broken:
            raise CorruptError("a.tar: sample 3: broken")
        image, _ = read(location, *args, **kwargs)
        return image, [f"{location.sample} {number}" for number in range(2)]  # the text says which row it has to be

    samples.load = load  # type: ignore[method-assign]
    found = list(loader(samples).batches(0, 3))
    assert sum(batch.num_quarantined for batch in found) == 1
    for batch in found:
        assert batch.teacher is not None and batch.teacher.shape == (8, 2, 16) and batch.teacher.dtype == torch.float16
        for text, (image_vector, text_vector) in zip(batch.texts, batch.teacher.numpy(), strict=True):
            sample, number = (int(part) for part in text.split())
            np.testing.assert_allclose(image_vector, pictures[sample], atol=1e-3)
            np.testing.assert_allclose(text_vector, texts[rows[sample].texts[number]], atol=1e-3)
    assert loader(plain).batch(0).teacher is None


def test_a_pickled_folder_holds_no_array(world: World) -> None:
    """A plan goes to every rank."""
    stored, out = read_embeds(world.embeds), np.empty((2, 2, 16), dtype=np.float16)
    stored.read(5, 1, out[0])
    pickled = pickle.dumps(stored)
    assert len(pickled) < 2000
    pickle.loads(pickled).read(5, 1, out[1])
    assert np.array_equal(out[0], out[1]) and np.linalg.norm(out[0].astype(np.float32), axis=1) == pytest.approx(
        1, abs=1e-3
    )


def test_what_does_not_fit_is_refused_before_the_run_starts(world: World, tmp_path: Path) -> None:
    def refused(error: type[Exception], match: str, **changes: object) -> None:
        with pytest.raises(error, match=match):
            plan(world.data, tmp_path, pretrain_config(**({"teacher": world.teacher()} | changes)))

    def at(path: Path, digest: str) -> dict[str, object]:
        return world.teacher(embeds=[{"path": str(path), "digest": digest}])

    refused(DataError, "no embeddings of a split here", teacher=at(tmp_path / "gone", "d"))
    refused(
        ConfigError,
        r"has the digest [0-9a-f]+, pretrain\.teacher\.embeds says other",
        teacher=at(world.embeds, "other"),
    )
    val = embed_split(world.data[0], "val", embedder=world.embedder, model_digest="mine", out=tmp_path / "val")
    refused(ConfigError, "is of split val; training needs train", teacher=at(tmp_path / "val", val.digest))
    more, _ = training_data.write(tmp_path / "more", num_train=16)
    extra = [{"path": str(more), "digest": read_outline(more).manifest.digest, "weight": 1.0}]
    refused(ConfigError, f"has none of {more}: run `align embed {more} --split train", extra_shards=extra)
    ours = {"path": str(world.embeds), "digest": world.manifest.digest}
    folders = []
    for name in ("mine", "another"):
        of_more = embed_split(more, "train", embedder=world.embedder, model_digest=name, out=tmp_path / name)
        folders.append({"path": str(tmp_path / name), "digest": of_more.digest})
    refused(
        ConfigError, r"is of shards [0-9a-f]{12}, this run trains on", teacher=world.teacher(embeds=[ours, folders[0]])
    )
    both = world.teacher(embeds=[ours, folders[1]])
    refused(ConfigError, "are by 2 models", teacher=both, extra_shards=extra)
    mixed = plan(
        world.data, tmp_path,
        pretrain_config(teacher=world.teacher(embeds=[folders[0], ours]), extra_shards=extra),
    )  # fmt: skip
    assert [embeds.folder.name for embeds in mixed.data.teacher] == ["teacher", "mine"]


@pytest.mark.parametrize("name", ["images.npy", "texts.npy", "starts.npy", "manifest.json"])
def test_damaged_embeddings_are_refused(world: World, tmp_path: Path, name: str) -> None:
    folder = copy(world, tmp_path)
    teacher = world.teacher(embeds=[{"path": str(folder), "digest": world.manifest.digest}])
    path = folder / name
    whole = path.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", b"\x93NUMPY\x01\x00v\x00{hostile", None):
        path.unlink()
        if damaged is not None:
            path.write_bytes(damaged)
        with pytest.raises(DataError, match=str(folder)):
            plan(world.data, tmp_path, pretrain_config(teacher=teacher))
        path.write_bytes(whole)
    changed = bytearray(whole)
    changed[whole.index(b'"num_pairs": ') + 13 if name == "manifest.json" else -1] ^= 1
    path.write_bytes(changed)
    with pytest.raises(CorruptError, match=rf"{name}: (sha256 does not match|was changed)"):
        run(plan(world.data, tmp_path, pretrain_config(teacher=teacher)))
    assert not list(tmp_path.glob("pretrain-*/*.pt"))
