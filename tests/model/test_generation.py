"""Writing with every architecture that can: with and without a cache, of one task and of several, before and after."""

from __future__ import annotations

import copy
import functools
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.backbones import ALL_CONFIGS, VOCABULARY, tiny_backbone
from support.data import make_batch
from support.exactness import poison
from support.writers import GREEDY, WRITERS, learn_added, learn_to_write, pretrained, prompts, rows_of
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
    StoppingCriteria,
    pipeline,
)
from transformers.generation.streamers import BaseStreamer

from eidetic_hf import EideticModel, PruningConfig, TaskError
from eidetic_hf.model.generation import RoutedGeneration
from eidetic_hf.network.backbone import DECODER, family_of


@functools.cache
def _writer(architecture: str) -> EideticModel:
    model = EideticModel.from_backbone(pretrained(architecture), trunk_layers=1, growth="fixed")
    for seed, name in enumerate(("first", "second")):
        learn_to_write(model, name, seed)
    return model


def writer(architecture: str = "gpt2") -> EideticModel:
    """A model that has learned to write `first` and `second`. Shared: copy it before you change it."""
    return _writer(architecture)


def assert_equal_to_rounding(found: Tensor, expected: Tensor) -> None:
    assert float((found - expected).abs().max()) < 1e-5 * float(expected.abs().max())


# -- every architecture -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", WRITERS)
def test_a_cache_changes_no_token_and_logits_by_rounding_only(architecture: str) -> None:
    model = writer(architecture)
    batch, asked = prompts(model), {**GREEDY, "return_dict_in_generate": True, "output_logits": True}
    for name in model.tasks:
        plain = model.generate(**batch, task=name, use_cache=False, **asked)
        for how in ({"use_cache": True}, {"cache_implementation": "static"}):
            cached = model.generate(**batch, task=name, **how, **asked)
            assert torch.equal(cached.sequences, plain.sequences)
            assert len(cached.logits) == len(plain.logits)
            for found, expected in zip(cached.logits, plain.logits, strict=True):
                assert_equal_to_rounding(found, expected)


@pytest.mark.parametrize("architecture", WRITERS)
def test_a_task_that_keeps_everything_writes_what_the_pretrained_model_writes(architecture: str) -> None:
    plain = pretrained(architecture)
    model = EideticModel.from_backbone(copy.deepcopy(plain), trunk_layers=1, growth="fixed")
    learn_to_write(model, "all", steps=0, keep=1.0)
    batch, asked = prompts(model), {"return_dict_in_generate": True, "output_logits": True, "max_new_tokens": 7}
    for how in ({"do_sample": False}, {"num_beams": 3, "num_return_sequences": 2}):
        expected, found = plain.generate(**batch, **how, **asked), model.generate(**batch, task="all", **how, **asked)
        assert torch.equal(found.sequences, expected.sequences)
        for own, other in zip(found.logits, expected.logits, strict=True):
            assert_equal_to_rounding(own, other)


@pytest.mark.parametrize("architecture", WRITERS)
def test_rows_of_a_batch_of_several_tasks_are_each_tasks_own_call(architecture: str) -> None:
    model = writer(architecture)
    batch = prompts(model, rows=5)
    names = ["second", "first", "second", "second", "first"]
    mixed = model.generate(**batch, task=names, **GREEDY)
    for name in model.tasks:
        rows = [row for row, other in enumerate(names) if other == name]
        assert torch.equal(mixed[rows], model.generate(**rows_of(batch, rows), task=name, **GREEDY))


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "gemma3_text", "t5", "bart"])
def test_what_a_task_writes_never_changes(architecture: str, tmp_path: Path) -> None:
    model = EideticModel.from_backbone(pretrained(architecture), trunk_layers=1, growth="fixed")
    batch = prompts(model)
    labels = {} if family_of(model.backbone.config) == DECODER else {"decoder_input_ids": batch["input_ids"]}

    def answers(model: EideticModel, name: str) -> list[Tensor]:
        beams = model.generate(**batch, task=name, num_beams=2, max_new_tokens=5)
        return [model.generate(**batch, task=name, **GREEDY), beams, model(**batch, **labels, task=name).logits]

    then: dict[str, list[Tensor]] = {}
    for seed, name in enumerate(("first", "second", "third")):
        learn_to_write(model, name, seed)
        then[name] = answers(model, name)
    model.save_pretrained(tmp_path)
    loaded = EideticModel.from_pretrained(tmp_path)
    assert not torch.equal(then["first"][0], then["second"][0])
    for name, expected in then.items():
        for other in (model, loaded, poison(model, name)):
            assert all(map(torch.equal, answers(other, name), expected)), name


