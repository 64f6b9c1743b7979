"""The command line: train, evaluate, predict, extract, verify, remove, merge, add, push, plan, preserve and report.

`__main__.py` starts it.

What takes seconds to import is imported by the commands that need it, so that `--help` is there at once.
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from typer.core import TyperGroup

from .version import __version__

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

    from .model.model import EideticModel
    from .recipe.kinds.asking import Query

out = Console(highlight=False)
errors = Console(stderr=True, highlight=False)


class _ReadableErrors(TyperGroup):
    """Turns what a person can mend into one line and the exit code 2; `--debug` shows where it came from."""

    def invoke(self, ctx: Any) -> Any:
        """Run a command. All errors of this package are `ValueError`s, those of files and the Hub `OSError`s."""
        debug = ctx.params.get("debug") or os.environ.get("EIDETIC_DEBUG", "") not in ("", "0")
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            raise
        except (ValueError, OSError) as error:
            if debug:
                raise
            errors.print(f"error: {error}", style="red", markup=False, soft_wrap=True)
            raise typer.Exit(2) from error


app = typer.Typer(
    cls=_ReadableErrors,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="One language model that learns one text task after another and never loses one.",
)

ModelFolder = Annotated[str, typer.Argument(metavar="MODEL", help="Checkpoint folder, or its id on the Hub.")]
RecipeFile = Annotated[Path, typer.Argument(metavar="RECIPE.yaml", help="The recipe.")]
TaskNames = Annotated[list[str] | None, typer.Option("--task", help="Only this task; may be given several times.")]


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"eidetic-hf {__version__}")
        raise typer.Exit()


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show where an error came from (or EIDETIC_DEBUG=1).")
    ] = False,
    plugin: Annotated[
        list[str] | None,
        typer.Option(
            metavar="MODULE_OR_FILE",
            help="Import this first: it registers kinds of task of your own. May be given several times.",
        ),
    ] = None,
) -> None:
    """Options that come before the command; `_ReadableErrors` reads `debug`."""
    if plugin:
        from .recipe.plugins import load_plugin

        for name in plugin:
            load_plugin(name, Path.cwd())


def _quiet(with_data: bool = True) -> None:
    """Leave the terminal to what this command has to say; `with_data`, if it reads data sets."""
    import transformers

    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    if not with_data:
        return
    import datasets

    datasets.logging.set_verbosity_error()
    datasets.disable_progress_bars()


def _load(model: str, **hub: Any) -> EideticModel:
    """The model, with a message that names the folder if there is none."""
    from .model.model import EideticModel
    from .recipe.plugins import load_installed_plugins

    load_installed_plugins()
    with _readable_place(model):
        return EideticModel.from_pretrained(model, **hub)


@contextmanager
def _readable_place(model: str) -> Iterator[None]:
    """Read a checkpoint, with a message that names the folder if there is none."""
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    place = Path(model)
    if place.is_file():
        raise ValueError(f"{model} is a file, expected the folder of a checkpoint, or its id on the Hub.")
    if place.is_dir() and not any(place.iterdir()):
        raise ValueError(f"The folder {model} is empty, expected a checkpoint written by `eidetic-hf train`.")
    if not place.exists():
        try:
            validate_repo_id(model)
        except HFValidationError as error:
            raise ValueError(
                f"There is no folder {model}, and it is no id on the Hub (owner/name), either. Give the folder that "
                "`eidetic-hf train` wrote the model to."
            ) from error
    try:
        yield
    except OSError as error:
        if place.exists():
            raise
        raise ValueError(
            f"There is no folder {model}, and no model of this id could be had from the Hub "
            f"({str(error).splitlines()[0]}). Give the folder that `eidetic-hf train` wrote the model to."
        ) from error


def _save(model: EideticModel, folder: str | Path) -> None:
    """Save a model, and say what has become of it."""
    model.save_pretrained(folder)
    out.print(f"model: {folder} with the tasks {', '.join(model.tasks) or '(none)'}", markup=False, soft_wrap=True)


def _folder(model: str) -> Path:
    """The folder of a checkpoint that is to be changed."""
    if not Path(model).is_dir():
        raise ValueError(f"{model} is no folder here. Only a checkpoint in a folder can be changed.")
    return Path(model)


def _has_tokenizer(model: str) -> bool:
    """Whether a checkpoint brings a tokenizer, as far as one sees: what the Hub has, loading it will say."""
    return not Path(model).is_dir() or (Path(model) / "tokenizer_config.json").exists()


def _load_tokenizer(model: str) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer

    if not _has_tokenizer(model):
        raise ValueError(f"{model} has no tokenizer (tokenizer_config.json). Save the backbone's into it.")
    return AutoTokenizer.from_pretrained(model)


# -- train ------------------------------------------------------------------------------------------------------------


@app.command()
def train(
    recipe: RecipeFile,
    output: Annotated[Path | None, typer.Option(help="Folder of the results, instead of the recipe's.")] = None,
    jobs: Annotated[
        int,
        typer.Option(metavar="N", help="With growth: copy, learn up to N tasks at once, in processes of their own."),
    ] = 1,
) -> None:
    """Learn the tasks of a recipe, one after another. Started again, continues with the first one not committed."""
    from .recipe.recipe_file import read_recipe
    from .recipe.report import REPORT_FILE, write_report
    from .recipe.results import RESULTS_FILE
    from .recipe.run import MODEL_FOLDER, run_recipe
    from .recipe.tables import continual_lines, matrix_table, routing_line, shards_table

    _quiet()
    plan = read_recipe(recipe, output)
    results = run_recipe(plan, lambda line: out.print(line, markup=False, soft_wrap=True), jobs)
    write_report(results, plan.output / REPORT_FILE)
    for table in (matrix_table(results), shards_table(results)):
        out.print()
        out.print(table)
    out.print()
    for line in continual_lines(results):
        out.print(line)
    if results["routing"]:
        out.print(routing_line(results["routing"]))
    _print_verdict(results["verify"]["text"], results["verify"]["ok"])
    for what, place in (("model", MODEL_FOLDER), ("report", REPORT_FILE), ("results", RESULTS_FILE)):
        out.print(f"{what}: {plan.output / place}", markup=False, soft_wrap=True)
    if not results["verify"]["ok"]:
        raise typer.Exit(1)


def _print_verdict(text: str, ok: bool) -> None:
    *lines, verdict = text.splitlines()
    for line in lines:
        out.print(line, markup=False, soft_wrap=True)
    out.print(verdict, style="bold green" if ok else "bold red", markup=False, soft_wrap=True)


# -- evaluate ---------------------------------------------------------------------------------------------------------


@app.command()
def evaluate(
    model: ModelFolder,
    recipe: RecipeFile,
    split: Annotated[str, typer.Option(help="train, validation or test.")] = "test",
    task: TaskNames = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead of a table.")] = False,
) -> None:
    """Metrics of a model's tasks on the data of a recipe: with the task given, and with the router choosing it."""
    from .recipe.recipe_file import read_recipe
    from .recipe.scoring import evaluate_recipe
    from .recipe.tables import metrics_table, routing_tables

    _quiet()
    plan = read_recipe(recipe)
    found = evaluate_recipe(_load(model), _load_tokenizer(model), plan, split, task)
    if as_json:
        typer.echo(json.dumps(found, ensure_ascii=False))
        return
    out.print(metrics_table(found["oracle"], split))
    for table in routing_tables(found["routing"]) if found["routing"] else []:
        out.print()
        out.print(table)


