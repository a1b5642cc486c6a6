"""A router over another embedder than its own, and queries whose vectors come with them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from smoa.embedding.static import StaticEmbedder
from smoa.embedding.surface import vector_of
from smoa.embedding.views import joined
from smoa.errors import FailedPrecondition
from smoa.v1 import router_pb2
from tests.contract.test_embedder import Service
from tests.integration.router_support import KNEES, MONEY, refused, running_router
from tests.kafka_support import until

STATIC = StaticEmbedder()


@pytest.fixture
def service() -> Iterator[Service]:
    made = Service()
    yield made
    made.stop()


async def test_a_vector_that_comes_with_the_query_is_as_good_as_its_text(tmp_path: Path) -> None:
    async with running_router(tmp_path) as world:
        knees = await world.register(KNEES)
        await world.register(MONEY, name="money")
        vector = STATIC.vector_of(KNEES[0])
        by_text = await world.client.route(KNEES[0], base_model="base-a")
        both = joined(vector, vector_of(KNEES[0]))
        for query, sent in ((KNEES[0], vector), ("", both), (KNEES[0], 7 * vector), (KNEES[0], np.float32(1e38) * vector)):
            decision = await world.client.route(query, base_model="base-a", vector=sent.tolist())
            assert [one.adapter_id for one in decision.adapters] == [knees.adapter_id]
            assert decision.adapters[0].score == pytest.approx(by_text.adapters[0].score, abs=1e-5)
        alone = await world.client.route("", base_model="base-a", vector=vector.tolist())
        assert alone.adapters[0].adapter_id == knees.adapter_id, "what it is about is enough"

        async def cached() -> bool:  # unless the pool's fit has come in between
            return (await world.client.route("", base_model="base-a", vector=vector.tolist())).cached

        await until("a cached answer", 10, cached)
        other = await world.client.route("", base_model="base-a", vector=STATIC.vector_of(MONEY[0]).tolist())
        assert other.adapters[0].adapter_id != knees.adapter_id, "another vector is another query"
        one = router_pb2.RouteRequest(base_model="base-a", vector=vector.tolist())
        (answer,) = (await world.client.router.RouteBatch(router_pb2.RouteBatchRequest(requests=[one]), timeout=10)).decisions
        assert answer.adapters[0].adapter_id == knees.adapter_id
        for bad, message in (
            ([1.0] * 3, "vector: has 3 numbers; send 256, or 384, or the query's text instead of a vector"),
            ([float("nan")] * 256, "vector: holds NaN or infinite numbers; make it again"),
            ([float("inf")] * 256, "vector: holds NaN or infinite numbers; make it again"),
            ([0.0] * 256, "vector: is all zeros, so it is near nothing; make it again"),
        ):
            assert (await refused(world.client.route("", base_model="base-a", vector=bad)))[:2] == ("INVALID_ARGUMENT", message)
        code, message, _ = await refused(world.client.route("", base_model="base-a"))
        assert (code, message) == ("INVALID_ARGUMENT", "query: is empty; send the text to route, or its vector")


async def test_a_library_is_of_the_embedder_that_made_it(tmp_path: Path, service: Service) -> None:
    settings = {"embedder": service.url, "embedder_model": "words", "embedder_key": "secret"}
    async with running_router(tmp_path, **settings) as world:
        knees = await world.register(KNEES)
        asked = len(service.asked)
        decision = await world.client.route(KNEES[0], base_model="base-a")
        assert [one.adapter_id for one in decision.adapters] == [knees.adapter_id]
        assert len(service.asked) == asked + 1
        service.status, service.body = 503, b"busy"
        assert (await world.client.route(KNEES[0], base_model="base-a", top_k=1)).adapters, "its vector is known"
        code, message, _ = await refused(world.client.route(KNEES[1], base_model="base-a"))
        assert (code, message.startswith(f"embedder: {service.url}/v1/embeddings answered 503 (busy)")) == ("UNAVAILABLE", True)
        code, _, _ = await refused(world.register(MONEY, name="money"))
        assert code == "UNAVAILABLE"
        decision = await world.client.route("", base_model="base-a", vector=STATIC.vector_of(KNEES[1]).tolist())
        assert decision.adapters, "who brings the vector needs no embedder"
        service.status, service.body = 200, b""
        await world.register(MONEY, name="money")
    with pytest.raises(
        FailedPrecondition, match=r"^index: its vectors are of 'words surface-2' with 384 numbers, this router has 'wordllama-l2"
    ):
        async with running_router(tmp_path):
            raise AssertionError("it must not start")
