"""Checks of whole steps: towers and gradients beside the CPU's, settings that must change nothing, and who waits."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.amp import GradScaler
from torch.profiler import ProfilerActivity, profile

from align.config.model import ImageTowerShape, ModelConfig, TextTowerShape
from align.model.dual_encoder import DualEncoder
from align.model.preprocess import to_pixels
from align.training import acceleration
from align.training import step as training_step
from align.training.acceleration import accelerated
from align.training.batches.batch import Batch
from align.training.ranks.process_group import Ranks
from align.training.ranks.sharding import shard, shards
from align.training.readings import Pending
from align.training.state import State, new_state
from align.training.step import compute_gradients
from benchmarks.gpu.checks import Check, Found, NotPossibleError, furthest, on_cuda, relative
from benchmarks.gpu.machine import synchronise
from benchmarks.gpu.scale import Scale
from benchmarks.gpu.steps import kernel
from benchmarks.gpu.texts import Words, words
from tests.support.training_data import MODEL, pretrain_config

acceleration.TF32 = False  # what is compared is float32

_BATCH = 32
_GROUP = 16
#: How long the device sleeps while the host starts a step.
_BUSY_S = 2.0

#: Float16's smallest numbers are larger than many gradients.
_LOSS_SCALE = 2.0**12

_BFLOAT16 = {"precision": "bfloat16"}
#: Weights that are 1e-6 apart, which bfloat16 rounds to others here and there, already give 0.125 to 0.137.
_BFLOAT16_BOUND = 0.3
_BOTH = {"what": "cheap", "micro_batch": 16}


def _config(scale: Scale, **changes: object) -> ModelConfig:
    """Small towers; on a card wide enough that its kernels for real sizes run."""
    if scale.stand_in:
        return MODEL.model_copy(update={"batch_norm_group": _GROUP} | changes)
    own = {
        "resize_px": 110, "image_px": 97, "batch_norm_group": _GROUP, "embed_width": 128, "max_tokens": 32,
        "image_tower": ImageTowerShape(width_coefficient=1.0, depth_coefficient=1.0),
        "text_tower": TextTowerShape(width=256, layers=2, heads=4),
    }  # fmt: skip
    return MODEL.model_copy(update=own | changes)


def _model(config: ModelConfig, known: Words) -> DualEncoder:
    torch.manual_seed(0)
    return DualEncoder(config, known.tokenizer.vocab_size).train()


def _batch(config: ModelConfig, known: Words, model: DualEncoder, size: int = _BATCH) -> Batch:
    torch.manual_seed(1)
    images = torch.randint(0, 256, (size, config.image_px, config.image_px, 3), dtype=torch.uint8)
    return Batch(images, known.texts(size), torch.rand(size, model.vision_model.num_blocks))


def _share(batch: Batch, ranks: Ranks) -> Batch:
    """A rank's rows of the global batch."""
    size = len(batch.texts) // ranks.world_size
    own = slice(ranks.rank * size, (ranks.rank + 1) * size)
    return Batch(batch.images[own], batch.texts[own], batch.draws[own])


class Step:
    """Loss and gradients of one step of a new model, on a device."""

    def __init__(
        self, scale: Scale, device: torch.device, what: str = "none", ranks: Ranks | None = None, **recipe: Any
    ) -> None:
        known, config, ranks = words(scale), _config(scale), ranks or Ranks(0, 1, device)
        model = _model(config, known)
        batch = _share(_batch(config, known, model), ranks)
        how = pretrain_config(batch_size=_BATCH, **{"precision": "float32"} | recipe)
        model.gradient_checkpointing = what  # type: ignore[assignment]  # one of its three words
        with accelerated(model, how, device):
            shard(model, ranks) if shards(how, ranks) else model.to(device)
            scaling = None
            if how.precision == "float16":
                scaling = GradScaler(device.type, init_scale=_LOSS_SCALE), torch.optim.SGD(model.parameters())
            loss, norm = compute_gradients(model, how, ranks, known.tokenizer, batch, scaling)
        self.loss, self.norm = float(loss), float(norm)
        self.grads = {name: param.grad for name, param in model.named_parameters() if param.grad is not None}

    def apart(self, other: Step) -> float:
        """The larger of the relative distances of the losses, and of all gradients as one vector."""
        mine, theirs = (
            torch.cat([each.grads[name].double().cpu().flatten() for name in sorted(self.grads)])
            for each in (self, other)
        )
        return max(abs(self.loss - other.loss) / abs(other.loss), relative(mine, theirs))


def _embeddings(scale: Scale) -> Found:
    known, config = words(scale), _config(scale)
    results = []
    for device in (torch.device("cpu"), scale.device):
        model = _model(config, known)
        batch = _batch(config, known, model)
        with accelerated(model, pretrain_config(), device), torch.no_grad():
            model.to(device)
            ids, mask = known.padded(batch.texts)
            images = model.encode_image(to_pixels(batch.images).to(device), batch.draws.to(device))
            results.append([images, model.encode_text(ids.to(device), mask.to(device))])
    return Found(furthest(zip(results[1], results[0], strict=True)), 1e-3)


def _beside_the_cpu(scale: Scale) -> Found:
    return Found(Step(scale, scale.device).apart(Step(scale, torch.device("cpu"))), 5e-3)


