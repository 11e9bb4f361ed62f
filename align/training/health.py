"""What is measured of a run while it trains, with a warning when a sign leaves its bounds.

Each excursion gives one warning, and one line when the value is within its bounds again. None stops the run: people
decide. (A loss that is not finite does end the run, see `align.training.step`.) Recall on the validation split, which
all ranks share, is a cheap check of progress, not the evaluation.
"""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from align.display.console import say
from align.model.dual_encoder import DualEncoder
from align.model.embedder import Embedder
from align.model.preprocess import to_pixels
from align.model.tokenizer import TextTokenizer
from align.training.batches.samples import SplitSamples
from align.training.ranks.process_group import Ranks

#: Lowest and highest temperature; the paper's starts at 1.0 and ends near 1/64 = 0.016.
TEMPERATURE = (0.005, 2.0)
#: A relative change of the temperature below the first over so many steps counts as stuck.
TEMPERATURE_MOVES, STUCK_STEPS = 1e-4, 200
#: Norm of the gradients, as a multiple of its median.
GRADIENT_NORM_JUMP = 20
#: Effective rank of the validation images' embeddings, as a share of the way from 1 to what is possible; below it they
#: collapse.
MIN_EFFECTIVE_RANK_SHARE = 0.05
#: Mean of 1 - cosine between an image's embeddings by batch statistics and by running ones.
MAX_BATCH_NORM_GAP = 0.2
#: Share of the time that steps wait for the loader.
MAX_LOADER_WAIT_SHARE = 0.05

#: The median is over the gradient norms of this many steps ...
_NORMS = 100
#: ... and is used once it has this many.
_ENOUGH_NORMS = 20

_WAIT = "train/loader_wait_share"
#: The sign that is about the machine's speed; all others are about the model.
_LOADER = "loader wait share"


class Health:
    """Watches one run. The leading rank calls it for each step and each row of metrics.

    Attributes:
        alarms: what is out of its bounds now: name of the sign -> warning.
    """

    def __init__(self, section: str, *, learns_temperature: bool = True) -> None:
        self.alarms: dict[str, str] = {}
        self._were_bad: set[str] = set()
        self._section, self._learns_temperature = section, learns_temperature
        self._norms: deque[float] = deque(maxlen=_NORMS)
        self._temperatures: deque[float] = deque(maxlen=STUCK_STEPS + 1)

    def step(self, step: int, *, temperature: float, gradient_norm: float) -> None:
        """Checks the values of one step."""
        low, high = TEMPERATURE
        self._judge(step, "temperature", temperature, not low <= temperature <= high, f"not in [{low:g}, {high:g}]")
        self._temperatures.append(temperature)
        if self._learns_temperature and len(self._temperatures) > STUCK_STEPS:
            lowest, highest = min(self._temperatures), max(self._temperatures)
            moved = highest / lowest - 1 if lowest > 0 else 0.0
            words = f"in {STUCK_STEPS} steps: it is stuck"
            self._judge(step, "change of the temperature", moved, moved < TEMPERATURE_MOVES, words)
        if len(self._norms) >= _ENOUGH_NORMS:
            bound = GRADIENT_NORM_JUMP * statistics.median(self._norms)
            self._judge(step, "gradient norm", gradient_norm, gradient_norm > bound, f"above {bound:.3g}")
        self._norms.append(gradient_norm)

    def row(self, step: int, row: Mapping[str, float], possible_rank: int) -> None:
        """Checks those metrics of a row that have a bound; `possible_rank` is that of the embeddings measured."""
        rank, gap, wait = (row.get(name) for name in ("val/effective_rank", "val/batch_norm_gap", _WAIT))
        if rank is not None:
            bound = 1 + MIN_EFFECTIVE_RANK_SHARE * (possible_rank - 1)
            words = f"below {bound:.3g} of {possible_rank}: the embeddings collapse"
            self._judge(step, "effective rank", rank, rank < bound, words)
        if gap is not None:
            words = f"above {MAX_BATCH_NORM_GAP:g}: batch-norm's running statistics do not fit"
            self._judge(step, "batch-norm gap", gap, gap > MAX_BATCH_NORM_GAP, words)
        if wait is not None:
            words = f"above {MAX_LOADER_WAIT_SHARE:g}: use more threads (num_threads), or images nearer to their size"
            self._judge(step, _LOADER, wait, wait > MAX_LOADER_WAIT_SHARE, words)

    def of_the_model(self) -> dict[str, float]:
        """How many signs of the model are out of their bounds, and 1 for each that is, 0 for each that was, by name.

        A machine that was busy says nothing about the model.
        """
        signs = {f"train/alarm/{sign}": float(sign in self.alarms) for sign in sorted(self._were_bad - {_LOADER})}
        return {"train/alarms": sum(signs.values()), **signs}

    def _judge(self, step: int, sign: str, value: float, bad: bool, bound: str) -> None:
        if bad and sign not in self.alarms:
            self._were_bad.add(sign)
            self.alarms[sign] = f"{sign} {value:.4g}, {bound}"
            say(f"{self._section}: warning: step {step:,}: {self.alarms[sign]}")
        elif not bad and sign in self.alarms:
            del self.alarms[sign]
            say(f"{self._section}: step {step:,}: {sign} {value:.4g} is within its bounds again")


