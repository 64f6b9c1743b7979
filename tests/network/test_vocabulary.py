"""A vocabulary that grows: committed tasks keep theirs to the last bit, later ones learn the new tokens."""

from __future__ import annotations

import copy
import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch
from support.backbones import ALL_CONFIGS, VOCABULARY, tiny_model
from support.data import arguments, learn, logits_of, make_batch, make_data
from support.exactness import poison
from support.pretrained import TRUNKS, with_head
from support.writers import GREEDY, WRITERS, learn_to_write, pretrained, prompts, rows_of
from support.writers import learn_added as learn_texts
from torch import Tensor
from torch.nn import functional as F

from eidetic_hf import EideticModel, EideticTrainer, PruningConfig, TaskError
from eidetic_hf.model import life
from eidetic_hf.network.backbone import DECODER, family_of
from eidetic_hf.network.vocabulary import GrownEmbedding, TokenTable
from eidetic_hf.views import LEARNING, View, task_key, use_view

GROWN = VOCABULARY + 6
NEW = torch.tensor([[121, 20, 125, 30, 122, 40, 124, 50]])


def language_model(architecture: str = "gpt2") -> EideticModel:
    """A model with a language model `old` of the backbone's vocabulary."""
    model = EideticModel.from_backbone(pretrained(architecture), trunk_layers=1, growth="fixed")
    learn_to_write(model, "old")
    return model


def new_texts(rows: int = 8) -> Tensor:
    return NEW.repeat(rows, 1)


def answers(model: EideticModel, name: str) -> list[Tensor]:
    """All that a task says of old tokens."""
    batch = prompts(model)
    decoder = {} if family_of(model.backbone.config) == DECODER else {"decoder_input_ids": batch["input_ids"]}
    with torch.no_grad():
        logits = model(**batch, **decoder, task=name).logits
    return [logits, model.generate(**batch, task=name, **GREEDY)]


def same(found: list[Tensor], expected: list[Tensor]) -> bool:
    return all(map(torch.equal, found, expected))


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


# -- old tasks keep their vocabulary, later ones have the larger one --------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("architecture", WRITERS)
def test_old_tasks_do_not_move_when_the_vocabulary_grows_and_a_later_task_learns_it(
    architecture: str, tmp_path: Path
) -> None:
    model = language_model(architecture)
    then = {"old": answers(model, "old")}
    model.save_pretrained(tmp_path)
    shards = {path: digest(path) for path in tmp_path.glob("eidetic-t*.safetensors")}
    assert len(shards) == 2
    embeddings = model.resize_token_embeddings(GROWN)
    assert embeddings is model.get_input_embeddings()
    assert (embeddings.num_embeddings, len(embeddings.weight), model.config.vocab_size) == (GROWN, GROWN, GROWN)
    assert same(answers(model, "old"), then["old"])
    learn_to_write(model, "new", seed=1, texts=new_texts())
    then["new"] = answers(model, "new")
    assert [logits.shape[-1] for logits in (then["old"][0], then["new"][0])] == [VOCABULARY, GROWN]
    model.resize_token_embeddings(GROWN + 2)
    learn_to_write(model, "newest", seed=2, texts=new_texts() + 2)
    then["newest"] = answers(model, "newest")
    model.save_pretrained(tmp_path)
    assert {path: digest(path) for path in shards} == shards
    loaded = EideticModel.from_pretrained(tmp_path)
    assert loaded.verify().ok
    for name, expected in then.items():
        for other in (model, loaded, poison(model, name), EideticModel.from_pretrained(tmp_path, tasks=[name])):
            assert same(answers(other, name), expected), name
    decoder = {} if family_of(model.backbone.config) == DECODER else {"decoder_input_ids": NEW}
    assert torch.equal(model(NEW, **decoder, task="new").logits, loaded(NEW, **decoder, task="new").logits)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["llama", "gpt_neox", "t5"])
