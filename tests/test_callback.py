"""The callback in any Trainer, and the trainer beside it: what a Trainer's options do, and what a failure leaves."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from support.backbones import DECODER_LIKE, VOCABULARY, tiny_model
from support.data import arguments, learn, logits_of, make_batch, make_data
from support.kind_cases import word_tokenizer
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    Trainer,
    TrainerCallback,
)

from eidetic_hf import EideticCallback, EideticModel, EideticTrainer, PruningConfig, TaskError
from eidetic_hf.trainer import find_checkpoint

PRUNING = PruningConfig(keep=0.4)


def trainer_of(
    model: EideticModel,
    folder: Path,
    plain: bool = False,
    task: str = "next",
    cls: Any = EideticTrainer,
    **kwargs: Any,
) -> Trainer:
    """A trainer of a task of three labels: an `EideticTrainer`, or the `Trainer` with the callback."""
    if task not in [*model.tasks, *model.added]:
        model.add_task(task, labels=["x", "y", "z"])
    pruning = kwargs.pop("pruning", PRUNING)
    given: dict[str, Any] = {"args": arguments(folder), "train_dataset": make_data(3), **kwargs}
    if not plain:
        return cls(model=model, task=task, pruning=pruning, **given)
    return Trainer(model=model, callbacks=[*given.pop("callbacks", []), EideticCallback(task, pruning)], **given)


def state_of(model: EideticModel) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> bool:
    """Whether all bits are equal, those of NaN, too."""
    if before.keys() != after.keys():
        return False
    pairs = ((before[name].flatten(), after[name].flatten()) for name in before)
    return all(torch.equal(one.view(torch.uint8), other.view(torch.uint8)) for one, other in pairs)


BOTH = pytest.mark.parametrize("plain", [False, True], ids=["EideticTrainer", "callback"])


# -- evaluation -------------------------------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("option", ["bf16_full_eval", "fp16_full_eval"])
def test_an_evaluation_in_half_precision_leaves_every_tensor_as_it_was(
    plain: bool, option: str, tmp_path: Path
) -> None:
    model = tiny_model()
    learn(model, "first", tmp_path)
    data = {"eval_dataset": make_data(4, rows=8), "args": arguments(tmp_path, **{option: True})}
    trainer = trainer_of(model, tmp_path, plain, **data)
    if plain:  # its task has begun
        begun = state_of(model)
        trainer.evaluate()
        assert same(begun, state_of(model)) and model.learning == "next"
    trainer.train()
    before = state_of(model)
    for answered in (trainer.evaluate, lambda: trainer.predict(data["eval_dataset"])):
        answered()
        assert same(before, state_of(model)) and model.dtype == torch.float32
    assert model.verify().ok
    model.save_pretrained(tmp_path / "model")
    assert EideticModel.from_pretrained(tmp_path / "model").verify().ok
    learn(model, "later", tmp_path)
    assert model.verify().ok


def test_an_evaluation_in_half_precision_that_fails_leaves_nothing_cast_behind(tmp_path: Path) -> None:
    model = tiny_model()
    args = arguments(tmp_path, bf16_full_eval=True)
    trainer = trainer_of(model, tmp_path, plain=True, args=args, eval_dataset=make_data(4, rows=8))
    trainer.train()
    before = state_of(model)
    trainer.compute_loss = lambda *_, **__: 1 / 0  # type: ignore[method-assign]
    with pytest.raises(ZeroDivisionError):
        trainer.evaluate()
    assert model.dtype == torch.bfloat16
    model.save_pretrained(tmp_path / "model")
    assert same(before, state_of(model))
    with pytest.raises(ZeroDivisionError):
        trainer.evaluate()
    learn(model, "later", tmp_path)
    assert {t.dtype for t in model.task_tensors("later").values() if t.is_floating_point()} == {torch.float32}
    assert model.verify().ok and torch.equal(
        before["heads.@next.classifier.weight"], model.heads["@next"].classifier.weight
    )


def test_an_evaluation_in_half_precision_computes_in_it(tmp_path: Path) -> None:
    model, dtypes = tiny_model(), []
    trainer = trainer_of(
        model, tmp_path, eval_dataset=make_data(4, rows=8), args=arguments(tmp_path, bf16_full_eval=True)
    )
    trainer.train()
    trainer.prediction_step = lambda model, inputs, *rest, **more: (  # type: ignore[method-assign]
        dtypes.append(model.dtype) or (None, None, None)
    )
    trainer.evaluate()
    assert dtypes == [torch.bfloat16]


def test_a_task_is_evaluated_before_it_is_learned_and_then_learned_as_if_it_had_not_been(tmp_path: Path) -> None:
    runs = []
    for early in (False, True):
        model = tiny_model()
        trainer = trainer_of(model, tmp_path, eval_dataset=make_data(4, rows=8))
        if early:
            metrics = trainer.evaluate()
            assert 0 <= metrics["eval_accuracy"] <= 1 and model.learning is None and not list(model.parameters())
        trainer.train()
        runs.append(state_of(model))
    assert same(*runs)


@BOTH
def test_an_evaluation_returns_numbers_alone(plain: bool, tmp_path: Path) -> None:
    class Look(TrainerCallback):
        seen: dict[str, Any] = {}

        def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **kwargs: Any) -> None:
            self.seen.update(metrics)

    look = Look()
    args = arguments(tmp_path, eval_strategy="steps", eval_steps=4, logging_steps=4)
    trainer = trainer_of(tiny_model(), tmp_path, plain, args=args, eval_dataset=make_data(4, rows=8), callbacks=[look])
    trainer.train()
    assert look.seen and all(isinstance(value, (int, float)) for value in look.seen.values())
    rows = trainer.state.log_history
    assert {row["phase"] for row in rows if "loss" in row} == {"prune", "recover"}
    assert all("phase" in row for row in rows if "eval_loss" in row and row["step"] < 12)


def seq2seq_data(seed: int) -> Dataset:
    ids = torch.randint(3, VOCABULARY, (16, 8), generator=torch.Generator().manual_seed(seed))
    rows = {"input_ids": ids.tolist(), "attention_mask": [[1] * 8] * 16, "labels": ids[:, :4].tolist()}
    return Dataset.from_dict(rows)


def seq2seq_arguments(folder: Path) -> Seq2SeqTrainingArguments:
    values = {name: getattr(arguments(folder, max_steps=6), name) for name in ("output_dir", "max_steps", "use_cpu")}
    return Seq2SeqTrainingArguments(
        **values,
        report_to=[],
        disable_tqdm=True,
        save_strategy="no",
        predict_with_generate=True,
        generation_max_length=6,
    )


@pytest.mark.parametrize("plain", [False, True], ids=["EideticTrainer", "Seq2SeqTrainer"])
def test_every_task_writes_its_answers_in_an_evaluation(plain: bool, tmp_path: Path) -> None:
    model = tiny_model("t5")
    for seed, name in enumerate(("first", "second")):
        model.add_task(name, task_type="seq2seq-lm")
        given: dict[str, Any] = {
            "args": seq2seq_arguments(tmp_path),
            "train_dataset": seq2seq_data(seed),
            "eval_dataset": seq2seq_data(seed),
            "compute_metrics": lambda prediction: {"width": float(prediction.predictions.shape[1])},
        }
        if plain:
            trainer: Trainer = Seq2SeqTrainer(model=model, callbacks=[EideticCallback(name, PRUNING)], **given)
        else:
            trainer = EideticTrainer(model=model, task=name, pruning=PRUNING, **given)
        trainer.train()
        batch = {name: torch.tensor(value[:]) for name, value in seq2seq_data(seed).to_dict().items()}
        written = model.generate(
            input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], task=name, max_length=6
        )
        predicted = torch.tensor(trainer.predict(seq2seq_data(seed)).predictions)
        assert torch.equal(predicted[:, : written.shape[1]], written)
        metrics = trainer.evaluate()
        with torch.no_grad():
            loss = model(**batch, task=name).loss
        assert metrics["eval_loss"] == pytest.approx(float(loss), rel=1e-4) and metrics["eval_width"] >= 6


def test_writing_in_an_evaluation_is_refused_where_a_task_writes_no_text_for_a_text(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"predict_with_generate=True: 'next' \(sequence-classification\) does not"):
        trainer_of(tiny_model(), tmp_path, args=seq2seq_arguments(tmp_path))


def test_a_plain_trainer_evaluates_its_own_task_or_says_that_it_can_not(tmp_path: Path) -> None:
    model, trainers = tiny_model(), []
    for seed, name in enumerate(("first", "second")):
        data = {"train_dataset": make_data(seed), "eval_dataset": make_data(seed, rows=8)}
        trainers.append(trainer_of(model, tmp_path, plain=True, task=name, **data))
        trainers[-1].train()
        batch = {key: torch.tensor(value[:]) for key, value in make_data(seed, rows=8).to_dict().items()}
        loss = model(**batch, task=name).loss
        assert trainers[-1].evaluate()["eval_loss"] == pytest.approx(float(loss), rel=1e-4)
    with pytest.raises(TaskError, match=r"task='first'\): since this run the model has learned 'second'"):
        trainers[0].evaluate()
    with pytest.raises(ValueError, match="no single task that they belong to"):
        tasks = copy.deepcopy(model)
        tasks.run_task = None
        tasks(**batch)


def test_trl_fine_tunes_one_task_after_another(tmp_path: Path) -> None:
    """Its losses call the backbone and the output embeddings by themselves."""
    import trl

    model = EideticModel.from_backbone(LlamaForCausalLM(LlamaConfig(**DECODER_LIKE)), trunk_layers=1, growth="fixed")
    for seed, name in enumerate(("first", "second")):
        model.add_task(name, task_type="causal-lm")
        ids = torch.randint(3, VOCABULARY, (24, 12), generator=torch.Generator().manual_seed(seed))
        data = Dataset.from_dict({"input_ids": ids.tolist()})
        args = trl.SFTConfig(
            str(tmp_path), max_steps=6, per_device_train_batch_size=4, gradient_accumulation_steps=2, max_length=16,
            gradient_checkpointing=False, learning_rate=0.0, logging_steps=1, use_cpu=True, bf16=False, report_to=[],
            save_strategy="no", disable_tqdm=True,
        )  # fmt: skip
        trainer = trl.SFTTrainer(
            model=model,
            args=args,
            train_dataset=data,
            eval_dataset=data,
            processing_class=word_tokenizer(),
            callbacks=[EideticCallback(name, PruningConfig(keep=1.0))],
        )
        trainer.train()
        assert model.tasks[-1] == name and model.verify().ok
        with torch.no_grad():
            loss = float(model(input_ids=ids, labels=ids, task=name).loss)
        assert trainer.evaluate()["eval_loss"] == pytest.approx(loss, rel=1e-4)
        losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
        assert sum(losses) / len(losses) == pytest.approx(loss, rel=2e-2)


# -- losses -----------------------------------------------------------------------------------------------------------

DISTILLED = PruningConfig(keep=0.4, distillation=0.9)


class Weighted(EideticTrainer):
    """Overrides the loss, as for labels of different weight."""

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **kwargs: Any) -> Any:
        outputs = model(**inputs)
        loss = 3 * torch.nn.functional.cross_entropy(outputs.logits, inputs["labels"])
        return (loss, outputs) if return_outputs else loss


def own_loss(outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
    return torch.nn.functional.cross_entropy(outputs.logits, labels, reduction="sum") / num_items_in_batch


LOSSES: dict[str, dict[str, Any]] = {
    "label smoothing": {"args": {"label_smoothing_factor": 0.1}},
    "compute_loss_func": {"compute_loss_func": own_loss},
    "compute_loss": {"cls": Weighted},
    "accumulated": {"args": {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 4}},
}


@pytest.mark.parametrize("loss", LOSSES)
def test_distillation_has_its_effect_on_any_loss(loss: str, tmp_path: Path) -> None:
    options = {**LOSSES[loss]}
    args = arguments(tmp_path, **options.pop("args", {}), learning_rate=2e-3)
    weights = []
    for pruning in (PruningConfig(keep=0.4), DISTILLED):
        model = tiny_model()
        trainer_of(model, tmp_path, args=args, pruning=pruning, **options).train()
        weights.append(logits_of(model, "next"))
    assert not torch.equal(*weights)


@pytest.mark.parametrize("loss", ["label smoothing", "compute_loss_func"])
def test_distillation_that_a_plain_trainer_would_ignore_is_an_error_at_the_first_step(
    loss: str, tmp_path: Path
) -> None:
    options = {**LOSSES[loss]}
    args = arguments(tmp_path, **options.pop("args", {}))
    trainer = trainer_of(tiny_model(), tmp_path, plain=True, args=args, pruning=DISTILLED, **options)
    with pytest.raises(TaskError, match=r"distillation=0.9.*would do nothing.*Use EideticTrainer"):
        trainer.train()
    assert trainer.state.global_step == 1
    trainer_of(tiny_model(), tmp_path, plain=True, pruning=DISTILLED).train()


def test_distillation_mixes_shares_of_loss_and_distance_whatever_the_loss(tmp_path: Path) -> None:
    model = tiny_model()
    trainer = trainer_of(model, tmp_path, cls=Weighted, pruning=DISTILLED)
    trainer._begin(model)
    learner = model.learner
    learner.take_snapshot("teacher")
    learner.prune(0.2)
    batch = {name: torch.tensor(value) for name, value in make_data(0)[:8].items()}
    for module in model.train().modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    found, outputs = trainer.compute_loss(model, {**batch, "task": "next"}, return_outputs=True)
    with torch.no_grad():
        teacher = torch.func.functional_call(model.eval(), learner.teacher(), kwargs={**batch, "view": teacher_view()})
    kind = trainer.kind
    distance = kind.distance(
        model.record("next"), {"logits": outputs.logits}, {"logits": teacher.logits}, batch, DISTILLED.temperature
    )
    hard = 3 * torch.nn.functional.cross_entropy(outputs.logits, batch["labels"])
    torch.testing.assert_close(found, 0.1 * hard + 0.9 * distance)


def teacher_view() -> Any:
    from eidetic_hf.views import LEARNING, View

    return View(LEARNING, teacher=True)


def uneven_texts() -> Dataset:
    """Texts of very different numbers of tokens, padded."""
    generator = torch.Generator().manual_seed(5)
    rows = []
    for length in (3, 24, 4, 20, 5, 23, 3, 18) * 2:
        ids = torch.randint(3, VOCABULARY, (length,), generator=generator).tolist()
        rest = 24 - length
        rows.append(
            {"input_ids": ids + [0] * rest, "attention_mask": [1] * length + [0] * rest, "labels": ids + [-100] * rest}
        )
    return Dataset.from_list(rows)


@pytest.mark.parametrize(
    ("architecture", "kind"), [("gpt2", "causal-lm"), ("bert", "masked-lm"), ("bert", "token-classification")]
)
def test_accumulated_gradients_are_those_of_one_batch_however_many_tokens_each_part_has(
    architecture: str, kind: str, tmp_path: Path
) -> None:
    weights = []
    for parts in (1, 4):
        model = tiny_model(architecture)
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        labels = [str(number) for number in range(VOCABULARY)] if kind == "token-classification" else None
        model.add_task("a", task_type=kind, labels=labels, **({"head_dropout": 0.0} if labels else {}))
        args = arguments(
            tmp_path, max_steps=2, per_device_train_batch_size=8 // parts, gradient_accumulation_steps=parts,
            optim="sgd", learning_rate=0.1, weight_decay=0.0, lr_scheduler_type="constant", max_grad_norm=0.0,
        )  # fmt: skip
        data = uneven_texts()
        trainer = EideticTrainer(model, "a", args, PruningConfig(keep=1.0), train_dataset=data, data_collator=stack)
        trainer.train()
        weights.append(
            torch.cat([tensor.flatten() for tensor in model.task_tensors("a").values() if tensor.is_floating_point()])
        )
    torch.testing.assert_close(*weights, rtol=1e-4, atol=1e-6)


def stack(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    return {name: torch.tensor([row[name] for row in rows]) for name in rows[0]}


# -- runs that are cut short or begin again ---------------------------------------------------------------------------


@BOTH
def test_a_run_that_ran_out_of_memory_prunes_on_the_schedule_of_its_smaller_batches(
    plain: bool, tmp_path: Path
) -> None:
    phases: list[tuple[int, str, float]] = []

    class Tight(TrainerCallback):
        """Runs out of memory once, in the middle of pruning."""

        failed = False

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            learner = kwargs["model"].learner
            phases.append((state.global_step, learner.phase(state.global_step), learner.kept_share()))
            if state.global_step == 7 and not self.failed:
                self.failed = True
                phases.clear()
                raise RuntimeError("CUDA out of memory. Tried to allocate 20.00 GiB")

    args = arguments(
        tmp_path, auto_find_batch_size=True, max_steps=-1, num_train_epochs=2, per_device_train_batch_size=16
    )
    model = tiny_model()
    trainer = trainer_of(model, tmp_path, plain, args=args, callbacks=[Tight()])
    trainer.train()
    steps = trainer.state.max_steps
    assert steps > 8 and [step for step, _, _ in phases] == list(range(1, steps + 1))
    expected = [*["fit"] * (round(0.3 * steps) - 1), *["prune"] * (round(0.6 * steps) - round(0.3 * steps))]
    assert [phase for _, phase, _ in phases] == [*expected, *["recover"] * (steps - len(expected))]
    assert [share for _, phase, share in phases if phase == "fit"] == [1.0] * (round(0.3 * steps) - 1)
    assert model.tasks == ["next"] and model.verify().ok


def test_a_checkpoint_that_was_cut_off_is_left_out(tmp_path: Path) -> None:
    args = arguments(tmp_path, save_strategy="steps", save_steps=4)
    whole = tiny_model()
    trainer_of(whole, tmp_path, args=args).train()
    state = tmp_path / "checkpoint-12" / "trainer_state.json"
    state.write_text(state.read_text()[:40])
    (tmp_path / "checkpoint-8" / "trainer_state.json").unlink()
    assert find_checkpoint(tmp_path) == str(tmp_path / "checkpoint-4")
    model = tiny_model()
    trainer_of(model, tmp_path, args=arguments(tmp_path)).train(resume_from_checkpoint=True)
    assert torch.equal(logits_of(model, "next"), logits_of(whole, "next"))
    with pytest.raises(ValueError, match=r"^Can't find a valid checkpoint at .*no readable trainer_state.json"):
        trainer_of(tiny_model(), tmp_path).train(resume_from_checkpoint=str(tmp_path / "checkpoint-8"))
    shutil.rmtree(tmp_path / "checkpoint-4")
    with pytest.raises(ValueError, match=r"^No valid checkpoint found in output directory"):
        trainer_of(tiny_model(), tmp_path).train(resume_from_checkpoint=True)


class Once:
    """A data set for the router that can not be read."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> dict[str, Any]:
        raise OSError("the disk is gone")


