"""What the processes of `smoa up` are started with."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.local import LocalStack, StackSettings


def test_their_threads_sleep_when_they_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads that spin take the core from whoever else is at work here: training beside the stack took 36 minutes."""
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    assert {spec.environment["OMP_WAIT_POLICY"] for spec in LocalStack(StackSettings(data=tmp_path))._specs()} == {"PASSIVE"}


def test_another_policy_that_is_set_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    assert {spec.environment["OMP_WAIT_POLICY"] for spec in LocalStack(StackSettings(data=tmp_path))._specs()} == {"ACTIVE"}
