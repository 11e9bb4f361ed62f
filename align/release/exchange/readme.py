"""README.md of an exported folder: how to use it, in the other tool's own words, and its licence."""

from __future__ import annotations

from pathlib import Path

from align.durable.files import write_text

_ALIGN = """
import align

model = align.load(".")
print(model.similarity(["picture.jpg"], ["a red fox", "an owl"]))
"""
_HF = """
from PIL import Image
from transformers import AlignModel, AlignProcessor

model, processor = AlignModel.from_pretrained("."), AlignProcessor.from_pretrained(".")
inputs = processor(images=Image.open("picture.jpg"), text=["a red fox", "an owl"], return_tensors="pt")
print(model(**inputs).logits_per_image.softmax(dim=1))
"""
_OPEN_CLIP = """
import open_clip
from PIL import Image

model, preprocess = open_clip.create_model_from_pretrained("local-dir:.")
texts = open_clip.get_tokenizer("local-dir:.")(["a red fox", "an owl"])
image = model.encode_image(preprocess(Image.open("picture.jpg"))[None], normalize=True)
print(image @ model.encode_text(texts, normalize=True).T)
"""
_ONNX = """
import json
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image
from tokenizers import Tokenizer

known = json.loads(Path("interface.json").read_text())
side, edge = known["resize_px"], (known["resize_px"] - known["image_px"]) // 2
picture = Image.open("picture.jpg").convert("RGB").resize((side, side), Image.Resampling.BILINEAR)
pixels = np.asarray(picture)[edge : edge + known["image_px"], edge : edge + known["image_px"]]
pixels = (pixels / 127.5 - 1).astype("float32").transpose(2, 0, 1)[None]
ids = np.array([Tokenizer.from_file("tokenizer.json").encode("a red fox").ids])
image = onnxruntime.InferenceSession("image_encoder.onnx").run(None, {"pixels": pixels})[0]
inputs = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
text = onnxruntime.InferenceSession("text_encoder.onnx").run(None, inputs)[0]
print(image @ text.T)
"""
#: Format -> what is installed for it, and the lines of use.
_USE = {
    "align": ("align-mlops", _ALIGN),
    "hf": ("transformers torch pillow", _HF),
    "open_clip": ("open_clip_torch timm transformers", _OPEN_CLIP),
    "onnx": ("onnxruntime tokenizers pillow", _ONNX),
}


def write_readme(directory: Path, kind: str, license_id: str | None) -> None:
    """Writes README.md, with the field that model hubs read.

    Args:
        directory: of the exported model.
        kind: the format.
        license_id: SPDX identifier of what people may do with the weights; None: nobody has said.
    """
    packages, code = _USE[kind]
    said = license_id or "nobody has stated one (`align export --license`)"
    write_text(
        directory / "README.md",
        f"---\nlicense: {(license_id or 'other').lower()}\ntags: [align, image-text]\n---\n\n"
        "# A dual encoder of images and texts\n\n"
        f"Cosines of a picture with texts, in this folder, after `pip install {packages}`:\n\n"
        f"```python\n{code.strip()}\n```\n\n"
        f"Licence of the weights: {said}. The pictures and texts that it was trained on have licences of their own.\n",
    )
