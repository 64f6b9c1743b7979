"""The metadata at the top of a model card: what the library knows of a model, merged with what a person wrote.

The Hub reads it: https://github.com/huggingface/hub-docs/blob/main/modelcard.md. A license or a language is never
written, since nobody told the library; nor is what a person has changed or taken out.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

from huggingface_hub import EvalResult, ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from ...compat import need
from ...configuration import EideticConfig, TaskRecord
from ...kinds import TASK_KINDS, default_kind

NAME = "Eidetic model"  # what its results are listed under, wherever it goes
LIBRARY, TAGS = "eidetic_hf", ["eidetic", "continual-learning"]
# What the Hub calls the figures that it has a page for, https://hf.co/metrics, by what they are called here.
METRICS = {
    "accuracy": "accuracy", "f1": "f1", "precision": "precision", "recall": "recall", "exact_match": "exact_match",
    "mse": "mse", "mae": "mae", "pearson": "pearsonr", "spearman": "spearmanr", "perplexity": "perplexity",
    "matthews_correlation": "matthews_correlation", "bleu": "bleu", "sacrebleu": "sacrebleu", "rouge": "rouge",
    "meteor": "meteor", "chrf": "chrf", "ter": "ter", "cer": "cer", "wer": "wer", "bertscore": "bertscore",
}  # fmt: skip
MAX_RESULTS = 50  # tasks with results in the metadata: YAML is slow to read and to write
RESULTS = "model-index"
LISTS = ("tags", "datasets", "metrics")
SCALARS = ("library_name", "base_model", "base_model_relation", "pipeline_tag")
OURS = (*SCALARS, *LISTS, RESULTS)
# What transformers' `Trainer` writes, and is not so: transformers alone can not load the model.
MISTAKEN = {"library_name": "transformers"}


class UnmergeableMetadata(ValueError):
    """Metadata that is no YAML, or laid out so that one key can not be changed without touching the others."""


# -- what the library knows -------------------------------------------------------------------------------------------


def facts(config: EideticConfig) -> dict[str, Any]:
    """What is known of a model, by the Hub's keys; what is not known is not there."""
    served = [task for task in config.tasks if config.serves(task.name)]
    base, results = base_model(config), list[EvalResult]()
    for task in itertools.islice((task for task in served if figures(task)), MAX_RESULTS):
        results += _results(task)
    data = ModelCardData(
        library_name=LIBRARY,
        tags=list(TAGS),
        base_model=base,
        base_model_relation=base and ("finetune" if config.base is None else "adapter"),
        pipeline_tag=_pipeline_tag(config),
        datasets=_distinct(filter(None, map(dataset_id, served))) or None,
        metrics=_distinct(METRICS[metric] for task in served for metric in figures(task) if metric in METRICS) or None,
        model_name=NAME if results else None,
        eval_results=results or None,
    )
    known = data.to_dict()
    return {key: known[key] for key in (*SCALARS, *LISTS, RESULTS) if key in known}


def base_model(config: EideticConfig) -> str | None:
    """The Hub's id of the backbone, if its name is one: `user/name`.

    A name of one part is as likely that of a folder.
    """
    if not config.trunk_pretrained:
        return None
    name = config.base_config.name_or_path if config.base is None else config.base.get("name")
    return str(name) if _is_hub_id(name) and "/" in str(name) else None


def dataset_id(task: TaskRecord) -> str | None:
    """The Hub's id of the data set that a task was learned from, if the record says one."""
    name = data_of(task).get("dataset")
    return name if _is_hub_id(name) else None


def figures(task: TaskRecord) -> dict[str, float]:
    """The figures of a task that are numbers, by name, the loss last: in this order, whatever a file has kept."""
    found = task.metrics.items() if isinstance(task.metrics, dict) else ()
    # A whole number of hundreds of digits is none that could be shown.
    numbers = {
        str(name): value
        for name, value in found
        if isinstance(value, float) or (isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1e300)
    }
    return dict(sorted(numbers.items(), key=lambda item: (item[0] == "loss", item[0])))


def data_of(task: TaskRecord) -> Mapping[str, Any]:
    """What a record says of the data that a task was learned from."""
    return task.data if isinstance(task.data, Mapping) else {}


