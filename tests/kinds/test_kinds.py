"""Every kind of task: learned, never changed, routed, mixed, loaded by its Auto class, answered by its pipeline."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from datasets import Dataset
from support.backbones import tiny_model
from support.data import arguments, learn, make_batch
from support.kind_cases import (
    CASES,
    TAGS,
    KindCase,
    answer_of,
    as_text,
    batch_of,
    counting,
    kind_model,
    learn_kind,
    main_answer,
    token_data,
    word_tokenizer,
)
from transformers import AutoModel, DataCollatorForTokenClassification, Trainer, pipeline

import eidetic_hf
from eidetic_hf import EideticCallback, EideticModel, EideticTrainer, PruningConfig, TaskError
from eidetic_hf.configuration import TaskRecord
from eidetic_hf.kinds import TASK_KINDS, label_spans
from eidetic_hf.model import auto
from eidetic_hf.network.backbone import DECODER, ENCODER, ENCODER_DECODER

WORDS = {"one": (10, 60), "two": (65, 115)}
# The backbone that tasks of each kind are learned on: the first that can have them.
BACKBONES = {ENCODER: "bert", DECODER: "gpt2", ENCODER_DECODER: "t5"}
PLACES = [
    (next(name for family, name in BACKBONES.items() if family in TASK_KINDS[kind].families), kind) for kind in CASES
]
ON_BERT = [kind for backbone, kind in PLACES if backbone == "bert"]


@dataclass
class Learned:
    """A model that has learned two tasks of each kind, `<kind>-one` and `<kind>-two`, and what was seen meanwhile.

    Attributes:
        model: the model.
        answers: of each task, right after its commit.
        metrics: of each first task, by its trainer.
        losses: of each first task's training.
    """

    model: EideticModel
    answers: dict[str, torch.Tensor] = field(default_factory=dict)
    metrics: dict[str, dict[str, float]] = field(default_factory=dict)
    losses: dict[str, list[float]] = field(default_factory=dict)


def learn_all(architecture: str, kinds: list[str], folder: Path) -> Learned:
    learned = Learned(kind_model(architecture))
    for kind in kinds:
        case = CASES[kind]
        trainer = learn_kind(learned.model, case, f"{kind}-one", folder, WORDS["one"])
        learned.metrics[kind] = trainer.evaluate()
        learned.losses[kind] = [row["loss"] for row in trainer.state.log_history if "loss" in row]
        learned.answers[f"{kind}-one"] = answer_of(learned.model, case, f"{kind}-one")
    for kind in kinds:
        learn_kind(learned.model, CASES[kind], f"{kind}-two", folder, WORDS["two"], max_steps=6)
        learned.answers[f"{kind}-two"] = answer_of(learned.model, CASES[kind], f"{kind}-two")
    learned.model.eval()
    return learned


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Learned]:
    """Models that have learned kinds that their architecture can have, in turn. Copy them before you change one."""
    kinds = {"bert": ON_BERT, "gpt2": ["causal-lm", "token-classification"], "t5": ["seq2seq-lm", "multiple-choice"]}
    return {name: learn_all(name, some, tmp_path_factory.mktemp(name)) for name, some in kinds.items()}


@pytest.fixture(scope="module")
def folders(models: dict[str, Learned], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same models, saved."""
    paths = {}
    for name, learned in models.items():
        paths[name] = tmp_path_factory.mktemp(f"saved-{name}")
        learned.model.save_pretrained(paths[name])
    return paths


@pytest.fixture(params=PLACES, ids=[kind for _, kind in PLACES])
def place(request: pytest.FixtureRequest, models: dict[str, Learned]) -> Iterator[tuple[Learned, KindCase, str]]:
    """A model, one of its kinds, and the model's architecture."""
    architecture, kind = request.param
    yield models[architecture], CASES[kind], architecture


# -- learning ---------------------------------------------------------------------------------------------------------


def test_there_is_a_case_for_every_kind() -> None:
    assert set(CASES) == set(TASK_KINDS) == {kind for _, kind in PLACES}


def test_each_kind_learns_what_is_in_its_data(place: tuple[Learned, KindCase, str]) -> None:
    learned, case, _ = place
    losses, value = learned.losses[case.kind], learned.metrics[case.kind][f"eval_{case.metric}"]
    assert sum(losses[-3:]) < 0.7 * sum(losses[:3])
    assert (value < case.bar) == (case.metric == "perplexity"), value


