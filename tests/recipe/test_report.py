"""The report: one file that needs nothing else, and says what the results say."""

from __future__ import annotations

import copy
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import matplotlib
import pytest
from support.backbones import tiny_backbone
from support.recipe_files import finished, private_dataset_cache  # noqa: F401

from eidetic_hf import EideticModel, PruningConfig
from eidetic_hf.recipe.report import (
    branch_order,
    confusion_picture,
    copies_picture,
    matrix_picture,
    reads_picture,
    report_content,
    write_report,
)
from eidetic_hf.recipe.results import shard_history
from eidetic_hf.views import BASE, task_key

viridis = matplotlib.colormaps["viridis"]


class Elements(HTMLParser):
    """Collects the elements and attributes of a page, and finds elements that are not closed."""

    VOID = {"meta", "br", "link", "img", "input", "hr"}

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.open: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def results(finished: Path) -> dict[str, Any]:  # noqa: F811
    return json.loads((finished / "output" / "results.json").read_text())


@pytest.fixture(scope="module")
def page(results: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_report(results, tmp_path_factory.mktemp("report") / "report.html").read_text()


def test_the_report_loads_nothing_from_elsewhere(page: str) -> None:
    elements = Elements(page)
    assert not {"script", "link", "img", "image", "iframe", "object"} & set(elements.tags)
    links = [value for _, name, value in elements.attributes if name in ("href", "src", "xlink:href", "data")]
    assert all(value.startswith("#") for value in links)
    addresses = set(re.findall(r"https?://[^\"'\s<]+", page))
    assert addresses <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}, "names of namespaces only"
    assert "@import" not in page
    assert not re.search(r"url\((?!#)", page)


def test_the_report_has_five_pictures_in_the_color_of_the_page(page: str) -> None:
    elements = Elements(page)
    assert elements.tags.count("svg") == 5
    assert elements.open == [], "every element is closed"
    assert page.count("currentColor") > 30
    assert "prefers-color-scheme: dark" in page
    assert ("meta", "name", "viewport") in elements.attributes


def test_the_report_shows_the_figures_of_the_results(page: str, results: dict[str, Any]) -> None:
    assert f"<b>{results['average_accuracy']:.4f}</b>average accuracy" in page
    assert "<b>0.0000</b>forgetting" in page
    assert "verified: no committed task has changed" in page
    for task in results["tasks"]:
        assert f"{task['sha256']}  {task['shard']}" in page
    assert page.count(">unchanged</span>") == 2, "the trunk and the first task, after the second"
    assert "CHANGED" not in page


def test_the_report_shows_where_texts_were_sent(page: str, results: dict[str, Any]) -> None:
    for name, row in results["routing"]["scores"].items():
        keys = ("routing_accuracy", "oracle_accuracy", "routed_accuracy", "merged_label_accuracy")
        cells = "".join(f'<td class="number">{row[key]:.4f}</td>' for key in keys)
        assert f'<tr><td>{name}</td><td class="number">20</td>{cells}</tr>' in page
    assert "where the texts of a task went" in page


def test_the_confusion_picture_shows_shares(results: dict[str, Any]) -> None:
    routing = {"tasks": ["a", "b"], "confusion": {"a": {"a": 30, "b": 10}, "b": {"a": 0, "b": 5}}}
    picture = confusion_picture(routing)
    routing["confusion"]["a"] = {"a": 300, "b": 100}
    assert confusion_picture(routing).count("<path") == picture.count("<path") > 10
    colors = re.findall(r"fill: (#[0-9a-f]{6})", picture)
    assert len({color for color in colors if color not in ("#000000", "#ffffff")}) >= 4, "0.75, 0.25, 0 and 1"


