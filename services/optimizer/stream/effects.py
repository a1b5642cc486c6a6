"""What a decision and each verdict on it mean to its adapters, and to what is learned from. Pure.

Whatever comes again, in whatever order of the two topics, has the same effects again: each verdict's is the difference between what stood
for the decision before it and what stands after it, in the order in which an entry took them in. Both are kept with the verdicts, for the
weights of sources may be others when it comes again.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from typing import Final

from smoa.errors import InvalidArgument
from smoa.events import adapter_ids_of
from smoa.v1 import feedback_pb2, router_pb2
from smoa.v1.events_pb2 import AdapterOutcome, Correction, Example, TrialEffect
from smoa.v1.state_pb2 import JoinEntry, Verdict
from smoa.verdicts import EVERY_SOURCE, MAX_VERDICTS, Standing, is_new, standing

FAILURES: Final = "failures/"
"""Before a tenant's name: the key of its corrected failures."""
MAX_CLAIMS: Final = 4
"""Tenants whose verdicts on a decision are kept before the decision itself has come."""


class Lane:
    """Where events come from: positions rise along it."""

    def __init__(self, topic: str, partition: int) -> None:
        self.topic, self.partition = topic, partition


def join_decision(entry: JoinEntry, decision: router_pb2.Decision, position: int, lane: Lane) -> list[AdapterOutcome]:
    """A decision came: changes the entry and returns the effects.

    The same event again (a replay) has the same effects again; another event of the same decision has none.

    Raises:
        InvalidArgument: what it names can be no adapter.
    """
    adapter_ids = adapter_ids_of(decision)
    if not entry.decided:
        entry.decided, entry.tenant, entry.decided_position = True, decision.tenant, position
        entry.decided_at_us, entry.task_id = decision.decided_at_us, decision.task_id
        entry.adapter_ids.extend(adapter_ids)
        entry.weights.extend([one.weight for one in decision.adapters])
        entry.user = decision.user
        for adapter in decision.adapters:
            if adapter.HasField("trial"):
                entry.on_trial[adapter.adapter_id].CopyFrom(adapter.trial)
        if decision.HasField("closeness"):
            entry.closeness.CopyFrom(decision.closeness)
            entry.base_model = decision.base_model
        if decision.context:
            entry.context, expected = decision.context, {one.adapter_id: one.expected for one in decision.ranked}
            entry.expected.extend([expected.get(one, 0.0) for one in adapter_ids])
        if entry.verdicts:
            for other in [one for one in entry.verdicts if one.tenant != decision.tenant]:
                entry.verdicts.remove(other)
            entry.early = len(entry.verdicts)
    elif entry.decided_position != position:
        return []
    if not entry.early:
        return _effects(entry, lane, position, entry.decided_at_us, None, None, used=True)
    last = entry.verdicts[entry.early - 1]
    made = _effects(entry, lane, position, entry.decided_at_us, _stood_after(last), None, used=True)
    return made + _taught(entry, lane, position, entry.decided_at_us, last)


def join_outcome(
    entry: JoinEntry, outcome: feedback_pb2.Outcome, position: int, lane: Lane, weights: Mapping[str, float] = EVERY_SOURCE
) -> list[AdapterOutcome]:
    """An outcome came, perhaps before its decision: changes the entry and returns the effects. Of a source, the highest revision stands.

    Raises:
        InvalidArgument: the decision is another tenant's, too many tenants claim one that has not come, or it was judged too often.
    """
    tenant = outcome.tenant or "public"
    if entry.decided and entry.tenant != tenant:
        raise InvalidArgument(
            "tenant", f"{tenant[:80]!r} did not ask for this decision", "report outcomes under the tenant that was routed"
        )
    place = place_of_verdict(entry, tenant, position)
    if place is None:
        place = _add_verdict(entry, tenant, outcome, position, weights)
    if place is None or not entry.decided or place < entry.early:
        return []
    verdict = entry.verdicts[place]
    before = _stood_after(entry.verdicts[place - 1]) if place else None
    after, at_us = _stood_after(verdict), _since_us(entry, place)
    made = [] if before == after else _effects(entry, lane, position, at_us, after, before, used=False)
    return made + _taught(entry, lane, position, at_us, verdict)


