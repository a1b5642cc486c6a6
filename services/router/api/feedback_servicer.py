"""`FeedbackService`: outcomes, on their way to Kafka."""

from __future__ import annotations

import time
from typing import Any

from smoa.access.principal import known_caller
from smoa.events import OUTCOMES, check_outcome, event
from smoa.identifiers import check_ulid, checked_tenant
from smoa.publisher import EventPublisher
from smoa.v1 import feedback_pb2, feedback_pb2_grpc

Context = Any


class FeedbackServicer(feedback_pb2_grpc.FeedbackServiceServicer):
    """`smoa.v1.FeedbackService`: an outcome is acknowledged once it is on disk, on its way to Kafka."""

    def __init__(self, publisher: EventPublisher, leave_bytes: int = 0) -> None:
        """`leave_bytes` of the spool are for others."""
        self._publisher, self._leave_bytes = publisher, leave_bytes

    async def ReportOutcome(  # noqa: N802
        self, request: feedback_pb2.ReportOutcomeRequest, context: Context
    ) -> feedback_pb2.ReportOutcomeResponse:
        """See the contract."""
        outcome = request.outcome
        check_ulid(outcome.decision_id, "outcome.decision_id", "send the id that Route returned")
        outcome.tenant = checked_tenant(outcome.tenant)
        check_outcome(outcome, "outcome.")
        outcome.reported_at_us = outcome.reported_at_us or time.time_ns() // 1000
        self._publisher.publish([event(OUTCOMES, outcome.decision_id, outcome)], self._leave_bytes, known_caller())
        return feedback_pb2.ReportOutcomeResponse()