# -- predict ----------------------------------------------------------------------------------------------------------


@app.command()
def predict(
    model: ModelFolder,
    texts: Annotated[
        list[str] | None, typer.Argument(metavar="[TEXT]...", help="Texts; read from stdin if none.")
    ] = None,
    task: Annotated[
        str | None, typer.Option(help="The task of all texts; left out, the router chooses one each.")
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option(help="A file with one text a line, or one JSON object if it is .jsonl (- for stdin)."),
    ] = None,
    text_pair: Annotated[
        list[str] | None, typer.Option(help="The second text of each pair, or the context of each question.")
    ] = None,
    choice: Annotated[
        list[str] | None, typer.Option(help="A text to choose from; give it twice or more. For every TEXT.")
    ] = None,
    abstain: Annotated[
        float | None,
        typer.Option(
            metavar="SHARE",
            help="Turn away texts that belong to no task; SHARE of a task's own may be turned away, such as 0.05.",
        ),
    ] = None,
    among: Annotated[
        list[str] | None, typer.Option(help="A task that the router may choose; give it for each. All by default.")
    ] = None,
    by_name: Annotated[
        bool, typer.Option("--by-name", help="A text that begins with a task's name and a colon is that task's.")
    ] = False,
    answer_all: Annotated[
        bool, typer.Option("--all", help="Every task that can answer a text does, not the likeliest alone.")
    ] = False,
    top_k: Annotated[int, typer.Option(min=1, help="How many tokens to name for each [MASK].")] = 5,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="How many tokens to write, at most.")] = 64,
) -> None:
    """Answer texts, as one JSON object a line. Without --task, each text goes to the task that it belongs to.

    Questions about a text: TEXT is the question, --text-pair the text. In JSON lines: {"text", "text_pair"},
    {"question", "context"}, {"text", "choices"}, {"tokens"} or {"prompt"}.
    """
    given = texts or []
    if given and file is not None:
        raise ValueError(f"Got {len(given)} texts and --file {file}. Give one or the other.")
    if text_pair is not None and len(text_pair) != len(given):
        raise ValueError(f"Got {len(text_pair)} --text-pair for {len(given)} texts. Give one for each TEXT, in order.")
    if choice is not None and (len(choice) < 2 or not given):
        raise ValueError(
            f"Got {len(choice)} --choice for {len(given)} texts. Give two or more, and at least one TEXT."
        )
    if abstain is not None and task is not None:
        raise ValueError(
            f"--abstain turns texts away that belong to no task, but --task {task} was given. Choose one."
        )
    if task is not None and (among or by_name or answer_all):
        raise ValueError(f"--among, --by-name and --all are for texts without a task, but --task {task} was given.")
    if abstain is not None and answer_all:
        raise ValueError("--abstain turns texts away that belong to no task, and --all lets every task answer.")
    from .model.versions import answering_name
    from .recipe.kinds.asking import Query
    from .recipe.predicting import Predictor

    pairs: list[str | None] = [None] * len(given)
    if text_pair is not None:
        pairs = list(text_pair)
    choices = tuple(choice) if choice else None
    asked = [Query(text, pair, choices) for text, pair in zip(given, pairs, strict=True)]
    queries = asked or _read_queries(file)
    if not queries:
        raise ValueError("No text to answer: every line is empty.")
    _quiet()
    loaded, tokenizer = _load(model), _load_tokenizer(model)
    if task is not None and answering_name(loaded.config, task) not in loaded.tasks:
        raise ValueError(f"There is no task '{task}'. The model has {loaded.tasks}.")
    unknown = [name for name in among or [] if name not in loaded.tasks]
    if unknown:
        raise ValueError(f"There is no task '{unknown[0]}'. The model has {loaded.tasks}.")
    if task is None and abstain is None and len(loaded.tasks) == 1 and not by_name:
        task = loaded.tasks[0]
    loaded.to(_device())  # type: ignore[arg-type]
    predictor = Predictor(loaded, tokenizer, top_k, max_new_tokens)
    for line in predictor.answers(queries, task, abstain or False, among, by_name, answer_all):
        typer.echo(json.dumps(line, ensure_ascii=False))


