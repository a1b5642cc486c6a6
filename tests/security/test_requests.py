"""What a tenant may send under its own name, and is refused: by its field, with nothing done, and with everybody else answered."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from typing import Any, Final

import pytest

from services.router.lifecycle_consumer import RANKER_ID
from smoa.adapter import new_adapter_id
from smoa.client import SmoaClient
from smoa.v1 import common_pb2 as common
from smoa.v1 import executor_pb2, feedback_pb2, registry_pb2, router_pb2
from tests.integration.router_support import KNEES
from tests.security.test_files import FILES, file_of
from tests.security.world import World, resident_bytes, status_of

pytestmark = pytest.mark.asyncio(loop_scope="session")
PARALLEL: Final = common.COMPOSITION_STRATEGY_PARALLEL
ULID: Final = "01J9ZC3B5T8QH7M2K4N6P0R1SV"
DENIED: Final = {
    "tenant: a tenant with a slash",
    "all_tenants: everybody's adapters",
    "ReportStatistics: counts of its own making",
    "shared: shared without the right to publish",
}
"""Those that are another's to ask."""
Send = Callable[[SmoaClient, World], Awaitable[Any]]


def _route(**fields: Any) -> Send:
    given = {"tenant": "mallory", "query": "x", **fields}
    return lambda client, world: client.router.Route(router_pb2.RouteRequest(**{"base_model": world.base_model, **given}), timeout=10)


def _generate(**fields: Any) -> Send:
    return lambda client, _: _all(client.executor.Generate(executor_pb2.GenerateRequest(**{"tenant": "mallory", "prompt": "x", **fields})))


def _report(**fields: Any) -> Send:
    outcome = feedback_pb2.Outcome(**{"tenant": "mallory", "decision_id": ULID, **fields})
    return lambda client, _: client.feedback.ReportOutcome(feedback_pb2.ReportOutcomeRequest(outcome=outcome), timeout=10)


def _chosen(**fields: Any) -> Send:
    return _generate(adapters=[common.WeightedAdapter(**{"adapter_id": ULID, "digest": "0" * 64, "weight": 1.0, **fields})])


def _call(method: str, request: Any) -> Send:
    return lambda client, _: getattr(client.registry, method)(request, timeout=10)


def _register(**fields: Any) -> Send:
    return _call("RegisterAdapter", registry_pb2.RegisterAdapterRequest(**{"tenant": "mallory", "digest": "0" * 64, **fields}))


def _list(**fields: Any) -> Send:
    return _call("ListAdapters", registry_pb2.ListAdaptersRequest(tenant="mallory", **fields))


def _get(adapter_id: str) -> Send:
    return _call("GetAdapter", registry_pb2.GetAdapterRequest(tenant="mallory", adapter_id=adapter_id))


def _import(adapter: dict[str, Any], **fields: Any) -> Send:
    def send(client: SmoaClient, world: World) -> Awaitable[Any]:
        given: dict[str, Any] = {"version": 1, "digest": "0" * 64, "name": "n", "kind": common.ADAPTER_KIND_LORA_XS, "rank": 4}
        given |= {"modules": ["q_proj"], "file_bytes": 1, "parameter_count": 16, "specialization": common.SPECIALIZATION_GENERAL}
        made = registry_pb2.Adapter(**{**given, "base_model": world.base_model, "adapter_id": new_adapter_id(), **adapter})
        one = registry_pb2.ImportedAdapter(adapter=made, **{"examples": KNEES, **fields})
        request = registry_pb2.ImportAdaptersRequest(tenant="mallory", adapters=[one])
        return _all(client.registry.ImportAdapters(iter([request]), timeout=10))

    return send


async def _all(stream: Any) -> list[Any]:
    return [one async for one in stream]


def _nested(depth: int) -> registry_pb2.CompositionNode:
    node = registry_pb2.CompositionNode(strategy=PARALLEL, children=[registry_pb2.CompositionChild(adapter_id=ULID)])
    for _ in range(depth):
        node = registry_pb2.CompositionNode(strategy=PARALLEL, children=[registry_pb2.CompositionChild(node=node)])
    return node


