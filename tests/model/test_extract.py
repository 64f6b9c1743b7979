"""A task taken out as a plain model: the same answers, on every architecture, without this package."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from support.backbones import ALL_CONFIGS, VOCABULARY, tiny_backbone
from support.command_line import call
from support.kind_cases import CASES, batch_of, main_answer, word_tokenizer
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSeq2SeqLM, PreTrainedModel

from eidetic_hf import EideticModel, PruningConfig, TaskError
from eidetic_hf.kinds import TASK_KINDS
from eidetic_hf.kinds.base import Kind
from eidetic_hf.kinds.sequence_labels import SequenceClassification
from eidetic_hf.model.checkpoint.layout import sha256_of
from eidetic_hf.network.backbone import DECODER, ENCODER, ENCODER_DECODER, family_of
from eidetic_hf.views import View, task_key

WITH_HEAD = {ENCODER: AutoModelForMaskedLM, DECODER: AutoModelForCausalLM, ENCODER_DECODER: AutoModelForSeq2SeqLM}
FAMILIES = {name: family_of(config()) for name, config in ALL_CONFIGS.items()}
LABELS = {"sequence-classification": ["x", "y", "z"], "token-classification": ["O", "B-x", "I-x"]}
# Decoders whose last norm has no bias, so that a classifier's has nowhere to go.
WITHOUT_BIAS = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "phi3")
NO_CHOICES = "there is no AutoModelForMultipleChoice"
NO_QUESTIONS = "there is no AutoModelForQuestionAnswering"
NO_TAGS = "there is no AutoModelForTokenClassification"
ENCODER_ALONE = "UMT5ForTokenClassification reads the states of a UMT5EncoderModel"
# What has no counterpart, and why; docs/extract.md has this table, too. All else has one.
REFUSED = {
    **{name: {"multiple-choice": NO_CHOICES} for name, family in FAMILIES.items() if family == DECODER},
    "opt": {"multiple-choice": NO_CHOICES, "token-classification": NO_TAGS},
    "opt-projected": {"multiple-choice": NO_CHOICES, "token-classification": NO_TAGS},
    "gemma": {"multiple-choice": NO_CHOICES, "question-answering": NO_QUESTIONS},
    "gemma2": {"multiple-choice": NO_CHOICES, "question-answering": NO_QUESTIONS},
    "gemma3_text": {
        "multiple-choice": NO_CHOICES, "question-answering": NO_QUESTIONS, "token-classification": NO_TAGS
    },
    "phi3": {"multiple-choice": NO_CHOICES, "question-answering": NO_QUESTIONS},
    "bart": {"multiple-choice": NO_CHOICES, "token-classification": NO_TAGS},
    "t5": {"multiple-choice": NO_CHOICES, "token-classification": ENCODER_ALONE},
    "t5-gated": {"multiple-choice": NO_CHOICES, "token-classification": ENCODER_ALONE},
}  # fmt: skip


def model_of(architecture: str, trunk_layers: int = 1, growth: str = "fixed", **changes: Any) -> EideticModel:
    """A model on a tiny backbone, with its language-model head."""
    torch.manual_seed(0)
    config = ALL_CONFIGS[architecture]()
    for name, value in changes.items():
        setattr(config, name, value)
    backbone = WITH_HEAD[FAMILIES[architecture]].from_config(config)
    trunk_layers = 0 if architecture == "albert" else trunk_layers
    return EideticModel.from_backbone(backbone, trunk_layers=trunk_layers, growth=growth)


def commit(model: EideticModel, name: str, kind: str = "sequence-classification", **options: Any) -> None:
    """A task that was not learned, but has other weights than the backbone, and reads about half of the units."""
    generator = torch.Generator().manual_seed(len(name))
    given = {"labels": LABELS[kind]} if kind in LABELS else {}
    model.add_task(name, task_type=kind, **{**given, **options})
    model.begin_task(name, PruningConfig(own=0.2) if model.config.growth == "copy" else None)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    for group in model.network.unit_groups():
        for suffix in ("_ancestors", *([""] if model.config.growth == "fixed" else [])):
            kept = group.kept(suffix)
            first = kept.nonzero()[:1].flatten()
            kept &= torch.rand(len(kept), generator=generator) < 0.5
            kept[first] = True
        group.forget_learning_views()
    model.commit_task()


def texts(model: EideticModel, kind: str) -> dict[str, torch.Tensor]:
    """A padded batch of a kind whose texts end as transformers' classifiers of encoder-decoders expect it."""
    batch = batch_of(CASES[kind])
    end = model.config.base_config.eos_token_id
    if model.config.is_encoder_decoder and end is not None and batch["input_ids"].dim() == 2:
        rows = torch.arange(len(batch["input_ids"]))
        batch["input_ids"][rows, batch["attention_mask"].sum(1) - 1] = end
    return batch


