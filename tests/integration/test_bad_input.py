"""Every kind of bad input to the router, over a real socket, with its exact error."""

from __future__ import annotations

import os
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
from google.rpc import error_details_pb2
from ulid import ULID

from smoa.adapter import new_adapter_id
from smoa.errors import ResourceExhausted
from smoa.store import AdapterStore
from smoa.v1 import feedback_pb2, registry_pb2
from tests.integration.router_support import KNEES, RouterWorld, adapter_file, refused, running_router


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[RouterWorld]:
    async with running_router(tmp_path) as made:
        await made.register(KNEES)
        yield made


@pytest.mark.parametrize(
    ("changes", "code", "message"),
    [
        ({"query": " "}, "INVALID_ARGUMENT", "query: is empty; send the text to route, or its vector"),
        ({"query": "x" * 8193}, "INVALID_ARGUMENT", "query: has 8,193 characters, over 8,192; send its first part"),
        ({"query": "x" * 1_000_000}, "INVALID_ARGUMENT", "query: has 1,000,000 characters, over 8,192; send its first part"),
        ({"strategy": 99}, "INVALID_ARGUMENT", "strategy: 99 is unknown; use a RoutingStrategy of smoa.v1"),
        (
            {"score_threshold": float("nan")},
            "INVALID_ARGUMENT",
            "score_threshold: nan is outside -1..1; leave it out for the default",
        ),
        ({"top_k": 0}, "INVALID_ARGUMENT", "top_k: 0 is outside 1..16; ask for a few adapters, 3 by default"),
        ({"top_k": 1000}, "INVALID_ARGUMENT", "top_k: 1000 is outside 1..16; ask for a few adapters, 3 by default"),
        (
            {"base_model": ""},
            "UNAVAILABLE",
            "base_model: is empty, and no executor has told of itself; start one, wait until it is ready, or name a base model",
        ),
        (
            {"base_model": "b" * 3_000_000},
            "INVALID_ARGUMENT",
            "base_model: has 3,000,000 characters; send the fingerprint that the executor's GetStatus shows",
        ),
        ({"tenant": "acme"}, "NOT_FOUND", "tenant 'acme' was not found; register an adapter for it first, or check the name"),
        ({"tenant": "A/B"}, "INVALID_ARGUMENT", "tenant: 'A/B' is not a valid name; use 1 to 63 of a-z, 0-9, '.', '_' and '-'"),
        (
            {"strategy": 2},
            "INVALID_ARGUMENT",
            "tags: are empty and so are specialization and task_id; give the task strategy at least one hint",
        ),
    ],
)
async def test_route(world: RouterWorld, changes: dict[str, object], code: str, message: str) -> None:
    arguments = {"query": "my knee hurts", "base_model": "base-a", **changes}
    found = await refused(world.client.route(**arguments))  # type: ignore[arg-type]
    assert found[:2] == (code, message)
    if code == "INVALID_ARGUMENT":
        detail = error_details_pb2.BadRequest()
        assert found[2].details[0].Unpack(detail)
        assert detail.field_violations[0].field == message.partition(":")[0]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data[: len(data) // 2], "file: is not a whole safetensors file ("),
        (lambda data: b"garbage" * 20, "file: is not a whole safetensors file ("),
        (lambda data: data[:-1] + bytes([data[-1] ^ 1]), "file: weights do not match the manifest's weights_sha256; "),
        (
            lambda data: data.replace(np.float32(0.5).tobytes(), np.float32("nan").tobytes()),
            "file: q_proj holds NaN or infinite weights; retrain with a lower learning rate",
        ),
    ],
    ids=["truncated", "corrupt", "altered", "nan"],
)
async def test_adapter_file(world: RouterWorld, damage, message: str) -> None:  # type: ignore[no-untyped-def]
    digest = await world.put_raw(damage(adapter_file()))
    code, details, _ = await refused(world.client.register(digest, KNEES))
    assert (code, details[: len(message)]) == ("INVALID_ARGUMENT", message)


async def test_a_file_over_the_limit_is_not_read(tmp_path: Path) -> None:
    async with running_router(tmp_path, max_adapter_bytes=1000) as world:
        code, details, _ = await refused(world.client.register(await world.store.put(adapter_file() + bytes(1000)), KNEES))
    assert code == "INVALID_ARGUMENT"
    assert details.endswith(" is over the 1,000 byte limit; push a smaller adapter, or raise SMOA_ROUTER_MAX_ADAPTER_BYTES")


async def test_wrong_digest(world: RouterWorld) -> None:
    good = adapter_file()
    digest = await world.store.put(good)
    (Path(world.store.location) / world.store.key(digest)).write_bytes(adapter_file(0.7))
    code, details, _ = await refused(world.client.register(digest, KNEES))
    assert code == "INVALID_ARGUMENT"
    assert details.startswith(f"digest: stored content of {digest[:12]} has sha256 ")
    code, details, _ = await refused(world.client.register("f" * 64, KNEES))
    assert (code, details) == ("NOT_FOUND", f"adapter file '{'f' * 64}' was not found; push it again with `smoa adapter push`")


