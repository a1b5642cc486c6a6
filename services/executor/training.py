"""Train a LoRA-XS or LoRA adapter on a frozen base model, on CPU or GPU, with early stopping on a held-out split."""

from __future__ import annotations

import json
import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from services.executor.base_model import BASES_RANK, MODULES, lora_xs_bases
from services.executor.mixture import Bases, Site
from services.executor.model import Delta, Llama, module_path
from services.executor.prompt import PromptTokenizer
from smoa.adapter import SINGULAR_VALUES, Adapter, Kind, Manifest, new_adapter_id
from smoa.errors import InvalidArgument


@dataclass(frozen=True)
class Pair:
    """One training example."""

    input: str
    output: str


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """How to train. `learning_rate` 0.03 suits LoRA-XS cores; 0.002 suits LoRA pairs."""

    name: str
    kind: Kind = "lora_xs"
    rank: int = 8
    modules: tuple[str, ...] = ("q_proj", "v_proj")
    steps: int = 300
    batch_size: int = 8
    learning_rate: float = 0.03
    held_out: float = 0.1
    patience: int = 3
    evaluate_every: int = 25
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
    held_out_loss: float | None
    best_loss: float
    seconds_left: float


def read_pairs(path: Path) -> list[Pair]:
    """Read a JSONL of {"input", "output"}.

    Raises:
        InvalidArgument: a line that is not such an object (named by its number), or fewer than 10 lines.
    """
    pairs: list[Pair] = []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        try:
            raw = json.loads(line)
            pairs.append(Pair(str(raw["input"]), str(raw["output"])))
        except (ValueError, KeyError, TypeError) as error:
            raise InvalidArgument(
                "data", f"line {number} of {path} is not an object with input and output ({error})", "fix the line"
            ) from error
    if len(pairs) < 10:
        raise InvalidArgument("data", f"{path} has {len(pairs)} examples", "give at least 10")
    return pairs