def test_results_of_before_there_was_routing_or_another_growth_still_make_a_report(
    results: dict[str, Any], tmp_path: Path
) -> None:
    old = copy.deepcopy(results)
    del old["routing"], old["reads"], old["growth"]
    page = write_report(old, tmp_path / "report.html").read_text()
    assert Elements(page).tags.count("svg") == 3
    assert "the router" not in page and "Who reads" not in page and "Who owns which units" in page


def test_the_report_as_json_has_the_same_figures(results: dict[str, Any], tmp_path: Path) -> None:
    write_report(results, tmp_path / "report.html")
    content = json.loads((tmp_path / "report.json").read_text())
    assert content == report_content(results)
    assert content["matrix"] == results["matrix"]
    assert [row["score"] for row in content["task_rows"]] == list(results["matrix"][-1]["scores"].values())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.html", "report.json"]


def test_labels_and_recipes_are_escaped(results: dict[str, Any], tmp_path: Path) -> None:
    evil = copy.deepcopy(results)
    evil["tasks"][0]["labels"] = ["<script>alert(1)</script>", "a & b"]
    evil["recipe"] = "# </pre><script>alert(2)</script>"
    evil["backbone"] = '"><img src=x>'
    page = write_report(evil, tmp_path / "report.html").read_text()
    assert not {"script", "img"} & set(Elements(page).tags)
    assert "&lt;script&gt;alert(1)&lt;/script&gt;, a &amp; b" in page
    assert "&lt;/pre&gt;&lt;script&gt;alert(2)" in page


def test_a_changed_shard_and_a_failed_verification_are_shown(results: dict[str, Any], tmp_path: Path) -> None:
    bad = copy.deepcopy(results)
    bad["steps"][1]["shards"]["eidetic-task-first.safetensors"]["sha256"] = "0" * 64
    bad["verify"] = {"ok": False, "text": "first: CHANGED\nFAILED: a committed task has changed", "tasks": []}
    page = write_report(bad, tmp_path / "report.html").read_text()
    assert '<span class="bad">CHANGED</span>' in page
    assert '<div class="verdict bad">' in page


def test_shard_history_compares_each_task_with_the_one_before() -> None:
    steps = [
        {"task": "a", "shards": {"eidetic-task-a.safetensors": {"sha256": "1"}}},
        {
            "task": "b",
            "shards": {"eidetic-task-a.safetensors": {"sha256": "1"}, "eidetic-pool.safetensors": {"sha256": "9"}},
        },
        {"task": "c", "shards": {"eidetic-task-a.safetensors": {"sha256": "2"}}},
    ]
    (row,) = shard_history(steps)
    assert row["shard"] == "eidetic-task-a.safetensors"
    assert [cell["unchanged"] for cell in row["after"]] == [None, True, False]


def test_a_report_of_a_single_task_has_no_transfer(results: dict[str, Any], tmp_path: Path) -> None:
    one = copy.deepcopy(results)
    one.update(tasks=one["tasks"][:1], steps=one["steps"][:1], matrix=one["matrix"][:1])
    one.update(backward_transfer=None, forgetting=None, averaged_tasks=["first"])
    page = write_report(one, tmp_path / "report.html").read_text()
    assert "<b>-</b>forgetting" in page
    assert "colors: 1 task in one model" in page


