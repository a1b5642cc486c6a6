"""What Faust and aiokafka keep to themselves, and we use all the same: a version that changes it must be looked at before it is taken."""

from __future__ import annotations

import inspect
import re
import tomllib
from importlib.metadata import version
from pathlib import Path

import aiokafka
import faust
import pytest
from aiokafka.client import AIOKafkaClient
from aiokafka.consumer.group_coordinator import GroupCoordinator
from faust.app.base import App
from faust.transport.consumer import Consumer as FaustConsumer
from faust.transport.drivers import aiokafka as driver

ROOT = Path(__file__).parents[2]
USERS = ("services/optimizer/stream/transport.py", "smoa/coordinator.py", "smoa/reader.py")
Thread, Consumer = driver.AIOKafkaConsumerThread, aiokafka.AIOKafkaConsumer
USED: dict[str, tuple[type, ...]] = {
    "_acked": (FaustConsumer,),
    "_acked_index": (FaustConsumer,),
    "_client": (Consumer,),
    "_consumer": (Thread, App),
    "_coordination_task": (GroupCoordinator,),
    "_coordinator": (Consumer,),
    "_create_worker_consumer": (Thread,),
    "_ensure_consumer": (Thread,),
    "_fetch_records": (Thread,),
    "_gap": (FaustConsumer,),
    "_isolation_level": (Consumer,),
    "_new_consumer_thread": (driver.Consumer,),
    "_pending_exception": (GroupCoordinator,),
    "_seek": (driver.Consumer,),
    "_send_req": (GroupCoordinator,),
    "_subscription": (Consumer, GroupCoordinator),
    "_thread": (driver.Consumer,),
}
"""Name -> whose it is."""
OWN = {"_ask", "_confirm", "_ends", "_newest_ms", "_places", "_stop", "_streams"}
"""Ours, in those files."""
PUBLIC: dict[type, tuple[str, ...]] = {
    FaustConsumer: ("perform_seek", "pause_partitions", "resume_flow", "resume_partitions", "earliest_offsets", "highwater"),
    driver.Consumer: ("seek_to_committed", "commit", "force_commit"),
    GroupCoordinator: ("check_errors", "request_rejoin", "need_rejoin", "fetch_committed_offsets", "coordinator_dead"),
    AIOKafkaClient: ("fetch_all_metadata", "close"),
}
"""Without an underscore, and no more promised: they are overridden, or called from outside."""


@pytest.mark.parametrize(("name", "owner"), [(name, owner) for name, owners in USED.items() for owner in owners])
def test_a_private_name_is_still_there(name: str, owner: type) -> None:
    there = hasattr(owner, name) or any(f"self.{name}" in inspect.getsource(one) for one in owner.__mro__ if one.__module__ != "builtins")
    assert there, f"{owner.__module__}.{owner.__name__} has no {name} any more: see who uses it in {', '.join(USERS)}"


@pytest.mark.parametrize(("owner", "name"), [(owner, name) for owner, names in PUBLIC.items() for name in names])
def test_what_is_overridden_is_still_there(owner: type, name: str) -> None:
    assert hasattr(owner, name), f"{owner.__module__}.{owner.__name__} has no {name} any more: see who uses it in {', '.join(USERS)}"


def test_every_private_name_that_is_used_is_listed() -> None:
    used: set[str] = set()
    for file in USERS:
        used |= set(re.findall(r'[."](_[a-z][a-z_]*)', (ROOT / file).read_text()))
    assert used - OWN == USED.keys() - {"_new_consumer_thread"}, "list it above, with whose it is"


@pytest.mark.parametrize("package", ["faust-streaming", "aiokafka"])
def test_the_version_is_exactly_the_one_that_is_named(package: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    every = [*project["dependencies"], *(one for extra in project["optional-dependencies"].values() for one in extra)]
    [named] = {found[1] for one in every if (found := re.match(rf"{package}(?:\[[^]]*\])?==([0-9.]+)$", one))}
    assert version(package) == named
    assert faust.__version__
