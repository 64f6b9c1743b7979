"""transformers' pipelines with tasks of every kind: what is asked for is done, or refused."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from support.backbones import tiny_backbone, tiny_model
from support.kind_cases import as_text, word_tokenizer
from torch import Tensor
from transformers import AutoModelForSequenceClassification, BertForSequenceClassification, pipeline

from eidetic_hf import EideticModel, TaskError
from eidetic_hf.model import auto

TEXT = "w010 w020 w030"
NLI = {"nli": ["contradiction", "neutral", "entailment"], "turned": ["Neutral", "Entailment", "Contradiction"]}


def commit(model: EideticModel, name: str, route_by: int, **options: Any) -> None:
    """Add and commit a task of random weights, which the router knows by texts of one token."""
    model.add_task(name, **options)
    model.begin_task(name)
    torch.manual_seed(route_by)
    with torch.no_grad():
        for parameter in model.heads["learning"].parameters():
            parameter.normal_()
    batch = {"input_ids": torch.randint(route_by, route_by + 3, (16, 6))}
    if options.get("labels"):
        batch["labels"] = torch.zeros(16, dtype=torch.long)
    model.commit_task(router_sums=model.router_sums([batch]))


@pytest.fixture(scope="module")
def model() -> EideticModel:
    model = tiny_model()
    for number, name in enumerate(("one", "two")):
        commit(model, name, 10 + 20 * number, labels=["a", "b", "c"])
        commit(model, f"{name}-tags", 10 + 20 * number, labels=["O", "B-x"], task_type="token-classification")
        commit(model, f"{name}-gaps", 10 + 20 * number, task_type="masked-lm")
        commit(model, f"{name}-texts", 10 + 20 * number, task_type="feature-extraction")
    return model


@pytest.fixture(scope="module")
def folder(model: EideticModel, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = str(tmp_path_factory.mktemp("kinds"))
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def writer() -> EideticModel:
    model = tiny_model("gpt2")
    for number, name in enumerate(("one", "two")):
        commit(model, name, 10 + 20 * number, task_type="causal-lm", own_output_embeddings=True)
    return model


PIPELINES = {
    "text-classification": (auto.EideticModel, ""),
    "token-classification": (auto.EideticForTokenClassification, "-tags"),
    "fill-mask": (auto.EideticForMaskedLM, "-gaps"),
    "feature-extraction": (auto.EideticForFeatureExtraction, "-texts"),
}


@pytest.mark.parametrize("kind", PIPELINES)
def test_a_task_that_is_named_answers_in_a_pipeline(kind: str, folder: str) -> None:
    model_class, suffix = PIPELINES[kind]
    pipe = pipeline(kind, model=model_class.from_pretrained(folder), tokenizer=word_tokenizer())
    text = "w010 w002 w011"
    names = [f"one{suffix}", f"two{suffix}"]
    expected = {}
    for name in names:
        alone = model_class.from_pretrained(folder, tasks=[name])
        expected[name] = pipeline(kind, model=alone, tokenizer=word_tokenizer())(text)
    assert expected[names[0]] != expected[names[1]]
    for name in names:
        found = pipe([text, text], task=name, batch_size=2)
        assert as_bare(found[0]) == as_bare(found[1]) == as_bare(expected[name], kind == "text-classification")
    assert as_bare(pipe(text)) == as_bare(pipe(text, task=names[0]))  # which it is routed to


def as_bare(answer: Any, inner: bool = False) -> Any:
    """An answer with numbers to four digits."""
    if isinstance(answer, dict):
        return {name: as_bare(value) for name, value in answer.items()}
    if isinstance(answer, list):
        return as_bare(answer[0]) if len(answer) == 1 and isinstance(answer[0], dict) else [as_bare(x) for x in answer]
    return str(answer) if isinstance(answer, (str, int)) else round(float(answer), 4)


@pytest.mark.parametrize("kind", PIPELINES)
def test_a_pipeline_ignores_nothing(kind: str, folder: str) -> None:
    model_class, suffix = PIPELINES[kind]
    pipe = pipeline(kind, model=model_class.from_pretrained(folder), tokenizer=word_tokenizer())
    other = "one" if suffix else "one-tags"
    text = "w010 w002 w011"
    with pytest.raises(TaskError, match="There is no task 'no such task'"):
        pipe(text, task="no such task")
    with pytest.raises(
        TaskError, match=f"'{other}' is a task of .* does not show. Load the checkpoint with AutoModel"
    ):
        pipe(text, task=other)
    with pytest.raises(TaskError, match="expected the name of one task"):
        pipe([text], task=[f"one{suffix}"])
    with pytest.raises(TypeError, match=r"got 'tsk', which it does not know. Did you mean 'task'\?"):
        pipe(text, tsk=f"one{suffix}")
    with pytest.raises(TypeError, match="got 'trunction', which it does not know"):
        pipe([text], trunction=True)
    for name in ("tokenizer_kwargs", "tokenize_kwargs"):
        if name.startswith({"fill-mask": "tokenizer", "feature-extraction": "tokenize_"}.get(kind, "none")):
            assert pipe(text, **{name: {"truncation": True}})
            with pytest.raises(TypeError, match=r"got 'trunction', .* Did you mean 'truncation'\?"):
                pipe(text, **{name: {"trunction": True}})


def test_a_task_that_is_named_writes_in_a_pipeline(writer: EideticModel, model: EideticModel) -> None:
    pipe = pipeline("text-generation", model=writer, tokenizer=word_tokenizer())
    given = {"max_new_tokens": 3, "do_sample": False, "return_full_text": False}
    ids = torch.tensor([[10, 11]])
    for name in ("one", "two"):
        written = writer.generate(ids, task=name, max_new_tokens=3, do_sample=False, pad_token_id=0)[0, 2:]
        assert pipe("w010 w011", task=name, **given)[0]["generated_text"].split() == as_text(written.tolist()).split()
    with pytest.raises(TaskError, match="There is no task 'three'"):
        pipe("w010 w011", task="three", **given)
    with pytest.raises(ValueError, match=r"\['tsk'\].* Did you mean 'task'\?"):
        pipe("w010 w011", tsk="one", **given)


def test_pipelines_of_other_models_are_as_they_were() -> None:
    own = BertForSequenceClassification(tiny_backbone().config).eval()
    pipe = pipeline("text-classification", model=own, tokenizer=word_tokenizer())
    assert type(pipe).__mro__[0] is type(pipe) and type(pipe).__module__.startswith("transformers.")
    assert not hasattr(pipe, "_own")
    assert pipe(TEXT, task="anything") == pipe(TEXT)


def test_a_pipeline_can_be_copied_and_pickled(model: EideticModel) -> None:
    pipe = pipeline("text-classification", model=model, tokenizer=word_tokenizer())
    for other in (copy.copy(pipe), pickle.loads(pickle.dumps(pipe))):
        assert type(other) is type(pipe)
        assert other(TEXT, task="two") == pipe(TEXT, task="two")


# -- hypotheses -------------------------------------------------------------------------------------------------------


def judge(*names: str, beside: bool) -> EideticModel:
    """A model with tasks of natural language inference, after another task that the router sends every text to."""
    model = tiny_model()
    if beside:
        commit(model, "topic", 10, labels=["sports", "world"])
    for name in names:
        commit(model, name, 100, labels=NLI[name])
    return model


def entailment(model: EideticModel, name: str, hypotheses: list[str], multi_label: bool) -> list[float]:
    """How much a text entails each hypothesis, worked out by hand."""
    logits: list[Tensor] = []
    for hypothesis in hypotheses:
        ids = word_tokenizer()(TEXT, f"This example is {hypothesis}.", return_tensors="pt")
        logits.append(model(**ids, task=name).logits[0])
    labels = [label.lower() for label in NLI[name]]
    yes, no = labels.index("entailment"), labels.index("contradiction")
    rows = torch.stack(logits)
    return (rows[:, [no, yes]].softmax(1)[:, 1] if multi_label else rows[:, yes].softmax(0)).tolist()


@pytest.mark.parametrize("name", NLI)
@pytest.mark.parametrize("beside", [False, True])
@pytest.mark.parametrize("multi_label", [False, True])
def test_hypotheses_are_ranked_by_entailment(name: str, beside: bool, multi_label: bool, tmp_path: Any) -> None:
    judge(name, beside=beside).save_pretrained(tmp_path)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    pipe = pipeline("zero-shot-classification", model=model, tokenizer=word_tokenizer())
    hypotheses = ["w040", "w050", "w060", "w070"]
    expected = dict(zip(hypotheses, entailment(model, name, hypotheses, multi_label), strict=True))
    found = pipe(TEXT, candidate_labels=hypotheses, multi_label=multi_label)
    assert found["labels"] == sorted(expected, key=lambda label: -expected[label])
    assert dict(zip(found["labels"], found["scores"], strict=True)) == pytest.approx(expected, abs=1e-5)
    batched = pipe([TEXT, TEXT], candidate_labels=hypotheses, multi_label=multi_label, batch_size=3)
    assert [each["labels"] for each in batched] == [found["labels"]] * 2


def test_hypotheses_need_one_task_that_judges() -> None:
    with pytest.raises(
        TaskError, match=r"needs a task that has a label 'entail...'.* there is none among \['topic'\]"
    ):
        pipeline("zero-shot-classification", model=judge(beside=True), tokenizer=word_tokenizer())
    model = judge("nli", "turned", beside=True)
    pipe = pipeline("zero-shot-classification", model=model, tokenizer=word_tokenizer())
    with pytest.raises(TaskError, match=r"\['nli', 'turned'\] can all say .* Pass task='<name>'"):
        pipe(TEXT, candidate_labels=["w040", "w050"])
    with pytest.raises(TaskError, match="'topic' has no label 'entail"):
        pipe(TEXT, candidate_labels=["w040", "w050"], task="topic")
    scores = {name: pipe(TEXT, candidate_labels=["w040", "w050"], task=name)["scores"] for name in NLI}
    assert scores["nli"] != scores["turned"]
    with pytest.raises(TypeError, match=r"got 'multi_lable', .* Did you mean 'multi_label'\?"):
        pipe(TEXT, candidate_labels=["w040"], multi_lable=True)
