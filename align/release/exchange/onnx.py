"""Both towers as ONNX files, which run without this code.

    image_encoder   pixels (B, 3, image_px, image_px) float32 in [-1, 1]            -> image_embeds (B, D)
    text_encoder    input_ids, attention_mask (B, T) int64, T at most max_tokens    -> text_embeds (B, D)

B and T are dynamic. Embeddings are L2-normalised, so a dot product is the cosine; batch norm uses its running
statistics. The folder also holds the tokenizer and `interface.json`, which specifies the preprocessing.
"""

from __future__ import annotations

import copy
import logging
import math
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from align.durable.files import to_json, write_text
from align.errors import ConfigError
from align.formats.model_folder import TOKENIZER, TOKENIZER_CONFIG
from align.model.dual_encoder import DualEncoder
from align.model.library_towers import TransformersTextTower
from align.model.mbconv import DepthwiseConv2d

#: Larger weights are stored in a separate file next to the graph: protobuf is limited to 2 GB.
_LARGEST_ONNX_BYTES = 1_500_000_000

#: The operators of the towers need it, and onnxruntime has supported it for years.
_OPSET = 18

_BATCH = Dim("batch", min=1, max=2**16)


class _ImageEncoder(nn.Module):
    def __init__(self, model: DualEncoder) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor) -> Tensor:
        return self.model.encode_image(pixels)


class _TextEncoder(nn.Module):
    def __init__(self, model: DualEncoder) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.model.encode_text(input_ids, attention_mask)


def write_onnx(model: DualEncoder, tokenizer_dir: Path, directory: Path) -> None:
    """Writes both encoders, the tokenizer and `interface.json` into an existing folder.

    Raises:
        ConfigError: the packages that write ONNX are not installed.
    """
    _require_onnx()
    with _quiet():
        for name, program in _traced(_plain(model)).items():
            _save_onnx(program, directory / f"{name}.onnx")
    for file in (TOKENIZER, TOKENIZER_CONFIG):
        if (tokenizer_dir / file).is_file():
            shutil.copyfile(tokenizer_dir / file, directory / file)
    config = model.config
    interface = {
        "schema_version": 1,
        "resize_px": config.resize_px,
        "image_px": config.image_px,
        "pixels": "bilinear resize of the whole image to resize_px squared, its centre of image_px, value / 127.5 - 1",
        "max_tokens": config.max_tokens,
        "embed_width": config.embed_width,
        "temperature": round(float(model.temperature.detach()), 6),
    }
    write_text(directory / "interface.json", to_json(interface))


def _plain(model: DualEncoder) -> DualEncoder:
    """A copy in evaluation mode, made of torch's own layers, so that no weight is padded in the program.

    With a weight padded in the program, torch's exporter wrote a graph of B7 that lacks a node.
    """
    copied = copy.deepcopy(model).cpu().eval()
    if isinstance(copied.text_model, TransformersTextTower):  # torch's ONNX exporter fails at T5's fused attention
        copied.text_model.model.set_attn_implementation("eager")
    for module in list(copied.modules()):
        for name, child in module.named_children():
            if isinstance(child, DepthwiseConv2d):
                setattr(module, name, child.plain())
    return copied


def _half(model: DualEncoder, *, without: str) -> DualEncoder:
    """The same model without one tower, so that a program holds only the weights that it uses."""
    half = copy.copy(model)
    half._modules = {
        name: nn.Identity() if name.startswith(without) else module for name, module in model._modules.items()
    }
    return half


def _traced(model: DualEncoder) -> dict[str, ExportedProgram]:
    pixels = torch.zeros(2, 3, model.config.image_px, model.config.image_px)
    image = _ImageEncoder(_half(model, without="text")).eval()
    with torch.no_grad():
        shapes = {"pixels": {0: _BATCH}}
        return {
            "image_encoder": torch.export.export(image, (pixels,), dynamic_shapes=shapes),
            "text_encoder": _traced_text(model),
        }


def _traced_text(model: DualEncoder) -> ExportedProgram:
    tokens = Dim("tokens", min=2, max=model.config.max_tokens)
    ids = torch.zeros(2, 3, dtype=torch.int64)
    mask = torch.ones_like(ids)
    mask[0, 2] = 0  # padding, so that the mask stays in the program
    shapes = {name: {0: _BATCH, 1: tokens} for name in ("input_ids", "attention_mask")}
    text = _TextEncoder(_half(model, without="vision")).eval()
    with torch.no_grad():
        return torch.export.export(text, (ids, mask), dynamic_shapes=shapes)


def write_text_encoder(model: DualEncoder, path: Path, *, halves: bool) -> None:
    """Writes the text encoder alone, without what the exporter notes of this machine.

    Args:
        model: the model.
        path: the new file.
        halves: whether to store its weights as float16; they become float32 when the file is loaded.

    Raises:
        ConfigError: the packages that write ONNX are not installed.
    """
    _require_onnx("publish")
    import onnx

    with _quiet():
        _save_onnx(_traced_text(_plain(model)), path)
    whole = onnx.load(path)
    graph = whole.graph
    for node in graph.node:
        node.ClearField("metadata_props")
        node.ClearField("doc_string")
    for each in (whole, graph, *graph.value_info, *graph.input, *graph.output, *graph.initializer):
        each.ClearField("metadata_props")
    for one in list(graph.initializer) if halves else []:
        if one.data_type == onnx.TensorProto.FLOAT and math.prod(one.dims) > 1:
            small = onnx.numpy_helper.to_array(one).astype(np.float16)
            name, stored = one.name, f"{one.name}.half"
            one.CopyFrom(onnx.numpy_helper.from_array(small, stored))
            cast = onnx.helper.make_node("Cast", [stored], [name], to=onnx.TensorProto.FLOAT)
            graph.node.insert(0, cast)
    path.write_bytes(whole.SerializeToString(deterministic=True))


def _save_onnx(program: ExportedProgram, path: Path) -> None:
    num_bytes = sum(tensor.numel() * tensor.element_size() for tensor in program.state_dict.values())
    image = path.stem.startswith("image")
    torch.onnx.export(
        program,
        f=path,
        dynamo=True,
        verbose=False,
        opset_version=_OPSET,
        input_names=["pixels"] if image else ["input_ids", "attention_mask"],
        output_names=["image_embeds" if image else "text_embeds"],
        external_data=num_bytes > _LARGEST_ONNX_BYTES,
    )


def _require_onnx(what: str = "--format onnx") -> None:
    try:
        import onnx  # noqa: F401  # only to see whether it is installed
        import onnxscript  # noqa: F401  # as above
    except ImportError as error:
        raise ConfigError(f"{what} needs {error.name}: pip install 'align-mlops[onnx]'") from None


@contextmanager
def _quiet() -> Iterator[None]:
    """Silences torch's exporters."""
    logger = logging.getLogger("torch.onnx")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)


def read_onnx(directory: Path) -> tuple[Any, Any]:
    """The two encoders of a folder written by `write_onnx`, run by onnxruntime on the CPU."""
    return read_encoder(directory / "image_encoder.onnx"), read_encoder(directory / "text_encoder.onnx")


def read_encoder(path: Path) -> Any:
    """One encoder, run by onnxruntime on the CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [one.name for one in session.get_inputs()]

    def encode(*inputs: Tensor) -> Tensor:
        values = {name: value.numpy() for name, value in zip(names, inputs, strict=True)}
        return torch.from_numpy(session.run(None, values)[0])

    return encode
