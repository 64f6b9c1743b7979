"""Versions of a task: each exact for ever, one that answers for all, and one route."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from support.backbones import tiny_backbone, tiny_model
from support.command_line import call, lines_of
from support.data import arguments, logits_of, make_batch, make_data
from support.exactness import poison
from support.kind_cases import word_tokenizer
from support.pretrained import with_head
from transformers import pipeline

from eidetic_hf import EideticCallback, EideticModel, EideticTrainer, PruningConfig, TaskError
from eidetic_hf.configuration import EideticConfig, check_task_name, plain_name, split_version
from eidetic_hf.model.checkpoint.layout import sha256_of, shard_file
from eidetic_hf.model.versions import routed, routed_name, versions_among
from eidetic_hf.recipe.kinds.asking import Query
from eidetic_hf.recipe.predicting import Predictor
from eidetic_hf.views import owner_of, task_key, task_name


def learn(model: EideticModel, name: str, folder: Path, seed: int = 0, **kwargs: Any) -> EideticTrainer:
    if name not in model.added:
        model.add_task(name, labels=["x", "y", "z"], **kwargs)
    pruning = PruningConfig(own=0.2) if model.config.growth == "copy" else PruningConfig(keep=0.3)
    trainer = EideticTrainer(
        model, name, arguments(folder, max_steps=6), pruning,
        train_dataset=make_data(seed), eval_dataset=make_data(9, 16),
    )  # fmt: skip
    trainer.train()
    return trainer


@pytest.fixture(scope="module", params=["copy", "fixed"])
def versioned(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> EideticModel:
    """`news`, `mail`, and a second and a third version of `news`; the second is the default."""
    folder = tmp_path_factory.mktemp("versioned")
    model = EideticModel.from_backbone(tiny_backbone("bert"), trunk_layers=1, growth=request.param)
    learn(model, "news", folder)
    learn(model, "mail", folder, 7)
    then = logits_of(model, "news")
    for seed in (1, 2):
        learn(model, model.add_version("news").name, folder, seed)
        model.set_default_version("news", 2)
    assert torch.equal(logits_of(model, "news@1"), then)
    return model


def test_a_version_starts_from_the_default_one_and_is_like_it(versioned: EideticModel) -> None:
    assert versioned.tasks == ["news", "mail", "news@2", "news@3"]
    model, second = copy.deepcopy(versioned), versioned.record("news@2")
    assert (second.labels, second.task_type) == (["x", "y", "z"], "sequence-classification")
    copies = versioned.config.growth == "copy"
    assert second.ancestors == (["news"] if copies else ["news", "mail"])
    assert versioned.record("news@3").ancestors[-1] == "news@2"
    record = model.add_version(
        "news", labels=["x", "y", "z", "new"], pooling="first", based_on="mail" if copies else None
    )
    assert record.name == "news@4" and record.pooling == "first" and len(record.labels) == 4
    assert model.add_version("news").name == "news@5"
    assert model.added["news@4"].forward_transfer == (["mail"] if copies else "all")
    model.config.forward_transfer = "none"
    assert model.add_version("mail").name == "mail@2"
    assert model.added["mail@2"].forward_transfer == ["mail"]


def test_every_version_is_exact_and_the_default_answers_to_the_tasks_own_name(versioned: EideticModel) -> None:
    answers = {name: logits_of(versioned, name) for name in ("news@1", "news@2", "news@3")}
    assert not torch.equal(answers["news@1"], answers["news@2"]) and versioned.verify().ok
    assert torch.equal(logits_of(versioned, "news"), answers["news@2"])
    for name, logits in answers.items():
        assert torch.equal(logits_of(poison(versioned, name), name), logits), name
    model = copy.deepcopy(versioned)
    for version, answer in ((3, "news@3"), ("news@2", "news@2"), ("news", "news@1"), (3, "news@3"), (1, "news@1")):
        model.set_default_version("news", version)
        assert torch.equal(logits_of(model, "news"), answers[answer])
    assert model.config.default_versions == {}
    with torch.no_grad():
        mixed = versioned(**make_batch(), task=["news", "news@1", "mail", "news@3", "news"])
    assert mixed.tasks == ["news@2", "news", "mail", "news@3", "news@2"]


def test_names_of_versions_are_names_of_tensors_and_files_and_stay_in_the_folder(
    versioned: EideticModel, tmp_path: Path
) -> None:
    assert owner_of("heads.@news@2.classifier.weight") == task_key("news@2") == "@news@2"
    assert task_name("@news@2") == "news@2" and task_name(task_key("v.1@12")) == "v.1@12"
    assert shard_file("@news@2") == "eidetic-task-news@2.safetensors"
    model = copy.deepcopy(versioned)
    model.save_pretrained(tmp_path)
    before = {path.name: sha256_of(path) for path in tmp_path.glob("*.safetensors")}
    assert "eidetic-task-news@2.safetensors" in before
    loaded = EideticModel.from_pretrained(tmp_path)
    assert loaded.verify().ok and loaded.config.default_versions == {"news": 2}
    assert torch.equal(logits_of(loaded, "news"), logits_of(versioned, "news@2"))
    loaded.set_default_version("news", 3)
    loaded.save_pretrained(tmp_path)
    assert {path.name: sha256_of(path) for path in tmp_path.glob("*.safetensors")} == before
    assert EideticModel.from_pretrained(tmp_path).config.default_versions == {"news": 3}
    one = EideticModel.from_pretrained(tmp_path, tasks=["news@2"])
    assert one.tasks == ["news@2"] and torch.equal(logits_of(one, "news@2"), logits_of(versioned, "news@2"))
    assert one.route(**make_batch()).tasks == ["news@2"] * 5
    with pytest.raises(TaskError, match="There is no task 'news@1'"):  # an ancestor at most
        one(**make_batch(), task="news@1")
    first = EideticModel.from_pretrained(tmp_path, tasks=["news"])
    assert torch.equal(logits_of(first, "news"), logits_of(versioned, "news@1"))
    config = EideticConfig(**{k: v for k, v in loaded.config.to_dict().items() if k != "default_versions"})
    assert config.default_versions == {}  # of a folder from before


def test_the_router_knows_a_task_by_its_default_version_alone(versioned: EideticModel) -> None:
    model = copy.deepcopy(versioned)
    batch = {name: torch.tensor(make_data(2)[name][:]) for name in ("input_ids", "attention_mask")}
    for default, name in ((2, "news@2"), (3, "news@3"), (1, "news")):
        model.set_default_version("news", default)
        found = model.route(**batch)
        assert set(found.tasks) <= {name, "mail"} and found.tasks.count(name) > 0
        others = [i for i, each in enumerate(model.tasks) if each not in (name, "mail")]
        assert not found.router_scores[:, others].any()
        with torch.no_grad():
            answered = model(**batch)
        assert answered.tasks == found.tasks and answered.logits.shape == (64, 12)
        row = found.tasks.index(name)
        assert answered.logits[row].isfinite().nonzero().flatten().tolist() == [
            i for i, label in model.config.id2label.items() if label.startswith(f"{name}/")
        ]
    # As if the other versions had never been.
    alone = copy.deepcopy(model)
    for other in ("news@2", "news@3"):
        alone.router.remove(other)
    assert torch.equal(alone.route(**batch).router_scores, model.route(**batch).router_scores)


def test_versions_of_one_task_alone_are_not_routed(tmp_path: Path) -> None:
    model = tiny_model(growth="copy")
    for name in ("news", "news@2"):
        model.add_task(name, labels=["x", "y"])
        model.begin_task(name, PruningConfig(own=0.1))
        model.commit_task()  # without sums for the router
    with torch.no_grad():
        assert torch.equal(model(**make_batch()).logits, logits_of(model, "news@1"))
        model.set_default_version("news", 2)
        assert torch.equal(model(**make_batch()).logits, logits_of(model, "news@2"))


def test_a_trainer_evaluates_its_own_version_whichever_is_the_default(versioned: EideticModel, tmp_path: Path) -> None:
    model = copy.deepcopy(versioned)
    data = make_data(0)
    found = {}
    for name in ("news", "news@1", "news@3"):
        found[name] = EideticTrainer(model, name, arguments(tmp_path), eval_dataset=data).predict(data).predictions
    batch = {name: torch.tensor(data[name][:]) for name in ("input_ids", "attention_mask")}
    for name, exact in (("news", "news@1"), ("news@1", "news@1"), ("news@3", "news@3")):
        torch.testing.assert_close(torch.tensor(found[name]), logits_of(model, exact, batch))
    # Targets that come without a task are those of the last run of a Trainer that says none.
    model.run_task = EideticCallback("news").task
    labels = torch.tensor(data["labels"][:])
    with torch.no_grad():
        assert torch.equal(model(**batch, labels=labels).logits, logits_of(model, "news@1", batch))


def test_texts_are_written_by_the_default_version_and_by_the_one_that_is_named() -> None:
    model = EideticModel.from_backbone(with_head("gpt2")[1], trunk_layers=1, growth="copy")
    for seed, name in enumerate(("stories", "stories@2")):
        model.add_task(name, task_type="causal-lm", based_on="stories" if seed else None)
        model.begin_task(name, PruningConfig(own=0.2))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed)))
        model.commit_task()
    prompt, options = torch.tensor([[5, 6, 7]]), {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0}
    written = {name: model.generate(prompt, task=name, **options) for name in ("stories@1", "stories@2", "stories")}
    assert torch.equal(written["stories"], written["stories@1"])
    assert not torch.equal(written["stories"], written["stories@2"])
    model.set_default_version("stories", 2)
    for name, expected in (("stories", "stories@2"), ("stories@1", "stories@1"), (None, "stories@2")):
        assert torch.equal(model.generate(prompt, task=name, **options), written[expected]), name


def test_pipelines_and_predictions_answer_with_the_version_that_is_meant(
    versioned: EideticModel, tmp_path: Path
) -> None:
    model, tokenizer = copy.deepcopy(versioned), word_tokenizer()
    pipe = pipeline("text-classification", model=model, tokenizer=tokenizer)
    text = "w005 w017 w033 w004"
    batch = dict(tokenizer(text, return_tensors="pt"))
    scores = {name: logits_of(model, name, batch).softmax(-1).max() for name in ("news@1", "news@2", "news@3")}
    answers = Predictor(model, tokenizer)
    for name, exact in (("news", "news@2"), ("news@1", "news@1"), ("news@3", "news@3")):
        found = pipe(text, task=name)[0]
        assert found["label"].startswith(f"{plain_name(exact)}/")
        assert found["score"] == pytest.approx(float(scores[exact]), abs=1e-5)
        line = next(iter(answers.answers([Query(text)], name)))
        assert line["task"] == plain_name(exact) and line["score"] == pytest.approx(float(scores[exact]), abs=1e-5)
    routed_line = next(iter(answers.answers([Query(text)])))
    assert routed_line["task"] in ("news@2", "mail") and list(routed_line["task_scores"]) == model.tasks
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    (line,) = lines_of(call("predict", tmp_path, text, "--task", "news@1"))
    assert line["task"] == "news" and line["score"] == pytest.approx(float(scores["news@1"]), abs=1e-4)
    verified = call("verify", tmp_path, "--task", "news@1", "--task", "news@3")
    assert verified.exit_code == 0 and verified.stdout.startswith("news: weights")
    assert call("predict", tmp_path, text, "--task", "news@4").exit_code == 2


def test_embeddings_are_those_of_the_default_version() -> None:
    model = tiny_model(growth="copy")
    for name, pooling in (("meaning", "first"), ("meaning@2", "mean")):
        model.add_task(name, task_type="feature-extraction", pooling=pooling)
        model.begin_task(name, PruningConfig(own=0.1))
        model.commit_task()
    batch = make_batch()
    with torch.no_grad():
        exact = {name: model(**batch, task=name).pooler_output for name in ("meaning@1", "meaning@2")}
        assert not torch.equal(exact["meaning@1"], exact["meaning@2"])
        for default in (1, 2):
            model.set_default_version("meaning", default)
            for task in (None, "meaning"):
                found = model.get_text_features(**batch, task=task).pooler_output
                assert torch.equal(found, exact[f"meaning@{default}"])
            assert torch.equal(model.get_text_features(**batch, task="meaning@1").pooler_output, exact["meaning@1"])


def test_what_is_no_version_is_said(versioned: EideticModel) -> None:
    model = copy.deepcopy(versioned)
    for name in ("news@0", "news@1", "news@02", "news@x", "news@", "@2", "a@2@3"):
        with pytest.raises(TaskError, match="for a version of a task its number from 2 on"):
            check_task_name(name)
    with pytest.raises(TaskError, match="'sport@2' would be a version of 'sport', which there is not"):
        model.add_task("sport@2", labels=["x", "y"])
    with pytest.raises(TaskError, match="'mail@2' is token-classification, and 'mail' is sequence-classification"):
        model.add_task("mail@2", task_type="token-classification", labels=["x", "y"])
    with pytest.raises(TaskError, match="There is no committed task 'sport' to add a version of"):
        model.add_version("sport")
    with pytest.raises(TaskError, match="There is no committed task 'news@2' to add a version of"):
        model.add_version("news@2")
    with pytest.raises(TaskError, match="There is no committed version of a task 'sport'"):
        model.set_default_version("sport", 1)
    model.add_version("news")
    for version in (4, 0, True, "mail", "news@4", "news@9", "mail@1"):
        with pytest.raises(TaskError, match=r"expected one of the committed versions of 'news': \[1, 2, 3\]"):
            model.set_default_version("news", version)
    with pytest.raises(TaskError, match="'news@4' has been added, but not learned"):
        model(**make_batch(), task="news@4")
    with pytest.raises(TaskError, match="There is no task 'news@9'"):
        model(**make_batch(), task="news@9")
    model.begin_task("news@4")
    assert torch.equal(logits_of(model, "news"), logits_of(versioned, "news@2"))  # not the one being learned


def test_versions_are_found_among_names() -> None:
    names = ["a@2", "b", "a", "a@10", "ab@2"]
    assert versions_among(names, "a") == {1: "a", 2: "a@2", 10: "a@10"} and split_version("v.1@12") == ("v.1", 12)
    config = EideticConfig(default_versions={"a": 2})
    assert routed(config, names) == ["a@2", "b", "ab@2"]
    assert routed_name(config, ["a@10", "a"], "a") == "a"  # the default is not there
    assert routed_name(config, ["a@3", "a@10"], "a") == "a@10"
    assert routed(config, ["a", "b"]) == ["a", "b"]
