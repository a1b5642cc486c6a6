"""A library whose truth is known, and the optimizer's own policy, or the plain rules, over it. `optimizer_sim` says what for."""

from __future__ import annotations

import dataclasses
import heapq
import random
from collections import defaultdict
from collections.abc import Iterator
from typing import Final

from benchmarks.scenarios import Scenario
from benchmarks.simulated_members import HOUR_S, Member, Score, pairs_of, record_of, us_of
from benchmarks.simulated_population import USEFUL, Population, new_member
from services.optimizer.policy.incidents import Scope, incidents, levels_of
from services.optimizer.policy.library_policy import AdapterView, Rules, merges, prunes, totals_of
from services.optimizer.policy.trial import Arm, Stratum, TrialRules, Voice, judge, with_users
from services.optimizer.policy.versions import supersedes
from services.optimizer.stream.counting import count_recent, decay, pair
from services.router.catalogue.records import AdapterRef
from services.router.routing.canaries import Canaries, some_of_budget
from services.router.routing.scoring import Chosen
from smoa.v1.state_pb2 import Tally
from smoa.verdicts import PARTS

PURGED_AFTER_H: Final = 365 * 24.0
HARM: Final = 0.1
"""A merge whose child is worse than its parents by more than this is a wrong one."""


class World:
    """One run."""

    def __init__(self, scenario: Scenario, policy: str, jobs: int, days: int, queries_per_hour: int, seed: int) -> None:
        self.scenario, self.policy = scenario, policy
        self._rng = random.Random(seed)
        if scenario.days:
            jobs, days, queries_per_hour = jobs // 5, scenario.days, queries_per_hour // 25
        self._jobs, self._hours, self._per_hour = jobs, days * 24, queries_per_hour
        self.score = Score(scenario.name, policy)
        self._rules, self._trial = Rules(), TrialRules()
        self._half_life_us = 7 * 86400 * 1e6
        self._members: dict[str, Member] = {}
        self._serving: defaultdict[int, list[str]] = defaultdict(list)
        self._canaries = Canaries(seed)
        self._hungry = False
        self._canaries.hungry = self._is_hungry
        self._frozen_h: dict[Scope, int] = {}
        self._rejected: set[tuple[str, str]] = set()
        self._tried: set[tuple[str, str]] = set()
        """Pairs of versions."""
        self._best: defaultdict[int, float] = defaultdict(float)
        self._late: list[tuple[float, int, str, tuple[str, ...], str, float, bool]] = []
        self._weights = [1.0 / (rank + 3) ** 0.9 for rank in range(jobs)]
        self._asked = [job for job in range(jobs) if job % 10 != 9]  # one job of ten is asked for by nobody
        population = Population(scenario, self._rng, jobs, self._hours)
        self._cosines, self._arriving = population.cosines, population.arriving
        for member in population.members.values():
            self._add(member)

    def _is_hungry(self) -> None:
        self._hungry = True

    def _feed(self, at_h: float) -> None:
        """Give canaries of what they have earned, as `trials.py` does."""
        self._hungry = False
        for name in self._canaries.wanting(us_of(at_h)):
            member = self._members[name]
            count, member.taken = some_of_budget(record_of(member), us_of(at_h))
            self._canaries.grant(name, count)
            self._canaries.update([record_of(member)])

    def _add(self, member: Member) -> None:
        self._members[member.name] = member
        for job, quality in member.jobs.items():
            self._serving[job].append(member.name)
            self._best[job] = max(self._best[job], quality)

    def run(self) -> Iterator[float]:
        """Yields after each hour."""
        asked_weights = [self._weights[job] for job in self._asked]
        day_regret = 0.0
        for hour in range(self._hours):
            self._arrive(hour)
            if self.scenario.drift and hour == self._hours // 2:
                self._drift(hour)
            self._break(hour)
            self._feed(hour)
            weights = [weight * self.scenario.season(job, self._jobs, hour) for job, weight in zip(self._asked, asked_weights, strict=True)]
            for job in self._rng.choices(self._asked, weights, k=self._per_hour):
                day_regret += self._ask(job, hour + self._rng.random())
            self._deliver(hour + 1)
            self._decide(hour + 1)
            if (hour + 1) % 24 == 0:
                active = sum(one.state == "active" for one in self._members.values())
                regret = day_regret / (24 * self._per_hour)
                self.score.curve.append(((hour + 1) / 24, active, regret, self.score.wrong_prunes, self.score.wrong_merges))
                day_regret = 0.0
            yield 1.0
        self.score.lost = self._lost()
        self.score.library = sum(one.state == "active" for one in self._members.values())
        self.score.distinct_useful = self._distinct_useful()

    def _break(self, hour: int) -> None:
        """Lose what processes lose."""
        scenario = self.scenario
        if scenario.restarts_every_h and self._rng.random() < 1 / scenario.restarts_every_h:
            self._canaries = Canaries(hour)
            self._canaries.hungry = self._is_hungry
            self._canaries.update(record_of(one) for one in self._members.values() if one.state == "canary")
        if scenario.counts_lost_every_h and self._rng.random() < 1 / scenario.counts_lost_every_h:
            part = self._rng.randrange(3)
            for member in [one for one in self._members.values() if int(one.name, 16) % 3 == part]:
                member.counted_since_h = hour
                tally, kept = Tally(), member.tally  # what was reported of them stays, by the epoch that is over
                for name in ("uses", "outcomes", "successes", "last_used_at_us", "longest_gap_us"):
                    setattr(tally, name, getattr(kept, name))
                member.tally = tally
                member.stood_for.clear()
                member.control.clear()
                member.pairs.clear()

    def _distinct_useful(self) -> int:
        """Jobs that are asked for often enough, and that some adapter ever did."""
        total = sum(self._weights[job] for job in self._asked)
        often = self._rules.min_uses / (7 / 0.693 * 24 * self._per_hour)
        return sum(self._weights[job] / total >= often and self._best[job] > USEFUL for job in self._asked)

    def _lost(self) -> int:
        """Jobs that are asked for, and that nobody does any more whose weights are there."""
        kept = {
            job
            for one in self._members.values()
            for job, quality in one.jobs.items()
            if quality > USEFUL and (one.state != "retired" or one.retired_h > self._hours - PURGED_AFTER_H)
        }
        return sum(self._best[job] > USEFUL and job not in kept for job in self._asked)

    def _arrive(self, hour: int) -> None:
        for due, member in [one for one in self._arriving if one[0] <= hour]:
            self._arriving.remove((due, member))
            member.born_h = member.counted_since_h = hour
            self._add(member)

    def _drift(self, hour: int) -> None:
        for member in [one for one in self._members.values() if one.state == "active" and self._rng.random() < 0.1]:
            for job in member.jobs:
                member.jobs[job] = 0.1
                self._arriving.append((hour + 24, new_member(self._rng, job, self._rng.uniform(0.75, 0.98))))

    def _ask(self, job: int, at_h: float) -> float:
        """One query; returns its regret."""
        self.score.queries += 1
        there = self._serving[job]
        if self._rng.random() < 0.03 or not there:  # routed wrongly, or nothing is there
            self.score.regret += self._best[job]
            return self._best[job]
        name = self._rng.choice(there)
        stands_for: tuple[str, ...] = ()
        control_of = ""
        if len(self._canaries):
            if self._hungry:
                self._feed(at_h)
            [tried] = self._canaries.tried((Chosen(AdapterRef(name, 1, name), 1.0, 1.0),), "t", us_of(at_h))
            name, stands_for, control_of = tried.ref.adapter_id, tried.stands_for, tried.control_of
        member = self._members[name]
        member.tally.uses += 1
        count_recent(member.tally, us_of(at_h), self._half_life_us, used=True, judged=False, success=False)
        if self.policy == "plain":
            member.today.append((at_h, 1))
        liar = self._rng.random() < self.scenario.liars
        if self._rng.random() >= self.scenario.missing:
            out = any(first <= at_h < first + hours for first, hours in self.scenario.outages)
            success = not out and self._rng.random() < member.jobs.get(job, 0.05)
            said = 0.0 if liar else self._said(success, out, member.jobs.get(job, 0.05))
            due = at_h + self._rng.expovariate(1 / self.scenario.delay_h) if self.scenario.delay_h else at_h
            heapq.heappush(self._late, (due, self.score.queries, name, stands_for, control_of, said, liar))
        regret = self._best[job] - member.jobs.get(job, 0.05)
        self.score.regret += regret
        return regret

    def _said(self, success: bool, out: bool, quality: float) -> float:
        said = float(success)
        if self.scenario.graded:
            said = 0.0 if out else round(self._rng.betavariate(4 * quality + 0.01, 4 * (1 - quality) + 0.01) * PARTS) / PARTS
        return 1 - said if self._rng.random() < self.scenario.noise else said

    def _deliver(self, until_h: float) -> None:
        while self._late and self._late[0][0] <= until_h:
            at_h, _, name, stands_for, control_of, success, liar = heapq.heappop(self._late)
            tally = self._members[name].tally
            sides = [(self._members[name].stood_for, parent) for parent in stands_for]
            if control_of:
                sides.append((self._members[control_of].control, name))
            for side, parent in sides:
                arm = side[parent, liar]
                side[parent, liar] = Arm(arm.outcomes + 1, arm.successes + success)
                child = self._members[control_of or name]
                pair(child.pairs[parent, liar], success, of_child=not control_of)
            if liar and self.policy != "plain":  # beyond trials, what others say of a shared adapter reaches nobody but themselves
                continue
            tally.outcomes += 1
            tally.successes += success
            count_recent(tally, us_of(at_h), self._half_life_us, used=False, judged=True, success=success)
            if self._members[name].state == "canary":
                self._canaries.update([record_of(self._members[name])])
                self._judge(self._members[name], at_h)

    def _decide(self, hour: int) -> None:
        for member in [one for one in self._members.values() if one.state == "canary"]:
            self._judge(member, hour)
        on_trial = self._on_trial()
        library = [self._view(one, hour, self._protected(one, hour, on_trial)) for one in self._members.values() if one.state == "active"]
        if self.policy == "plain":
            return self._decide_plainly(library, hour)
        self._frozen_h |= dict.fromkeys(incidents(levels_of(library), self._rules), hour)
        if any(hour - seen_h <= self._rules.half_life_s / HOUR_S for seen_h in self._frozen_h.values()):
            return None
        cosines = {pair: cosine for pair, cosine in self._cosines.items() if pair not in self._rejected}
        for worker in range(self.scenario.workers):
            self._decide_own(library, cosines, hour, worker)
        return None

    def _protected(self, member: Member, hour: int, on_trial: set[str]) -> str:
        """As `views.protection_of` has it."""
        if member.name in on_trial:
            return "its merge is on trial"
        covers = member.counted_since_h <= max(member.born_h, hour - self._rules.window_s / HOUR_S)
        return "" if covers else "its counts do not reach back"

    def _decide_own(self, library: list[AdapterView], cosines: dict[tuple[str, str], float], hour: int, worker: int) -> None:
        """What one worker does by what it saw: the registry refuses a merge, or a prune, of one that is not active any more."""

        def mine(name: str) -> bool:
            there = self._members[name].state == "active"
            return there and int(self._members[name].name, 16) % self.scenario.workers == worker

        merging: set[str] = set()
        for merge in merges(library, cosines, self._rules):
            names = tuple(view.adapter_id for view in merge.adapters)
            merging.update(names)
            trying = self._on_trial()
            if not mine(names[0]) or any(self._members[one].state != "active" or one in trying for one in names):
                continue
            child = self._child(names, hour)
            self._members[child.name] = child
            self._try(child, names, hour)
        pruned = {prune.adapter.adapter_id for prune in prunes(library, totals_of(library), self._rules)} - merging
        for name in sorted(pruned, key=[view.adapter_id for view in library].index):
            if mine(name):
                self._prune(name, hour)
        rest = [view for view in library if view.adapter_id not in merging | pruned]
        for versions in supersedes(rest, self._rules, self._tried | self._rejected):
            younger, older = versions.younger.adapter_id, versions.older.adapter_id
            if mine(younger) and self._members[older].state == "active" and not self._on_trial() & {younger, older}:
                self._leave(self._members[younger])
                self._try(self._members[younger], (older,), hour)

    def _on_trial(self) -> set[str]:
        """Those that a canary is tried against."""
        return {one for canary in self._members.values() if canary.state == "canary" for one in canary.baseline}

    def _levels(self, names: tuple[str, ...]) -> dict[str, Arm]:
        return {one: Arm(self._members[one].tally.outcomes, self._members[one].tally.successes) for one in names}

    def _try(self, canary: Member, against: tuple[str, ...], hour: int) -> None:
        canary.state, canary.tried_since_h, canary.taken = "canary", hour, 0
        canary.baseline = self._levels(against)
        self._canaries.update([record_of(canary)])

    def _decide_plainly(self, library: list[AdapterView], hour: int) -> None:
        by_name = {view.adapter_id: view for view in library}
        gone: set[str] = set()
        for (low, high), cosine in sorted(self._cosines.items()):
            if cosine > 0.9 and low in by_name and high in by_name and not {low, high} & gone:
                gone |= {low, high}
                self._merge_now(self._child((low, high), hour), hour)
        for view in library:
            if view.adapter_id in gone:
                continue
            rate = view.success_rate
            if (view.recent_uses < 10 and view.age_s >= 86400) or (rate is not None and rate < 0.3):
                self._prune(view.adapter_id, hour)

    def _view(self, member: Member, hour: int, protected: str) -> AdapterView:
        tally = member.tally
        decay(tally, us_of(hour), self._half_life_us)
        recent = tally.recent_uses
        if self.policy == "plain":
            member.today = [one for one in member.today if one[0] > hour - 24]
            recent = float(len(member.today))
        return AdapterView(
            adapter_id=member.name,
            digest=member.name,
            tenant="t",
            name=member.label or member.name,
            kind="lora_xs",
            base_model="b",
            rank=8,
            modules=("q",),
            age_s=(hour - member.born_h) * HOUR_S,
            uses=tally.uses,
            outcomes=tally.outcomes,
            successes=tally.successes,
            recent_uses=recent,
            recent_outcomes=tally.recent_outcomes,
            recent_successes=tally.recent_successes,
            fresh_outcomes=tally.fresh_outcomes,
            fresh_successes=tally.fresh_successes,
            unused_s=hour * HOUR_S - max(tally.last_used_at_us / 1e6, member.born_h * HOUR_S),
            longest_gap_s=tally.longest_gap_us / 1e6,
            protected=protected,
        )

    def _child(self, names: tuple[str, ...], hour: int) -> Member:
        """The truth of a merge: copies keep what they can; look-alikes lose most of it."""
        parents = [self._members[name] for name in names]
        every = {job for parent in parents for job in parent.jobs}
        same = all(set(parent.jobs) == every for parent in parents)
        jobs = {}
        for job in every:
            known = [parent.jobs[job] for parent in parents if job in parent.jobs]
            if not same and any(parent.fragile for parent in parents):
                jobs[job] = 0.05 if any(parent.fragile and job in parent.jobs for parent in parents) else max(known)
            else:
                jobs[job] = sum(known) / len(known) if same else 0.4 * max(known)
        child = Member(f"{self._rng.getrandbits(60):015x}", jobs, hour, parents=names, counted_since_h=hour)
        child.baseline = self._levels(names)
        child.fragile = same and any(parent.fragile for parent in parents)
        for (low, high), cosine in list(self._cosines.items()):  # the child is where its parents were
            for mine, other in ((low, high), (high, low)):
                if mine in names and other not in names:
                    self._cosines[min(child.name, other), max(child.name, other)] = cosine
        return child

    def _judge(self, child: Member, hour: float) -> None:
        strata = {}
        for name in child.baseline:
            own, lied = (
                Voice(child.stood_for[name, liar], child.control[name, liar], pairs_of(child.pairs[name, liar])) for liar in (False, True)
            )
            known = child.baseline[name], self._members[name].original
            strata[name] = with_users(Stratum(own.child, own.parent, *known, own.pairs), {"liar": lied})
        rules = self._trial if child.parents else dataclasses.replace(self._trial, in_front=True)
        judgement, _, _ = judge(strata, (hour - max(child.tried_since_h, child.counted_since_h)) * HOUR_S, rules)
        if judgement == "promote":
            self._merge_now(child, hour)
        elif judgement == "not shown" and not child.parents:  # both versions go on
            child.state = "active"
            self._add(child)
        elif judgement != "wait":
            self.score.rolled_back += 1
            child.state, child.retired_h = "retired", hour
            self._rejected |= {(a, b) for a in child.parents for b in child.parents if a < b}
        if judgement != "wait" and not child.parents:
            self._tried |= {(min(child.name, older), max(child.name, older)) for older in child.baseline}
        if judgement != "wait":
            self._canaries.update([record_of(child)])

    def _merge_now(self, child: Member, hour: float) -> None:
        self.score.merges += 1
        worst = max(self._members[name].jobs[job] - child.jobs[job] for name in child.baseline for job in self._members[name].jobs)
        self.score.wrong_merges += worst > HARM
        originals = [self._members[name].original for name in child.baseline]
        arms = [
            original if original.outcomes else Arm(self._members[name].tally.outcomes, self._members[name].tally.successes)
            for original, name in zip(originals, child.baseline, strict=True)
        ]
        if child.parents:
            child.original = Arm(sum(one.outcomes for one in arms), sum(one.successes for one in arms))
        for name in child.baseline:
            self._retire(name, hour)
        child.state = "active"
        self._add(child)

    def _prune(self, name: str, hour: int) -> None:
        member = self._members[name]
        total = sum(self._weights[job] for job in self._asked)
        share = sum(self._weights[job] / total for job in member.jobs if job in self._asked)
        expected = share * self._per_hour * 24 * 7 / 0.693 / max(1, min(len(self._serving[job]) for job in member.jobs))
        self.score.prunes += 1
        self.score.wrong_prunes += max(member.jobs.values()) > USEFUL and expected >= self._rules.min_uses
        self._retire(name, hour)

    def _leave(self, member: Member) -> None:
        for job in member.jobs:
            self._serving[job].remove(member.name)

    def _retire(self, name: str, hour: float) -> None:
        member = self._members[name]
        member.state, member.retired_h = "retired", hour
        self._leave(member)
        self._cosines = {pair: cosine for pair, cosine in self._cosines.items() if name not in pair}
