"""How careful changes are made."""

from __future__ import annotations

from dataclasses import dataclass, field

from services.optimizer.policy.modes import Mode
from services.optimizer.policy.trial import TrialRules


@dataclass(frozen=True, kw_only=True)
class Caution:
    """Who says yes, how a change goes live, and how many do at once."""

    mode: Mode = "auto"
    observe_first_s: float = 0.0
    """A library whose oldest adapter is younger is only proposed to, and changed where a person approved."""
    canary_share: float = 0.0
    """Of its parents' queries, the share that a merge's child answers while it is on trial; 0 replaces the parents at once."""
    trial: TrialRules = field(default_factory=TrialRules)
    changes_per_hour: int = 100
    """Of each tenant."""
    gate_max_loss: float = 0.1
    """Nats a token that a child may lose on its parents' right answers."""
    archive_after_s: float = 0.0
    """After how long away the file of what was pruned or merged away moves to the store's archive; 0: never."""
    purge_after_s: float = 0.0
    """How long the weights of what was pruned or merged away are kept; 0: for ever. What people retired is theirs to purge."""
