"""What becomes of texts and pictures: parts of texts, sentences, crops."""

import numpy as np

from align.model.tokenizer import TextTokenizer
from align.training.batches.augmentation import SENTENCES, Augmentation, in_sentence, some_phrases


def test_some_phrases():
    draws = np.array([0.4, 0.5, 0.9, 0.1, 0.3, 0.7, *[0.5] * 28])
    assert some_phrases("red heart (love, rot), 心、愛", 0.5, draws) == "love, rot, 愛"
    assert some_phrases("red heart (love, rot), 心、愛", 0.4, draws) == "red heart (love, rot), 心、愛"
    assert some_phrases("a red heart", 1.0, draws) == "a red heart"
    assert some_phrases("...", 1.0, draws) == "..."
    assert some_phrases("", 1.0, draws) == ""
    assert len(some_phrases(",".join("abcd" * 20), 1.0, draws).split(", ")) == 17


def test_in_sentence():
    assert in_sentence("red heart", 0.5, np.array([0.49, 0.0])) == "a red heart"
    assert in_sentence("red heart", 0.5, np.array([0.5, 0.0])) == "red heart"
    assert in_sentence("{0} {heart}", 1.0, np.array([0.0, 0.999])) == "an icon of a {0} {heart}"
    assert in_sentence("red heart", 0.0, np.empty(0)) == "red heart"
    shown = {in_sentence("heart", 1.0, np.array([0.0, draw])) for draw in np.arange(0, 1, 0.01)}
    assert shown == {sentence.replace("{}", "heart") for sentence in SENTENCES}


def drawn(data, count, **values):
    """An augmentation, and what it draws for the first `count` positions of an epoch."""
    made = Augmentation(TextTokenizer.load(data[1], 16), image_px=32, num_draws=3, flip=True, **values)
    return made, made.draw(seed=7, epoch=0, positions=np.arange(count))


def test_phrase_dropout_shows_a_share_of_the_texts_in_part(data):
    made, draws = drawn(data, 480, phrase_dropout=0.6)
    shown = [made.text(["dog face: animal, dog"], draws, row) for row in range(480)]
    assert 0.3 < shown.count("dog face: animal, dog") / len(shown) < 0.5
    assert {"dog face", "animal", "dog"} < set(shown)
    sizes = np.bincount([len(text.split(", ")) for text in shown if ":" not in text], minlength=4)
    assert (sizes[1:] > 0.25 * sizes.sum()).all()  # one, two and three phrases are equally likely
    made, draws = drawn(data, 480)
    assert {made.text(["dog face: animal, dog"], draws, row) for row in range(480)} == {"dog face: animal, dog"}


def test_crops_have_all_sizes_and_all_texts_are_shown(data):
    made, draws = drawn(data, 480, crop_scale=(0.5, 1.5), sentence_share=0.3)
    image = np.broadcast_to(np.arange(36, dtype=np.uint8)[:, None, None], (36, 36, 3))  # a row says where it is from
    ranges, texts, crop = [], [], np.empty((32, 32, 3), dtype=np.uint8)
    for row in range(480):
        made.crop(np.ascontiguousarray(image), crop, draws, row)
        ranges.append(int(crop[-1, 0, 0]) - int(crop[0, 0, 0]) + 1)
        texts.append(made.text(["red", "blue"], draws, row))
    assert min(ranges) < 18 and max(ranges) == 36  # of 16 to 48, of which at most 36 are the picture's
    assert 0.2 < sum(" " in text for text in texts) / 480 < 0.4
    assert 0.4 < sum("red" in text for text in texts) / 480 < 0.6
