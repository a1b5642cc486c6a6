"""A decision in JSON, in headers, and on its way through Envoy. Pure."""

from __future__ import annotations

import base64
import binascii
from typing import Any, Final
from urllib.parse import quote

from google.protobuf.message import DecodeError

from smoa.errors import InvalidArgument
from smoa.rules import check_rules
from smoa.v1 import router_pb2

DECISION_HEADER: Final = "smoa-decision"
"""A decision that was made before the request came here: by the external processor. Whoever sends it may choose adapters themselves."""
ID_HEADER: Final = "smoa-decision-id"
_SHOWN_IN_HEADERS: Final = 16


def shown(decision: router_pb2.Decision, executor: str) -> dict[str, Any]:
    """What a caller is told of a decision: the `smoa` object of an answer."""
    told: dict[str, Any] = {
        "decision_id": decision.decision_id,
        "adapters": [
            {"id": one.adapter_id, "name": one.name, "version": one.version, "weight": round(one.weight, 6)} for one in decision.adapters
        ],
        "confidence": round(decision.confidence, 6) if decision.HasField("confidence") else None,
        "executor": executor,
        "base_model": decision.base_model,
    }
    if decision.by_conversation:
        told["by_conversation"] = True
    if decision.explanations:
        told["explanations"] = [
            {
                "id": one.adapter_id,
                "name": one.name,
                "probability": round(one.probability, 6),
                "cosine": round(one.cosine, 6),
                "confidence": round(one.confidence, 6) if one.HasField("confidence") else None,
                "weight": round(one.weight, 6),
                "before": round(one.before, 6),
                "reason": one.reason,
            }
            for one in decision.explanations
        ]
    return told


def headers_of(decision: router_pb2.Decision, executor: str = "") -> dict[str, str]:
    """The same in headers; names are percent-encoded, as a header holds ASCII only."""
    named = [f"{quote(one.name or one.adapter_id)}:{one.weight:.4g}" for one in decision.adapters[:_SHOWN_IN_HEADERS]]
    told = {ID_HEADER: decision.decision_id, "smoa-adapters": ", ".join(named), "smoa-executor": executor}
    if decision.HasField("confidence"):
        told["smoa-confidence"] = f"{decision.confidence:.4g}"
    return {name: value for name, value in told.items() if value}


def packed(decision: router_pb2.Decision) -> str:
    """A decision as a header, without what only those who count need."""
    kept = router_pb2.Decision()
    kept.CopyFrom(decision)
    for field in ("explanations", "ranked", "context", "user", "closeness"):
        kept.ClearField(field)
    return base64.b64encode(kept.SerializeToString()).decode()


def unpacked(header: str) -> router_pb2.Decision:
    """Inverse of `packed`.

    Raises:
        InvalidArgument: it is no decision.
    """
    try:
        decision = router_pb2.Decision.FromString(base64.b64decode(header, validate=True))
    except (binascii.Error, DecodeError, ValueError) as error:
        raise InvalidArgument(DECISION_HEADER, "is no decision", "leave it out, and it is routed here") from error
    check_rules(decision)
    return decision