@BOTH
def test_what_was_trained_is_kept_when_the_router_can_not_read_its_data(plain: bool, tmp_path: Path) -> None:
    model = tiny_model()
    learn(model, "first", tmp_path)
    model.add_task("next", labels=["x", "y", "z"])
    if plain:
        trainer = Trainer(
            model=model,
            args=arguments(tmp_path),
            train_dataset=make_data(3),
            callbacks=[EideticCallback("next", PRUNING, router_dataset=Once())],
        )
    else:
        trainer = trainer_of(model, tmp_path, router_dataset=Once())
    with pytest.raises(TaskError, match=r"'next' is trained, but not committed.*the disk is gone.*commit_task\("):
        trainer.train()
    assert model.learning == "next" and not model.training
    trained = model(**make_batch()).logits
    sums = model.router_sums([{**make_batch(), "labels": torch.zeros(5, dtype=torch.long)}])
    model.commit_task(router_sums=sums)
    torch.testing.assert_close(logits_of(model, "next"), trained.detach())
    assert model.verify().ok and model.router.has("next")


def test_a_column_that_nobody_reads_does_not_stop_the_router(tmp_path: Path) -> None:
    texts = make_data(5).add_column("text", ["some text"] * 64)
    model = tiny_model()
    trainer_of(model, tmp_path, router_dataset=texts, train_dataset=texts).train()
    assert model.router.has("next")


