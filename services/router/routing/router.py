"""Routing one query: check it, look in the cache, embed, search, choose."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import time
from collections.abc import Mapping, Sequence
from itertools import chain

import numpy as np
from ulid import ULID

from services.router.catalogue.compositions import Compositions, Stage
from services.router.catalogue.port import Catalogue, Vector
from services.router.catalogue.records import EVERY_STATE, SHARED, Candidate, Reach, Scope, labels_of
from services.router.learning.vague_lines import means_of_groups, vague_lines
from services.router.routing.cache import RoutingCache
from services.router.routing.canaries import Canaries
from services.router.routing.conversation import Belief, Sessions
from services.router.routing.executors import ExecutorDirectory
from services.router.routing.explanation import MAX_EXPLAINED, Explanation, Judged, Limits, explain
from services.router.routing.hearing import Heard, answering
from services.router.routing.judging import Judge
from services.router.routing.naming import named
from services.router.routing.query import Choice, RoutedQuery, RouteQuery, RoutingDefaults
from services.router.routing.scoring import Chosen, Hints, Scored, task_score
from services.router.routing.single_flight import SingleFlight
from services.router.routing.strategies.hierarchical import Hierarchical
from services.router.routing.strategies.hybrid import Hybrid
from services.router.routing.strategies.learned import Learned
from services.router.routing.strategies.mixture import Mixture
from services.router.routing.strategies.semantic import Semantic
from services.router.routing.strategies.strategy import Strategy, Wanted
from services.router.routing.strategies.task import Task
from services.router.search.port import VectorIndex
from smoa.bounded_cache import ENTRY_BYTES, BoundedCache
from smoa.embedding.views import Views
from smoa.errors import InvalidArgument, NotFound, Unavailable
from smoa.identifiers import DEFAULT_TENANT, checked_tenant
from smoa.limits import MAX_NAME_CHARACTERS, MAX_QUERY_CHARACTERS, MAX_TURNS
from smoa.tasks import begin, end

MAX_TOP_K = 16
_log = logging.getLogger(__name__)
_CHOSEN_BYTES = 900  # of an adapter of a cached decision, about: the choice, and its message


class Router:
    """Routes queries over a catalogue and an index of it. Knows tenants by their adapters: `public` always exists."""

    def __init__(
        self,
        catalogue: Catalogue,
        search: VectorIndex,
        embedder: Views,
        cache: RoutingCache[RouteQuery, Choice],
        compositions: Compositions,
        defaults: RoutingDefaults | None = None,
        seed: int | None = None,
    ) -> None:
        self._catalogue, self._search, self._embedder = catalogue, search, embedder
        self.cache, self._compositions = cache, compositions
        self._defaults = defaults or RoutingDefaults()
        self._known_tenants = {DEFAULT_TENANT}
        self._flights: SingleFlight[RouteQuery, Choice] = SingleFlight()
        self.embeddings: BoundedCache[tuple[str, str], Vector] = BoundedCache(self._defaults.embedding_cache_bytes)
        self.judge = Judge(catalogue, cache, self._defaults)
        self.learned = Learned(catalogue, seed)
        every = (Hybrid(), Semantic(), Task(), Hierarchical(), Mixture(), self.learned)
        self._strategies: dict[str, Strategy] = {one.name: one for one in every}
        self.executors = ExecutorDirectory()
        self.canaries = Canaries(seed)
        self._vague: Vector | None = None
        self._making: asyncio.Task[None] | None = None
        self.sessions = Sessions(self._defaults.session_bytes, self._defaults.session_ttl_s)

    def adapter_changed(self, adapter_id: str, pool: str, *, arrived: bool) -> None:
        """Forget answers with this adapter, and, when it arrived and may be a better one, all answers from its pool."""
        self.judge.adapter_changed(adapter_id)
        self.cache.adapter_changed(adapter_id, pool, arrived=arrived)
        tenant, base_model = pool.split("/", 1)
        if arrived and tenant != SHARED:
            self.judge.fits.want(Reach(tenant=tenant, base_model=base_model))

    async def close(self) -> None:
        """Begin nothing more."""
        if self._making is not None:
            await end(self._making)
        await self.judge.fits.close()

    @property
    def joined(self) -> int:
        """Queries that waited for the same one under way."""
        return self._flights.joined

    async def route(self, query: RouteQuery, *, look: bool = False) -> RoutedQuery:
        """Decide. A look is what would be decided without exploring: it uses up nothing, and has no id that could be reported on.

        Raises:
            InvalidArgument: the query, top_k, threshold or tenant is out of bounds.
            NotFound: no adapter was ever registered for the tenant, or no adapter or composition of the name.
            FailedPrecondition: what is named cannot run on this base model (see `Compositions.resolve`, `named`).
            InvalidArgument: the task strategy without hints.
        """
        started = time.perf_counter_ns()
        who = query.session.encode() or query.user  # before it is completed: what changes no choice is left out then
        query = self._complete(query)
        await self._check_tenant_exists(query.tenant)
        stages: tuple[Stage, ...] = ()
        cached = False
        record = await named(self._catalogue, self._compositions, query) if query.model else None
        if record is not None:
            query = query._replace(base_model=record.base_model)
            choice = Choice((Chosen(record.ref, score=0.0, weight=1.0),), confidence=1.0)
        elif query.chosen_by_caller:
            stages = await self._compositions.resolve(query.tenant, query.composition or query.model, query.base_model)
            every = {record.ref: weight for stage in stages for record, weight in stage.adapters}
            query = query._replace(base_model=stages[0].adapters[0][0].base_model)
            choice = Choice(tuple(Chosen(ref, score=0.0, weight=weight) for ref, weight in every.items()), confidence=1.0)
        else:
            choice, cached = await self._chosen(query, look)
        now_us = time.time_ns() // 1000
        if len(self.canaries) and not query.chosen_by_caller and not look:
            tried = self.canaries.tried(choice.chosen, query.tenant, now_us, who)
            if tried is not choice.chosen:
                choice = dataclasses.replace(choice, chosen=tried, closeness=None)
        executor = (
            self.executors.choose(query.base_model, [one.ref.adapter_id for one in choice.chosen], now_us) if len(self.executors) else ""
        )
        handler_us = (time.perf_counter_ns() - started) // 1000
        return RoutedQuery("" if look else str(ULID()), query, choice, cached, handler_us, now_us, stages, executor)

    async def _chosen(self, query: RouteQuery, look: bool) -> tuple[Choice, bool]:
        """The choice, and whether it came from the cache. The learned strategy decides anew each time, or it would not explore."""
        strategy = self._strategies[query.strategy]
        strategy.check(query.hints)
        if query.session:
            return await self._decide_in_session(query, look=look), False
        if not strategy.repeats:
            choice, _ = await self._decide(query, await self._before(query), explore=not look)
            return choice, False
        if (kept := self.cache.get(query)) is not None:
            return kept, True
        return await self._flights.run(query, lambda: self._decide_and_keep(query)), False

    async def _decide_and_keep(self, query: RouteQuery) -> Choice:
        pools = _reach(query).pools
        state = self.cache.state_of(pools)
        choice, _ = await self._decide(query, await self._before(query))
        if state == self.cache.state_of(pools):  # else the library changed meanwhile, and this answer may be of before
            characters = len(query.query) + sum(map(len, chain(query.turns, chain.from_iterable(query.hints.labels))))
            size = ENTRY_BYTES + _CHOSEN_BYTES * (1 + len(choice.chosen)) + 4 * characters + len(query.vector)
            self.cache.put(query, choice, [item.ref.adapter_id for item in choice.chosen], pools, size)
        return choice

    def _complete(self, query: RouteQuery) -> RouteQuery:
        top_k = self._defaults.top_k if query.top_k is None else query.top_k
        _check_length("query", query.query)
        if query.vector:
            sent = np.frombuffer(query.vector, np.float32)
            query = query._replace(vector=self._embedder.completed(sent, "vector", "the query's text", query.query).tobytes())
        elif not query.query.strip() and not query.chosen_by_caller:
            raise InvalidArgument("query", "is empty", "send the text to route, or its vector")
        if not 1 <= top_k <= MAX_TOP_K:
            raise InvalidArgument("top_k", f"{top_k} is outside 1..{MAX_TOP_K}", "ask for a few adapters, 3 by default")
        threshold = query.score_threshold
        if threshold is not None and not -1 <= threshold <= 1:  # NaN is not, either
            raise InvalidArgument("score_threshold", f"{threshold} is outside -1..1", "leave it out for the default")
        if len(query.base_model) > MAX_NAME_CHARACTERS:
            problem = f"has {len(query.base_model):,} characters"
            raise InvalidArgument("base_model", problem, "send the fingerprint that the executor's GetStatus shows")
        if query.model and query.composition:
            raise InvalidArgument("model", "comes with a composition beside it", "send one of the two")
        if query.base_model or not query.chosen_by_caller:
            query = query._replace(base_model=self.executors.base_model(query.base_model, time.time_ns() // 1000))
        tenant = query.tenant if query.tenant in self._known_tenants else checked_tenant(query.tenant)
        query = query._replace(tenant=tenant, top_k=top_k)
        if query.turns or query.session or query.user:
            query = self._complete_conversation(query)
        return query

    def _complete_conversation(self, query: RouteQuery) -> RouteQuery:
        for number, turn in enumerate(query.turns):
            _check_length(f"turns[{number}]", turn)
        if len(query.session) > MAX_NAME_CHARACTERS:
            problem = f"has {len(query.session):,} characters, over {MAX_NAME_CHARACTERS}"
            raise InvalidArgument("session", problem, "name it by a shorter id")
        if not self.sessions.max_bytes or query.chosen_by_caller:
            query = query._replace(session="")
        counting = () if query.new_topic or query.chosen_by_caller else [one for one in query.turns if one.strip()][-MAX_TURNS:]
        query = query._replace(turns=tuple(counting))
        if self._strategies[query.strategy].repeats:
            query = query._replace(user=b"")  # who asks changes nothing, so that equal queries have one answer
        return query

    async def _check_tenant_exists(self, tenant: str) -> None:
        if tenant in self._known_tenants:
            return
        if not await self._catalogue.scroll(Scope(tenant=tenant, include_shared=False, states=EVERY_STATE), "", 1):
            raise NotFound("tenant", tenant, "register an adapter for it first, or check the name")
        if len(self._known_tenants) >= 1_000_000:
            self._known_tenants = {DEFAULT_TENANT}
        self._known_tenants.add(tenant)

    async def _vector_of(self, query: RouteQuery) -> Vector:
        """Of the query: as it came with it, or of its text."""
        if query.vector:
            return np.frombuffer(query.vector, np.float32)
        key = query.tenant, query.query  # of each tenant its own: how long an answer took would tell what others asked
        vector = self.embeddings.get(key)
        if vector is None:
            vector = (await self._embedder.embed([query.query]))[0]
            self.embeddings.put(key, vector, ENTRY_BYTES + vector.nbytes + 4 * len(query.query))
        return vector

    async def _decide_in_session(self, query: RouteQuery, *, look: bool) -> Choice:
        """One after another: of two turns of a session at once, what the first to be answered says of its topic is overwritten."""
        key, turn = (query.tenant, query.base_model, query.session), query.vector or query.query.encode()
        known = None if query.new_topic else self.sessions.before(key, turn)
        before = known or await self._before(query)
        choice, after = await self._decide(query, before, explore=not look)
        if not look and after is not None:
            self.sessions.keep(key, turn, before, after)
        return choice

    async def _before(self, query: RouteQuery) -> Belief | None:
        """What the turns before it were about: each by itself, whatever hints and threshold are meant for the query."""
        before: Belief | None = None
        for turn in query.turns:
            line = query._replace(query=turn, vector=b"", hints=Hints(), score_threshold=None, strategy="hybrid")
            before = (await self._hear(line, before)).after
            await asyncio.sleep(0)  # each is as much work as a query
        return before

    async def _decide(self, query: RouteQuery, before: Belief | None = None, *, explore: bool = True) -> tuple[Choice, Belief | None]:
        """The choice, and what the conversation is about then."""
        assert query.top_k is not None
        strategy = self._strategies[query.strategy]
        heard = await self._hear(query, before)
        judged, swayed = await self._judged(query, heard, strategy.widest(query.top_k))
        choice = await strategy.choose(query, heard.vector, heard.fit, answering(judged), self._defaults, explore=explore)
        if before is not None:  # what comes of a line that was swayed says nothing of where such a line lies
            context = b"" if swayed else choice.context
            choice = dataclasses.replace(choice, before=before, by_conversation=swayed, context=context)
        elif query.score_threshold is None and choice.chosen and choice.chosen[0].ref == judged[0].scored.candidate.ref:
            choice = dataclasses.replace(choice, closeness=judged[0].closeness)  # else its outcome is another's than who is close
        return choice, heard.after

    async def _hear(self, query: RouteQuery, before: Belief | None, *, closely: bool = False) -> Heard:
        """What a line is about, by itself and after what was said before."""
        assert query.top_k is not None
        strategy, reach = self._strategies[query.strategy], _reach(query)
        vector, fit = await self._vector_of(query), self.judge.fits.of(reach)
        talking = bool(query.session or query.turns)
        wanted = strategy.wanted(
            query.top_k, self._defaults.candidates, query.hints, closely=closely or talking or (fit is not None and fit.ranks)
        )
        found = await self._candidates(query, vector, wanted)
        if before is not None:
            found |= await self._remembered(vector, before, found, reach)
        ranked = await self.judge.ranked(strategy, vector, found.values(), query.hints, reach, fit)
        heard = Heard(vector, fit, ranked)
        if talking:
            first = await self.judge.judged(vector, ranked[:1], query.hints, reach, fit)
            vague = self.judge.vague(vector, await self._means_of_vague_lines(), first, fit)
            heard = heard.following(before, vague, first[0].confidence if first else None)
        return heard

    async def _judged(self, query: RouteQuery, heard: Heard, widest: int) -> tuple[list[Judged], bool]:
        """So many of the likeliest candidates, and whether the conversation is why the first is first, or answers at all."""

        async def judged(ranked: Sequence[Scored], widest: int) -> list[Judged]:
            threshold = query.score_threshold
            passing = ranked if threshold is None else [one for one in ranked if one.score >= threshold]
            made = await self.judge.judged(heard.vector, passing[:widest], query.hints, _reach(query), heard.fit)
            return made if threshold is None else [one._replace(fits=True) for one in made]  # the caller has judged

        if heard.together is None:
            return await judged(heard.ranked, widest), False
        together = heard.in_scope(await judged(heard.together, widest))
        alone = await judged(heard.ranked, 1)
        first, other = ([one.scored.candidate.ref for one in answering(made)[:1]] for made in (alone, together))
        return together, first != other

    async def _means_of_vague_lines(self) -> Vector | None:
        """Made once, when a conversation first needs them, whoever waits for it; None while the embedder is away."""
        if self._vague is None:
            if self._making is None or self._making.done():
                self._making = begin(self._make_vague_means(), "vague-lines")
            await asyncio.shield(self._making)
        return self._vague

    async def _make_vague_means(self) -> None:
        try:
            self._vague = await asyncio.to_thread(means_of_groups, await self._embedder.embed(vague_lines()))
        except Unavailable as error:
            _log.warning("turns that say nothing are not told from others yet: %s", error)

    async def _remembered(self, vector: Vector, before: Belief, found: Mapping[str, Candidate], reach: Reach) -> dict[str, Candidate]:
        """Those that a conversation was about and that are not near its line, but may still be routed to."""
        missing = [one for one in before.shares if one not in found]
        records = await self._catalogue.records(missing) if missing else {}
        farthest = min((one.cosine for one in found.values()), default=0.0)
        there = [Candidate(record.ref, farthest, labels_of(record), True) for record in records.values() if reach.admits(record)]
        return {one.ref.adapter_id: one for one in await self.judge.placed(vector, there, reach)}

    async def _candidates(self, query: RouteQuery, vector: Vector, wanted: Wanted) -> dict[str, Candidate]:
        """What the strategy scores: the nearest, and with hints the nearest of those with a matching label."""
        reach = _reach(query)
        hinted = tuple(chain.from_iterable(query.hints.labels)) if wanted.labelled else ()
        clusters = self._defaults.clusters if wanted.in_clusters else 0
        found: dict[str, Candidate] = {}
        if wanted.nearest:
            near = await self._search.search(vector, reach, wanted.nearest, hinted=hinted, clusters=clusters)
            found |= {c.ref.adapter_id: c for c in near}
        for labels in query.hints.labels if wanted.labelled else ():
            labelled, most = dataclasses.replace(reach, any_labels=labels), self._defaults.candidates
            those = await self._search.search(vector, labelled, wanted.labelled, hinted=hinted)
            if wanted.labelled < most and any(task_score(one.labels, query.hints) < 1 for one in those):
                those = await self._search.search(vector, labelled, most, hinted=hinted)  # a label of another kind: farther ones may fit
            found |= {c.ref.adapter_id: c for c in those}
        return found

    async def explain(self, routed: RoutedQuery) -> list[Explanation]:
        """Why the candidates nearest to a query were chosen in its decision, or not; none where the query names what is to answer."""
        query = routed.query
        if query.chosen_by_caller:
            return []
        assert query.top_k is not None
        heard = await self._hear(query, routed.choice.before, closely=True)
        strategy, (near, _) = self._strategies[query.strategy], await self._judged(query, heard, MAX_EXPLAINED)
        limits = Limits(query.score_threshold, strategy.widest(query.top_k), strategy.min_weight(self._defaults))
        records = await self._catalogue.records([one.scored.candidate.ref.adapter_id for one in near])
        explained = explain(near, routed.choice.chosen, limits, self.canaries.by_parent, routed.choice.before)
        return [
            one if (record := records.get(one.adapter_id)) is None else one._replace(name=record.name, tenant=record.tenant)
            for one in explained
        ]

    async def names(self, adapter_ids: Sequence[str]) -> dict[str, str]:
        """Of those of the adapters that are there."""
        return {adapter_id: record.name for adapter_id, record in (await self._catalogue.records(adapter_ids)).items()}


def _check_length(field: str, text: str) -> None:
    if len(text) > MAX_QUERY_CHARACTERS:
        raise InvalidArgument(field, f"has {len(text):,} characters, over {MAX_QUERY_CHARACTERS:,}", "send its first part")


def _reach(query: RouteQuery) -> Reach:
    return Reach(tenant=query.tenant, base_model=query.base_model, own_only=query.own_only)
