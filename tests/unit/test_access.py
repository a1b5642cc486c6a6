"""Who calls, what the contracts say of it, and requests held to that; no sockets."""

from __future__ import annotations

import importlib
import json
import os
import pkgutil
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message

import smoa.v1
from smoa.access.access import Access
from smoa.access.addresses import is_loopback
from smoa.access.callers import CallersFile, hash_of, new_key, read_callers
from smoa.access.principal import ANYBODY, ROLES
from smoa.access.rights import rights_of
from smoa.access.settings import AccessSettings
from smoa.access.tokens import SigningKeys, Tokens, check_keys_address
from smoa.errors import FailedPrecondition, InvalidArgument, PermissionDenied, SmoaError, Unauthenticated, Unavailable
from smoa.v1 import executor_pb2, feedback_pb2, registry_pb2, router_pb2
from tests.access_support import AUDIENCE, ISSUER, Issuer, caller, callers_file, key_set

ROUTE, UPDATE = "/smoa.v1.RouterService/Route", "/smoa.v1.RegistryService/UpdateAdapter"


def _methods() -> list[MethodDescriptor]:
    modules = [
        importlib.import_module(f"smoa.v1.{one.name}") for one in pkgutil.iter_modules(smoa.v1.__path__) if one.name.endswith("_pb2")
    ]
    return [method for module in modules for service in module.DESCRIPTOR.services_by_name.values() for method in service.methods]


@pytest.mark.parametrize("method", _methods(), ids=lambda method: method.full_name)
def test_the_contract_says_of_every_method_who_may_call_it_and_for_which_tenant(method: MethodDescriptor) -> None:
    rights = rights_of(f"/{method.containing_service.full_name}/{method.name}")
    assert rights.roles <= ROLES
    assert rights.roles
    assert rights.tenants or method.name in ("GetStatus", "ListExecutors"), "a request that names no tenant is everybody's"


def test_a_tenant_is_one_of_the_callers_and_the_only_one_where_none_is_named() -> None:
    one, two, every = caller("one", "acme", "infer"), caller("two", "acme beta", "infer"), caller("every", "*", "infer")
    assert [one.tenant(""), one.tenant("acme"), two.tenant("beta"), every.tenant(""), every.tenant("beta")] == [
        "acme",
        "acme",
        "beta",
        "public",
        "beta",
    ]
    with pytest.raises(PermissionDenied, match="tenant: 'beta' is not a tenant of one"):
        one.tenant("beta")
    with pytest.raises(PermissionDenied, match=r"tenant: '\*' is not"):
        one.tenant("*")
    with pytest.raises(InvalidArgument, match="tenant: is empty; name one of yours: acme, beta"):
        two.tenant("")


@pytest.mark.parametrize(
    ("method", "request_", "field"),
    [
        (ROUTE, router_pb2.RouteRequest(tenant="beta"), "tenant"),
        (
            "/smoa.v1.RouterService/RouteBatch",
            router_pb2.RouteBatchRequest(requests=[router_pb2.RouteRequest(tenant="acme"), router_pb2.RouteRequest(tenant="beta")]),
            r"requests\[1\].tenant",
        ),
        (
            "/smoa.v1.FeedbackService/ReportOutcome",
            feedback_pb2.ReportOutcomeRequest(outcome=feedback_pb2.Outcome(tenant="beta")),
            "outcome.tenant",
        ),
        ("/smoa.v1.ExecutorService/Generate", executor_pb2.GenerateRequest(tenant="beta"), "tenant"),
        ("/smoa.v1.RegistryService/ImportAdapters", registry_pb2.ImportAdaptersRequest(tenant="beta"), "tenant"),
        (
            "/smoa.v1.RegistryService/ReportStatistics",
            registry_pb2.ReportStatisticsRequest(
                reports=[registry_pb2.ReportedStatistics(tenant="acme"), registry_pb2.ReportedStatistics(tenant="beta")]
            ),
            r"reports\[1\].tenant",
        ),
    ],
)
def test_anothers_tenant_is_refused_wherever_a_request_names_it(method: str, request_: Message, field: str) -> None:
    with pytest.raises(PermissionDenied, match=f"^{field}: 'beta' is not a tenant of one"):
        rights_of(method).check_request(caller("one", "acme", " ".join(ROLES)), request_)


