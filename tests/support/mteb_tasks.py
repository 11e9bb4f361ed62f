"""mteb's tasks on sets in CLIP_benchmark's layout, run in the environment of the tools: prints task -> scores as JSON.

    python -m tests.support.mteb_tasks MODEL CLASSES CAPTIONS PAIRS

MODEL as for `align.python.mteb.load`; CLASSES has the splits train and test, CAPTIONS is a set of captions,
and PAIRS one of PNG files with a caption each.
"""

import json
import logging
import sys
from pathlib import Path

import datasets
import mteb
from mteb.abstasks.classification import AbsTaskClassification
from mteb.abstasks.image.image_text_pair_classification import AbsTaskImageTextPairClassification
from mteb.abstasks.retrieval import AbsTaskRetrieval
from mteb.abstasks.task_metadata import TaskMetadata
from mteb.abstasks.zeroshot_classification import AbsTaskZeroShotClassification

from align.python.mteb import load
from tests.support.tars import samples

PROMPT = "a picture of {}"


def _metadata(name, kind, category, modalities, score):
    return TaskMetadata(
        name=name, description=name, dataset={"path": "here", "revision": "1"}, type=kind, category=category,
        modalities=modalities, eval_splits=["test"], eval_langs=["eng-Latn"], main_score=score,
    )  # fmt: skip


def _classes(folder):
    names = (folder / "classnames.txt").read_text().splitlines()
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=names))
    splits = {}
    for split in ("train", "test"):
        rows = samples(folder / split / "0.tar").values()
        pictures = [{"bytes": row["jpg"], "path": None} for row in rows]
        columns = {"image": pictures, "label": [int(row["cls"]) for row in rows]}
        splits[split] = datasets.Dataset.from_dict(columns, features=features)
    return datasets.DatasetDict(splits)


def zero_shot(folder):
    """Zero-shot classification with one prompt a class."""

    class ZeroShot(AbsTaskZeroShotClassification):  # type: ignore[misc]  # mteb is not installed here
        metadata = _metadata("ZeroShot", "ZeroShotClassification", "i2t", ["image", "text"], "accuracy")
        input_column_name = "image"

        def load_data(self, *_, **__):
            self.dataset, self.data_loaded = _classes(folder), True

        def get_candidate_labels(self):
            return [PROMPT.format(name) for name in self.dataset["test"].features["label"].names]

    return ZeroShot()


def probe(folder):
    """mteb's linear probe: logistic regression, two pictures a class."""

    class Probe(AbsTaskClassification):  # type: ignore[misc]  # mteb is not installed here
        metadata = _metadata("Probe", "ImageClassification", "i2c", ["image"], "accuracy")
        input_column_name = "image"
        samples_per_label = 2

        def load_data(self, *_, **__):
            self.dataset, self.data_loaded = _classes(folder), True

    return Probe()


def retrieval(folder, *, texts_for_images):
    """Retrieval in one direction."""
    rows = samples(folder / "test/0.tar")
    features = datasets.Features(id=datasets.Value("string"), image=datasets.Image())
    pictures = [{"bytes": row["jpg"], "path": None} for row in rows.values()]
    images = datasets.Dataset.from_dict({"id": list(rows), "image": pictures}, features=features)
    captions = {
        f"{key}/{place}": text
        for key, row in rows.items()
        for place, text in enumerate(row["txt"].decode().splitlines())
    }
    texts = datasets.Dataset.from_dict({"id": list(captions), "text": list(captions.values())})
    queries, corpus = (images, texts) if texts_for_images else (texts, images)
    relevant = {}
    for caption in captions:
        image = caption.rpartition("/")[0]
        query, item = (image, caption) if texts_for_images else (caption, image)
        relevant.setdefault(query, {})[item] = 1
    name, category = ("TextsForImages", "i2t") if texts_for_images else ("ImagesForTexts", "t2i")

    class Retrieval(AbsTaskRetrieval):  # type: ignore[misc]  # mteb is not installed here
        metadata = _metadata(name, "Any2AnyRetrieval", category, ["image", "text"], "hit_rate_at_1")

        def load_data(self, *_, **__):
            split = {"corpus": corpus, "queries": queries, "relevant_docs": relevant, "top_ranked": None}
            self.dataset, self.data_loaded = {"default": {"test": split}}, True

    return Retrieval()


def pairs(folder):
    """Two pictures and their captions a row, as Winoground has them."""
    rows = list(samples(folder / "test/0.tar").values())
    columns = {}
    for place in (0, 1):
        columns[f"image_{place}"] = [{"bytes": row["png"], "path": None} for row in rows[place::2]]
        columns[f"caption_{place}"] = [row["txt"].decode() for row in rows[place::2]]

    class Pairs(AbsTaskImageTextPairClassification):  # type: ignore[misc]  # mteb is not installed here
        metadata = _metadata("Pairs", "Compositionality", "i2t", ["image", "text"], "accuracy")
        images_column_names = ("image_0", "image_1")
        texts_column_names = ("caption_0", "caption_1")

        def load_data(self, *_, **__):
            rows = datasets.Dataset.from_dict(columns)
            for name in self.images_column_names:
                rows = rows.cast_column(name, datasets.Image())
            self.dataset, self.data_loaded = datasets.DatasetDict(test=rows), True

    return Pairs()


def main(model, classes, captions, couples):
    """Runs the five tasks."""
    logging.disable(logging.WARNING)
    tasks = [zero_shot(Path(classes)), probe(Path(classes)), pairs(Path(couples))]
    tasks += [retrieval(Path(captions), texts_for_images=each) for each in (True, False)]
    results = mteb.evaluate(load(model), tasks, cache=None, show_progress_bar=False)
    print(json.dumps({each.task_name: each.scores["test"][0] for each in results.task_results}))


if __name__ == "__main__":
    main(*sys.argv[1:])