def _same(bound: float, ours: dict[str, Any], theirs: dict[str, Any] | None = None) -> Callable[[Scale], Found]:
    """Two settings on the device give one result."""

    def check(scale: Scale) -> Found:
        return Found(Step(scale, scale.device, **ours).apart(Step(scale, scale.device, **theirs or {})), bound)

    return check


def _half(precision: str, bound: float) -> Callable[[Scale], Found]:
    def check(scale: Scale) -> Found:
        on_cuda(scale, "on a CPU the towers are float32 in every precision")
        if precision == "bfloat16" and not torch.cuda.is_bf16_supported(including_emulation=False):
            raise NotPossibleError("this card has no bfloat16")
        return Found(Step(scale, scale.device, precision=precision).apart(Step(scale, scale.device)), bound)

    return check


class _Run:
    """Steps of a new model as the loop makes them: gradients, update, and values that are read later."""

    def __init__(self, scale: Scale, config: ModelConfig | None = None, size: int = _BATCH) -> None:
        self.known, config = words(scale), config or _config(scale)
        model = _model(config, self.known).to(scale.device)
        self.recipe = pretrain_config(batch_size=size, precision="bfloat16")
        self.state: State = new_state(model, self.recipe)
        self.ranks = Ranks(0, 1, scale.device)
        self.batch = _batch(config, self.known, model, size)

    def step(self) -> Pending:
        model, optimiser = self.state.model, self.state.optimiser
        optimiser.set_learning_rate(1e-3)
        gradients = compute_gradients(model, self.recipe, self.ranks, self.known.tokenizer, self.batch)
        optimiser.step()
        self.state.step += 1
        temperature: Tensor = model.temperature
        return Pending(self.state.step, 1e-3, (*gradients, temperature, temperature))


def _syncs(scale: Scale) -> Found:
    on_cuda(scale, "torch counts the host's waits on CUDA only")
    run = _Run(scale)
    for _ in range(2):
        run.step().read()
    with warnings.catch_warnings(record=True) as seen, _sync_debug_mode("warn"):
        warnings.simplefilter("always")
        earlier = run.step()
        later = run.step()
        earlier.read()
    later.read()
    waits = [str(each.message) for each in seen if "called a synchronizing" in str(each.message)]
    return Found(len(waits) / 2, 1, "waits of the host in a step" + (f" ({waits[0][:80]})" if waits else ""))


@contextmanager
def _sync_debug_mode(mode: str) -> Iterator[None]:
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode(mode)
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


def _ahead(scale: Scale) -> Found:
    """The device sleeps; a host that waits for nothing has started the whole step before it wakes.

    Towers are tiny and texts are one part, since a host also waits when about a thousand commands are queued, and a
    step with four parts has more. Pictures are larger than the 64 KB that CUDA takes at once from any memory.
    """
    on_cuda(scale, "a CPU computes when it is asked")
    with mock.patch.object(training_step, "GPU_TEXT_PARTS", 1):
        return _share_of_the_host(scale)


def _share_of_the_host(scale: Scale) -> Found:
    larger = {"batch_norm_group": _GROUP, "resize_px": 80, "image_px": 72, "max_tokens": 32}
    run = _Run(scale, MODEL.model_copy(update=larger), _GROUP)
    for _ in range(2):
        run.step().read()
    synchronise(scale.device)
    ticks_per_s = 1e3 * getattr(torch.cuda.get_device_properties(scale.device), "clock_rate", 1.5e6)
    start = time.perf_counter()
    torch.cuda._sleep(int(ticks_per_s * _BUSY_S))
    pending = run.step()
    returned = time.perf_counter() - start
    synchronise(scale.device)
    busy = time.perf_counter() - start
    pending.read()
    return Found(returned / busy, 0.8, "share of the device's busy time that the host took to start a step")


def _update_kernels(scale: Scale) -> Found:
    """Where torch computes lists of tensors one by one, an update takes some ten kernels a parameter."""
    on_cuda(scale, "kernels are counted on CUDA")
    run = _Run(scale)
    run.step().read()
    synchronise(scale.device)
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        run.state.optimiser.step()
        synchronise(scale.device)
    count = sum(event.count for event in profiler.key_averages() if kernel(event))
    num_params = len(list(run.state.model.parameters()))
    return Found(count, 2 * num_params, f"kernels for {num_params} parameters:")


CHECKS = [
    Check("embeddings of both towers beside the CPU's, float32", _embeddings),
    Check("loss and gradients of a step beside the CPU's, float32", _beside_the_cpu),
    Check("gradient_checkpointing: cheap beside none", _same(1e-3, {"what": "cheap"})),
    Check("gradient_checkpointing: blocks beside none", _same(1e-3, {"what": "blocks"})),
    Check("micro_batch: 16 beside none", _same(1e-3, {"micro_batch": 16})),
    Check("cheap with micro_batch, bfloat16, beside none", _same(_BFLOAT16_BOUND, _BOTH | _BFLOAT16, _BFLOAT16)),
    Check("a step in bfloat16 beside float32", _half("bfloat16", 0.25)),
    Check("a step in float16 beside float32", _half("float16", 0.1)),
    Check("kernels of an update by LAMB", _update_kernels),
    Check("waits of the host in a step that torch sees", _syncs),
    Check("the host starts a step while the device is busy", _ahead),
]  # fmt: skip
