"""The real dual encoder with random weights, as small as possible."""

import torch

from align.config.model import ImageTowerShape, ModelConfig, TextTowerShape
from align.formats.model_folder import TOKENIZER_FOLDER
from align.model.dual_encoder import DualEncoder, save_model
from align.model.tokenizer import TextTokenizer, fit_wordpiece, save_tokenizer

TINY = ModelConfig(
    resize_px=36, image_px=32, stochastic_depth=0.0, batch_norm_group=4, max_tokens=16, embed_width=16,
    image_tower=ImageTowerShape(width_coefficient=0.25, depth_coefficient=0.25),
    text_tower=TextTowerShape(width=16, layers=1, heads=2), temperature_init=0.1, logit_bias_init=None,
)  # fmt: skip

TEXTS = ["a red heart", "a blue star on a green field", "the yellow sun", "a small red flower"]


def write(root, *, seed=0):
    """Writes `root/model` and returns it."""
    model_dir = root / "model"
    tokenizer_dir = model_dir / TOKENIZER_FOLDER
    tokenizer_dir.mkdir(parents=True)
    save_tokenizer(fit_wordpiece(TEXTS, vocab_size=120, min_count=1), tokenizer_dir, max_tokens=TINY.max_tokens)
    vocab_size = TextTokenizer.load(tokenizer_dir, TINY.max_tokens).vocab_size
    torch.manual_seed(seed)
    save_model(DualEncoder(TINY, vocab_size), model_dir, stage="finetune")
    return model_dir
