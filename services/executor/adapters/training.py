"""Train a LoRA-XS or LoRA adapter on a frozen base model, on CPU or GPU, with early stopping on a held-out split."""

from __future__ import annotations

import math
import random
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from services.executor.adapters.early_stopping import Evaluation, best_of, is_flat
from services.executor.adapters.mixture import Bases, Delta, Site
from services.executor.adapters.training_data import Pair, TokenPair, split_held_out, tokenized
from services.executor.models.base_model import BASES_RANK, MODULES
from services.executor.models.config import ModelConfig, module_path
from services.executor.models.linear import Linear
from services.executor.models.lora_xs_bases import LoraXsBases
from services.executor.models.prompt import PromptTokenizer
from smoa.adapter import SINGULAR_VALUES, Adapter, Kind, Manifest, new_adapter_id
from smoa.errors import InvalidArgument
from smoa.model_shape import folder_name


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """How to train. `learning_rate` 0.03 suits LoRA-XS cores; 0.002 suits LoRA pairs."""

    name: str
    kind: Kind = "lora_xs"
    rank: int = 8
    modules: tuple[str, ...] = ("q_proj", "v_proj")
    steps: int = 300
    """At most."""
    batch_size: int = 8
    learning_rate: float = 0.03
    evaluate_every: int = 10
    patience: int = 3
    """Training ends when so many evaluations together lowered the held-out loss by no more than `min_gain`. 0: it takes all its steps."""
    min_gain: float = 0.02
    seed: int = 0
    tenant: str = "public"
    tags: tuple[str, ...] = ()
    specialization: str = "task"


@dataclass(frozen=True)
class Progress:
    """Where training stands after a step."""

    step: int
    steps: int
    train_loss: float
    evaluations: Sequence[Evaluation]
    """All so far; the first is of step 0, the base model alone."""
    seconds_left: float
    """Until all steps are taken, at the speed of the last ones."""


@dataclass(frozen=True)
class Trained:
    """An adapter, and how its training went."""

    adapter: Adapter
    steps: int
    evaluations: Sequence[Evaluation]
    flat: bool
    """It ended because the held-out loss was flat."""
    training_pairs: int
    held_out_pairs: int

    @property
    def kept(self) -> Evaluation:
        """The evaluation whose weights the adapter has."""
        return best_of(self.evaluations[1:])


class TrainedModel(Protocol):
    """What training needs of a base model: a forward pass that torch differentiates."""

    config: ModelConfig
    fingerprint: str

    @property
    def dtype(self) -> torch.dtype:
        """Compute dtype."""

    @property
    def device(self) -> torch.device:
        """Where the weights are."""

    def hidden_of_texts(self, texts: Sequence[Sequence[int]], delta: Delta | None = None) -> Tensor:
        """Final normed hidden states [texts, longest, hidden] of whole texts."""

    def logits(self, hidden: Tensor) -> Tensor:
        """Next-token logits [..., vocabulary] float32."""


class TrainableDelta:
    """The adapter in training: float32 parameters, applied in the model's dtype."""

    def __init__(self, model: TrainedModel, settings: TrainSettings, bases: Bases, generator: torch.Generator) -> None:
        self.parameters: dict[Site, tuple[Tensor, ...]] = {}
        self._fixed: dict[Site, tuple[Tensor, Tensor]] = {}
        for layer in range(model.config.layers):
            for module in settings.modules:
                site = (layer, module)
                if settings.kind == "lora_xs":
                    left, right = (basis[:, : settings.rank].contiguous() for basis in bases[module_path(*site)])
                    self._fixed[site] = (left.to(model.device, model.dtype), right.to(model.device, model.dtype))
                    start: tuple[Tensor, ...] = (torch.zeros(settings.rank, settings.rank),)
                else:
                    outputs, inputs = model.config.shape(module)
                    a = torch.randn(settings.rank, inputs, generator=generator) / math.sqrt(inputs)
                    start = (a, torch.zeros(outputs, settings.rank))
                self.parameters[site] = tuple(t.to(model.device).requires_grad_() for t in start)

    def apply(self, layer: int, linear: Linear, x: Tensor) -> Sequence[Tensor]:
        """See `Delta`."""
        parts = linear.parts(linear(x))
        return [self._added((layer, module), x, y) for module, y in zip(linear.modules, parts, strict=True)]

    def _added(self, site: Site, x: Tensor, y: Tensor) -> Tensor:
        parameters = self.parameters.get(site)
        if parameters is None:
            return y
        if len(parameters) == 1:
            left, right = self._fixed[site]
            return y + ((x @ right) @ parameters[0].to(x.dtype).T) @ left.T
        return y + (x @ parameters[0].to(x.dtype).T) @ parameters[1].to(x.dtype).T

    def tensors(self, model: TrainedModel, settings: TrainSettings) -> dict[str, np.ndarray]:
        """The adapter file's tensors, float16."""
        with torch.no_grad():
            if settings.kind == "lora_xs":
                named: dict[str, np.ndarray] = {}
                for module in settings.modules:
                    sites = [(layer, module) for layer in range(model.config.layers)]
                    named[module] = torch.stack([self.parameters[site][0] for site in sites]).cpu().half().numpy()
                    values = torch.stack([self._fixed[site][0].float().norm(dim=0) for site in sites])
                    named[module + SINGULAR_VALUES] = values.cpu().half().numpy()
                return named
            named = {}
            for site, (a, b) in self.parameters.items():
                named[f"{module_path(*site)}.lora_A"], named[f"{module_path(*site)}.lora_B"] = (
                    a.cpu().half().numpy(),
                    b.cpu().half().numpy(),
                )
            return named