def test_metrics_of_which_less_is_better_are_shown_apart(results: dict[str, Any], tmp_path: Path) -> None:
    mixed = copy.deepcopy(results)
    mixed["metrics"]["second"] = mixed["tasks"][1]["metric"] = "perplexity"
    mixed["tasks"][1].update(type="causal-lm", labels=[])
    mixed["matrix"][1]["scores"]["second"] = 12.5
    mixed["averaged_tasks"] = ["first"]
    mixed["by_metric"] = {
        "accuracy": {"average": 0.75, "backward_transfer": None, "forgetting": None, "tasks": ["first"]},
        "perplexity": {"average": 12.5, "backward_transfer": -1.0, "forgetting": 1.0, "tasks": ["second"]},
    }
    page = write_report(mixed, tmp_path / "report.html").read_text()
    assert "<b>12.5000</b>average perplexity (less is better)" in page
    assert "<b>1.0000</b>perplexity lost to later tasks" in page
    assert "average accuracy (AA)" in page
    assert "<td>second</td><td>causal-lm</td><td>perplexity</td>" in page
    assert Elements(page).open == []
    mixed["by_metric"]["pearson"] = {"average": 0.5, "backward_transfer": None, "forgetting": None, "tasks": ["x"]}
    page = write_report(mixed, tmp_path / "report.html").read_text()
    assert "<b>0.5000</b>average pearson</li>" in page
    only = {**mixed, "averaged_tasks": [], "average_accuracy": None}
    page = write_report(only, tmp_path / "report.html").read_text()
    assert "average accuracy (AA)" not in page and "average perplexity" in page


def test_cells_of_errors_are_colored_by_the_best_of_their_column() -> None:
    matrix = [{"task": "a", "scores": {"a": 10.0}}, {"task": "b", "scores": {"a": 40.0, "b": 20.0}}]
    picture = matrix_picture(["a", "b"], matrix, dict.fromkeys("ab", "perplexity"), ["perplexity"])
    cells = re.findall(r"fill: (#[0-9a-f]{6})", picture)
    best, lost = (matplotlib.colors.to_hex(viridis(share)) for share in (1.0, 0.25))
    assert cells.count(best) >= 2 and lost in cells


def test_results_of_no_run_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no results of a run"):
        write_report({"name": "x"}, tmp_path / "report.html")
    assert list(tmp_path.iterdir()) == []


def test_no_list_pushes_the_labels_out_of_the_page(results: dict[str, Any], tmp_path: Path) -> None:
    many = copy.deepcopy(results)
    many["tasks"][1].update(labels=[f"label {i}" for i in range(40)], ancestors=[f"task-{i}" for i in range(40)])
    page = write_report(many, tmp_path / "report.html").read_text()
    style = re.search(r"td\.wide \{([^}]*)\}", page)
    assert style and "white-space: normal" in style[1] and "overflow-wrap: anywhere" in style[1]
    for cell in (", ".join(many["tasks"][1][key]) for key in ("labels", "ancestors")):
        assert f'<td class="wide">{cell}</td>' in page


# -- who reads what ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def branches() -> EideticModel:
    """Two tasks on the backbone, of which the first masks half of it out, and two on the branch of that one."""
    model = EideticModel.from_backbone(tiny_backbone(), trunk_layers=1, growth="copy")
    for name, parent, see in (
        ("masked", None, 0.5),
        ("all", None, 1.0),
        ("twig", "masked", 1.0),
        ("leaf", "twig", 0.5),
    ):
        model.add_task(name, labels=["x", "y"], based_on=parent)
        model.begin_task(name, PruningConfig(own=0.2, see=see))
        model.commit_task()
    return model


def parents_of(model: EideticModel) -> dict[str, str | None]:
    return {task.name: task.ancestors[-1] if task.ancestors else None for task in model.config.tasks}


def drawn(picture: str) -> dict[tuple[str, str], dict[str, tuple[int, float]]]:
    """Units and width of each part of each bar, by unit group and task."""
    found: dict[tuple[str, str], dict[str, tuple[int, float]]] = {}
    parts = re.findall(r'<g id="(copied|branch|base|masked):([\w.]+):(\w+):(\d+)">\s*<path d="([^"]*)"', picture)
    for what, group, task, units, path in parts:
        across = [float(x) for x, _ in re.findall(r"[ML] ([-\d.]+) ([-\d.]+)", path)]
        found.setdefault((group, task), {})[what] = (int(units), max(across) - min(across))
    return found