def _read_queries(file: Path | None) -> list[Query]:
    """What the lines of a file or of stdin ask that are not empty: texts, or JSON objects.

    They are JSON if the file's name ends with .jsonl, or if each line of stdin is an object.
    """
    from .recipe.kinds.asking import Query
    from .recipe.predicting import read_query

    if file is None or str(file) == "-":
        if sys.stdin.isatty():
            raise ValueError("No text given. Give TEXT arguments, --file FILE, or pipe lines to stdin.")
        content = sys.stdin.buffer.read()
    else:
        try:
            content = file.read_bytes()
        except OSError as error:
            raise ValueError(f"--file {file} can not be read ({error.strerror}). Give the path of a file.") from error
    try:
        text = content.decode("utf-8-sig")  # without the mark that some programs begin a file with
    except UnicodeDecodeError as error:
        where = "What came from stdin" if file is None or str(file) == "-" else str(file)
        raise ValueError(f"{where} is not UTF-8 ({error}). Save it in UTF-8, or convert it with iconv.") from error
    # Only a line feed ends a line, and what stands before it on Windows: texts may hold other separators, such as
    # U+2028.
    numbered = enumerate((line.removesuffix("\r") for line in text.split("\n")), 1)
    lines = [(number, line) for number, line in numbered if line.strip()]
    is_json = file is not None and file.suffix == ".jsonl"
    if is_json or all(line.strip().startswith('{"') and line.strip().endswith("}") for _, line in lines):
        return [read_query(line, number) for number, line in lines]
    return [Query(line) for _, line in lines]