def train(
    model: TrainedModel,
    folder: Path,
    tokenizer: PromptTokenizer,
    pairs: Sequence[Pair],
    settings: TrainSettings,
    report: Callable[[Progress], None],
) -> Trained:
    """Train one adapter until the held-out loss is flat (see `TrainSettings.patience`); the weights of the least held-out loss are kept.

    Raises:
        InvalidArgument: a module the base model does not have, a pair whose turns its chat template does not take, or a loss that is not
            finite (learning rate too high).
    """
    if unknown := set(settings.modules) - set(MODULES):
        raise InvalidArgument("modules", f"{', '.join(sorted(unknown))} is not in the base model", f"use some of {', '.join(MODULES)}")
    if settings.kind == "lora_xs" and settings.rank > BASES_RANK:
        raise InvalidArgument("rank", f"{settings.rank} is over {BASES_RANK} for lora_xs", "use a lower one, or --kind lora")
    if not 0 < settings.learning_rate <= 10:
        raise InvalidArgument("learning_rate", f"{settings.learning_rate} is outside 0..10", "use 0.03 for lora_xs, 0.002 for lora")
    training, held_out = split_held_out(tokenized(tokenizer, pairs, model.config.context, model.config.vocabulary), settings.seed)
    bases: Bases = LoraXsBases(folder, model.fingerprint) if settings.kind == "lora_xs" else {}
    delta = TrainableDelta(model, settings, bases, torch.Generator().manual_seed(settings.seed))
    weights = [t for ts in delta.parameters.values() for t in ts]
    optimizer = torch.optim.AdamW(weights, lr=settings.learning_rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, settings.steps))
    stream = _batches(training, settings)
    evaluations = [Evaluation(0, held_out_loss(model, held_out, settings.batch_size * 2, delta))]
    best, flat = [t.detach().clone() for t in weights], False
    durations: deque[float] = deque(maxlen=settings.evaluate_every * 2)
    for step in range(1, settings.steps + 1):
        started = time.monotonic()
        loss = completion_loss(model, next(stream), delta)
        if not torch.isfinite(loss):
            raise InvalidArgument("learning_rate", f"{settings.learning_rate} made the loss infinite at step {step}", "use a lower one")
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        schedule.step()
        if step % settings.evaluate_every == 0 or step == settings.steps:
            evaluations.append(Evaluation(step, held_out_loss(model, held_out, settings.batch_size * 2, delta)))
            if best_of(evaluations[1:]).step == step:
                best = [t.detach().clone() for t in weights]
            flat = is_flat(evaluations, settings.patience, settings.min_gain)
        durations.append(time.monotonic() - started)
        left = sum(durations) / len(durations) * (settings.steps - step)
        report(Progress(step, settings.steps, float(loss.detach()), tuple(evaluations), left))
        if flat:
            break
    with torch.no_grad():
        for tensor, kept in zip(weights, best, strict=True):
            tensor.copy_(kept)
    manifest = Manifest(
        adapter_id=new_adapter_id(),
        name=settings.name,
        kind=settings.kind,
        base_model=model.fingerprint,
        base_model_name=folder_name(folder),
        rank=settings.rank,
        modules=settings.modules,
        layers=tuple(range(model.config.layers)),
        tenant=settings.tenant,
        tags=settings.tags,
        specialization=settings.specialization,
    )
    adapter = Adapter(manifest, delta.tensors(model, settings))
    return Trained(adapter, step, evaluations, flat, len(training), len(held_out))


def _rate(step: int, steps: int) -> float:
    """Linear warm-up over 5% of the steps, then cosine to a tenth."""
    warm = max(1, steps // 20)
    return (step + 1) / warm if step < warm else 0.1 + 0.45 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


def _batches(pairs: Sequence[TokenPair], settings: TrainSettings) -> Iterator[list[TokenPair]]:
    order, rng = list(pairs), random.Random(settings.seed + 1)
    while True:
        rng.shuffle(order)
        for start in range(0, max(1, len(order) - settings.batch_size + 1), settings.batch_size):
            yield order[start : start + settings.batch_size]


def completion_loss(model: TrainedModel, batch: Sequence[TokenPair], delta: Delta | None) -> Tensor:
    """Mean cross-entropy over the tokens of the answers (and their end), scalar float32."""
    hidden = model.hidden_of_texts([(pair.prompt + pair.answer)[:-1] for pair in batch], delta)
    answers = [hidden[row, len(pair.prompt) - 1 :][: len(pair.answer)] for row, pair in enumerate(batch)]
    wanted = torch.tensor([token for pair in batch for token in pair.answer], device=model.device)
    return F.cross_entropy(model.logits(torch.cat(answers)), wanted)


@torch.no_grad()
def held_out_loss(model: TrainedModel, pairs: Sequence[TokenPair], batch_size: int, delta: Delta | None) -> float:
    """Mean over batches of `completion_loss`, each weighted by its pairs."""
    batches = [pairs[start : start + batch_size] for start in range(0, len(pairs), batch_size)]
    return sum(float(completion_loss(model, batch, delta)) * len(batch) for batch in batches) / len(pairs)
