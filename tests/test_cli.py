"""The command line: what it prints, where, and how it ends."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from support.backbones import tiny_backbone
from support.command_line import call
from support.data import logits_of
from support.hub_server import HubServer
from support.kind_cases import word_tokenizer
from support.quick import learn_quickly
from support.recipe_files import (  # noqa: F401
    COLORS,
    color_rows,
    finished,
    private_dataset_cache,
    size_rows,
    unlike,
    write_recipe,
    write_task,
)
from typer.testing import Result

from eidetic_hf import EideticModel, __version__, cli


def error_of(result: Result) -> str:
    """The one readable line of a command that failed."""
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    return result.stderr


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:  # noqa: F811
    """A copy of the finished run's folder, to be changed."""
    shutil.copytree(finished, tmp_path / "copy")
    path = tmp_path / "copy" / "colors.yaml"
    path.write_text(path.read_text().replace(str(finished), str(tmp_path / "copy")))
    return tmp_path / "copy"


# -- train ------------------------------------------------------------------------------------------------------------


def test_train_prints_the_matrix_the_shards_and_the_verdict(tmp_path: Path) -> None:
    result = call("train", write_recipe(tmp_path))
    assert result.exit_code == 0, result.output
    results = json.loads((tmp_path / "output" / "results.json").read_text())
    assert "second: task 2 of 2, 3 labels, train 48, validation 12, test 20" in result.stdout
    for score in results["matrix"][1]["scores"].values():
        assert f"{score:.4f}" in result.stdout
    for shard in ("eidetic-trunk.safetensors", "eidetic-task-first.safetensors", "eidetic-task-second.safetensors"):
        assert results["steps"][1]["shards"][shard]["sha256"][:12] in result.stdout
    assert result.stdout.count("unchanged") == 2
    assert "forgetting: 0.0000" in result.stdout
    mean = results["routing"]["mean"]
    assert f"task not given: {mean['routing_accuracy']:.4f} sent to their own task" in result.stdout
    assert f"{mean['routed_accuracy']:.4f} answered right" in result.stdout
    assert "verified: no committed task has changed" in result.stdout
    for file in ("report.html", "report.json", "results.json", "model/config.json"):
        assert (tmp_path / "output" / file).is_file()
    assert result.stderr == ""


def test_train_writes_where_output_says(copied: Path) -> None:
    path = copied / "colors.yaml"
    tasks = yaml.safe_load(path.read_text())["tasks"][:1]
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), "tasks": tasks}))
    assert call("train", path, "--output", copied / "elsewhere").exit_code == 0
    assert (copied / "elsewhere" / "model" / "eidetic-task-first.safetensors").is_file()


def test_train_again_skips_what_is_committed(copied: Path) -> None:
    result = call("train", copied / "colors.yaml")
    assert result.exit_code == 0, result.output
    assert "first: already committed, skipped\nsecond: already committed, skipped\n" in result.stdout
    assert "verified: no committed task has changed" in result.stdout


def test_a_bad_recipe_is_one_line_on_stderr(tmp_path: Path) -> None:
    write_recipe(tmp_path, trunk_layer=1)
    message = error_of(call("train", tmp_path / "colors.yaml"))
    assert "Unknown key 'trunk_layer'" in message
    assert message.count("\n") == 1


def test_debug_shows_where_an_error_came_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for result in (call("--debug", "train", tmp_path / "nowhere.yaml"),):
        assert type(result.exception).__name__ == "RecipeError"
    monkeypatch.setenv("EIDETIC_DEBUG", "1")
    assert type(call("train", tmp_path / "nowhere.yaml").exception).__name__ == "RecipeError"


# -- evaluate ---------------------------------------------------------------------------------------------------------


def test_evaluate_finds_the_scores_of_the_matrix(finished: Path) -> None:  # noqa: F811
    result = call("evaluate", finished / "output" / "model", finished / "colors.yaml", "--json")
    results = json.loads((finished / "output" / "results.json").read_text())
    found = json.loads(result.stdout)
    assert found["split"] == "test"
    assert {name: metrics["accuracy"] for name, metrics in found["oracle"].items()} == results["matrix"][1]["scores"]
    assert found["oracle"] == results["steps"][1]["scores"]
    assert found["routing"] == results["routing"]


