"""What lies in the folder that a stack is started in, and what one tenant's question leaves behind for another's."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from services.local import LocalStack, StackSettings, free_port
from tests.integration.router_support import KNEES, running_router


def test_a_module_in_the_folder_of_a_stack_is_not_run(tmp_path: Path) -> None:
    """Python looks in the working folder first, unless it is told not to."""
    (tmp_path / "uvloop.py").write_text("raise SystemExit('run from here')")
    stack = LocalStack(StackSettings(data=tmp_path / "data", router_port=free_port(), executor_port=free_port(), gateway_port=free_port()))
    specs = [*stack._specs(), stack._broker_spec(tmp_path / "address")]
    assert {spec.name for spec in specs} == {"router", "executor", "optimizer", "gateway", "broker"}
    for spec in specs:
        assert spec.command[:3] == [sys.executable, "-P", "-m"], spec.name
    command = [*specs[0].command, "--help"]
    done = subprocess.run(command, cwd=tmp_path, env=os.environ, capture_output=True, text=True, timeout=60, check=False)
    assert "run from here" not in done.stdout + done.stderr
    assert done.returncode == 0


@pytest.mark.parametrize("strategy", ["ROUTING_STRATEGY_SEMANTIC", "ROUTING_STRATEGY_LEARNED"])
async def test_what_one_tenant_asked_is_not_there_for_another(tmp_path: Path, strategy: str) -> None:
    """Neither the decision nor the text's vector, by which it would be answered sooner."""
    port = free_port()

    def cached() -> tuple[float, float]:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            text = answer.read().decode()
        hits = [re.search(rf"^smoa_router_{name}_total (\S+)$", text, re.MULTILINE) for name in ("cache_hits", "embedding_cache_hits")]
        decisions, vectors = (float(one[1]) for one in hits if one)
        return decisions, vectors

    async with running_router(tmp_path, metrics_address=f"127.0.0.1:{port}") as world:
        for tenant in ("acme", "beta"):
            await world.register(KNEES, tenant)
        await world.client.route("is there pay for knees", base_model="base-a", tenant="acme", strategy=strategy)
        decision = await world.client.route("is there pay for knees", base_model="base-a", tenant="beta", strategy=strategy)
        assert not decision.cached
        assert await asyncio.to_thread(cached) == (0.0, 0.0)
        await world.client.route("is there pay for knees", base_model="base-a", tenant="beta", strategy=strategy)
        assert sum(await asyncio.to_thread(cached)) == 1.0, "its own is"