def test_the_callers_only_tenant_is_filled_in_everywhere() -> None:
    batch = router_pb2.RouteBatchRequest(requests=[router_pb2.RouteRequest(), router_pb2.RouteRequest(tenant="acme")])
    rights_of("/smoa.v1.RouterService/RouteBatch").check_request(caller("one", "acme", "infer"), batch)
    assert [one.tenant for one in batch.requests] == ["acme", "acme"]
    report = feedback_pb2.ReportOutcomeRequest(outcome=feedback_pb2.Outcome(success=True))
    rights_of("/smoa.v1.FeedbackService/ReportOutcome").check_request(caller("one", "acme", "infer"), report)
    assert report.outcome.tenant == "acme"
    nothing = feedback_pb2.ReportOutcomeRequest()
    rights_of("/smoa.v1.FeedbackService/ReportOutcome").check_request(caller("one", "acme", "infer"), nothing)
    assert not nothing.HasField("outcome"), "and nothing is made up"


@pytest.mark.parametrize(
    ("change", "role"),
    [
        ({"pinned": False}, "operate"),
        ({"name": ""}, "library"),
        ({"tags": ["a"]}, "library"),
        ({"replace_tags": True}, "library"),
        ({"examples": ["a"]}, "library"),
    ],
)
def test_a_field_that_needs_a_role_is_refused_to_who_has_others(change: dict[str, Any], role: str) -> None:
    for other in ("library", "operate"):
        rights, request = rights_of(UPDATE), registry_pb2.UpdateAdapterRequest(tenant="acme", **change)
        somebody = caller("one", "acme", other)
        rights.check_call(somebody)
        if other == role:
            rights.check_request(somebody, request)
        else:
            with pytest.raises(PermissionDenied, match=f"^{next(iter(change))}: needs the role {role}"):
                rights.check_request(somebody, request)


def test_every_tenants_adapters_are_for_those_who_operate_or_optimise() -> None:
    rights, request = rights_of("/smoa.v1.RegistryService/ListAdapters"), registry_pb2.ListAdaptersRequest(all_tenants=True)
    rights.check_request(caller("one", "*", "operate"), request)
    rights.check_request(caller("one", "*", "optimizer"), request)
    with pytest.raises(PermissionDenied, match=r"^all_tenants: needs the role operate or optimizer"):
        rights.check_request(caller("one", "*", "library infer publish executor"), request)


def test_a_method_is_refused_to_who_has_none_of_its_roles() -> None:
    with pytest.raises(PermissionDenied, match=r"^ApplyMerge: needs the role optimizer, which one does not have"):
        rights_of("/smoa.v1.RegistryService/ApplyMerge").check_call(caller("one", "*", "infer library publish operate executor"))


def test_loopback_is_told_from_what_others_reach() -> None:
    here = ("127.0.0.1:1", "127.8.0.1:0", "localhost:50051", "[::1]:5", "unix:/tmp/x")
    elsewhere = ("0.0.0.0:1", "[::]:1", "10.0.0.1:1", "router:50051", "localhost.example.org:1", ":50051", "", "::1")
    assert [is_loopback(one) for one in (*here, *elsewhere)] == [True] * len(here) + [False] * len(elsewhere)


# Callers in a file


def test_a_caller_is_known_by_the_hash_of_a_key_or_by_a_name_in_a_certificate(tmp_path: Path) -> None:
    path, bot, service = tmp_path / "callers.json", caller("bot", "acme", "infer"), caller("optimizer", "*", "optimizer")
    keys = callers_file(path, bot, certificates={"spiffe://smoa/optimizer": service})
    assert keys["bot"] not in path.read_text()
    known = CallersFile(path)
    assert known.by_key(keys["bot"]) == bot
    assert known.by_key(hash_of(keys["bot"])) is None, "what the file holds opens nothing"
    assert known.by_key(new_key()) is known.by_key("") is None
    assert known.by_certificate(["dns", "spiffe://smoa/optimizer"]) == service
    assert known.by_certificate(["spiffe://smoa/optimizer/x", "*", ""]) is None


