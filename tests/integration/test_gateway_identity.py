"""Who calls the gateway: by key, by token, by certificate, as on gRPC; and how much."""

from __future__ import annotations

import asyncio
import dataclasses
import socket
import ssl
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from services.gateway.app import build
from services.gateway.settings import GatewaySettings
from services.local import free_port
from smoa.errors import FailedPrecondition
from tests.access_support import AUDIENCE, ISSUER, Authority, Issuer, caller, callers_file, key_set
from tests.gateway_support import JSON
from tests.integration.router_support import KNEES, running_router
from tests.kafka_support import until

MODELS = "/v1/models"


@asynccontextmanager
async def running(monkeypatch: pytest.MonkeyPatch, token: Path | None = None, **changes: Any) -> AsyncIterator[str]:
    """A gateway in this process; its address."""
    for name in ("SMOA_TOKEN_FILE", "SMOA_TLS_CA"):
        monkeypatch.delenv(name, raising=False)
    if token is not None:
        monkeypatch.setenv("SMOA_TOKEN_FILE", str(token))
    address = f"127.0.0.1:{free_port()}"
    settings = GatewaySettings(address=address, router="127.0.0.1:1", drain_s=1, route_timeout_s=5)
    async with AsyncExitStack() as stack:
        await build(dataclasses.replace(settings, **changes), stack)
        yield address


async def _asked(
    address: str, *, key: str = "", tls: ssl.SSLContext | None = None, path: str = MODELS
) -> tuple[int, dict[str, Any], dict[str, str]]:
    """Status, body and headers."""
    headers = {"authorization": f"Bearer {key}"} if key else {}
    scheme = "https" if tls is not None else "http"
    async with (
        aiohttp.ClientSession(headers=headers) as session,
        session.get(f"{scheme}://{address}{path}", ssl=True if tls is None else tls) as answer,
    ):
        return answer.status, await answer.json(), {name.lower(): value for name, value in answer.headers.items()}


async def test_a_token_is_taken_until_it_expires(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    issuer, keys = Issuer(), tmp_path / "keys.json"
    keys.write_text(key_set(issuer))
    tokens: dict[str, Any] = {"token_issuer": ISSUER, "token_audience": AUDIENCE, "token_keys": str(keys)}
    async with running(monkeypatch, **tokens) as address:
        assert (await _asked(address, key=issuer.token()))[0] == 503  # known, and there is no router
        for wrong in (issuer.token(exp=time.time() - 60), Issuer().token(), issuer.token(aud="others"), "nobody", ""):
            status, body, headers = await _asked(address, key=wrong)
            assert (status, body["error"]["type"], body["error"]["code"]) == (401, "authentication_error", "invalid_api_key")
            assert headers["www-authenticate"] == "Bearer"
        status, body, _ = await _asked(address, key=issuer.token(roles=["executor"]))
        assert (status, body["error"]["code"]) == (403, "permission_denied")
        status, body, _ = await _asked(address, key=issuer.token(), path=f"{MODELS}?tenant=other")
        assert (status, body["error"]["code"]) == (403, "permission_denied")


async def test_a_certificate_says_who_calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    authority = Authority(tmp_path)
    server, known, stranger = (
        authority.signed("server"),
        authority.signed("bot", uri="spiffe://acme/bot"),
        authority.signed("stranger", uri="spiffe://acme/other"),
    )
    callers_file(tmp_path / "callers.json", certificates={"spiffe://acme/bot": caller("bot", "acme", "infer")})
    tls: dict[str, Any] = {"tls_certificate": str(server.certificate), "tls_key": str(server.key), "tls_client_ca": str(authority.file)}
    async with running(monkeypatch, callers=str(tmp_path / "callers.json"), **tls) as address:
        for pair, wanted in ((known, 503), (stranger, 401)):
            context = ssl.create_default_context(cafile=str(authority.file))
            context.load_cert_chain(pair.certificate, pair.key)
            assert (await _asked(address, tls=context))[0] == wanted
        with pytest.raises(aiohttp.ClientError):
            await _asked(address, tls=ssl.create_default_context(cafile=str(authority.file)))


async def test_a_quota_answers_429_and_says_when_to_come_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The router's, of the caller: others behind the same gateway are answered."""
    people = [caller("door", "*", "gateway infer library"), caller("bot", "public", "infer"), caller("other", "public", "infer")]
    keys = callers_file(tmp_path / "callers.json", *people, caller("owner", "public", "library infer"))
    token = tmp_path / "door.key"
    token.write_text(keys["door"])
    (tmp_path / "owner.key").write_text(keys["owner"])
    who = {"callers": str(tmp_path / "callers.json")}
    monkeypatch.setenv("SMOA_TOKEN_FILE", str(tmp_path / "owner.key"))
    async with running_router(tmp_path, calls_per_s=1.0, **who) as world:
        await world.register(KNEES)
        async with running(monkeypatch, token, router=world.address, **who) as address:
            answers = await asyncio.gather(*(_asked(address, key=keys["bot"], path=f"{MODELS}?search=knees") for _ in range(20)))
            refused = [(body, headers) for status, body, headers in answers if status == 429]
            assert refused
            assert {status for status, _, _ in answers} == {200, 429}
            for body, headers in refused:
                assert (body["error"]["type"], body["error"]["code"]) == ("rate_limit_error", "rate_limit_exceeded")
                assert int(headers["retry-after"]) >= 1
            assert (await _asked(address, key=keys["other"]))[0] == 200


async def test_what_is_held_of_bodies_is_bounded_together(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(monkeypatch, held_body_bytes=1024, max_body_bytes=2048) as address, aiohttp.ClientSession() as session:

        async def asked(size: int) -> int:
            async with session.post(f"http://{address}/v1/feedback", data=b"{" + b" " * (size - 1), headers={**JSON}) as answer:
                body = await answer.json()
                assert answer.status != 429 or body["error"]["message"].startswith("bytes of bodies: ")
                return answer.status

        async def answers(status: int) -> bool:
            return await asked(600) == status

        assert await asked(1024) == 400
        assert await asked(1025) == 429
        assert await asked(1024) == 400  # given back
        host, _, port = address.partition(":")
        _, slow = await asyncio.open_connection(host, int(port))
        slow.write(b"POST /v1/feedback HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 1000\r\n\r\n" + b" " * 600)
        await until("the slow one's part being held", 10, lambda: answers(429))
        slow.close()
        await slow.wait_closed()
        await until("its part being given back", 10, lambda: answers(400))


async def test_elsewhere_than_on_loopback_it_listens_only_where_callers_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FailedPrecondition, match=r"^SMOA_GATEWAY_ADDRESS: 0\.0\.0\.0:0 can be reached from elsewhere"):
        async with running(monkeypatch, address="0.0.0.0:0"):
            pass


async def test_a_request_that_takes_too_long_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """The router takes its call, and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        async with running(monkeypatch, router=f"127.0.0.1:{silent.getsockname()[1]}", timeout_s=0.3) as address:
            status, body, _ = await _asked(address)
            assert (status, body["error"]["type"]) == (504, "timeout_error")