def of_real_tokens(answer: torch.Tensor, batch: dict[str, torch.Tensor], kind: str) -> torch.Tensor:
    """An answer without what stands at padding."""
    if kind in ("token-classification", "question-answering", "feature-extraction"):
        return answer[batch["attention_mask"].bool()]
    return answer


@torch.no_grad()
def assert_same_answers(model: EideticModel, name: str, plain: PreTrainedModel) -> None:
    """Hold a plain model against a task, on other texts than those that extracting looked at."""
    kind = model.record(name).task_type
    batch = texts(model, kind)
    ours = model(**batch, task=name)
    if kind == "feature-extraction":  # a decoder is told what to read
        prepared = TASK_KINDS[kind].prepare(batch, model.config.base_config)
        wanted, found = ours.last_hidden_state, plain.eval()(**prepared).last_hidden_state
    else:
        wanted, found = main_answer(ours), main_answer(plain.eval()(**batch))
    wanted, found = (of_real_tokens(answer, batch, kind) for answer in (wanted, found))
    torch.testing.assert_close(found, wanted, atol=1e-5 * max(float(wanted.abs().max()), 1.0), rtol=0)
    assert wanted.std() > 1e-3


def reload(model: EideticModel, name: str, folder: Path, **kwargs: Any) -> PreTrainedModel:
    """Take a task out to a folder, and load it from there with the Auto class of its kind."""
    plain = model.extract_task(name, folder, word_tokenizer(), **kwargs)
    auto_class = TASK_KINDS[model.record(name).task_type].auto_class if kwargs.get("head", True) else "AutoModel"
    loaded, info = getattr(transformers, auto_class).from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    assert type(loaded) is type(plain)
    return loaded


# -- every architecture and kind --------------------------------------------------------------------------------------


@pytest.mark.matrix
@pytest.mark.parametrize(
    "architecture", [pytest.param(name, marks=pytest.mark.xdist_group(name)) for name in ALL_CONFIGS]
)
def test_a_plain_model_answers_as_the_task_does_or_it_is_said_why_there_is_none(
    architecture: str, tmp_path: Path
) -> None:
    model, refused = model_of(architecture), dict(REFUSED.get(architecture, {}))
    for name, kind in TASK_KINDS.items():
        if FAMILIES[architecture] not in kind.families or name not in CASES:
            continue
        options: dict[str, Any] = {}
        if name == "sequence-classification" and architecture in WITHOUT_BIAS:
            options = {"head_bias": False}
        if name == "sequence-classification" and architecture.startswith("t5"):
            options = {"pooling": "last"}
        if name in ("sequence-classification", "multiple-choice") and architecture == "albert":
            options = {"pooling": "first"}
        commit(model, name, name, **options)
        if name in refused:
            with pytest.raises(
                TaskError, match=f"has no counterpart in transformers: {refused.pop(name)}.*head=False"
            ):
                model.extract_task(name, tmp_path / name)
            assert not (tmp_path / name).exists()
            continue
        assert_same_answers(model, name, reload(model, name, tmp_path / name))
    assert refused == {} and model.verify().ok


def test_the_table_in_the_docs_is_what_these_tests_found() -> None:
    page = (Path(__file__).parents[2] / "docs" / "extract.md").read_text(encoding="utf-8")
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines() if line.startswith("| ")]
    columns = [cell.strip("`") for cell in rows[0]]
    table = {
        name.strip("` "): {kind for kind, cell in zip(columns[1:], row[1:], strict=True) if cell.startswith("no")}
        for row in rows[1:]
        for name in row[0].split(",")
    }
    assert set(table) == {ALL_CONFIGS[name]().model_type for name in ALL_CONFIGS}
    for name, config in ALL_CONFIGS.items():
        assert table[config().model_type] == set(REFUSED.get(name, {})), name