def test_no_kind_changes_a_task_of_another(place: tuple[Learned, KindCase, str]) -> None:
    learned, case, _ = place
    for name in (f"{case.kind}-one", f"{case.kind}-two"):
        assert torch.equal(answer_of(learned.model, case, name), learned.answers[name])
    assert learned.model.verify().ok


def test_nothing_but_the_closed_set_is_read(place: tuple[Learned, KindCase, str]) -> None:
    learned, case, _ = place
    for name in (f"{case.kind}-one", f"{case.kind}-two"):
        model = copy.deepcopy(learned.model)
        read = set(model.task_tensors(name))
        for other, tensor in model.state_dict().items():
            if other not in read and tensor.is_floating_point():
                tensor.fill_(torch.nan)
        assert torch.equal(answer_of(model, case, name), learned.answers[name])


def test_heads_and_embeddings_of_the_closed_set_are_read(place: tuple[Learned, KindCase, str]) -> None:
    learned, case, _ = place
    model, name = copy.deepcopy(learned.model), f"{case.kind}-two"
    for read, tensor in model.task_tensors(name).items():
        if not read.startswith("heads.") and "embed" not in read:
            continue
        before = tensor.clone()
        tensor.fill_(torch.nan)
        assert torch.isnan(answer_of(model, case, name)).any(), read
        tensor.copy_(before)


def test_each_kind_is_loaded_as_it_was_saved(place: tuple[Learned, KindCase, str], folders: dict[str, Path]) -> None:
    learned, case, architecture = place
    model = EideticModel.from_pretrained(folders[architecture])
    name = f"{case.kind}-one"
    assert torch.equal(answer_of(model, case, name), learned.answers[name])
    assert model.record(name) == learned.model.record(name)
    alone = EideticModel.from_pretrained(folders[architecture], tasks=[name])
    assert torch.equal(answer_of(alone, case, name), learned.answers[name])
    assert torch.equal(main_answer(alone(**batch_of(case))), learned.answers[name])


def test_no_shard_of_any_kind_changes_when_another_task_is_learned(models: dict[str, Learned], tmp_path: Path) -> None:
    model = copy.deepcopy(models["bert"].model)
    model.save_pretrained(tmp_path)
    before = {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in tmp_path.glob("eidetic-t*")}
    assert len(before) == 1 + 2 * len(ON_BERT)
    learn_kind(model, CASES["masked-lm"], "later", tmp_path / "run", max_steps=3)
    model.save_pretrained(tmp_path)
    assert {name: hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() for name in before} == before


def test_a_changed_language_model_is_noticed(models: dict[str, Learned]) -> None:
    model = copy.deepcopy(models["bert"].model)
    model.heads["@masked-lm-one"].bias[100] += 1e-3
    report = model.verify()
    assert not report.ok
    assert [task.task for task in report.tasks if not task.ok] == ["masked-lm-one"]
    found = next(task for task in report.tasks if not task.ok)
    assert found.first_difference == "heads.@masked-lm-one.bias"
    assert not found.logits_match


def test_a_certificate_keeps_few_logits_of_a_language_model(models: dict[str, Learned]) -> None:
    model = models["gpt2"].model
    probe = model.probes["@causal-lm-one"]
    assert probe.need("logits").shape == (4, 16, 120)  # of a small vocabulary, all
    certificate = model.record("causal-lm-one").certificate
    assert "kept_logits_sha256" not in certificate
    kind = TASK_KINDS["causal-lm"]
    assert kind.probe_kept(torch.zeros(4, 16, 50_000)).shape == (4, 16, 65)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ON_BERT)
def test_the_unpruned_network_can_teach_any_kind(kind: str, tmp_path: Path) -> None:
    model = kind_model("bert")
    case = CASES[kind]
    pruning = PruningConfig(keep=0.3, start=0.2, end=0.8, distillation=0.9)
    learn_kind(model, case, "taught", tmp_path, pruning=pruning, max_steps=10)
    other = kind_model("bert")
    learn_kind(other, case, "taught", tmp_path, pruning=PruningConfig(keep=0.3, start=0.2, end=0.8), max_steps=10)
    answers = [answer_of(m, case, "taught") for m in (model, other)]
    assert torch.isfinite(answers[0]).all()
    assert not torch.equal(answers[0], answers[1])


# -- several tasks in a batch -----------------------------------------------------------------------------------------


