"""Every method, HTTP route and topic by every role and by strangers: allowed, or the right refusal. Of services as they run."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import aiohttp
import grpc
import pytest
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message_factory import GetMessageClass

from services.gateway.api.application import ROUTES as GATEWAY_ROUTES
from services.optimizer.stream.changelog import COUNTS, JOINS
from services.topic_rights import RIGHTS
from smoa.access.access import REPRESENTED
from smoa.access.principal import ROLES
from smoa.errors import Unavailable
from smoa.events import OUTCOMES
from smoa.kafka import Kafka
from smoa.metrics import ROUTES
from smoa.reader import read_range
from smoa.topics import TOPICS
from smoa.v1 import (
    changes_pb2,
    changes_pb2_grpc,
    executor_pb2,
    executor_pb2_grpc,
    feedback_pb2,
    feedback_pb2_grpc,
    registry_pb2,
    registry_pb2_grpc,
    router_pb2,
    router_pb2_grpc,
)
from smoa.v1.access_pb2 import Represented
from tests.integration.router_support import MONEY
from tests.security.world import World, status_of

TABLE: Final = {
    "RouterService/Route": "infer",
    "RouterService/RouteBatch": "infer",
    "RouterService/ListExecutors": "infer library operate",
    "FeedbackService/ReportOutcome": "infer",
    "ExecutorService/Generate": "infer",
    "ExecutorService/Score": "infer optimizer",
    "ExecutorService/GetStatus": "infer library operate optimizer executor",
    "RegistryService/RegisterAdapter": "library",
    "RegistryService/UploadAdapter": "library",
    "RegistryService/DownloadAdapter": "library",
    "RegistryService/ImportAdapters": "library",
    "RegistryService/GetAdapter": "infer library operate optimizer",
    "RegistryService/ListAdapters": "infer library operate optimizer",
    "RegistryService/UpdateAdapter": "library operate",
    "RegistryService/ReportStatistics": "optimizer",
    "RegistryService/RetireAdapter": "library operate optimizer",
    "RegistryService/RestoreAdapter": "library operate",
    "RegistryService/ArchiveAdapter": "library optimizer",
    "RegistryService/PurgeAdapter": "library optimizer",
    "RegistryService/ApplyMerge": "optimizer",
    "RegistryService/TryVersion": "optimizer",
    "RegistryService/SettleTrial": "operate optimizer",
    "RegistryService/CreateComposition": "library",
    "RegistryService/GetComposition": "infer library operate",
    "RegistryService/ListCompositions": "infer library operate optimizer",
    "RegistryService/DeleteComposition": "library",
    "ChangeService/ProposeChange": "optimizer",
    "ChangeService/BeginChange": "optimizer",
    "ChangeService/AdvanceChange": "optimizer",
    "ChangeService/DecideChange": "library operate",
    "ChangeService/ListChanges": "library operate optimizer",
    "ChangeService/Freeze": "library operate optimizer",
    "ChangeService/ListFreezes": "library operate optimizer",
}
"""Who may call what. A method that is not here fails the first test."""
MODULES: Final = (
    (router_pb2, router_pb2_grpc, "router"),
    (registry_pb2, registry_pb2_grpc, "router"),
    (changes_pb2, changes_pb2_grpc, "router"),
    (feedback_pb2, feedback_pb2_grpc, "router"),
    (executor_pb2, executor_pb2_grpc, "executor"),
)
HTTP: Final = {"/metrics": "operate"}
"""The same of what is asked by HTTP, of every service."""
GATEWAY: Final = {
    "/v1/chat/completions": ("POST", "infer"),
    "/v1/completions": ("POST", "infer"),
    "/v1/responses": ("POST", "infer"),
    "/v1/feedback": ("POST", "infer"),
    "/v1/models": ("GET", "infer library operate"),
    "/v1/models/{model:path}": ("GET", "infer library operate"),
    "/metrics": ("GET", "operate"),
}
"""And of the gateway."""
LOST_RACE: Final = "Internal error from Core"
REFUSALS: Final = ("UNAUTHENTICATED", "PERMISSION_DENIED")


def _methods() -> Iterator[tuple[str, MethodDescriptor, Any, str]]:
    for module, stubs, where in MODULES:
        for service in module.DESCRIPTOR.services_by_name.values():
            for method in service.methods:
                yield f"{service.name}/{method.name}", method, getattr(stubs, f"{service.name}Stub"), where


METHODS: Final = {name: (method, stub, where) for name, method, stub, where in _methods()}


def test_every_method_has_a_row() -> None:
    assert METHODS.keys() == TABLE.keys()


async def _answer(world: World, name: str, who: str, tenant: str = "acme") -> str:
    """The status of a call. Of a stream that is refused while it sends, gRPC's client itself says INTERNAL once in a thousand times."""
    code = LOST_RACE
    while code == LOST_RACE:
        code = await _answered(world, name, who, tenant)
    return code


