"""A small untrained model with the demo's preprocessing, in the folder that training writes."""

from pathlib import Path

from align.config.model import ModelConfig
from align.formats.model_folder import TOKENIZER_FOLDER
from align.model.dual_encoder import DualEncoder, save_model
from align.model.tokenizer import fit_wordpiece, save_tokenizer
from tests.support.params import load_params

TEXTS = ["a red fox in the snow", "two grey owls", "picture of a fox and an owl"]


def write(root: Path) -> Path:
    """Writes `root/models/finetuned` and returns it."""
    model_dir = root / "models" / "finetuned"
    tokenizer_dir = model_dir / TOKENIZER_FOLDER
    tokenizer_dir.mkdir(parents=True)
    values = load_params().values["model"]
    small = {
        "image_tower": {"width_coefficient": 0.25, "depth_coefficient": 0.25},
        "text_tower": {"width": 32, "layers": 1, "heads": 2},
    }
    config = ModelConfig.model_validate(values | small | {"embed_width": 24})
    tokenizer = fit_wordpiece(TEXTS, vocab_size=80, min_count=1)
    save_tokenizer(tokenizer, tokenizer_dir, max_tokens=config.max_tokens)
    save_model(DualEncoder(config, tokenizer.get_vocab_size()), model_dir, stage="finetune")
    return model_dir
