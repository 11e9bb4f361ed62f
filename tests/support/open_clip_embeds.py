"""open_clip's own embeddings of an exported folder, in the environment of the tools: `... FOLDER INPUTS.npz OUT.npz`.

INPUTS has `pixels` (B, 3, H, W) and `texts`; OUT gets `image`, `text`, both L2-normalised, `tokens` and `scale`.
"""

import sys

import numpy as np
import open_clip  # type: ignore[import-not-found,unused-ignore]  # of the tools only
import torch


def main(folder, inputs, out):
    model, _, _ = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    model.eval()
    given = np.load(inputs)
    tokens = open_clip.get_tokenizer(f"local-dir:{folder}")(given["texts"].tolist())
    with torch.inference_mode():
        image = model.encode_image(torch.from_numpy(given["pixels"]), normalize=True)
        text = model.encode_text(tokens, normalize=True)
    np.savez(out, image=image, text=text, tokens=tokens, scale=model.logit_scale.exp().item())


if __name__ == "__main__":
    main(*sys.argv[1:])
