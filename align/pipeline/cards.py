"""What training takes on cards that are not here: `align plan --for 8xH100 --price 2.50`.

Counted, on towers without memory: what a rank holds; the floating-point operations of each of torch's operations in a
forward and backward pass, and the bytes that it reads and writes. An operation takes as long as its products or its
bytes do, whichever is longer. The rest of this module's numbers are assumed.
"""

# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

import json
import math
import re
from typing import Any, NamedTuple

import torch

from align.config import Params
from align.config.fit_tokenizer import FitTokenizerConfig
from align.config.model import ModelConfig
from align.config.recipe import FinetuneConfig, PretrainConfig, Recipe
from align.display.console import duration, show, show_json
from align.errors import ConfigError
from align.model.dual_encoder import DualEncoder
from align.pipeline.estimate import compiles, estimate
from align.pipeline.work import Work


class Card(NamedTuple):
    """By NVIDIA's data sheets: memory, dense bfloat16 peak, bandwidth of the memory."""

    num_gb: float
    tflops: float
    tb_per_s: float


#: Words of a card's name; the first whose words are all in a name counts. None: not known here.
CARDS: dict[str, Card | None] = {
    "MIG": None, "Laptop": None, "RTX 4090 D": None, "H200 NVL": None, "H100 PCIe": Card(80, 756, 2.0),
    "H100 NVL": Card(94, 835, 3.9), "H200": Card(141, 989, 4.8), "H100": Card(80, 989, 3.35),
    "GH200": Card(96, 989, 4.0), "B200": Card(180, 2250, 7.7), "A100 40GB": Card(40, 312, 1.56),
    "A100": Card(80, 312, 2.04), "L40S": Card(48, 362, 0.86), "L4": Card(24, 121, 0.3), "A10G": Card(24, 70, 0.6),
    "A10": Card(24, 125, 0.6), "RTX 4090": Card(24, 165, 1.01),
}  # fmt: skip
#: Shares of a card's peak and bandwidth that training reaches; docs/scale.md has the rates that they come from.
OF_PEAK, OF_BANDWIDTH = 0.6, 0.4
#: Pictures that a core decodes and crops in a second, and their side (docs/scale.md).
_DECODED_PER_S, _DECODED_PX = 2145, 346


def limited(work: Work, card: Card, share_of_peak: float = 1.0) -> tuple[float, float, float]:
    """Operations where the peak limits a card, bytes where its bandwidth does, and the seconds that both take."""
    peak, bandwidth = card.tflops * 1e12 * share_of_peak * OF_PEAK, card.tb_per_s * 1e12 * OF_BANDWIDTH
    by_peak = sum(operations for _, operations, moved in work.done if operations / peak > moved / bandwidth)
    by_bandwidth = sum(moved for _, operations, moved in work.done if operations / peak <= moved / bandwidth)
    return by_peak, by_bandwidth, by_peak / peak + by_bandwidth / bandwidth


def card_named(text: str) -> Card | None:
    """The card that a name means; None if it is not known here, as a part of a card."""
    words = set(re.findall(r"\w+", text))
    return next((card for name, card in CARDS.items() if words.issuperset(name.split())), None)


def _step(config: ModelConfig, vocab_size: int, recipe: Recipe, pairs: int) -> Work:
    """Of so many pairs whose texts have the most tokens; with the first forward pass of `micro_batch`."""
    kind = torch.float32 if recipe.precision == "float32" else torch.bfloat16
    work = Work(compiled=compiles(recipe, on_gpu=True))
    with torch.device("meta"):
        model = DualEncoder(config, vocab_size).train().to(kind)
        model.lock(recipe.locked)
        model.gradient_checkpointing = recipe.gradient_checkpointing
        pixels = torch.zeros(pairs, 3, config.image_px, config.image_px, dtype=kind)
        ids = torch.zeros(pairs, config.max_tokens, dtype=torch.int64)
        with work:
            for last in (True,) if recipe.micro_batch is None else (False, True):
                with torch.set_grad_enabled(last):
                    images = model.encode_image(pixels.to(memory_format=torch.channels_last))
                    texts = model.text_projection(model.text_features(ids, None))
            learn = [each for each in (images, texts) if each.requires_grad]
            torch.autograd.backward(learn, [torch.ones_like(each) for each in learn])
    return work


