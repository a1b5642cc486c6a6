"""A service that uses SMoA: it registers adapters, asks the router, has the executor answer and reports how that went."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from rich.console import Console

from examples.library.jobs import DECOY_JOBS, JOBS, Job
from services.demo.adapters import SEED, Described, job_of
from services.demo.showing import run_all, until
from smoa.adapter import encode
from smoa.client import SmoaClient
from smoa.store import AdapterStore
from smoa.v1 import common_pb2 as common
from smoa.v1 import registry_pb2, router_pb2

EVERY_STATE = (common.ADAPTER_STATE_ACTIVE, common.ADAPTER_STATE_CANARY, common.ADAPTER_STATE_RETIRED)
ANSWER_TOKENS = 10


@dataclass(frozen=True)
class Query:
    """A test query; the job is known to the referee only."""

    job: str
    text: str
    answer: str


def queries_of(names: Iterable[str], each: int, seed: int = SEED) -> list[Query]:
    """Test queries of the jobs; they share neither templates nor vocabulary with what the adapters were trained on."""
    jobs = {**JOBS, **DECOY_JOBS}
    return [Query(name, one.input, one.output) for name in names for one in jobs[name].generate("test", each, seed)]


def told_in_words(job: Job, text: str) -> str:
    """A prompt that says what the job is, for a base model without an adapter."""
    task = job.description.replace("Names ", "Name ", 1).replace("Says ", "Say ", 1)
    return f"{task} Answer with one word, one of: {', '.join(job.labels)}.\n\n{text}"


def guessing(queries: Sequence[Query]) -> float:
    """Share of the queries that a guess among the allowed labels would answer rightly."""
    return sum(1 / len(JOBS[query.job].labels) for query in queries) / len(queries)


@dataclass
class Tally:
    """What the caller itself counted."""

    decisions: int = 0
    cached: int = 0
    sent: int = 0
    """Events: a use and an outcome for each adapter of each decision."""
    adapter_hits: int = 0
    adapter_misses: int = 0
    top1: int = 0
    top3: int = 0
    routed: dict[Query, bool] = field(default_factory=dict)
    """Of the first time that a query came, whether its answer was right."""
    route_ms: list[float] = field(default_factory=list)
    ttft_ms: list[float] = field(default_factory=list)


class Caller:
    """Uses the client as a service would. `names` and `refs` hold what it registered, by id and by name."""

    def __init__(self, client: SmoaClient, store: AdapterStore, console: Console) -> None:
        self.client, self.store, self.console = client, store, console
        self.names: dict[str, str] = {}
        self.refs: dict[str, common.WeightedAdapter] = {}
        self.tally = Tally()
        self.base_model = ""

    async def register(self, library: Sequence[Described]) -> None:
        """Put each adapter's file into the store, then register it with its example inputs."""
        for one in library:
            digest = await self.store.put(encode(one.adapter))
            adapter = await self.client.register(digest, one.examples)
            self.names[adapter.adapter_id] = adapter.name
            self.refs[adapter.name] = common.WeightedAdapter(
                adapter_id=adapter.adapter_id, version=adapter.version, digest=adapter.digest, weight=1.0
            )
            self.base_model = adapter.base_model

    async def ask(self, query: Query, *, first: bool = True) -> router_pb2.Decision:
        """Route a query, have it answered, report whether the answer was right."""
        tally, started = self.tally, time.perf_counter()
        decision = await self.client.route(query.text, base_model=self.base_model)
        tally.route_ms.append((time.perf_counter() - started) * 1000)
        answer = await self.answer(query.text, decision.adapters, decision.decision_id)
        await self.client.report(decision, success=answer == query.answer)
        tally.decisions += 1
        tally.cached += decision.cached
        tally.sent += 2 * len(decision.adapters)
        if first and query.job in JOBS:
            jobs = [job_of(self.names.get(item.adapter_id, "")) for item in decision.adapters]
            tally.top1 += jobs[:1] == [query.job]
            tally.top3 += query.job in jobs[:3]
            tally.routed[query] = answer == query.answer
        return decision

    async def answer(self, prompt: str, adapters: Sequence[common.WeightedAdapter], decision_id: str = "") -> str:
        """The greedy answer under adapters; under none, the base model's."""
        text = ""
        async for response in self.client.stream(prompt, adapters, decision_id=decision_id, max_tokens=ANSWER_TOKENS):
            text += response.text
            if response.HasField("usage"):
                self.tally.ttft_ms.append(response.usage.first_token_us / 1000)
                self.tally.adapter_hits += response.usage.adapter_hits
                self.tally.adapter_misses += response.usage.adapter_misses
        return text.strip()

    async def ask_all(self, label: str, queries: Sequence[Query], *, first: bool = True) -> None:
        """`ask` every query, sixteen at once."""
        await run_all(self.console, label, [lambda query=query: self.ask(query, first=first) for query in queries])  # type: ignore[misc]

    async def exact_match(self, label: str, queries: Sequence[Query], pick: Callable[[Query], Sequence[common.WeightedAdapter]]) -> float:
        """Share of the queries that are answered rightly under the adapters that are picked for each."""
        right: list[bool] = []

        async def one(query: Query) -> None:
            right.append(await self.answer(query.text, pick(query)) == query.answer)

        await run_all(self.console, label, [lambda query=query: one(query) for query in queries])  # type: ignore[misc]
        return sum(right) / len(right)

    async def told_match(self, label: str, queries: Sequence[Query]) -> float:
        """Share of the queries for which the base model, told the task in words, finds the right one of the allowed answers likeliest.

        Left to write what it likes, it seldom gives one of them at all.
        """
        right: list[bool] = []

        async def one(query: Query) -> None:
            job = JOBS[query.job]
            prompt = told_in_words(job, query.text)
            likelihoods = {answer: sum(await self.client.score(prompt, answer)) for answer in job.labels}
            right.append(max(job.labels, key=likelihoods.__getitem__) == query.answer)

        await run_all(self.console, label, [lambda query=query: one(query) for query in queries])  # type: ignore[misc]
        return sum(right) / len(right)

    async def routed_match(self, label: str, queries: Sequence[Query]) -> float:
        """Share of the queries that are answered rightly when they are routed; nothing is reported."""
        right: list[bool] = []

        async def one(query: Query) -> None:
            decision = await self.client.route(query.text, base_model=self.base_model)
            right.append(await self.answer(query.text, decision.adapters) == query.answer)

        await run_all(self.console, label, [lambda query=query: one(query) for query in queries])  # type: ignore[misc]
        return sum(right) / len(right)

    async def library(self) -> list[registry_pb2.Adapter]:
        """Every adapter, retired ones too."""
        return [adapter async for adapter in self.client.list_all(states=EVERY_STATE)]

    async def counted(self) -> int:
        """Uses and outcomes the optimizer has counted."""
        return sum(adapter.statistics.uses + adapter.statistics.outcomes for adapter in await self.library())

    async def wait_counted(self) -> None:
        """Wait until the optimizer has counted every event that was sent."""

        async def all_counted() -> bool:
            return await self.counted() >= self.tally.sent

        with self.console.status("waiting until the optimizer has counted every event"):
            await until("the count of every event", 60, all_counted)


def weighted(ref: common.WeightedAdapter, weight: float) -> common.WeightedAdapter:
    """The same adapter with another weight."""
    return common.WeightedAdapter(adapter_id=ref.adapter_id, version=ref.version, digest=ref.digest, weight=weight)