@pytest.mark.parametrize("architecture", ["bert", "roberta", "electra", "distilbert", "deberta-v2", "modernbert"])
def test_the_first_token_is_read_without_one_more_layer(architecture: str, tmp_path: Path) -> None:
    model = model_of(architecture)
    for kind in ("sequence-classification", "multiple-choice"):
        commit(model, f"{kind}-first", kind, pooling="first")
        commit(model, f"{kind}-mean", kind)
        plain = {name: model.extract_task(f"{kind}-{name}") for name in ("first", "mean")}
        extra = 0 if architecture == "modernbert" else 1
        assert plain["first"].config.num_hidden_layers == 3
        assert plain["mean"].config.num_hidden_layers == 3 + extra
        for name, each in plain.items():
            assert_same_answers(model, f"{kind}-{name}", each)


@pytest.mark.parametrize("architecture", ["bert", "gpt2", "llama", "t5", "modernbert", "phi3", "deberta-v2"])
def test_copies_and_branches_are_taken_out_alike(architecture: str, tmp_path: Path) -> None:
    model = model_of(architecture, growth="copy")
    options = {"head_bias": False} if architecture in WITHOUT_BIAS else {}
    options |= {"pooling": "last"} if architecture == "t5" else {}
    commit(model, "first", **options)
    commit(model, "branch", based_on="first", **options)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    random = torch.get_rng_state()
    for name in model.tasks:
        assert_same_answers(model, name, reload(model, name, tmp_path / name))
    after = model.state_dict()
    assert list(after) == list(before) and all(torch.equal(after[name], before[name]) for name in before)
    assert torch.equal(torch.get_rng_state(), random) and model.verify().ok


@pytest.mark.parametrize("trunk_layers", [0, 1])
def test_an_architecture_that_is_derived_needs_nothing_more(trunk_layers: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    backbone = AutoModelForCausalLM.from_config(
        transformers.PhiConfig(
            hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, vocab_size=VOCABULARY,
            max_position_embeddings=66, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        )
    )  # fmt: skip
    model = EideticModel.from_backbone(backbone, trunk_layers=trunk_layers, growth="fixed")
    for kind in ("sequence-classification", "token-classification", "causal-lm"):
        commit(model, kind, kind)
        assert_same_answers(model, kind, reload(model, kind, tmp_path / kind))


@pytest.mark.parametrize("pooling", ["first", "mean"])
def test_a_derived_encoder_is_told_how_to_read_a_sequence(pooling: str) -> None:
    torch.manual_seed(0)
    backbone = AutoModelForMaskedLM.from_config(
        transformers.EuroBertConfig(
            hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, intermediate_size=64,
            vocab_size=VOCABULARY, max_position_embeddings=66, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        )
    )  # fmt: skip
    model = EideticModel.from_backbone(backbone, trunk_layers=1, growth="fixed")
    commit(model, "task", pooling=pooling)
    assert_same_answers(model, "task", model.extract_task("task"))


def test_an_ancestor_of_a_task_that_was_loaded_alone_can_be_taken_out_too(tmp_path: Path) -> None:
    model = model_of("bert")
    for name in ("first", "second", "third"):
        commit(model, name)
    model.save_pretrained(tmp_path)
    loaded = EideticModel.from_pretrained(tmp_path, tasks=["second"])
    for name in ("first", "second"):
        assert_same_answers(model, name, loaded.extract_task(name))
    with pytest.raises(TaskError, match="There is no task 'third'"):
        loaded.extract_task("third")


def test_a_model_in_bfloat16_gives_one() -> None:
    model = EideticModel.from_backbone(tiny_backbone("bert").to(torch.bfloat16), trunk_layers=1, growth="fixed")
    commit(model, "task", pooling="first")
    plain, batch = model.extract_task("task"), texts(model, "sequence-classification")
    assert plain.dtype == torch.bfloat16
    with torch.no_grad():
        torch.testing.assert_close(plain(**batch).logits, model(**batch, task="task").logits, atol=3e-2, rtol=3e-2)


# -- what it looks like -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("architecture", "attributes"),
    [
        ("bert", ["intermediate_size"]), ("distilbert", ["hidden_dim"]), ("gpt2", ["n_inner"]),
        ("phi3", ["intermediate_size"]), ("t5", ["d_ff"]), ("bart", ["encoder_ffn_dim", "decoder_ffn_dim"]),
    ],
)  # fmt: skip
def test_where_every_layer_is_the_tasks_what_none_sees_is_left_out(
    architecture: str, attributes: list[str], tmp_path: Path
) -> None:
    narrow, whole = model_of(architecture, trunk_layers=0), model_of(architecture)
    for model in (narrow, whole):
        commit(model, "task", "feature-extraction")
    counts: dict[bool, list[int]] = {True: [], False: []}
    for group in narrow.network.unit_groups():
        counts[group.unit_type == "neurons"].append(group.view("@task").count)
    plain = {name: reload(each, "task", tmp_path / name) for name, each in (("narrow", narrow), ("whole", whole))}
    assert max(getattr(plain["narrow"].config, name) for name in attributes) == max(counts[True]) < 64
    assert getattr(plain["whole"].config, attributes[0]) == 64
    heads = {name: each.config.num_attention_heads for name, each in plain.items()}
    # A key/value head comes with its two query heads; where the width of a head follows from their number, it stays.
    assert heads["narrow"] == {"phi3": 2 * max(counts[False]), "t5": max(counts[False])}.get(architecture, 4)
    assert heads["whole"] == 4
    assert plain["narrow"].num_parameters() < plain["whole"].num_parameters()
    assert_same_answers(narrow, "task", plain["narrow"])


