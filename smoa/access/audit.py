"""Who did what with which right, and who was refused, as events."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from google.protobuf.json_format import MessageToJson
from google.protobuf.message import Message

from smoa.access.access import Admitted
from smoa.access.principal import known_caller
from smoa.errors import SmoaError
from smoa.events import AUDIT, Event, event
from smoa.v1 import events_pb2, registry_pb2

_log = logging.getLogger(__name__)
TELL_S: Final = 10.0
"""Refusals that are alike are told together, so often: or whoever is refused could fill the disk."""
MAX_ALIKE: Final = 1000
"""Kinds of refusals between two tellings; more are counted as nobody's of `other`."""
_NAMED_BY: Final = ("change_id", "adapter_id", "composition_id", "child_id", "digest", "child_digest", "name")
_NOBODY: Final = "nobody known"
_TOGETHER: Final = frozenset({"UNAUTHENTICATED", "PERMISSION_DENIED", "RESOURCE_EXHAUSTED"})
"""Nothing was done, and whoever wants may ask as often as it likes."""
REFUSALS: Final = frozenset({"UNAUTHENTICATED", "PERMISSION_DENIED"})
Later = Callable[[float, Callable[[], None]], object]
Refusal = tuple[str, str, str]
"""Caller, method and status."""


@dataclass
class Asked:
    """A call, as far as it is known."""

    method: str
    admitted: Admitted | None = None
    request: Message | None = None
    adapters: int = 0
    """Of an import, those that came so far."""
    response: object = None
    """Of one that was answered at once."""
    before: Sequence[str] = ()
    """States of what it changes, before."""

    def held(self, request: Message) -> None:
        """Hold a request to the contract and to the caller's rights.

        Raises:
            InvalidArgument, PermissionDenied: see `Admitted`.
        """
        assert self.admitted is not None
        self.admitted.check(request)
        if isinstance(request, registry_pb2.UploadAdapterRequest):
            if self.request is None:  # the first says whose and which, the others bring the file
                self.request = request.register
            return
        self.request = request
        if isinstance(request, registry_pb2.ImportAdaptersRequest):
            self.adapters += len(request.adapters)


class Audit:
    """Tells of changes at once, and of refusals now and then."""

    def __init__(self, publish: Callable[[Sequence[Event], str], None], later: Later | None = None) -> None:
        """`publish` takes events of a caller (empty: nobody's) durably, or raises a `SmoaError`. `later` calls something after a time; else
        the running loop does.
        """
        self._publish, self._later = publish, later
        self._refused: Counter[Refusal] = Counter()
        self.refusals: Counter[str] = Counter()
        """By status, since the start."""
        self.lost = 0
        """Events that the spool did not take; they are in the log."""

    def ended(self, asked: Asked, status: str) -> None:
        """Of a call, as it ended."""
        if status in _TOGETHER:
            self._refuse(asked.admitted.principal.name if asked.admitted else "", asked.method, status)
        elif asked.admitted is not None and asked.admitted.rights.audited:
            self._done(asked.admitted, asked, status)

    def _done(self, admitted: Admitted, asked: Asked, status: str) -> None:
        request, adapters = asked.request, asked.adapters
        subject = (
            f"{adapters:,} adapters" if adapters else next((str(value) for name in _NAMED_BY if (value := getattr(request, name, ""))), "")
        )
        made = events_pb2.AuditEvent(
            caller=admitted.principal.name[:256],
            method=admitted.rights.method[:256],
            tenant=getattr(request, "tenant", "")[:64],
            subject=subject[:256],
            roles=sorted(admitted.principal.roles & admitted.rights.roles),
            status=status,
            count=1,
            occurred_at_us=time.time_ns() // 1000,
            reason=getattr(request, "reason", "")[:2000],
            evidence=dict(getattr(request, "evidence", {})),
            before=asked.before[0] if asked.before else "",
            after=_state_of(asked.response) if isinstance(asked.response, Message) else "",
        )
        self._publish_all([made], known_caller())

    def _refuse(self, caller: str, method: str, status: str) -> None:
        self.refusals[status] += 1
        kind = caller[:256], method[:256], status
        if kind not in self._refused and len(self._refused) >= MAX_ALIKE:
            kind = "", "other", status
        if not self._refused:
            (self._later or asyncio.get_running_loop().call_later)(TELL_S, self.tell)
        self._refused[kind] += 1

    def tell(self) -> None:
        """Of the refusals since the last time."""
        now_us = time.time_ns() // 1000
        made = [
            events_pb2.AuditEvent(caller=caller, method=method, status=status, count=count, occurred_at_us=now_us)
            for (caller, method, status), count in self._refused.items()
        ]
        self._refused.clear()
        if made:
            self._publish_all(made)

    def _publish_all(self, made: Sequence[events_pb2.AuditEvent], owner: str = "") -> None:
        """What has been done stays done, and is logged where it cannot be told."""
        try:
            self._publish([event(AUDIT, one.caller or _NOBODY, one) for one in made], owner)
        except SmoaError as error:
            self.lost += len(made)
            for one in made:
                _log.error("not on %s (%s): %s", AUDIT, error, MessageToJson(one, indent=None))


def _state_of(response: Message) -> str:
    """As a word; nothing of what has none."""
    field = response.DESCRIPTOR.fields_by_name.get("state")
    if field is None or field.enum_type is None:
        return ""
    names = field.enum_type.values_by_number
    prefix = names[0].name.removesuffix("UNSPECIFIED")
    return str(names[response.state].name).removeprefix(prefix).lower()  # type: ignore[attr-defined]


def refusals_of(audit: Audit) -> list[tuple[str, str, float]]:
    """(name, help, value) of the counters that a service's metrics have of it."""
    return [
        ("refused_unauthenticated", "Calls of which nothing said who made them.", audit.refusals["UNAUTHENTICATED"]),
        ("refused_permission_denied", "Calls that their callers have no right to.", audit.refusals["PERMISSION_DENIED"]),
        ("audit_events_lost", "Audit events that are in the log only, as the spool did not take them.", audit.lost),
    ]