async def test_duplicate_id_with_other_content(world: RouterWorld) -> None:
    name = new_adapter_id()
    first, second = (adapter_file(value, adapter_id=name, name="twice") for value in (0.5, 0.9))
    made = await world.client.register(await world.store.put(first), KNEES)
    assert await world.client.register(await world.store.put(first), KNEES) == made
    code, details, _ = await refused(world.client.register(await world.store.put(second), KNEES))
    assert (code, details) == ("ALREADY_EXISTS", f"adapter_id: {name} is taken by other content; train or import again to get a new id")


async def test_other_tenants_adapter_is_not_found(world: RouterWorld) -> None:
    made = await world.client.register(await world.store.put(adapter_file(tenant="acme")), KNEES, "acme")
    code, details, _ = await refused(world.client.retire("public", made.adapter_id, "no"))
    assert (code, details) == ("NOT_FOUND", f"adapter '{made.adapter_id}' was not found; list what exists and check the tenant")
    decision = await world.client.route(KNEES[0], base_model="base-a")
    assert made.adapter_id not in {adapter.adapter_id for adapter in decision.adapters}


async def test_hints_that_match_nothing(world: RouterWorld) -> None:
    made = await world.client.register(await world.store.put(adapter_file(name="hinted")), KNEES)
    by_task = await world.client.route(KNEES[0], base_model="base-a", strategy="ROUTING_STRATEGY_TASK", tags=["no such tag"])
    assert not by_task.adapters
    assert by_task.confidence == 0
    by_both = await world.client.route(KNEES[0], base_model="base-a", tags=["no such tag"])
    assert made.adapter_id in {one.adapter_id for one in by_both.adapters}
    assert not (await world.client.route(KNEES[0], base_model="another base")).adapters


async def test_too_few_examples(world: RouterWorld) -> None:
    code, details, _ = await refused(world.client.register(await world.store.put(adapter_file()), KNEES[:4]))
    assert (code, details) == ("INVALID_ARGUMENT", "examples: holds 4 distinct inputs; give 5 to 50")


async def test_a_full_disk_under_the_store(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = (
        os.geteuid() == 0 and subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(disk)], check=False).returncode == 0
    )
    if not mounted:
        pytest.skip("a small file system cannot be mounted here (not root)")
    try:
        store = AdapterStore(str(disk))
        kept = await store.put(b"x" * 1000)
        with pytest.raises(ResourceExhausted) as caught:
            await store.put(os.urandom(100_000))
        assert str(caught.value) == f"store: {disk} is full; free space or purge retired adapters, then push again"
        assert await store.get(kept) == b"x" * 1000
    finally:
        subprocess.run(["umount", str(disk)], check=True)


async def test_an_example_that_is_too_long(world: RouterWorld) -> None:
    outcome = feedback_pb2.Outcome(decision_id=str(ULID()), success=False, input="in", corrected_output="x" * 8193)
    found = await refused(world.client.feedback.ReportOutcome(feedback_pb2.ReportOutcomeRequest(outcome=outcome), timeout=5))
    assert found[:2] == (
        "INVALID_ARGUMENT",
        "outcome.corrected_output: has 8,193 characters; give at most 8,192, or leave the texts out",
    )


async def test_a_right_adapter_that_can_be_none(world: RouterWorld) -> None:
    outcome = feedback_pb2.Outcome(decision_id=str(ULID()), right_adapter_id="med_knees")
    found = await refused(world.client.feedback.ReportOutcome(feedback_pb2.ReportOutcomeRequest(outcome=outcome), timeout=5))
    assert found[:2] == (
        "INVALID_ARGUMENT",
        "outcome.right_adapter_id: 'med_knees' is not a ULID; send the id of a registered adapter, or leave it out",
    )


@pytest.mark.parametrize("decision_id", ["", "no", "x" * 2_000_000])
async def test_an_outcome_of_no_decision(world: RouterWorld, decision_id: str) -> None:
    """Were a long one accepted, Kafka would refuse it for ever, and every event behind it would wait."""
    outcome = feedback_pb2.Outcome(decision_id=decision_id, success=True)
    found = await refused(world.client.feedback.ReportOutcome(feedback_pb2.ReportOutcomeRequest(outcome=outcome), timeout=5))
    said = f"{decision_id!r} is not a ULID; send the id that Route returned"
    if len(decision_id) > 64:
        said = "has 2,000,000 characters; must be at most 64 characters"
    assert found[:2] == ("INVALID_ARGUMENT", f"outcome.decision_id: {said}")


async def test_a_reason_no_event_could_carry(world: RouterWorld) -> None:
    [made] = [one async for one in world.client.list_all()]
    request = registry_pb2.RetireAdapterRequest(adapter_id=made.adapter_id, reason="x" * 2001)
    found = await refused(world.client.registry.RetireAdapter(request, timeout=5))
    assert found[:2] == ("INVALID_ARGUMENT", "reason: has 2,001 characters; must be at most 2000 characters")


async def test_labels_that_are_too_long(world: RouterWorld) -> None:
    [made] = [one async for one in world.client.list_all()]
    request = registry_pb2.UpdateAdapterRequest(adapter_id=made.adapter_id, replace_tags=True, tags=["t"] * 65)
    found = await refused(world.client.registry.UpdateAdapter(request, timeout=5))
    assert found[:2] == ("INVALID_ARGUMENT", "tags: holds 65; send at most 64")