@pytest.mark.parametrize("architecture", ["gpt2", "opt", "llama", "mistral"])
def test_padding_before_a_prompt_changes_no_token(architecture: str) -> None:
    model = writer(architecture)
    batch = prompts(model)
    together = model.generate(**batch, task="first", **GREEDY)
    for row, mask in enumerate(batch["attention_mask"]):
        alone = model.generate(batch["input_ids"][row : row + 1, mask.bool()], task="first", **GREEDY)
        assert torch.equal(together[row, -7:], alone[0, -7:])


def test_gradient_checkpointing_and_training_mode_do_not_disturb_the_cache() -> None:
    model = copy.deepcopy(writer())
    batch = prompts(model)
    expected = model.generate(**batch, task="first", **GREEDY)
    model.gradient_checkpointing_enable()
    model.train()
    assert torch.equal(model.generate(**batch, task="first", **GREEDY), expected)
    assert model.training
    model.add_task("third", task_type="causal-lm")
    model.begin_task("third")
    model.train()
    loss = model(**batch, labels=batch["input_ids"], use_cache=True).loss
    loss.backward()
    assert sum(parameter.grad is not None for parameter in model.parameters()) > 10
    own = model.generate(**batch, **GREEDY)  # the task being learned writes, where none is named
    assert torch.equal(own, model.generate(**batch, task="third", use_cache=False, **GREEDY))


# -- transformers' options --------------------------------------------------------------------------------------------


class Collected(BaseStreamer):
    """Keeps the tokens that it is given."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.ended = False

    def put(self, value: Tensor) -> None:
        self.tokens += value.flatten().tolist()

    def end(self) -> None:
        self.ended = True


class After(StoppingCriteria):
    """Stops after so many tokens."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        return torch.full((len(input_ids),), input_ids.shape[1] >= self.length)


@pytest.mark.parametrize("architecture", ["gpt2", "t5"])
def test_options_of_transformers_work_as_they_do_there(architecture: str) -> None:
    model = writer(architecture)
    one = {"input_ids": make_batch(5)["input_ids"][:1, :5]}
    greedy = model.generate(**one, task="first", **GREEDY)
    start = greedy.shape[1] - 7
    streamer = Collected()
    assert torch.equal(model.generate(**one, task="first", streamer=streamer, **GREEDY), greedy)
    assert (streamer.tokens, streamer.ended) == (greedy[0].tolist(), True)
    stopped = model.generate(**one, task="first", stopping_criteria=[After(start + 3)], **GREEDY)
    assert torch.equal(stopped, greedy[:, : start + 3])
    config = GenerationConfig(max_new_tokens=4, do_sample=False)
    assert torch.equal(model.generate(one["input_ids"], config, task="first"), greedy[:, : start + 4])
    torch.manual_seed(0)
    sampled = model.generate(**one, task="first", do_sample=True, num_return_sequences=3, max_new_tokens=7)
    assert sampled.shape == (3, start + 7)
    assert len({tuple(row.tolist()) for row in sampled}) > 1
    guessed = model.generate(**one, task="first", prompt_lookup_num_tokens=2, **GREEDY)
    assert torch.equal(guessed, greedy)
    dictionary = model.generate(**one, task="first", return_dict_in_generate=True, output_scores=True, **GREEDY)
    assert torch.equal(dictionary.sequences, greedy)
    assert len(dictionary.scores) == 7
    assert "tasks" not in dictionary
    end = int(greedy[0, start + 1])
    ended = model.generate(**one, task="first", eos_token_id=end, **GREEDY)
    assert torch.equal(ended, greedy[:, : start + 1 + greedy[0, start:].tolist().index(end)][:, : ended.shape[1]])
    assert ended[0, -1] == end


