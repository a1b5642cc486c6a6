"""Keys, tokens, certificates and TLS on real sockets; what a server without them is bound to; and what changes while it serves."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable
from pathlib import Path
from typing import Any

import grpc
import pytest
from prometheus_client import CollectorRegistry

from services.local import free_port, is_serving
from smoa.access.access import Access
from smoa.access.channels import Channels, ConnectionSettings
from smoa.access.settings import CallersSettings
from smoa.adapter import new_adapter_id
from smoa.client import SmoaClient
from smoa.errors import FailedPrecondition, InvalidArgument
from smoa.metrics import serve_metrics
from smoa.rpc import RpcServer
from smoa.store import AdapterStore
from smoa.v1 import registry_pb2
from tests.access_support import ISSUER, Authority, Issuer, Pair, caller, callers_file, key_set
from tests.integration.router_support import KNEES, MONEY, adapter_file, running_router


async def _said(address: str, connection: ConnectionSettings, tenant: str = "acme") -> str:
    """How a listing of a tenant is answered."""
    async with SmoaClient(router=address, connection=connection) as client:
        try:
            _ = [adapter async for adapter in client.list_all(tenant)]
        except grpc.aio.AioRpcError as error:
            return str(error.code().name)
        return "OK"


def _with(folder: Path, token: str, **changes: Any) -> ConnectionSettings:
    (folder / "token").write_text(token)
    return ConnectionSettings(token_file=str(folder / "token"), **changes)


@pytest.mark.parametrize("address", ["0.0.0.0:0", "[::]:0"])
async def test_nobody_listens_to_everybody_by_mistake(address: str, tmp_path: Path) -> None:
    server = RpcServer(address)
    with pytest.raises(FailedPrecondition, match=r"can be reached from elsewhere, and nothing says who may call; name callers"):
        await server.start()
    await server.stop(0)
    for allowed in (RpcServer(address, insecure=True), RpcServer(address, access=_asking(tmp_path))):
        await allowed.start()
        await allowed.stop(0)


def _asking(folder: Path) -> Access:
    from smoa.access.callers import CallersFile

    callers_file(folder / "some.json", caller("bot", "acme", "infer"))
    return Access(CallersFile(folder / "some.json"))


async def test_a_key_opens_its_tenants_and_no_others(tmp_path: Path) -> None:
    keys = callers_file(tmp_path / "callers.json", caller("bot", "acme", "infer library"), caller("admin", "*", "operate"))
    async with running_router(tmp_path, callers=str(tmp_path / "callers.json")) as world:
        bot, admin = _with(tmp_path, keys["bot"]), ConnectionSettings(token_file=str(tmp_path / "admin"))
        (tmp_path / "admin").write_text(keys["admin"])
        assert await _said(world.address, bot) == "OK"
        assert await _said(world.address, bot, "beta") == "PERMISSION_DENIED"
        assert await _said(world.address, admin, "beta") == "OK"
        assert await _said(world.address, ConnectionSettings()) == "UNAUTHENTICATED"
        store = AdapterStore(str(tmp_path / "store"))
        async with SmoaClient(router=world.address, connection=bot) as client:
            made = await client.register(await store.put(adapter_file(tenant="acme")), KNEES, "")
            assert made.tenant == "acme", "the only one that it has"
            decision = await client.route(KNEES[0], base_model="base-a", tenant="")
            assert [one.adapter_id for one in decision.adapters] == [made.adapter_id]
        for wrong in ("smoa_x", "Bearer", "a b", ".", "..", "é", keys["bot"][:-1], keys["bot"].upper()):
            if wrong.isascii():
                assert await _said(world.address, _with(tmp_path, wrong)) == "UNAUTHENTICATED", wrong


async def test_what_reaches_every_tenant_needs_the_right_to_publish(tmp_path: Path) -> None:
    """To register it, to import it, to change what it answers, and to bring it back; its owner may always take it away."""
    keys = callers_file(tmp_path / "callers.json", caller("owner", "acme", "library"), caller("publisher", "acme", "library publish"))
    async with running_router(tmp_path, callers=str(tmp_path / "callers.json")) as world:
        store = AdapterStore(str(tmp_path / "store"))
        digest = await store.put(adapter_file(tenant="acme", shared=True))
        (tmp_path / "publisher").write_text(keys["publisher"])
        async with (
            SmoaClient(router=world.address, connection=_with(tmp_path, keys["owner"])) as owner,
            SmoaClient(router=world.address, connection=ConnectionSettings(token_file=str(tmp_path / "publisher"))) as publisher,
        ):

            async def refused(call: Awaitable[object]) -> None:
                with pytest.raises(grpc.aio.AioRpcError, match=r"shared: needs the role publish.*which owner does not have"):
                    await call

            await refused(owner.register(digest, KNEES, "acme"))
            made = await publisher.register(digest, KNEES, "acme")
            adapter_id = made.adapter_id
            other = registry_pb2.Adapter()
            other.CopyFrom(made)
            other.adapter_id = new_adapter_id()
            imported = registry_pb2.ImportedAdapter(adapter=other, examples=KNEES)

            async def bring() -> None:
                _ = [one async for one in owner.import_adapters([[imported]], "acme")]

            await refused(bring())
            for change in ({"name": "n"}, {"tags": ["t"], "replace_tags": True}, {"examples": MONEY}):
                request = registry_pb2.UpdateAdapterRequest(tenant="acme", adapter_id=adapter_id, **change)
                await refused(owner.registry.UpdateAdapter(request, timeout=10))
            await owner.retire("acme", adapter_id, "no longer wanted")
            with pytest.raises(grpc.aio.AioRpcError, match=r"shared: needs the role operate or publish"):
                await owner.restore("acme", adapter_id)
            assert (await publisher.restore("acme", adapter_id)).shared


async def test_a_token_of_the_issuer_opens_what_it_says(tmp_path: Path) -> None:
    issuer, stranger = Issuer(), Issuer()
    (tmp_path / "keys.json").write_text(key_set(issuer))
    settings = {"token_issuer": ISSUER, "token_keys": str(tmp_path / "keys.json")}
    async with running_router(tmp_path, **settings) as world:
        assert await _said(world.address, _with(tmp_path, issuer.token())) == "OK"
        assert await _said(world.address, _with(tmp_path, issuer.token()), "beta") == "PERMISSION_DENIED"
        assert await _said(world.address, _with(tmp_path, issuer.token(roles=["executor"]))) == "PERMISSION_DENIED"
        assert await _said(world.address, _with(tmp_path, stranger.token())) == "UNAUTHENTICATED"
        assert await _said(world.address, _with(tmp_path, issuer.token(exp=1))) == "UNAUTHENTICATED"


async def test_tls_hides_calls_and_a_certificate_says_who_calls(tmp_path: Path) -> None:
    authority, other = Authority(tmp_path), Authority(tmp_path, "other")
    server, service = authority.signed("server"), authority.signed("service", uri="spiffe://smoa/optimizer")
    unknown, foreign = authority.signed("unknown", uri="spiffe://smoa/unknown"), other.signed("foreign", uri="spiffe://smoa/optimizer")
    callers_file(tmp_path / "callers.json", certificates={"spiffe://smoa/optimizer": caller("optimizer", "*", "optimizer")})
    settings = {
        "callers": str(tmp_path / "callers.json"),
        "tls_certificate": str(server.certificate),
        "tls_key": str(server.key),
        "tls_client_ca": str(authority.file),
    }

    def shows(pair: Pair | None) -> ConnectionSettings:
        files = {} if pair is None else {"tls_client_certificate": str(pair.certificate), "tls_client_key": str(pair.key)}
        return ConnectionSettings(tls_ca=str(authority.file), **files)

    async with running_router(tmp_path, **settings) as world:
        assert await _said(world.address, shows(service)) == "OK"
        assert await _said(world.address, shows(unknown)) == "UNAUTHENTICATED"
        assert await _said(world.address, shows(foreign)) == "UNAVAILABLE", "no handshake"
        assert await _said(world.address, shows(None)) == "UNAVAILABLE"
        assert await _said(world.address, ConnectionSettings()) == "UNAVAILABLE", "in the clear"
        assert await _said(world.address, ConnectionSettings(tls_ca=str(other.file))) == "UNAVAILABLE", "another server, for all it knows"


async def test_probes_ask_a_server_of_their_own_which_answers_nothing_else(tmp_path: Path) -> None:
    authority, port = Authority(tmp_path), free_port()
    server = authority.signed("server")
    keys = callers_file(tmp_path / "callers.json", caller("bot", "acme", "infer"))
    settings = {
        "callers": str(tmp_path / "callers.json"),
        "tls_certificate": str(server.certificate),
        "tls_key": str(server.key),
        "health_address": f"127.0.0.1:{port}",
    }
    async with running_router(tmp_path, **settings) as world:
        assert await is_serving(f"127.0.0.1:{port}", ConnectionSettings())
        assert not await is_serving(world.address, ConnectionSettings()), "in the clear"
        assert await _said(f"127.0.0.1:{port}", _with(tmp_path, keys["bot"])) == "UNIMPLEMENTED"
    assert not await is_serving(f"127.0.0.1:{port}", ConnectionSettings())


async def test_certificates_are_exchanged_while_calls_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server's, then the authority itself, then a pair that does not fit: the last good one stays."""
    monkeypatch.setattr("smoa.access.channels._LOOK_EVERY_S", -1.0)
    authority = Authority(tmp_path)
    server = authority.signed("server")
    keys = callers_file(tmp_path / "callers.json", caller("bot", "acme", "infer"))
    settings = {"callers": str(tmp_path / "callers.json"), "tls_certificate": str(server.certificate), "tls_key": str(server.key)}
    connection = _with(tmp_path, keys["bot"], tls_ca=str(authority.file))
    async with running_router(tmp_path, **settings) as world, SmoaClient(router=world.address, connection=connection) as client:
        assert [one async for one in client.list_all("acme")] == []
        authority.signed("server")
        assert await _said(world.address, connection) == "OK"
        authority = Authority(tmp_path)  # another key, the same file
        assert await _said(world.address, connection) == "UNAVAILABLE", "until the server has one that it signed"
        authority.signed("server")
        assert await _said(world.address, connection) == "OK"
        assert [one async for one in client.list_all("acme")] == [], "an old client makes its channel anew"
        server.key.write_bytes(Authority(tmp_path, "third").signed("another").key.read_bytes())
        assert await _said(world.address, connection) == "OK", "the last good one stays"