@pytest.mark.parametrize("architecture", ["llama", "phi3", "t5"])
def test_heads_that_were_added_make_all_layers_wider_where_they_are_as_wide_as_the_configuration_says(
    architecture: str,
) -> None:
    model = model_of(architecture)
    model.expand(2)
    model.add_task("wide", task_type="feature-extraction")
    model.begin_task("wide", PruningConfig(keep=1.0))
    model.commit_task()
    plain = model.extract_task("wide")
    assert plain.config.num_attention_heads == {"t5": 6}.get(architecture, 8)
    assert_same_answers(model, "wide", plain)


def test_neurons_that_were_added_make_all_layers_wider_and_heads_can_not_be_more() -> None:
    model = model_of("bert")
    for name in ("a", "b", "c", "d", "e", "f"):
        commit(model, name, pooling="first")
    model.expand(40, [group.name for group in model.network.unit_groups() if group.unit_type == "neurons"])
    model.add_task("wide", labels=["x", "y"], pooling="first")
    model.begin_task("wide")
    model.commit_task()
    assert model.network.groups["layers_1_neurons"].view("@wide").count > 64
    plain = model.extract_task("wide")
    assert plain.config.intermediate_size > 64
    assert_same_answers(model, "wide", plain)
    model.expand(2, ["layers.1.heads"])
    model.add_task("many", labels=["x", "y"], pooling="first")
    model.begin_task("many")
    model.commit_task()
    with pytest.raises(TaskError, match=r"'many' sees \d heads in layers.1.heads, .* a plain 'bert' has 4"):
        model.extract_task("many", head=False)


@pytest.mark.parametrize("architecture", ["bert", "gpt2"])
def test_a_task_keeps_the_vocabulary_of_its_time(architecture: str, tmp_path: Path) -> None:
    model, kind = model_of(architecture), "masked-lm" if architecture == "bert" else "causal-lm"
    commit(model, "early", kind)
    commit(model, "labels", "token-classification")
    model.resize_token_embeddings(VOCABULARY + 5)
    commit(model, "late", kind)
    sizes = {}
    for name in model.tasks:
        plain = reload(model, name, tmp_path / name)
        assert_same_answers(model, name, plain)
        sizes[name] = (plain.config.vocab_size, len(plain.get_input_embeddings().weight))
    assert sizes == {name: (120, 120) for name in ("early", "labels")} | {"late": (125, 125)}
    ids = torch.tensor([[4, 124, 123, 9]])
    with torch.no_grad():
        torch.testing.assert_close(plain(input_ids=ids).logits, model(input_ids=ids, task="late").logits)