def test_evaluate_takes_one_task_and_another_split(finished: Path) -> None:  # noqa: F811
    arguments = ("evaluate", finished / "output" / "model", finished / "colors.yaml", "--task", "second")
    found = json.loads(call(*arguments, "--split", "train", "--json").stdout)
    assert list(found["oracle"]) == list(found["routing"]["scores"]) == ["second"]
    assert found["routing"]["tasks"] == ["first", "second"]
    assert found["oracle"]["second"]["accuracy"] >= 0.9
    assert f"{found['oracle']['second']['accuracy']:.4f}" in call(*arguments, "--split", "train").stdout


def test_evaluate_shows_where_texts_went(unlike: Path) -> None:  # noqa: F811
    arguments = ("evaluate", unlike / "output" / "model", unlike / "colors.yaml")
    routing = json.loads(call(*arguments, "--json").stdout)["routing"]
    shown = " ".join(call(*arguments).stdout.split())
    for name, row in routing["scores"].items():
        figures = [f"{row[f'{kind}_accuracy']:.4f}" for kind in ("routing", "oracle", "routed", "merged_label")]
        assert f"{name} │ 20 │ {' │ '.join(figures)}" in shown
        assert f"{name} │ {' │ '.join(str(n) for n in routing['confusion'][name].values())} │" in shown


def test_evaluate_refuses_an_unknown_task_and_split(finished: Path) -> None:  # noqa: F811
    arguments = ("evaluate", finished / "output" / "model", finished / "colors.yaml")
    assert "no task 'third'" in error_of(call(*arguments, "--task", "third"))
    assert "'exam'" in error_of(call(*arguments, "--split", "exam"))


# -- predict ----------------------------------------------------------------------------------------------------------


def check_answers(result: Result, texts: list[str]) -> list[dict[str, Any]]:
    assert result.exit_code == 0, result.output
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert [line["text"] for line in lines] == texts
    for line in lines:
        assert set(line) == {"text", "task", "label", "score", "scores"}
        assert list(line["scores"]) == COLORS
        assert sum(line["scores"].values()) == pytest.approx(1)
        assert line["score"] == line["scores"][line["label"]] == max(line["scores"].values())
    return lines


def test_predict_answers_arguments_a_file_and_stdin_alike(finished: Path, tmp_path: Path) -> None:  # noqa: F811
    rows = color_rows(5, 6)
    texts = [row["text"] for row in rows]
    model = finished / "output" / "model"
    (tmp_path / "texts.txt").write_text("\n".join(texts) + "\n\n")
    from_arguments = check_answers(call("predict", model, "--task", "first", *texts), texts)
    assert (
        check_answers(call("predict", model, "--task", "first", "--file", tmp_path / "texts.txt"), texts)
        == from_arguments
    )
    from_stdin = call("predict", model, "--task", "first", input="\n".join(texts))
    assert check_answers(from_stdin, texts) == from_arguments
    assert sum(line["label"] == row["label"] for line, row in zip(from_arguments, rows, strict=True)) >= 5


def test_predict_refuses_what_it_can_not_answer(finished: Path, tmp_path: Path) -> None:  # noqa: F811
    model = finished / "output" / "model"
    assert "no task 'third'" in error_of(call("predict", model, "--task", "third", "red"))
    assert "every line is empty" in error_of(call("predict", model, "--task", "first", input="\n \n"))
    both = error_of(call("predict", model, "--task", "first", "red", "--file", tmp_path / "texts.txt"))
    assert "one or the other" in both
    assert "Choose one" in error_of(call("predict", model, "--task", "first", "--abstain", "0.1", "red"))
    assert "abstain=2.0: expected True, False or a share" in error_of(call("predict", model, "--abstain", "2", "red"))


