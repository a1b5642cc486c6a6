"""A real Envoy with the external processor in front of something, and an engine behind it that tells what it was sent."""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiohttp import web

from services.local import answers_http, free_port
from tests.kafka_support import until

ENVOY = shutil.which("envoy", path=str(Path(sys.executable).parent))


def config(port: int, admin: int, processor: str, upstream: str, mode: str) -> dict[str, Any]:
    """Envoy's: one listener, the external processor with bodies sent in a mode, one cluster behind."""
    trailers = {"request_trailer_mode": "SEND"} if mode == "FULL_DUPLEX_STREAMED" else {}
    http2 = {
        "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
            "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
            "explicit_http_config": {"http2_protocol_options": {}},
        }
    }
    processing = {
        "@type": "type.googleapis.com/envoy.extensions.filters.http.ext_proc.v3.ExternalProcessor",
        "grpc_service": {"envoy_grpc": {"cluster_name": "processor"}, "timeout": "20s"},
        "message_timeout": "20s",
        "processing_mode": {
            "request_header_mode": "SEND",
            "request_body_mode": mode,
            "response_header_mode": "SEND",
            "response_body_mode": "STREAMED",
            **trailers,
        },
    }
    manager = {
        "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "in",
        "route_config": {
            "virtual_hosts": [
                {
                    "name": "all",
                    "domains": ["*"],
                    "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "upstream", "timeout": "60s"}}],
                }
            ]
        },
        "http_filters": [
            {"name": "envoy.filters.http.ext_proc", "typed_config": processing},
            {
                "name": "envoy.filters.http.router",
                "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"},
            },
        ],
    }

    def cluster(name: str, address: str, **more: Any) -> dict[str, Any]:
        endpoint = {"endpoint": {"address": _socket(address)}}
        load = {"cluster_name": name, "endpoints": [{"lb_endpoints": [endpoint]}]}
        return {"name": name, "connect_timeout": "2s", "load_assignment": load, **more}

    return {
        "admin": {"address": _socket(f"127.0.0.1:{admin}")},
        "static_resources": {
            "listeners": [
                {
                    "address": _socket(f"127.0.0.1:{port}"),
                    "per_connection_buffer_limit_bytes": 4 * 2**20,
                    "filter_chains": [{"filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]}],
                }
            ],
            "clusters": [cluster("processor", processor, typed_extension_protocol_options=http2), cluster("upstream", upstream)],
        },
    }


def _socket(address: str) -> dict[str, Any]:
    host, _, port = address.rpartition(":")
    return {"socket_address": {"address": host, "port_value": int(port)}}


@asynccontextmanager
async def running_envoy(folder: Path, processor: str, upstream: str, mode: str = "BUFFERED") -> AsyncIterator[str]:
    """Envoy on a free port; yields its address."""
    assert ENVOY is not None
    port, admin = free_port(), free_port()
    file = folder / f"envoy-{port}.json"
    file.write_text(json.dumps(config(port, admin, processor, upstream, mode)))
    with (folder / "envoy.log").open("a") as log:
        process = await asyncio.create_subprocess_exec(
            ENVOY, "-c", str(file), "--use-dynamic-base-id", "--concurrency", "1", "-l", "warning", stdout=log, stderr=log
        )
        try:
            await until("Envoy being ready", 20, lambda: answers_http(f"127.0.0.1:{admin}", "/ready"))
            yield f"127.0.0.1:{port}"
        finally:
            process.kill()
            await process.wait()


@dataclass
class Upstream:
    """An engine as vLLM looks from outside: it answers anything, and keeps what it was asked."""

    address: str
    asked: list[tuple[dict[str, str], dict[str, Any]]] = field(default_factory=list)
    status: int = 200


@asynccontextmanager
async def running_upstream() -> AsyncIterator[Upstream]:
    """Such an engine on a free port."""
    made = Upstream(f"127.0.0.1:{free_port()}")

    async def answer(request: web.Request) -> web.StreamResponse:
        body = json.loads(await request.read())
        made.asked.append((dict(request.headers), body))
        if made.status != 200:
            return web.json_response({"error": {"message": "no such model", "code": made.status}}, status=made.status)
        usage = {"prompt_tokens": 3, "completion_tokens": 7, "total_tokens": 10}
        if not body.get("stream"):
            return web.json_response({"model": body["model"], "choices": [], "usage": usage})
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        for number in range(5):
            await response.write(f"data: {json.dumps({'choices': [{'delta': {'content': str(number)}}]})}\n\n".encode())
        await response.write(b"data: [DONE]\n\n")
        return response

    application = web.Application(client_max_size=16 * 2**20)
    application.router.add_post("/{path:.*}", answer)
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    host, _, port = made.address.partition(":")
    await web.TCPSite(runner, host, int(port)).start()
    try:
        yield made
    finally:
        await runner.cleanup()
