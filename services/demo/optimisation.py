"""Optimisation: decoys are pruned, near-duplicates merged on trial, and what was done is taken back."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

from services.demo.adapters import SEED, small_library
from services.demo.caller import Caller, queries_of
from services.demo.session import Session
from services.demo.showing import show_table, until
from services.demo.workflow import Changes
from smoa.v1 import common_pb2 as common
from smoa.v1 import registry_pb2

DUPLICATED = ("med_department", "support_intent")
KEPT = ("log_severity", "home_command")
FAILING, UNNEEDED = "recipe_cuisine", "garden_task"
EACH, A_ROUND, MAX_ROUNDS = 14, 10, 12
TRIAL_MARGIN = 0.3
"""So wide only because this is short: the default is 0.1, for which ten times as many outcomes are needed."""
ENVIRONMENT = {
    "SMOA_OPTIMIZER_INTERVAL_S": "0",  # a pass when it is asked for
    "SMOA_OPTIMIZER_MIN_AGE_S": "1",
    "SMOA_OPTIMIZER_OBSERVE_FIRST_S": "0",
    "SMOA_OPTIMIZER_MIN_USES": "5",
    "SMOA_OPTIMIZER_UNUSED_AFTER_S": "1",
    "SMOA_OPTIMIZER_CANARY_SHARE": "0.5",
    "SMOA_OPTIMIZER_TRIAL_MARGIN": str(TRIAL_MARGIN),
    "SMOA_OPTIMIZER_TRIAL_PARENT_MARGIN": str(TRIAL_MARGIN),
}


async def run(session: Session) -> dict[str, Any]:
    """Returns what was measured."""
    async with session.stack("router", "executor", "optimizer", **ENVIRONMENT) as running:
        caller = Caller(running.client, running.store, session.console)
        await caller.register(small_library(DUPLICATED, (FAILING, UNNEEDED), (*DUPLICATED, *KEPT)))
        queries = queries_of((*DUPLICATED, *KEPT), EACH)
        await caller.ask_all("queries with outcomes", [*queries, *queries_of([FAILING], EACH)])
        await caller.wait_counted()
        touched = [query for query in queries if query.job in DUPLICATED]
        right_before = sum(caller.tally.routed[query] for query in touched) / len(touched)
        before = await caller.library()

        os.kill(running.stack.pid("optimizer"), signal.SIGUSR1)
        with session.console.status("the optimizer prunes, merges, and puts what it merged on trial"):
            await until("a trial of both merges", 120, lambda: _in_state(caller, common.ADAPTER_STATE_CANARY, len(DUPLICATED)))
        rounds = await _trials(caller)
        after = await caller.library()
        right_after = await caller.routed_match("after the trials", touched)
        undone = await _undo(caller, after)
    changes = Changes(after)
    active = sum(adapter.state == common.ADAPTER_STATE_ACTIVE for adapter in after)
    result = {
        "adapters": {"before": len(before), "after": active},
        "pruned": changes.pruned,
        "merged": changes.merged,
        "trial_rounds": rounds,
        "right_before": round(right_before, 4),
        "right_after": round(right_after, 4),
        "undone": [adapter.name for adapter in undone],
    }
    _show(session, before, changes, {adapter.adapter_id for adapter in undone}, result)
    return result


async def _in_state(caller: Caller, state: common.AdapterState, count: int) -> bool:
    return sum(adapter.state == state for adapter in await caller.library()) == count


async def _trials(caller: Caller) -> int:
    """Ask the merged jobs' queries, in rounds, until no trial is open; returns how many rounds that took."""
    for number in range(1, MAX_ROUNDS + 1):
        queries = queries_of(DUPLICATED, A_ROUND, seed=SEED + number)
        await caller.ask_all(f"trial, round {number}", queries, first=False)
        await caller.wait_counted()
        settled_by = time.monotonic() + 3
        while time.monotonic() < settled_by:
            if await _in_state(caller, common.ADAPTER_STATE_CANARY, 0):
                return number
    return MAX_ROUNDS


async def _undo(caller: Caller, library: list[registry_pb2.Adapter]) -> list[registry_pb2.Adapter]:
    """What `smoa optimizer undo` does: bring back one that was pruned, and undo one merge; returns those that are active again."""
    changes = Changes(library)
    pruned = next((adapter for adapter in changes.retired if adapter.name in changes.pruned), None)
    child = next((adapter for adapter in library if adapter.merge_id and adapter.state == common.ADAPTER_STATE_ACTIVE), None)
    if pruned is not None:
        await caller.client.restore("public", pruned.adapter_id)
    if child is not None:
        await caller.client.settle_trial("public", child.adapter_id, promote=False, reason="undone by the demonstration")
    was_active = {adapter.adapter_id for adapter in library if adapter.state == common.ADAPTER_STATE_ACTIVE}
    active = [adapter async for adapter in caller.client.list_all()]
    return sorted((adapter for adapter in active if adapter.adapter_id not in was_active), key=lambda adapter: adapter.name)


def _show(session: Session, before: list[registry_pb2.Adapter], changes: Changes, undone: set[str], result: dict[str, Any]) -> None:
    counts = {adapter.adapter_id: adapter.statistics for adapter in before}
    rows = []
    for adapter in sorted(changes.library, key=lambda one: (one.state, one.name)):
        seen = counts.get(adapter.adapter_id, adapter.statistics)
        rate = f"{seen.successes:g} of {seen.outcomes}" if seen.outcomes else "-"
        is_back, parent_is_back = adapter.adapter_id in undone, bool(undone & set(adapter.parents) and adapter.merge_id)
        back = ", then brought back" if is_back else ", then undone" if parent_is_back else ""
        rows.append((adapter.name, str(seen.uses), rate, f"{changes.story(adapter)}{back}"))
    show_table(
        session.console,
        "The library before and after",
        f"Four trained adapters, near-duplicates (-copy) of two of them, and two of random weights: {FAILING} is asked and fails, "
        f"{UNNEEDED} is never asked. Uses and right answers are those before the pass, of a merge's child those of its trial. A "
        f"child first answers half of its parents' queries, and stays once it is shown, for each of them, that at most "
        f"{TRIAL_MARGIN:.0%} fewer of its answers are right.",
        ("adapter", ">uses", ">right", "what happened"),
        rows,
    )
    session.heading("What this shows")
    session.say(
        f"{result['adapters']['before']} adapters became {result['adapters']['after']}: {len(result['pruned'])} pruned, "
        f"{len(result['merged'])} pairs merged after {result['trial_rounds']} rounds of a trial. The merged jobs' queries were right "
        f"{result['right_before']:.0%} of the time before and {result['right_after']:.0%} after. Nothing is deleted: "
        f"{', '.join(result['undone']) or 'nothing'} came back when one prune and one merge were undone, as `smoa optimizer undo` does, "
        "and the history has every change with its numbers."
    )
