"""Pictures of one colour with captions, and how alike people find them, as Crisscrossed Captions has it."""

import itertools

import numpy as np

from align.config.suite import SuiteSet
from align.formats.evaluation_set import EvaluationImage, EvaluationSet, held
from tests.support.colours import COLOURS, square


def captioned(**asked):
    """A picture of each colour, twice: numbers 10, 11, ...; its two captions have ten times that, and one more."""
    images, pictures = [], []
    for number, (name, shade) in enumerate(((name, shade) for name in COLOURS for shade in (0, 15)), 10):
        texts, key = (f"{name} square", f"a {name} thing"), f"{name}{shade}"
        images.append(
            EvaluationImage(key, key, texts, None, "query", number=number, text_numbers=(10 * number, 10 * number + 1))
        )
        pictures.append(square(name, shade=shade))
    entry = SuiteSet.model_validate({"name": "c", "path": "c.json", "format": "coco", "tasks": ["retrieval"], **asked})
    return EvaluationSet("c", "retrieval", "", images, (), (), held(pictures), repeats=True, asked=entry)


def ratings(folder, one):
    """Every pair of the set, rated about 5 where both show one colour, and less by the distance of the colours else."""
    place = itertools.count()  # no two ratings are equal: three equal ones have no correlation

    def near(left, right):
        colours = [np.array(COLOURS[one.images[index - 10].texts[0].split()[0]]) / 255 for index in (left, right)]
        return round(5 - 3.3 * float(np.linalg.norm(colours[0] - colours[1])) - 0.0005 * next(place), 4)

    images = [int(image.number or 0) for image in one.images]
    texts = [number for image in one.images for number in image.text_numbers]
    said = {
        "sts": [f"C:sentid:{a},C:sentid:{b},{near(a // 10, b // 10)},x" for a in texts for b in texts if a < b],
        "sis": [f"v_{a:012}.jpg,v_{b:012}.jpg,{near(a, b)},x" for a in images for b in images if a < b],
        "sits": [f"C:sentid:{a},v_{b:012}.jpg,{near(a // 10, b)},x" for a in texts for b in images],
    }
    heads = {"sts": "caption1,caption2", "sis": "image1,image2", "sits": "caption,image"}
    for kind, rows in said.items():
        (folder / f"{kind}_test.csv").write_text("\n".join([f"{heads[kind]},agg_score,sampling_method", *rows]) + "\n")
    return folder
