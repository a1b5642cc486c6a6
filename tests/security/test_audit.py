"""Who did what with which right, and who was refused: on a topic of its own, of services as they run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from smoa.access.access import Access, Admitted
from smoa.access.audit import MAX_ALIKE, Asked, Audit
from smoa.access.noting import note_before, noting
from smoa.access.principal import Principal
from smoa.access.rights import rights_of
from smoa.errors import ResourceExhausted
from smoa.events import AUDIT, Event, decode
from smoa.reader import messages_of, read_topic
from smoa.v1 import common_pb2 as common
from smoa.v1 import registry_pb2
from smoa.v1.events_pb2 import AuditEvent
from tests.access_support import caller
from tests.integration.router_support import KNEES
from tests.kafka_support import until
from tests.security.world import World, status_of

_GREEDY = Principal("greedy", frozenset({"greedy"}), frozenset({"library"}))


async def _told(world: World) -> list[AuditEvent]:
    kafka = world.kafka.as_user("operator")
    return [one async for record in read_topic(kafka, AUDIT) for one in messages_of(record) if isinstance(one, AuditEvent)]


@pytest.mark.asyncio(loop_scope="session")
async def test_a_change_is_told_with_its_caller_its_right_and_its_end(world: World) -> None:
    async with world.client("mallory") as client:
        made = await client.upload(world.adapter(tenant="mallory", name="told"), KNEES, "mallory")
        await client.retire("mallory", made.adapter_id, "over")
        assert (await status_of(client.retire("mallory", "0" * 26, "no such")))[0] == "NOT_FOUND"
        await client.route(KNEES[0], base_model=world.base_model, tenant="mallory")

    async def all_told() -> bool:
        found = [one for one in await _told(world) if one.subject in (made.adapter_id, made.digest, "0" * 26)]
        wanted = {("UploadAdapter", "OK"), ("RetireAdapter", "OK"), ("RetireAdapter", "NOT_FOUND")}
        assert all((one.caller, one.tenant, list(one.roles), one.count) == ("mallory", "mallory", ["library"], 1) for one in found)
        return {(one.method, one.status) for one in found} == wanted

    await until("what was done is told", 20, all_told)
    how = {(one.method, one.status): (one.reason, one.before, one.after) for one in await _told(world) if one.subject == made.adapter_id}
    assert how == {("RetireAdapter", "OK"): ("over", "active", "retired")}
    assert not [one for one in await _told(world) if one.method == "Route" and one.status == "OK"]


@pytest.mark.asyncio(loop_scope="session")
async def test_who_is_refused_is_told_and_counted(world: World) -> None:
    async with world.client("stranger") as client:
        assert (await status_of(client.get(world.first["acme"], "acme")))[0] == "UNAUTHENTICATED"
    async with world.client("mallory") as client:
        assert (await status_of(client.get(world.first["acme"], "acme")))[0] == "PERMISSION_DENIED"

    async def all_told() -> bool:
        found = {(one.caller, one.method, one.status) for one in await _told(world)}
        method = "/smoa.v1.RegistryService/GetAdapter"
        return found >= {("", method, "UNAUTHENTICATED"), ("mallory", method, "PERMISSION_DENIED")}

    await until("the refusals", 30, all_told)


def _audit(waiting: list[Callable[[], None]]) -> tuple[Audit, list[AuditEvent]]:
    """What it does later is in `waiting`."""
    told: list[AuditEvent] = []

    def publish(events: object, owner: str) -> None:
        assert isinstance(events, list)
        for one in events:
            assert isinstance(one, Event)
            message = decode(one.topic, one.value)
            assert isinstance(message, AuditEvent)
            told.append(message)

    return Audit(publish, lambda _, tell: waiting.append(tell)), told


def _asked(method: str, who: str = "bot") -> Asked:
    return Asked(method, Admitted(caller(who, "acme", "infer library"), rights_of(method)))


def test_refusals_that_are_alike_are_told_together() -> None:
    waiting: list[Callable[[], None]] = []
    audit, told = _audit(waiting)
    for _ in range(1000):
        audit.ended(Asked("/smoa.v1.RouterService/Route"), "UNAUTHENTICATED")
        audit.ended(_asked("/smoa.v1.RegistryService/ApplyMerge"), "PERMISSION_DENIED")
    assert told == []
    audit.ended(Asked("/smoa.v1.RouterService/Route"), "UNAUTHENTICATED")
    (tell,) = waiting
    tell()
    assert sorted((one.caller, one.method, one.status, one.count) for one in told) == [
        ("", "/smoa.v1.RouterService/Route", "UNAUTHENTICATED", 1001),
        ("bot", "/smoa.v1.RegistryService/ApplyMerge", "PERMISSION_DENIED", 1000),
    ]
    assert audit.refusals == {"UNAUTHENTICATED": 1001, "PERMISSION_DENIED": 1000}
    audit.ended(Asked("/smoa.v1.RouterService/Route"), "UNAUTHENTICATED")
    assert len(waiting) == 2
    audit.tell()
    waiting[1]()
    assert len(told) == 3


def test_kinds_of_refusals_are_bounded() -> None:
    audit, told = _audit([])
    for number in range(3 * MAX_ALIKE):
        audit.ended(_asked("/smoa.v1.RegistryService/ApplyMerge", f"bot {number}"), "PERMISSION_DENIED")
    audit.tell()
    assert len(told) == MAX_ALIKE + 1
    assert sum(one.count for one in told) == 3 * MAX_ALIKE


def test_only_changes_are_told_and_an_import_by_how_many() -> None:
    audit, told = _audit([])
    audit.ended(_asked("/smoa.v1.RouterService/Route"), "OK")
    audit.ended(_asked("/smoa.v1.RegistryService/GetAdapter"), "NOT_FOUND")
    assert told == []
    asked = _asked("/smoa.v1.RegistryService/ImportAdapters")
    for _ in range(3):
        asked.held(registry_pb2.ImportAdaptersRequest(adapters=[registry_pb2.ImportedAdapter()] * 400))
    audit.ended(asked, "CANCELLED")
    (one,) = told
    assert (one.tenant, one.subject, one.status) == ("acme", "1,200 adapters", "CANCELLED")


def test_a_change_is_told_with_its_numbers_and_the_state_before_and_after() -> None:
    audit, told = _audit([])
    asked = _asked("/smoa.v1.RegistryService/SettleTrial")
    asked.held(
        registry_pb2.SettleTrialRequest(tenant="acme", child_id="c", promote=True, reason="as good", evidence={"child_outcomes": 40.0})
    )
    asked.before = noting()
    for state in ("canary", "active"):
        note_before(state)
    asked.response = registry_pb2.Adapter(state=common.ADAPTER_STATE_ACTIVE)
    audit.ended(asked, "OK")
    (one,) = told
    assert (one.reason, dict(one.evidence), one.before, one.after) == ("as good", {"child_outcomes": 40.0}, "canary", "active")
    asked.response = registry_pb2.ListAdaptersResponse()
    audit.ended(asked, "OK")
    assert told[-1].after == ""


def test_what_the_spool_does_not_take_is_logged_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    def publish(events: object, owner: str) -> None:
        raise ResourceExhausted("spool: is full", "wait")

    audit = Audit(publish)
    asked = _asked("/smoa.v1.RegistryService/RetireAdapter")
    asked.held(registry_pb2.RetireAdapterRequest(adapter_id="x"))
    audit.ended(asked, "OK")
    assert audit.lost == 1
    assert '"subject": "x"' in caplog.text


def test_every_change_of_the_contract_is_audited(tmp_path: Path) -> None:
    """By the verbs of its name: what only looks is not."""
    from tests.security.test_table import METHODS

    looking = ("Get", "List", "Route", "Generate", "Score", "Report", "Download")
    for name in METHODS:
        method = name.partition("/")[2]
        assert rights_of(f"/smoa.v1.{name}").audited == (not method.startswith(looking)), name
    assert Access().asks is False


def test_changes_that_are_refused_for_their_number_are_told_together() -> None:
    waiting, told = list[Callable[[], None]](), list[Event]()
    audit = Audit(lambda events, _: told.extend(events), lambda _, tell: waiting.append(tell))
    asked = Asked("/smoa.v1.RegistryService/RetireAdapter", Admitted(_GREEDY, rights_of("/smoa.v1.RegistryService/RetireAdapter")))
    for _ in range(1000):
        audit.ended(asked, "RESOURCE_EXHAUSTED")
    assert told == []
    waiting.pop()()
    [one] = [decode(AUDIT, event.value) for event in told]
    assert isinstance(one, AuditEvent)
    assert (one.caller, one.status, one.count) == ("greedy", "RESOURCE_EXHAUSTED", 1000)


def test_the_first_request_of_an_upload_says_what_is_told_of_it() -> None:
    method = "/smoa.v1.RegistryService/UploadAdapter"
    asked = Asked(method, Admitted(_GREEDY, rights_of(method)))
    for digest in ("a" * 64, "f" * 64):
        asked.held(registry_pb2.UploadAdapterRequest(register=registry_pb2.RegisterAdapterRequest(tenant="greedy", digest=digest)))
        asked.held(registry_pb2.UploadAdapterRequest(part=b"x"))
    assert isinstance(asked.request, registry_pb2.RegisterAdapterRequest)
    assert asked.request.digest == "a" * 64
