"""What is asked of a router, and what it answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from services.router.catalogue.compositions import Stage
from services.router.learning.ranker import Considered
from services.router.learning.thresholds import Closeness
from services.router.routing.conversation import Belief
from services.router.routing.scoring import Chosen, Hints
from smoa.identifiers import DEFAULT_TENANT


class RouteQuery(NamedTuple):
    """A question to the router; `None` means the server's default. Equal ones have one answer."""

    query: str
    base_model: str
    tenant: str = DEFAULT_TENANT
    strategy: str = "hybrid"
    top_k: int | None = None
    score_threshold: float | None = None
    hints: Hints = Hints()
    composition: str = ""
    """Name of a composition to carry out instead of choosing."""
    vector: bytes = b""
    """Of the query, float32 [dimension], where it came with it."""
    turns: tuple[str, ...] = ()
    """What was said before in its conversation, oldest first."""
    session: str = ""
    """Name of the conversation, where the router is to remember what it is about."""
    new_topic: bool = False
    """What was said before counts no more."""
    user: bytes = b""
    """Hash of who asks."""
    own_only: bool = False
    """No shared adapters."""
    model: str = ""
    """Id or name of an adapter, or name of a composition, to use instead of choosing."""

    @property
    def chosen_by_caller(self) -> bool:
        """It names what is to answer."""
        return bool(self.composition or self.model)


@dataclass(frozen=True, eq=False)
class Choice:
    """Weighted adapters, maybe none. Made once and handed out as often as it is cached."""

    chosen: tuple[Chosen, ...] = ()
    confidence: float | None = None
    """Probability that the query is in the first adapter's scope; None where that cannot be told, or there is none."""
    ranked: tuple[Considered, ...] = ()
    """Of the learned strategy: what it ordered, in its order."""
    propensities: tuple[float, ...] = ()
    """How often each of them would have come first."""
    expected: tuple[float, ...] = ()
    """Probability of success of each of them, before what outcomes said of queries like this one."""
    ranker: str = ""
    """Version of the ranker."""
    context: bytes = b""
    """Where the query lies, for what its outcome teaches."""
    before: Belief | None = None
    """What its conversation was about before it."""
    by_conversation: bool = False
    """That is why the first adapter is first."""
    closeness: Closeness | None = None
    """Of a query that is answered for how close it is: what its outcome says of others."""


class RoutedQuery(NamedTuple):
    """The answer. The same choice from the cache has a new id; a look has none."""

    decision_id: str
    query: RouteQuery
    choice: Choice
    cached: bool
    handler_us: int
    decided_at_us: int
    stages: tuple[Stage, ...] = ()
    """Of a composition: how to carry it out. The choice then holds every adapter of it."""
    executor: str = ""
    """Address of the executor to call, where one is known."""


@dataclass(frozen=True, kw_only=True)
class RoutingDefaults:
    """What `RouteQuery` leaves open."""

    top_k: int = 3
    score_threshold: float = 0.1
    """Least score of an adapter without examples, of which nothing else tells what it is for."""
    in_scope_loss: float = 0.05
    """The share of queries in scope that may be lost by leaving out those that seem to be in none; 0 leaves out none."""
    temperature: float = 0.01
    """Of scores, where a pool has not been fitted."""
    mixture_temperature: float = 0.05
    min_weight: float = 0.5
    """As a share of the largest: an answer that is mixed from two tasks is seldom right for either."""
    candidates: int = 32
    clusters: int = 4
    """The hierarchical strategy looks into so many clusters."""
    example_cache_bytes: int = 32 * 2**20
    fit_cache_bytes: int = 64 * 2**20
    session_bytes: int = 16 * 2**20
    session_ttl_s: float = 1800.0
    embedding_cache_bytes: int = 16 * 2**20
