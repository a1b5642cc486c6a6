"""The rules of the contracts, as whoever breaks one is told; and that events and requests are held to the same."""

from __future__ import annotations

import math

import pytest
from google.protobuf.message import Message

from smoa.errors import InvalidArgument
from smoa.events import ADAPTER_OUTCOMES, DECISIONS, EXECUTORS, LIFECYCLE, USAGE, decode
from smoa.rules import check_rules
from smoa.v1 import common_pb2, events_pb2, registry_pb2, router_pb2


@pytest.mark.parametrize(
    ("message", "said"),
    [
        (router_pb2.RouteRequest(task_id="x" * 600_000), "task_id: has 600,000 characters; must be at most 256 characters"),
        (router_pb2.RouteRequest(tags=["a", "b" * 257]), r"tags[1]: has 257 characters; must be at most 256 characters"),
        (router_pb2.RouteRequest(tags=["a"] * 65), "tags: holds 65; must contain no more than 64 item(s)"),
        (
            router_pb2.RouteBatchRequest(requests=[router_pb2.RouteRequest(), router_pb2.RouteRequest(composition="x" * 300)]),
            "requests[1].composition: has 300 characters; must be at most 256 characters",
        ),
        (registry_pb2.RetireAdapterRequest(evidence={"cosine": math.nan}), "evidence[cosine]: is nan; must be finite"),
        (
            registry_pb2.RetireAdapterRequest(evidence={f"e{n}": 1.0 for n in range(40_000)}),
            "evidence: holds 40,000; map must be at most 64 entries",
        ),
        (
            registry_pb2.RetireAdapterRequest(evidence={"x" * 500: 1.0}),
            f"evidence[{'x' * 80}]: has 500 characters; must be at most 64 characters",
        ),
        (events_pb2.ExecutorStatus(running=-(10**6)), "running: is -1000000; must be greater than or equal to 0"),
        (events_pb2.AdapterOutcome(weight=math.inf), "weight: is inf; must be finite"),
        (events_pb2.AdapterOutcome(context=b"x" * 65), "context: has 65 bytes; must be at most 64 bytes"),
    ],
    ids=lambda value: value.split(":")[0] if isinstance(value, str) else "",
)
def test_a_broken_rule_names_its_field_what_is_wrong_and_what_may_be_there(message: Message, said: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        check_rules(message)
    assert str(caught.value) == said


@pytest.mark.parametrize(
    "message",
    [
        router_pb2.RouteRequest(task_id="x" * 256, tags=["é" * 256] * 64),
        registry_pb2.RetireAdapterRequest(evidence={f"e{n}": -1.5 for n in range(64)}),
        registry_pb2.GetAdapterRequest(),
    ],
)
def test_what_keeps_to_the_rules_passes_as_it_is(message: Message) -> None:
    before = message.SerializeToString(deterministic=True)
    check_rules(message)
    assert message.SerializeToString(deterministic=True) == before


@pytest.mark.parametrize(
    ("topic", "message", "field"),
    [
        (DECISIONS, router_pb2.Decision(adapters=[common_pb2.WeightedAdapter(adapter_id=str(n)) for n in range(2_500)]), "adapters"),
        (DECISIONS, router_pb2.Decision(task_id="x" * 600_000), "task_id"),
        (DECISIONS, router_pb2.Decision(adapters=[common_pb2.WeightedAdapter(weight=math.nan)]), r"adapters\[0\].weight"),
        (USAGE, events_pb2.UsageEvent(adapter_id="x" * 65), "adapter_id"),
        (USAGE, events_pb2.UsageEvent(tokens=-1), "tokens"),
        (ADAPTER_OUTCOMES, events_pb2.AdapterOutcome(together=["x"] * 257), "together"),
        (ADAPTER_OUTCOMES, events_pb2.AdapterOutcome(expected=math.nan), "expected"),
        (LIFECYCLE, events_pb2.LifecycleEvent(reason="x" * 3_000), "reason"),
        (EXECUTORS, events_pb2.ExecutorStatus(address="x" * 300), "address"),
    ],
)
def test_an_event_that_breaks_a_rule_is_none(topic: str, message: Message, field: str) -> None:
    with pytest.raises(InvalidArgument, match=f"^{field}: "):
        decode(topic, message.SerializeToString())