def test_later_language_models_of_a_random_backbone_have_output_embeddings_of_their_own(
    architecture: str, tmp_path: Path
) -> None:
    model = EideticModel.from_backbone(ALL_CONFIGS[architecture](), trunk_layers=1, growth="fixed")
    for seed, name in enumerate(("old", "later", "newest")):
        if name == "newest":
            model.resize_token_embeddings(GROWN)
        learn_to_write(model, name, seed=seed, texts=new_texts() if name == "newest" else None)
    owns = {name: model.heads[task_key(name)].embeddings is not None for name in model.tasks}
    assert owns == {"old": False, "later": True, "newest": True}
    own = f"heads.{task_key('later')}.embeddings"
    assert [own in model.task_tensors(name) for name in model.tasks] == [False, True, False]
    is_read = [any(t.startswith("output_embeddings.") for t in model.task_tensors(name)) for name in model.tasks]
    assert is_read == [not model.backbone.config.tie_word_embeddings, False, False]
    then = {name: answers(model, name) for name in model.tasks}
    assert [logits.shape[-1] for logits, _ in then.values()] == [VOCABULARY, VOCABULARY, GROWN]
    model.save_pretrained(tmp_path)
    loaded = EideticModel.from_pretrained(tmp_path)
    assert loaded.verify().ok
    for name, expected in then.items():
        for other in (loaded, poison(model, name), EideticModel.from_pretrained(tmp_path, tasks=[name])):
            assert same(answers(other, name), expected), name
    with torch.no_grad():
        model.state_dict()[own][0] = torch.nan
    assert answers(model, "later")[0][..., 0].isnan().all(), "it is read"


def test_tokens_that_the_first_task_never_saw_can_be_written_by_a_later_one() -> None:
    losses = {}
    for own in (False, None):
        model = EideticModel.from_backbone(ALL_CONFIGS["llama"](), trunk_layers=1, growth="fixed")
        torch.manual_seed(0)
        first, texts = torch.randint(5, 60, (8, 12)), torch.randint(60, VOCABULARY, (8, 12))
        learn_to_write(model, "first", steps=20, texts=first)
        model.add_task("second", task_type="causal-lm", own_output_embeddings=own)
        learn_texts(model, "second", steps=20, keep=0.9, texts=texts)
        losses[own] = model(texts, labels=texts, task="second").loss.item()
    assert losses[None] < 0.8 * losses[False]


def test_output_embeddings_are_the_pretrained_ones_unless_asked() -> None:
    model = language_model("llama")
    model.add_task("tied", task_type="causal-lm")
    model.add_task("own", task_type="causal-lm", own_output_embeddings=True)
    for name in ("tied", "own"):
        model.begin_task(name)
        embeddings = model.heads[LEARNING].embeddings
        assert (embeddings is not None) == (name == "own")
        if name == "own":
            assert torch.equal(embeddings, model.output_embeddings.get("weight")), "it starts where the model's are"
        model.abandon_task()
    with pytest.raises(TaskError, match=r"own_output_embeddings=True is for causal-lm, .*masked-lm, not for question"):
        model.add_task("other", task_type="question-answering", own_output_embeddings=True)


@pytest.mark.parametrize("architecture", ["bert", "roberta", "electra", "albert", "deberta-v2", "modernbert"])
def test_encoders_learn_new_tokens(architecture: str, tmp_path: Path) -> None:
    kind, backbone = with_head(architecture)
    model = EideticModel.from_backbone(backbone, trunk_layers=TRUNKS.get(architecture, 1), growth="fixed")
    batch = make_batch()
    late = {"input_ids": new_texts(2)}
    then: dict[str, Tensor] = {}
    for n, name in enumerate(("old", "gaps", "labels")):
        if n == 1:
            model.resize_token_embeddings(GROWN)
        if name == "labels":
            model.resize_token_embeddings(GROWN + 1)
            late = {"input_ids": new_texts(2) + 1}
            model.add_task(name, labels=["x", "y"])
        else:
            model.add_task(name, task_type=kind)
        model.begin_task(name, PruningConfig(keep=0.5))
        read = batch if n == 0 else late
        labels = torch.tensor([0, 1]) if name == "labels" else read["input_ids"]
        model(**read, labels=labels).loss.backward()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.grad is not None:  # a pool that is empty gets none
                    parameter -= 0.1 * parameter.grad
        model.commit_task()
        then[name] = model(**batch, task=name).logits
    assert [model.record(name).vocab_size for name in then] == [VOCABULARY, GROWN, GROWN + 1]
    model.save_pretrained(tmp_path)
    loaded = EideticModel.from_pretrained(tmp_path)
    for name, expected in then.items():
        for other in (model, loaded, poison(model, name)):
            assert torch.equal(other(**batch, task=name).logits, expected)
    assert torch.equal(loaded(**late, task="labels").logits, model(**late, task="labels").logits)