def test_predict_sends_each_text_to_its_task(unlike: Path, tmp_path: Path) -> None:  # noqa: F811
    model = unlike / "output" / "model"
    rows = [*color_rows(5, 6), *size_rows(6, 6)]
    texts = [row["text"] for row in rows]
    result = call("predict", model, *texts)
    assert result.exit_code == 0, result.output
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    (tmp_path / "texts.txt").write_text("\n".join(texts))
    assert call("predict", model, "--file", tmp_path / "texts.txt").stdout == result.stdout
    assert call("predict", model, input="\n".join(texts)).stdout == result.stdout
    assert [line["text"] for line in lines] == texts
    assert [line["task"] for line in lines] == ["color"] * 6 + ["size"] * 6
    for line in lines:
        assert list(line) == ["text", "task", "task_score", "task_scores", "label", "score", "scores"]
        assert list(line["task_scores"]) == ["color", "size"]
        assert line["task_score"] == line["task_scores"][line["task"]] == max(line["task_scores"].values())
        assert list(line["scores"]) == (COLORS if line["task"] == "color" else ["large", "small"])
        assert sum(line["scores"].values()) == pytest.approx(1)
    for task, some in (("color", slice(0, 6)), ("size", slice(6, 12))):
        named = call("predict", model, "--task", task, *texts[some])
        for line, answer in zip(lines[some], map(json.loads, named.stdout.splitlines()), strict=True):
            assert line["label"] == answer["label"]
            assert line["scores"] == pytest.approx(answer["scores"], abs=1e-5)


def test_predict_turns_strange_texts_away_if_asked(unlike: Path) -> None:  # noqa: F811
    model = unlike / "output" / "model"
    strange, own = "w95 w95 w95 w95 w95", color_rows(5, 1)[0]["text"]
    lines = [
        json.loads(line) for line in call("predict", model, "--abstain", "0.05", strange, own).stdout.splitlines()
    ]
    assert list(lines[0]) == ["text", "task", "task_score", "task_scores", "outlier_score", "nearest"]
    assert lines[0]["task"] is None and sorted(lines[0]["nearest"]) == ["color", "size"]
    assert lines[0]["outlier_score"] > 1.6449 > lines[1]["outlier_score"]
    assert lines[1]["task"] == "color" and lines[1]["label"] in COLORS


def test_a_text_may_name_its_task_and_a_call_the_tasks_to_choose_among(unlike: Path) -> None:  # noqa: F811
    model, text = unlike / "output" / "model", color_rows(5, 1)[0]["text"]

    def answers(*given: str) -> list[dict]:
        return [json.loads(line) for line in call("predict", model, *given).stdout.splitlines()]

    named, other, unnamed = answers("--by-name", f"size: {text}", f"shape: {text}", text)
    assert (named["task"], other["task"], unnamed["task"]) == ("size", "color", "color")
    assert named["text"] == f"size: {text}" and "task_scores" not in named and "task_scores" in other
    (given,) = answers("--task", "size", text)
    assert named["scores"] == pytest.approx(given["scores"], abs=1e-5), "the name is no part of the text"
    (only,) = answers("--among", "size", text)
    assert only["task"] == "size" and only["task_scores"] == {"color": 0, "size": pytest.approx(1)}
    every = answers("--all", text, text)
    assert [line["task"] for line in every] == ["color", "size"] * 2
    assert every[1]["scores"] == pytest.approx(given["scores"], abs=1e-5)
    assert [line["task"] for line in answers("--all", "--among", "size", text)] == ["size"]
    assert "There is no task 'shape'" in error_of(call("predict", model, "--among", "shape", text))
    assert "--among, --by-name and --all" in error_of(call("predict", model, "--task", "size", "--all", text))
    assert "--all lets every task answer" in error_of(call("predict", model, "--abstain", "0.1", "--all", text))


