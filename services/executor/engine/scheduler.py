"""Who runs next, and how many tokens of each: rows, cache blocks and adapter slots are given out together. Pure: touches no tensors."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from services.executor.engine.blocks import BlockPool, PrefixKeys
from smoa.errors import ResourceExhausted
from smoa.fairness import Fairness

PROMPT_COST, NEW_COST = 1, 2
"""What a prompt token and a new token count for in a tenant's service (Sheng et al., Fairness in Serving LLMs, arXiv 2401.00588)."""


class Lease(Protocol):
    """A job's hold on the adapters of its mixture."""

    def acquire(self) -> bool:
        """Take slots for all of them, or none (False)."""

    def release(self) -> None:
        """Let go of them; again is fine."""


@dataclass(eq=False, kw_only=True)
class Job:
    """A sequence from its arrival to its end."""

    tenant: str
    tokens: list[int]
    """The prompt, then what was generated."""
    lease: Lease
    mixture_key: bytes = b""
    """Names tenant, adapters and weights: only jobs of one key share cache blocks."""
    wanted_from: int = -1
    """The first token whose logits are wanted: what is before it may come out of the cache. Default: the prompt's last."""
    prompt_tokens: int = field(init=False)
    computed: int = 0
    """Tokens whose keys and values are in the cache."""
    charged: int = 0
    """Tokens, from the first on, that the tenant has been charged for: those computed again after a preemption are not its doing."""
    blocks: list[int] = field(default_factory=list)
    ready: bool = False
    """Set once the mixture is on the device; until then the job holds its place and computes nothing."""
    passed: int = 0
    """Jobs behind it that were started before it, because it did not fit."""
    keys: PrefixKeys | None = None

    def __post_init__(self) -> None:
        self.prompt_tokens = len(self.tokens)


JobT = TypeVar("JobT", bound=Job)