def test_without_growth_nothing_is_different() -> None:
    model = language_model()
    names = set(model.state_dict())
    assert not any("rows" in name for name in names)
    assert "vocab_size" not in model.config.to_dict()
    assert type(model.get_input_embeddings()).__name__ == "Embedding"
    assert not isinstance(model.get_input_embeddings(), type(grown().get_input_embeddings()))
    assert model.resize_token_embeddings() is model.get_input_embeddings()
    assert model.resize_token_embeddings(VOCABULARY) is model.get_input_embeddings()
    assert set(model.state_dict()) == names


def grown(architecture: str = "gpt2") -> EideticModel:
    """A model with `old`, with six new tokens that belong to nobody yet."""
    model = language_model(architecture)
    model.resize_token_embeddings(GROWN)
    return model


def test_new_tokens_lie_in_the_pool_and_then_with_the_task_that_learned_them(tmp_path: Path) -> None:
    model = grown()
    before = model.input_rows.need("pool").clone()
    mean = model.backbone.wte._buffers["weight"].mean(0)
    torch.testing.assert_close(before, mean.expand(6, 32))
    learn_to_write(model, "new", texts=new_texts())
    own = model.input_rows.need(task_key("new"))
    assert own.shape == (6, 32)
    assert bool((own != before).any(1).all())
    assert model.input_rows.get("pool") is None
    assert "input_rows.@new" in model.task_tensors("new")
    assert not any("rows" in name for name in model.task_tensors("old"))
    assert list(model.parameters()) == []
    model.save_pretrained(tmp_path)
    index = (tmp_path / "model.safetensors.index.json").read_text()
    assert '"input_rows.@new": "eidetic-task-new.safetensors"' in index


def test_rows_drawn_at_random_differ_and_are_kept_by_a_checkpoint(tmp_path: Path) -> None:
    model = language_model()
    model.resize_token_embeddings(GROWN, mean_resizing=False)
    rows = model.input_rows.need("pool")
    assert len(rows.unique(dim=0)) == 6
    model.save_pretrained(tmp_path)
    loaded = EideticModel.from_pretrained(tmp_path)
    assert torch.equal(loaded.input_rows.need("pool"), rows)
    assert loaded.config.vocab_size == GROWN
    assert len(loaded.resize_token_embeddings(pad_to_multiple_of=64).weight) == 128
    assert torch.equal(loaded.input_rows.need("pool")[:6], rows)


def test_output_embeddings_of_their_own_grow_along(tmp_path: Path) -> None:
    model = language_model("gpt_neox")
    assert model.output_embeddings.get("weight") is not None
    model.resize_token_embeddings(GROWN)
    model.add_task("labels", labels=["x", "y"])
    model.begin_task("labels", PruningConfig(keep=0.5))
    assert {name for name, _ in model.named_parameters() if "rows" in name} == {"input_rows.learning"}
    model(new_texts(2), labels=torch.tensor([0, 1])).loss.backward()
    model.commit_task()
    learn_to_write(model, "new", texts=new_texts())
    found = {name: [t for t in model.task_tensors(name) if "rows" in t] for name in model.tasks}
    assert found == {
        "old": [],
        "labels": ["input_rows.@labels"],
        "new": ["input_rows.@labels", "output_rows.@new"],
    }
    late = [model(new_texts(2), task=name).logits for name in ("labels", "new")]
    assert late[1].shape[-1] == GROWN
    model.save_pretrained(tmp_path)
    loaded = EideticModel.from_pretrained(tmp_path, tasks=["new"])
    assert torch.equal(loaded(new_texts(2), task="new").logits, late[1])
    alone = EideticModel.from_pretrained(tmp_path, tasks=["labels"])
    assert torch.equal(alone(new_texts(2), task="labels").logits, late[0])
    assert "new" not in [task.name for task in alone.config.tasks]


