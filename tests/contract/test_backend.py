"""One suite for every `Backend`: right logits, right mixtures, and a sequence that does not notice its neighbours."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.executor.backends.native.backend import NativeBackend
from services.executor.backends.port import BLOCK_TOKENS, AnyBackend, Batch, Chunk
from services.executor.backends.torch.model import Llama
from services.executor.models.base_model import MODULES
from services.executor.models.config import ModelConfig
from services.executor.models.weights import load_weights
from smoa.adapter import Kind
from tests.model_support import (
    CAN_RUN_NATIVE,
    FUSED,
    VARIANTS,
    delta_of,
    isolated_cache,
    load,
    logits_of,
    make_backend,
    make_model,
    random_adapter,
    reference_model,
)

TOKENS = torch.randint(0, 200, (70,), generator=torch.Generator().manual_seed(0)).tolist()


# Between them they have all that differs; test_families has each.
@pytest.fixture(scope="module", params=["llama", "qwen3", "smollm3", "gemma2", "gemma3_text"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model") / request.param, request.param)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model") / "one", "llama")


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    isolated_cache(tmp_path / "cache", monkeypatch)


@pytest.mark.parametrize("kind", ["torch", *VARIANTS])
def test_logits_equal_transformers(kind: str, folder: Path) -> None:
    with torch.inference_mode():
        theirs = reference_model(folder)(torch.tensor([TOKENS])).logits[0]
    ours = logits_of(make_backend(kind, folder), TOKENS)
    assert (ours - theirs).abs().max() < 1e-5 * theirs.abs().max()


@pytest.mark.parametrize("kind", ["torch", *VARIANTS])
def test_bfloat16_is_as_close_to_float32_as_transformers_is(kind: str, folder: Path) -> None:
    with torch.inference_mode():
        exact = reference_model(folder)(torch.tensor([TOKENS])).logits[0]
        theirs = reference_model(folder, torch.bfloat16)(torch.tensor([TOKENS])).logits[0].float()
    ours = logits_of(make_backend(kind, folder, torch.bfloat16), TOKENS)
    assert (ours - exact).abs().mean() < 1.2 * (theirs - exact).abs().mean()


@pytest.mark.parametrize("kind", ["torch", *VARIANTS])
@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    parts=st.lists(
        st.tuples(
            st.sampled_from(["lora", "lora_xs"]),
            st.integers(1, 64),
            st.sets(st.sampled_from(MODULES), min_size=1),
            st.sets(st.integers(0, 2), min_size=1),
            st.sampled_from([0.25, 1.0, 2.0]),
            st.sampled_from([-1.5, -0.3, 0.0, 0.4, 1.0]),
        ),
        min_size=1,
        max_size=5,
    )
)
def test_a_mixture_equals_the_same_deltas_merged_into_the_weights(
    kind: str,
    llama: Path,
    parts: list[tuple[Kind, int, set[str], set[int], float, float]],
) -> None:
    backend = make_backend(kind, llama)
    weights = load_weights(llama)
    weighted = []
    for seed, (of_kind, rank, modules, layers, scaling, weight) in enumerate(parts):
        adapter = random_adapter(
            backend.config,
            backend.fingerprint,
            seed=seed,
            kind=of_kind,
            rank=min(rank, 16) if of_kind == "lora_xs" else rank,
            modules=sorted(modules),
            layers=sorted(layers),
            scaling=scaling,
        )
        weighted.append((load(adapter, backend), weight))
        for path, delta in delta_of(adapter, llama, backend.config).items():
            weights[f"{path}.weight"] = (weights[f"{path}.weight"].double() + weight * delta).float()
    merged = Llama(ModelConfig.from_folder(llama), weights, "merged")
    with torch.inference_mode():
        theirs = merged.logits(merged.hidden_of_texts([TOKENS]))[0]
    ours = logits_of(backend, TOKENS, backend.mix(weighted))
    # Adapters as strong as these carry float32's rounding on: torch alone is off by 6e-5 where it sums in another order.
    assert (ours - theirs).abs().max() < 2e-4 * theirs.abs().max()
    if any(weight for *_, weight in parts):
        assert (ours - logits_of(backend, TOKENS)).abs().max() > 1e-3, "the adapters change nothing: the comparison would be empty"


def _in_a_crowd(backend: AnyBackend, rng: random.Random, texts: list[list[int]], mixtures: list[object]) -> list[torch.Tensor]:
    """Logits of every text, computed in random chunks, in random batches, in scattered blocks."""
    order = list(range(backend.blocks))
    rng.shuffle(order)
    blocks = [[order.pop() for _ in range(-(-len(text) // BLOCK_TOKENS))] for text in texts]
    done = [0] * len(texts)
    logits: list[list[torch.Tensor]] = [[] for _ in texts]
    while any(at < len(text) for at, text in zip(done, texts, strict=True)):
        alive = [i for i, text in enumerate(texts) if done[i] < len(text)]
        picked = rng.sample(alive, rng.randint(1, len(alive)))
        counts = rng.choice([[1], [1, 2, 7, 16, 30]])  # half of the steps only decode: backends have a path of their own for those
        chunks = []
        for i in picked:
            count = min(len(texts[i]) - done[i], rng.choice(counts))
            chunks.append(Chunk(texts[i][done[i] : done[i] + count], done[i], blocks[i], mixtures[i], count))
        out, greedy = backend.forward(Batch.of(chunks))
        assert greedy == out.argmax(-1).tolist()
        for i, chunk in zip(picked, chunks, strict=True):
            logits[i].append(out[: chunk.outputs].cpu().clone())
            out, done[i] = out[chunk.outputs :], done[i] + chunk.outputs
    return [torch.cat(parts) for parts in logits]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["torch", FUSED, *VARIANTS])
def test_a_sequence_does_not_notice_its_neighbours(kind: str, dtype: torch.dtype, folder: Path) -> None:
    backend = make_backend(kind, folder, dtype)
    rng = random.Random(5)
    fused = kind == "fused"  # Triton's interpreter is slow
    lengths = [1, 15, 17, 34] if fused else rng.choices([1, 15, 16, 17, 60, 90], k=8)
    texts = [[rng.randrange(200) for _ in range(length)] for length in lengths]
    mixtures = []
    for number in range(len(texts)):
        kinds: list[Kind] = ["lora", "lora_xs"]
        adapters = [
            random_adapter(
                backend.config, backend.fingerprint, seed=10 * number + i, kind=rng.choice(kinds), modules=rng.sample(MODULES, 3)
            )
            for i in range(number % 4)
        ]
        mixtures.append(backend.mix([(load(adapter, backend, dtype), rng.uniform(-1, 1)) for adapter in adapters]))
    alone = [logits_of(backend, text, mixture) for text, mixture in zip(texts, mixtures, strict=True)]
    for _ in range(1 if fused else 6):
        for ours, expected in zip(_in_a_crowd(backend, rng, texts, mixtures), alone, strict=True):
            if kind not in ("torch", "fused"):
                assert torch.equal(ours, expected)
            else:
                assert (ours - expected).abs().max() < (1e-4 if dtype is torch.float32 else 0.1) * expected.abs().max()


@pytest.mark.skipif(not CAN_RUN_NATIVE, reason="this processor has no AVX2")
def test_more_tokens_than_a_step_holds_are_refused(llama: Path) -> None:
    config = ModelConfig.from_folder(llama)
    backend = NativeBackend(config, load_weights(llama), "x", {}, dtype=torch.float32, blocks=8, context=64, threads=1, max_step_tokens=32)
    with pytest.raises(ValueError, match=r"^33 tokens are over 32 a step$"):
        logits_of(backend, TOKENS[:33])
