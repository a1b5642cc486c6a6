"""Where adapters have to be signed: what is not is taken in by no router and run by no executor, however it came into the store."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from services.optimizer.control.passes import Optimizer
from services.optimizer.policy.library_policy import Rules
from smoa.adapter import decode, encode
from smoa.signatures import Signer, new_signing_key
from tests.command_support import said_by
from tests.integration import executor_support
from tests.integration.router_support import KNEES, MONEY, adapter_file, refused, running_router

NONE = "manifest.signature: is empty, and this installation asks for one; "


@pytest.fixture
def key(tmp_path: Path) -> Path:
    """A key that signs for everybody, and a file of publishers that names it."""
    private, public = new_signing_key()
    (tmp_path / "key.pem").write_bytes(private)
    (tmp_path / "publishers.json").write_text(json.dumps({"publishers": [{"tenants": ["*"], "public_key": public}]}))
    return tmp_path / "key.pem"


async def test_a_router_takes_in_what_is_signed(tmp_path: Path, key: Path) -> None:
    async with running_router(tmp_path, publishers=str(tmp_path / "publishers.json")) as world:
        code, details, _ = await refused(world.client.upload(adapter_file(), KNEES))
        assert (code, details.startswith(NONE)) == ("INVALID_ARGUMENT", True)
        code, details, _ = await refused(world.client.register(await world.store.put(adapter_file()), KNEES))
        assert (code, details.startswith(NONE)) == ("INVALID_ARGUMENT", True)
        (tmp_path / "a.safetensors").write_bytes(adapter_file())
        (tmp_path / "a.txt").write_text("\n".join(KNEES))
        push = ("adapter", "push", str(tmp_path / "a.safetensors"), "--examples", str(tmp_path / "a.txt"), "--router", world.address)
        ended, said, _ = await said_by(*push, "--sign-with", str(key), "--json")
        made = json.loads(said)
        assert (ended, made["state"]) == (0, "ADAPTER_STATE_ACTIVE")
        assert decode(await world.client.download("public", made["adapter_id"])).manifest.signature


async def test_an_executor_runs_what_is_signed(tmp_path: Path, key: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    named = str(tmp_path / "publishers.json")
    async with executor_support.running_executor("native", tmp_path, monkeypatch, publishers=named) as world:
        plain = await world.adapter(1)
        code, details = await executor_support.refused(world, adapters=[plain])
        assert (code, details.startswith(NONE)) == ("INVALID_ARGUMENT", True)
        signed = encode(Signer(key).signed(decode(await world.store.get(plain.digest))))
        plain.digest = await world.store.put(signed)
        assert await world.text(plain)


async def test_what_the_optimizer_merges_is_signed_by_it(tmp_path: Path, key: Path) -> None:
    sign = Signer(key).signed
    async with running_router(tmp_path, publishers=str(tmp_path / "publishers.json")) as world:
        for number, examples in enumerate((KNEES, MONEY)):
            await world.client.upload(encode(sign(decode(adapter_file(name=str(number))))), examples)
        rules = Rules(min_uses=0, min_age_s=0.0, min_merge_uses=0.0)
        plain = await Optimizer(world.client, world.store, rules, lambda _: 0, 100).run_pass()
        assert not plain.merged
        report = await Optimizer(world.client, world.store, rules, lambda _: 0, 100, sign=sign).run_pass()
        assert len(report.merged) == 1
        [child] = [one async for one in world.client.list_all()]
        assert decode(await world.client.download("public", child.adapter_id)).manifest.signature
