"""What `smoa adapter train` says of where it stands, and how often it says it in a log."""

from __future__ import annotations

import pytest

from services.executor.adapters.early_stopping import Evaluation
from services.executor.adapters.training import Progress, TrainSettings
from services.executor.adapters.training_progress import LogReporter, duration, progress_line

SETTINGS = TrainSettings(name="tickets")


def _progress(step: int, *losses: float, left: float = 80.0) -> Progress:
    return Progress(step, 300, 0.5, [Evaluation(10 * number, loss) for number, loss in enumerate(losses)], left)


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0 s"), (59.6, "1 min 0 s"), (80, "1 min 20 s"), (7500, "2 h 5 min")])
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_a_line_says_where_it_stands_and_how_long_it_still_takes() -> None:
    line = progress_line(_progress(40, 3.2, 0.8, 0.5, 0.39, 0.41), SETTINGS)
    assert line == "step 40 of at most 300, held-out loss 0.41 (best 0.39 at 30), at most 1 min 20 s left"
    first = progress_line(_progress(1, 3.2, left=240.0), SETTINGS)
    assert first == "step 1 of at most 300, held-out loss 3.20 (best 3.20 at 0), at most 4 min 0 s left"
    fixed = progress_line(_progress(12, 3.2, 0.8), TrainSettings(name="tickets", patience=0))
    assert fixed == "step 12 of 300, held-out loss 0.80 (best 0.80 at 10), 1 min 20 s left"


def test_a_log_gets_the_first_step_the_last_and_one_every_few_seconds() -> None:
    now, lines = 0.0, list[str]()
    report = LogReporter(SETTINGS, lines.append, clock=lambda: now)
    for step in range(1, 301):
        now += 1.0
        report(_progress(step, 1.0))
    said = [int(line.split()[1]) for line in lines]
    assert said == [*range(1, 300, 5), 300]
    assert all("\r" not in line and "\n" not in line for line in lines)
