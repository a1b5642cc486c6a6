"""Made-up tasks: many, of many kinds, and no text, template or word of one part is in another."""

from __future__ import annotations

from benchmarks.made_tasks import PARTS, made_tasks

TASKS = made_tasks()


def test_there_are_many_of_many_families() -> None:
    assert len(TASKS) >= 60
    assert len({task.family for task in TASKS}) >= 8
    assert len({task.name for task in TASKS}) == len(TASKS)


def test_parts_share_nothing() -> None:
    for task in TASKS:
        texts = [task.inputs(part, 50) for part in PARTS]
        assert [len(set(one)) for one in texts] == [50, 50, 50], task.name
        assert not set(texts[0]) & set(texts[1]), task.name
        assert not set(texts[2]) & {*texts[0], *texts[1]}, task.name
        for words in (task.templates, *task.slots.values()):
            assert len(set(words)) == len(words), task.name


def test_the_same_seed_gives_the_same_texts() -> None:
    assert TASKS[0].inputs("test", 9) == TASKS[0].inputs("test", 9) != TASKS[0].inputs("test", 9, seed=1)