def test_a_padding_token_that_a_task_has_never_read_comes_along(tmp_path: Path) -> None:
    model, tokenizer = model_of("gpt2"), word_tokenizer()
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    commit(model, "early", "causal-lm")
    model.resize_token_embeddings(len(tokenizer))
    model.add_task("labels", labels=["x", "y"])
    model.begin_task("labels")
    model.commit_task()
    assert model.network.input_rows.size(View("@labels")) == VOCABULARY
    plain = model.extract_task("labels", tmp_path / "plain", tokenizer).eval()
    assert (plain.config.pad_token_id, plain.config.vocab_size) == (120, 121)
    batch = tokenizer(["w004 w010 w013", "w004 w020 w021 w022"], padding=True, return_tensors="pt")
    batch = {name: batch[name] for name in ("input_ids", "attention_mask")}
    assert (batch["input_ids"] == 120).any()
    with torch.no_grad():
        torch.testing.assert_close(plain(**batch).logits, model(**batch, task="labels").logits, atol=1e-5, rtol=1e-5)
    with pytest.raises(TaskError, match="the padding token is 120, and the task knows 120 tokens"):
        model.extract_task("early", tokenizer=tokenizer)


@pytest.mark.parametrize("architecture", ["bert", "roberta", "gpt2", "llama", "bart", "t5"])
def test_output_embeddings_of_its_own_come_along(architecture: str, tmp_path: Path) -> None:
    kind = {ENCODER: "masked-lm", DECODER: "causal-lm", ENCODER_DECODER: "seq2seq-lm"}[FAMILIES[architecture]]
    model = model_of(architecture)
    commit(model, "own", kind, own_output_embeddings=True)
    if architecture == "t5":  # transformers ties them always
        with pytest.raises(TaskError, match="UMT5ForConditionalGeneration scores tokens by its input embeddings"):
            model.extract_task("own")
        return
    plain = reload(model, "own", tmp_path / "plain")
    assert not plain.config.tie_word_embeddings
    assert_same_answers(model, "own", plain)


def test_labels_and_the_type_of_problem_are_in_the_configuration(tmp_path: Path) -> None:
    model, labels = model_of("bert"), ["World", "Sports", "Business"]
    commit(model, "one", labels=labels)
    commit(model, "many", labels=labels, problem_type="multi_label_classification")
    commit(model, "number", labels=["score"], problem_type="regression")
    commit(model, "tags", "token-classification")
    commit(model, "question", "question-answering")
    configs = {name: reload(model, name, tmp_path / name).config for name in model.tasks}
    assert configs["one"].id2label == {0: "World", 1: "Sports", 2: "Business"}
    assert configs["one"].label2id == {"World": 0, "Sports": 1, "Business": 2}
    assert [configs[name].problem_type for name in ("one", "many", "number")] == [
        "single_label_classification", "multi_label_classification", "regression",
    ]  # fmt: skip
    assert configs["number"].num_labels == 1 and configs["question"].num_labels == 2
    assert configs["tags"].id2label == dict(enumerate(LABELS["token-classification"]))
    assert "eidetic" not in (tmp_path / "one" / "config.json").read_text()
    pipeline = transformers.pipeline("text-classification", model=str(tmp_path / "one"))
    assert pipeline("w010 w020")[0]["label"] in labels


@pytest.mark.parametrize("architecture", ["gpt2", "bart", "t5"])
def test_what_writes_texts_writes_the_same(architecture: str, tmp_path: Path) -> None:
    model = model_of(architecture)
    model.generation_config.max_new_tokens = 6
    model.generation_config.pad_token_id = 0
    kind = "causal-lm" if architecture == "gpt2" else "seq2seq-lm"
    commit(model, "writer", kind)
    plain = reload(model, "writer", tmp_path / "plain")
    assert plain.generation_config.max_new_tokens == 6
    prompt = {"input_ids": torch.tensor([[10, 13, 16, 19]]), "attention_mask": torch.ones(1, 4).long()}
    assert torch.equal(plain.generate(**prompt), model.generate(**prompt, task="writer"))