def reckon(params: Params, card: Card, num_cards: int) -> dict[str, dict[str, Any]]:
    """`stage -> {num_pairs, pairs_per_s, ..., rank_bytes}` of what is trained, with the nearest batch that fits.

    Raises:
        ConfigError: values of a recipe contradict each other.
    """
    vocab_size = params.section(FitTokenizerConfig).vocab_size
    found = {}
    for asked in (params.section(PretrainConfig), params.section(FinetuneConfig)):
        if not asked.num_steps:
            continue
        config = asked.trained(params.section(ModelConfig))
        unit = num_cards * math.lcm(config.batch_norm_group, asked.num_groups)
        recipe = asked.model_copy(update={"batch_size": max(round(asked.batch_size / unit), 1) * unit})
        if wrong := recipe.against(config, 1, num_cards):
            raise ConfigError(wrong)
        need = estimate(config, vocab_size, recipe, num_ranks=num_cards, on_gpu=True)
        pairs = need.pairs_at_a_time
        work = _step(config, vocab_size, recipe, pairs)
        num_pairs = recipe.num_steps * recipe.batch_size
        share = 0.5 if recipe.precision == "float32" else 1.0  # TF32's peak is half
        operations, moved, taken_s = (each / pairs for each in limited(work, card, share))
        found[recipe.section] = {
            "num_steps": recipe.num_steps, "batch_size": recipe.batch_size,
            "num_pairs": num_pairs, "pairs_per_s": num_cards / taken_s, "picture_px": config.resize_px,
            "loader_cores": num_cards / taken_s / _DECODED_PER_S * (config.resize_px / _DECODED_PX) ** 2,
            "rank_bytes": need.rank_bytes, "state_bytes": need.state_bytes, "pairs_at_a_time": pairs,
            "activation_bytes_per_pair": need.activation_bytes_per_pair, "share_of_peak": share,
            "operations_per_pair": sum(each[1] for each in work.done) / pairs,
            "bytes_per_pair": sum(each[2] for each in work.done) / pairs,
            "limited_by_peak": operations, "limited_by_bandwidth": moved,
        }  # fmt: skip
    return found


def _figure(number: float) -> str:
    """Three digits, so that what follows from a printed number is near."""
    return f"{number:,.0f}" if number >= 100 or number < 1e-4 else f"{number:#.3g}"


def main(params: Params, asked: str, price: float | None, *, as_json: bool) -> None:
    """Prints what training takes on the cards `asked`, such as 8xH100.

    Raises:
        ConfigError: no such cards are known here, or values of a recipe contradict each other.
    """
    match = re.fullmatch(r"([1-9]\d*)x(.+)", asked)
    if match is None or (card := card_named(match[2])) is None:
        known = ", ".join(name.replace(" ", "-") for name, each in CARDS.items() if each)
        raise ConfigError(f"--for {asked}: expected such as 8xH100; known are {known}")
    num_cards = int(match[1])
    found = reckon(params, card, num_cards)
    lines = [f"{asked}: {card.num_gb:g} GB, {card.tflops:g} TFLOP/s and {card.tb_per_s:g} TB/s each"]
    for stage, one in found.items():
        short = "" if one["rank_bytes"] < card.num_gb * 1e9 else f", too much: lower {stage}.micro_batch"
        taken_s, asked_for = one["num_pairs"] / one["pairs_per_s"], params.values[stage]["batch_size"]
        taken = duration(taken_s) if taken_s >= 1 else "less than a second"
        nearest = f"; {stage}.batch_size {asked_for:,} does not fit" if asked_for != one["batch_size"] else ""
        cost = "" if price is None else f", {_figure(taken_s / 3600 * num_cards * price)} at {price:g} a card and hour"
        rank, state = (_figure(one[name] / 1e9) for name in ("rank_bytes", "state_bytes"))
        operations, by_peak = (_figure(one[name] / 1e9) for name in ("operations_per_pair", "limited_by_peak"))
        moved, by_bandwidth = (_figure(one[name] / 1e6) for name in ("bytes_per_pair", "limited_by_bandwidth"))
        peak = "peak" if one["share_of_peak"] == 1 else "half peak"
        each = _figure(one["activation_bytes_per_pair"] / 1e6)
        lines += [
            f"{stage}, {one['num_steps']:,} steps of {one['batch_size']:,}: {one['num_pairs']:,} pairs{nearest}",
            f"  a rank  {rank} GB{short}",
            f"          weights and moments {state} GB, {one['pairs_at_a_time']:,} pairs at a time of {each} MB",
            f"  a pair  {operations} GFLOP, {moved} MB moved",
            f"          the {peak} limits {by_peak} GFLOP, the bandwidth {by_bandwidth} MB",
            f"  loader  {_figure(one['loader_cores'])} cores in all, for pictures of {one['picture_px']} px",
            f"  reckoned: {one['pairs_per_s']:,.0f} pairs/s, {taken}{cost}",
        ]
    lines += [
        "Counted: weights, moments, activations; operations and bytes of both towers, with what is computed again.",
        f"Assumed: each operation reaches {OF_PEAK:.0%} of the peak or {OF_BANDWIDTH:.0%} of the bandwidth; texts have",
        f"  the most tokens; a core decodes {_DECODED_PER_S:,} pictures of {_DECODED_PX} px a second, others by area.",
        "Left out: messages between ranks, loss, optimiser, validation, 1 to 2 GB of the libraries' own in each rank.",
    ]
    if as_json:
        show_json(json.dumps(found))
    else:
        show(*lines)