def _device() -> torch.device:
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


# -- extract ----------------------------------------------------------------------------------------------------------


@app.command()
def extract(
    model: ModelFolder,
    task: Annotated[str, typer.Argument(metavar="TASK", help="Name of the task.")],
    output: Annotated[Path, typer.Option(metavar="DIR", help="Where to: a folder that is new or empty.")],
    no_head: Annotated[
        bool, typer.Option("--no-head", help="The backbone alone, for tasks whose head transformers has no class for.")
    ] = False,
) -> None:
    """Take a task out as a plain transformers checkpoint, with labels and tokenizer, that loads without eidetic_hf."""
    _quiet()
    loaded, place = _load(model), Path(model)
    has_tokenizer = not place.is_dir() or (place / "tokenizer_config.json").exists()
    plain = loaded.extract_task(task, output, _load_tokenizer(model) if has_tokenizer else None, head=not no_head)
    beside = "" if has_tokenizer else f" ({model} has no tokenizer; save it beside)"
    out.print(f"{type(plain).__name__}: {output}{beside}", markup=False, soft_wrap=True)


# -- verify -----------------------------------------------------------------------------------------------------------


@app.command()
def verify(
    model: ModelFolder,
    task: TaskNames = None,
    logits: Annotated[
        bool, typer.Option("--logits", help="Load the model, and recompute what each task answered at its commit.")
    ] = False,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a repository on the Hub.")] = None,
    token: Annotated[str | None, typer.Option(help="Of the Hub, for a private repository.")] = None,
) -> None:
    """Hold a checkpoint against its certificates, by hashes. Exit code 0: all is as it was; 1: not; 2: damaged files.

    No backbone is built, so it takes as long as to hash the files.
    """
    from .configuration import plain_name
    from .model.integrity import edited_files, verify_folder
    from .recipe.plugins import load_installed_plugins

    hub = {name: value for name, value in (("revision", revision), ("token", token)) if value is not None}
    _quiet(with_data=logits)
    if not logits:
        load_installed_plugins()
        with _readable_place(model):
            report = verify_folder(model, hub, task or None)
    else:
        loaded = _load(model, **hub)
        for name in task or []:
            if plain_name(name) not in loaded.tasks:
                raise ValueError(f"There is no task '{name}'. The model has {loaded.tasks}.")
        report = loaded.verify(task or None)
        report.edited = edited_files(model, hub)
    _print_verdict(str(report), report.ok)
    if not report.ok:
        raise typer.Exit(1)


# -- tasks that come and go -------------------------------------------------------------------------------------------


@app.command()
def remove(
    model: ModelFolder,
    task: Annotated[str, typer.Argument(metavar="TASK", help="The task to let go.")],
    cascade: Annotated[bool, typer.Option("--cascade", help="And all tasks that read it.")] = False,
    backbone: Annotated[
        str | None,
        typer.Option(
            help="Folder or Hub id of the backbone, for its values, if the model does not say (fixed growth)."
        ),
    ] = None,
) -> None:
    """Remove a task from a folder for good: nothing of it stays, and every other task answers as before."""
    _quiet()
    folder = _folder(model)
    loaded = _load(model)
    gone = loaded.remove_task(task, cascade, backbone)
    _save(loaded, folder)
    out.print(f"removed: {', '.join(gone)}", markup=False, soft_wrap=True)


