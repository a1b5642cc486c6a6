"""How much a caller may do in a second."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smoa.access.access import Admitted
from smoa.access.principal import Principal
from smoa.access.rates import SAVED_S, Rate, Rates
from smoa.access.rights import rights_of
from smoa.errors import ResourceExhausted
from smoa.v1 import registry_pb2, router_pb2

PER_S = 4.0


@given(st.lists(st.tuples(st.sampled_from("ab"), st.floats(0.0, 20.0), st.integers(1, 60)), max_size=60))
def test_a_caller_gets_what_it_saved_up_and_no_more_whatever_others_do(steps: list[tuple[str, float, int]]) -> None:
    now = 1000.0
    rate = Rate("calls", PER_S, clock=lambda: now)
    balance, seen_at = dict.fromkeys("ab", PER_S * SAVED_S), dict.fromkeys("ab", now)
    for caller, pause_s, amount in steps:
        now += pause_s
        balance[caller] = min(PER_S * SAVED_S, balance[caller] + (now - seen_at[caller]) * PER_S)
        seen_at[caller] = now
        short = min(amount, PER_S * SAVED_S) - balance[caller]
        if abs(short) < 1e-6:
            return  # by a rounding, either
        if short > 0:
            with pytest.raises(ResourceExhausted):
                rate.take(caller, amount)
        else:
            rate.take(caller, amount)
            balance[caller] -= amount


def test_what_is_owed_is_waited_for() -> None:
    now = 0.0
    rate = Rate("calls", PER_S, clock=lambda: now)
    assert [rate.owe("a", 20), rate.owe("a", 20), rate.owe("a", 8), rate.owe("a", 8)] == [0.0, 0.0, 2.0, 4.0]
    with pytest.raises(ResourceExhausted, match=r"^calls: a is over 4 a second; wait 4\.2 s, or ask for a higher limit$"):
        rate.take("a")
    now = 4.3
    rate.take("a")


def test_many_callers_are_forgotten_once_they_have_all_that_they_can_have() -> None:
    now = 0.0
    rate = Rate("calls", PER_S, clock=lambda: now)
    for number in range(5000):
        rate.take(str(number))
        now += 0.01
    assert len(rate._full_at_s) <= 1024 + 1
    rate.take("4999", PER_S * SAVED_S - 1)
    with pytest.raises(ResourceExhausted):
        rate.take("4999", 1)


def test_no_limit_is_none() -> None:
    rate = Rate("calls", 0.0)
    rate.take("a", 1e12)
    assert rate.owe("a", 1e12) == 0.0


def _admitted(method: str, *roles: str) -> Admitted:
    return Admitted(Principal("a", frozenset("a"), frozenset(roles)), rights_of(f"/smoa.v1.{method}"))


def test_what_a_call_has_many_of_counts_as_often() -> None:
    rates = Rates(Rate("calls", 1.0, clock=lambda: 0.0), Rate("changes", 0.1, clock=lambda: 0.0))
    batch = router_pb2.RouteBatchRequest(requests=[router_pb2.RouteRequest()] * 9)
    route, batches = _admitted("RouterService/Route", "infer"), _admitted("RouterService/RouteBatch", "infer")
    rates.begin(batches)
    rates.take(batches, batch)
    rates.begin(route)
    rates.take(route, router_pb2.RouteRequest())
    with pytest.raises(ResourceExhausted, match=r"^calls: "):
        rates.begin(route)
    rates.begin(_admitted("RouterService/RouteBatch", "optimizer"))  # a service
    rates.take(_admitted("RouterService/RouteBatch", "optimizer"), batch)
    both = Rates(Rate("calls", 1.0, clock=lambda: 0.0), Rate("changes", 0.1, clock=lambda: 0.0))
    retires = _admitted("RegistryService/RetireAdapter", "library")
    both.begin(retires)
    for _ in range(20):
        with pytest.raises(ResourceExhausted, match=r"^changes: "):
            both.begin(retires)
    for _ in range(9):
        both.begin(route)  # what was refused used up nothing
    changing = Rates(Rate("calls", 0.0), Rate("changes", 1.0, clock=lambda: 0.0))
    imports = _admitted("RegistryService/ImportAdapters", "library")
    changing.begin(imports)
    request = registry_pb2.ImportAdaptersRequest(adapters=[registry_pb2.ImportedAdapter()] * 5)
    assert [changing.owe(imports, request) for _ in range(3)] == [0.0, 1.0, 6.0]
    uploads = _admitted("RegistryService/UploadAdapter", "library")
    assert changing.owe(uploads, registry_pb2.UploadAdapterRequest(part=b"x")) == 0.0, "parts of one change are one change"
    with pytest.raises(ResourceExhausted, match=r"^changes: "):
        changing.begin(uploads)