@pytest.mark.parametrize("architecture", ["bert", "gpt2", "t5", "opt-projected"])
def test_the_backbone_alone_puts_out_the_tasks_hidden_states(architecture: str, tmp_path: Path) -> None:
    model = model_of(architecture)
    commit(model, "task", pooling="mean")
    plain = reload(model, "task", tmp_path / "plain", head=False).eval()
    batch = texts(model, "sequence-classification")
    prepared = TASK_KINDS["sequence-classification"].prepare(batch, model.config.base_config)
    with torch.no_grad():
        wanted = model.network.run(View(task_key("task")), prepared).last_hidden_state
        found = plain(**prepared).last_hidden_state
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
    assert not model.extract_task("task", head=False).training


# -- without this package ---------------------------------------------------------------------------------------------

ALONE = """
import json, sys
sys.modules["eidetic_hf"] = None  # an import of it fails
import torch, transformers
folder, auto_class, output = sys.argv[1:]
model = getattr(transformers, auto_class).from_pretrained(folder).eval()
tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
with torch.no_grad():
    logits = model(**tokenizer(["w004 w010 w013", "w004 w020 w021 w022"], padding=True, return_tensors="pt")).logits
torch.save(logits, output)
print(json.dumps(type(model).__name__))
"""


@pytest.mark.slow
def test_it_loads_and_answers_where_this_package_can_not_be_imported(tmp_path: Path) -> None:
    model = model_of("bert")
    commit(model, "task")
    model.extract_task("task", tmp_path / "plain", word_tokenizer())
    arguments = [str(tmp_path / "plain"), "AutoModelForSequenceClassification", str(tmp_path / "logits.pt")]
    done = subprocess.run(
        [sys.executable, "-c", ALONE, *arguments], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == "BertForSequenceClassification"
    batch = word_tokenizer()(["w004 w010 w013", "w004 w020 w021 w022"], padding=True, return_tensors="pt")
    with torch.no_grad():
        wanted = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], task="task").logits
    torch.testing.assert_close(torch.load(tmp_path / "logits.pt"), wanted, atol=1e-5, rtol=1e-5)


# -- the command line -------------------------------------------------------------------------------------------------


def test_the_command_writes_the_same_with_the_folders_tokenizer(tmp_path: Path) -> None:
    model = model_of("bert")
    commit(model, "mail")
    model.save_pretrained(tmp_path / "model")
    bare = call("extract", tmp_path / "model", "mail", "--output", tmp_path / "bare")
    assert bare.exit_code == 0 and "has no tokenizer" in bare.stdout
    word_tokenizer().save_pretrained(tmp_path / "model")
    result = call("extract", tmp_path / "model", "mail", "--output", tmp_path / "plain")
    assert result.exit_code == 0, result.output
    assert result.stdout == f"BertForSequenceClassification: {tmp_path / 'plain'}\n"
    model.extract_task("mail", tmp_path / "python", word_tokenizer())
    weights = [sha256_of(tmp_path / name / "model.safetensors") for name in ("plain", "python", "bare")]
    assert len(set(weights)) == 1
    assert transformers.AutoTokenizer.from_pretrained(tmp_path / "plain").pad_token == "w000"
    alone = call("extract", tmp_path / "model", "mail", "--no-head", "--output", tmp_path / "alone")
    assert alone.stdout == f"BertModel: {tmp_path / 'alone'}\n"
    again = call("extract", tmp_path / "model", "mail", "--output", tmp_path / "plain")
    assert again.exit_code == 2 and "is a folder with files in it" in again.stderr
    unknown = call("extract", tmp_path / "model", "post", "--output", tmp_path / "other")
    assert unknown.exit_code == 2 and "There is no task 'post'" in unknown.stderr
    assert not (tmp_path / "other").exists()


