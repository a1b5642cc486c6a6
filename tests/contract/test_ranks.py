"""Adapters come to the device's stacks and go, and a mixture of those that are there is what it would be in fresh ones."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from services.executor.adapters.mixture import LoadedAdapter, load_adapter
from services.executor.backends.torch.backend import TorchBackend
from services.executor.backends.torch.model import Llama
from services.executor.backends.torch.ranks import RankPool
from services.executor.models.base_model import MODULES
from services.executor.models.lora_xs_bases import LoraXsBases
from smoa.adapter import Kind
from smoa.errors import FailedPrecondition, InvalidArgument
from tests.model_support import isolated_cache, logits_of, make_model, random_adapter


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Llama:
    isolated_cache(tmp_path / "cache", monkeypatch)
    return Llama.load(make_model(tmp_path / "model"), torch.float32)


def _adapters(model: Llama, count: int) -> list[LoadedAdapter]:
    rng = random.Random(1)
    kinds: list[Kind] = ["lora", "lora", "lora_xs"]
    made = [
        random_adapter(
            model.config,
            model.fingerprint,
            seed=seed,
            kind=kinds[seed % 3],
            rank=rng.randint(1, 9),
            modules=rng.sample(MODULES, rng.randint(1, 7)),
            layers=sorted(rng.sample(range(3), rng.randint(1, 3))),
        )
        for seed in range(count)
    ]
    return [load_adapter(one, model.config, model.fingerprint, 64, torch.float32) for one in made]


def _backend(model: Llama, ranks: int) -> TorchBackend:
    one = RankPool(model.config, 0, torch.float32, model.device).rank_bytes
    return TorchBackend(model, LoraXsBases(model.config.folder, model.fingerprint), blocks=8, context=64, slot_bytes=ranks * one)


def test_adapters_that_come_and_go_leave_nothing_behind(model: Llama) -> None:
    rng = random.Random(2)
    adapters = _adapters(model, 9)
    worn, tokens = _backend(model, 40), [rng.randrange(200) for _ in range(20)]
    placed: set[str] = set()
    for _ in range(60):
        number = rng.randrange(len(adapters))
        free = len(worn._pool._free)
        if str(number) in placed:
            worn.evict(str(number))
            placed.remove(str(number))
        elif adapters[number].pairs and max(len(a) for a, _ in adapters[number].pairs.values()) > free:
            with pytest.raises(FailedPrecondition, match="raise SMOA_EXECUTOR_SLOT_BYTES"):
                worn.place(str(number), adapters[number])
            continue
        else:
            worn.place(str(number), adapters[number])
            placed.add(str(number))
        worn._pool.check_integrity()
        for key in placed:
            back, placed_one = worn.read(key), adapters[int(key)]
            assert (back.layers, back.scaling, back.nbytes) == (placed_one.layers, placed_one.scaling, placed_one.nbytes)
            assert all(torch.equal(back.cores[module], stack) for module, stack in placed_one.cores.items())
            assert all(torch.equal(x, y) for site, pair in placed_one.pairs.items() for x, y in zip(back.pairs[site], pair, strict=True))
        weighted = [(key, rng.uniform(-1, 1)) for key in rng.sample(sorted(placed), min(3, len(placed)))]
        fresh = _backend(model, 40)
        for key, _ in weighted:
            fresh.place(key, adapters[int(key)])
        expected = logits_of(fresh, tokens, fresh.mix(weighted))
        torch.testing.assert_close(logits_of(worn, tokens, worn.mix(weighted)), expected)


def test_bytes_are_known_before_an_adapter_is_placed(model: Llama) -> None:
    backend = _backend(model, 40)
    for number, adapter in enumerate(_adapters(model, 6)):
        free = len(backend._pool._free)
        backend.place(str(number), adapter)
        cores = sum(stack.nbytes for stack in adapter.cores.values())
        assert backend.slot_bytes_of(adapter) == (free - len(backend._pool._free)) * backend._pool.rank_bytes + cores > 0


def test_weights_that_the_models_dtype_cannot_hold_are_refused(model: Llama) -> None:
    adapter = random_adapter(model.config, model.fingerprint, seed=1, kind="lora", rank=2, modules=["q_proj"], size=1e6)
    assert load_adapter(adapter, model.config, model.fingerprint, 64, torch.bfloat16).pairs
    with pytest.raises(InvalidArgument, match=r"^file: model\.layers\.0\.self_attn\.q_proj holds weights that torch\.float16 cannot; "):
        load_adapter(adapter, model.config, model.fingerprint, 64, torch.float16)
