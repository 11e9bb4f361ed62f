"""What a training run will need, before anything is trained: parameters, memory of a rank, checkpoints.

The towers are built without memory for their weights, and one group of samples is sent through them. What would be kept
for the backward pass is counted, not allocated: this takes seconds, and the rest is arithmetic.

This is not in align/training, so that no edit here makes a training stale.

    python -m align.pipeline.estimate    the needs of both training stages by ./params.yaml, as one line of JSON;
                                         or what pre-training would refuse
"""

from __future__ import annotations

import functools
import json
from typing import Any, NamedTuple

import psutil
from pydantic import BaseModel, ConfigDict

from align.config import Params, load_params
from align.config.fit_tokenizer import FitTokenizerConfig
from align.config.infrastructure import ClusterConfig
from align.config.model import Checkpointing, Locked, ModelConfig
from align.config.recipe import FinetuneConfig, PretrainConfig, Recipe, even_ranks
from align.display.console import show_json
from align.durable.cores import cores
from align.errors import AlignError
from align.formats.given_tokenizer import given_tokenizer

#: Floats kept for each trained weight: its gradient, and LAMB's two moments. Muon has one for a layer's matrix.
_GRADIENTS, _MOMENTS = 1, 2
_FLOAT32 = 4
#: Of a vocabulary that is not learned yet: as many rows of given weights are compared.
_FEWEST_WORDS = 8
#: Stands for the stages in an answer that nothing can be trained.
REFUSED = "refused"


class Counted(BaseModel):
    """What was counted of a model.

    Attributes:
        num_parameters: of both towers.
        num_trained: those that a run changes.
        num_in_matrices: those of them that Muon steps.
        activation_bytes_per_pair: see `Estimate`.
    """

    model_config = ConfigDict(frozen=True)
    num_parameters: int
    num_trained: int
    num_in_matrices: int
    activation_bytes_per_pair: int


class Device(NamedTuple):
    """What this machine trains on.

    Attributes:
        name: of a GPU, or CPU.
        num_bytes: memory, of one GPU or of the machine.
        most: the most ranks that are started, one for each GPU or core.
        on_gpu: whether it is a GPU.
    """

    name: str
    num_bytes: int
    most: int
    on_gpu: bool


class Estimate(BaseModel):
    """A training run's needs.

    Attributes:
        num_parameters: of both towers.
        num_ranks: processes that share a batch, on all machines.
        state_bytes: weights of a rank; gradients and moments of those that are trained.
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
        """Memory of a rank, without the libraries' own."""
        return self.state_bytes + self.pairs_at_a_time * self.activation_bytes_per_pair


def count(model: ModelConfig, vocab_size: int, recipe: Recipe, *, on_gpu: bool) -> Counted:
    """Counts what a model holds. Imports torch.

    Args:
        model: its shape.
        vocab_size: of its tokenizer.
        recipe: that trains it.
        on_gpu: whether it is trained on GPUs, where `precision` counts.
    """
    half, compiled = on_gpu and recipe.precision != "float32", compiles(recipe, on_gpu=on_gpu)
    return _towers(recipe.trained(model), vocab_size, recipe.gradient_checkpointing, recipe.locked, half, compiled)


