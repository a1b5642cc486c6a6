"""The one mapping of errors to gRPC statuses."""

from __future__ import annotations

from typing import Any

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc import code_pb2, error_details_pb2, status_pb2

from smoa.errors import (
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
    SmoaError,
    Unauthenticated,
    Unavailable,
)

STATUS_KEY = "grpc-status-details-bin"
MAX_ERROR_BYTES = 1500


def status_of(error: SmoaError) -> status_pb2.Status:
    """The `google.rpc.Status` of an error: which field, id, limit, precondition or delay."""
    said = _short(str(error))
    detail: Message | None = None
    if isinstance(error, InvalidArgument):
        violation = error_details_pb2.BadRequest.FieldViolation(field=error.field, description=_short(f"{error.problem}; {error.remedy}"))
        detail = error_details_pb2.BadRequest(field_violations=[violation])
    elif isinstance(error, NotFound):
        detail = error_details_pb2.ResourceInfo(resource_type=error.kind, resource_name=_short(error.identifier), description=said)
    elif isinstance(error, FailedPrecondition):
        subject = said.partition(":")[0]
        failed = error_details_pb2.PreconditionFailure.Violation(type="STATE", subject=subject, description=said)
        detail = error_details_pb2.PreconditionFailure(violations=[failed])
    elif isinstance(error, ResourceExhausted):
        quota = error_details_pb2.QuotaFailure.Violation(subject=error.limit.partition(":")[0], description=said)
        detail = error_details_pb2.QuotaFailure(violations=[quota])
    elif isinstance(error, Unavailable):
        whole = int(error.retry_delay_s)
        delay = Duration(seconds=whole, nanos=int((error.retry_delay_s - whole) * 1e9))
        detail = error_details_pb2.RetryInfo(retry_delay=delay)
    elif isinstance(error, PermissionDenied | Unauthenticated):
        detail = error_details_pb2.ErrorInfo(reason=error.code, domain="smoa", metadata={"subject": said.partition(":")[0]})
    status = status_pb2.Status(code=code_pb2.Code.Value(error.code), message=said)
    if detail is not None:
        packed = AnyMessage()
        packed.Pack(detail)
        status.details.append(packed)
    return status


def status_in(error: grpc.aio.AioRpcError) -> status_pb2.Status | None:
    """What a service of ours said of an error; None of gRPC's own, as where nobody was reached."""
    for key, value in error.trailing_metadata() or ():
        if key == STATUS_KEY and isinstance(value, bytes):
            return status_pb2.Status.FromString(value)
    return None


def _short(text: str) -> str:
    """A part of a status: it goes out as metadata, in up to three copies, of which clients take 16 KiB."""
    return text.encode()[:MAX_ERROR_BYTES].decode(errors="ignore")


async def abort(context: grpc.aio.ServicerContext[Any, Any], error: SmoaError) -> None:
    """End a call with an error's status."""
    status = status_of(error)
    await context.abort(grpc.StatusCode[error.code], status.message, ((STATUS_KEY, status.SerializeToString()),))