def test_nothing_keeps_the_parameters_of_a_task_that_was_learned(tmp_path: Path) -> None:
    import gc
    import weakref

    for plain in (False, True):
        model = tiny_model()
        trainer = trainer_of(model, tmp_path, plain)
        if not plain:
            trainer._begin(model)
        seen = [weakref.ref(parameter) for parameter in model.parameters()]
        trainer.train()
        gc.collect()
        assert seen and not [ref for ref in seen if ref() is not None], plain


# -- how a trainer is made --------------------------------------------------------------------------------------------


def make() -> EideticModel:
    model = tiny_model()
    model.add_task("next", labels=["x", "y", "z"])
    return model


def test_a_trainer_makes_its_model_anew_for_every_run(tmp_path: Path) -> None:
    trainer = EideticTrainer(
        model_init=make, task="next", args=arguments(tmp_path), pruning=PRUNING, train_dataset=make_data(3)
    )
    logits = []
    for _ in range(2):
        trainer.train()
        assert trainer.model.tasks == ["next"] and trainer.model.verify().ok
        logits.append(logits_of(trainer.model, "next"))
    assert torch.equal(*logits)

    def begun() -> EideticModel:
        model = make()
        model.begin_task("next", PRUNING)
        return model

    plain = Trainer(
        model_init=begun,
        args=arguments(tmp_path),
        train_dataset=make_data(3),
        callbacks=[EideticCallback("next", PRUNING)],
    )
    plain.train()
    assert plain.model.tasks == ["next"]