def test_the_router_is_taught_and_explains_itself(unlike: Path, tmp_path: Path) -> None:  # noqa: F811
    folder, text = tmp_path / "taught", color_rows(5, 1)[0]["text"]
    shutil.copytree(unlike / "output" / "model", folder)
    shards = {path.name: path.read_bytes() for path in folder.glob("eidetic-*")}
    before = json.loads(call("explain", folder, text).stdout)
    assert before["text"] == text and before["task"] == "color" and before["runner_up"] == "size"
    assert before["nearest"][0]["task"] == "color" and before["nearest"][0]["label"] in COLORS
    assert 0 < before["margin"] <= before["probability"] <= 1
    result = call("teach", folder, "size", text, "--label", "small", "--weight", "400")
    assert result.exit_code == 0, result.output
    assert "\nsize " in result.stdout and result.stdout.rstrip().endswith(text)
    assert json.loads(call("predict", folder, text).stdout)["task"] == "size"
    assert {path.name for path in folder.glob("eidetic-*")} == {*shards, "eidetic-router.safetensors"}
    assert call("teach", folder, "size", text, "--label", "small", "--forget").exit_code == 0
    assert json.loads(call("explain", folder, text).stdout) == before, "to the last bit"
    assert {path.name: path.read_bytes() for path in folder.glob("eidetic-*")} == shards
    assert "expected as many, of ['large', 'small']" in error_of(
        call("teach", folder, "size", text, "--label", "blue")
    )


def test_predict_answers_pairs_many_labels_and_numbers(tmp_path: Path) -> None:
    short = {"max_steps": 2}
    rows = [{"text": row["text"], "other": "same", "label": [row["label"]], "value": 1.5} for row in color_rows(0, 20)]
    tasks = [
        write_task(
            tmp_path,
            "many",
            {"train": rows},
            problem_type="multi_label_classification",
            columns={"text_pair": "other"},
            training=short,
        ),
        write_task(
            tmp_path,
            "number",
            {"train": rows},
            problem_type="regression",
            metric="mse",
            columns={"label": "value"},
            training=short,
        ),
    ]
    result = call("train", write_recipe(tmp_path, tasks[:1]))
    assert result.exit_code == 0, result.output
    model = tmp_path / "output" / "model"
    answer = json.loads(call("predict", model, "red w1", "--text-pair", "same").stdout)
    assert answer["task"] == "many", "the only task"
    assert answer["text_pair"] == "same"
    assert answer["labels"] == [label for label, score in answer["scores"].items() if score > 0.5]
    assert "2 --text-pair for 1 texts" in error_of(call("predict", model, "a", "--text-pair", "b", "--text-pair", "c"))
    assert call("train", write_recipe(tmp_path, tasks)).exit_code == 0
    answer = json.loads(call("predict", model, "--task", "number", "red").stdout)
    assert list(answer) == ["text", "task", "value"]
    assert isinstance(answer["value"], float)


# -- verify and report ------------------------------------------------------------------------------------------------


def test_verify_ends_with_zero_for_what_was_committed(finished: Path) -> None:  # noqa: F811
    result = call("verify", finished / "output" / "model")
    assert result.exit_code == 0
    assert result.stdout.splitlines() == [
        "first: weights and settings equal bit for bit, by their hashes",
        "second: weights and settings equal bit for bit, by their hashes",
        "router: equal bit for bit",
        "verified: no committed task has changed",
    ]
    one = call("verify", finished / "output" / "model", "--task", "second")
    assert one.stdout.splitlines()[0] == "second: weights and settings equal bit for bit, by their hashes"
    with_logits = call("verify", finished / "output" / "model", "--logits")
    assert with_logits.stdout.splitlines() == [
        "first: weights and logits equal bit for bit",
        "second: weights and logits equal bit for bit",
        "router: equal bit for bit",
        "verified: no committed task has changed",
    ]
    both = call("verify", finished / "output" / "model", "--task", "third")
    assert "There is no task 'third'. The model has ['first', 'second']." in error_of(both)


def test_verify_ends_with_an_error_after_a_flipped_bit(copied: Path) -> None:
    shard = copied / "output" / "model" / "eidetic-task-first.safetensors"
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    message = error_of(call("verify", copied / "output" / "model"))
    assert "eidetic-task-first.safetensors is not the file that was saved" in message


