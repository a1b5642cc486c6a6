"""When training stops, as a function of the held-out losses alone."""

from __future__ import annotations

import pytest

from services.executor.adapters.early_stopping import Evaluation, best_of, is_flat


def _losses(*losses: float) -> list[Evaluation]:
    return [Evaluation(10 * number, loss) for number, loss in enumerate(losses)]


@pytest.mark.parametrize(
    ("losses", "flat"),
    [
        ((3.0,), False),
        ((3.0, 3.0, 3.0), False),  # too few to tell
        ((3.0, 1.0, 0.5, 0.4, 0.3), False),  # falls
        ((3.0, 0.5, 0.9, 0.9, 0.3), False),  # rose, and fell lower at last
        ((3.0, 0.5, 0.499, 0.497, 0.495), True),  # falls by less than counts
        ((3.0, 0.5, 0.496, 0.492, 0.488), False),  # slowly, but by more than counts in all
        ((3.0, 0.2, 0.3, 0.4, 0.5), True),  # rises: it learns the training lines by heart
        ((3.0, 3.1, 3.2, 3.3), True),  # never fell
    ],
)
def test_it_is_flat_when_the_last_three_together_gained_less_than_a_hundredth(losses: tuple[float, ...], flat: bool) -> None:
    assert is_flat(_losses(*losses), patience=3, min_gain=0.01) is flat


def test_without_patience_it_is_never_flat() -> None:
    assert not is_flat(_losses(1.0, 1.0, 1.0, 1.0, 1.0), patience=0, min_gain=0.01)


def test_the_first_of_equal_losses_is_the_best() -> None:
    assert best_of(_losses(2.0, 1.0, 0.5, 0.5, 0.7)) == Evaluation(20, 0.5)