def test_a_file_that_changes_is_read_again_and_one_that_breaks_leaves_what_was_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("smoa.access.callers._LOOK_EVERY_S", -1.0)
    path = tmp_path / "callers.json"
    old = callers_file(path, caller("bot", "acme", "infer"))["bot"]
    known = CallersFile(path)
    new = callers_file(path, caller("bot", "acme", "library"))["bot"]
    found = known.by_key(new)
    assert found is not None
    assert found.roles == {"library"}
    assert known.by_key(old) is None
    path.write_text("{")
    assert known.by_key(new) == found
    path.unlink()
    assert known.by_key(new) == found


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "callers: is not what"),
        ("[" * 100_000, "callers: is not what"),
        ("[]", "callers: is not what"),
        ('{"callers": 3}', r"callers\[0\]: is no caller"),
        ('{"callers": [{"tenants": "*"}]}', r"callers\[0\]: is no caller"),
        ('{"callers": [{"name": "a"}]}', r"callers\[0\]: is known by nothing"),
        ('{"callers": [{"key_sha256": "a", "certificate": "b"}]}', r"callers\[0\]: is known by nothing, or by two"),
        ('{"callers": [{"key_sha256": 7}]}', r"callers\[0\]: is known by nothing"),
        ('{"callers": [{"key_sha256": "a", "roles": ["root"]}]}', r"callers\[0\].roles: 'root' is unknown"),
        ('{"callers": [{"key_sha256": "a", "tenants": ["a/b"]}]}', r"callers\[0\].tenants: 'a/b' is not a tenant's name"),
        ('{"callers": [{"key_sha256": "a", "tenants": [["*"]]}]}', r"callers\[0\].tenants: \['\*'\] is not a tenant's name"),
    ],
)
def test_a_file_that_says_nothing_is_refused_by_its_field(text: str, said: str) -> None:
    with pytest.raises(InvalidArgument, match=f"^{said}"):
        read_callers(text)


def test_a_file_that_is_not_there_is_no_reason_to_let_everybody_in(tmp_path: Path) -> None:
    with pytest.raises(FailedPrecondition, match=r"^SMOA_CALLERS: .*nowhere\.json cannot be read"):
        Access.of(AccessSettings(callers=str(tmp_path / "nowhere.json")))
    with pytest.raises(InvalidArgument, match=r"^SMOA_TOKEN_KEYS: is empty"):
        Access.of(AccessSettings(token_issuer=ISSUER))
    with pytest.raises(InvalidArgument, match=r"^SMOA_TOKEN_ISSUER: is empty"):
        Access.of(AccessSettings(token_keys="keys.json"))


# Tokens


class _Keys:
    """Keys that can be had or not, read when somebody asks."""

    def __init__(self, *issuers: Issuer) -> None:
        self.said, self.reads, self.now_s = key_set(*issuers), 0, 0.0
        self.keys = SigningKeys("keys.json", self._read, lambda: self.now_s)
        self.tokens = Tokens(self.keys, ISSUER, AUDIENCE, "tenants", "roles")

    def _read(self, where: str) -> bytes:
        self.reads += 1
        if not self.said:
            raise OSError("away")
        return self.said.encode()


async def test_a_token_says_who_calls_and_is_checked_once() -> None:
    issuer = Issuer()
    keys = _Keys(issuer)
    token = issuer.token(["acme", "beta"], ["infer", "some-other-program"])
    found = await keys.tokens.principal(token)
    assert found == caller("bot", "acme beta", "infer")
    keys.said, keys.now_s = "", 1000.0
    assert await keys.tokens.principal(token) is found
    assert keys.reads == 1


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"exp": 1}, "Signature has expired"),
        ({"exp": None}, 'missing the "exp" claim'),
        ({"exp": "soon"}, "exp"),
        ({"iss": "https://other.test"}, "Invalid issuer"),
        ({"iss": None}, 'missing the "iss" claim'),
        ({"aud": "another"}, "Audience doesn't match"),
        ({"aud": None}, "aud"),
        ({"sub": None}, 'missing the "sub" claim'),
        ({"nbf": 9e9}, "not yet valid"),
        ({"tenants": "acme"}, "claim tenants is no list"),
        ({"roles": {"infer": True}}, "claim roles is no list"),
        ({"tenants": ["a/b"]}, "token.tenants: 'a/b' is not a tenant's name"),
    ],
)
async def test_a_token_that_does_not_hold_is_refused_with_the_reason(changes: dict[str, Any], said: str) -> None:
    issuer = Issuer()
    with pytest.raises(Unauthenticated, match=said):
        await _Keys(issuer).tokens.principal(issuer.token(**changes))


async def test_a_token_that_gives_nothing_may_do_nothing() -> None:
    issuer = Issuer()
    found = await _Keys(issuer).tokens.principal(issuer.token(None, None))
    assert (found.tenants, found.roles) == (frozenset(), frozenset())
    with pytest.raises(PermissionDenied):
        rights_of(ROUTE).check_call(found)