def effective_rank(embeds_ND: Tensor) -> float:
    """The number of directions that embeddings (N, D) spread over: exp of the entropy of their covariance's spectrum.

    1 where all points are on a line or equal; at most min(N - 1, D). Roy and Vetterli (2007).
    """
    centred_ND = (embeds_ND - embeds_ND.mean(0)).double()
    num, width = centred_ND.shape
    gram = centred_ND.T @ centred_ND if width <= num else centred_ND @ centred_ND.T  # the smaller of (D, D), (N, N)
    values = torch.linalg.eigvalsh(gram).clamp(min=0)
    total = float(values.sum())
    if total <= 1e-12 * num:
        return 1.0
    shares = values / total
    shares = shares[shares > 1e-12]
    return float((-(shares * shares.log()).sum()).exp())


#: At most this many images of the split are used.
MAX_IMAGES = 500


def possible_rank(model: DualEncoder, samples: SplitSamples | None) -> int:
    """The largest effective rank that the split's embeddings can have: N images span N - 1 directions, at most D."""
    return min(samples.num_images - 1 if samples else 0, MAX_IMAGES - 1, model.config.embed_width)


#: Number of training images on which batch-norm's gap is measured.
_GAP_IMAGES = 64

RECALL_AT = (1, 5, 10)

#: Texts whose answers are kept, and images of an answer.
NUM_ASKED, NUM_FOUND = 10, 5


def validate(
    model: DualEncoder, samples: SplitSamples, tokenizer: TextTokenizer, ranks: Ranks, *, spread: bool
) -> tuple[dict[str, float], list[list[int]]]:
    """Recall@1, @5 and @10 in both directions over the first images of the split and all their texts.

    Args:
        model: as it would be exported.
        samples: the split.
        tokenizer: of the texts.
        ranks: all of them call this.
        spread: whether each rank embeds its share; otherwise each one embeds all, as sharded weights need it: there
            every forward pass is one of all ranks.

    Returns:
        The metrics; and for the first text of some images, always the same: the image, then the nearest ones. The same
        on every rank.
    """
    chosen = np.arange(min(samples.num_images, MAX_IMAGES), dtype=np.int64)
    mine = np.array_split(chosen, ranks.world_size)[ranks.rank] if spread else chosen
    texts, owners = [], []
    for sample, of in zip(mine.tolist(), samples.texts_of(mine), strict=True):
        texts += of
        owners += [sample] * len(of)
    was_training = model.training
    embedder = Embedder(model, tokenizer)
    shown = (
        embedder.embed_pixels(samples.centre_crops(mine, model.config.image_px)),
        embedder.embed_texts(texts),
        np.array(owners, dtype=np.int64),
    )
    model.train(was_training)
    images, of_texts, owner = (
        ranks.gather_rows(torch.from_numpy(rows)) if spread else torch.from_numpy(rows) for rows in shown
    )
    similarity = images.numpy() @ of_texts.numpy().T
    relevant = chosen[:, None] == owner.numpy()[None, :]
    metrics = {"val/effective_rank": effective_rank(images)}
    for name, scores, right in (
        ("image_to_text", similarity, relevant),
        ("text_to_image", similarity.T, relevant.T),
    ):
        for k in RECALL_AT:
            metrics[f"val/{name}/recall@{k}"] = recall_at(scores, right, k)
    asked = np.unique(np.linspace(0, len(chosen) - 1, NUM_ASKED).astype(np.int64))
    scores = similarity[:, relevant[asked].argmax(axis=1)]
    nearest = np.argsort(-scores, axis=0, kind="stable")[:NUM_FOUND]
    return metrics, np.vstack([asked, nearest]).T.tolist()


@torch.no_grad()
def batch_norm_gap(model: DualEncoder, samples: SplitSamples, device: torch.device) -> dict[str, float]:
    """Mean of 1 - cosine between the embeddings of training images by batch statistics and by running statistics.

    Large if the running statistics differ from those in training (the gap between train and eval mode). Empty if the
    tower is locked, which is always in eval mode.
    """
    if model.locked == "image":
        return {}
    group = model.config.batch_norm_group
    count = min(samples.num_images, max(group, _GAP_IMAGES // group * group))
    if count > group:
        count -= count % group
    chosen = np.linspace(0, samples.num_images - 1, count).astype(np.int64)
    pixels = to_pixels(np.stack([*samples.centre_crops(chosen, model.config.image_px)])).to(device)
    was_training = model.training
    by_batch = model.train().encode_image(pixels)
    by_running = model.eval().encode_image(pixels)
    model.train(was_training)
    return {"val/batch_norm_gap": float(1 - (by_batch * by_running).sum(-1).mean())}


def recall_at(similarity: NDArray[np.float32], relevant: NDArray[np.bool_], k: int) -> float:
    """Share of rows with a relevant column among the k most similar; equal scores rank irrelevant columns first."""
    best = np.where(relevant, similarity, -np.inf).max(axis=1)
    ahead = ((similarity >= best[:, None]) & ~relevant).sum(axis=1)
    return float((ahead < k).mean())