def _named(name: str) -> Send:
    def send(client: SmoaClient, world: World) -> Awaitable[Any]:
        children = [registry_pb2.CompositionChild(adapter_id=world.first["mallory"])]
        return client.compose(name, registry_pb2.CompositionNode(strategy=PARALLEL, children=children), tenant="mallory")

    return send


def _compose(root: registry_pb2.CompositionNode, name: str = "c") -> Send:
    return _call("CreateComposition", registry_pb2.CreateCompositionRequest(tenant="mallory", name=name, root=root))


_EVIDENCE: Final = {f"key{number}": 1.0 for number in range(40_000)}
REQUESTS: Final[dict[str, Send]] = {  # by the field that is refused, and why
    "task_id: a task of 600,000 characters": _route(task_id="x" * 600_000),
    "task_id: a task of 600,000 characters, of a composition": _route(composition="c", task_id="x" * 600_000),
    "query: a query of 100,000 characters": _route(query="x" * 100_000),
    "query: no query": _route(query=""),
    "tags[0]: a tag of 300 characters": _route(query="x", tags=["x" * 300]),
    "tags: many tags": _route(tags=["x"] * 1000),
    "top_k: more adapters than there may be": _route(top_k=2**31 - 1),
    "top_k: fewer than none": _route(top_k=-1),
    "score_threshold: a threshold that is no number": _route(score_threshold=math.nan),
    "vector: a vector of no numbers": _route(vector=[math.nan] * 256),
    "vector: a vector of infinite numbers": _route(vector=[math.inf] * 256),
    "vector: a vector that is too long": _route(vector=[1.0] * 100_000),
    "vector: a vector of another embedder": _route(vector=[1.0] * 3),
    "turns: turns without end": _route(turns=["x"] * 5000),
    "turns[0]: turns that are too long": _route(turns=["x" * 100_000]),
    "session: a session of 100,000 characters": _route(session="x" * 100_000),
    "user: a user of 100,000 characters": _route(user="x" * 100_000),
    "strategy: a strategy that is none": _route(strategy=99),
    "tenant: a tenant with a slash": _route(tenant="mallory/x"),
    "requests: a batch of a thousand": lambda client, world: client.router.RouteBatch(
        router_pb2.RouteBatchRequest(requests=[router_pb2.RouteRequest(tenant="mallory", query="x")] * 1000), timeout=10
    ),
    "requests: a batch of nothing": lambda client, _: client.router.RouteBatch(router_pb2.RouteBatchRequest(), timeout=10),
    "prompt: no prompt": _generate(prompt=""),
    "prompt: a prompt of a million characters": _generate(prompt="x " * 500_000),
    "max_tokens: more tokens than there may be": _generate(max_tokens=2**31 - 1),
    "max_tokens: fewer tokens than none": _generate(max_tokens=-5),
    "temperature: a temperature that is no number": _generate(temperature=math.nan),
    "temperature: a temperature of infinity": _generate(temperature=math.inf),
    "adapters[0].weight: a weight that is no number": _generate(
        adapters=[common.WeightedAdapter(adapter_id=ULID, digest="0" * 64, weight=math.nan)]
    ),
    "adapters.weight: a weight of a million": _chosen(weight=1e6),
    "adapters: adapters without end": _generate(adapters=[common.WeightedAdapter(adapter_id=ULID, weight=1.0)] * 1000),
    "digest: a digest that is a path": _generate(
        adapters=[common.WeightedAdapter(adapter_id=ULID, digest="../../../etc/passwd", weight=1.0)]
    ),
    "stages: stages without end": _generate(stages=[common.Stage()] * 1000),
    "stop: stops without end": _generate(stop=["x"] * 1000),
    "logit_bias: a bias on every number": _generate(logit_bias=dict.fromkeys(range(20000), 1.0)),
    "logit_bias: a bias that is no number": _generate(logit_bias={1: math.nan}),
    "logit_bias: a bias on a token that is none": _generate(logit_bias={2**31 - 1: 1.0}),
    "n: answers without end": _generate(n=1_000_000),
    "logprobs: log-probabilities of everything": _generate(logprobs=1_000_000),
    "messages: a turn of nobody": _generate(prompt="", messages=[executor_pb2.Message(role="root", content="x")]),
    "messages: turns to answer without end": _generate(prompt="", messages=[executor_pb2.Message(role="user", content="x")] * 5000),
    "outcome.decision_id: an outcome of no decision": _report(decision_id=""),
    "outcome.decision_id: an outcome of a decision of 100,000 characters": _report(decision_id="x" * 100_000),
    "outcome.score: a score that is no number": _report(score=math.nan),
    "outcome.input: an input of a million characters": _report(input="x" * 1_000_000),
    "outcome.right_adapter_id: a right adapter of 100,000 characters": _report(right_adapter_id="x" * 100_000),
    "digest: a digest of anything": _register(digest="../x", examples=KNEES),
    "examples: examples without end": _register(examples=["x"] * 5000),
    "examples: an example of a million characters": _call(
        "RegisterAdapter",
        registry_pb2.RegisterAdapterRequest(tenant="mallory", digest="0" * 64, examples=[f"{number}" * 400_000 for number in range(5)]),
    ),
    "adapter_id: an adapter with a slash": _call(
        "GetAdapter", registry_pb2.GetAdapterRequest(tenant="mallory", adapter_id=f"examples/{ULID}/acme")
    ),
    "page_size: a page of a million": _list(page_size=1_000_000),
    "page_token: a page of a stranger's making": _call(
        "ListAdapters", registry_pb2.ListAdaptersRequest(tenant="mallory", page_token="[" * 4000)
    ),
    "all_tenants: everybody's adapters": _list(all_tenants=True),
    "ReportStatistics: counts of its own making": _call(
        "ReportStatistics",
        registry_pb2.ReportStatisticsRequest(
            reports=[registry_pb2.ReportedStatistics(tenant="mallory", adapter_id=ULID, statistics=registry_pb2.AdapterStatistics(uses=1))]
        ),
    ),
    "evidence: evidence without end": _call(
        "RetireAdapter", registry_pb2.RetireAdapterRequest(tenant="mallory", adapter_id=ULID, evidence=_EVIDENCE)
    ),
    "reason: a reason of 100,000 characters": _call(
        "RetireAdapter", registry_pb2.RetireAdapterRequest(tenant="mallory", adapter_id=ULID, reason="x" * 100_000)
    ),
    "adapters[0].name: a name with an escape": _import({"name": "\x1b]0;owned\x07"}),
    "adapters[0].name: a name with markup of two lines": _import({"name": "[/x]\n[red]"}),
    "adapters[0].name: a name of right to left": _import({"name": "\u202egnp"}),
    "adapters[0].adapter_id: the id of the ranker": _import({"adapter_id": "ranker"}),
    "adapters[0].adapter_id: an id that is a key of another kind": _import({"adapter_id": f"examples/{ULID}/acme"}),
    "adapters[0].vector: an imported vector of no numbers": _import({}, vector=[math.nan] * 256),
    "adapters[0].rank: a rank of two billion": _import({"rank": 2**31 - 1}),
    "adapters[0].modules: modules without end": _import({"modules": [f"m{number}" for number in range(5000)]}),
    "adapters[0].tags: tags without end": _import({"tags": ["x"] * 5000}),
    "adapters[0].file_bytes: a size below nothing": _import({"file_bytes": -1}),
    "shared: shared without the right to publish": _import({"shared": True}),
    "root: a tree of a hundred floors": _compose(_nested(40)),
    "root: a tree of nothing": _compose(registry_pb2.CompositionNode(strategy=PARALLEL)),
    "root.children[0].weight: a tree of no numbers": _compose(
        registry_pb2.CompositionNode(strategy=PARALLEL, children=[registry_pb2.CompositionChild(adapter_id=ULID, weight=math.nan)] * 2)
    ),
    "root: a tree of ten thousand": _compose(
        registry_pb2.CompositionNode(strategy=PARALLEL, children=[registry_pb2.CompositionChild(adapter_id=ULID)] * 10_000)
    ),
    "name: a composition with an escape": _named("\x1b[31m"),
}