def test_a_token_never_goes_over_a_network_in_the_clear(tmp_path: Path) -> None:
    channels = Channels(_with(tmp_path, "secret"))
    with pytest.raises(InvalidArgument, match=r"^SMOA_TLS_CA: is empty, and router\.example:50051 is on another machine"):
        channels.to("router.example:50051")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"tls_client_key": "key"}, "SMOA_TLS_CLIENT_KEY: and SMOA_TLS_CLIENT_CERTIFICATE are not both given"),
        ({"tls_client_key": "key", "tls_client_certificate": "pem"}, "SMOA_TLS_CA: is empty; a certificate is shown in TLS only"),
        ({"token_file": "nowhere"}, "nowhere: cannot be read"),
        ({"tls_ca": "nowhere"}, "nowhere: cannot be read"),
    ],
)
def test_what_a_client_is_given_is_checked_before_it_calls(changes: dict[str, str], said: str) -> None:
    with pytest.raises((InvalidArgument, FailedPrecondition), match=f"^{said}"):
        Channels(ConnectionSettings(**changes))


@pytest.mark.parametrize("text", ["two\nlines", "\x1b[31m", "é", "\x00"])
def test_a_token_that_no_header_can_carry_is_refused(text: str, tmp_path: Path) -> None:
    with pytest.raises(FailedPrecondition, match="holds no key and no token"):
        Channels(_with(tmp_path, text))


