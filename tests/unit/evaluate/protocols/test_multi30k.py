import numpy as np
import pytest

from align.evaluate.protocols.multi30k import multi30k
from align.evaluate.protocols.retrieval import Captioned, both_ways, own_positives
from tests.golden.clip_benchmark_figures import retrieval_inputs

CUTS = (1, 5, 10)


@pytest.mark.parametrize("captions", [1, 5])
def test_the_mean_of_six_recalls(captions: int) -> None:
    """English and German have five captions an image, French and Czech one."""
    images, texts, image_of_text = retrieval_inputs()
    kept = np.flatnonzero(np.arange(len(texts)) % 5 < captions)
    of = image_of_text[kept].tolist()
    found = multi30k(Captioned(images, texts[kept], of, range(len(images))), num_resamples=300, seed=0)
    ranks = both_ways(images, texts[kept], own_positives(of, len(images)))
    recalls = {f"{way}/recall@{k}": part.recall(k).mean() for way, part in ranks.items() for k in CUTS}
    assert {name: score.value for name, score in found.items() if name != "mean_recall"} == recalls
    score = found["mean_recall"]
    assert score.value == pytest.approx(np.mean(list(recalls.values())))
    assert score.chance < score.low < score.value < score.high < 1
    assert score.chance == pytest.approx(np.mean([found[name].chance for name in recalls]))