def estimate(counted: Counted, recipe: Recipe, *, num_ranks: int) -> Estimate:
    """What a run needs.

    Args:
        counted: of its model.
        recipe: of the run.
        num_ranks: processes that share a batch, on all machines.
    """
    num_parameters, num_trained = counted.num_parameters, counted.num_trained
    share = -(-recipe.batch_size // num_ranks)
    parts = [share, *([recipe.micro_batch] if recipe.micro_batch else [])]
    kept = num_parameters + num_trained * _MOMENTS
    kept -= counted.num_in_matrices * (recipe.optimiser == "muon")
    state = (kept + num_trained * _GRADIENTS) * _FLOAT32
    if recipe.shard_weights:
        state //= num_ranks
    return Estimate(
        num_parameters=num_parameters,
        num_ranks=num_ranks,
        state_bytes=state,
        activation_bytes_per_pair=counted.activation_bytes_per_pair,
        pairs_at_a_time=min(parts),
        checkpoint_bytes=kept * _FLOAT32,
    )


def compiles(recipe: Recipe, *, on_gpu: bool) -> bool:
    """Whether a run is compiled, where its device has what torch needs for that."""
    return on_gpu if recipe.compile is None else recipe.compile


@functools.cache
def _towers(
    config: ModelConfig, vocab_size: int, checkpointing: Checkpointing, locked: Locked, half: bool, compiled: bool
) -> Counted:
    import torch

    from align.model.dual_encoder import DualEncoder
    from align.pipeline.work import Work
    from align.training.muon import layer_matrices

    with torch.device("meta"):
        model = DualEncoder(config, vocab_size).train()
        model.lock(locked)
        num_parameters = sum(parameter.numel() for parameter in model.parameters())
        num_trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
        num_in_matrices = sum(weight.numel() for weight in layer_matrices(model) if weight.requires_grad)
        model.gradient_checkpointing = checkpointing
        if half:
            model.to(torch.bfloat16)
        size, samples = config.image_px, config.batch_norm_group
        kind = torch.bfloat16 if half else torch.float32
        pixels = torch.zeros(samples, 3, size, size, dtype=kind)
        ids = torch.zeros(samples, config.max_tokens, dtype=torch.int64)
        with Work(compiled=compiled) as work:
            images = model.encode_image(pixels)
            texts = model.text_projection(model.text_features(ids, None))
    assert images.requires_grad or locked == "image"  # whose projection may be none
    assert texts.requires_grad
    return Counted(
        num_parameters=num_parameters,
        num_trained=num_trained,
        num_in_matrices=num_in_matrices,
        activation_bytes_per_pair=work.kept_bytes // samples,
    )


def needs(params: Params, device: Device) -> dict[str, dict[str, Any]]:
    """`stage -> {..., "rank_bytes", "kept_bytes", "available_bytes", "device"}` of the training stages on this machine.

    Raises:
        AlignError: what training would say of a tower, or of a given tokenizer.
    """
    model, num_nodes = params.section(ModelConfig), params.section(ClusterConfig).num_nodes
    vocab_size = _vocab_size(params)
    found = {}
    for recipe in (params.section(PretrainConfig), params.section(FinetuneConfig)):
        local = recipe.num_processes or even_ranks(recipe.batch_size // num_nodes, model.batch_norm_group, device.most)
        counted = count(model, vocab_size, recipe, on_gpu=device.on_gpu)
        one = estimate(counted, recipe, num_ranks=local * num_nodes)
        found[recipe.section] = one.model_dump() | {
            "rank_bytes": one.rank_bytes,
            "kept_bytes": one.checkpoint_bytes * (recipe.keep_checkpoints + 1),  # one more while it is written
            "available_bytes": device.num_bytes // (1 if device.on_gpu else local),  # ranks share a machine's memory
            "device": device.name,
        }
    return found


def _vocab_size(params: Params) -> int:
    """Of the given tokenizer, or the most that is learned."""
    config = params.section(FitTokenizerConfig)
    return given_tokenizer(config.given).get_vocab_size() if config.given else config.vocab_size


def _require_towers(params: Params) -> None:
    """Raises what pre-training would of its picture size, and of the weights that it is to begin with."""
    from align.model.library_towers import require_size
    from align.model.tokenizer import TextTokenizer
    from align.training.given_towers import require_given

    recipe, given = params.section(PretrainConfig), params.section(FitTokenizerConfig).given
    config = recipe.trained(params.section(ModelConfig))
    require_size(config)
    tokenizer = TextTokenizer(given_tokenizer(given), config.max_tokens) if given else None
    require_given(config, recipe, tokenizer.vocab_size if tokenizer else _FEWEST_WORDS, tokenizer)


def main() -> None:
    """Prints `needs`, on GPUs if there are any, or what is refused."""
    import torch

    device = Device("CPU", psutil.virtual_memory().total, cores(), on_gpu=False)
    if torch.cuda.is_available():
        memory = torch.cuda.get_device_properties(0).total_memory
        device = Device(torch.cuda.get_device_name(0), memory, torch.cuda.device_count(), on_gpu=True)
    params = load_params()
    try:
        found: dict[str, Any] = needs(params, device)
        _require_towers(params)
    except AlignError as error:
        found = {REFUSED: str(error)}
    show_json(json.dumps(found))


if __name__ == "__main__":
    main()