def test_a_search_for_hyperparameters_learns_the_task_anew_in_every_trial(tmp_path: Path) -> None:
    trainer = EideticTrainer(
        model_init=make,
        task="next",
        args=arguments(tmp_path),
        pruning=PRUNING,
        train_dataset=make_data(3),
        eval_dataset=make_data(3, rows=16),
    )
    best = trainer.hyperparameter_search(
        hp_space=lambda trial: {"learning_rate": trial.suggest_categorical("learning_rate", [1e-5, 1e-2])},
        n_trials=3,
        direction="maximize",
        backend="optuna",
    )
    assert 0 < best.objective <= 2 and best.hyperparameters["learning_rate"] in (1e-5, 1e-2)


def test_a_callback_given_to_the_trainer_says_how_to_prune(tmp_path: Path) -> None:
    model = tiny_model()
    callback = EideticCallback("next", PruningConfig(keep=0.2))
    trainer_of(model, tmp_path, pruning=None, callbacks=[callback]).train()
    assert model.capacity()["free_share"] > 0.7 and model.tasks == ["next"]
    with pytest.raises(ValueError, match=r"task='next'. got an EideticCallback of the task 'other'"):
        trainer_of(tiny_model(), tmp_path, callbacks=[EideticCallback("other")])


def test_mixed_precision_reaches_every_task(tmp_path: Path) -> None:
    """accelerate's mark on a model, which it has prepared, would leave the second task without it."""
    model, dtypes = tiny_model(), []
    hook = model.backbone.register_forward_hook(
        lambda module, inputs, output: dtypes.append(torch.is_autocast_enabled("cpu"))
    )
    for seed, name in enumerate(("first", "second")):
        trainer = learn(model, name, tmp_path, seed, bf16=True, max_steps=2)
        trained, dtypes[:] = list(dtypes), []
        assert trained[:2] == [True, True]
        trainer.evaluate()
        dtypes.clear()
        assert "forward" not in vars(model)
    hook.remove()


