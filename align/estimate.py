"""What a training run will need, before anything is trained: parameters, memory of a rank, checkpoints.

The towers are built without memory for their weights, and one group of samples is sent through: what autograd would
keep of it for the backward pass is counted, not allocated.

Not in the folder of training, which is a dep of its stages as a whole: other words or numbers here retrain nothing.

    python -m align.estimate    the needs of both training stages, by ./params.yaml, as one line of JSON
"""

from __future__ import annotations

import functools
import json

import psutil
import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from align.config import load_params
from align.config.cluster import ClusterConfig
from align.config.finetune import FinetuneConfig
from align.config.fit_tokenizer import FitTokenizerConfig
from align.config.model import Checkpointing, Locked, ModelConfig
from align.config.pretrain import PretrainConfig
from align.config.recipe import Recipe
from align.console import show_json
from align.model.dual_encoder import DualEncoder
from align.training.process_group import default_processes

#: Of what is trained: gradients, and LAMB's two moments.
_GRADIENTS, _MOMENTS = 1, 2
_FLOAT32 = 4


class Estimate(BaseModel):
    """A training run's needs.

    Attributes:
        num_parameters: of both towers.
        num_ranks: processes that share a batch, on all machines.
        state_bytes: weights of a rank; gradients, moments and average of those that are trained.
        activation_bytes_per_pair: kept for the backward pass, without recomputing.
        pairs_at_a_time: of a rank, whose activations are kept together.
        checkpoint_bytes: of one checkpoint.
    """

    model_config = ConfigDict(frozen=True)
    num_parameters: int
    num_ranks: int
    state_bytes: int
    activation_bytes_per_pair: int
    pairs_at_a_time: int
    checkpoint_bytes: int

    @property
    def rank_bytes(self) -> int:
        """Memory of a rank, without what the libraries themselves take."""
        return self.state_bytes + self.pairs_at_a_time * self.activation_bytes_per_pair


def estimate(
    model: ModelConfig, vocab_size: int, recipe: Recipe, *, num_ranks: int, num_nodes: int = 1, on_gpu: bool
) -> Estimate:
    """What a run needs.

    Args:
        model: its shape.
        vocab_size: of its tokenizer.
        recipe: of the run.
        num_ranks: processes that share a batch, on all machines.
        num_nodes: machines.
        on_gpu: whether they train on GPUs, where `precision` counts.
    """
    num_parameters, num_trained, activations = _towers(
        recipe.trained(model), vocab_size, recipe.gradient_checkpointing, recipe.locked,
        half=on_gpu and recipe.precision != "float32",
    )  # fmt: skip
    share = -(-recipe.batch_size // num_ranks)
    parts = [share, *([recipe.micro_batch] if recipe.micro_batch else [])]
    kept = num_parameters + num_trained * (_MOMENTS + (recipe.ema_decay is not None))
    state = (kept + num_trained * _GRADIENTS) * _FLOAT32
    if recipe.shard_weights:
        state //= num_ranks // num_nodes if recipe.shard_weights == "node" else num_ranks
    return Estimate(
        num_parameters=num_parameters,
        num_ranks=num_ranks,
        state_bytes=state,
        activation_bytes_per_pair=activations,
        pairs_at_a_time=min(parts),
        checkpoint_bytes=kept * _FLOAT32,
    )


@functools.cache
def _towers(
    config: ModelConfig, vocab_size: int, checkpointing: Checkpointing, locked: Locked, *, half: bool
) -> tuple[int, int, int]:
    """Parameters, those that are trained, and the bytes that one pair leaves for the backward pass."""
    kept: dict[int, tuple[object, int]] = {}  # by storage, each once; the storage is held, so that no id comes twice

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage._cdata] = (storage, storage.nbytes())
        return tensor

    with torch.device("meta"):
        model = DualEncoder(config, vocab_size).train()
        model.lock(locked)
        num_parameters = sum(parameter.numel() for parameter in model.parameters())
        num_trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
        model.gradient_checkpointing = checkpointing
        if half:
            model.to(torch.bfloat16)
        own = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
        size, samples = config.image_px, config.batch_norm_group
        kind = torch.bfloat16 if half else torch.float32
        pixels = torch.zeros(samples, 3, size, size, dtype=kind)
        ids = torch.zeros(samples, config.max_tokens, dtype=torch.int64)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            images = model.encode_image(pixels)
            texts = model.text_projection(model.text_model(input_ids=ids).last_hidden_state[:, 0])
    assert images.requires_grad or locked == "image"  # whose projection may be none
    assert texts.requires_grad
    return num_parameters, num_trained, sum(size for key, (_, size) in kept.items() if key not in own) // samples


def main() -> None:
    """Prints `stage -> {..., "rank_bytes", "kept_bytes", "available_bytes", "device"}` for this machine."""
    params = load_params()
    model, num_nodes = params.section(ModelConfig), params.section(ClusterConfig).num_nodes
    on_gpu = torch.cuda.is_available()
    found = {}
    for recipe in (params.section(PretrainConfig), params.section(FinetuneConfig)):
        local = recipe.num_processes or default_processes(recipe.batch_size // num_nodes, model.batch_norm_group)
        needs = estimate(
            model, params.section(FitTokenizerConfig).vocab_size, recipe, num_ranks=local * num_nodes,
            num_nodes=num_nodes, on_gpu=on_gpu,
        )  # fmt: skip
        if on_gpu:
            available = torch.cuda.get_device_properties(0).total_memory
        else:
            available = psutil.virtual_memory().total // local  # its ranks share it
        found[recipe.section] = needs.model_dump() | {
            "rank_bytes": needs.rank_bytes,
            "kept_bytes": needs.checkpoint_bytes * (recipe.keep_checkpoints + 1),  # one more while it is written
            "available_bytes": available,
            "device": torch.cuda.get_device_name(0) if on_gpu else "CPU",
        }
    show_json(json.dumps(found))


if __name__ == "__main__":
    main()