@pytest.mark.parametrize("what", REQUESTS)
async def test_a_request_of_anything_is_refused_by_its_field(world: World, what: str) -> None:
    async with world.client("mallory") as client:
        code, said = await status_of(REQUESTS[what](client, world))
        assert code == ("PERMISSION_DENIED" if what in DENIED else "INVALID_ARGUMENT"), said
        assert said.partition(": ")[0] == what.partition(": ")[0], said
        assert len(said) < 1_600, said
        assert said.isprintable()


@pytest.mark.parametrize("data", FILES.values(), ids=FILES.keys())
async def test_a_file_of_anything_is_refused_when_it_is_registered(world: World, data: bytes) -> None:
    async with world.client("mallory") as client:
        code, said = await status_of(client.register(await world.put(data), KNEES, "mallory"))
    assert code == "INVALID_ARGUMENT", (code, said)
    assert said.startswith(("file", "manifest")), said


async def test_a_header_of_hundreds_of_thousands_of_tensors_costs_no_service_memory(world: World) -> None:
    empty = '"dtype":"F32","shape":[0],"data_offsets":[0,0]'
    data = file_of(("{" + ",".join(f'"{number}":{{{empty}}}' for number in range(900_000)) + "}").encode())
    before = {name: resident_bytes(pid) for name, pid in world.started.items()}
    digest = await world.put(data)
    async with world.client("mallory") as client:
        assert (await status_of(client.register(digest, KNEES, "mallory")))[0] == "INVALID_ARGUMENT"
        chosen = common.WeightedAdapter(adapter_id=ULID, version=1, digest=digest, weight=1.0)
        call = client.executor.Generate(executor_pb2.GenerateRequest(tenant="mallory", prompt="x", adapters=[chosen]), timeout=30)
        assert (await status_of(_all(call)))[0] == "INVALID_ARGUMENT"
    for name, pid in world.started.items():
        assert resident_bytes(pid) < before[name] + 250 * 2**20, name  # the file itself has 57 MiB


