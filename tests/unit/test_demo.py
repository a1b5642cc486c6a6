"""The demonstrations' own arithmetic and words, and that nothing of the environment turns them to other services."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from examples.library.jobs import DECOY_JOBS, JOBS
from services.demo import demo
from services.demo.adapters import job_of, library_of_57
from services.demo.caller import guessing, queries_of, told_in_words
from services.demo.command import DEFAULT, DEMONSTRATIONS
from services.demo.scaling import arithmetic
from services.demo.session import Session, own_environment, unused_variables
from services.demo.workflow import Changes
from smoa.v1 import common_pb2 as common
from smoa.v1 import registry_pb2

PRODUCTION = {
    "SMOA_KAFKA_BOOTSTRAP": "kafka.example:9092",
    "SMOA_QDRANT_URL": "http://qdrant.example:6334",
    "SMOA_STORE": "s3://bucket",
    "SMOA_ROUTER_TOP_K": "1",
    "SMOA_OPTIMIZER_MODE": "observe",
}


def test_what_the_environment_names_is_not_used_and_said() -> None:
    environment = {**PRODUCTION, "SMOA_CACHE": "/cache", "PATH": "/bin"}
    assert own_environment(environment) == {"SMOA_CACHE": "/cache", "PATH": "/bin"}
    assert unused_variables(environment) == sorted(PRODUCTION)


def test_what_a_demonstration_starts_inherits_nothing_that_names_services(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, value in PRODUCTION.items():
        monkeypatch.setenv(name, value)
    settings = Session(folder=tmp_path, log=tmp_path / "log", kafka="").stack_settings("router", SMOA_ROUTER_CACHE_BYTES="0")
    assert settings.inherited is not None
    assert not set(PRODUCTION) & set(settings.inherited)
    assert settings.kafka_bootstrap == ""
    assert settings.store == str(tmp_path / "store")
    assert settings.environment["SMOA_ROUTER_CACHE_BYTES"] == "0"


def test_the_kafka_of_the_environment_is_no_option() -> None:
    assert all(parameter.envvar is None for parameter in demo.params)


def test_list_names_all_eight() -> None:
    eight = ["library", "routing", "strategies", "composition", "optimisation", "serving", "scaling", "workflow"]
    assert list(DEMONSTRATIONS) == eight
    assert DEFAULT == "workflow"
    shown = CliRunner().invoke(demo, ["--list"])
    assert shown.exit_code == 0
    assert [line.split()[-1] for line in shown.output.splitlines() if line.startswith("smoa demo")] == eight


def test_an_unknown_name_is_a_wrong_argument() -> None:
    shown = CliRunner().invoke(demo, ["everything"])
    assert shown.exit_code == 2
    assert "'scaling'" in shown.output


def test_the_library_of_57_is_what_it_says() -> None:
    library = library_of_57()
    names = [one.adapter.manifest.name for one in library]
    assert len(library) == len(set(names)) == len({one.adapter.manifest.adapter_id for one in library}) == 57
    assert set(JOBS) | set(DECOY_JOBS) <= set(names)
    assert sum("-copy" in name for name in names) == 37
    assert {job_of(name) for name in names} == set(JOBS) | set(DECOY_JOBS)
    assert all(5 <= len(one.examples) <= 50 for one in library)


def test_the_arithmetic_to_a_billion_is_the_decisions() -> None:
    billion = arithmetic(1_000_000_000)
    assert (billion["resident_gb"], billion["nodes"]) == (800, 16)
    assert billion["disk_gb"] == pytest.approx(1400)
    assert billion["disk_with_examples_gb"] == pytest.approx(5400)
    assert billion["fill_hours_one_writer"] == pytest.approx(93, abs=0.5)


def test_told_in_words_holds_the_task_the_text_and_every_label() -> None:
    prompt = told_in_words(JOBS["med_department"], "my knee hurts")
    assert "hospital department" in prompt
    assert "my knee hurts" in prompt
    assert all(label in prompt for label in JOBS["med_department"].labels)


def test_guessing_is_one_of_the_labels() -> None:
    assert guessing(queries_of(["fin_headline"], 3)) == pytest.approx(1 / 3)  # up, down, flat


def test_queries_of_a_job_are_the_same_each_time() -> None:
    assert queries_of(["log_severity"], 3) == queries_of(["log_severity"], 3)
    assert {query.job for query in queries_of(["log_severity", "star_sign"], 2)} == {"log_severity", "star_sign"}


def test_the_reason_of_a_prune_is_said_once() -> None:
    pruned = registry_pb2.Adapter(
        adapter_id="1",
        name="a",
        state=common.ADAPTER_STATE_RETIRED,
        state_reason="pruned: not needed: used 0 times recently, 3.0 expected at its age; the tenant's 2 adapters were used 79 times",
    )
    assert Changes([pruned]).story(pruned) == "pruned: not needed: used 0 times recently, 3.0 expected at its age"


def test_what_became_of_a_merge_is_told_of_parents_and_child() -> None:
    parents = [registry_pb2.Adapter(adapter_id=one, name=one, state=common.ADAPTER_STATE_RETIRED) for one in "ab"]
    child = registry_pb2.Adapter(adapter_id="c", name="a+b", state=common.ADAPTER_STATE_ACTIVE, merge_id="m", parents=["a", "b"])
    changes = Changes([*parents, child])
    assert changes.merged == [["a", "b"]]
    assert changes.pruned == []
    assert [changes.story(adapter) for adapter in changes.library] == [
        "merged with its near-duplicate",
        "merged with its near-duplicate",
        "made of two near-duplicates",
    ]


def test_every_demonstration_says_what_to_do_next() -> None:
    assert all(one.next_steps for one in DEMONSTRATIONS.values())