async def _answered(world: World, name: str, who: str, tenant: str) -> str:
    """The status of a call: of an empty request but for its tenant, which no method does anything with."""
    method, stub, where = METHODS[name]
    request: Any = GetMessageClass(method.input_type)()
    if "tenant" in method.input_type.fields_by_name:
        request.tenant = tenant
    elif name == "RouterService/RouteBatch":
        request.requests.add(tenant=tenant)
    elif name == "RegistryService/ReportStatistics":
        request.reports.add(tenant=tenant)
    elif name == "FeedbackService/ReportOutcome":
        request.outcome.tenant = tenant
    elif name == "RegistryService/UploadAdapter":
        request.register.tenant = tenant
    async with world.channel(who, to=getattr(world, where)) as channel:
        call = getattr(stub(channel), method.name)
        try:
            if method.client_streaming and not method.server_streaming:
                await call(iter([request]), timeout=10)
            elif method.client_streaming:
                _ = [answer async for answer in call(iter([request]), timeout=10)]
            elif method.server_streaming:
                _ = [answer async for answer in call(request, timeout=10)]
            else:
                await call(request, timeout=10)
        except grpc.aio.AioRpcError as error:
            return LOST_RACE if error.details() == LOST_RACE else str(error.code().name)
        return "OK"


@pytest.mark.parametrize("name", TABLE)
async def test_a_method_is_for_those_that_the_table_names(world: World, name: str) -> None:
    wrong = []
    for who in (*sorted(ROLES), "nothing", "stranger"):
        found = await _answer(world, name, who)
        right = found == "UNAUTHENTICATED" if who == "stranger" else (found not in REFUSALS) == (who in TABLE[name].split())
        if not right:
            wrong.append((who, found))
    assert not wrong
    if name not in ("ExecutorService/GetStatus", "RouterService/ListExecutors"):  # which name no tenant
        assert await _answer(world, name, TABLE[name].split()[0], tenant="beta") == "PERMISSION_DENIED"


def test_every_route_has_a_row() -> None:
    assert {path: " ".join(sorted(roles)) for path, roles in ROUTES.items()} == HTTP
    assert {path: (method, " ".join(sorted(roles))) for path, (method, roles) in GATEWAY_ROUTES.items()} == GATEWAY


@pytest.mark.parametrize("path", GATEWAY)
async def test_a_route_of_the_gateway_is_for_those_that_the_table_names(world: World, path: str) -> None:
    """Who may is told that an empty request is wrong, or is answered."""
    method, roles = GATEWAY[path]
    asked = path.replace("{model:path}", "smoa-auto")
    for who in (*sorted(ROLES), "nothing", "stranger"):
        found = await asyncio.to_thread(world.http, "gateway", asked, who, method, b"{}" if method == "POST" else None)
        wanted = 401 if who == "stranger" else 403 if who not in roles.split() else 400 if method == "POST" else 200
        assert found == wanted, who