async def test_what_is_refused_is_not_done(world: World) -> None:
    """An adapter after all of that: of the one tenant, as it was; nobody's ranker and no composition are gone."""
    async with world.client("mallory") as client:
        (first,) = [one async for one in client.list_all("mallory")]
        assert first.adapter_id == world.first["mallory"]
        made = await client.register(await world.put(world.adapter(tenant="mallory")), KNEES, "mallory")
        request = registry_pb2.RetireAdapterRequest(tenant="mallory", adapter_id=made.adapter_id, evidence=_EVIDENCE)
        assert (await status_of(client.registry.RetireAdapter(request, timeout=10)))[0] == "INVALID_ARGUMENT"
        assert (await client.get(made.adapter_id, "mallory")).state == common.ADAPTER_STATE_ACTIVE
        root = registry_pb2.CompositionNode(
            strategy=common.COMPOSITION_STRATEGY_PARALLEL, children=[registry_pb2.CompositionChild(adapter_id=made.adapter_id)]
        )
        composed = await client.compose("mine", root, tenant="mallory")
        for taken in (composed.composition_id, RANKER_ID):  # ids of other kinds have the same form, and are elsewhere
            await _import({"adapter_id": taken})(client, world)
        assert (await client.composition("mine", "mallory")).adapter_ids == [made.adapter_id]
        await client.retire("mallory", made.adapter_id, "over")


async def test_another_tenant_is_answered_as_before(world: World) -> None:
    async with world.client("victim") as client:
        decision = await client.route("does anybody hear me", base_model=world.base_model, tenant="acme")
        assert decision.tenant == "acme"
        assert (await client.generate("hello", max_tokens=1, decision=router_pb2.Decision(tenant="acme")))[1].completion_tokens == 1
    await world.check_alive()