@pytest.mark.slow
def test_a_task_that_reads_no_new_token_leaves_them_to_the_next(tmp_path: Path) -> None:
    model = tiny_model()
    learn(model, "first", tmp_path)
    model.resize_token_embeddings(GROWN)
    learn(model, "second", tmp_path, seed=1)
    assert [model.record(name).vocab_size for name in model.tasks] == [None, VOCABULARY]
    assert model.input_rows.count("pool") == 6
    model.add_task("third", labels=["x", "y", "z"])
    data = make_data(3).map(lambda row: {"input_ids": [121, *row["input_ids"][1:]]})
    EideticTrainer(
        model=model,
        task="third",
        args=arguments(tmp_path, weight_decay=0.0),
        pruning=PruningConfig(keep=0.4),
        train_dataset=data,
    ).train()
    assert model.record("third").vocab_size == GROWN
    learn(model, "fourth", tmp_path, seed=4)
    assert model.record("fourth").vocab_size == GROWN
    assert model.verify().ok
    batch = {"input_ids": torch.tensor([[121, 5, 6, 7]]), "attention_mask": torch.ones(1, 4)}
    assert logits_of(model, "fourth", batch).shape == (1, 3)
    assert torch.equal(logits_of(model, "third", batch), logits_of(poison(model, "third"), "third", batch))


def test_a_task_without_ancestors_reads_the_tokens_of_earlier_tasks_too(tmp_path: Path) -> None:
    model = grown()
    learn_to_write(model, "new", texts=new_texts())
    model.add_task("alone", task_type="causal-lm", forward_transfer="none")
    model.begin_task("alone", PruningConfig(keep=0.5))
    model.commit_task()
    expected = model(NEW, task="alone").logits
    assert {name for name in model.task_tensors("alone") if "@new" in name} == {"input_rows.@new"}
    assert torch.equal(poison(model, "alone")(NEW, task="alone").logits, expected)
    model.save_pretrained(tmp_path)
    loaded = EideticModel.from_pretrained(tmp_path, tasks=["alone"])
    assert [task.name for task in loaded.config.tasks] == ["old", "new", "alone"]
    assert loaded.tasks == ["alone"]
    assert torch.equal(loaded(NEW, task="alone").logits, expected)


