"""Compositions: adapters in parallel, in sequence, and weighted by how they succeed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from examples.library.jobs import DECOY_JOBS, JOBS
from services.demo.adapters import SEED, described, near_duplicate, random_copy, trained
from services.demo.caller import ANSWER_TOKENS, Caller, Query, queries_of
from services.demo.session import Session
from services.demo.showing import run_all, show_table
from smoa.v1 import common_pb2 as common
from smoa.v1 import registry_pb2

ONE, OTHER = "log_severity", "review_aspect"
COPY = f"{ONE}-copy"
STAGES = ("travel_request", "fin_category")
FAILING = "recipe_cuisine"
"""Random weights: whoever asks for recipes gets it, and is answered wrongly."""
QUERIES, PIPED, JUDGED = 15, 8, 12
PARALLEL, SEQUENTIAL = common.COMPOSITION_STRATEGY_PARALLEL, common.COMPOSITION_STRATEGY_SEQUENTIAL


async def run(session: Session) -> dict[str, Any]:
    """Returns what was measured."""
    async with session.stack("router", "executor", "optimizer", SMOA_OPTIMIZER_INTERVAL_S="0") as running:
        caller = Caller(running.client, running.store, session.console)
        rng = np.random.default_rng(SEED)
        library = [described(trained(name), JOBS[name]) for name in (ONE, OTHER, *STAGES)]
        library.append(described(near_duplicate(trained(ONE), rng), JOBS[ONE], seed=1))
        decoy = DECOY_JOBS[FAILING]
        library.append(described(random_copy(trained(ONE), FAILING, rng, (decoy.domain,)), decoy))
        await caller.register(library)
        parallel = await _parallel(session, caller)
        sequential = await _sequential(session, caller)
        success = await _by_success(session, caller)
    session.heading("What this shows")
    alone, copies = parallel["each alone"], parallel["half and half of two copies"]
    whole, half = parallel["both, 1 and 1"], parallel["both, half and half"]
    session.say(
        "A composition is a name for a tree over adapters; the caller routes to the name, the executor carries it out. A sum of two "
        f"near-duplicates answers {copies[ONE]:.0%} of {ONE} rightly, where one alone has {alone[ONE]:.0%}. The adapters of two jobs in "
        f"one sum answer {whole[ONE]:.0%} and {whole[OTHER]:.0%} at full weight, {half[ONE]:.0%} and {half[OTHER]:.0%} at half: a sum is "
        f"for adapters that agree, different jobs are for the router. A pipeline is one call and said what two calls said for "
        f"{sequential['as_by_hand']} of {sequential['queries']} queries. Weighted by success, an adapter that fails lost its part by "
        f"itself: {success['before']:.0%} right before the outcomes, {success['after']:.0%} after."
    )
    return {"parallel": parallel, "sequential": sequential, "by_success": success}


async def _parallel(session: Session, caller: Caller) -> dict[str, dict[str, float]]:
    """Weighted sums, beside each adapter alone: exact match by row and job."""
    trees = {
        "half and half of two copies": ({ONE: 0.5, COPY: 0.5}, [ONE]),
        "both, 1 and 1": ({ONE: 1.0, OTHER: 1.0}, [ONE, OTHER]),
        "both, half and half": ({ONE: 0.5, OTHER: 0.5}, [ONE, OTHER]),
    }
    queries = {job: queries_of([job], QUERIES) for job in (ONE, OTHER)}
    match: dict[str, dict[str, float]] = {"each alone": {}}
    for job, each in queries.items():
        match["each alone"][job] = await caller.exact_match(f"{job} alone", each, lambda query: (caller.refs[query.job],))
    for name, (weights, jobs) in trees.items():
        await caller.client.compose(name, _sum(caller, weights))
        match[name] = {job: await _composed_match(caller, name, f"{name}: {job}", queries[job]) for job in jobs}
    show_table(
        session.console,
        "Parallel: a weighted sum of adapters in one pass",
        f"Right answers of {QUERIES} queries of each job. The first row is each job's own adapter; the others are compositions.",
        ("adapters", f">{ONE}", f">{OTHER}"),
        [(name, *(f"{row[job]:.0%}" if job in row else "-" for job in (ONE, OTHER))) for name, row in match.items()],
    )
    return match


async def _sequential(session: Session, caller: Caller) -> dict[str, Any]:
    """A pipeline, and the same by hand: two calls, the second of which is given what the first said."""
    children = [registry_pb2.CompositionChild(adapter_id=caller.refs[name].adapter_id, max_tokens=ANSWER_TOKENS) for name in STAGES]
    await caller.client.compose("what a trip costs", registry_pb2.CompositionNode(strategy=SEQUENTIAL, children=children))
    rows: list[tuple[str, str, str, str]] = []

    async def one(query: Query) -> None:
        between = await caller.answer(query.text, [caller.refs[STAGES[0]]])
        by_hand = await caller.answer(between, [caller.refs[STAGES[1]]])
        rows.append((query.text, between, by_hand, await _composed(caller, "what a trip costs", query.text)))

    queries = queries_of([STAGES[0]], PIPED)
    await run_all(session.console, "pipeline, and by hand", [lambda query=query: one(query) for query in queries])  # type: ignore[misc]
    show_table(
        session.console,
        "Sequential: a pipeline, each stage is given the text of the one before",
        f"{STAGES[0]} says what a traveller wants, and {STAGES[1]} which spending category that is (it was trained on bank statements, so "
        "do not expect sense of every answer). By hand: two calls, one for each adapter.",
        ("query", "after stage 1", "by hand", "the pipeline"),
        rows[:4],
    )
    return {"queries": len(rows), "as_by_hand": sum(by_hand == piped for _, _, by_hand, piped in rows)}


async def _by_success(session: Session, caller: Caller) -> dict[str, Any]:
    """A sum with an adapter that fails, before its outcomes are counted and after."""
    name, queries = "by success", queries_of([ONE], QUERIES)
    await caller.client.compose(name, _sum(caller, {ONE: 0.5, FAILING: 0.5}), weighting=registry_pb2.COMPOSITION_WEIGHTING_MEASURED_SUCCESS)
    before, weights_before = await _composed_match(caller, name, "before outcomes", queries), await _weights(caller, name)
    await caller.ask_all("queries with outcomes", queries_of([ONE, FAILING], JUDGED, seed=SEED + 1))
    await caller.wait_counted()
    after, weights_after = await _composed_match(caller, name, "after outcomes", queries), await _weights(caller, name)
    counts = {adapter.name: adapter.statistics for adapter in await caller.library()}
    show_table(
        session.console,
        "By success: weights follow what callers report",
        f"Half {ONE} and half an adapter of random weights. Queries for each of them were routed, answered and reported; the weights are "
        f"(successes + 1) / (outcomes + 2), scaled to the same sum. Right before: {before:.0%}, after: {after:.0%}.",
        ("adapter", ">reported right", ">weight before", ">weight after"),
        [
            (one, f"{counts[one].successes:g} of {counts[one].outcomes}", f"{weights_before[one]:.2f}", f"{weights_after[one]:.2f}")
            for one in (ONE, FAILING)
        ],
    )
    return {"before": before, "after": after, "weights_before": weights_before, "weights_after": weights_after}


def _sum(caller: Caller, weights: dict[str, float]) -> registry_pb2.CompositionNode:
    children = [registry_pb2.CompositionChild(adapter_id=caller.refs[name].adapter_id, weight=weight) for name, weight in weights.items()]
    return registry_pb2.CompositionNode(strategy=PARALLEL, children=children)


async def _composed(caller: Caller, composition: str, text: str) -> str:
    """The answer of a composition: routed to by its name, and carried out as the decision says."""
    decision = await caller.client.route(composition=composition, base_model=caller.base_model)
    answer = ""
    async for response in caller.client.carry_out(text, decision, max_tokens=ANSWER_TOKENS):
        answer += response.text
    return answer.strip()


async def _composed_match(caller: Caller, composition: str, label: str, queries: Sequence[Query]) -> float:
    """Share of the queries that a composition answers rightly."""
    right: list[bool] = []

    async def one(query: Query) -> None:
        right.append(await _composed(caller, composition, query.text) == query.answer)

    await run_all(caller.console, label, [lambda query=query: one(query) for query in queries])  # type: ignore[misc]
    return round(sum(right) / len(right), 4)


async def _weights(caller: Caller, composition: str) -> dict[str, float]:
    """Weight of each adapter of a composition, by name."""
    decision = await caller.client.route(composition=composition, base_model=caller.base_model)
    return {caller.names[item.adapter_id]: round(item.weight, 3) for item in decision.adapters}