@app.command()
def merge(
    model: ModelFolder,
    other: Annotated[str, typer.Argument(metavar="OTHER", help="Another checkpoint of the same backbone.")],
    output: Annotated[Path, typer.Option(help="Folder of the model with the tasks of both; a new one.")],
    prefix: Annotated[str | None, typer.Option(help="Put before the names of the tasks of OTHER.")] = None,
) -> None:
    """Write a model with all tasks of two: each answers as it did, bit for bit."""
    _quiet()
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ValueError(f"--output {output} is there already. Name a new folder.")
    loaded = _load(model)
    came = loaded.merge(other, prefix)
    _save(loaded, output)
    if _has_tokenizer(model):
        _load_tokenizer(model).save_pretrained(output)
    out.print(f"came: {', '.join(came) or '(nothing that was not there)'}", markup=False, soft_wrap=True)


@app.command()
def add(
    model: ModelFolder,
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="A checkpoint of the same backbone that has TASK.")],
    task: Annotated[str, typer.Argument(metavar="TASK", help="The task to bring along.")],
    name: Annotated[str | None, typer.Option(help="Its name in MODEL, if not the same.")] = None,
) -> None:
    """Add a task out of another checkpoint to a folder, with the tasks that it reads."""
    _quiet()
    folder = _folder(model)
    loaded = _load(model)
    came = loaded.load_task(source, task, name)
    _save(loaded, folder)
    out.print(f"came: {', '.join(came) or '(nothing that was not there)'}", markup=False, soft_wrap=True)


# -- the Hub ----------------------------------------------------------------------------------------------------------


@app.command()
def push(
    model: Annotated[Path, typer.Argument(metavar="FOLDER", help="Checkpoint folder.")],
    repository: Annotated[str, typer.Argument(metavar="REPO", help="Its id on the Hub, such as owner/name.")],
    merge: Annotated[
        bool, typer.Option("--merge", help="Bring along the tasks that only the repository has (growth: copy).")
    ] = False,
    replace: Annotated[bool, typer.Option("--replace", help="Let go what only the repository has.")] = False,
    private: Annotated[bool, typer.Option("--private", help="If the repository is made: a private one.")] = False,
    branch: Annotated[str | None, typer.Option(help="Where to, if not to main; made if it is not there.")] = None,
    create_pr: Annotated[bool, typer.Option("--create-pr", help="Open a pull request instead.")] = False,
    message: Annotated[str | None, typer.Option(help="Of the commit; by default the tasks that come and go.")] = None,
    no_tags: Annotated[bool, typer.Option("--no-tags", help="Give no task a tag of its name.")] = False,
    token: Annotated[
        str | None, typer.Option(help="Instead of HF_TOKEN, or that of `hf auth login`.", show_default=False)
    ] = None,
) -> None:
    """Push a folder to the Hub in one commit. Nothing that is there is lost, and nothing is sent twice."""
    from huggingface_hub.utils import disable_progress_bars

    from .model import hub

    _quiet()
    if not sys.stderr.isatty():
        disable_progress_bars()
    pushed = hub.push(
        _folder(str(model)),
        hub.Push(
            repository,
            branch=branch,
            create_pr=create_pr,
            private=private or None,
            token=token,
            commit_message=message,
            merge=merge,
            replace=replace,
            tags=not no_tags,
        ),
    )
    changed = pushed.uploaded or pushed.removed
    lines = [
        f"{'commit' if changed else 'nothing to push, as of'}: {pushed.commit.commit_url}",
        *([f"pull request: {pushed.commit.pr_url}"] if pushed.commit.pr_url else []),
        f"uploaded: {_counted(len(pushed.uploaded), 'file')}, {_counted(sum(pushed.uploaded.values()), 'byte')}",
        *(f"  {name}: {_counted(size, 'byte')}" for name, size in pushed.uploaded.items()),
        f"unchanged: {_counted(len(pushed.unchanged), 'file')}",
        *([f"removed: {', '.join(pushed.removed)}"] if pushed.removed else []),
        *([f"tags: {', '.join(pushed.tags)}"] if pushed.tags else []),
    ]
    for line in lines:
        out.print(line, markup=False, soft_wrap=True)