def _is_hub_id(name: object) -> bool:
    try:
        validate_repo_id(name)  # type: ignore[arg-type]
    except HFValidationError:
        return False
    return True


def _pipeline_tag(config: EideticConfig) -> str | None:
    """What the Hub calls the kind of tasks that answers where nobody asks for one; else that of the first task."""
    names = {task.task_type: None for task in config.tasks if config.serves(task.name)}
    chosen = default_kind(config)
    name = chosen if chosen in names else next(iter(names), None)
    return hub_task(name) if name is not None else None


def hub_task(kind: str) -> str | None:
    """What the Hub calls tasks of a kind; `None` for those that it has no name for."""
    known = TASK_KINDS.get(kind)
    return None if known is None else known.hub_task or known.pipeline


def _results(task: TaskRecord) -> list[EvalResult]:
    """The figures of a task as the Hub lists them."""
    kind, data, dataset = hub_task(task.task_type), data_of(task), dataset_id(task)
    split, revision, part = (_text_or_none(data.get(key)) for key in ("split", "revision", "config"))
    return [
        EvalResult(
            task_type=kind or "other",
            task_name=task.name,
            # Of unknown data sets the task's name keeps one from the other: the Hub joins results of equal data.
            dataset_type=dataset or "unknown",
            dataset_name=dataset or f"data of {task.name}",
            dataset_config=part if dataset else task.name,
            dataset_split=split,
            dataset_revision=revision if dataset else None,
            metric_type=METRICS[metric],
            metric_name=f"{task.name}: {metric}",
            metric_value=float(f"{value:.6g}"),
        )
        for metric, value in figures(task).items()
        if metric in METRICS and math.isfinite(value)
    ]


def _text_or_none(value: object) -> str | None:
    return value if isinstance(value, str) and value.isprintable() and value else None


def _distinct(values: Iterable[Any]) -> list[Any]:
    return list(dict.fromkeys(values))


# -- what is remembered of the last time ------------------------------------------------------------------------------


def summary(known: Mapping[str, Any]) -> dict[str, Any]:
    """What has to be remembered of `facts`, to tell at the next save what a person has changed since."""
    remembered = {key: value for key, value in known.items() if key != RESULTS}
    if RESULTS in known:
        remembered[RESULTS] = _distinct(_task_of(result) for result in known[RESULTS][0]["results"])
    return remembered


def _task_of(result: Mapping[str, Any]) -> str:
    """The task that a result is of."""
    return result["task"]["name"]


# -- merging ----------------------------------------------------------------------------------------------------------


def write_metadata(known: Mapping[str, Any]) -> str:
    """Metadata as YAML, without the lines around it."""
    return "\n".join(_as_yaml(key, value) for key, value in known.items())


def merge_metadata(text: str, known: Mapping[str, Any], before: Mapping[str, Any]) -> str:
    """Bring metadata up to date: a three-way merge, key by key.

    What was written the last time and still stands is the library's: it is brought up to date. All else is a
    person's, who may have changed a value, added some to a list, or taken out a key or an item; it stays. Lines of
    keys that do not change keep their bytes, and so do comments between keys.

    Args:
        text: the metadata as it stands, lines ending with a newline.
        known: `facts` of the model.
        before: `summary` of the facts that were known the last time; empty, if nothing is known of it.

    Raises:
        UnmergeableMetadata: if it is no YAML, or laid out so that a key has no lines of its own.
    """
    if text == write_metadata(known) and before == summary(known):
        return text
    lines = text.split("\n") if text.strip() else []
    places = _places(lines)
    for key in [*reversed(places), *(key for key in OURS if key not in places)]:  # from below: places stay right
        if key in OURS:
            start, end = places.get(key, (len(lines), len(lines)))
            written = _value("\n".join(lines[start:end]), key) if key in places else None
            merged = _merged(key, written, known.get(key), before.get(key))
            if merged != written:
                lines[start:end] = [] if merged is None else _as_yaml(key, merged).split("\n")
    if "&" in text:  # what was taken out may be what an alias stands for
        _places(lines)
    return "\n".join(lines)