def test_a_cache_can_be_given_and_is_returned() -> None:
    model = writer()
    ids = make_batch(rows=1)["input_ids"][:, :6]
    whole = model.generate(ids, task="first", **GREEDY)
    first = model.generate(ids, task="first", max_new_tokens=3, do_sample=False, return_dict_in_generate=True)
    name = "cache" if "cache" in first else "past_key_values"
    rest = model.generate(first.sequences, task="first", max_new_tokens=4, do_sample=False, **{name: first[name]})
    assert torch.equal(rest, whole)
    answer = model(ids, task="first", use_cache=True)
    step = model(whole[:, 6:7], task="first", past_key_values=answer[name])
    expected = model(whole[:, :7], task="first").logits[:, -1:]
    torch.testing.assert_close(step.logits, expected, rtol=1e-4, atol=1e-4)
    assert model(ids, task="first").get(name) is None


def test_the_vocabulary_is_scored_for_the_tokens_that_are_asked_for() -> None:
    model, batch = writer(), make_batch()
    whole = model(**batch, task="first").logits
    assert whole.shape == (5, 12, VOCABULARY)
    torch.testing.assert_close(model(**batch, task="first", logits_to_keep=2).logits, whole[:, -2:])
    places = torch.tensor([0, 5])
    torch.testing.assert_close(model(**batch, task="first", logits_to_keep=places).logits, whole[:, places])


@pytest.mark.parametrize("assistant", ["transformers", "eidetic"])
def test_another_model_can_assist(assistant: str) -> None:
    model = writer()
    other = pretrained("gpt2") if assistant == "transformers" else copy.deepcopy(model)
    ids = make_batch(rows=1)["input_ids"][:, :6]
    expected = model.generate(ids, task="first", **GREEDY)
    assert torch.equal(model.generate(ids, task="first", assistant_model=other, **GREEDY), expected)


def test_encoder_outputs_stand_in_for_the_text() -> None:
    model = writer("t5")
    batch = prompts(model)
    expected = model.generate(**batch, task="first", **GREEDY)
    answer = model(**batch, decoder_input_ids=torch.zeros(4, 1, dtype=torch.long), task="first")
    encoded = type(answer)(encoder_last_hidden_state=answer.encoder_last_hidden_state)
    encoded = {"encoder_outputs": (encoded.encoder_last_hidden_state,)}
    again = model(**encoded, attention_mask=batch["attention_mask"], decoder_input_ids=expected, task="first")
    assert torch.equal(again.logits[:, :-1].argmax(-1), expected[:, 1:])
    with pytest.raises(ValueError, match="encoder_outputs with several tasks in a batch"):
        model(**batch, **encoded, decoder_input_ids=expected, task=["first", "second", "first", "first"])


def test_embeddings_stand_in_for_what_the_decoder_reads() -> None:
    model = writer("t5")
    batch, ids = prompts(model), torch.arange(12).reshape(4, 3)
    embeds = model.get_input_embeddings()(ids)
    for task in ("first", ["first", "second", "first", "second"]):
        expected = model(**batch, decoder_input_ids=ids, task=task).logits
        assert torch.equal(model(**batch, decoder_inputs_embeds=embeds, task=task).logits, expected)


def test_inputs_for_the_next_token_can_be_prepared_outside_of_generate() -> None:
    model = writer()
    ids = make_batch(rows=2)["input_ids"]
    prepared = model.prepare_inputs_for_generation(input_ids=ids, custom="kept")
    assert torch.equal(prepared["input_ids"], ids) and prepared["custom"] == "kept"
    assert "task" not in prepared


