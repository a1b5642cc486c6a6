"""Every error SMoA raises on purpose, and the one gRPC status each becomes (`smoa.rpc` does the mapping).

A message reads `field: the value's problem; the remedy`.
"""

from __future__ import annotations


class SmoaError(Exception):
    """Root of the hierarchy. `code` is the name of a `grpc.StatusCode`."""

    code = "INTERNAL"


class InvalidArgument(SmoaError):
    """The caller's value is wrong. `field` names it."""

    code = "INVALID_ARGUMENT"

    def __init__(self, field: str, problem: str, remedy: str) -> None:
        super().__init__(f"{field}: {problem}; {remedy}")
        self.field, self.problem, self.remedy = field, problem, remedy


class NotFound(SmoaError):
    """No such thing. `kind` and `identifier` say which."""

    code = "NOT_FOUND"

    def __init__(self, kind: str, identifier: str, remedy: str = "list what exists and check the tenant") -> None:
        super().__init__(f"{kind} {identifier!r} was not found; {remedy}")
        self.kind, self.identifier = kind, identifier


class AlreadyExists(SmoaError):
    """The id is taken by other content."""

    code = "ALREADY_EXISTS"


class FailedPrecondition(SmoaError):
    """The request is fine, the state is not (another base model, a retired adapter)."""

    code = "FAILED_PRECONDITION"


class ResourceExhausted(SmoaError):
    """A bound was reached. `limit` names it."""

    code = "RESOURCE_EXHAUSTED"

    def __init__(self, limit: str, remedy: str) -> None:
        super().__init__(f"{limit}; {remedy}")
        self.limit = limit


class Unavailable(SmoaError):
    """A dependency is away for now; the caller may retry after `retry_delay_s` seconds. `address`: where it was looked for, if known."""

    code = "UNAVAILABLE"

    def __init__(self, message: str, retry_delay_s: float = 1.0, address: str = "") -> None:
        super().__init__(message)
        self.retry_delay_s, self.address = retry_delay_s, address


class DeadlineExceeded(SmoaError):
    """The caller's deadline passed before the work could be done."""

    code = "DEADLINE_EXCEEDED"


class Unauthenticated(SmoaError):
    """Nobody knows who calls."""

    code = "UNAUTHENTICATED"


class PermissionDenied(SmoaError):
    """It is known who calls, and they may not."""

    code = "PERMISSION_DENIED"
