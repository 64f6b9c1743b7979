"""The scripts in recipes/ that measure, on a tiny backbone."""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from support.backbones import tiny_backbone
from support.recipe_files import (  # noqa: F401
    color_rows,
    finished,
    private_dataset_cache,
    question_rows,
    reading,
    splits_of,
    tag_rows,
    write_backbone,
    write_rows,
    writing,
)

from eidetic_hf.recipe.recipe import RecipeError
from eidetic_hf.recipe.starting_point import make_model

RECIPES = Path(__file__).parents[1] / "recipes"


def script(name: str) -> ModuleType:
    """A script of `recipes/` as a module."""
    spec = importlib.util.spec_from_file_location(name, RECIPES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where dataclasses look for their types
    spec.loader.exec_module(module)
    return module


def test_the_comparison_counts_both_models_right_answers_on_the_same_items(
    finished: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "comparison.json"
    arguments = ["compare", str(finished / "colors.yaml"), "--json", str(out), "--separate-learning-rate", "1e-9"]
    monkeypatch.setattr(sys, "argv", arguments)
    script("compare_with_dense").main()
    found = json.loads(out.read_text())
    results = json.loads((finished / "output" / "results.json").read_text())
    for name, row in found["tasks"].items():
        assert row["eidetic"] == pytest.approx(results["steps"][-1]["scores"][name]["accuracy"])
        assert row["items"] == 20
        assert row["separate"] < 0.8  # a random model that did not learn
    means = [sum(row[which] for row in found["tasks"].values()) / 2 for which in ("eidetic", "separate")]
    assert found["difference_points"] == pytest.approx(100 * (means[0] - means[1]))
    low, high = found["interval_95_points"]
    assert low <= found["difference_points"] <= high
    assert found["verified"]
    assert "95 % interval" in capsys.readouterr().out


def test_a_comparison_may_be_of_some_tasks(
    finished: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "comparison.json"
    arguments = ["compare", str(finished / "colors.yaml"), "--json", str(out), "--tasks"]
    monkeypatch.setattr(sys, "argv", [*arguments, "nowhere"])
    with pytest.raises(RecipeError, match="no task 'nowhere'"):
        script("compare_with_dense").main()
    monkeypatch.setattr(sys, "argv", [*arguments, "second"])
    script("compare_with_dense").main()
    assert list(json.loads(out.read_text())["tasks"]) == ["second"]


def test_every_kind_is_compared_with_its_plain_model(
    reading: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "comparison.json"
    monkeypatch.setattr(sys, "argv", ["compare", str(reading / "colors.yaml"), "--json", str(out)])
    script("compare_with_dense").main()
    found, results = json.loads(out.read_text()), json.loads((reading / "output" / "results.json").read_text())
    assert list(found["tasks"]) == ["color", "names", "where", "which", "gaps", "alike"]
    assert "left out" not in capsys.readouterr().out
    scores = results["steps"][-1]["scores"]
    for name, row in found["tasks"].items():
        assert row["metric"] == results["metrics"][name]
        for metric, values in row["metrics"].items():
            assert values["eidetic"] == pytest.approx(scores[name][metric]), "the same as in the run"
            assert values["difference"] == values["eidetic"] - values["separate"]
            assert values["interval_95"][0] <= values["interval_95"][1]
    assert list(found["tasks"]["where"]["metrics"]) == ["f1", "exact_match"]
    assert list(found["tasks"]["alike"]["metrics"]) == ["spearman", "pearson"]
    assert found["tasks"]["alike"]["separate"] >= 0.5, "the plain model learns as the eidetic one does"
    assert found["averaged"] == ["color", "names", "where", "which", "alike"], "perplexity is no share"
    mean = sum(found["tasks"][name]["separate"] for name in found["averaged"]) / 5
    assert found["mean_separate"] == pytest.approx(mean)


def test_a_network_fine_tuned_in_turn_starts_with_the_same_weights_and_forgets(
    writing: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    compare = script("compare_language")
    recipe = compare.read_recipe(writing / "colors.yaml")
    tokenizer = compare.AutoTokenizer.from_pretrained(writing / "output" / "model")
    plain, fresh = compare.plain_model(recipe, tokenizer), make_model(recipe, tokenizer)
    ours, theirs = fresh.backbone.state_dict(), plain.base_model.state_dict()
    trunk = [name for name in theirs if name in ours]
    assert {"embed_tokens.weight", "layers.0.mlp.down_proj.weight"} <= set(trunk)
    assert all(torch.equal(ours[name], theirs[name]) for name in trunk)
    out = tmp_path / "comparison.json"
    monkeypatch.setattr(sys, "argv", ["compare", str(writing / "colors.yaml"), "--json", str(out)])
    compare.main()
    found, results = json.loads(out.read_text()), json.loads((writing / "output" / "results.json").read_text())
    assert [row["scores"] for row in found["eidetic"]] == [row["scores"] for row in results["matrix"]]
    assert found["unchanged"] is True
    assert [list(row["scores"]) for row in found["in_turn"]] == [["low"], ["low", "high"], ["low", "high", "answer"]]
    assert found["in_turn"][2]["scores"]["low"] > 2 * found["in_turn"][0]["scores"]["low"]
    assert [line["of"] for line in found["continued"]] == ["low", "high", "answer"]
    assert "perplexity of the same network, fine-tuned in turn" in capsys.readouterr().out


def test_the_cost_of_inference_and_of_checkpoints_is_measured(tmp_path: Path) -> None:
    benchmark = script("benchmark_cost")
    benchmark.BATCH, benchmark.LENGTH = 4, 8
    tiny_backbone().save_pretrained(tmp_path / "backbone")
    benchmark.measure_inference.__globals__["random_ids"] = lambda backbone, rows, length: benchmark.torch.ones(
        rows, 16, dtype=benchmark.torch.long
    )
    rows = benchmark.measure_inference(str(tmp_path / "backbone"), 1)
    rows |= benchmark.measure_checkpoint(str(tmp_path / "backbone"), 1)
    assert len(rows) == 4
    assert all(row["ratio"] == pytest.approx(row["ours"] / row["plain"], rel=0.5) for row in rows.values())
    names = " ".join(rows)
    assert "% of the units, 32 x 128 tokens" in names and "checkpoint of five tasks" in names


def test_the_cost_of_copies_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cost, out = script("benchmark_growth_cost"), tmp_path / "cost.json"
    for name, value in {"BATCH": 6, "MIXES": ((1, 6), (3, 4)), "TRAIN_BATCH": 4, "WRITING_TASKS": 2}.items():
        monkeypatch.setattr(cost, name, value)
    tiny_backbone().save_pretrained(tmp_path / "backbone")
    monkeypatch.setattr(cost, "peak_memory", lambda backbone, random, way: 300.0 if way == cost.OURS else 200.0)
    command = ["cost", "--backbone", str(tmp_path / "backbone"), "--rounds", "1", "--cpu-time", "--json", str(out)]
    monkeypatch.setattr(sys, "argv", command)
    cost.main()
    found = json.loads(out.read_text())
    assert all(each["ratio"] == pytest.approx(each["ours"] / each["other"]) for each in found.values())
    assert found["peak training memory (MB), against full fine-tuning"]["ratio"] == 1.5
    names = " ".join(found)
    assert "6 x 4 tokens of 3 tasks, against a pass for each task" in names and "for 6 prompts of 2 tasks" in names
    assert "one task at see=0.5" in names and "training step, against full fine-tuning" in capsys.readouterr().out


@pytest.mark.slow
def test_the_matrix_of_architectures_says_what_passed_and_what_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    matrix, out = script("architecture_matrix"), tmp_path / "matrix.json"
    chosen = ["--architectures", "bert", "gpt2", "--checks", "units", "cache"]
    monkeypatch.setattr(sys, "argv", ["matrix", "--workers", "1", "--json", str(out), *chosen])
    matrix.main()
    expected = {"bert": {"units": "passed"}, "gpt2": {"units": "passed", "cache": "passed"}}
    assert json.loads(out.read_text())["outcomes"] == expected
    printed = capsys.readouterr().out
    assert "3 of 3 checks passed" in printed
    assert "gpt2 │   ✓   │   ✓" in printed and "bert │   ✓   │   -" in printed
    assert list(matrix.checks())[:2] == ["exactness", "poison"]

    case = '<testcase name="test_{}">{}</testcase>'
    cases = [("units[t5-gated]", "<failure/>"), ("units[bert]@bert", ""), ("cut[bert]", "<error/>"), ("other", "")]
    report = f'<r><testsuite time="2.5">{"".join(case.format(*each) for each in cases)}</testsuite></r>'
    found = {"t5-gated": {"units": "failed"}, "bert": {"units": "passed", "cut": "failed"}}
    assert matrix.read_report(report) == (found, 2.5)
    monkeypatch.setattr(matrix, "run_checks", lambda *_: (found, 2.5, "what pytest said"))
    with pytest.raises(SystemExit, match="1"):
        matrix.main()
    printed = capsys.readouterr().out
    assert "1 of 3 checks passed" in printed and "✗" in printed and "what pytest said" in printed


def test_both_growths_are_held_against_separate_models_and_adapters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("peft")
    monkeypatch.syspath_prepend(RECIPES)
    write_backbone(tmp_path / "backbone")
    for task, make in (("agnews", color_rows), ("wnut17", tag_rows), ("squad", question_rows)):
        for split, rows in splits_of(make).items():
            write_rows(tmp_path / "data" / task / f"{split}.jsonl", rows)
    benchmark = script("benchmark_growth")
    output = tmp_path / "output"
    given = (
        f"benchmark --data {tmp_path / 'data'} --backbone {tmp_path / 'backbone'} --output {output} --tasks".split()
    )
    sizes = "--train-texts 16 --test-texts 8 --epochs 1 --rates separate=1e-3,2e-3 lora=1e-3 copy=1e-3 fixed=1e-3"
    for more in (["agnews"], ["agnews", "wnut17", "squad"], ["agnews", "wnut17", "squad"]):
        methods = ["--methods", "separate", "lora", "copy:0.2", *(["fixed"] if len(more) > 1 else [])]
        monkeypatch.setattr(sys, "argv", [*given, *more, *sizes.split(), *methods])
        benchmark.main()
        rows = [json.loads(line) for line in (output / "results.jsonl").read_text().splitlines()]
        assert len(rows) == (3 if len(more) == 1 else 12), "what is there is not done again"
    printed = capsys.readouterr().out
    for row in rows:
        assert row["steps"] == {"wnut17": 2}.get(row["task"], 1) and len(row["figures"]) == 8
        assert row["rate"] == max(row["validation"], key=row["validation"].get)
        assert (row["size_share"] > 1) == (row["method"] == "separate")
        items = benchmark.items(row)
        assert items.scores[row["metric"]](items.figures) == row["test"][row["metric"]]
    assert (output / "fixed" / "squad" / "config.json").exists()
    assert printed.count("over 3 tasks; worst") == 6
    monkeypatch.setattr(sys, "argv", [*given, "agnews", "--epochs", "2"])
    with pytest.raises(SystemExit):
        benchmark.main()
    assert "has results of other sizes" in capsys.readouterr().err


def test_the_benchmark_of_routing_measures_a_router_over_many_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(RECIPES)
    many = script("benchmark_routing").measure_many(20)
    assert many["megabytes of sums per task"]["ours"] < 0.9
    assert 0 < many["milliseconds to route 32 sequences among 20 tasks"]["ours"] < 50


def test_the_memory_of_a_process_is_measured_after_each_task(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    memory, out = script("benchmark_memory"), tmp_path / "memory.json"
    for name, value in {"VOCABULARY": 50, "HIDDEN": 24, "LAYERS": 3, "BATCH": 2, "LENGTH": 16}.items():
        monkeypatch.setattr(memory, name, value)
    monkeypatch.setattr(memory.life, "give_back_memory", memory.life.give_back_memory)  # `--keep-freed` replaces it
    monkeypatch.setattr(sys, "argv", ["memory", "--tasks", "2", "--steps", "2", "--keep-freed", "--json", str(out)])
    memory.main()
    found = json.loads(out.read_text())
    assert [row["task"] for row in found] == [0, 1, 2]
    assert all(row["resident"] > row["live tensors"] > 0.05 for row in found)
    assert memory.life.give_back_memory() is None
    assert "live tensors" in capsys.readouterr().out


def test_the_books_are_measured_per_task_and_held_against_the_first_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    books, out = script("benchmark_books"), tmp_path / "books.json"
    monkeypatch.setattr(books, "REPEATS", 1)
    monkeypatch.setattr(books, "fastest", lambda action, repeats=1: (action(), 0.5)[1])
    monkeypatch.setattr(sys, "argv", ["books", "--tasks", "3", "1", "--forward-transfer", "none", "--json", str(out)])
    books.main()
    found = json.loads(out.read_text())["none"]
    assert list(found) == ["1", "3"]
    for count, figures in found.items():
        assert list(figures) == [*books.ONE_TASK, *books.ALL_TASKS]
        assert figures["CPU seconds to add and commit a task"] == 0.5, "one task's, not a share of all tasks'"
        assert figures["CPU seconds to verify, per task"] == 0.5 / int(count)
        assert 500 < figures["bytes of config.json, per task"] < 10_000
    assert found["3"]["bytes of config.json, per task"] < found["1"]["bytes of config.json, per task"]
    assert "0.33" in capsys.readouterr().out
    books.show("none", {1: dict.fromkeys(figures, 1.0), 3: dict.fromkeys(figures, 1.6)})
    assert capsys.readouterr().out.count("ABOVE THE BOUND") == len(figures)


def test_tasks_learned_in_another_order_leave_the_same_shards_and_a_difference_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    order, out = script("benchmark_order"), tmp_path / "order.json"
    made = order.write_tasks(tmp_path, order.read_data(RECIPES / "data"), 12, 8)
    assert len({(task["name"].partition("-")[0], *task["labels"]) for task in made}) == 12, "no two are the same"
    names = [task["name"] for task in order.shuffled(made, 0)]
    assert sorted(names) == sorted(task["name"] for task in made) != names != [task["name"] for task in made]
    branches = [task for task in made if "based_on" in task]
    assert branches and all(names.index(task["based_on"]) < names.index(task["name"]) for task in branches)
    arguments = ["order", "--tasks", "2", "--steps", "2", "--rows", "16", "--jobs", "1", "--json", str(out)]
    monkeypatch.setattr(sys, "argv", arguments)
    monkeypatch.setattr(order, "shuffled", lambda tasks, seed: tasks[::-1])
    order.main()
    found = json.loads(out.read_text())
    assert found["shards"] == 5 and found["same_folder"] and not any(found["differ"].values())
    one = {"a.safetensors": "1", "config.json": "2"}
    wrong = {"in order": one, "turned": {**one, "a.safetensors": "3"}, "at once": one}
    with pytest.raises(SystemExit):
        order.report(wrong, {}, argparse.Namespace(tasks=1, json=None))
    assert "turned: 1 shards differ from those learned in order, a.safetensors" in capsys.readouterr().out
