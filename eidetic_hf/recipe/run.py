"""The run of a recipe: learns every task in order, evaluates all committed ones after each, writes `results.json`.

A run that was cut off continues where it stopped when it is started again. One process and one device learn a task;
where units are copied, several processes may learn a task each (`jobs.py`), and what they learned is joined here.
"""

from __future__ import annotations

import copy
import itertools
import json
import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import evaluate
from transformers import AutoTokenizer, PreTrainedTokenizerBase, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback, TrainerControl, TrainerState
from transformers.trainer_utils import set_seed

from ..configuration import TaskError, TaskRecord
from ..kinds import check_kind
from ..model.checkpoint.folder import COMMITTED
from ..model.checkpoint.layout import CONFIG_FILE, shard_file
from ..model.model import EideticModel
from ..model.preserving import BASE_TASK
from ..network.backbone import longest_sequence
from ..trainer import EideticTrainer, find_checkpoint
from ..views import task_key
from .jobs import (
    JOBS_FOLDER,
    check_jobs,
    folder_of,
    forget_job,
    learn_side_by_side,
    read_note,
    write_note,
)
from .kinds import recipe_kind_of
from .kinds.preparation import TRAIN
from .recipe import CHECKPOINTS_FOLDER, Recipe, RecipeError, TaskRecipe
from .results import RESULTS_FILE, results_of, shards_in, write_json
from .scoring import check_record, evaluate_routing, evaluate_task, load_metric, score_arguments, score_of
from .starting_point import have_one_backbone, load_tokenizer, make_model, resolve_backbone
from .task_data import TaskData, described, read_task_data

MODEL_FOLDER = "model"

Say = Callable[[str], None]


def run_recipe(recipe: Recipe, say: Say = print, jobs: int = 1) -> dict[str, Any]:
    """Learn every task of a recipe that is not committed yet, in order; evaluate all committed tasks after each.

    Writes `model/` (the checkpoint folder, with the tokenizer) and `results.json` to `recipe.output` after every task.
    Started again, it continues with the first task that is not committed.

    Args:
        recipe: what to do.
        say: takes one line of progress at a time.
        jobs: processes that learn a task each at the same time, with `growth: copy`. The folder `model/` is the same
            for any number, byte for byte.

    Returns:
        What `results.json` holds.

    Raises:
        RecipeError: before any training, if the recipe, its data or the model in its output folder do not allow it;
            and if the process of a task failed, when all others are done. What they learned is kept.
    """
    check_jobs(recipe, jobs)
    run = _Run(recipe, say)
    run.prepare()
    failures: dict[str, str] = {}
    if jobs > 1:
        known = run.model.tasks
        missing = [task for task in recipe.tasks if task.name not in known]
        failures = learn_side_by_side(recipe, missing, known, run.model_folder, jobs, say)
    was_joined = False
    for task in recipe.tasks:
        if run.model.is_committed(task.name):
            say(f"{task.name}: already committed, skipped")
            forget_job(recipe, task.name)  # of a run that was cut off when it had just been joined
        elif (note := read_note(recipe, task.name)) is not None:
            run.join(task, note)
            was_joined = True
        elif failures:
            raise _failed(recipe, failures)
        else:
            run.learn(task)
            was_joined = False
    if was_joined:
        run.measure_again()
    return run.finish()


def _failed(recipe: Recipe, failures: Mapping[str, str]) -> RecipeError:
    """What to say when tasks could not be learned side by side."""
    kept = [task.name for task in recipe.tasks if read_note(recipe, task.name) is not None]
    behind = f" {kept} are learned, and stand behind them in the order: they wait in {JOBS_FOLDER}/." if kept else ""
    lost = " ".join(f"Task '{name}' was not learned: {why}." for name, why in failures.items())
    return RecipeError(f"{lost} The others are kept; started again, the run continues with what is missing.{behind}")


def learn_alone(recipe: Recipe, name: str, start: Mapping[str, Path], say: Say = print) -> None:
    """Learn one task of a recipe, and leave it in the folder of its job (see `jobs.py`).

    Args:
        recipe: the whole of it, whose output folder may hold what others have learned.
        name: of the task.
        start: the tasks on its branch, from the backbone on, and the checkpoint folder of each.
        say: takes one line of progress at a time.
    """
    run, task = _Run(recipe, say), recipe.task(name)
    run.prepare(name)
    for other, source in start.items():
        run.model.load_task(source, other)
    seconds = run.train(task)
    folder = folder_of(recipe, name)
    shutil.rmtree(folder, ignore_errors=True)  # half of one, of a run that was cut off
    run.model.save_pretrained(folder)
    scores = run.measure(name)
    say(f"learned in {seconds:.0f} s, test {task.metric} {scores[task.metric]:.3f}")
    write_note(recipe, name, {"seconds": seconds, "scores": scores})
    run.forget_checkpoints(task)