@pytest.mark.parametrize(
    ("certificate", "key", "client_ca", "said"),
    [
        ("", "server.key", "", "SMOA_TLS_CERTIFICATE: is empty"),
        ("server.pem", "", "", "SMOA_TLS_KEY: is empty"),
        ("", "", "authority.pem", "SMOA_TLS_CERTIFICATE: is empty"),
        ("server.pem", "other.key", "", "SMOA_TLS_KEY: is not the key of SMOA_TLS_CERTIFICATE"),
        ("server.key", "server.key", "", "SMOA_TLS_CERTIFICATE: holds no certificate"),
        ("server.pem", "server.pem", "", "SMOA_TLS_KEY: is no private key"),
        ("nowhere.pem", "server.key", "", "SMOA_TLS_CERTIFICATE: .* cannot be read"),
        ("server.pem", "server.key", "server.key", "SMOA_TLS_CLIENT_CA: holds no certificate"),
    ],
)
def test_a_server_says_which_file_is_wrong(certificate: str, key: str, client_ca: str, said: str, tmp_path: Path) -> None:
    from smoa.access.settings import AccessSettings

    authority = Authority(tmp_path)
    authority.signed("server")
    authority.signed("other")
    files = {"tls_certificate": certificate, "tls_key": key, "tls_client_ca": client_ca}
    settings = AccessSettings(**{name: str(tmp_path / file) if file else "" for name, file in files.items()})  # type: ignore[arg-type]
    with pytest.raises((InvalidArgument, FailedPrecondition), match=f"^{said}"):
        RpcServer.of("127.0.0.1:0", settings)


async def test_a_metrics_port_shows_the_certificate_of_the_moment(tmp_path: Path) -> None:
    """Also to who names no host; a pair that does not fit leaves the last good one."""
    authority = Authority(tmp_path)
    server = authority.signed("server")
    settings = CallersSettings(tls_certificate=str(server.certificate), tls_key=str(server.key))

    async def shown(port: int) -> bytes:
        context = ssl.create_default_context(cafile=str(authority.file))
        _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname="127.0.0.1")
        certificate: bytes = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        writer.close()
        return certificate

    async with serve_metrics("127.0.0.1:0", CollectorRegistry(), settings) as port:
        first = await shown(port)
        assert await shown(port) == first
        authority.signed("server")
        second = await shown(port)
        assert second != first
        assert second == ssl.PEM_cert_to_DER_cert(server.certificate.read_text())
        server.key.write_bytes(Authority(tmp_path, "third").signed("another").key.read_bytes())
        assert await shown(port) == second


@pytest.mark.parametrize("address", ["0.0.0.0:0", "[::]:0"])
async def test_metrics_are_not_for_everybody_by_mistake(address: str) -> None:
    with pytest.raises(FailedPrecondition, match=r"^metrics_address: .* can be reached from elsewhere, and nothing says who may read"):
        async with serve_metrics(address, CollectorRegistry()):
            pass
    async with serve_metrics(address, CollectorRegistry(), CallersSettings(insecure=True)) as port:
        assert port
