"""The adapters of a simulated library, and what a run came to."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import Final

from services.optimizer.policy.trial import NOTHING, Arm, Pairs
from services.router.catalogue.records import AdapterRecord, State
from services.router.catalogue.statistics import Statistics
from smoa.v1.state_pb2 import Tally, TrialPairs

HOUR_S: Final = 3600.0

Side = tuple[str, bool]
"""Of a trial: a parent, and whether a liar among its users spoke."""


def pairs_of(of: TrialPairs) -> Pairs:
    """The policy's form of a difference sequence."""
    return Pairs(of.pairs, of.child, of.parent)


def us_of(at_h: float) -> int:
    """Microseconds of an hour of the run; never 0."""
    return int(at_h * HOUR_S * 1e6) + 1


@dataclass
class Member:
    """An adapter and its truth."""

    name: str
    jobs: dict[int, float]
    """Chance of success by job."""
    born_h: float
    label: str = ""
    """What its owner calls it, if that is not its own: versions of one thing have the same."""
    fragile: bool = False
    """What it does is lost in a merge with what does something else."""
    counted_since_h: float = 0.0
    state: str = "active"
    parents: tuple[str, ...] = ()
    tally: Tally = field(default_factory=Tally)
    taken: int = 0
    """Queries that it was given as a canary."""
    retired_h: float = 0.0
    tried_since_h: float = 0.0
    """When its trial began."""
    baseline: dict[str, Arm] = field(default_factory=dict)
    stood_for: defaultdict[Side, Arm] = field(default_factory=lambda: defaultdict(lambda: NOTHING))
    control: defaultdict[Side, Arm] = field(default_factory=lambda: defaultdict(lambda: NOTHING))
    pairs: defaultdict[Side, TrialPairs] = field(default_factory=lambda: defaultdict(TrialPairs))
    original: Arm = NOTHING
    """Of a merge's child: what it was merged from over all generations."""
    today: list[tuple[float, int]] = field(default_factory=list)
    """(hour, uses), of the last day: the plain rules' window."""


@dataclass
class Score:
    """What a run came to."""

    scenario: str
    policy: str
    queries: int = 0
    regret: float = 0.0
    prunes: int = 0
    wrong_prunes: int = 0
    merges: int = 0
    wrong_merges: int = 0
    rolled_back: int = 0
    lost: int = 0
    """Jobs that nobody can do any more, and nobody can bring back."""
    library: int = 0
    distinct_useful: int = 0
    curve: list[tuple[float, int, float, int, int]] = field(default_factory=list)
    """(day, library size, regret a query that day, wrong prunes and wrong merges so far)"""


def record_of(member: Member) -> AdapterRecord:
    """What the router's canaries see of a member."""
    state: State = "canary" if member.state == "canary" else "retired"
    counts = Statistics(outcomes=member.tally.outcomes, successes=member.tally.successes)
    return AdapterRecord(
        adapter_id=member.name, version=1, digest=member.name, tenant="t", name=member.name, kind="lora_xs", granularity="NANO",
        specialization="task", base_model="b", rank=8, modules=("q",), parameter_count=1, file_bytes=1, parents=member.parents,
        state=state, canary_share=0.1, statistics=counts, canary_taken=member.taken, canary_since_us=us_of(member.tried_since_h),
        canary_baseline=dict.fromkeys(member.baseline, Statistics()),
    )  # fmt: skip
