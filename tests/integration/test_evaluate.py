"""`smoa router evaluate` beside a router that serves."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

from click.testing import CliRunner

from services.router.commands import router_group
from tests.integration.router_support import KNEES, MONEY, running_router

GERMAN = [f"Wo ist der Hund, und wo ist die Katze Nummer {number}?" for number in range(20)]


async def _run(*arguments: str) -> tuple[int, str]:
    result = await asyncio.to_thread(CliRunner().invoke, router_group, ["evaluate", *arguments])
    return result.exit_code, result.output if result.exception is None else f"{result.output}{result.exception}"


async def test_a_library_is_judged_while_its_router_serves(tmp_path: Path) -> None:
    async with running_router(tmp_path) as world:
        for name, examples in (("knees", KNEES), ("money", MONEY), ("german", GERMAN), ("rest", GERMAN[:6])):
            await world.register(examples, name=name)
        folder = str(tmp_path / "router")
        code, said = await _run("--data", folder, "--page", str(tmp_path / "page.html"), "--json")
        assert code == 0, said
        report: dict[str, Any] = json.loads(said)
        assert [one["name"] for one in report["adapters"]] == ["knees", "money", "german", "rest"]
        assert report["base_model"] == "base-a"
        assert report["adapters"][0]["first"] == 1
        assert report["adapters"][3]["confused_with"][0][0] == "german"
        assert "german" in (tmp_path / "page.html").read_text()
        code, said = await _run("--data", folder)
        assert code == 0
        assert "right first" in said
        assert "what would help" in said
        log = tmp_path / "log.jsonl"
        line = {"decision": {"adapters": [{"adapterId": report["adapters"][0]["adapter_id"]}]}, "outcome": {"success": True}}
        log.write_text("\n".join([json.dumps(line), json.dumps(line | {"outcome": {}})]))
        report = json.loads((await _run("--data", folder, "--log", str(log), "--json"))[1])
        assert (report["adapters"][0]["successes"], report["adapters"][0]["outcomes"]) == (1, 2)


async def test_what_cannot_be_judged_is_said(tmp_path: Path) -> None:
    async with running_router(tmp_path) as world:
        folder = str(tmp_path / "router")
        assert "public has no adapters here" in (await _run("--data", folder))[1]
        await world.register(KNEES)
        assert "0 of the library's begin with 'base-b'; name one of base-a" in (await _run("--data", folder, "--base-model", "base-b"))[1]
        (tmp_path / "bad.jsonl").write_text("{}\n")
        assert "line 1 of" in (await _run("--data", folder, "--log", str(tmp_path / "bad.jsonl")))[1]
    assert "is not there; name a router's data folder with --data" in (await _run("--data", str(tmp_path / "nowhere")))[1]