# -- what can not be --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("architecture", "options", "message"),
    [
        ("bert", {"pooling": "last"}, "BertForSequenceClassification reads a sequence's first token.*'first'"),
        ("gpt2", {}, "find the last token by the padding token, .* Pass tokenizer="),
        ("llama", {"pooling": "first"}, "LlamaForSequenceClassification reads a sequence's last token"),
        ("llama", {}, r"has no bias, nor has the norm before it \(LlamaRMSNorm\).* head_bias=False"),
        ("albert", {}, "AlbertForSequenceClassification reads a sequence's first token.* pooling='first'"),
        ("bert", {"labels": [str(n) for n in range(16)]}, "no room for the mean of 16 labels"),
        ("distilbert", {"labels": [str(n) for n in range(17)], "pooling": "first"}, "no weights let it pass on"),
    ],
)  # fmt: skip
def test_what_a_class_of_transformers_can_not_answer_is_refused_with_the_reason(
    architecture: str, options: dict[str, Any], message: str
) -> None:
    model = model_of(architecture)
    commit(model, "task", **options)
    with pytest.raises(TaskError, match=f"'task' .* has no counterpart in transformers: .*{message}.*head=False"):
        model.extract_task("task")


@pytest.mark.parametrize(("architecture", "labels"), [("bert", 30), ("electra", 30), ("gpt2", 30), ("distilbert", 16)])
def test_many_labels_go_through_a_dense_layer_of_few_features(architecture: str, labels: int) -> None:
    model = model_of(architecture, pad_token_id=0)
    pooling = "last" if architecture == "gpt2" else "first"
    commit(model, "task", labels=[str(n) for n in range(labels)], pooling=pooling)
    assert_same_answers(model, "task", model.extract_task("task"))


def test_a_kind_that_does_not_say_how_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of("bert")
    commit(model, "task")
    monkeypatch.setattr(SequenceClassification, "write_plain_head", Kind.write_plain_head)
    with pytest.raises(TaskError, match=r"sequence-classification does not say how \(Kind.write_plain_head\)"):
        model.extract_task("task")


def test_only_a_committed_task_can_be_taken_out_also_while_another_is_learned(tmp_path: Path) -> None:
    model = model_of("bert")
    commit(model, "task")
    model.add_task("added", labels=["x", "y"])
    model.begin_task("added")
    plain = model.train().extract_task("task")
    assert model.training and not plain.training
    assert_same_answers(model.eval(), "task", plain)
    with pytest.raises(TaskError, match="'added' is not committed yet"):
        model.extract_task("added")
    with pytest.raises(TaskError, match="There is no task 'other'"):
        model.extract_task("other", tmp_path / "plain")
    assert not (tmp_path / "plain").exists()


def test_a_failure_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of("bert")
    commit(model, "task")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    with pytest.raises(TaskError, match="full is a folder with files in it"):
        model.extract_task("task", tmp_path / "full")
    (tmp_path / "empty").mkdir()
    model.extract_task("task", tmp_path / "empty")
    assert (tmp_path / "empty" / "model.safetensors").exists()
    before = sorted(tmp_path.iterdir())

    def fail(self: Any, folder: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(transformers.PreTrainedTokenizerFast, "save_pretrained", fail)
    with pytest.raises(OSError, match="No space left"):
        model.extract_task("task", tmp_path / "plain", word_tokenizer())
    assert sorted(tmp_path.iterdir()) == before


def test_a_wrong_answer_is_never_given(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of("bert")
    commit(model, "task", "token-classification")

    classifier = model.heads["@task"].classifier
    assert_same_answers(model, "task", model.extract_task("task"))
    monkeypatch.setattr(classifier, "forward", lambda hidden: nn.Linear.forward(classifier, hidden) + 1e-3)
    with pytest.raises(
        TaskError, match=r"logits of BertForTokenClassification with the task's weights is off by 0\.001"
    ):
        model.extract_task("task")


def test_a_tokenizer_with_later_tokens_is_pointed_out(caplog: pytest.LogCaptureFixture) -> None:
    model, tokenizer = model_of("bert"), word_tokenizer()
    commit(model, "task")
    tokenizer.add_tokens(["late"])
    transformers.logging.enable_propagation()
    try:
        model.extract_task("task", tokenizer=tokenizer)
    finally:
        transformers.logging.disable_propagation()
    assert "The tokenizer has 121 tokens, and the task 'task' knows the first 120" in caplog.text
