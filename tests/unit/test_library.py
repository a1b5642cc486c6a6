"""Who may be routed to what: one pool for an adapter, two for a query, and nothing else decides."""

from __future__ import annotations

import dataclasses

from hypothesis import given, settings
from hypothesis import strategies as st

from services.router.catalogue.records import AdapterRecord, Reach, State, pool_of
from smoa.identifiers import TENANT_PATTERN
from tests.contract.test_library import record

TENANTS = st.sampled_from(("public", "acme", "acme.eu", "a", "b-1")) | st.from_regex(TENANT_PATTERN, fullmatch=True)
BASES = st.sampled_from(("base", "base/acme", "*/base", "b" * 64)) | st.text(min_size=1, max_size=8)
RECORDS = st.builds(
    lambda tenant, base_model, shared, state: record(tenant=tenant, base_model=base_model, shared=shared, state=state),
    TENANTS,
    BASES,
    st.booleans(),
    st.sampled_from(("active", "retired", "purged")),
)


@settings(max_examples=300, derandomize=True, deadline=None)
@given(RECORDS, TENANTS, BASES)
def test_an_adapter_is_in_the_pools_of_exactly_those_who_may_use_it(one: AdapterRecord, tenant: str, base_model: str) -> None:
    for asked_tenant, asked_base in (
        (tenant, base_model),
        (one.tenant, base_model),
        (tenant, one.base_model),
        (one.tenant, one.base_model),
    ):
        reach = Reach(tenant=asked_tenant, base_model=asked_base)
        may = one.state == "active" and one.base_model == asked_base and (one.shared or one.tenant == asked_tenant)
        assert (pool_of(one) in reach.pools) == reach.admits(one) == may
        own = dataclasses.replace(reach, own_only=True)
        assert (pool_of(one) in own.pools) == own.admits(one) == (may and not one.shared)


def test_states_other_than_active_have_no_pool() -> None:
    states: tuple[State, ...] = ("retired", "purged")
    assert [pool_of(record(state=state, shared=shared)) for state in states for shared in (True, False)] == [""] * 4
