"""The scheduler: bounded, fair, and nothing it gives out is ever lost."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.executor.adapters.slots import SlotPool
from services.executor.engine.blocks import BlockPool
from services.executor.engine.scheduler import Job, Scheduler
from smoa.errors import ResourceExhausted


def _scheduler(rows: int = 2, blocks: int = 100, slots: int = 4, step_tokens: int = 32, max_waiting: int = 10) -> Scheduler[Job]:
    return Scheduler(
        rows=rows, slots=SlotPool(slots, 1000), blocks=BlockPool(blocks), block_tokens=16, step_tokens=step_tokens, max_waiting=max_waiting
    )


def _job(tenant: str = "a", prompt: int = 4, new: int = 4, adapters: str = "", key: bytes = b"k") -> Job:
    return Job(tenant=tenant, tokens=list(range(prompt)), max_new=new, adapters=dict.fromkeys(adapters, 1), mixture_key=key)


def _step(scheduler: Scheduler[Job]) -> list[tuple[Job, int]]:
    """One step as the engine takes it: whoever has all its tokens computed gets a new one, and ends after `max_new`."""
    for job in scheduler.admit():
        job.ready = True
    plan = scheduler.plan()
    for job, count in plan:
        scheduler.computed(job, count)
        if job.computed == len(job.tokens):
            job.tokens.append(7)
            if len(job.tokens) - job.prompt_tokens >= job.max_new:
                scheduler.remove(job)
        scheduler.check_integrity()
    return plan


def test_queue_is_bounded() -> None:
    scheduler = _scheduler(rows=1, max_waiting=2)
    scheduler.add(_job())
    scheduler.add(_job())
    with pytest.raises(ResourceExhausted) as caught:
        scheduler.add(_job())
    assert str(caught.value) == "queue: 2 requests wait; retry with backoff or add executors"
    scheduler.admit()
    scheduler.add(_job())
    assert scheduler.waiting == 2


def test_first_come_first_served_within_a_tenant_and_rows_are_used_again() -> None:
    scheduler, jobs = _scheduler(), [_job() for _ in range(3)]
    for job in jobs:
        scheduler.add(job)
    assert scheduler.admit() == jobs[:2]
    assert scheduler.admit() == []
    scheduler.remove(jobs[0])
    assert scheduler.admit() == jobs[2:]
    assert scheduler.running == jobs[1:]


def test_a_job_waits_for_cache_and_for_slots_and_keeps_its_place() -> None:
    scheduler = _scheduler(rows=3, blocks=3)
    large, next_large, small = _job(prompt=30, new=2), _job(prompt=30, new=2), _job()
    for job in (large, next_large, small):
        scheduler.add(job)
    assert scheduler.admit() == [large], "the second needs two blocks, one is free; the third does not pass it"
    scheduler.remove(large)
    assert scheduler.admit() == [next_large, small]

    scheduler = _scheduler(rows=3, slots=2)
    first, second, third = _job(adapters="ab"), _job(adapters="bc"), _job(adapters="a")
    for job in (first, second, third):
        scheduler.add(job)
    assert scheduler.admit() == [first]
    scheduler.remove(first)
    assert scheduler.admit() == [second]
    scheduler.check_integrity()


def test_a_long_prompt_comes_in_chunks_beside_decoding_rows() -> None:
    scheduler = _scheduler(step_tokens=32)
    short, long = _job(new=20), _job(prompt=100, new=2)
    scheduler.add(short)
    _step(scheduler)
    scheduler.add(long)
    assert [[(job is long, count) for job, count in _step(scheduler)] for _ in range(5)] == [
        [(False, 1), (True, 31)],
        [(False, 1), (True, 31)],
        [(False, 1), (True, 31)],
        [(False, 1), (True, 7)],
        [(False, 1), (True, 1)],
    ]


def test_a_job_that_is_not_ready_computes_nothing() -> None:
    scheduler, job = _scheduler(), _job()
    scheduler.add(job)
    scheduler.admit()
    assert scheduler.plan() == []
    job.ready = True
    assert scheduler.plan() == [(job, 4)]


def test_the_tenant_served_least_goes_first() -> None:
    scheduler = _scheduler(rows=1)
    flood = [_job("flood", new=3) for _ in range(8)]
    for job in flood:
        scheduler.add(job)
    _step(scheduler)
    late = _job("late", new=3)
    scheduler.add(late)
    order: list[str] = []
    while scheduler.jobs:
        for job, _ in _step(scheduler):
            if not order or job not in flood[:1]:
                order.append(job.tenant)
    assert "late" in order[:5], "one job of the flood ends, then the newcomer runs"


def test_a_prefix_is_computed_once_for_a_mixture_and_again_for_another() -> None:
    scheduler = _scheduler(rows=3)
    first = _job(prompt=40)
    scheduler.add(first)
    _step(scheduler)
    _step(scheduler)
    same, other = _job(prompt=40), _job(prompt=40, key=b"other")
    scheduler.add(same)
    scheduler.add(other)
    for job in scheduler.admit():
        job.ready = True
    assert (same.computed, other.computed) == (32, 0)
    assert (same.blocks[:2], set(other.blocks) & set(first.blocks)) == (first.blocks[:2], set())
    assert (scheduler.prefix_hits, scheduler.prefix_lookups) == (2, 6)


def test_a_job_that_is_only_read_takes_no_prefix() -> None:
    scheduler = _scheduler()
    scheduler.add(_job(prompt=40))
    _step(scheduler)
    _step(scheduler)
    read = _job(prompt=40, new=0)
    scheduler.add(read)
    scheduler.admit()
    assert read.computed == 0


def test_fewer_step_tokens_than_rows_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^step_tokens 3 is under the 4 rows: every row decodes at every step$"):
        _scheduler(rows=4, step_tokens=3)


events = st.one_of(
    st.tuples(
        st.just("add"), st.sampled_from("abc"), st.integers(1, 60), st.integers(0, 20), st.sets(st.sampled_from("uvwxyz"), max_size=3)
    ),
    st.tuples(st.just("step")),
    st.tuples(st.just("cancel"), st.integers(0, 30)),
)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.integers(1, 4), st.integers(6, 12), st.lists(events, max_size=80))
def test_whatever_happens_all_is_given_back_and_everybody_ends(rows: int, blocks: int, happenings: list[tuple]) -> None:  # type: ignore[type-arg]
    scheduler = _scheduler(rows=rows, blocks=blocks, slots=3)
    jobs: list[Job] = []
    for what, *values in happenings:
        if what == "add":
            job = _job(values[0], values[1], values[2], "".join(sorted(values[3])), values[0].encode())
            try:
                scheduler.add(job)
            except ResourceExhausted:
                assert scheduler.waiting == scheduler.max_waiting
            else:
                jobs.append(job)
        elif what == "step":
            assert sum(count for _, count in _step(scheduler)) <= scheduler.step_tokens
        elif jobs:
            scheduler.remove(jobs[values[0] % len(jobs)])
        scheduler.check_integrity()
    for _ in range(5000):
        if not scheduler.jobs:
            break
        assert _step(scheduler), "somebody waits and nobody runs"
    assert scheduler.jobs == []
    assert scheduler.blocks.available == blocks