class Scheduler(Generic[JobT]):
    """Iteration-level scheduling (Orca, OSDI 2022) with chunked prefill (Sarathi-Serve, arXiv 2403.02310) and fair tenants.

    A job is admitted when a row, slots for all its adapters and cache for what it has so far are there. Its cache grows with its answer;
    when there is no more, the job that was admitted last gives its blocks up and waits, with its slots, before all others (vLLM's
    recomputation, arXiv 2309.06180). The tenant that has been served least goes first; one without a row need not wait until another
    that has several is done with one: it is taken for it. Within a tenant, first come first served. A job
    that does not fit is passed by as many others as there are rows, so the batch stays full; then it keeps those behind it waiting, so it
    cannot starve.
    """

    def __init__(self, *, rows: int, blocks: BlockPool, block_tokens: int, step_tokens: int, max_waiting: int) -> None:
        if step_tokens < rows:
            raise ValueError(f"step_tokens {step_tokens} is under the {rows} rows: every row decodes at every step")
        self.rows, self.max_waiting, self.step_tokens = rows, max_waiting, step_tokens
        self.blocks, self._block_tokens = blocks, block_tokens
        self._waiting: dict[str, deque[JobT]] = {}
        self._preempted: deque[JobT] = deque()
        self._running: dict[JobT, None] = {}
        self._fairness = Fairness()
        self._alone: JobT | None = None
        """Whose prompt was the last step, where that was one prompt alone."""
        self.prefix_hits = self.prefix_lookups = self.preemptions = 0

    @property
    def waiting(self) -> int:
        """Jobs without a row."""
        return sum(map(len, self._waiting.values())) + len(self._preempted)

    @property
    def running(self) -> list[JobT]:
        """Jobs with a row, in order of admission."""
        return list(self._running)

    def is_running(self, job: JobT) -> bool:
        """Whether it has a row."""
        return job in self._running

    def is_admitted(self, job: JobT) -> bool:
        """Whether it has a row, or had one and will have one again."""
        return job in self._running or job in self._preempted

    @property
    def jobs(self) -> list[JobT]:
        """Every job, running ones first."""
        return [*self._running, *self._preempted, *(job for queue in self._waiting.values() for job in queue)]

    def add(self, job: JobT) -> None:
        """Queue a job.

        Raises:
            ResourceExhausted: the queue is full.
        """
        if self.waiting >= self.max_waiting:
            raise ResourceExhausted(f"queue: {self.max_waiting} requests wait", "retry with backoff or add executors")
        job.keys = PrefixKeys(job.mixture_key, self._block_tokens)
        self._fairness.enter(job.tenant)
        self._waiting.setdefault(job.tenant, deque()).append(job)

    def displaceable(self, tenant: str, count: int) -> list[JobT]:
        """Waiting jobs that may be given up for so many of a tenant's: each the newest of whoever has most, and has more than the tenant
        even so. None if there are too few: a queue is full for whoever has the most in it (McKenney, Stochastic Fairness Queueing, 1990).
        """
        jobs, left, chosen = self._fairness.jobs(), {one: list(queue) for one, queue in self._waiting.items()}, list[JobT]()
        while len(chosen) < count:
            most = max((one for one, queue in left.items() if queue), key=jobs.__getitem__, default=tenant)
            if jobs[most] <= jobs[tenant] + len(chosen) + 1:
                return []
            jobs[most] -= 1
            chosen.append(left[most].pop())
        return chosen

    def admit(self) -> list[JobT]:
        """Start waiting jobs while what they need is there; returns those started for the first time, not yet ready."""
        makes_way = self._make_way()
        while self._preempted and len(self._running) < self.rows and self._take_blocks(self._preempted[0]):
            self._running[self._preempted.popleft()] = None
        admitted: list[JobT] = makes_way
        blocked: list[JobT] = []
        for job in self._by_turn():
            if self._preempted or len(self._running) >= self.rows:
                break
            if self._start(job):
                self._take_waiting(job)
                self._running[job] = None
                admitted.append(job)
                for other in blocked:
                    other.passed += 1
            else:
                blocked.append(job)
            if len(blocked) >= self.rows or any(other.passed >= self.rows for other in blocked):
                break
        return admitted

    def plan(self) -> list[tuple[JobT, int]]:
        """(job, tokens) of the next step: one token of every job that generates, then prompts up to the step's budget.

        Where one tenant has most of the rows, every other step is for the prompt of one that has a single row, if there is such: its first
        token need not wait for a step of all rows. Where rows are many tenants', that would cost more than it gives.
        """
        self._alone = None if self._alone else self._newcomer()
        if self._alone:  # it costs the others a token each
            self._fairness.serve(self._alone.tenant, NEW_COST * (len(self._running) - 1))
            return [(self._alone, min(len(self._alone.tokens) - self._alone.computed, self.step_tokens))]
        plan = [(job, 1) for job in self.running if job.ready and len(job.tokens) - job.computed == 1 and self._grown(job)]
        budget = self.step_tokens - len(plan)
        for job in self._running:
            count = min(len(job.tokens) - job.computed, budget)
            if job.ready and count and len(job.tokens) - job.computed > 1:
                plan.append((job, count))
                budget -= count
        return plan

    def _newcomer(self) -> JobT | None:
        """Of a tenant with a single row, and served less than the one that has most of them: a job that computes its prompt."""
        rows = Counter(job.tenant for job in self._running)
        if not rows:
            return None
        most, held = rows.most_common(1)[0]
        if 2 * held <= self.rows:
            return None
        coming = (job for job in self._running if job.ready and rows[job.tenant] == 1 and len(job.tokens) == job.prompt_tokens)
        prompts = (job for job in coming if job.computed < job.prompt_tokens)
        return next((job for job in prompts if self._fairness.by_turn([job.tenant, most])[0] == job.tenant), None)

    def computed(self, job: JobT, tokens: int) -> None:
        """A step has put so many more of the job's tokens into the cache: account for them, and offer full blocks to others."""
        if job not in self._running:
            return
        assert job.keys is not None
        first = max(job.computed, job.charged)
        before, job.computed = job.computed // self._block_tokens, job.computed + tokens
        job.charged = max(job.charged, job.computed)
        prompt = max(0, min(job.prompt_tokens, job.charged) - first)
        self._fairness.serve(job.tenant, PROMPT_COST * prompt + NEW_COST * (job.charged - first - prompt))
        keys = job.keys.of(job.tokens, job.computed)
        for index in range(before, len(keys)):
            self.blocks.publish(job.blocks[index], keys[index])

    def remove(self, job: JobT) -> None:
        """Take a job out, wherever it is, and free what it holds; absent is fine."""
        known = True
        if job in self._running:
            del self._running[job]
            self._give_up_blocks(job)
        elif job in self._preempted:
            self._preempted.remove(job)
        else:
            known = self._take_waiting(job)
        job.lease.release()
        if known:
            self._fairness.leave(job.tenant)

    def _make_way(self) -> list[JobT]:
        """Where all rows are taken, and a tenant waits without one: a row of the tenant that has most, if it has several and was served no
        less, that of its job that was admitted last. This one is the next to go on; what it computed may still be in the cache.
        """
        if self._preempted or len(self._running) < self.rows:
            return []
        rows = Counter(job.tenant for job in self._running)
        without = [tenant for tenant in self._waiting if not rows[tenant]]
        most, held = rows.most_common(1)[0]
        if held < 2 or not without:
            return []
        first = self._fairness.by_turn([*without, most])[0]
        if first == most:  # they have had their share, in other rows or before
            return []
        job = self._waiting[first][0]
        if not (self._fits(job) and job.lease.acquire()):  # before a row is taken for it
            return []
        self._preempt(next(one for one in reversed(self._running) if one.tenant == most))
        assert self._take_blocks(job), "there were enough, and have become more"
        self._take_waiting(job)
        self._running[job] = None
        return [job]

    def _preempt(self, job: JobT) -> None:
        del self._running[job]
        self._give_up_blocks(job)
        self._preempted.appendleft(job)
        self.preemptions += 1

    def _by_turn(self) -> Iterator[JobT]:
        """Waiting jobs, those of the tenant served least first."""
        for tenant in self._fairness.by_turn(self._waiting):
            yield from list(self._waiting[tenant])

    def _start(self, job: JobT) -> bool:
        """Give it all or nothing. Blocks are taken last: a job that waits for slots costs nobody a cached prefix."""
        return self._fits(job) and job.lease.acquire() and self._take_blocks(job)

    def _fits(self, job: JobT) -> bool:
        """Whether there are blocks for its tokens, beside one more for each row that runs: or they would soon be taken back."""
        return self.blocks.fits(self._blocks_of(job), self._keys_of(job), len(self._running))

    def _take_blocks(self, job: JobT) -> bool:
        keys = self._keys_of(job)
        if not self._fits(job) or (taken := self.blocks.take(self._blocks_of(job), keys)) is None:
            return False
        job.blocks, job.computed = taken[0], taken[1] * self._block_tokens
        self.prefix_lookups += len(keys)
        self.prefix_hits += taken[1]
        return True

    def _blocks_of(self, job: JobT) -> int:
        return -(-len(job.tokens) // self._block_tokens)

    def _keys_of(self, job: JobT) -> list[bytes]:
        """Of the blocks that may come out of the cache."""
        assert job.keys is not None
        return job.keys.of(job.tokens, len(job.tokens) - 1 if job.wanted_from < 0 else job.wanted_from)

    def _grown(self, job: JobT) -> bool:
        """Whether there is cache for all its tokens, if need be by taking it from those admitted last; False: its own was taken."""
        while job in self._running and len(job.blocks) * self._block_tokens < len(job.tokens):
            if (taken := self.blocks.take(1)) is not None:
                job.blocks += taken[0]
                continue
            self._preempt(next(reversed(self._running)))
        return job in self._running

    def _give_up_blocks(self, job: JobT) -> None:
        self.blocks.release(job.blocks)
        job.blocks, job.computed = [], 0

    def _take_waiting(self, job: JobT) -> bool:
        queue = self._waiting.get(job.tenant)
        if not queue or job not in queue:
            return False
        queue.remove(job)
        if not queue:
            del self._waiting[job.tenant]
        return True

    def check_integrity(self) -> None:
        """Raise AssertionError if a row or a block is lost or shared, or a tenant's account is."""
        self.blocks.check_integrity()
        assert len(self._running) <= self.rows, "more jobs run than there are rows"
        self._fairness.check_integrity([job.tenant for job in self.jobs])
        held = sum(len(job.blocks) for job in self._running)
        assert held == sum(self.blocks._holders.values()), "a block is held by nobody"