async def test_forged_tokens_are_refused() -> None:
    import jwt

    issuer, stranger = Issuer(), Issuer()
    keys = _Keys(issuer)
    good = issuer.token()
    header, payload, signature = good.split(".")
    claims = jwt.decode(good, options={"verify_signature": False})
    forged = [
        stranger.token(),  # the same key id, another key
        Issuer("another").token(),
        f"{header}.{payload}.{signature[:-4]}AAAA",
        f"{header}.{payload}.",
        f"{header}.{issuer.token(['*']).split('.')[1]}.{signature}",
        jwt.encode(claims, None, "none", {"kid": "first"}),  # type: ignore[arg-type]
        jwt.encode(claims, json.dumps(issuer.public) * 2, "HS256", {"kid": "first"}),  # signed by what everybody knows
        "..",
        "a.b.c",
        "é.b.c",
        good + "." + signature,
        good * 100,
        "A" * 9000 + ".b.c",
    ]
    for token in forged:
        with pytest.raises(Unauthenticated):
            await keys.tokens.principal(token)
    assert await keys.tokens.principal(good)


async def test_a_token_ends_also_if_it_was_known(monkeypatch: pytest.MonkeyPatch) -> None:
    issuer, now_s = Issuer(), [0.0]
    keys = _Keys(issuer)
    tokens = Tokens(keys.keys, ISSUER, AUDIENCE, "tenants", "roles", lambda: now_s[0])
    token = issuer.token(exp=1)
    with pytest.raises(Unauthenticated, match="expired"):
        await tokens.principal(token)
    token = issuer.token()
    assert await tokens.principal(token) is await tokens.principal(token)
    now_s[0] = 9e12
    monkeypatch.setattr(keys.keys, "key", _never)
    with pytest.raises(Unauthenticated, match="asked again"):
        await tokens.principal(token)


async def _never(key_id: str) -> None:
    raise Unauthenticated("asked again")


async def test_keys_are_read_again_for_a_new_key_and_the_last_ones_stay_while_they_cannot_be() -> None:
    first, second = Issuer("first"), Issuer("second")
    keys = _Keys(first)
    await keys.tokens.principal(first.token())
    for _ in range(5):  # strangers' keys make nobody read in a row
        with pytest.raises(Unauthenticated, match="a key that its issuer does not name"):
            await keys.tokens.principal(second.token(sub=os.urandom(4).hex()))
    assert keys.reads == 1
    keys.said, keys.now_s = key_set(first, second), 20.0
    await keys.tokens.principal(second.token())
    assert keys.reads == 2
    keys.said, keys.now_s = "", 2000.0
    await keys.tokens.principal(first.token(sub="again"))
    assert keys.keys._reading is not None
    await keys.keys._reading
    await keys.tokens.principal(second.token(sub="again"))
    keys.said, keys.now_s = key_set(second), 4000.0
    await keys.tokens.principal(second.token(sub="more"))
    await keys.keys._reading
    with pytest.raises(Unauthenticated, match="does not name"):
        await keys.tokens.principal(first.token(sub="more"))
    await keys.keys.close()


@pytest.mark.parametrize(
    "said", ["", "{", '{"keys": []}', '{"keys": [{"kty": "oct", "k": "c2VjcmV0", "kid": "first"}]}', "[]", "[" * 100_000]
)
async def test_without_keys_nobody_is_let_in(said: str) -> None:
    keys = _Keys(Issuer())
    keys.said, keys.now_s = said, 100.0
    with pytest.raises((Unavailable, Unauthenticated)):
        await keys.tokens.principal(Issuer().token())


def test_keys_come_by_a_file_or_a_safe_address() -> None:
    for where in ("keys.json", "/etc/keys", "https://issuer.test/keys", "http://127.0.0.1:1/keys", "http://localhost/keys"):
        check_keys_address(where)
    for where in ("http://issuer.test/keys", "ftp://issuer.test", "file:///etc/keys", "http://127.0.0.1.evil.test/"):
        with pytest.raises(InvalidArgument, match="SMOA_TOKEN_KEYS"):
            check_keys_address(where)


def test_where_nobody_is_asked_everybody_may_do_everything() -> None:
    assert not Access().asks
    assert all(ANYBODY.may(frozenset({role})) for role in ROLES)
    assert issubclass(PermissionDenied, SmoaError)
