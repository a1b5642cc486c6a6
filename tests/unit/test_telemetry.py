"""What of others' logging shows."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from smoa.telemetry import configure_logging


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    """The test runner's own handlers come back."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


def test_of_third_parties_only_warnings_and_errors_show(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("INFO")
    for name in ("aiokafka.consumer", "faiss.loader", "faust.worker", "httpx", "mode.consumer"):
        logging.getLogger(name).info("noise of %s", name)
        logging.getLogger(name).error("trouble in %s", name)
    logging.getLogger("services.router").info("ours")
    shown = capsys.readouterr().err
    assert "noise" not in shown
    assert shown.count("trouble in ") == 5
    assert "INFO services.router ours" in shown
