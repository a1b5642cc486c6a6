"""Errors in OpenAI's form: `{"error": {"message", "type", "param", "code"}}`, with the status that OpenAI's clients act on."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, Final

import grpc
from google.rpc import error_details_pb2, status_pb2

from smoa.errors import SmoaError
from smoa.statuses import status_in, status_of

_BY_CODE: Final[dict[str, tuple[int, str, str | None]]] = {
    "INVALID_ARGUMENT": (400, "invalid_request_error", None),
    "OUT_OF_RANGE": (400, "invalid_request_error", None),
    "FAILED_PRECONDITION": (400, "invalid_request_error", "failed_precondition"),
    "UNAUTHENTICATED": (401, "authentication_error", "invalid_api_key"),
    "PERMISSION_DENIED": (403, "permission_error", "permission_denied"),
    "NOT_FOUND": (404, "invalid_request_error", "not_found"),
    "ALREADY_EXISTS": (409, "invalid_request_error", "already_exists"),
    "RESOURCE_EXHAUSTED": (429, "rate_limit_error", "rate_limit_exceeded"),
    "CANCELLED": (499, "cancelled", "cancelled"),
    "DEADLINE_EXCEEDED": (504, "timeout_error", "timeout"),
    "UNAVAILABLE": (503, "service_unavailable_error", "service_unavailable"),
}
_INTERNAL: Final = (500, "server_error", "internal_error")
_WAIT: Final = re.compile(r"wait ([0-9.]+) s")


@dataclass(eq=False)
class HttpError(Exception):
    """What a caller is answered in place of what they asked for."""

    status: int
    message: str
    type: str
    param: str | None = None
    code: str | None = None
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def body(self) -> dict[str, Any]:
        """OpenAI's object."""
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}


def http_error(error: SmoaError | grpc.aio.AioRpcError) -> HttpError:
    """Of an error of ours, or of a service that was called."""
    status = _status_of(error)
    number, kind, code = _BY_CODE.get(grpc.StatusCode(_CODES[status.code]).name, _INTERNAL)
    param, headers, wait_s = None, {}, 0.0
    for detail in status.details:
        if detail.Is(error_details_pb2.BadRequest.DESCRIPTOR):
            param = error_details_pb2.BadRequest.FromString(detail.value).field_violations[0].field
        elif detail.Is(error_details_pb2.RetryInfo.DESCRIPTOR):
            delay = error_details_pb2.RetryInfo.FromString(detail.value).retry_delay
            wait_s = delay.seconds + delay.nanos / 1e9
        elif detail.Is(error_details_pb2.ResourceInfo.DESCRIPTOR):
            kind_of = error_details_pb2.ResourceInfo.FromString(detail.value).resource_type
            param, code = ("model", "model_not_found") if kind_of in ("model", "adapter", "composition") else (kind_of, code)
    if number == 429:
        found = _WAIT.search(status.message)
        wait_s = float(found[1]) if found else 1.0
    if number in (429, 503):
        headers["retry-after"] = str(max(1, int(wait_s + 0.999)))
    if number == 401:
        headers["www-authenticate"] = "Bearer"
    return HttpError(number, status.message, kind, param, code, headers)


_CODES: Final = {code.value[0]: code for code in grpc.StatusCode}


def _status_of(error: SmoaError | grpc.aio.AioRpcError) -> status_pb2.Status:
    if isinstance(error, SmoaError):
        return status_of(error)
    if (said := status_in(error)) is not None:
        return said
    # Of gRPC itself: what it says is of connections and not for callers.
    code = error.code()
    return status_pb2.Status(code=code.value[0], message=f"a service that this needs answered {code.name}; try again")


def not_allowed(method: str, path: str, allowed: str) -> HttpError:
    """A known path, asked for in another way."""
    return HttpError(
        405, f"{method} {path}: is not served; use {allowed}", "invalid_request_error", None, "method_not_allowed", {"allow": allowed}
    )
