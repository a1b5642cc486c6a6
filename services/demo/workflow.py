"""The complete workflow: register, route, answer, report, count, merge, prune, and answer again, beside controls."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from examples.library.jobs import DECOY_JOBS, JOBS
from services.demo.adapters import SEED, small_library
from services.demo.caller import Caller, Query, guessing, queries_of, weighted
from services.demo.session import Session
from services.demo.showing import percentiles, show_table, until
from services.local import LocalStack
from smoa.v1 import common_pb2 as common
from smoa.v1 import registry_pb2

FAILING, UNNEEDED = ("recipe_cuisine", "garden_task"), ("star_sign", "sports_result")
"""Decoys that are asked and fail, and decoys that nobody asks."""
DUPLICATED = ("med_department", "support_intent")
CONTROL_EVERY, TOLD_EVERY = 7, 14
"""The rows that are near 0 are asked every so many of the queries, and the one that is slow."""
MEANS = {
    "base": "the base model, no adapter, given the text alone: it does not know what is wanted of it, so it chats",
    "told": "the base model, told the task in words: of the allowed answers, the one that it finds likeliest",
    "routed": "SMoA: the router chose the adapters",
    "oracle": "the right adapter forced, as if somebody knew each query's job: what routing could reach at best",
    "random": "an adapter of random weights forced",
    "uniform": "all adapters mixed in equal parts",
}
"""What each row of the comparison is."""


async def run(session: Session) -> dict[str, Any]:
    """The whole of it; returns what was measured."""
    started = time.monotonic()
    environment = {
        "SMOA_OPTIMIZER_CANARY_SHARE": "0",  # its traffic is too short for a trial
        "SMOA_OPTIMIZER_INTERVAL_S": "0",
        "SMOA_OPTIMIZER_MIN_AGE_S": "1",
        "SMOA_OPTIMIZER_OBSERVE_FIRST_S": "0",
        "SMOA_OPTIMIZER_UNUSED_AFTER_S": "1",
    }
    async with session.stack("router", "executor", "optimizer", **environment) as running:
        caller = Caller(running.client, running.store, session.console)
        await caller.register(small_library(DUPLICATED))
        queries = await traffic(caller, session.queries_per_job)
        await caller.wait_counted()
        some, told = queries[::CONTROL_EVERY], queries[::TOLD_EVERY]
        asked = {name: queries if name in ("routed", "oracle") else some for name in MEANS} | {"told": told}
        match = await controls(caller, asked)
        counted, before = await caller.counted(), await caller.library()
        with session.console.status("the optimizer merges and prunes"):
            library = await optimise(caller, running.stack)
        touched = [query for query in queries if query.job in DUPLICATED]
        after = await caller.routed_match("after optimising", touched)
    tally = caller.tally
    changes = Changes(library)
    answered = tally.adapter_hits + tally.adapter_misses
    result = {
        "queries": len(queries),
        "control_queries": len(some),
        "told_queries": len(told),
        "decisions": tally.decisions,
        "route_top1": round(tally.top1 / len(queries), 4),
        "route_top3": round(tally.top3 / len(queries), 4),
        "exact_match": {name: round(match[name], 4) for name in ("base", "routed", "oracle", "random", "uniform")},
        "base_told_in_words": round(match["told"], 4),
        "guessing": round(guessing(told), 4),
        "exact_match_before_merge": round(sum(tally.routed[query] for query in touched) / len(touched), 4),
        "exact_match_after_merge": round(after, 4),
        "route_ms": percentiles(tally.route_ms),
        "ttft_ms": percentiles(tally.ttft_ms),
        "router_cache_hit_rate": round(tally.cached / tally.decisions, 4),
        "adapter_cache_hit_rate": round(tally.adapter_hits / answered, 4),
        "events": {"sent": tally.sent, "counted": counted},
        "pruned": changes.pruned,
        "merged": changes.merged,
        "useful_pruned": sorted(set(changes.pruned) & set(JOBS)),
        "adapters": {"before": len(before), "after": len(library) - len(changes.retired)},
        "seconds": round(time.monotonic() - started, 1),
        "avx512": "avx512f" in Path("/proc/cpuinfo").read_text(),
    }
    show_answers(session, match, {name: len(each) for name, each in asked.items()})
    show_library(session, before, changes)
    _show_rest(session, result)
    _conclude(session, result)
    return result


async def traffic(caller: Caller, queries_per_job: int) -> list[Query]:
    """Route, answer and report every test query, in shuffled order, jobs unnamed; a quarter of them come twice."""
    scope = queries_of(JOBS, queries_per_job)
    order = [*scope, *queries_of(FAILING, queries_per_job)]
    random.Random(SEED).shuffle(order)
    repeated = [query for query in order if query.job in JOBS][: len(scope) // 4]
    await caller.ask_all("routed queries", order)
    await caller.ask_all("repeated queries", repeated, first=False)
    return scope


async def controls(caller: Caller, asked: dict[str, list[Query]]) -> dict[str, float]:
    """Share of right answers of each row of `MEANS`."""
    uniform = [weighted(ref, 1.0 / len(caller.refs)) for ref in caller.refs.values()]
    return {
        "base": await caller.exact_match("control: base model", asked["base"], lambda query: ()),
        "told": await caller.told_match("control: told in words", asked["told"]),
        "routed": sum(caller.tally.routed.values()) / len(caller.tally.routed),
        "oracle": await caller.exact_match("control: right adapter", asked["oracle"], lambda query: (caller.refs[query.job],)),
        "random": await caller.exact_match("control: random weights", asked["random"], lambda query: (caller.refs[FAILING[0]],)),
        "uniform": await caller.exact_match("control: all adapters", asked["uniform"], lambda query: uniform),
    }


async def optimise(caller: Caller, stack: LocalStack) -> list[registry_pb2.Adapter]:
    """Ask the optimizer for a pass, wait until it has changed the library and come to rest; returns the library."""
    os.kill(stack.pid("optimizer"), signal.SIGUSR1)
    seen: list[int] = []

    async def at_rest() -> bool:
        seen.append(sum(adapter.state == common.ADAPTER_STATE_RETIRED for adapter in await caller.library()))
        return seen[-1] > 0 and len(seen) > 10 and len(set(seen[-10:])) == 1

    await until("an optimizer pass", 60, at_rest)
    return await caller.library()


class Changes:
    """What became of a library, read from its records."""

    def __init__(self, library: Sequence[registry_pb2.Adapter]) -> None:
        self.library = library
        names = {adapter.adapter_id: adapter.name for adapter in library}
        replaced = {parent for adapter in library if adapter.merge_id for parent in adapter.parents}
        self.retired = [adapter for adapter in library if adapter.state == common.ADAPTER_STATE_RETIRED]
        self.merged = sorted([names[parent] for parent in adapter.parents] for adapter in library if adapter.merge_id)
        self.pruned = sorted(adapter.name for adapter in self.retired if adapter.adapter_id not in replaced and not adapter.merge_id)
        self._replaced = replaced

    def story(self, adapter: registry_pb2.Adapter) -> str:
        """What happened to one, in words."""
        if adapter.state == common.ADAPTER_STATE_CANARY:
            return "made of two near-duplicates, still on trial"
        if adapter.state != common.ADAPTER_STATE_RETIRED:
            return "made of two near-duplicates" if adapter.merge_id else "kept"
        if adapter.merge_id:
            return "made of two near-duplicates, and taken back"
        if adapter.adapter_id in self._replaced:
            return "merged with its near-duplicate"
        return f"pruned: {adapter.state_reason.removeprefix('pruned: ').partition(';')[0]}"


def show_answers(session: Session, match: dict[str, float], asked: dict[str, int]) -> None:
    """The comparison of `MEANS`."""
    show_table(
        session.console,
        "How often the answer is exactly right",
        "Each query is a text of one of sixteen jobs; right is one short label, such as 'dermatology'. The base model alone is near 0%, "
        "because a text without a task asks for nothing. The fair comparison is the row in which it is told the task in words.",
        ("who answers", ">queries", ">right", "what that is"),
        [(name, str(asked[name]), f"{match[name]:.1%}", meaning) for name, meaning in MEANS.items()],
    )


def show_library(session: Session, before: Sequence[registry_pb2.Adapter], changes: Changes) -> None:
    """Every adapter with its counts, and what happened to it."""
    counts = {adapter.adapter_id: adapter.statistics for adapter in before}
    rows = []
    for adapter in sorted(changes.library, key=lambda a: (a.state, a.name)):
        seen = counts.get(adapter.adapter_id, adapter.statistics)
        rate = f"{seen.successes / seen.outcomes:.0%}" if seen.outcomes else "-"
        rows.append((adapter.name, str(seen.uses), rate, changes.story(adapter)))
    show_table(
        session.console,
        "What the optimizer did to the library",
        "Uses and success are what it counted from the events of these queries; `-copy` is a planted near-duplicate. Four decoys of "
        f"random weights were planted too: {', '.join(FAILING)} are asked and fail, {', '.join(UNNEEDED)} are never asked.",
        ("adapter", ">uses", ">success", "what happened"),
        rows,
    )


def _show_rest(session: Session, result: dict[str, Any]) -> None:
    show_table(
        session.console,
        "The rest, in figures",
        f"{result['queries']} queries whose job nobody named, some of them twice; p50 and p99: half and 99 of 100 took at most so long.",
        ("measure", ">value"),
        [
            ("right adapter first / among three", f"{result['route_top1']:.1%} / {result['route_top3']:.1%}"),
            (
                "right answers of the merged jobs, before / after",
                f"{result['exact_match_before_merge']:.1%} / {result['exact_match_after_merge']:.1%}",
            ),
            ("route p50 / p99", f"{result['route_ms']['p50']} / {result['route_ms']['p99']} ms"),
            ("first token p50 / p99, sixteen at once", f"{result['ttft_ms']['p50']} / {result['ttft_ms']['p99']} ms"),
            ("routing cache / adapter cache hits", f"{result['router_cache_hit_rate']:.1%} / {result['adapter_cache_hit_rate']:.1%}"),
            ("events sent / counted", f"{result['events']['sent']} / {result['events']['counted']}"),
            ("adapters before / after", f"{result['adapters']['before']} / {result['adapters']['after']}"),
        ],
    )


def _conclude(session: Session, result: dict[str, Any]) -> None:
    match, events = result["exact_match"], result["events"]
    share = match["routed"] / match["oracle"] if match["oracle"] else 0.0
    counted = "each was counted once" if events["sent"] == events["counted"] else f"{events['counted']} were counted"
    lost = f"the useful {', '.join(result['useful_pruned'])} too" if result["useful_pruned"] else "no useful adapter"
    session.heading("What this shows")
    session.say(
        f"Nobody named a job, and {match['routed']:.0%} of the answers were right: {share:.0%} of what the right adapter gives when it is "
        f"forced ({match['oracle']:.0%}), where the base model told the task in words reaches {result['base_told_in_words']:.0%} "
        f"(guessing among the allowed answers: {result['guessing']:.0%}). {events['sent']} uses and outcomes were reported; {counted}. "
        f"From these the optimizer pruned {len(result['pruned'])} of {len(DECOY_JOBS)} decoys and {lost}, and merged "
        f"{len(result['merged'])} of {len(DUPLICATED)} pairs of near-duplicates; their queries were right "
        f"{result['exact_match_before_merge']:.0%} of the time before, {result['exact_match_after_merge']:.0%} after. "
        f"It took {result['seconds']:.0f} s."
    )