def _counted(count: int, what: str) -> str:
    """A number of things, in words."""
    return f"{count} {what}{'' if count == 1 else 's'}"


# -- the router -------------------------------------------------------------------------------------------------------


@app.command()
def explain(
    model: ModelFolder,
    texts: Annotated[list[str], typer.Argument(metavar="TEXT...", help="Texts without a task.")],
    among: Annotated[list[str] | None, typer.Option(help="A task to choose among; give it for each.")] = None,
) -> None:
    """Why each text goes to the task that it goes to, as one JSON object a line."""
    _quiet()
    loaded, tokenizer = _load(model), _load_tokenizer(model)
    for text, found in zip(texts, loaded.router.explain(texts, among, tokenizer), strict=True):
        typer.echo(json.dumps({"text": text, **found}, ensure_ascii=False))


@app.command()
def teach(
    model: ModelFolder,
    task: Annotated[str, typer.Argument(metavar="TASK", help="The task that the texts belong to.")],
    texts: Annotated[list[str], typer.Argument(metavar="TEXT...", help="Texts that went elsewhere.")],
    label: Annotated[
        str | None, typer.Option(help="The label of all these texts; by default the nearest one each.")
    ] = None,
    weight: Annotated[
        int | None,
        typer.Option(min=1, help="As how many training texts each counts; a hundredth of all by default."),
    ] = None,
    forget: Annotated[bool, typer.Option("--forget", help="Take them back, or out of what was learned.")] = False,
) -> None:
    """Show the router texts of a task, and save; no task's own answers change."""
    _quiet()
    folder = _folder(model)
    loaded, tokenizer = _load(model), _load_tokenizer(model)
    labels = None if label is None else [label] * len(texts)
    change = loaded.router.forget_examples if forget else loaded.router.add_examples
    change(task, texts, labels, tokenizer, weight)
    _save(loaded, folder)
    for text, found in zip(texts, loaded.router.explain(texts, None, tokenizer), strict=True):
        out.print(f"{found['task']} {found['probability']:.3f}  {text}", markup=False, soft_wrap=True)


# -- plan -------------------------------------------------------------------------------------------------------------


@app.command()
def plan(
    model: ModelFolder,
    tasks: Annotated[int, typer.Option(help="How many tasks are to come.")],
    like: Annotated[str | None, typer.Option(help="The task of the model that each of them is like.")] = None,
) -> None:
    """Which budgets coming tasks may have, how many bytes each takes, and what will be left."""
    _quiet()
    out.print(str(_load(model).plan(tasks, like)), markup=False, soft_wrap=True)


# -- preserve ---------------------------------------------------------------------------------------------------------


@app.command()
def preserve(
    model: ModelFolder, name: Annotated[str, typer.Option(help="What the task shall be called.")] = "base"
) -> None:
    """Let the backbone itself answer as one more task of the folder, exact for ever (models with growth: copy)."""
    _quiet()
    folder = _folder(model)
    loaded = _load(model)
    record = loaded.preserve(name)
    _save(loaded, folder)
    out.print(f"{record.name}: the backbone itself, {record.task_type}", markup=False, soft_wrap=True)


# -- report -----------------------------------------------------------------------------------------------------------


@app.command()
def report(
    output: Annotated[Path, typer.Argument(metavar="OUTPUT_DIR", help="Folder that `train` wrote to.")],
) -> None:
    """Write report.html and report.json again, from results.json."""
    from .recipe.report import REPORT_FILE, write_report
    from .recipe.results import RESULTS_FILE

    path = output / RESULTS_FILE
    if not path.exists():
        raise ValueError(f"{output} has no {RESULTS_FILE}. Give the folder that `eidetic-hf train` wrote to.")
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}). Run the recipe again, it will be written anew.") from error
    written = write_report(results, output / REPORT_FILE)
    out.print(f"report: {written}", markup=False, soft_wrap=True)
