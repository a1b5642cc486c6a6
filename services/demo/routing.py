"""Routing: which adapters a query gets, when it gets none, and what hints, tenants and the cache do. Needs a router only."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import grpc

from examples.library.jobs import DECOY_JOBS, JOBS
from services.demo.adapters import job_of, small_library
from services.demo.caller import Caller, Query, queries_of
from services.demo.session import Session
from services.demo.showing import percentiles, run_all, show_table
from smoa.v1 import router_pb2

SHOWN = ("med_department", "legal_request", "log_severity", "travel_request")
SMALL_TALK = ("hello, how are you today?", "tell me a joke about penguins", "what is the meaning of life?", "thanks, that was all")
UNSERVED = tuple(DECOY_JOBS)
"""Jobs that no adapter of this library was trained for."""


async def run(session: Session) -> dict[str, Any]:
    """Returns what was measured."""
    async with session.stack("router") as running:
        caller = Caller(running.client, running.store, session.console)
        await caller.register(small_library((), decoys=()))
        shown = [*queries_of(SHOWN, 1), *(Query("", text, "") for text in SMALL_TALK[:2])]
        decisions = [(query, await caller.client.route(query.text, base_model=caller.base_model)) for query in shown]
        _show_decisions(session, caller, decisions)

        inside, outside = queries_of(JOBS, session.queries_per_job), queries_of(UNSERVED, session.queries_per_job)
        outside += [Query("", text, "") for text in SMALL_TALK]
        first, first_ms = await _ask(caller, "first time", inside)
        again, again_ms = await _ask(caller, "again", inside)
        strange, _ = await _ask(caller, "out of scope", outside)
        hinted, _ = await _ask(caller, "with a tag", inside, hint=True)
        stranger = await _answer_to_a_stranger(caller, inside[0])
    result = {
        "adapters": len(caller.refs),
        "queries": len(inside),
        "top1": _right(caller, inside, first, 1),
        "top3": _right(caller, inside, first, 3),
        "top1_with_a_tag": _right(caller, inside, hinted, 1),
        "no_adapter_in_scope": _share([not decision.adapters for decision in first]),
        "no_adapter_out_of_scope": _share([not decision.adapters for decision in strange]),
        "out_of_scope_queries": len(outside),
        "route_ms": percentiles(first_ms),
        "cached_share": _share([decision.cached for decision in again]),
        "cached_ms": percentiles(again_ms),
        "other_tenant": stranger,
    }
    _show_figures(session, result)
    return result


async def _ask(caller: Caller, label: str, queries: Sequence[Query], hint: bool = False) -> tuple[list[router_pb2.Decision], list[float]]:
    """Decisions in the queries' order, and the milliseconds that each took, one after the other."""
    decisions: list[router_pb2.Decision] = []
    taken_ms: list[float] = []

    async def one(query: Query) -> None:
        tags = [JOBS[query.job].domain] if hint else []
        started = time.perf_counter()
        decisions.append(await caller.client.route(query.text, base_model=caller.base_model, tags=tags))
        taken_ms.append((time.perf_counter() - started) * 1000)

    await run_all(caller.console, label, [lambda query=query: one(query) for query in queries], at_once=1)  # type: ignore[misc]
    return decisions, taken_ms


async def _answer_to_a_stranger(caller: Caller, query: Query) -> str:
    """The status that a tenant gets that has no adapters: it sees nobody else's."""
    try:
        await caller.client.route(query.text, base_model=caller.base_model, tenant="somebody-else")
    except grpc.aio.AioRpcError as error:
        return error.code().name
    return "a decision"


def _right(caller: Caller, queries: Sequence[Query], decisions: Sequence[router_pb2.Decision], among: int) -> float:
    """Share of the queries whose job's adapter is among the first so many of the decision."""
    jobs = [[job_of(caller.names[item.adapter_id]) for item in decision.adapters[:among]] for decision in decisions]
    return _share([query.job in names for query, names in zip(queries, jobs, strict=True)])


def _share(values: Sequence[bool]) -> float:
    return round(sum(values) / len(values), 4)


def _show_decisions(session: Session, caller: Caller, decisions: Sequence[tuple[Query, router_pb2.Decision]]) -> None:
    def adapters(decision: router_pb2.Decision) -> str:
        named = (f"{caller.names[item.adapter_id]} {item.weight:.2f}" for item in decision.adapters)
        return ", ".join(named) or "none: the base model answers"

    show_table(
        session.console,
        "What a decision looks like",
        "The router compares a query with the example inputs that each adapter was registered with, and answers with up to three adapters "
        "and their weights; `sure` is the probability that the query is one for the first of them. Under 45% it names none.",
        ("query", "adapters and weights", ">sure"),
        [
            (query.text, adapters(decision), f"{decision.confidence:.0%}" if decision.HasField("confidence") else "-")
            for query, decision in decisions
        ],
    )


def _show_figures(session: Session, result: dict[str, Any]) -> None:
    show_table(
        session.console,
        "The same, counted",
        f"{result['queries']} test queries of {result['adapters']} jobs, and {result['out_of_scope_queries']} texts that are no adapter's: "
        "small talk and four jobs that nobody trained. A tag is what a caller may know of its query, here the domain.",
        ("measure", ">value"),
        [
            ("right adapter first / among three", f"{result['top1']:.1%} / {result['top3']:.1%}"),
            ("right adapter first, with a tag", f"{result['top1_with_a_tag']:.1%}"),
            (
                "no adapter: in scope (a loss) / out of scope (right)",
                f"{result['no_adapter_in_scope']:.1%} / {result['no_adapter_out_of_scope']:.1%}",
            ),
            ("time of a call, p50 / p99", f"{result['route_ms']['p50']} / {result['route_ms']['p99']} ms"),
            ("asked again: from the cache", f"{result['cached_share']:.1%}"),
            ("time of such a call, p50 / p99", f"{result['cached_ms']['p50']} / {result['cached_ms']['p99']} ms"),
            ("what a tenant without adapters is answered", result["other_tenant"]),
        ],
    )
    session.heading("What this shows")
    ms, cached_ms = result["route_ms"]["p50"], result["cached_ms"]["p50"]
    session.say(
        f"With nothing said but the text, the right adapter of {result['adapters']} comes first for {result['top1']:.0%} of the queries, "
        f"with one tag for {result['top1_with_a_tag']:.0%}. {result['no_adapter_out_of_scope']:.0%} of the texts that are nobody's get no "
        f"adapter, at the cost of {result['no_adapter_in_scope']:.0%} of the others. A decision takes {ms} ms, one from the cache "
        f"{cached_ms} ms. A tenant sees its own adapters and those that are shared, nobody else's."
    )