def test_verify_ends_with_one_if_a_task_answers_differently(
    finished: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from eidetic_hf import EideticModel

    load = EideticModel.from_pretrained

    def load_and_spoil(*args: Any, **kwargs: Any) -> EideticModel:
        model = load(*args, **kwargs)
        model.heads["@first"].classifier.bias.add_(1)
        return model

    monkeypatch.setattr(EideticModel, "from_pretrained", load_and_spoil)
    result = call("verify", finished / "output" / "model", "--logits")
    assert result.exit_code == 1
    assert "first: CHANGED, first in tensor heads.@first.classifier.bias" in result.stdout
    assert "FAILED: a committed task has changed" in result.stdout


def test_verify_refuses_what_is_no_model(tmp_path: Path) -> None:
    assert "is empty" in error_of(call("verify", tmp_path))
    assert "no config.json" in error_of(call("verify", write_recipe(tmp_path).parent))
    assert "model of type 'bert'" in error_of(call("verify", tmp_path / "backbone"))


# -- tasks that come and go -------------------------------------------------------------------------------------------


@pytest.fixture
def two(tmp_path: Path) -> Path:
    """A folder with two models of one backbone, `ours` with the tasks a and b, `theirs` with a and c, and it."""
    backbone = tiny_backbone("bert")
    backbone.save_pretrained(tmp_path / "backbone")
    for folder, names in (("ours", "ab"), ("theirs", "ac")):
        model = EideticModel.from_backbone(str(tmp_path / "backbone"), trunk_layers=1, growth="fixed")
        for name in names:
            transfer = "none" if name == "a" else ["a"]
            learn_quickly(model, name, len(folder) + ord(name), forward_transfer=transfer)
        model.save_pretrained(tmp_path / folder)
    word_tokenizer().save_pretrained(tmp_path / "ours")
    return tmp_path


def test_remove_lets_a_task_go_and_says_what_it_needs(two: Path) -> None:
    then = logits_of(EideticModel.from_pretrained(two / "ours"), "a")
    assert "'a' can not be removed: ['b'] read it" in error_of(call("remove", two / "ours", "a"))
    assert "Say where it is with backbone=... (--backbone)" in error_of(call("remove", two / "ours", "b"))
    result = call("remove", two / "ours", "b", "--backbone", two / "backbone")
    assert result.exit_code == 0 and "removed: b" in result.stdout and "with the tasks a" in result.stdout
    assert not (two / "ours" / "eidetic-task-b.safetensors").exists()
    assert torch.equal(logits_of(EideticModel.from_pretrained(two / "ours"), "a"), then)
    result = call("remove", two / "theirs", "a", "--cascade", "--backbone", two / "backbone")
    assert "removed: a, c" in result.stdout and "with the tasks (none)" in result.stdout
    assert "is no folder here" in error_of(call("remove", two / "nowhere", "a"))


def test_merge_writes_a_model_with_all_tasks_of_both(two: Path) -> None:
    ours, theirs, output = two / "ours", two / "theirs", two / "both"
    assert "another task 'a' here" in error_of(call("merge", ours, theirs, "--output", output))
    assert not output.exists()
    result = call("merge", ours, theirs, "--output", output, "--prefix", "their-")
    assert result.exit_code == 0 and "came: their-a, their-c" in result.stdout, result.output
    both = EideticModel.from_pretrained(output)
    assert both.tasks == ["a", "b", "their-a", "their-c"] and (output / "tokenizer_config.json").exists()
    for name, folder, there in (("b", ours, "b"), ("their-c", theirs, "c")):
        assert torch.equal(logits_of(both, name), logits_of(EideticModel.from_pretrained(folder), there))
    assert call("verify", output).exit_code == 0
    assert "is there already" in error_of(call("merge", ours, theirs, "--output", output))


def test_add_brings_one_task_into_a_folder(two: Path) -> None:
    assert "no task 'z' there" in error_of(call("add", two / "theirs", two / "ours", "z"))
    assert "another task 'a' here" in error_of(call("add", two / "theirs", two / "ours", "b"))
    result = call("add", two / "theirs", two / "ours", "a", "--name", "other-a")
    assert result.exit_code == 0 and "came: other-a" in result.stdout, result.output
    model = EideticModel.from_pretrained(two / "theirs")
    assert model.tasks == ["a", "c", "other-a"] and model.verify().ok
    assert torch.equal(logits_of(model, "other-a"), logits_of(EideticModel.from_pretrained(two / "ours"), "a"))


def test_report_is_written_again_from_the_results(copied: Path) -> None:
    result = call("report", copied / "output")
    assert result.exit_code == 0
    assert "verified: no committed task has changed" in (copied / "output" / "report.html").read_text()
    assert json.loads((copied / "output" / "report.json").read_text())["tasks"] == ["first", "second"]
    (copied / "output" / "results.json").write_text("{")
    assert "is not JSON" in error_of(call("report", copied / "output"))
    assert "has no results.json" in error_of(call("report", copied))


# -- the Hub ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def grown(tmp_path: Path) -> tuple[Path, Path]:
    """Folders of models of one backbone, with copies: `a` and `b`, and `c` alone."""
    for folder, names in (("ours", "ab"), ("theirs", "c")):
        model = EideticModel.from_backbone(tiny_backbone(), trunk_layers=1, growth="copy")
        for name in names:
            learn_quickly(model, name, ord(name))
        model.save_pretrained(tmp_path / folder)
    return tmp_path / "ours", tmp_path / "theirs"


def test_push_says_what_it_sent_and_what_it_did_not_have_to(hub: HubServer, grown: tuple[Path, Path]) -> None:
    ours, _ = grown
    (ours / "tokenizer.json").write_text("{}")
    result = call("push", ours, "someone/model")
    sizes = {name: len(content) for name, content in hub.files("someone/model").items()}
    assert sizes.keys() == {path.name for path in ours.iterdir() if path.name[0] != "."}
    head = hub.repository("someone/model").resolve("main")
    url = f"{hub.endpoint}/someone/model/commit/{head}"
    assert result.exit_code == 0 and result.stderr == ""
    assert result.stdout.splitlines() == [
        f"commit: {url}",
        f"uploaded: {len(sizes)} files, {sum(sizes.values())} bytes",
        *(f"  {name}: {size} bytes" for name, size in sizes.items()),
        "unchanged: 0 files",
        "tags: a, b",
    ]
    (ours / "tokenizer.json").write_text("[]")
    assert call("push", ours, "someone/model", "--message", "Another tokenizer").stdout.splitlines()[1:] == [
        "uploaded: 1 file, 2 bytes",
        "  tokenizer.json: 2 bytes",
        f"unchanged: {len(sizes) - 1} files",
    ]
    assert hub.history("someone/model")[1:] == ["Add a, b", "Another tokenizer"]
    last = f"{hub.endpoint}/someone/model/commit/{hub.repository('someone/model').resolve('main')}"
    assert call("push", ours, "someone/model").stdout.splitlines() == [
        f"nothing to push, as of: {last}",
        "uploaded: 0 files, 0 bytes",
        f"unchanged: {len(sizes)} files",
    ]


def test_push_merges_and_replaces_only_if_it_is_told_to(hub: HubServer, grown: tuple[Path, Path]) -> None:
    ours, theirs = grown
    call("push", ours, "someone/model")
    message = error_of(call("push", theirs, "someone/model"))
    assert message.startswith("error: someone/model has the tasks ['a', 'b'], which this model does not have")
    assert "--merge" in message and "--replace" in message and message.count("\n") == 1
    assert call("push", theirs, "someone/model", "--merge").stdout.splitlines()[-1] == "tags: c"
    assert EideticModel.from_pretrained("someone/model").tasks == ["c", "a", "b"]
    shards = [f"eidetic-task-{name}.safetensors" for name in "ab"]
    assert f"removed: {', '.join(shards)}" in call("push", theirs, "someone/model", "--replace").stdout.splitlines()
    assert EideticModel.from_pretrained("someone/model").tasks == ["c"]
    assert "Choose one" in error_of(call("push", theirs, "someone/model", "--replace", "--merge"))


def test_push_goes_to_a_private_repository_a_branch_or_a_pull_request(
    hub: HubServer, grown: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = grown
    monkeypatch.delenv("HF_TOKEN")
    assert "valid token" in error_of(call("push", ours, "someone/model"))
    token = ("--token", hub.token)
    result = call("push", ours, "someone/model", "--private", "--branch", "next", "--no-tags", *token)
    repository = hub.repository("someone/model")
    assert result.exit_code == 0 and repository.private and repository.tags == {}
    assert hub.files("someone/model") == {} and "eidetic-task-a.safetensors" in hub.files("someone/model", "next")
    result = call("push", theirs, "someone/model", "--create-pr", *token)
    assert f"pull request: {hub.endpoint}/someone/model/discussions/1" in result.stdout.splitlines()
    assert hub.files("someone/model") == {} and "tags" not in result.stdout


def test_push_refuses_what_is_no_folder_of_a_model(hub: HubServer, tmp_path: Path) -> None:
    assert "is no folder here" in error_of(call("push", tmp_path / "nowhere", "someone/model"))
    assert "has no config.json" in error_of(call("push", tmp_path, "someone/model"))
    assert hub.requests == []


# -- around -----------------------------------------------------------------------------------------------------------


def test_version_and_help_say_what_there_is() -> None:
    assert call("--version").stdout.strip() == f"eidetic-hf {__version__}"
    shown = call("--help").stdout
    for command in ("train", "evaluate", "predict", "verify", "report"):
        assert command in shown


@pytest.mark.slow
def test_nothing_but_json_reaches_stdout_of_a_real_process(finished: Path) -> None:  # noqa: F811
    command = [sys.executable, "-m", "eidetic_hf", "predict"]
    done = subprocess.run(
        [*command, str(finished / "output" / "model"), "--task", "first", "red w1"],
        capture_output=True,
        text=True,
        env={**os.environ, "NO_COLOR": "1"},
        timeout=300,
    )
    assert json.loads(done.stdout)["text"] == "red w1"
    assert done.stderr == ""


def test_only_a_line_feed_ends_a_line_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "texts.txt"
    file.write_bytes("one\u2028still one\r\ntwo\x85still\x0ctwo\n\n".encode())
    assert [query.text.strip() for query in cli._read_queries(file)] == ["one\u2028still one", "two\x85still\x0ctwo"]
    file.write_bytes("\ufeffone\r\ntwo\rstill\r\n".encode())
    assert [query.text for query in cli._read_queries(file)] == ["one", "two\rstill"], "a mark is no part of a text"


def test_stdin_is_read_as_a_file_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def read(content: bytes) -> list[str]:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content), encoding="ascii"))
        return [query.text for query in cli._read_queries(Path("-"))]

    assert read("\ufeffcafé\u2028one\r\ntwo\n".encode()) == ["café\u2028one", "two"]
    with pytest.raises(ValueError, match=r"What came from stdin is not UTF-8 .*convert it with iconv"):
        read(b"caf\xe9")


