"""A small untrained model with the demo's preprocessing, in the folder that training writes."""

import numpy as np

from align.config.model import ModelConfig
from align.formats.model_folder import TOKENIZER_FOLDER
from align.model.dual_encoder import DualEncoder, save_model
from align.model.embedder import load_with_tokenizer
from align.model.image_tower import estimate_statistics
from align.model.preprocess import centre_crop, decode, to_pixels
from align.model.tokenizer import fit_wordpiece, save_tokenizer
from tests.support.params import load_params

TEXTS = ["a red fox in the snow", "two grey owls", "picture of a fox and an owl"]


def write(root, texts=TEXTS, vocab_size=80):
    """Writes `root/models/finetuned`, whose vocabulary is that of some texts, and returns it."""
    model_dir = root / "models" / "finetuned"
    tokenizer_dir = model_dir / TOKENIZER_FOLDER
    tokenizer_dir.mkdir(parents=True)
    values = load_params().values["model"]
    small = {
        "image_tower": {"width_coefficient": 0.25, "depth_coefficient": 0.25},
        "text_tower": {"width": 32, "layers": 1, "heads": 2},
    }
    config = ModelConfig.model_validate(values | small | {"embed_width": 24})
    tokenizer = fit_wordpiece(texts, vocab_size=vocab_size, min_count=1)
    save_tokenizer(tokenizer, tokenizer_dir, max_tokens=config.max_tokens)
    save_model(DualEncoder(config, tokenizer.get_vocab_size()), model_dir, stage="finetune")
    return model_dir


def tell_apart(folder, pictures):
    """Gives an untrained model batch-norm's statistics: without them rounding decides which picture is nearer."""
    model, _ = load_with_tokenizer(folder)
    size = model.config
    crops = [centre_crop(decode(picture, size.resize_px), size.image_px) for picture in pictures]
    estimate_statistics(model.vision_model, [to_pixels(np.stack(crops))])
    save_model(model, folder, stage="finetune")