def spans(model: EideticModel, case: KindCase, name: str) -> Any:
    """Where a task's answer lies in the last dimension of a mixed one."""
    kind = TASK_KINDS[case.kind]
    return kind.span(model.record(name), label_spans(model.config, case.kind))


def test_rows_of_a_mixed_batch_are_those_of_the_tasks_own_batches(place: tuple[Learned, KindCase, str]) -> None:
    learned, case, _ = place
    model = learned.model
    for rows in (3, 24):  # few and many tokens
        names = [f"{case.kind}-{'one' if row % 3 else 'two'}" for row in range(rows)]
        batch = batch_of(case, rows)
        mixed = model(**batch, task=names)
        assert mixed.tasks == names
        for name in set(names):
            own = [row for row, other in enumerate(names) if other == name]
            alone = main_answer(model(**{key: value[own] for key, value in batch.items()}, task=name))
            answer = main_answer(mixed)[own]
            assert torch.equal(answer if "logits" not in mixed else answer[..., spans(model, case, name)], alone)


def test_outside_of_its_labels_a_row_of_a_mixed_batch_is_minus_infinity(models: dict[str, Learned]) -> None:
    model = models["bert"].model
    case = CASES["token-classification"]
    names = ["token-classification-one", "token-classification-two"]
    logits = model(**batch_of(case, 2), task=names).logits
    assert logits.shape == (2, 12, 6)
    assert (logits[0, :, 3:] == -torch.inf).all()
    assert (logits[1, :, :3] == -torch.inf).all()
    assert torch.isfinite(logits[0, :, :3]).all()


def test_each_kind_routes_among_its_own_tasks(place: tuple[Learned, KindCase, str], folders: dict[str, Path]) -> None:
    learned, case, architecture = place
    names = {
        "AutoModel": "EideticModel",
        "AutoModelForSequenceClassification": "EideticModel",
    }
    auto_class = getattr(transformers, case.auto_class)
    model = auto_class.from_pretrained(folders[architecture])
    expected = names.get(case.auto_class, case.auto_class.replace("AutoModel", "Eidetic"))
    assert type(model).__name__ == expected
    if case.auto_class == "AutoModel":
        model = class_of(case.kind).from_pretrained(folders[architecture])
    right = 0
    for word, (low, high) in WORDS.items():
        batch = batch_of(case, 12, (low, high))
        answer = model(**batch)
        assert answer.router_scores.shape == (12, 2)
        assert {name.rpartition("-")[0] for name in answer.tasks} == {case.kind}
        right += answer.tasks.count(f"{case.kind}-{word}")
        named = learned.model(**batch, task=answer.tasks)
        assert torch.equal(main_answer(answer), main_answer(named))
        everywhere = model.route(**{key: value for key, value in batch.items() if not key.startswith("decoder")})
        assert everywhere.router_scores.shape == (12, len(model.tasks))
    assert right > 16  # by chance 12


def class_of(kind: str) -> type[EideticModel]:
    return next((c for c in EideticModel.__subclasses__() if c.answering_type == kind), EideticModel)


def test_an_empty_batch_of_any_kind_has_an_empty_answer(
    place: tuple[Learned, KindCase, str], folders: dict[str, Path]
) -> None:
    _, case, architecture = place
    model = class_of(case.kind).from_pretrained(folders[architecture])
    empty = {name: value[:0] for name, value in batch_of(case).items()}
    shape = main_answer(model(**batch_of(case), task=[f"{case.kind}-one"] * 5)).shape
    for options in ({"task": []}, {}):
        answer = model(**empty, **options)
        assert main_answer(answer).shape == (0, *shape[1:])
        assert answer.tasks == []


@pytest.mark.parametrize("kind", ["sequence-classification", "token-classification", "feature-extraction"])
def test_hidden_states_of_an_encoder_decoder_are_those_that_the_head_reads(kind: str) -> None:
    model = tiny_model("t5")
    model.add_task("only", task_type=kind, labels=["x", "y"] if "classification" in kind else None)
    model.begin_task("only")
    model.commit_task()
    batch = make_batch()
    output = model(**batch, output_hidden_states=True)
    assert len(output.hidden_states) == 4
    assert output.hidden_states[-1].shape == (*batch["input_ids"].shape, 32)
    assert model(**batch).hidden_states is None