def _merged(key: str, theirs: Any, ours: Any, before: Any) -> Any:
    """What a key is to hold; `None` if it is not to be there."""
    if theirs is None:
        return ours if before is None else None  # else somebody has taken it out
    if key == RESULTS:
        return _merged_results(theirs, ours, before or [])
    if key in LISTS:
        return _merged_list(theirs, ours or [], before or [])
    return ours if theirs in (before, MISTAKEN.get(key)) else theirs


def _merged_list(theirs: Any, ours: list[str], before: list[str]) -> Any:
    """A list without what is not so any more, and with what is new."""
    items = [theirs] if isinstance(theirs, str) else theirs
    if not isinstance(items, list):
        return theirs
    gone, there = set(before) - set(ours), {item for item in items if isinstance(item, str)}
    merged = [item for item in items if not (isinstance(item, str) and item in gone)]
    merged += [item for item in ours if item not in there and item not in set(before)]
    return theirs if merged == items else merged or None


def _merged_results(theirs: Any, ours: Any, before: list[str]) -> Any:
    """Results of a person's stay, before the model's own."""
    new = ours[0]["results"] if ours else []
    if theirs == []:
        return ours
    models: list[Any] = theirs if isinstance(theirs, list) else [None]
    if not all(isinstance(model, dict) and isinstance(model.get("results"), list) for model in models):
        return theirs
    tasks = {*before, *map(_task_of, new)}
    kept = [
        {**model, "results": [each for each in model["results"] if not _is_of_tasks(each, tasks)]} for model in models
    ]
    kept[0]["results"] += new
    return kept if any(model["results"] for model in kept) or kept == theirs else None


def _is_of_tasks(result: Any, tasks: set[str]) -> bool:
    """Whether all figures of a result are named as `_results` names those of some tasks."""
    metrics = result.get("metrics") if isinstance(result, dict) else None
    if not isinstance(metrics, list) or not all(isinstance(metric, dict) for metric in metrics):
        return False
    names = [str(metric.get("name")).partition(": ") for metric in metrics]
    return all(colon and task in tasks for task, colon, _ in names)


# -- YAML -------------------------------------------------------------------------------------------------------------


def _places(lines: list[str]) -> dict[str, tuple[int, int]]:
    """First and last line, exclusive, of every key, in order; comments and empty lines behind it are nobody's.

    Raises:
        UnmergeableMetadata: if it is no YAML, or laid out so that a key has no lines of its own.
    """
    yaml = need("yaml", why="A model card")
    try:
        root = yaml.compose("\n".join(lines), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UnmergeableMetadata(f"it is no YAML ({' '.join(str(error).split())})") from error
    if root is None:
        return {}
    if not isinstance(root, yaml.MappingNode):
        raise UnmergeableMetadata("it is not made of keys and values")
    starts = [key.start_mark.line for key, _ in root.value]
    names = [key.value if isinstance(key, yaml.ScalarNode) else "" for key, _ in root.value]
    apart = len(set(starts)) == len(starts) and all(
        # Not so where YAML counts other lines: it ends them at characters that are none elsewhere, too.
        start < len(lines) and re.match(rf"[\"']?{re.escape(name)}[\"']?\s*:", lines[start])
        for start, name in zip(starts, names, strict=True)
    )
    if root.flow_style or not apart or len(set(names)) != len(names):
        raise UnmergeableMetadata("a key has no lines of its own, or is there twice")
    places = {}
    for name, start, end in zip(names, starts, [*starts[1:], len(lines)], strict=True):
        while end > start + 1 and (not lines[end - 1].strip() or lines[end - 1].startswith("#")):
            end -= 1
        places[name] = (start, end)
    return places


def _value(text: str, key: str) -> Any:
    """The value of the only key of some YAML.

    Raises:
        UnmergeableMetadata: if it has none of its own.
    """
    yaml = need("yaml", why="A model card")
    try:
        return yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))[key]
    except (yaml.YAMLError, ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
        raise UnmergeableMetadata(f"{key} can not be read ({' '.join(str(error).split())})") from error


def _as_yaml(key: str, value: Any) -> str:
    yaml = need("yaml", why="A model card")
    dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
    return yaml.dump({key: value}, Dumper=dumper, sort_keys=False, allow_unicode=True).rstrip("\n")