def test_bars_show_what_each_task_has_copied_and_what_it_reads_of_others(branches: EideticModel) -> None:
    reads = branches.network.reads(branches.tasks)
    bars = drawn(copies_picture(parents_of(branches), reads))
    owned = branches.capacity()["groups"]
    assert set(bars) == {(group, task) for group in owned for task in branches.tasks}
    masked = 0
    for (name, task), parts in bars.items():
        units, group = {what: count for what, (count, _) in parts.items()}, branches.groups[name.replace(".", "_")]
        assert units["copied"] == owned[name][task] == branches.record(task).units[name]
        assert sum(units.values()) == group.count(BASE)
        seen = group.view(task_key(task))
        places = seen.positions.tolist() if seen.positions is not None else range(seen.start, seen.start + seen.count)
        assert units.get("base", 0) == sum(place < group.count(BASE) for place in places)
        assert units.get("masked", 0) == group.count(BASE) - seen.count
        masked += units.get("masked", 0)
        whole = sum(width for _, width in parts.values())
        for count, width in parts.values():
            assert width / whole == pytest.approx(count / group.count(BASE), abs=1e-3)
    assert masked and {task for (_, task), parts in bars.items() if "branch" in parts} == {"twig", "leaf"}


def test_the_tree_has_each_task_behind_the_one_that_it_is_based_on(branches: EideticModel) -> None:
    parents = parents_of(branches)
    assert branch_order(parents) == {"masked": 0, "twig": 1, "leaf": 2, "all": 0}
    assert list(branch_order(parents)) == ["masked", "twig", "leaf", "all"]
    lines = re.findall(r'id="branch:(\w*):(\w+)"', copies_picture(parents, branches.network.reads(branches.tasks)))
    kinds = 2
    assert sorted(lines) == sorted([("", "masked"), ("", "all"), ("masked", "twig"), ("twig", "leaf")] * kinds)


def test_the_report_of_copies_shows_branches_and_no_pool(
    results: dict[str, Any], branches: EideticModel, tmp_path: Path
) -> None:
    copied = copy.deepcopy(results)
    reads = branches.network.reads(["masked", "all"])
    copied.update(
        growth="copy", reads=json.loads(json.dumps(reads).replace('"masked"', '"first"').replace('"all"', '"second"'))
    )
    copied["tasks"][1]["ancestors"] = []
    page = write_report(copied, tmp_path / "report.html").read_text()
    assert Elements(page).tags.count("svg") == 4 and Elements(page).open == []
    assert "Who reads what" in page and "still free" not in page and "Who owns which units" not in page
    sizes = [task["bytes"] for task in results["tasks"]]
    share = 100 * sum(sizes) / 2 / results["steps"][-1]["shards"]["eidetic-trunk.safetensors"]["bytes"]
    assert f"<b>{share:.1f} %</b>of the backbone's bytes in a task's shard" in page


def test_a_pool_shows_which_share_of_whose_units_is_read() -> None:
    model = EideticModel.from_backbone(tiny_backbone(), trunk_layers=1, growth="fixed")
    for name, keep_ancestors in (("first", 1.0), ("second", 0.5)):
        model.add_task(name, labels=["x", "y"])
        model.begin_task(name, PruningConfig(keep=0.5, keep_ancestors=keep_ancestors))
        model.commit_task()
    reads, capacity = model.network.reads(model.tasks), model.capacity()
    read = sum(group["tasks"]["second"]["tasks"]["first"] for group in reads.values())
    assert all(group["base"] == 0 and group["tasks"]["first"]["tasks"].keys() == {"first"} for group in reads.values())
    seen = sum(group.view("@second").count for group in model.network.unit_groups())
    assert read == seen - capacity["owned"]["second"] < capacity["owned"]["first"]
    cells = re.findall(r"fill: (#[0-9a-f]{6})", reads_picture(model.tasks, reads, capacity))
    shades = [matplotlib.colors.to_hex(viridis(share)) for share in (1.0, read / capacity["owned"]["first"])]
    assert [cells.count(shade) for shade in shades] == [2, 1]