def test_a_list_of_tasks_is_of_one_kind(models: dict[str, Learned]) -> None:
    model = models["bert"].model
    names = ["question-answering-one", "masked-lm-two"]
    with pytest.raises(TaskError, match=r"'question-answering-one' \(question-answering\) and 'masked-lm-two' \(mask"):
        model(**make_batch(rows=2), task=names)


# -- Auto classes, configurations, pipelines --------------------------------------------------------------------------


def test_labels_are_those_of_the_kind_that_a_class_answers(folders: dict[str, Path], tmp_path: Path) -> None:
    base = AutoModel.from_pretrained(folders["bert"])
    assert list(base.config.id2label.values()) == [
        f"sequence-classification-{word}/{label}" for word in WORDS for label in "xyz"
    ]
    tokens = auto.EideticForTokenClassification.from_pretrained(folders["bert"])
    assert list(tokens.config.id2label.values()) == [
        "O", "B-token-classification-one/x", "I-token-classification-one/x",
        "O", "B-token-classification-two/x", "I-token-classification-two/x",
    ]  # fmt: skip
    assert tokens.config.label2id["O"] == 0
    assert tokens.config.label2id["I-token-classification-two/x"] == 5
    assert tokens.config.num_labels == 6
    gaps = auto.EideticForMaskedLM.from_pretrained(folders["bert"])
    assert gaps.config.num_labels == 2
    for model in (base, tokens, gaps):
        folder = tmp_path / type(model).__name__
        model.save_pretrained(folder)
        for name in ("config.json", "model.safetensors.index.json"):
            assert (folder / name).read_bytes() == (folders["bert"] / name).read_bytes()


def test_labels_without_a_prefix_carry_their_task() -> None:
    record = TaskRecord(name="pos", task_type="token-classification", labels=["NOUN", "O", "B-x"])
    labels = [TASK_KINDS[record.task_type].flat_label(record, label) for label in record.labels]
    assert labels == ["pos/NOUN", "O", "B-pos/x"]


def test_a_class_without_tasks_of_its_kind_says_what_there_is(folders: dict[str, Path]) -> None:
    model = auto.EideticForQuestionAnswering.from_pretrained(folders["gpt2"])
    with pytest.raises(TaskError) as error:
        model(**make_batch())
    message = str(error.value)
    assert "answers question-answering, and no such task is committed" in message
    assert "'causal-lm-one': 'causal-lm'" in message
    assert "causal-lm: AutoModelForCausalLM" in message
    base = EideticModel.from_pretrained(folders["gpt2"])
    with pytest.raises(TaskError, match="without task= answers sequence-classification"):
        base(**make_batch())
    assert base(**make_batch(), task="causal-lm-one").logits.shape == (5, 12, 120)


def test_the_base_class_answers_the_only_kind_there_is(folders: dict[str, Path]) -> None:
    model = EideticModel.from_pretrained(folders["gpt2"], tasks=["causal-lm-one", "causal-lm-two"])
    answer = model(**batch_of(CASES["causal-lm"]))
    assert answer.logits.shape == (5, 12, 120)
    assert set(answer.tasks) <= {"causal-lm-one", "causal-lm-two"}


def test_configurations_without_the_later_fields_are_read() -> None:
    record = TaskRecord.from_dict({"name": "old", "labels": ["a", "b"], "pooling": "first"})
    assert (record.task_type, record.vocab_size, record.head) == ("sequence-classification", None, {})
    config = eidetic_hf.EideticConfig(tasks=[record.to_dict()])
    assert config.language_head is None
    assert config.output_embeddings is None


def test_the_pipeline_of_tokens_finds_entities_of_the_routed_task(folders: dict[str, Path]) -> None:
    tokenizer = word_tokenizer()
    tagger = pipeline(
        "token-classification", model=str(folders["bert"]), tokenizer=tokenizer, aggregation_strategy="simple"
    )
    assert type(tagger.model).__name__ == "EideticForTokenClassification"
    texts = {word: [as_text(row) for row in counting(3, 4, *words)] for word, words in WORDS.items()}
    found = {word: tagger(some) for word, some in texts.items()}
    for word, some in texts.items():
        names = [tagger.model(**tokenizer(text, return_tensors="pt")).tasks[0] for text in some]
        assert names.count(f"token-classification-{word}") >= 3
        for name, entities in zip(names, found[word], strict=True):
            assert {entity["entity_group"] for entity in entities} <= {f"{name}/x"}
    assert all(found["one"])
    entity = found["one"][0][0]
    assert entity["word"].split() == as_text(counting(3, 4, *WORDS["one"])[0])[entity["start"] : entity["end"]].split()
    assert 1 / 3 < entity["score"] <= 1