def test_a_share_and_a_tolerance_exclude_each_other() -> None:
    share, search = PruningConfig(), PruningConfig(tolerance=0.1)
    assert (share.keep, share.start, share.end) == (None, 0.3, 0.6)
    assert (search.keep, search.start, search.end) == (None, 0.5, 0.9)
    with pytest.raises(ValueError, match=r"keep=0.4\): expected none together with a tolerance"):
        PruningConfig(keep=0.4, tolerance=0.1)


def test_a_task_that_would_see_no_unit_says_so_and_leaves_the_model_as_it_was(tmp_path: Path) -> None:
    model = tiny_model()
    learn(model, "first", tmp_path, pruning=PruningConfig(keep=1.0))
    model.add_task("alone", labels=["x", "y"], forward_transfer="none")
    with pytest.raises(TaskError, match=r"'alone' would see no unit in \d+ of \d+ groups .*on_exhausted='expand'"):
        model.begin_task("alone")
    assert model.learning is None and model.verify().ok
    model.begin_task("alone", PruningConfig(on_exhausted="expand"))
    assert model(**make_batch()).logits.shape == (5, 2)


def test_the_state_of_a_run_can_be_read_as_json(tmp_path: Path) -> None:
    args = arguments(tmp_path, save_strategy="steps", save_steps=6, logging_steps=2)
    trainer_of(tiny_model(), tmp_path, args=args).train()
    rows = json.loads((tmp_path / "checkpoint-12" / "trainer_state.json").read_text())["log_history"]
    assert rows[0]["phase"] == "fit" and rows[-1]["phase"] == "recover"