class _ProgressLines(TrainerCallback):
    """A line per evaluation, where no progress bar shows what is going on."""

    def __init__(self, say: Say, model: EideticModel, metric: str) -> None:
        self.say, self.model, self.metric = say, model, metric

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Say the step, the phase, the share of units kept, or read, and the validation metric."""
        learner, value = self.model.learner, (kwargs.get("metrics") or {}).get(f"eval_{self.metric}")
        if learner is not None:
            score = f", validation {self.metric} {value:.3f}" if value is not None else ""
            kept = f"{learner.kept_share():.0%} of the free units"
            if learner.copies:
                kept = f"reads {learner.read_share():.0%} of the units"
            self.say(
                f"  step {state.global_step}/{state.max_steps}: {learner.phase(state.global_step)}, {kept}{score}"
            )


class _Run:
    """One run of a recipe. Invariant: `results.json` describes the model in `model/`, or is about to be rewritten."""

    model: EideticModel
    tokenizer: PreTrainedTokenizerBase

    def __init__(self, recipe: Recipe, say: Say) -> None:
        self.recipe, self.say = recipe, say
        self.model_folder = recipe.output / MODEL_FOLDER
        self.data: dict[str, TaskData] = {}
        self.metric_modules: dict[str, evaluate.EvaluationModule | None] = {}
        self.steps: list[dict[str, Any]] = []

    def prepare(self, only: str | None = None) -> None:
        """Load and check everything that the run needs, so that no mistake shows only after hours of training.

        Args:
            only: a task, if no other is learned or measured in this run; it begins with a fresh model.
        """
        recipe = self.recipe
        if recipe.output.exists() and not recipe.output.is_dir():
            raise RecipeError(f"The output {recipe.output} is a file, expected a folder.")
        asked = [task for task in recipe.tasks if only in (None, task.name)]
        self.metric_modules = {task.name: load_metric(task, recipe.folder) for task in asked}
        if isinstance(recipe.backbone, str):
            resolve_backbone(recipe.backbone, recipe.folder)
        read = recipe.tasks if isinstance(recipe.tokenizer, dict) else asked  # a new tokenizer is made of all texts
        raw = {task.name: read_task_data(recipe, task) for task in read}
        corpus = itertools.chain.from_iterable(one.preparation.corpus(one.rows[TRAIN]) for one in raw.values())
        self.tokenizer = load_tokenizer(recipe, corpus)
        self.model = make_model(recipe, self.tokenizer)
        self._check_lengths()
        self._check_kinds({task.name: raw[task.name].preparation.labels for task in asked})
        self.data = {task.name: raw[task.name].encode(self.tokenizer) for task in asked}
        if only is None and ((self.model_folder / CONFIG_FILE).exists() or (self.model_folder / COMMITTED).is_dir()):
            self._continue()

    def _check_lengths(self) -> None:
        """The backbone reads as many tokens as the recipe says; the tokenizer cuts at the longest of all tasks."""
        longest = longest_sequence(self.model.backbone)
        for task in self.recipe.tasks:
            length = self.recipe.length_of(task)
            if longest is not None and length > longest:
                where = f" of task '{task.name}'" if task.max_length else ""
                raise RecipeError(
                    f"`max_length: {length}`{where}: the backbone {self.recipe.backbone_name} reads up to {longest} "
                    "tokens."
                )
        self.tokenizer.model_max_length = max(self.recipe.length_of(task) for task in self.recipe.tasks)

    def _check_kinds(self, labels: dict[str, list[str]]) -> None:
        """The backbone has a head for every task; `labels` are those of each."""
        config = copy.copy(self.model.config)
        config.tasks = []
        for name, named in labels.items():
            task = self.recipe.task(name)
            try:
                record = TaskRecord(name, task.type, labels=["0", "1"] if named else [])
                check_kind(record, config)
            except TaskError as error:
                raise RecipeError(str(error)) from error
            config.tasks = [*config.tasks, record]

    def _continue(self) -> None:
        """Go on with the model in the output folder, if it is this recipe's."""
        model, way_out = self._load(self.model_folder)
        if isinstance(self.recipe.tokenizer, dict):
            saved = AutoTokenizer.from_pretrained(self.model_folder)
            if saved.get_vocab() != self.tokenizer.get_vocab():
                raise RecipeError(
                    f"The model in {self.model_folder} has another tokenizer than these training texts give: they, or "
                    f"`tokenizer:`, have changed. {way_out}"
                )
        for record in model.config.tasks:
            if record.name == BASE_TASK and self.recipe.preserve:
                continue
            if record.name not in self.data:
                raise RecipeError(
                    f"The model in {self.model_folder} has the task '{record.name}', which the recipe lacks. {way_out}"
                )
            check_record(record, self.recipe.task(record.name), self.data[record.name])
        self._take(model)
        self._read_steps()
        learned = self._learned(model)
        if learned and (not self.steps or self.steps[-1]["task"] != learned[-1]):
            # The last run was cut off between saving the model and writing its results.
            self._note(learned[-1], None, self._measure_all())

    def _learned(self, model: EideticModel) -> list[str]:
        """The tasks of a model that the recipe has: all but base."""
        return [name for name in model.tasks if name in self.data]

    def _load(self, folder: Path) -> tuple[EideticModel, str]:
        """The model of a checkpoint folder, if it began as this recipe's does; and what to do if it does not fit."""
        fresh, model = self.model, EideticModel.from_pretrained(folder)
        way_out = f"Use another output folder, or delete {folder} to start anew."
        if model.config.trunk_layers != fresh.config.trunk_layers:
            raise RecipeError(
                f"The model in {folder} has a trunk of {model.config.trunk_layers} layers, the recipe asks for "
                f"{fresh.config.trunk_layers}. {way_out}"
            )
        if model.config.growth != fresh.config.growth:
            raise RecipeError(
                f"The model in {folder} has growth={model.config.growth!r}, the recipe asks for "
                f"{fresh.config.growth!r}. {way_out}"
            )
        if not have_one_backbone(fresh, model):
            raise RecipeError(
                f"The model in {folder} was made from another backbone than the recipe's "
                f"{self.recipe.backbone_name}. {way_out}"
            )
        return model, way_out

    def _take(self, model: EideticModel) -> None:
        """Go on with a model that was loaded."""
        model.config.forward_transfer = self.model.config.forward_transfer
        self.model = model

    def _read_steps(self) -> None:
        """Take over the rows of an earlier run that belong to the tasks of this model."""
        try:
            steps = json.loads((self.recipe.output / RESULTS_FILE).read_text(encoding="utf-8"))["steps"]
        except (OSError, ValueError, KeyError):
            return
        now = shards_in(self.model_folder)
        for step in steps:
            file = shard_file(task_key(step["task"]))
            if self.model.is_committed(step["task"]) and step["shards"].get(file, {}) == now.get(file):
                self.steps.append(step)

    def learn(self, task: TaskRecipe) -> None:
        """Learn a task; save; evaluate all committed tasks."""
        seconds = self.train(task)
        self._save()
        self.forget_checkpoints(task)
        forget_job(self.recipe, task.name)  # the log of one that failed
        self._note(task.name, seconds, self._measure_all())

    def train(self, task: TaskRecipe) -> float:
        """Fit, prune, recover and commit a task; returns the seconds that it took."""
        recipe, data, say = self.recipe, self.data[task.name], self.say
        sizes = ", ".join(f"{name} {len(rows)}" for name, rows in data.rows.items())
        place = f"task {recipe.tasks.index(task) + 1} of {len(recipe.tasks)}"
        what = f"{len(data.labels)} labels" if data.labels else task.type
        say(f"{task.name}: {place}, {what}, {sizes}")
        record = self._add(task, data)
        arguments = recipe.training_arguments(task)
        set_seed(arguments.seed)
        module = self.metric_modules[task.name]
        score = score_of(self.model, self.tokenizer, task, data, "validation", module)
        trainer = EideticTrainer(
            model=self.model,
            task=task.name,
            args=arguments,
            pruning=recipe.pruning_config(task),
            head_lr_ratio=recipe.head_lr_ratio_of(task),
            processing_class=self.tokenizer,
            data_collator=recipe_kind_of(task.type).collator(task, self.tokenizer),
            train_dataset=data.splits["train"],
            eval_dataset=data.splits["validation"],
            router_dataset=data.preparation.bare.get(TRAIN),
            **score_arguments(record, score),
            callbacks=[_ProgressLines(say, self.model, task.metric)],
        )
        trainer.remove_callback(PrinterCallback)  # It prints dictionaries; `say` has the lines.
        try:
            last = find_checkpoint(self._checkpoints(task))
            say(f"  resumed from {last}")
        except ValueError:  # none, or none that was written to its end
            last = None
        start = time.perf_counter()
        trainer.train(resume_from_checkpoint=last)
        return time.perf_counter() - start

    def _checkpoints(self, task: TaskRecipe) -> Path:
        """Where the Trainer keeps those of a task that is being learned."""
        return self.recipe.output / CHECKPOINTS_FOLDER / task.name

    def forget_checkpoints(self, task: TaskRecipe) -> None:
        """Drop the Trainer's, after the task was saved."""
        checkpoints = self._checkpoints(task)
        shutil.rmtree(checkpoints, ignore_errors=True)
        with suppress(OSError):  # it is not there, or another task's are
            checkpoints.parent.rmdir()

    def join(self, task: TaskRecipe, note: Mapping[str, Any]) -> None:
        """Take over a task that a process of its own has learned, and what that has measured; save."""
        folder = folder_of(self.recipe, task.name)
        try:
            self.model.load_task(folder, task.name)
            check_record(self.model.record(task.name), task, self.data[task.name])
        except (ValueError, OSError) as error:
            raise RecipeError(
                f"What was learned of '{task.name}' in {folder} does not fit this recipe ({error}). Delete "
                f"{folder.parent} to learn it again."
            ) from error
        self._save()
        before = self.steps[-1]["scores"] if self.steps else {}
        self._note(task.name, note["seconds"], {**before, task.name: note["scores"]})
        forget_job(self.recipe, task.name)

    def _add(self, task: TaskRecipe, data: TaskData) -> TaskRecord:
        """Declare a task to the model."""
        record = self.model.add_task(
            task.name,
            task_type=task.type,
            labels=data.labels or None,
            forward_transfer=task.forward_transfer,
            based_on=task.based_on,
            **recipe_kind_of(task.type).options(task, self.recipe.pooling_of(task)),
        )
        record.preparation = data.preparation.recorded
        record.data = described(task, data.rows)
        return record

    def _save(self) -> None:
        if not (self.model_folder / "tokenizer_config.json").exists():
            self.tokenizer.save_pretrained(self.model_folder)
        self.model.save_pretrained(self.model_folder)

    def measure(self, name: str) -> dict[str, float]:
        """All metrics of a committed task on its test split, the task given."""
        task = self.recipe.task(name)
        # Checkpoints and the choice of the best are the training's business.
        arguments = self.recipe.training_arguments(
            task,
            output_dir=str(self.recipe.output),
            save_strategy="no",
            load_best_model_at_end=False,
            disable_tqdm=True,
        )
        data = self.data[name]
        score = score_of(self.model, self.tokenizer, task, data, "test", self.metric_modules[name])
        return evaluate_task(self.model, name, data.splits["test"], self.tokenizer, arguments, score)

    def _measure_all(self) -> dict[str, dict[str, float]]:
        """`measure` for every committed task of the recipe."""
        return {name: self.measure(name) for name in self._learned(self.model)}

    def _note(self, after: str, seconds: float | None, scores: dict[str, dict[str, float]]) -> None:
        """Add the row of the accuracy matrix after a task, and write the results."""
        shards = shards_in(self.model_folder)
        self.steps.append(
            {
                "task": after,
                "scores": scores,
                "seconds": seconds,
                "units": self.model.record(after).units,
                "capacity": self.model.capacity(),
                "shards": shards,
            }
        )
        shown = ", ".join(f"{name} {found[self.recipe.task(name).metric]:.3f}" for name, found in scores.items())
        took = "" if seconds is None else f" in {seconds:.0f} s"
        self.say(f"  committed {sum(self.steps[-1]['units'].values())} units{took}; test scores now: {shown}")
        self._write(results_of(self.recipe, self.model, self.data, self.steps, shards, self.model))

    def measure_again(self) -> None:
        """Measure what the last row of the accuracy matrix has from others: all tasks, in the joined model."""
        self.steps[-1]["scores"] = self._measure_all()

    def _write(self, results: dict[str, Any]) -> dict[str, Any]:
        write_json(self.recipe.output / RESULTS_FILE, results)
        return results

    def finish(self) -> dict[str, Any]:
        """Verify the model as it lies on the disk, let it find the tasks itself, and write the results a last time."""
        if self.recipe.preserve and not self.model.is_committed(BASE_TASK):
            self.model.preserve()
            self._save()
        loaded = EideticModel.from_pretrained(self.model_folder)
        loaded.to(self.model.device)  # type: ignore[arg-type]
        tests = {name: self.data[name].texts_to_route("test") for name in self._learned(loaded)}
        routing = evaluate_routing(loaded, self.tokenizer, tests)
        shards = shards_in(self.model_folder)
        return self._write(results_of(self.recipe, self.model, self.data, self.steps, shards, loaded, routing))