def test_the_pipeline_of_gaps_fills_them(folders: dict[str, Path]) -> None:
    fill = pipeline("fill-mask", model=str(folders["bert"]), tokenizer=word_tokenizer())
    assert type(fill.model).__name__ == "EideticForMaskedLM"
    best = fill("w004 w020 w020 w020 w002 w020 w020", top_k=3)
    assert "w020" in [candidate["token_str"] for candidate in best]
    several = fill(["w004 w020 w020 w002 w020 w020", "w004 w070 w070 w002 w070 w070"], top_k=1)
    assert len(several) == 2


def test_the_pipeline_of_features_gives_hidden_states(models: dict[str, Learned], folders: dict[str, Path]) -> None:
    model = auto.EideticForFeatureExtraction.from_pretrained(folders["bert"])
    extract = pipeline("feature-extraction", model=model, tokenizer=word_tokenizer())
    features = extract("w020 w021 w022", return_tensors=True)
    assert features.shape == (1, 3, 32)
    ids = torch.tensor([[20, 21, 22]])
    expected = models["bert"].model(ids, torch.ones_like(ids), task=model(ids).tasks[0])
    assert torch.equal(features, expected.last_hidden_state)
    torch.testing.assert_close(expected.pooler_output.norm(dim=-1), torch.ones(1))


def test_the_pipeline_of_sequences_still_answers(folders: dict[str, Path]) -> None:
    classify = pipeline("text-classification", model=str(folders["bert"]), tokenizer=word_tokenizer())
    ids = torch.tensor([[20, 4, 26]])
    answer = classify.model(ids)
    best = int(answer.logits.argmax())
    assert classify("w020 w004 w026")[0]["label"] == classify.model.config.id2label[best]
    assert classify.model.config.id2label[best].split("/")[0] == answer.tasks[0]


# -- the trainer ------------------------------------------------------------------------------------------------------


def test_evaluation_collects_sums_and_not_the_vocabulary(tmp_path: Path) -> None:
    model = kind_model("gpt2")
    case = CASES["causal-lm"]
    trainer = learn_kind(model, case, "texts", tmp_path, max_steps=5)
    output = trainer.predict(trainer.eval_dataset)
    assert output.predictions.shape == (32, 3)
    with torch.no_grad():
        losses = []
        for row in trainer.eval_dataset:
            ids = torch.tensor([row["input_ids"]])
            losses.append((model(ids, labels=ids, task="texts").loss * (ids.shape[1] - 1), ids.shape[1] - 1))
    mean = sum(float(loss) for loss, _ in losses) / sum(n for _, n in losses)
    assert output.metrics["test_perplexity"] == pytest.approx(float(torch.tensor(mean).exp()), rel=1e-4)


def test_pairs_without_labels_are_evaluated_by_their_loss(tmp_path: Path) -> None:
    model = kind_model("bert")
    case = CASES["feature-extraction"]
    trainer = learn_kind(model, case, "vectors", tmp_path, max_steps=3)
    metrics = trainer.evaluate(case.data(5, 16))
    assert 0 < metrics["eval_loss"] < 10
    assert "eval_spearman" not in metrics
    assert trainer.predict(case.data(5, 16).remove_columns("pair_input_ids")).predictions.shape == (16, 32)


def test_padded_rows_need_no_tokenizer(tmp_path: Path) -> None:
    model = tiny_model()
    model.add_task("tags", task_type="token-classification", labels=TAGS)
    ids = torch.randint(3, 120, (32, 10))
    data = Dataset.from_dict(
        {"input_ids": ids.tolist(), "attention_mask": torch.ones_like(ids).tolist(), "labels": (ids % 3).tolist()}
    )
    trainer = EideticTrainer(
        model=model, task="tags", args=arguments(tmp_path), train_dataset=data, eval_dataset=data,
        pruning=PruningConfig(keep=0.5),
    )  # fmt: skip
    trainer.train()
    assert 0 <= trainer.evaluate()["eval_f1"] <= 1