def place_of_verdict(entry: JoinEntry, tenant: str, position: int) -> int | None:
    """Which of the entry's verdicts an event of a tenant has brought; None if none of them."""
    for place, one in enumerate(entry.verdicts):
        if one.position == position and one.tenant == tenant:
            return place
    return None


def _add_verdict(entry: JoinEntry, tenant: str, outcome: feedback_pb2.Outcome, position: int, weights: Mapping[str, float]) -> int | None:
    """Where it stands; None where it says nothing new, or its source is left out."""
    mine = [one for one in entry.verdicts if one.tenant == tenant] if entry.verdicts else []
    if (mine and not is_new(outcome, mine)) or (outcome.source and weights.get(outcome.source, 1.0) <= 0):
        return None
    if not mine and len(entry.verdicts) >= MAX_CLAIMS and len({one.tenant for one in entry.verdicts}) >= MAX_CLAIMS:
        raise InvalidArgument(
            "tenant", f"{tenant[:80]!r} is one of too many that claim a decision that has not come", f"at most {MAX_CLAIMS} may"
        )
    if len(mine) >= MAX_VERDICTS:
        raise InvalidArgument("revision", f"is the decision's {len(mine) + 1}th verdict", f"at most {MAX_VERDICTS} are counted")
    verdict = entry.verdicts.add(
        tenant=tenant,
        success=outcome.success,
        position=position,
        reported_at_us=outcome.reported_at_us,
        right_adapter_id=outcome.right_adapter_id,
        source=outcome.source,
        revision=outcome.revision,
        withdrawn=outcome.withdrawn,
    )
    if outcome.HasField("score"):
        verdict.score = outcome.score
    if (stands := standing([*mine, verdict], weights)) is not None:
        verdict.stands, verdict.stands_success = True, stands.success
        if stands.score is not None:
            verdict.stands_score = stands.score
    if not entry.decided:
        for other in mine:  # an entry has to fit into a message of the changelog
            other.input = other.output = other.corrected_output = ""
        verdict.input, verdict.output, verdict.corrected_output = outcome.input, outcome.output, outcome.corrected_output
    return len(entry.verdicts) - 1


def _stood_after(verdict: Verdict) -> Standing | None:
    if not verdict.stands:
        return None
    return Standing(verdict.stands_success, verdict.stands_score if verdict.HasField("stands_score") else None)


def _since_us(entry: JoinEntry, place: int) -> int:
    """When what stands before a verdict, or after it, was first said: a correction is of the time of what it corrects."""
    while place > 0 and entry.verdicts[place - 1].stands:
        place -= 1
    return entry.decided_at_us if place < entry.early else _reported_at_us(entry, entry.verdicts[place])


def _reported_at_us(entry: JoinEntry, outcome: feedback_pb2.Outcome | Verdict) -> int:
    """When an outcome was reported: no earlier than its decision, whatever its sender's clock or unit. Whoever counts it knows the present,
    and takes it for the latest that it can be.
    """
    return max(outcome.reported_at_us, entry.decided_at_us)


def is_silent(tenant: str, silent: Container[str]) -> bool:
    """Whether nothing of a tenant's texts may be kept; `*` is everybody."""
    return tenant in silent or "*" in silent


def key_of(adapter_id: str, tenant: str) -> str:
    """What a tenant's examples of an adapter are known by."""
    return f"{adapter_id}/{tenant}"


def examples_of(entry: JoinEntry, place: int, outcome: feedback_pb2.Outcome | Verdict) -> list[Example]:
    """What can be learned from a verdict of a decision that has come, if it agrees with what stands and `outcome`, it with its texts, has
    any; before that, what goes of what the verdicts before it gave: of the same source all of it.
    """
    verdict, earlier = entry.verdicts[place], entry.verdicts[:place]
    agrees = verdict.stands and not verdict.withdrawn and verdict.success == verdict.stands_success
    made = _example_of(entry, outcome) if agrees else None
    gone = {
        one.example_key
        for one in earlier
        if one.example_key
        and (
            made is not None
            or not verdict.stands
            or one.source == verdict.source
            or one.example_key.startswith(FAILURES) == verdict.stands_success
        )
    }
    verdict.example_key = made.key if made is not None else ""
    taken = [Example(key=key, decision_id=entry.decision_id, tenant=entry.tenant, withdrawn=True) for key in sorted(gone)]
    return taken if made is None else [*taken, made]