class TrainableDelta:
    """The adapter in training: float32 parameters, applied in the model's dtype."""

    def __init__(self, model: Llama, settings: TrainSettings, bases: Bases, generator: torch.Generator) -> None:
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
                    weight = model.layers[layer].linears[module]
                    a = torch.randn(settings.rank, weight.shape[1], generator=generator) / math.sqrt(weight.shape[1])
                    start = (a, torch.zeros(weight.shape[0], settings.rank))
                self.parameters[site] = tuple(t.to(model.device).requires_grad_() for t in start)

    def add(self, layer: int, module: str, x: Tensor, y: Tensor) -> Tensor:
        """See `model.Delta`."""
        parameters = self.parameters.get((layer, module))
        if parameters is None:
            return y
        if len(parameters) == 1:
            left, right = self._fixed[layer, module]
            return y + ((x @ right) @ parameters[0].to(x.dtype).T) @ left.T
        return y + (x @ parameters[0].to(x.dtype).T) @ parameters[1].to(x.dtype).T

    def tensors(self, model: Llama, settings: TrainSettings) -> dict[str, np.ndarray]:
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
    model: Llama,
    folder: Path,
    tokenizer: PromptTokenizer,
    pairs: Sequence[Pair],
    settings: TrainSettings,
    report: Callable[[Progress], None],
) -> Adapter:
    """Train one adapter; the weights of the best held-out loss are kept.

    Raises:
        InvalidArgument: a module the base model does not have, or a loss that is not finite (learning rate too high).
    """
    if unknown := set(settings.modules) - set(MODULES):
        raise InvalidArgument("modules", f"{', '.join(sorted(unknown))} is not in the base model", f"use some of {', '.join(MODULES)}")
    if settings.kind == "lora_xs" and settings.rank > BASES_RANK:
        raise InvalidArgument("rank", f"{settings.rank} is over {BASES_RANK} for lora_xs", "use a lower one, or --kind lora")
    if not 0 < settings.learning_rate <= 10:
        raise InvalidArgument("learning_rate", f"{settings.learning_rate} is outside 0..10", "use 0.03 for lora_xs, 0.002 for lora")
    shuffled = list(pairs)
    random.Random(settings.seed).shuffle(shuffled)
    held_out = shuffled[: max(1, round(len(shuffled) * settings.held_out))]
    training = shuffled[len(held_out) :]
    bases = lora_xs_bases(folder, model.fingerprint) if settings.kind == "lora_xs" else {}
    delta = TrainableDelta(model, settings, bases, torch.Generator().manual_seed(settings.seed))
    flat = [t for ts in delta.parameters.values() for t in ts]
    optimizer = torch.optim.AdamW(flat, lr=settings.learning_rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, settings.steps))
    best_loss, best, stale, started = math.inf, [t.detach().clone() for t in flat], 0, time.monotonic()
    stream = _batches(training, settings)
    for step in range(1, settings.steps + 1):
        loss = completion_loss(model, tokenizer, next(stream), delta)
        if not torch.isfinite(loss):
            raise InvalidArgument("learning_rate", f"{settings.learning_rate} made the loss infinite at step {step}", "use a lower one")
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(flat, 1.0)
        optimizer.step()
        schedule.step()
        held_out_loss = None
        if step % settings.evaluate_every == 0 or step == settings.steps:
            with torch.no_grad():
                size = settings.batch_size * 2
                chunks = [held_out[i : i + size] for i in range(0, len(held_out), size)]
                held_out_loss = sum(float(completion_loss(model, tokenizer, c, delta)) * len(c) for c in chunks) / len(held_out)
            stale = 0 if held_out_loss < best_loss else stale + 1
            if held_out_loss < best_loss:
                best_loss, best = held_out_loss, [t.detach().clone() for t in flat]
        left = (time.monotonic() - started) / step * (settings.steps - step)
        report(Progress(step, settings.steps, float(loss.detach()), held_out_loss, best_loss, left))
        if stale >= settings.patience:
            break
    with torch.no_grad():
        for tensor, kept in zip(flat, best, strict=True):
            tensor.copy_(kept)
    manifest = Manifest(
        adapter_id=new_adapter_id(),
        name=settings.name,
        kind=settings.kind,
        base_model=model.fingerprint,
        rank=settings.rank,
        modules=settings.modules,
        layers=tuple(range(model.config.layers)),
        tenant=settings.tenant,
        tags=settings.tags,
        specialization=settings.specialization,
    )
    return Adapter(manifest, delta.tensors(model, settings))


def _rate(step: int, steps: int) -> float:
    """Linear warm-up over 5% of the steps, then cosine to a tenth."""
    warm = max(1, steps // 20)
    return (step + 1) / warm if step < warm else 0.1 + 0.45 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


def _batches(pairs: Sequence[Pair], settings: TrainSettings) -> Iterator[list[Pair]]:
    order, rng = list(pairs), random.Random(settings.seed + 1)
    while True:
        rng.shuffle(order)
        for start in range(0, max(1, len(order) - settings.batch_size + 1), settings.batch_size):
            yield order[start : start + settings.batch_size]


def completion_loss(model: Llama, tokenizer: PromptTokenizer, batch: Sequence[Pair], delta: Delta | None) -> Tensor:
    """Mean cross-entropy over the tokens of the outputs (and their end), scalar float32."""
    prompts = [tokenizer.prompt_ids(pair.input) for pair in batch]
    targets = [tokenizer.completion_ids(pair.output) for pair in batch]
    length = max(len(p) + len(t) for p, t in zip(prompts, targets, strict=True)) - 1
    tokens = torch.zeros(len(batch), length, dtype=torch.long)
    where: list[tuple[int, int]] = []
    wanted: list[int] = []
    for row, (prompt, target) in enumerate(zip(prompts, targets, strict=True)):
        ids = (prompt + target)[:-1]
        tokens[row, : len(ids)] = torch.tensor(ids)
        where += [(row, len(prompt) - 1 + i) for i in range(len(target))]
        wanted += target
    positions = torch.arange(length).expand(len(batch), length).to(model.device)
    hidden = model.hidden(tokens.to(model.device), positions, delta)
    rows, columns = zip(*where, strict=True)
    return F.cross_entropy(model.logits(hidden[list(rows), list(columns)]), torch.tensor(wanted, device=model.device))