@pytest.mark.parametrize("side", ["right", "left"])
def test_the_router_knows_a_running_text_by_its_beginnings_and_an_answer_by_its_prompt(side: str) -> None:
    kind, record = TASK_KINDS["causal-lm"], TaskRecord("lm", "causal-lm")
    ids, mask = torch.arange(1, 25).reshape(2, 12), torch.ones(2, 12, dtype=torch.long)
    mask[1, 6:] = 0
    if side == "left":
        mask = mask.flip(1)
    batch = {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, -100)}
    found = kind.texts(record, batch)
    read = [
        [row[m.bool()].tolist() for row, m in zip(t["input_ids"], t["attention_mask"], strict=True)] for t in found
    ]
    texts = [row[m.bool()].tolist() for row, m in zip(ids, mask, strict=True)]
    assert read == [texts, [text[:4] for text in texts], [text[:8] for text in texts]]
    assert side == "left" or found[1]["input_ids"].shape == (2, 4), "what nobody reads is not computed"
    batch["labels"][:, :6] = -100
    batch["labels"][1] = -100
    (prompts,) = kind.texts(record, batch)
    assert torch.equal(prompts["attention_mask"], mask * (batch["labels"] == -100))


def test_any_trainer_can_learn_any_kind_with_the_callback(tmp_path: Path) -> None:
    model = kind_model("bert")
    model.add_task("tags", task_type="token-classification", labels=TAGS)
    tokenizer = word_tokenizer()
    Trainer(
        model=model,
        args=arguments(tmp_path, max_steps=8),
        train_dataset=token_data(),
        data_collator=DataCollatorForTokenClassification(tokenizer),
        callbacks=[EideticCallback("tags", PruningConfig(keep=0.5))],
    ).train()
    assert model.tasks == ["tags"]
    assert model.router.statistics("tags").count.tolist() == [64]
    assert model.verify().ok


@pytest.mark.parametrize(("kind", "architecture"), [("causal-lm", "gpt2"), ("question-answering", "bert")])
def test_smoothing_that_would_be_wrong_is_refused(kind: str, architecture: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"label_smoothing_factor=0.1: the Trainer would smooth the labels of"):
        learn_kind(kind_model(architecture), CASES[kind], "task", tmp_path, label_smoothing_factor=0.1)


# -- what the router knows a task by ----------------------------------------------------------------------------------


def test_a_text_to_be_continued_is_known_by_its_prompt() -> None:
    kind, record = TASK_KINDS["causal-lm"], TaskRecord(name="t", task_type="causal-lm")
    batch = {
        "input_ids": torch.tensor([[4, 5, 6, 7], [4, 5, 6, 0]]),
        "attention_mask": torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]]),
        "labels": torch.tensor([[-100, -100, 6, 7], [4, 5, 6, -100]]),
    }
    (text,) = kind.texts(record, batch)
    assert text["attention_mask"].tolist() == [[1, 1, 0, 0], [1, 1, 1, 0]]


def test_both_texts_of_a_pair_and_all_choices_of_an_example_count(models: dict[str, Learned]) -> None:
    router = models["bert"].model.router
    assert router.statistics("feature-extraction-one").count.tolist() == [128]
    assert router.statistics("multiple-choice-one").count.tolist() == [64]
    assert router.statistics("token-classification-one").count.tolist() == [64]
    assert router.statistics("sequence-classification-one").count.shape == (3,)


def test_choices_are_routed_as_one_text(models: dict[str, Learned]) -> None:
    model = models["bert"].model
    batch = batch_of(CASES["multiple-choice"], 4)
    together = model.route(**batch).router_scores
    joined = {name: value.flatten(1) for name, value in batch.items()}
    assert together.shape == (4, 12)
    assert joined["input_ids"].shape == (4, 36)
    swapped = {name: value.flip(1) for name, value in batch.items()}
    torch.testing.assert_close(model.route(**swapped).router_scores, together)


# -- bad input --------------------------------------------------------------------------------------------------------