def _example_of(entry: JoinEntry, outcome: feedback_pb2.Outcome | Verdict) -> Example | None:
    if not outcome.input:
        return None
    if outcome.success and outcome.output and entry.adapter_ids:
        _, adapter_id = max(zip(entry.weights, entry.adapter_ids, strict=True))
        key, output = key_of(adapter_id, entry.tenant), outcome.output
    elif not outcome.success and outcome.corrected_output:
        key, output = f"{FAILURES}{entry.tenant}", outcome.corrected_output
    else:
        return None
    return Example(
        key=key,
        decision_id=entry.decision_id,
        tenant=entry.tenant,
        input=outcome.input,
        output=output,
        occurred_at_us=_reported_at_us(entry, outcome),
        adapter_ids=() if outcome.success else entry.adapter_ids,
    )


def _effect(entry: JoinEntry, lane: Lane, position: int, at_us: int, stands: Standing | None) -> AdapterOutcome:
    """What it has for every adapter."""
    return AdapterOutcome(
        decision_id=entry.decision_id,
        tenant=entry.tenant,
        source_topic=lane.topic,
        source_partition=lane.partition,
        source_position=position,
        success=stands.success if stands is not None else None,
        score=stands.score if stands is not None else None,
        occurred_at_us=at_us,
        task_id=entry.task_id,
        context=entry.context if stands is not None else b"",
        user=entry.user if stands is not None else b"",
    )


def _effects(
    entry: JoinEntry, lane: Lane, position: int, at_us: int, stands: Standing | None, before: Standing | None, *, used: bool
) -> list[AdapterOutcome]:
    """What an event means to each adapter of its decision: what stands after it, in the place of what was counted before it."""
    adapter_ids, on_trial = list(entry.adapter_ids), entry.on_trial
    any_on_trial, expected = bool(on_trial), entry.expected if stands is not None else ()
    made = []
    of_all = _effect(entry, lane, position, at_us, stands)
    of_all.used = used
    for place, (adapter_id, weight) in enumerate(zip(adapter_ids, entry.weights, strict=True)):
        one = AdapterOutcome()
        one.CopyFrom(of_all)  # a third of what it takes to say all of it again
        one.adapter_id, one.weight = adapter_id, weight
        if any_on_trial and adapter_id in on_trial and (side := on_trial[adapter_id]).stands_for:
            one.trial.CopyFrom(TrialEffect(parents=side.stands_for, share=side.share))
        if used and len(adapter_ids) > 1:
            one.together.extend([*adapter_ids[:place], *adapter_ids[place + 1 :]])
        if expected:
            one.expected = expected[place]
        made.append(one)
    for child, parents in _controls(entry).items() if any_on_trial else ():
        one = AdapterOutcome()
        one.CopyFrom(of_all)
        one.adapter_id = child
        one.trial.CopyFrom(TrialEffect(parents=parents, control=True, share=on_trial[parents[0]].share))
        made.append(one)
    if before is not None:
        for one in made:
            one.corrects.CopyFrom(Correction(verdict=before.value))
    elif stands is not None and made and entry.HasField("closeness"):
        made[0].closeness.CopyFrom(entry.closeness)
        made[0].base_model = entry.base_model
    return made


def _taught(entry: JoinEntry, lane: Lane, position: int, at_us: int, verdict: Verdict | None) -> list[AdapterOutcome]:
    """What a verdict means to an adapter that it says to have been right."""
    if verdict is None or not verdict.right_adapter_id or verdict.withdrawn or not (entry.context or entry.user):
        return []
    right = _effect(entry, lane, position, at_us, Standing(success=True))
    right.adapter_id, right.weight, right.taught = verdict.right_adapter_id, 1.0, True
    return [right]


def _controls(entry: JoinEntry) -> dict[str, list[str]]:
    """By the children that parents of the decision are compared with: those parents, in the decision's order."""
    found: dict[str, list[str]] = {}
    for adapter_id in entry.adapter_ids:
        if adapter_id in entry.on_trial and (child := entry.on_trial[adapter_id].control_of):
            found.setdefault(child, []).append(adapter_id)
    return found
