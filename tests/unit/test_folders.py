"""Which folders an import takes, what their adapters are called, and what it says of them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from smoa.cli.folders import Result, find_folders, names_of, summary
from smoa.errors import InvalidArgument
from smoa.folder_kinds import describe
from smoa.peft import content_id
from tests.peft_support import write_folder


def test_folders_trees_and_patterns(tmp_path: Path) -> None:
    one, two, three = (write_folder(tmp_path / name) for name in ("a/one", "a/two", "b/three"))
    write_folder(one / "checkpoint-500")
    (tmp_path / "a" / "notes").mkdir()
    assert find_folders([str(one)]) == ([one], [])
    assert find_folders([str(tmp_path)]) == ([one, two, three], [])
    assert find_folders([f"{tmp_path}/*/t*", str(two)]) == ([two, three], [])
    found, failed = find_folders([str(three), str(tmp_path / "a/notes"), f"{tmp_path}/c*"])
    assert found == [three]
    assert [(one.folder, one.status) for one in failed] == [(str(tmp_path / "a/notes"), "failed"), (f"{tmp_path}/c*", "failed")]
    assert failed[0].reason.startswith("is no PEFT folder, and holds none (adapter_config.json); ")
    assert failed[1].reason.startswith("is not there; ")


def test_the_last_checkpoint_of_a_run_is_taken_under_the_runs_name(tmp_path: Path) -> None:
    run, other = tmp_path / "refunds", tmp_path / "other"
    for step in (90, 100, 1000):
        write_folder(run / f"checkpoint-{step}")
    (run / "checkpoint-2000").mkdir()
    write_folder(run / "final-2")
    write_folder(other / "checkpoint-5")
    found, failed = find_folders([str(tmp_path)])
    assert (found, failed) == ([other / "checkpoint-5", run / "checkpoint-1000", run / "final-2"], [])
    assert list(names_of(found).values()) == ["other", "refunds", "final-2"]
    assert find_folders([str(run / "checkpoint-90")]) == ([run / "checkpoint-90"], [])
    assert list(names_of([run / "checkpoint-90", run / "checkpoint-100"]).values()) == ["refunds/checkpoint-90", "refunds/checkpoint-100"]


def test_what_is_given_instead_of_a_folder_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = {
        "file": ((), "is a file; give a folder written by PEFT's save_pretrained, or push an adapter file with `smoa adapter push`"),
        "bin": (
            ("adapter_config.json", "adapter_model.bin"),
            "holds its weights as adapter_model.bin, a pickle, which may run ",
        ),
        "mlx": (("adapter_config.json", "adapters.safetensors"), "holds an adapter of MLX; convert it to PEFT's form, "),
        "model": (("config.json", "model.safetensors"), "holds a whole model, or one that an adapter was merged into; give a folder "),
        "gguf": (("model.gguf",), "holds a GGUF file; "),
        "diffusers": (("pytorch_lora_weights.safetensors",), "holds a LoRA of diffusers; "),
        "half": (("adapter_config.json",), "lacks adapter_model.safetensors; "),
        "other half": (("adapter_model.safetensors",), "lacks adapter_config.json; "),
        "empty": ((), "is no PEFT folder, and holds none (adapter_config.json); give a folder written by PEFT's save_pretrained"),
    }
    for name, (files, expected) in kinds.items():
        (tmp_path / name).touch() if name == "file" else (tmp_path / name).mkdir()
        for file in files:
            (tmp_path / name / file).write_text("{}")
        assert "; ".join(describe(tmp_path / name)).startswith(expected)
    (tmp_path / "half" / "adapter_config.json").write_text('{"fine_tune_type": "lora", "lora_parameters": {"rank": 8}}')
    assert describe(tmp_path / "half")[0] == "holds an adapter of MLX"
    monkeypatch.chdir(tmp_path / "model")
    found, [failed] = find_folders(["."])
    assert (found, failed.folder) == ([], ".")
    assert failed.reason.startswith("holds a whole model, or one that an adapter was merged into; ")
    monkeypatch.chdir(write_folder(tmp_path / "tickets" / "sub"))
    assert list(names_of(find_folders(["."])[0]).values()) == ["sub"]
    assert find_folders([".."])[0] == [tmp_path / "tickets" / "sub"]


def test_folders_that_are_called_alike_are_told_apart_by_what_they_are_in() -> None:
    paths = [Path(f"/runs/{name}") for name in ("alice/final", "bob/final", "tickets")]
    assert list(names_of(paths).values()) == ["alice/final", "bob/final", "tickets"]
    assert names_of([]) == {}


def test_an_id_is_the_contents(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "one", seed=1)
    same = shutil.copytree(folder, tmp_path / "copy")
    assert content_id(folder, "public", "base") == content_id(same, "public", "base")
    others = [content_id(write_folder(tmp_path / "two", seed=2), "public", "base")]
    others += [content_id(folder, "acme", "base"), content_id(folder, "public", "other")]
    assert len({content_id(folder, "public", "base"), *others}) == 4


def test_a_summary_says_what_is_left_to_do() -> None:
    results = [
        Result("a", "imported", "a", "01A"),
        Result("b", "there", "b", "01B", "active"),
        Result("c", "there", "c", "01C", "retired"),
        Result("d", "waiting", "d", "01D", "add d/examples.txt"),
        Result("e", "failed", "e", reason="folder: e lacks adapter_model.safetensors"),
    ]
    assert summary(results, 1.25).splitlines() == [
        "5 folders in 1.2 s: 1 imported, 2 there already (1 retired), 1 waiting for examples, 1 failed",
        "waiting: d: add d/examples.txt",
        "failed: e: folder: e lacks adapter_model.safetensors",
        "retired: c: bring it back with `smoa adapter restore 01C`",
        "The same command again does what is left.",
    ]
    assert summary(results[:2], 1.25).splitlines() == ["2 folders in 1.2 s: 1 imported, 1 there already, 0 waiting for examples, 0 failed"]


@pytest.mark.parametrize("missing", ["adapter_config.json", "adapter_model.safetensors"])
def test_no_id_without_both_files(tmp_path: Path, missing: str) -> None:
    folder = write_folder(tmp_path / "one")
    (folder / missing).unlink()
    with pytest.raises(InvalidArgument, match=f"lacks {missing}; "):
        content_id(folder, "public", "base")