BAD_TARGETS = [
    ("token-classification", {"labels": torch.zeros(5, 11, dtype=torch.long)}, r"shape \(5, 11\); expected \(5, 12\)"),
    ("token-classification", {"labels": torch.zeros(5, 12)}, "needs whole numbers as labels, got torch.float32"),
    ("token-classification", {"labels": torch.full((5, 12), 3)}, "has 3 labels .*, got label 3"),
    ("token-classification", {"labels": torch.full((5, 12), -100)}, "all labels of a batch are -100"),
    (
        "token-classification",
        {"start_positions": torch.zeros(5, dtype=torch.long)},
        r"\['start_positions'\]; expected",
    ),
    ("question-answering", {"labels": torch.zeros(5, dtype=torch.long)}, "start_positions and end_positions"),
    ("question-answering", {"start_positions": torch.zeros(5, dtype=torch.long)}, "start_positions and end_positions"),
    ("question-answering", ([0, 1, 2, 3, 12], [0, 1, 2, 3, 13]), "start_positions 12 in sequences of 12 tokens"),
    ("question-answering", ([0, 1, 2, 3, -1], [0, 1, 2, 3, 3]), "start_positions -1"),
    ("question-answering", ([0, 1, 2, 5, 6], [0, 1, 2, 3, 6]), "row 3 of a batch begins at token 5 and ends before"),
    ("question-answering", ([-100] * 5, [-100] * 5), "all labels of a batch are -100"),
    ("multiple-choice", {"labels": torch.zeros(5, 3, dtype=torch.long)}, r"shape \(5, 3\); expected \(5,\)"),
    ("multiple-choice", {"labels": torch.full((5,), 3)}, "has 3 choices, got label 3"),
    ("masked-lm", {"labels": torch.full((5, 12), 120)}, "has 120 tokens in its vocabulary, got label 120"),
    ("masked-lm", {"labels": torch.full((5, 12), -100)}, "Give the tokens behind the masks"),
    ("causal-lm", {"labels": torch.zeros(5, 11, dtype=torch.long)}, r"shape \(5, 11\); expected \(5, 12\)"),
    ("causal-lm", {"labels": torch.tensor([[5] + [-100] * 11] * 5)}, "The first token of a text is never written"),
    ("seq2seq-lm", {"labels": torch.zeros(5, dtype=torch.long)}, r"shape \(5,\); expected \(batch, target sequence\)"),
    ("feature-extraction", {"labels": torch.zeros(5)}, "no pair_input_ids"),
    ("feature-extraction", {"labels": torch.zeros(5, dtype=torch.long), "pair": 5}, "needs floating-point labels"),
    ("feature-extraction", {"labels": torch.zeros(5, 1), "pair": 5}, r"shape \(5, 1\); expected \(5,\)"),
    ("feature-extraction", {"pair": 4}, "5 texts and 4 partners"),
    ("sequence-classification", {"pair": 5}, "pair_input_ids, which are for feature extraction"),
]


@pytest.mark.parametrize(("kind", "targets", "message"), BAD_TARGETS)
def test_targets_that_do_not_fit_are_explained(
    kind: str, targets: Any, message: str, models: dict[str, Learned]
) -> None:
    architecture = next(name for name, other in PLACES if other == kind)
    batch = batch_of(CASES[kind])
    if isinstance(targets, tuple):
        targets = {f"{end}_positions": torch.tensor(at) for end, at in zip(("start", "end"), targets, strict=True)}
    if kind == "seq2seq-lm":
        del batch["decoder_input_ids"]
    extra = {name: value for name, value in targets.items() if name != "pair"}
    if "pair" in targets:
        extra["pair_input_ids"] = torch.full((targets["pair"], 4), 7)
    with pytest.raises(ValueError, match=message):
        models[architecture].model(**batch, **extra, task=f"{kind}-one")


def test_a_text_to_write_needs_a_beginning(models: dict[str, Learned]) -> None:
    model = models["t5"].model
    for task in ("seq2seq-lm-one", ["seq2seq-lm-one"] * 5):
        with pytest.raises(ValueError, match="neither labels nor decoder_input_ids"):
            model(**make_batch(), task=task)


def test_choices_need_a_dimension_of_their_own(models: dict[str, Learned]) -> None:
    with pytest.raises(ValueError, match=r"input_ids of shape \(5, 12\); expected \(batch, choices, sequence\)"):
        models["bert"].model(**make_batch(), task="multiple-choice-one")


