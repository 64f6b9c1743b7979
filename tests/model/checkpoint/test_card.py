"""The model card: what it says of the model, and what a person wrote."""

from __future__ import annotations

import copy
import re
from pathlib import Path

import pytest
from support.folders import (
    hashes,
)
from transformers import BertConfig

from eidetic_hf import EideticConfig, EideticModel
from eidetic_hf.configuration import TaskRecord
from eidetic_hf.model.checkpoint.card import CARD_BEGIN, CARD_END, model_card


def test_the_card_lists_every_task_with_its_sha256(grown_saved: Path, grown: EideticModel) -> None:
    text = (grown_saved / "README.md").read_text()
    found = hashes(grown_saved)
    for name in grown.tasks:
        file, owned = f"eidetic-task-{name}.safetensors", grown.capacity()["owned"][name]
        row = rf"^\| {name} \| sequence-classification \| 3 \| .* \| {owned} \| `{file}` \| `{found[file]}` \|$"
        assert re.search(row, text, re.MULTILINE)
    assert text.startswith("---\n") and "library_name: eidetic_hf" in text
    assert "new tasks can be learned" in text


def test_the_card_of_a_release_says_that_it_only_infers(model: EideticModel, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "release", include_pool=False)
    assert "inference only" in (tmp_path / "release" / "README.md").read_text()


def test_what_a_person_wrote_around_the_table_stays(grown: EideticModel, folder: Path) -> None:
    path = folder / "README.md"
    _, rest = path.read_text().split(CARD_BEGIN)
    mine, after = "# My model — für alle\n\nKept.\n", "\n## My notes\n\nKept, too.\n"
    path.write_text(mine + CARD_BEGIN + rest + after)
    copy.deepcopy(grown).save_pretrained(folder)
    text = path.read_text()
    assert text.startswith(mine) and text.endswith(after)
    assert "| third |" in text and text.count("| first |") == 1


def test_a_readme_that_a_person_wrote_without_the_markers_stays(model: EideticModel, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("# My own model card\n\nWritten by hand.\n")
    model.save_pretrained(tmp_path)
    text = (tmp_path / "README.md").read_text()
    assert "Written by hand." in text and "| first |" in text


def config_of(name: str = "", pool: bool = True, **metrics: float) -> EideticConfig:
    """A configuration of one task, on a backbone of this name."""
    task = TaskRecord(
        "mail.v2", labels=["x", "y"], units={"layers.1.heads": 2, "layers.1.neurons": 5}, metrics=metrics
    )
    config = EideticConfig(BertConfig(name_or_path=name), trunk_layers=1, tasks=[task], pool=pool)
    config.files = {"eidetic-task-mail.v2.safetensors": {"sha256": "ab" * 32, "bytes": 1}}
    if pool:
        config.files["eidetic-pool.safetensors"] = {"sha256": "cd" * 32, "bytes": 1}
    return config


# The whole card; what varies is named. Nothing but the text between the markers changes with later saves.
CARD = re.compile(
    r"""---
library_name: eidetic_hf
tags:
- eidetic
- continual-learning
---

# Eidetic model

One model, several text tasks, learned one after another on (?P<source>.+) with eidetic_hf\.

<!-- eidetic_hf: begin -->
## Tasks

(?P<table>.+)

The pool of free units is (?P<pool>included: new tasks can be learned|left out: inference only)\. \
Shards of committed tasks never change: `sha256sum eidetic-task-\*\.safetensors` shows it, `model\.verify\(\)` \
recomputes it\.
<!-- eidetic_hf: end -->

## Use

`pip install eidetic-hf`, and `import eidetic_hf` before any Auto class or pipeline of transformers loads this \
folder\. Without it they say that they do not know the model type `eidetic`, and that transformers is to be upgraded, \
which does not help\.

```python
import eidetic_hf

model = eidetic_hf\.EideticModel\.from_pretrained\(folder\)
model\(\*\*tokenizer\(text, return_tensors="pt"\), task=model\.tasks\[0\]\)
```
""".replace("\\\n", ""),
    re.DOTALL,
)


def test_a_saved_card_is_the_template_filled_in(grown_saved: Path) -> None:
    match = CARD.fullmatch((grown_saved / "README.md").read_text())
    assert match and match["source"] == "a bert backbone" and match["pool"].startswith("included")
    assert re.findall(r"^\| (\w+) \| sequence", match["table"], re.MULTILINE) == ["first", "second", "third"]


def test_a_row_says_what_the_record_and_the_files_say() -> None:
    match = CARD.fullmatch(model_card(config_of("bert-tiny", accuracy=0.91234567, loss=2.0)))
    assert match and match["source"] == "`bert-tiny`"
    assert match["table"] == (
        "| task | kind | labels | metrics | units owned | shard | sha256 |\n|---|---|---|---|---|---|---|\n"
        "| mail.v2 | sequence-classification | 2 | accuracy 0.9123, loss 2 | 7 | "
        f"`eidetic-task-mail.v2.safetensors` | `{'ab' * 32}` |"
    )


def test_a_card_without_tasks_metrics_or_pool_says_so() -> None:
    config = config_of(pool=False)
    match = CARD.fullmatch(model_card(config))
    assert match and match["pool"] == "left out: inference only" and " | 2 | - | 7 | " in match["table"]
    config.tasks = []
    match = CARD.fullmatch(model_card(config))
    assert match and match["table"] == "No task has been committed yet."


def test_a_dollar_in_a_name_is_no_placeholder() -> None:
    match = CARD.fullmatch(model_card(config_of("$tasks and ${pool} for 5 $")))
    assert match and match["source"] == "`$tasks and ${pool} for 5 $`"


def test_a_card_that_was_written_by_the_library_is_replaced_between_the_markers_only() -> None:
    config = config_of()
    old, new = model_card(config), model_card(config_of(pool=False))
    edited = old.replace("# Eidetic model", "# Mine").replace("## Use", "## Mine, too")
    assert model_card(config, old) == old
    expected = new.replace("# Eidetic model", "# Mine").replace("## Use", "## Mine, too")
    assert model_card(config_of(pool=False), edited) == expected


@pytest.mark.parametrize("marker", [CARD_BEGIN, CARD_END])
def test_a_card_that_lost_a_marker_keeps_every_word_and_gets_the_table_at_its_end(marker: str) -> None:
    old = model_card(config_of()).replace(marker, "")
    new = model_card(config_of(), old)
    assert new.startswith(old.rstrip()) and new.endswith(f"{CARD_END}\n")
    assert new[len(old.rstrip()) :].count(CARD_BEGIN) == 1
