"""A tiny random model of open_clip, by `LibraryEmbedder` and by open_clip itself, in the environment of the tools.

    ... -m tests.support.open_clip_models FOLDER

prints the largest difference of an embedding.
"""

import io
import json
import sys
from pathlib import Path

import numpy as np
import open_clip  # type: ignore[import-not-found,unused-ignore]  # of the tools only
import torch
from PIL import Image
from safetensors.torch import save_file

from align.model.embedder import Embedder
from tests.support.library_models import PICTURES, TEXTS

CONFIG = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "head_width": 32, "patch_size": 8},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}
PIXELS = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4], "interpolation": "bicubic", "resize_mode": "shortest"}


def main(folder):
    torch.manual_seed(0)
    folder.mkdir()
    model = open_clip.CLIP(**CONFIG).eval()
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": CONFIG, "preprocess_cfg": PIXELS}))
    ours = Embedder.load(folder)
    made, _, transform = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    pixels = torch.stack([transform(Image.open(io.BytesIO(each)).convert("RGB")) for each in PICTURES])
    tokens = open_clip.get_tokenizer(f"local-dir:{folder}")(TEXTS)
    with torch.inference_mode():
        theirs = made.eval().encode_image(pixels, normalize=True), made.encode_text(tokens, normalize=True)
    mine = ours.embed_images(PICTURES), ours.embed_texts(TEXTS)
    assert np.abs(mine[0][0] - mine[0][1]).max() > 1e-3
    assert abs(ours.temperature * made.logit_scale.exp().item() - 1) < 1e-6
    print(max(np.abs(one - other.numpy()).max() for one, other in zip(mine, theirs, strict=True)))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
