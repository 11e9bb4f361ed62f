"""The figures beside the tools themselves, on larger sets; each skips where its package is not installed.

`pip install --no-deps eccv_caption clip-benchmark` beside the project's own packages.
"""

from pathlib import Path

import numpy as np
import pytest

from align.evaluate.protocols.folds import recall_in_folds
from align.evaluate.protocols.retrieval import Captioned, both_ways
from align.formats.caption_positives import placed_positives, read_positives
from tests.golden.embeddings import captioned
from tests.support.suites import local_files

pytestmark = pytest.mark.full
CUTS = (1, 5, 10)
WAYS = {"image_to_text": "i2t", "text_to_image": "t2i"}


def nearest(queries: np.ndarray, items: np.ndarray, first: int = 400) -> np.ndarray:
    """(num_queries, first) a ranking's beginning. Of a fold's items, a fifth of all, it holds far more than ten."""
    rows = []
    for start in range(0, len(queries), 500):
        far = -queries[start : start + 500] @ items.T
        some = np.argpartition(far, first, axis=1)[:, :first]
        rows.append(np.take_along_axis(some, np.argsort(np.take_along_axis(far, some, axis=1), axis=1), axis=1))
    return np.concatenate(rows)


@pytest.mark.full
@pytest.mark.patience(1800, "the package's own loops")
@pytest.mark.filterwarnings("ignore:failed to import")
def test_eccv_captions_own_ground_truth() -> None:
    """5,000 images and 25,000 captions of COCO's test split by its ids, and all positives that the package brings."""
    package = pytest.importorskip("eccv_caption", reason="eccv_caption is not installed")
    data = Path(package.__file__).parent / "data"
    text_ids = np.load(data / "coco_test_ids.npy")
    images_of = read_positives(str(data / "original_caption_to_image.json"), local_files())
    image_ids = np.array(list(dict.fromkeys(images_of[text][0] for text in text_ids.tolist())))
    images, texts, image_of_text = captioned(len(image_ids), 5, width=24, noise=1.7, seed=5)
    assert [images_of[text] for text in text_ids.tolist()] == image_ids[image_of_text][:, np.newaxis].tolist()

    metrics = package.Metrics()
    rankings = [
        dict(zip(queries.tolist(), items[nearest(one, other)].tolist(), strict=True))
        for queries, items, one, other in ((image_ids, text_ids, images, texts), (text_ids, image_ids, texts, images))
    ]
    targets = ("coco_1k_recalls", "coco_5k_recalls", "cxc_recalls", "eccv_r1", "eccv_map_at_r", "eccv_rprecision")
    theirs = metrics.compute_all_metrics(*rankings, target_metrics=targets, Ks=CUTS, verbose=False)

    ids = image_ids.tolist(), text_ids.tolist()
    found = {
        name: both_ways(
            images,
            texts,
            (
                placed_positives(read_positives(str(data / f"{name}_image_to_caption.json"), local_files()), *ids),
                placed_positives(
                    read_positives(str(data / f"{name}_caption_to_image.json"), local_files()), *ids[::-1]
                ),
            ),
        )
        for name in ("original", "cxc", "eccv")
    }
    of = Captioned(images, texts, image_of_text.tolist(), range(len(images)))
    one_k = recall_in_folds(of, num_resamples=20, seed=0)
    for way, short in WAYS.items():
        ours = {
            **{f"coco_1k_r{k}": one_k[f"{way}/recall@{k}"].value for k in CUTS},
            **{f"coco_5k_r{k}": found["original"][way].recall(k).mean() for k in CUTS},
            **{f"cxc_r{k}": found["cxc"][way].recall(k).mean() for k in CUTS},
            "eccv_r1": found["eccv"][way].recall(1).mean(),
            "eccv_rprecision": found["eccv"][way].r_precision().mean(),
            "eccv_map_at_r": found["eccv"][way].map_at_r().mean(),
        }
        assert ours == pytest.approx({name: float(values[short]) for name, values in theirs.items()}, abs=1e-4)
    assert (len(found["eccv"]["image_to_text"].queries), len(found["eccv"]["text_to_image"].queries)) == (1261, 1332)
    assert len(found["cxc"]["text_to_image"].queries) == 24_972