@pytest.mark.parametrize(
    ("architecture", "kind", "message"),
    [
        ("bert", "causal-lm", "it needs a decoder as backbone, and 'bert' is an encoder"),
        ("bert", "seq2seq-lm", "it needs an encoder-decoder as backbone"),
        ("gpt2", "masked-lm", "it needs an encoder as backbone, and 'gpt2' is a decoder"),
        ("t5", "causal-lm", "'t5' is an encoder-decoder"),
    ],
)
def test_a_kind_that_the_backbone_can_not_have_is_refused(architecture: str, kind: str, message: str) -> None:
    with pytest.raises(TaskError, match=message) as error:
        tiny_model(architecture).add_task("task", task_type=kind)
    assert "This model can have [" in str(error.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"task_type": "sorting"}, "task_type='sorting' is unknown"),
        ({"task_type": "question-answering", "labels": ["a", "b"]}, "question-answering has no labels"),
        ({"task_type": "token-classification"}, "has no labels"),
        ({"task_type": "masked-lm", "problem_type": "regression"}, "problem_type='regression' is for sequence"),
        ({"task_type": "feature-extraction", "temperature": 0}, "temperature=0: expected a number > 0"),
        ({"labels": ["a", "b"], "pooling": "middle"}, "pooling='middle' is unknown"),
    ],
)
def test_a_task_that_makes_no_sense_is_refused(options: dict[str, Any], message: str) -> None:
    model = tiny_model()
    with pytest.raises(TaskError, match=message):
        model.add_task("task", **options)
    assert model.add_task("task", labels=["a", "b"]).pooling == "mean"


def broken(kind: str, **columns: Any) -> Any:
    values = {**CASES[kind].data(0, 4).to_dict(), **columns}
    return Dataset.from_dict({name: value for name, value in values.items() if value is not None})


BAD_DATA = [
    ("token-classification", {"labels": None}, "no column 'labels' or 'label'"),
    ("token-classification", {"labels": [[0, 1]] * 4}, r"row 0 of the train_dataset has 2 labels for \d+ tokens"),
    ("token-classification", {"input_ids": [[4, 5]] * 4, "labels": [[0, 3]] * 4}, "has the label 3"),
    ("token-classification", {"input_ids": [[4, 5]] * 4, "labels": [[-100, -100]] * 4}, "has no label but -100"),
    ("token-classification", {"labels": [["O"]] * 4}, r"holds \['O'\]; expected a list of numbers"),
    ("question-answering", {"end_positions": None}, r"no column \['end_positions'\]"),
    ("question-answering", {"end_positions": [0, 0, 0, 99]}, "the answer of row"),
    ("question-answering", {"start_positions": ["a"] * 4}, "expected whole numbers"),
    ("multiple-choice", {"labels": [0, 1, 2, 3]}, "row 3 of the train_dataset has the label 3 for 3 choices"),
    ("multiple-choice", {"input_ids": [[4, 5]] * 4}, "expected lists of sequences"),
    ("masked-lm", {"input_ids": [[4, 500]] * 4}, "has the token 500 in 'input_ids', and the vocabulary has 120"),
    ("causal-lm", {"labels": [1, 2, 3, 4]}, "expected lists of token ids"),
    ("feature-extraction", {"pair_input_ids": None}, "no column 'pair_input_ids'"),
    ("feature-extraction", {"labels": [5.0, 1.0, 0.0, 0.2]}, "expected numbers between -1 and 1"),
]


@pytest.mark.parametrize(("kind", "columns", "message"), BAD_DATA)
def test_data_that_can_not_teach_a_kind_is_explained(
    kind: str, columns: dict[str, Any], message: str, tmp_path: Path
) -> None:
    model = tiny_model(next(name for name, other in PLACES if other == kind))
    model.add_task("task", task_type=kind, **CASES[kind].options)
    with pytest.raises(ValueError, match=message):
        EideticTrainer(model=model, task="task", args=arguments(tmp_path), train_dataset=broken(kind, **columns))


def test_a_language_model_needs_a_tokenizer_or_labels(tmp_path: Path) -> None:
    model = kind_model("gpt2")
    model.add_task("texts", task_type="causal-lm")
    with pytest.raises(ValueError, match="no labels, and no tokenizer to make them with"):
        EideticTrainer(
            model=model, task="texts", args=arguments(tmp_path), train_dataset=CASES["causal-lm"].data(0, 8)
        )


def test_two_kinds_learn_side_by_side_with_plain_classification(tmp_path: Path) -> None:
    model = tiny_model()
    learn(model, "plain", tmp_path)
    model.add_task("tags", task_type="token-classification", labels=TAGS)
    model.begin_task("tags", PruningConfig(keep=0.5))
    assert model(**make_batch()).logits.shape == (5, 12, 3)
    model.abandon_task()
    assert model(**make_batch()).logits.shape == (5, 3)
