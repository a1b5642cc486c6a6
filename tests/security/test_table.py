"""Every method by every role and by strangers: allowed, or the right refusal. Real sockets; each caller has a key of its own."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, Final

import grpc
import pytest
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message_factory import GetMessageClass

from smoa.access.channels import Channels, ConnectionSettings
from smoa.access.principal import ROLES
from smoa.v1 import (
    executor_pb2,
    executor_pb2_grpc,
    feedback_pb2,
    feedback_pb2_grpc,
    registry_pb2,
    registry_pb2_grpc,
    router_pb2,
    router_pb2_grpc,
)
from tests.access_support import caller, callers_file
from tests.integration.executor_support import running_executor
from tests.integration.router_support import running_router

TABLE: Final = {
    "RouterService/Route": "infer",
    "RouterService/RouteBatch": "infer",
    "FeedbackService/ReportOutcome": "infer",
    "ExecutorService/Generate": "infer",
    "ExecutorService/Score": "infer optimizer",
    "ExecutorService/GetStatus": "infer library operate optimizer executor",
    "RegistryService/RegisterAdapter": "library",
    "RegistryService/ImportAdapters": "library",
    "RegistryService/GetAdapter": "infer library operate optimizer",
    "RegistryService/ListAdapters": "infer library operate optimizer",
    "RegistryService/UpdateAdapter": "library operate optimizer",
    "RegistryService/RetireAdapter": "library operate optimizer",
    "RegistryService/RestoreAdapter": "library operate",
    "RegistryService/PurgeAdapter": "library optimizer",
    "RegistryService/ApplyMerge": "optimizer",
    "RegistryService/SettleMerge": "operate optimizer",
    "RegistryService/CreateComposition": "library",
    "RegistryService/GetComposition": "infer library operate",
    "RegistryService/ListCompositions": "infer library operate",
    "RegistryService/DeleteComposition": "library",
}
"""Who may call what. A method that is not here fails the first test."""
MODULES: Final = (
    (router_pb2, router_pb2_grpc, "router"),
    (registry_pb2, registry_pb2_grpc, "router"),
    (feedback_pb2, feedback_pb2_grpc, "router"),
    (executor_pb2, executor_pb2_grpc, "executor"),
)
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


class Servers:
    """A router and an executor with the same callers."""

    def __init__(self, addresses: dict[str, str], keys: dict[str, str], folder: Path) -> None:
        self._addresses, self._keys, self._folder = addresses, keys, folder

    async def answer(self, name: str, who: str, tenant: str = "acme") -> str:
        """The status of a call. Of a stream that is refused while it sends, gRPC's client itself says INTERNAL once in a thousand times."""
        code = LOST_RACE
        while code == LOST_RACE:
            code = await self._answer(name, who, tenant)
        return code

    async def _answer(self, name: str, who: str, tenant: str) -> str:
        """The status of a call: of an empty request but for its tenant, which no method does anything with."""
        method, stub, where = METHODS[name]
        connection = ConnectionSettings()
        if who in self._keys:
            file = self._folder / f"{who}.key"
            file.write_text(self._keys[who] + "\n")
            connection = ConnectionSettings(token_file=str(file))
        request: Any = GetMessageClass(method.input_type)()
        if "tenant" in method.input_type.fields_by_name:
            request.tenant = tenant
        elif name == "RouterService/RouteBatch":
            request.requests.add(tenant=tenant)
        elif name == "FeedbackService/ReportOutcome":
            request.outcome.tenant = tenant
        async with Channels(connection).to(self._addresses[where]) as channel:
            call = getattr(stub(channel), method.name)
            try:
                if method.client_streaming:
                    _ = [answer async for answer in call(iter([request]), timeout=10)]
                elif method.server_streaming:
                    _ = [answer async for answer in call(request, timeout=10)]
                else:
                    await call(request, timeout=10)
            except grpc.aio.AioRpcError as error:
                return LOST_RACE if error.details() == LOST_RACE else str(error.code().name)
            return "OK"


@pytest.fixture
async def servers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Servers]:
    somebody = [caller(role, "acme", role) for role in sorted(ROLES)] + [caller("nothing", "acme", "")]
    file = tmp_path / "callers.json"
    keys = callers_file(file, *somebody)
    (tmp_path / "operator.key").write_text(keys["operate"])
    async with running_router(tmp_path, callers=str(file)) as router:
        monkeypatch.setenv("SMOA_TOKEN_FILE", str(tmp_path / "operator.key"))
        async with running_executor("torch", tmp_path, monkeypatch, callers=str(file)) as executor:
            yield Servers({"router": router.address, "executor": executor.address}, keys, tmp_path)


async def test_every_method_is_for_those_that_the_table_names(servers: Servers) -> None:
    wrong = []
    for name, roles in TABLE.items():
        for who in (*sorted(ROLES), "nothing", "stranger"):
            found = await servers.answer(name, who)
            right = found == "UNAUTHENTICATED" if who == "stranger" else (found not in REFUSALS) == (who in roles.split())
            if not right:
                wrong.append((name, who, found))
    assert not wrong


async def test_every_method_refuses_anothers_tenant(servers: Servers) -> None:
    found = {name: await servers.answer(name, roles.split()[0], tenant="beta") for name, roles in TABLE.items()}
    assert {name: code for name, code in found.items() if code != "PERMISSION_DENIED"} == {"ExecutorService/GetStatus": "OK"}
