"""Tiny random models of transformers' classes, in folders as their publishers have them."""

import io

import numpy as np
import torch
import transformers
from PIL import Image
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

WORDS = ["<pad>", "<s>", "</s>", "<unk>", "a", "red", "fox", "owl", "two", "grey", "snow"]
TEXTS = ["a red fox", "two grey owl snow " * 9, "a", "owl"]
SHAPE = {"hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 2}
IMAGE = SHAPE | {"image_size": 32, "patch_size": 8}


def picture(seed, size=(50, 41), format="JPEG"):
    rows = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(rows).resize(size, Image.Resampling.BILINEAR).save(buffer, format)
    return buffer.getvalue()


#: Of several shapes.
PICTURES = [picture(0), picture(1, (33, 80)), picture(2, (64, 64), "PNG")]


def tokenizer(most, **more):
    made = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="<unk>"))
    made.normalizer, made.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.WhitespaceSplit()
    made.post_processor = processors.BertProcessing(("</s>", 2), ("<s>", 1))
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, model_max_length=most, pad_token="<pad>", bos_token="<s>", eos_token="</s>",
        unk_token="<unk>", **more,
    )  # fmt: skip


def clip():
    words = {"vocab_size": len(WORDS), "max_position_embeddings": 12, "bos_token_id": 1, "eos_token_id": 2}
    config = transformers.CLIPConfig(text_config=SHAPE | words, vision_config=IMAGE, projection_dim=24)
    pixels = transformers.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    return transformers.CLIPModel(config), transformers.CLIPProcessor(pixels, tokenizer(12))


def siglip():
    words = {"vocab_size": len(WORDS), "max_position_embeddings": 12, "projection_size": 32}
    config = transformers.SiglipConfig(text_config=SHAPE | words, vision_config=IMAGE)
    pixels = transformers.SiglipImageProcessor(size={"height": 32, "width": 32})
    named = tokenizer(12, model_input_names=["input_ids"])
    return transformers.SiglipModel(config), transformers.SiglipProcessor(pixels, named)


def siglip2():
    words = {"vocab_size": len(WORDS), "max_position_embeddings": 12, "projection_size": 32}
    config = transformers.Siglip2Config(
        text_config=SHAPE | words, vision_config=SHAPE | {"patch_size": 8, "num_patches": 16}
    )
    pixels = transformers.Siglip2ImageProcessor(patch_size=8, max_num_patches=16)
    named = tokenizer(12, model_input_names=["input_ids"])
    return transformers.Siglip2Model(config), transformers.Siglip2Processor(pixels, named)


def align():
    words = SHAPE | {"vocab_size": len(WORDS), "max_position_embeddings": 12}
    shape = {"image_size": 32, "width_coefficient": 0.25, "depth_coefficient": 0.2, "hidden_dim": 320}
    config = transformers.AlignConfig(text_config=words, vision_config=shape, projection_dim=80)
    pixels = transformers.EfficientNetImageProcessor(
        size={"height": 36, "width": 36}, do_center_crop=True, crop_size={"height": 32, "width": 32}
    )
    model = transformers.AlignModel(config)
    for weight in (each for each in model.vision_model.parameters() if each.ndim == 4):
        torch.nn.init.kaiming_normal_(weight)  # else all features of so deep a tower are 0
    return model, transformers.AlignProcessor(pixels, tokenizer(12))


MODELS = {"clip": clip, "siglip": siglip, "siglip2": siglip2, "align": align}


def write(root, kind):
    """Writes `root/KIND`, if it is not there, and returns it."""
    if not (root / kind).exists():
        torch.manual_seed(0)
        model, processor = MODELS[kind]()
        model.save_pretrained(root / kind)
        processor.save_pretrained(root / kind)
    return root / kind
