"""Who runs next, and how many tokens of each: rows, cache blocks and adapter slots are given out together. Pure: touches no tensors."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from services.executor.adapters.slots import Acquired, SlotPool
from services.executor.engine.blocks import BlockPool, prefix_keys
from smoa.errors import ResourceExhausted

PROMPT_COST, NEW_COST = 1, 2
"""What a prompt token and a new token count for in a tenant's service (Sheng et al., Fairness in Serving LLMs, arXiv 2401.00588)."""


@dataclass(eq=False, kw_only=True)
class Job:
    """A sequence from its arrival to its end."""

    tenant: str
    tokens: list[int]
    """The prompt, then what was generated."""
    max_new: int
    """Most tokens that may be added; 0 for one that is only read."""
    adapters: Mapping[str, int] = field(default_factory=dict)
    """Slot key -> bytes."""
    mixture_key: bytes = b""
    """Names tenant, adapters and weights: only jobs of one key share cache blocks."""
    prompt_tokens: int = field(init=False)
    computed: int = 0
    """Tokens whose keys and values are in the cache."""
    blocks: list[int] = field(default_factory=list)
    ready: bool = False
    """Set once the mixture is on the device; until then the job holds its place and computes nothing."""
    acquired: Acquired | None = None
    _keys: list[bytes] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.prompt_tokens = len(self.tokens)


JobT = TypeVar("JobT", bound=Job)


class Scheduler(Generic[JobT]):
    """Iteration-level scheduling (Orca, OSDI 2022) with chunked prefill (Sarathi-Serve, arXiv 2403.02310) and fair tenants.

    A job is admitted when a row, slots for all its adapters and cache for its longest possible answer are there, so nothing is ever
    taken back from a running one. The tenant that has been served least goes first; within a tenant, first come first served. A job
    that does not fit keeps those behind it waiting, so a large one cannot starve.
    """

    def __init__(self, *, rows: int, slots: SlotPool, blocks: BlockPool, block_tokens: int, step_tokens: int, max_waiting: int) -> None:
        if step_tokens < rows:
            raise ValueError(f"step_tokens {step_tokens} is under the {rows} rows: every row decodes at every step")
        self.rows, self.max_waiting, self.step_tokens = rows, max_waiting, step_tokens
        self.slots, self.blocks, self._block_tokens = slots, blocks, block_tokens
        self._waiting: dict[str, deque[JobT]] = {}
        self._served: dict[str, int] = {}
        self._running: dict[JobT, None] = {}
        self.prefix_hits = self.prefix_lookups = 0

    @property
    def waiting(self) -> int:
        """Jobs not yet admitted."""
        return sum(map(len, self._waiting.values()))

    @property
    def running(self) -> list[JobT]:
        """Admitted jobs, in order of admission."""
        return list(self._running)

    def is_running(self, job: JobT) -> bool:
        """Whether it has been admitted and has not left."""
        return job in self._running

    @property
    def jobs(self) -> list[JobT]:
        """Every job, running ones first."""
        return [*self._running, *(job for queue in self._waiting.values() for job in queue)]

    def add(self, job: JobT) -> None:
        """Queue a job.

        Raises:
            ResourceExhausted: the queue is full.
        """
        if self.waiting >= self.max_waiting:
            raise ResourceExhausted(f"queue: {self.max_waiting} requests wait", "retry with backoff or add executors")
        if job.tenant not in self._served:  # a newcomer starts level with the least served, not with the past
            self._served[job.tenant] = min(self._served.values(), default=0)
        self._waiting.setdefault(job.tenant, deque()).append(job)

    def admit(self) -> list[JobT]:
        """Start waiting jobs while what they need is there; returns those started, not yet ready."""
        admitted: list[JobT] = []
        while self._waiting and len(self._running) < self.rows:
            tenant = min(self._waiting, key=lambda name: self._served[name])
            job = self._waiting[tenant][0]
            if not self._start(job):
                break
            self._take_waiting(job)
            self._running[job] = None
            admitted.append(job)
        return admitted

    def plan(self) -> list[tuple[JobT, int]]:
        """(job, tokens) of the next step: one token of every job that generates, then prompts up to the step's budget."""
        ready = [job for job in self._running if job.ready]
        plan = [(job, 1) for job in ready if len(job.tokens) - job.computed == 1]
        budget = self.step_tokens - len(plan)
        for job in ready:
            count = min(len(job.tokens) - job.computed, budget)
            if count and len(job.tokens) - job.computed > 1:
                plan.append((job, count))
                budget -= count
        return plan

    def computed(self, job: JobT, tokens: int) -> None:
        """A step has put so many more of the job's tokens into the cache: account for them, and offer full prompt blocks to others."""
        if job not in self._running:
            return
        prompt = max(0, min(job.prompt_tokens - job.computed, tokens))
        before, job.computed = job.computed // self._block_tokens, job.computed + tokens
        self._served[job.tenant] += PROMPT_COST * prompt + NEW_COST * (tokens - prompt)
        for index in range(before, min(job.computed // self._block_tokens, len(job._keys))):
            self.blocks.publish(job.blocks[index], job._keys[index])

    def remove(self, job: JobT) -> None:
        """Take a job out, wherever it is, and free what it holds; absent is fine."""
        if job in self._running:
            del self._running[job]
            self.blocks.release(job.blocks)
            self.slots.release(job.adapters)
        else:
            self._take_waiting(job)
        if job.tenant not in self._waiting and not any(other.tenant == job.tenant for other in self._running):
            self._served.pop(job.tenant, None)

    def _start(self, job: JobT) -> bool:
        if not job._keys:
            # A job that is only read wants the logits of its tokens: it cannot skip any.
            job._keys = prefix_keys(job.mixture_key, job.tokens, self._block_tokens) if job.max_new else []
        taken = self.blocks.take(-(-(len(job.tokens) + job.max_new) // self._block_tokens), job._keys)
        if taken is None:
            return False
        job.acquired = self.slots.acquire(job.adapters)
        if job.acquired is None:
            self.blocks.release(taken[0])
            return False
        job.blocks, job.computed = taken[0], taken[1] * self._block_tokens
        self.prefix_lookups += len(job._keys)
        self.prefix_hits += taken[1]
        return True

    def _take_waiting(self, job: JobT) -> None:
        queue = self._waiting.get(job.tenant)
        if queue and job in queue:
            queue.remove(job)
            if not queue:
                del self._waiting[job.tenant]

    def check_integrity(self) -> None:
        """Raise AssertionError if a row, block or slot is lost or shared, or a tenant's account is."""
        self.blocks.check_integrity()
        self.slots.check_integrity()
        assert len(self._running) <= self.rows, "more jobs run than there are rows"
        tenants = {job.tenant for job in self._running} | set(self._waiting)
        assert tenants == set(self._served), "a tenant's account is missing or left over"
        held = sum(len(job.blocks) for job in self._running)
        assert held == sum(self.blocks._holders.values()), "a block is held by nobody"
