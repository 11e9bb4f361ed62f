"""What a training run will need, before anything is trained: parameters, memory of a rank, checkpoints.

The towers are built without memory for their weights, and one group of samples is sent through them. What would be kept
for the backward pass is counted, not allocated: this takes seconds, and the rest is arithmetic.

This is not in align/training, so that no edit here makes a training stale.

    python -m align.pipeline.estimate    the needs of both training stages by ./params.yaml, as one line of JSON;
                                         or what pre-training would refuse
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple

import psutil
from pydantic import BaseModel, ConfigDict

from align.config import Params, load_params
from align.config.fit_tokenizer import FitTokenizerConfig
from align.config.infrastructure import ClusterConfig
from align.config.model import ModelConfig
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


class Device(NamedTuple):
    """What this machine trains on, a GPU or itself: its memory, and the most ranks that are started."""

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


def estimate(model: ModelConfig, vocab_size: int, recipe: Recipe, *, num_ranks: int, on_gpu: bool) -> Estimate:
    """What a run needs whose ranks, on all machines, share a batch. Only on GPUs `precision` counts. Imports torch."""
    import torch

    from align.model.dual_encoder import DualEncoder
    from align.pipeline.work import Work
    from align.training.muon import layer_matrices

    config, kind = recipe.trained(model), torch.float32
    with torch.device("meta"):
        towers = DualEncoder(config, vocab_size).train()
        towers.lock(recipe.locked)
        towers.gradient_checkpointing = recipe.gradient_checkpointing
        if on_gpu and recipe.precision != "float32":
            kind = torch.bfloat16
            towers.to(kind)
        num_parameters = sum(weight.numel() for weight in towers.parameters())
        num_trained = sum(weight.numel() for weight in towers.parameters() if weight.requires_grad)
        num_in_matrices = sum(weight.numel() for weight in layer_matrices(towers) if weight.requires_grad)
        size, samples = config.image_px, config.batch_norm_group
        pixels = torch.zeros(samples, 3, size, size, dtype=kind)
        ids = torch.zeros(samples, config.max_tokens, dtype=torch.int64)
        with Work(compiled=compiles(recipe, on_gpu=on_gpu)) as work:
            images = towers.encode_image(pixels)
            texts = towers.text_projection(towers.text_features(ids, None))
    assert images.requires_grad or recipe.locked == "image"  # whose projection may be none
    assert texts.requires_grad
    kept = num_parameters + num_trained * _MOMENTS
    if recipe.optimiser == "muon":
        kept -= num_in_matrices
    state = (kept + num_trained * _GRADIENTS) * _FLOAT32
    share = -(-recipe.batch_size // num_ranks)
    return Estimate(
        num_parameters=num_parameters,
        num_ranks=num_ranks,
        state_bytes=state // num_ranks if recipe.shard_weights else state,
        activation_bytes_per_pair=work.kept_bytes // samples,
        pairs_at_a_time=min(share, recipe.micro_batch or share),
        checkpoint_bytes=kept * _FLOAT32,
    )


def compiles(recipe: Recipe, *, on_gpu: bool) -> bool:
    """Whether a run is compiled, where its device has what torch needs for that."""
    return on_gpu if recipe.compile is None else recipe.compile


def needs(params: Params, device: Device) -> dict[str, dict[str, Any]]:
    """`stage -> {..., "rank_bytes", "kept_bytes", "available_bytes", "device"}` of the training stages on this machine.

    Raises:
        AlignError: what training would say of a tower, or of a given tokenizer.
    """
    model, num_nodes = params.section(ModelConfig), params.section(ClusterConfig).num_nodes
    words = params.section(FitTokenizerConfig)
    vocab_size = given_tokenizer(words.given).get_vocab_size() if words.given else words.vocab_size  # the most
    found = {}
    for recipe in (params.section(PretrainConfig), params.section(FinetuneConfig)):
        local = recipe.num_processes or even_ranks(recipe.batch_size // num_nodes, model.batch_norm_group, device.most)
        one = estimate(model, vocab_size, recipe, num_ranks=local * num_nodes, on_gpu=device.on_gpu)
        found[recipe.section] = one.model_dump() | {
            "rank_bytes": one.rank_bytes,
            "kept_bytes": one.checkpoint_bytes * (recipe.keep_checkpoints + 1),  # one more while it is written
            "available_bytes": device.num_bytes // (1 if device.on_gpu else local),  # ranks share a machine's memory
            "device": device.name,
        }
    return found


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