def test_a_file_that_can_not_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    for name, why in (("latin.txt", "not UTF-8"), ("none.txt", "No such file"), ("", "Is a directory")):
        result = call("predict", tmp_path, "--file", tmp_path / name)
        assert result.exit_code == 2 and str(tmp_path / name) in result.output and why in result.output


@pytest.mark.parametrize("model", ["./nowhere", "runs/nowhere/model", "/nowhere"])
def test_a_folder_that_is_not_there_is_called_so(model: str) -> None:
    result = call("verify", model)
    assert result.exit_code == 2 and f"There is no folder {model}" in result.output


@pytest.mark.parametrize("command", [["verify"], ["predict", "text"]])
def test_what_is_no_checkpoint_is_called_so_in_one_sentence(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("empty", "other", "plain", "list"):
        Path(name).mkdir()
    Path("file").write_text("x")
    Path("other/notes.txt").write_text("x")
    Path("plain/config.json").write_text('{"model_type": "bert"}')
    Path("list/config.json").write_text("[1]")
    expected = {
        "empty": "The folder empty is empty",
        "file": "file is a file, expected the folder of a checkpoint",
        "other": "other has no config.json",
        "plain": "plain holds a model of type 'bert'",
        "list": "list/config.json is not a JSON object",
        "no/where": "There is no folder no/where, and no model of this id could be had from the Hub (",
        "a b": "There is no folder a b, and it is no id on the Hub (owner/name), either",
    }
    for place, sentence in expected.items():
        result = call(command[0], place, *command[1:])
        assert result.exit_code == 2, result.output
        assert result.output.startswith(f"error: {sentence}") and result.output.count("\n") == 1