async def test_behind_the_gateway_a_caller_is_who_they_are(world: World) -> None:
    """Its tenants and roles are the caller's, not the gateway's; and nobody but a gateway may call for others."""

    async def asked(who: str, tenant: str, text: str = MONEY[0]) -> tuple[int, Any]:
        body = {
            "model": "smoa-auto",
            "messages": [{"role": "user", "content": text}],
            "max_tokens": 1,
            "smoa": {"tenant": tenant},
        }
        connection = world.connection(who)
        token = Path(connection.token_file).read_text().strip()
        context = ssl.create_default_context(cafile=connection.tls_ca)
        async with (
            aiohttp.ClientSession(headers={"authorization": f"Bearer {token}"}) as session,
            session.post(f"https://{world.gateway}/v1/chat/completions", json=body, ssl=context) as answer,
        ):
            return answer.status, await answer.json()

    status, answer = await asked("victim", "")
    assert (status, answer["smoa"]["adapters"][0]["id"]) == (200, world.first["acme"])
    assert (await asked("victim", "mallory"))[0] == 403
    status, answer = await asked("administrator", "mallory")
    assert (status, answer["smoa"]["adapters"][0]["id"]) == (200, world.first["mallory"])
    pretended = Represented(name="victim", tenants=["acme"], roles=["infer"]).SerializeToString()
    for who, wanted in (("mallory", "PERMISSION_DENIED"), ("door", "OK"), ("gateway", "PERMISSION_DENIED")):
        async with world.channel(who) as channel:
            request = router_pb2.RouteRequest(tenant="acme", base_model=world.base_model, query=MONEY[0])
            call = router_pb2_grpc.RouterServiceStub(channel).Route(request, timeout=10, metadata=((REPRESENTED, pretended),))
            assert (await status_of(call))[0] == wanted, who
    stronger = Represented(name="victim", tenants=["*"], roles=["infer", "optimizer", "executor", "gateway"]).SerializeToString()
    async with world.channel("door") as channel:
        merging = registry_pb2_grpc.RegistryServiceStub(channel).ApplyMerge(
            registry_pb2.ApplyMergeRequest(tenant="acme"), timeout=10, metadata=((REPRESENTED, stronger),)
        )
        assert (await status_of(merging))[0] == "PERMISSION_DENIED"


@pytest.mark.parametrize("service", ["router", "executor", "optimizer"])
@pytest.mark.parametrize("path", [*HTTP, "/", "/metrics/../secret", "/debug"])
async def test_a_route_is_for_those_that_the_table_names(world: World, service: str, path: str) -> None:
    for who in (*sorted(ROLES), "nothing", "stranger"):
        if service == "optimizer" and who != "stranger":
            continue  # it is given no file of callers here: only the machine that it is on reaches its port
        found = await asyncio.to_thread(world.http, service, path, who)
        wanted = 404 if path not in HTTP else 401 if who == "stranger" else 200 if who in HTTP[path].split() else 403
        assert found == (200 if service == "optimizer" and path in HTTP else wanted), who


@pytest.mark.parametrize("user", RIGHTS)
async def test_topics_are_for_those_that_the_table_of_rights_names(world: World, user: str) -> None:
    """As the broker itself says to them."""
    topics, rights = {topic.name for topic in (*TOPICS, JOINS, COUNTS)}, RIGHTS[user]
    allowed = await asyncio.to_thread(world.kafka.allowed, user, topics)
    assert {name for name, may in allowed.items() if "READ" in may} == set(rights.reads)
    assert {name for name, may in allowed.items() if "WRITE" in may} == set(rights.writes)
    assert {name for name, may in allowed.items() if may} == {*rights.reads, *rights.writes, *rights.sees}
    assert not [name for name, may in allowed.items() if may - {"READ", "WRITE", "DESCRIBE"}]


async def test_a_stranger_to_kafka_is_told_nothing(world: World) -> None:
    told = world.kafka.environment("reporter")
    wrong = world.folder / "wrong.secret"
    wrong.write_text("guessed\n")
    for changes in (
        {"SMOA_KAFKA_PASSWORD_FILE": str(wrong)},
        {"SMOA_KAFKA_USER": "nobody"},
        {"SMOA_KAFKA_TLS_CA": str(world.authority.file)},
        {"SMOA_KAFKA_SASL": "", "SMOA_KAFKA_USER": "", "SMOA_KAFKA_PASSWORD_FILE": ""},
    ):
        with pytest.raises(Unavailable):
            await read_range(Kafka.said({**told, **changes}), OUTCOMES, 0, 0, 1, 1, silence_s=3)


async def test_a_tenant_sees_its_own_adapters_and_shared_ones(world: World) -> None:
    """On the executor, after both tenants' were used; and by the registry, listed or by their ids."""
    async with world.client("victim") as victim, world.client("mallory") as mallory, world.client("administrator") as administrator:
        for client, tenant in ((victim, "acme"), (mallory, "mallory")):
            decision = await client.route(MONEY[0], base_model=world.base_model, tenant=tenant)
            await client.generate(MONEY[0], decision, max_tokens=1)
            shown = {one.adapter_id for one in (await client.status()).residents}
            assert world.first[tenant] in shown
            assert not shown & ({*world.first.values()} - {world.first[tenant]})
        assert {*world.first.values()} <= {one.adapter_id for one in (await administrator.status()).residents}
        with pytest.raises(grpc.aio.AioRpcError, match="was not found"):
            await mallory.get(world.first["acme"], "mallory")
        assert world.first["acme"] not in [one.adapter_id async for one in mallory.list_all("mallory")]