def test_two_threads_write_two_tasks() -> None:
    model = writer("llama")
    batch = prompts(model)
    expected = {name: model.generate(**batch, task=name, **GREEDY) for name in model.tasks}
    wrong: list[str] = []

    def write(name: str) -> None:
        for _ in range(5):
            if not torch.equal(model.generate(**batch, task=name, **GREEDY), expected[name]):
                wrong.append(name)

    threads = [threading.Thread(target=write, args=(name,)) for name in model.tasks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


# -- several tasks ----------------------------------------------------------------------------------------------------


def test_texts_of_different_lengths_are_filled_up_and_stay_in_order() -> None:
    model = writer()
    batch = prompts(model)
    names = ["first", "second", "second", "first"]
    own = model.generate(**rows_of(batch, [1, 2]), task="second", **GREEDY)
    ends = own[:, 8:].unique().tolist()  # the second task stops at once, wherever it would begin
    mixed = model.generate(**batch, task=names, eos_token_id=ends, pad_token_id=0, **GREEDY)
    alone = {
        name: model.generate(**rows_of(batch, rows), task=name, eos_token_id=ends, pad_token_id=0, **GREEDY)
        for name, rows in (("first", [0, 3]), ("second", [1, 2]))
    }
    assert alone["second"].shape[1] == 9 < alone["first"].shape[1] == mixed.shape[1]
    assert torch.equal(mixed[[1, 2], :9], alone["second"])
    assert bool((mixed[[1, 2], 9:] == 0).all())
    assert torch.equal(mixed[[0, 3]], alone["first"])


def test_several_sequences_per_prompt_stay_with_their_prompt() -> None:
    model = writer()
    batch = prompts(model)
    beams = {"num_beams": 2, "num_return_sequences": 2, "max_new_tokens": 4, "return_dict_in_generate": True}
    mixed = model.generate(**batch, task=["first", "second", "second", "first"], **beams)
    assert isinstance(mixed, RoutedGeneration)
    assert mixed.tasks == ["first", "second", "second", "first"]
    assert mixed.sequences.shape == (8, 12)
    second = model.generate(**rows_of(batch, [1, 2]), task="second", **beams)
    assert torch.equal(mixed.sequences[2:6], second.sequences)


def test_allowed_tokens_are_asked_for_by_the_number_of_the_prompt() -> None:
    model = writer()
    batch = prompts(model)
    written = model.generate(
        **batch,
        task=["first", "second", "second", "first"],
        prefix_allowed_tokens_fn=lambda row, ids: [10 + row],
        **GREEDY,
    )
    assert written[:, 8:].tolist() == [[10 + row] * 7 for row in range(4)]


def styled(style: int, rows: int = 16, seed: int = 0) -> Tensor:
    """Texts that count round and round, up through the tokens 10 to 15 or down through 60 to 65, by their style."""
    start = torch.randint(0, 6, (rows, 1), generator=torch.Generator().manual_seed(seed + style))
    return 10 + 50 * style + (start + torch.arange(10) * (1 - 2 * style)) % 6


@pytest.fixture(scope="module")
def stylist() -> EideticModel:
    """A GPT-2 that counts up, or down."""
    torch.manual_seed(0)
    model = EideticModel.from_backbone(GPT2LMHeadModel(ALL_CONFIGS["gpt2"]()), trunk_layers=1, growth="fixed")
    for style, name in enumerate(("up", "down")):
        learn_to_write(model, name, steps=60, keep=0.5, texts=styled(style))
    return model


def follows(written: Tensor, style: int) -> float:
    """Share of steps that go on in a style."""
    steps = (written[:, 1:] - written[:, :-1]) % 6
    inside = (written[:, 1:] >= 10 + 50 * style) & (written[:, 1:] < 16 + 50 * style)
    return float(((steps == (1 if style == 0 else 5)) & inside).float().mean())


def test_a_routed_prompt_is_continued_in_its_own_style(stylist: EideticModel) -> None:
    texts = torch.cat([styled(style, rows=6, seed=70)[:, :5] for style in (0, 1)])[torch.randperm(12)]
    styles = [int(text[0] >= 60) for text in texts]
    written = stylist.generate(texts, return_dict_in_generate=True, **GREEDY)
    assert written.tasks == [("up", "down")[style] for style in styles]
    assert written.router_scores.shape == (12, 2)
    for style in (0, 1):
        assert follows(written.sequences[[row for row, own in enumerate(styles) if own == style]], style) > 0.9
    strange = stylist.generate(texts, task=[("down", "up")[style] for style in styles], **GREEDY)
    assert follows(strange[[row for row, own in enumerate(styles) if own == 0]], 0) < 0.7
    one = stylist.generate(texts[:1], return_dict_in_generate=True, output_scores=True, **GREEDY)
    assert one.tasks == written.tasks[:1]
    assert len(one.scores) == 7


def test_padding_does_not_change_where_a_prompt_is_sent(stylist: EideticModel) -> None:
    texts = torch.cat([styled(style, rows=4, seed=90)[:, :5] for style in (0, 1)])
    plain = stylist.generate(texts, return_dict_in_generate=True, **GREEDY)
    padded = torch.nn.functional.pad(texts, (3, 0), value=0)
    mask = torch.nn.functional.pad(torch.ones_like(texts), (3, 0))
    for given in ({"attention_mask": mask}, {"pad_token_id": 0}):
        other = stylist.generate(padded, return_dict_in_generate=True, **given, **GREEDY)
        assert other.tasks == plain.tasks
        torch.testing.assert_close(other.router_scores, plain.router_scores, rtol=1e-3, atol=1e-6)
        assert torch.equal(other.sequences[:, -7:], plain.sequences[:, -7:])


# -- configuration ----------------------------------------------------------------------------------------------------


def test_the_configuration_answers_for_the_backbone() -> None:
    config = writer("t5").config
    assert config.is_encoder_decoder
    assert (config.vocab_size, config.decoder_start_token_id, config.pad_token_id) == (VOCABULARY, 0, 0)
    assert config.get_text_config(decoder=True).num_hidden_layers == 3
    assert config.get_text_config() is config and config.use_cache is True
    assert writer("gpt2").config.max_position_embeddings == 66
    with pytest.raises(AttributeError, match="'EideticConfig' has no attribute 'n_positions'"):
        _ = writer("gpt2").config.n_positions


def test_the_configuration_of_an_encoder_holds_nothing_of_this(trained: EideticModel, tmp_path: Path) -> None:
    trained.save_pretrained(tmp_path)
    assert not (tmp_path / "generation_config.json").exists()
    values = trained.config.to_dict()
    assert not values["is_encoder_decoder"]
    assert not {"vocab_size", "pad_token_id", "num_hidden_layers"} & set(values)


def test_the_generation_configuration_is_kept_with_the_checkpoint(tmp_path: Path) -> None:
    plain = pretrained("gpt2")
    plain.generation_config.update(max_new_tokens=3, do_sample=True, top_k=1, eos_token_id=7)
    plain.save_pretrained(tmp_path / "plain")
    model = EideticModel.from_backbone(tmp_path / "plain", trunk_layers=1, growth="fixed")
    assert model.generation_config.top_k == 1
    learn_to_write(model, "first")
    model.generation_config.max_new_tokens = 5
    model.save_pretrained(tmp_path / "own")
    loaded = EideticModel.from_pretrained(tmp_path / "own")
    assert (loaded.generation_config.max_new_tokens, loaded.generation_config.top_k) == (5, 1)
    assert torch.equal(loaded.generate(torch.tensor([[5, 6]])), model.generate(torch.tensor([[5, 6]])))
    (tmp_path / "own" / "generation_config.json").unlink()
    assert EideticModel.from_pretrained(tmp_path / "own").generation_config.max_new_tokens is None


def test_a_task_keeps_the_special_tokens_that_it_was_committed_with(tmp_path: Path) -> None:
    model = copy.deepcopy(writer())
    batch = prompts(model)
    before = model.generate(**batch, task="first", **GREEDY)
    model.generation_config.eos_token_id = int(before[0, 9])  # as the Trainer does for the tokenizer of a later task
    model.generation_config.pad_token_id = 5
    assert torch.equal(model.generate(**batch, task="first", **GREEDY), before)
    config = GenerationConfig(**GREEDY)
    assert torch.equal(model.generate(**batch, generation_config=config, task="first"), before)
    learn_to_write(model, "third")
    assert model.record("third").special_tokens["eos_token_id"] == int(before[0, 9])
    model.save_pretrained(tmp_path)
    loaded = EideticModel.from_pretrained(tmp_path)
    assert torch.equal(loaded.generate(**batch, task="first", **GREEDY), before)
    asked = loaded.generate(**batch, task="first", eos_token_id=int(before[0, 8]), **GREEDY)
    assert asked[0, 8] == before[0, 8]
    assert bool((asked[0, 9:] == asked[0, 9]).all())


def test_a_task_that_was_committed_without_an_end_goes_on_after_one_is_known() -> None:
    model = EideticModel.from_backbone(pretrained("gpt2"), trunk_layers=1, growth="fixed")
    model.generation_config.eos_token_id = None
    learn_to_write(model, "endless")
    batch = prompts(model)
    before = model.generate(**batch, task="endless", **GREEDY)
    model.generation_config.eos_token_id = int(before[0, 9])
    assert torch.equal(model.generate(**batch, task="endless", **GREEDY), before)
    config = GenerationConfig(**GREEDY)
    assert torch.equal(model.generate(**batch, generation_config=config, task="endless"), before)


def test_padding_that_is_known_by_its_token_takes_no_room_from_the_context() -> None:
    model = writer()
    ids = torch.full((2, 60), 5)
    ids[:, :4] = 0
    asked = {"task": "first", "max_new_tokens": 50, "do_sample": False, "pad_token_id": 0}
    expected = model.generate(ids, attention_mask=(ids != 0).long(), **asked)
    assert expected.shape == (2, 70)
    assert torch.equal(model.generate(ids, **asked), expected)


def tokenizer() -> PreTrainedTokenizerFast:
    """A word for each token: `w3` is the token 3."""
    words = Tokenizer(models.WordLevel({"<pad>": 0, "<s>": 1, "</s>": 2, **{f"w{n}": n for n in range(3, 120)}}, "w3"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", bos_token="<s>", eos_token="</s>", padding_side="left"
    )


def text_of(tokens: Tensor) -> str:
    return " ".join(f"w{token}" for token in tokens.tolist())


def test_the_pipeline_continues_texts(stylist: EideticModel, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    stylist.save_pretrained(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    pipe = pipeline("text-generation", model=model, tokenizer=tokenizer())
    assert pipeline("text-generation", model=str(tmp_path), tokenizer=tokenizer()).model.tasks == ["up", "down"]
    assert "not supported" not in caplog.text
    texts = [text_of(styled(style, rows=1, seed=3)[0, :5]) for style in (0, 1)]
    for style, text in enumerate(texts):
        (routed,) = pipe(text, max_new_tokens=5, do_sample=False, return_full_text=False)
        name = ("up", "down")[style]
        (named,) = pipe(text, max_new_tokens=5, do_sample=False, return_full_text=False, task=name)
        assert routed == named
        tokens = [int(word[1:]) for word in routed["generated_text"].split()]
        last = int(text.split()[-1][1:])
        assert follows(torch.tensor([[last, *tokens]]), style) > 0.7
    together = pipe(texts, max_new_tokens=5, do_sample=False, return_full_text=False, batch_size=2)
    alone = [pipe(text, max_new_tokens=5, do_sample=False, return_full_text=False) for text in texts]
    assert together == alone
    (long,) = pipe(texts[0], do_sample=False)  # the pipeline asks for 256 tokens; the context ends before
    assert len(long["generated_text"].split()) <= 66
    prefixed = pipe(texts[0], prefix="w11 w12 ", max_new_tokens=5, do_sample=False, task="up", return_full_text=False)
    expected = pipe(f"w11 w12 {texts[0]}", max_new_tokens=5, do_sample=False, task="up", return_full_text=False)
    assert prefixed == expected
    with pytest.raises(ValueError, match="There is no prompt, so there is nothing to route"):
        pipe("")
    assert pipe("", task="up", max_new_tokens=3)[0]["generated_text"]


def test_the_snippets_of_the_documentation_run(stylist: EideticModel, tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "docs" / "generation.md").read_text()
    snippets = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(snippets) == 3
    stylist.save_pretrained(tmp_path)
    names = {"model": EideticModel.from_pretrained(tmp_path), "tokenizer": tokenizer(), "folder": tmp_path}
    for snippet in snippets:
        exec(snippet, names)
    assert names["pipe"]("w10 w11 w12", max_new_tokens=5, task="up")[0]["generated_text"].startswith("w10 w11 w12")
    learn_added(names["model"], "stories")
    assert names["model"].record("stories").vocab_size == VOCABULARY + 2


# -- bad input --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mixed_kinds() -> EideticModel:
    """A GPT-2 with a task that writes, one that does not, and one that is only added."""
    model = EideticModel.from_backbone(pretrained("gpt2"), trunk_layers=1, growth="fixed")
    learn_to_write(model, "texts")
    model.add_task("labels", labels=["x", "y"])
    model.begin_task("labels", PruningConfig(keep=0.5))
    model.commit_task()
    model.add_task("later", task_type="causal-lm")
    return model


LONG = torch.full((1, 66), 5)
WRONG: dict[str, tuple[Callable[[], dict[str, Any]], str]] = {
    "unknown task": (lambda: {"task": "tests"}, "There is no task 'tests'. Committed are"),
    "task only added": (lambda: {"task": "later"}, "'later' has been added, but not learned"),
    "task without text": (
        lambda: {"task": "labels"},
        r"'labels' \(sequence-classification\) has no text to write. Tasks that write: \['texts'\]",
    ),
    "list with such a task": (lambda: {"task": ["texts", "labels"]}, "lists tasks of several kinds"),
    "list of such a task": (
        lambda: {"task": ["labels", "labels"]},
        r"'labels' \(sequence-classification\) has no text",
    ),
    "list too short": (lambda: {"task": ["texts"]}, "task= has 1 names for a batch of 2"),
    "empty list": (lambda: {"task": []}, "task= has 0 names for a batch of 2"),
    "task is a number": (lambda: {"task": 3}, "task=3: expected the name of a task"),
    "prompt fills the context": (
        lambda: {"input_ids": LONG},
        "A prompt has 66 tokens, and the context of this 'gpt2' is 66, which leaves no room.*max_length=65",
    ),
    "empty prompts": (
        lambda: {"input_ids": torch.zeros(2, 0, dtype=torch.long)},
        r"have the shape \(2, 0\), expected",
    ),
    "empty batch": (lambda: {"input_ids": torch.zeros(0, 4, dtype=torch.long)}, r"have the shape \(0, 4\), expected"),
    "one prompt without a batch": (lambda: {"input_ids": torch.tensor([5, 6])}, r"have the shape \(2,\), expected"),
    "row of padding": (
        lambda: {"attention_mask": torch.tensor([[1, 1, 1], [0, 0, 0]])},
        r"The prompts \[1\] have no token \(attention_mask is 0\)",
    ),
    "row of padding without a mask": (
        lambda: {"input_ids": torch.tensor([[5, 6, 7], [0, 0, 0]]), "pad_token_id": 0},
        r"The prompts \[1\] have no token",
    ),
    "mask of another shape": (
        lambda: {"attention_mask": torch.ones(2, 4)},
        r"attention_mask has the shape \(2, 4\), expected that of the prompts, \(2, 3\)",
    ),
    "prompts twice": (lambda: {"inputs": torch.tensor([[5]])}, "given twice, as inputs and as input_ids"),
    "misspelled option": (lambda: {"max_new_token": 3}, "max_new_token"),
}


@pytest.mark.parametrize("case", WRONG)
def test_bad_calls_say_what_is_wrong_before_anything_runs(case: str, mixed_kinds: EideticModel) -> None:
    arguments, message = WRONG[case]
    calls = []
    handle = mixed_kinds.backbone.register_forward_pre_hook(lambda *_: calls.append(1))
    try:
        with pytest.raises(ValueError, match=message):
            mixed_kinds.generate(**{"input_ids": torch.tensor([[5, 6, 7], [8, 9, 10]]), **arguments()})
    finally:
        handle.remove()
    assert calls == []


def test_continuous_batching_is_refused() -> None:
    ids = torch.tensor([[5, 6, 7]])
    with pytest.raises(NotImplementedError, match="calls the model without saying for which task"):
        writer().generate(ids, cache_implementation="paged")
    with pytest.raises(NotImplementedError, match="calls the model without saying for which task"):
        writer().generate_batch(ids.tolist())


def test_a_model_without_a_task_that_writes_says_how_to_get_one(trained: EideticModel) -> None:
    ids = torch.tensor([[5, 6]])
    with pytest.raises(TaskError, match=r"No committed task writes texts.*encoder such as this 'bert' can have none"):
        trained.generate(ids)
    with pytest.raises(TaskError, match=r"'first' \(sequence-classification\) has no text to write"):
        trained.generate(ids, task="first")
    model = EideticModel.from_backbone(pretrained("t5"), trunk_layers=1, growth="fixed")
    with pytest.raises(TaskError, match=r"there are \[\]. Learn one with .*task_type='seq2seq-lm'"):
        model.generate(ids)
    with pytest.raises(TaskError, match=r"task_type='causal-lm'"):
        EideticModel.from_backbone(tiny_backbone("gpt2"), trunk_layers=1, growth="fixed").generate(ids)


ONLY_ONE: dict[str, dict[str, Any]] = {
    "output_scores": {"output_scores": True, "return_dict_in_generate": True},
    "output_hidden_states": {"output_hidden_states": True, "return_dict_in_generate": True},
    "output_logits": {"generation_config": GenerationConfig(output_logits=True, return_dict_in_generate=True)},
    "streamer": {"streamer": Collected()},
    "encoder_outputs": {"encoder_outputs": (torch.zeros(2, 3, 32),)},
}


@pytest.mark.parametrize("asked", ONLY_ONE)
def test_what_only_one_task_can_give_is_refused_for_several(asked: str) -> None:
    with pytest.raises(ValueError, match=f"{asked} was given for prompts of several tasks.*task='<name>'"):
        writer().generate(torch.tensor([[5, 6], [7, 8]]), task=["first", "second"], **ONLY_ONE[asked])


def test_texts_of_an_encoder_decoder_have_to_fit_its_context() -> None:
    model = writer("bart")
    assert model.generate(LONG, task="first", **GREEDY).shape == (1, 8)
    with pytest.raises(ValueError, match="A text has 67 tokens, and the context of this 'bart' is 66"):
        model.generate(torch.full((1, 67), 5), task="first", **GREEDY)
    with pytest.raises(ValueError, match="decoder_input_ids has 66 tokens, and the context of this 'bart' is 66"):
        model.generate(torch.tensor([[5, 6]]), decoder_input_ids=LONG, task="first", **GREEDY)
    assert writer("t5").generate(torch.full((1, 90), 5), task="first", **GREEDY).shape == (1, 8)  # has no end


def test_a_text_ends_where_the_context_does() -> None:
    model = writer()
    ids, mask = torch.full((2, 60), 5), torch.ones(2, 60, dtype=torch.long)
    mask[:, :4] = 0
    assert model.generate(ids, task="first", max_new_tokens=50).shape == (2, 66)
    assert model.generate(ids, attention_mask=mask, task="first", max_new_tokens=50).shape == (2, 70)
    assert model.generate(ids, task="first", max_new_tokens=50, num_beams=2).shape == (2, 66)
