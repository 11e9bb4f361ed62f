"""Training on tars that others made: their index, the batches from it, and what the model says of its data."""

import argparse
import os
import shutil

import numpy as np
import pytest

from align.durable.files import sha256_file
from align.errors import ConfigError, DataError
from align.formats.model_folder import read_config
from align.formats.shards import read_manifest
from align.model.preprocess import decode
from align.model.tokenizer import TextTokenizer
from align.services.files.files import StoreFiles
from align.training import finetune, fit_tokenizer, pretrain
from align.training import given_tars as module
from align.training.batches.augmentation import Augmentation
from align.training.batches.index import SplitIndex
from align.training.batches.loader import TrainLoader
from align.training.batches.samples import SplitSamples
from tests.support import given_tars, local_store, training_data
from tests.support.params import load_params
from tests.support.training_project import write_project

RECIPE = training_data.RECIPE | {"num_steps": 2, "warmup_steps": 0, "validate_every_steps": 2, "log_every_steps": 1}


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder with params.yaml, two tars of 20 samples and one of 12, and nothing else: no shards, no verdict."""
    monkeypatch.chdir(tmp_path)
    write_project(tmp_path, training_data.write(tmp_path, num_train=8), RECIPE)
    for made in ("shards", "tokenizer", "reports"):
        shutil.rmtree(made)
    given_tars.write(tmp_path / "tars")
    given_tars.write(tmp_path / "more", num_tars=1, per_tar=12, first=1000)
    yield tmp_path


def params(project, *overrides):
    """Of the project; a quarter is held out."""
    return load_params(project / "params.yaml", ["shard.val_fraction=0.25", "engine.num_workers=1", *overrides])


def test_the_tars_are_read_once_and_stay_as_they_are(project, monkeypatch, capsys):
    before = {tar: sha256_file(tar) for tar in (project / "tars").iterdir()}
    (folder, manifest, weight), _ = module.given_data(
        params(project), ["tars/{00000..00001}.tar", "more=0.5"], "pretrain"
    )
    assert weight == 1.0 and {tar: sha256_file(tar) for tar in (project / "tars").iterdir()} == before
    splits = manifest.splits
    assert sum(split.num_images for split in splits.values()) == 40 and splits["val"].num_images in range(4, 17)
    assert {row.given for row in splits["train"].shards} == {*map(str, before)}
    assert "Not gated" in capsys.readouterr().err

    def read_again(*_):
        raise AssertionError("the tars are read again")

    with monkeypatch.context() as patched:
        patched.setattr(module, "LocalExecutor", read_again)
        assert module.given_data(params(project), ["tars/*.tar"], "pretrain")[0][:2] == (folder, manifest)
    os.utime(project / "tars/00000.tar", (1, 1))  # another time, the same bytes: found again by them
    ((other, again, _),) = module.given_data(params(project), ["tars"], "pretrain")
    assert other != folder and again.digest == manifest.digest
    with pytest.raises(DataError, match="an index of given tars"):
        read_manifest(folder)


def test_batches_show_the_pictures_and_replace_broken_ones_alike_on_all_ranks(project, data):
    words = TextTokenizer.load(data[1], 16)
    tar = project / "tars/00001.tar"
    data, cut = tar.read_bytes(), given_tars.picture(22, "PNG")
    tar.write_bytes(data.replace(cut, cut[:60] + bytes(len(cut) - 60)))  # its header stays
    ((folder, manifest, _),) = module.given_data(params(project, "shard.val_fraction=0"), ["tars"], "pretrain")
    assert manifest.splits.keys() == {"train"} and manifest.left_out == {}
    index = SplitIndex.of(folder, manifest, "train")
    samples = SplitSamples(index, 36, on_corrupt="quarantine")
    texts = list(module.given_texts(folder, StoreFiles(local_store.config(project))))
    for number, text in enumerate(texts):
        if number != 22:
            form = ("JPEG", "PNG", "WEBP")[number % 3]
            assert np.array_equal(samples.image(number), decode(given_tars.picture(number, form), 36))
            assert samples.texts(number) == text and text[0] == given_tars.text(number)

    def rows(rank, world_size):
        loader = TrainLoader(
            [(SplitSamples(index, 36, on_corrupt="quarantine", cache_bytes=0), 1.0)],
            Augmentation(words, 32, 3, flip=True), seed=7, batch_size=8, rank=rank, world_size=world_size,
        )  # fmt: skip
        batches = list(loader.batches(0, 5))  # an epoch
        return [batch.images.numpy() for batch in batches], [batch.texts for batch in batches], loader.num_quarantined

    images, shown, replaced = rows(0, 1)
    parts = [rows(rank, 2) for rank in (0, 1)]
    assert replaced == parts[0][2] + parts[1][2] == 1
    assert not any("number 22" in text for step in shown for text in step)
    assert shown == [a + b for a, b in zip(parts[0][1], parts[1][1], strict=True)]
    for whole, a, b in zip(images, parts[0][0], parts[1][0], strict=True):
        assert np.array_equal(whole, np.concatenate([a, b]))


@pytest.mark.parametrize(("spec", "error", "said"), [
    ("tars/{00000..00003}.tar", DataError, r"00002.tar: cannot be read"),
    ("tars/{0..1.tar", ConfigError, "braces do not match"),
    ("tars=0", ConfigError, "weight 0 is not a number above 0"),
    ("tars=nan", ConfigError, "weight nan is not"),
    ("nowhere/*.tar", DataError, "no file that ends in .tar"),
    ("https://a.example/0.tar", DataError, "give a path or s3://"),
    ("empty.tar", DataError, r"nothing to train on in 1 tars: the rest of a tar that is cut off or damaged 1"),
])  # fmt: skip
def test_what_cannot_be_trained_on(project, spec, error, said):
    (project / "empty.tar").write_bytes(b"<html>not here</html>")
    with pytest.raises(error, match=said):
        module.given_data(params(project), [spec], "pretrain")
    assert not list((project / ".align").rglob("manifest.json"))


def test_from_tars_to_a_model_that_says_it_is_not_gated(project):
    typed = ["store.cache=cache", "fit_tokenizer.vocab_size=150", "pretrain.num_processes=2", "finetune.num_steps=1"]
    typed += ["finetune.batch_size=4", "finetune.num_processes=1"]
    values, specs = params(project, *typed), ["tars/{00000..00001}.tar=2", "more=0.5"]
    args = argparse.Namespace(data=specs, accept_code_change=None, typed=[])
    fit_tokenizer.main(values, args)
    words = TextTokenizer.load(project / "tokenizer", 16).vocabulary
    assert "square" in words and "caption" not in words
    pretrain.main(values, args)
    config = read_config(project / "models/pretrained")
    digests = [found[1].digest for found in module.given_data(values, specs, "pretrain")]
    assert config.trained_on == config.not_gated == tuple(digests) and config.saw_no_shards
    assert "Not gated" in (project / "reports/pretrain/report.html").read_text()
    runs = sorted((project / "checkpoints").iterdir())
    pretrain.main(values, args)  # the same tars, the same run: only exported
    assert sorted((project / "checkpoints").iterdir()) == runs
    args.data = ["more"]
    finetune.main(values, args)
    tuned = read_config(project / "models/finetuned")
    assert (tuned.trained_on, tuned.not_gated) == (tuple(digests), tuple(digests))  # more is the second of these
    work = module.on_given(values, pretrain.work_of(values), specs)
    assert [more.weight for more in work.recipe.extra_shards] == [0.25]
