"""The page of errors, from smoa/errors.py and their statuses."""

from __future__ import annotations

import inspect
import json

from google.protobuf.json_format import MessageToDict
from google.rpc import code_pb2

from docs.generate.markdown import NOTE
from smoa import errors
from smoa.statuses import status_of

ERRORS: tuple[errors.SmoaError, ...] = (
    errors.InvalidArgument("query", "is empty", "send 1 to 8,192 characters"),
    errors.NotFound("adapter", "01J9ZC3B5T8QH7M2K4N6P0R1SV"),
    errors.AlreadyExists("adapter_id: 01J9ZC3B5T8QH7M2K4N6P0R1SV is taken by other weights; train it again for an id of its own"),
    errors.FailedPrecondition("adapter: 01J9ZC3B5T8QH7M2K4N6P0R1SV is retired; restore it first"),
    errors.ResourceExhausted("max_waiting: 128 requests wait for a row", "send fewer at once, or add an executor"),
    errors.Unavailable("index: the Qdrant server does not answer; try again"),
    errors.Unauthenticated(
        "token: Signature has expired; send `authorization: Bearer TOKEN` with one that the issuer made for this service"
    ),
    errors.PermissionDenied("tenant: 'beta' is not a tenant of support-bot; name one of yours, or ask for a right to it"),
    errors.DeadlineExceeded("deadline: passed while the request waited for a row; allow more time"),
)
"""One of each kind, as a caller sees it."""


def errors_page() -> str:
    """Each kind of error with its gRPC status and details."""
    parts = [
        NOTE,
        "# Errors",
        "A message reads `field: the value's problem; the remedy`. Over gRPC it comes as a status with a `google.rpc.Status` in the "
        "trailer `grpc-status-details-bin`, whose details a program can read. The command line prints it and ends with exit code 1.\n",
        "| error | gRPC status | may it be sent again? |\n|---|---|---|",
    ]
    again = {
        "UNAVAILABLE": "yes, after the delay that it names",
        "RESOURCE_EXHAUSTED": "yes, more slowly",
        "DEADLINE_EXCEEDED": "yes, with more time",
    }
    parts += [f"| `{type(one).__name__}` | `{one.code}` | {again.get(one.code, 'not as it is')} |" for one in ERRORS]
    for example in ERRORS:
        kind, status = type(example), status_of(example)
        details = [MessageToDict(detail) for detail in status.details]
        parts += [
            f"\n## `{kind.__name__}`\n",
            f"{inspect.cleandoc(kind.__doc__ or '')}\n\ngRPC status `{example.code}` ({code_pb2.Code.Value(example.code)}). For example:\n",
            f"```text\n{example}\n```",
        ]
        if details:
            parts.append("with the detail\n\n```json\n" + json.dumps(details[0], indent=2) + "\n```")
    return "\n".join(parts) + "\n"