def test_a_dropped_task_and_a_failed_commit_leave_the_tokens_in_the_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    model = grown()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    def unchanged() -> bool:
        after = model.state_dict()
        return list(after) == list(before) and all(torch.equal(after[name], before[name]) for name in before)

    model.add_task("new", task_type="causal-lm")
    model.begin_task("new")
    with torch.no_grad():
        model.input_rows.need("learning").fill_(3)
    model.abandon_task()
    assert unchanged()
    model.begin_task("new")
    monkeypatch.setattr(life, "certify", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        model.commit_task()
    model.abandon_task()
    assert unchanged()
    monkeypatch.undo()
    learn_added(model)
    assert model.record("new").vocab_size == GROWN


def learn_added(model: EideticModel) -> None:
    model.begin_task("new")
    model.commit_task()
    assert model.verify().ok


def test_pretrained_biases_of_the_head_start_at_zero_for_new_tokens() -> None:
    kind, backbone = with_head("bart")
    model = EideticModel.from_backbone(backbone, trunk_layers=1, growth="fixed")
    bias = model.language_head["pool"].bias
    assert float(bias.abs().sum()) > 0
    model.resize_token_embeddings(GROWN)
    model.add_task("new", task_type=kind)
    model.begin_task("new")
    assert torch.equal(model.heads[LEARNING].bias, torch.cat([bias, torch.zeros(6)]))


def test_the_trunk_of_a_random_backbone_grows_itself_before_the_first_task(tmp_path: Path) -> None:
    model = EideticModel.from_backbone(ALL_CONFIGS["gpt_neox"](), trunk_layers=1, growth="fixed")
    model.resize_token_embeddings(GROWN)
    assert not any("rows" in name for name in model.state_dict())
    learn_to_write(model, "first", texts=new_texts())
    assert model(NEW, task="first").logits.shape == (1, 8, GROWN)
    model.resize_token_embeddings(GROWN + 4)
    learn_to_write(model, "second", texts=new_texts() + 4)
    model.save_pretrained(tmp_path)
    loaded = EideticModel.from_pretrained(tmp_path)
    assert (loaded.config.base_config.vocab_size, loaded.config.vocab_size) == (GROWN, GROWN + 4)
    for name in model.tasks:
        assert torch.equal(loaded(NEW, task=name).logits, model(NEW, task=name).logits)


def test_a_release_without_the_pool_keeps_the_tokens_of_its_tasks_only(tmp_path: Path) -> None:
    model = grown()
    learn_to_write(model, "new", texts=new_texts())
    model.resize_token_embeddings(GROWN + 10)
    model.save_pretrained(tmp_path, include_pool=False)
    loaded = EideticModel.from_pretrained(tmp_path)
    assert (loaded.config.vocab_size, loaded.input_rows.total) == (GROWN, GROWN)
    assert torch.equal(loaded(NEW, task="new").logits, model(NEW, task="new").logits)


def test_copies_moves_and_dtypes_keep_the_rows_in_one_piece(tmp_path: Path) -> None:
    model = grown()
    learn_to_write(model, "new", texts=new_texts())
    expected = model(NEW, task="new").logits
    other = copy.deepcopy(model)
    assert other.input_rows.is_packed()
    assert other.input_rows.need("@new").data_ptr() != model.input_rows.need("@new").data_ptr()
    assert torch.equal(other(NEW, task="new").logits, expected)
    other.to(torch.float64)
    assert other.input_rows.is_packed()
    torch.testing.assert_close(other(NEW, task="new").logits.float(), expected, rtol=1e-4, atol=1e-4)
    model.save_pretrained(tmp_path)
    half = EideticModel.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert half(NEW, task="new").logits.dtype == torch.bfloat16


@pytest.mark.slow
def test_learning_new_tokens_can_be_resumed(tmp_path: Path) -> None:
    def trainer(steps: int) -> EideticTrainer:
        model = tiny_model()
        model.resize_token_embeddings(GROWN)
        model.add_task("labels", labels=["x", "y", "z"])
        data = make_data(3).map(lambda row: {"input_ids": [121, *row["input_ids"][1:]]})
        return EideticTrainer(
            model=model,
            task="labels",
            args=arguments(tmp_path / "run", save_strategy="steps", save_steps=4, max_steps=12, seed=1),
            pruning=PruningConfig(keep=0.4),
            train_dataset=data,
        )

    whole = trainer(12)
    whole.train()
    resumed = trainer(12)
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-8"))
    assert resumed.model.record("labels").vocab_size == GROWN
    assert torch.equal(resumed.model.input_rows.need("@labels"), whole.model.input_rows.need("@labels"))


@pytest.mark.parametrize("architecture", ["bert", "gpt2", "gemma", "gemma3_text", "t5", "bart"])
def test_new_tokens_are_looked_up_apart_with_the_bits_and_gradients_of_a_joined_table(architecture: str) -> None:
    model = tiny_model(architecture)
    model.resize_token_embeddings(GROWN)
    model.add_task("new", labels=["x", "y"])
    model.begin_task("new")
    rows, ids = model.input_rows.need(LEARNING), torch.tensor([[0, 5, 120, 125], [121, 119, 120, 1]])
    with torch.no_grad():
        rows.normal_()
    weights = torch.randn(2, 4, rows.shape[1])
    readers = [module for module in model.backbone.modules() if isinstance(module, GrownEmbedding)]
    assert len(readers) == (3 if architecture in ("t5", "bart") else 1), "an encoder's, a decoder's and the shared one"
    for embedding in readers:
        joined = model.input_rows.seen(View(LEARNING))
        expected = F.embedding(ids, joined, embedding.padding_idx) * getattr(embedding, "embed_scale", 1.0)
        with use_view(View(LEARNING)):
            found = embedding(ids)
        gradients = [torch.autograd.grad((output * weights).sum(), rows)[0] for output in (expected, found)]
        assert torch.equal(found, expected)
        assert torch.equal(*gradients)
        assert gradients[0].any(1).tolist() == [True, True, False, False, False, True], "the row 0 is no padding"


@pytest.mark.parametrize("architecture", ["bert", "gpt2", "gemma", "t5", "gpt_neox"])
def test_no_table_is_joined_while_new_tokens_are_learned(architecture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = EideticModel.from_backbone(
        with_head(architecture)[1] if architecture == "bert" else pretrained(architecture), growth="fixed"
    )
    model.resize_token_embeddings(GROWN)
    kind = {"bert": "masked-lm", "t5": "seq2seq-lm"}.get(architecture, "causal-lm")
    model.add_task("new", task_type=kind)
    model.begin_task("new")
    table = model.network.tables()[-1].table(View(LEARNING))
    assert [len(part) for part in table.parts] == [VOCABULARY, GROWN - VOCABULARY]

    def joined(self: TokenTable) -> Tensor:
        assert len(self.parts) == 1
        return self.parts[0]

    monkeypatch.setattr(TokenTable, "joined", joined)
    answer = model(new_texts(2), labels=new_texts(2))
    assert answer.logits.shape[-1] == GROWN
    answer.loss.backward()
    learned = {name: tensor for name, tensor in model.named_parameters() if "rows" in name}
    assert set(learned) == {f"{name}_rows.learning" for name in (("input", "output")[: len(model.network.tables())])}
    assert all(bool(tensor.grad.any(1).all()) for name, tensor in learned.items() if name == list(learned)[-1])


def test_scores_side_by_side_are_those_of_the_joined_table() -> None:
    torch.manual_seed(0)
    table = TokenTable((torch.randn(50, 32), torch.randn(7, 32)))
    hidden, bias = torch.randn(3, 4, 32), torch.randn(57)
    for own in (None, bias):
        scores = table.score(hidden, own)
        torch.testing.assert_close(scores, F.linear(hidden, table.joined(), own), rtol=1e-5, atol=1e-5)
        assert torch.equal(scores[..., :50], F.linear(hidden, table.parts[0], None if own is None else own[:50]))
    assert len(table) == 57 and [len(part) for part in table.first(57).parts] == [50, 7]
    assert [[len(part) for part in table.first(n).parts] for n in (52, 50, 3)] == [[50, 2], [50], [3]]
    one = TokenTable((table.joined(),))
    assert one.joined() is one.parts[0]
    assert torch.equal(one.score(hidden, bias), F.linear(hidden, one.parts[0], bias))


# -- what a batch may read --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def both() -> EideticModel:
    """A GPT-2 with `old`, of 120 tokens, and `new`, of 126; and two tokens more that are nobody's."""
    model = grown()
    learn_to_write(model, "new", seed=1, texts=new_texts())
    model.resize_token_embeddings(GROWN + 2)
    return model


def test_a_token_that_a_task_does_not_know_is_an_error(both: EideticModel) -> None:
    message = r"input_ids holds the token 125, and the task 'old' knows 120 tokens, 0 to 119. The vocabulary has 128"
    with pytest.raises(ValueError, match=message):
        both(NEW, task="old")
    with pytest.raises(ValueError, match=message):
        both.generate(NEW, task="old", **GREEDY)
    with pytest.raises(ValueError, match="token 125, and the task 'old' knows 120"):
        both(NEW.repeat(2, 1), task=["new", "old"])
    with pytest.raises(ValueError, match="token 127, and the task 'new' knows 126 tokens"):
        both(torch.tensor([[5, 127]]), task="new")
    with pytest.raises(ValueError, match=r"the model knows 128 tokens, 0 to 127\. Grow the vocabulary first"):
        both.route(torch.tensor([[5, 128]]))
    model = grown("t5")
    for arguments_ in ({"decoder_input_ids": NEW}, {"input_ids": NEW, "decoder_input_ids": NEW[:, :1] * 0}):
        with pytest.raises(ValueError, match="the token 125, and the task 'old' knows 120"):
            model(**{"input_ids": NEW * 0 + 5, **arguments_}, task="old")
    with pytest.raises(ValueError, match="input_ids holds the token 125, and the task 'old' knows 120"):
        model.generate(NEW, task="old", **GREEDY)


def test_scores_of_what_an_old_task_wrote_are_what_they_were() -> None:
    model = language_model()
    asked = {"return_dict_in_generate": True, "output_scores": True, "num_beams": 2, "max_new_tokens": 5}

    def scores() -> Tensor:
        out = model.generate(**prompts(model), task="old", **asked)
        return model.compute_transition_scores(out.sequences, out.scores, out.beam_indices, normalize_logits=False)

    before = scores()
    model.resize_token_embeddings(GROWN)
    assert torch.equal(scores(), before)


def test_new_tokens_are_routed_to_a_task_that_knows_them(both: EideticModel) -> None:
    scores = both.route(**prompts(both)).router_scores
    known = both.route(NEW)
    assert known.tasks == ["new"]
    assert known.router_scores.tolist() == [[0.0, 1.0]]
    one_late = make_batch(0)["input_ids"]  # texts of the old task, but for one token
    assert "old" in both.route(one_late).tasks
    one_late[:, 3] = 121
    assert set(both.route(one_late).tasks) == {"new"}
    mixed = {name: torch.cat([value, value]) for name, value in prompts(both).items()}
    mixed["input_ids"][:4, -1] = 121
    routed = both(**mixed)
    assert routed.tasks[:4] == ["new"] * 4
    torch.testing.assert_close(both.route(**prompts(both)).router_scores, scores, rtol=0, atol=0)
    assert routed.logits.shape[-1] == GROWN
    for row, name in enumerate(routed.tasks):
        if name == "old":
            assert bool((routed.logits[row, :, VOCABULARY:] == -torch.inf).all())
    with pytest.raises(ValueError, match=r"The sequence 1 holds the token 127, which no task knows: \['old', 'new'\]"):
        both(torch.tensor([[5, 6], [5, 127]]))
    written = both.generate(**mixed, return_dict_in_generate=True, **GREEDY)
    assert written.tasks == routed.tasks


@pytest.mark.parametrize("rows", [3, 12])
def test_mixed_batches_with_new_tokens_are_each_tasks_own(both: EideticModel, rows: int) -> None:
    batch = prompts(both, rows=rows)
    names = [("old", "new", "new")[row % 3] for row in range(rows)]
    batch["input_ids"][1::3, -2] = 122
    mixed = both(**batch, task=names)
    for name in ("old", "new"):
        own = [row for row, other in enumerate(names) if other == name]
        expected = both(**rows_of(batch, own), task=name).logits
        assert torch.equal(mixed.logits[own][..., : expected.shape[-1]], expected)


def test_a_new_padding_token_may_stand_where_nothing_counts(both: EideticModel) -> None:
    batch = prompts(both)
    padded = {**batch, "input_ids": batch["input_ids"].masked_fill(batch["attention_mask"] == 0, 127)}
    for name in both.tasks:
        assert torch.equal(both(**padded, task=name).logits, both(**batch, task=name).logits)
        written = both.generate(**padded, task=name, pad_token_id=127, **GREEDY)
        assert torch.equal(written[:, 8:], both.generate(**batch, task=name, **GREEDY)[:, 8:])
        assert torch.equal(written[:, :8], padded["input_ids"])
        end = int(written[0, 8])
        ended = both.generate(**padded, task=name, pad_token_id=127, eos_token_id=end, **GREEDY)
        plain = both.generate(**padded, task=name, pad_token_id=127, eos_token_id=end, use_cache=False, **GREEDY)
        assert torch.equal(ended, plain)
        assert ended.shape[1] == 9 or bool((ended[0, 9:] == 127).all())
    assert torch.equal(both.route(**padded).router_scores, both.route(**batch).router_scores)
    mixed, names = both(**padded, task=["old", "new"] * 2), ["old", "new"] * 2
    assert torch.equal(mixed.logits[::2, :, :VOCABULARY], both(**rows_of(batch, [0, 2]), task=names[0]).logits)
    spoiled = poison(both, "old")
    assert torch.equal(spoiled(**padded, task="old").logits, both(**batch, task="old").logits)


# -- bad input --------------------------------------------------------------------------------------------------------


def test_what_can_not_be_grown_says_why(both: EideticModel, tmp_path: Path) -> None:
    model = copy.deepcopy(both)
    with pytest.raises(ValueError, match=r"new_num_tokens=100: the vocabulary has 128 tokens, and it can only grow"):
        model.resize_token_embeddings(100)
    wrong: list[dict[str, Any]] = [
        {"new_num_tokens": 0},
        {"new_num_tokens": 130.0},
        {"new_num_tokens": 130, "pad_to_multiple_of": 0},
    ]
    for case in wrong:
        with pytest.raises(ValueError, match="expected a whole number above 0"):
            model.resize_token_embeddings(**case)
    model.add_task("next", task_type="causal-lm")
    model.begin_task("next")
    with pytest.raises(TaskError, match="'next' is being learned; grow the vocabulary before a task begins"):
        model.resize_token_embeddings(140)
    model.abandon_task()
    model.save_pretrained(tmp_path)
    loaded = EideticModel.from_pretrained(tmp_path, tasks=["old"])
    assert "vocab_size" not in loaded.config.to_dict()
    with pytest.raises(TaskError, match=r"no pool, so new tokens would belong to nobody"):
        loaded.resize_token_embeddings(140)
