"""Inputs of the golden files: random numbers from a seed, which numpy draws alike everywhere."""

import numpy as np


def captioned(num_images, texts_per_image, *, width, noise, seed):
    """Images, their texts, and the image of each text. A text is its image with noise: ranks of all sizes."""
    rng = np.random.default_rng(seed)
    images = _unit(rng.standard_normal((num_images, width)))
    image_of_text = np.repeat(np.arange(num_images), texts_per_image)
    texts = images[image_of_text] + noise / width**0.5 * rng.standard_normal((len(image_of_text), width))
    return images.astype(np.float32), _unit(texts).astype(np.float32), image_of_text


def own_positives(image_of_text, num_images):
    """The published positives: an image's own texts, and a text's own image."""
    of_image = [np.flatnonzero(image_of_text == image) for image in range(num_images)]
    return of_image, list(image_of_text[:, np.newaxis])


def _unit(rows):
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True))
