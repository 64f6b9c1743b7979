"""Every check on every architecture, as a table.

    python recipes/architecture_matrix.py [--workers 2] [--architectures bert t5] [--checks poison bf16]
        [--json matrix.json]

Runs the generated tests of `tests/network/test_architectures.py` on tiny random backbones and prints a row per
architecture and a column per check: whether it passed, failed, or has no meaning there (`-`). What a check says
stands in its test's docstring, and below the table. Takes about four minutes on two cores, without network. Exits
with 1 if a check failed.
"""

from __future__ import annotations

import argparse
import ast
import json
import re
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from pathlib import Path

from rich.console import Console
from rich.table import Table

TESTS = Path(__file__).parent.parent / "tests" / "network" / "test_architectures.py"
MARKS = {"passed": "[green]✓[/]", "failed": "[bold red]✗[/]", "skipped": "[yellow]skipped[/]"}


def run_checks(
    workers: int, architectures: list[str], wanted: list[str]
) -> tuple[dict[str, dict[str, str]], float, str]:
    """Run the checks in processes of their own.

    Args:
        workers: number of processes.
        architectures: which ones; all if empty.
        wanted: which checks; all if empty.

    Returns:
        Outcome by architecture and check, seconds taken, and what pytest printed.
    """
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", str(TESTS), "-m", "matrix", f"--junitxml={report}"]
        command += ["-p", "no:cacheprovider", "-n", str(workers), "--dist", "loadgroup"]
        chosen = [f"[{name}]" for name in architectures], [f"test_{check}[" for check in wanted]
        if any(chosen):
            command += ["-k", " and ".join(f"({' or '.join(names)})" for names in chosen if names)]
        done = subprocess.run(command, cwd=TESTS.parent.parent, capture_output=True, text=True)
        if not report.exists():
            raise SystemExit(done.stdout + done.stderr)
        return (*read_report(report.read_text()), done.stdout)


def read_report(report: str) -> tuple[dict[str, dict[str, str]], float]:
    """Outcome by architecture and check, and seconds taken, from a report in JUnit's format."""
    outcomes: dict[str, dict[str, str]] = {}
    root = ElementTree.fromstring(report)
    for case in root.iter("testcase"):
        name = re.fullmatch(r"test_(\w+)\[(.+?)\](@.*)?", case.attrib["name"])
        if name is None:
            continue
        found = {child.tag for child in case}
        outcome = "failed" if found & {"failure", "error"} else "skipped" if "skipped" in found else "passed"
        row = outcomes.setdefault(name[2], {})
        row[name[1]] = outcome if row.get(name[1]) != "failed" else "failed"
    return outcomes, float(next(root.iter("testsuite")).attrib["time"])


def checks() -> dict[str, str]:
    """What each check says, in the order of the tests."""
    functions = [node for node in ast.parse(TESTS.read_text()).body if isinstance(node, ast.FunctionDef)]
    return {
        function.name.removeprefix("test_"): (ast.get_docstring(function) or "").partition("\n\n")[0]
        for function in functions
        if any("over" in ast.dump(decorator) for decorator in function.decorator_list)
    }


def table_of(outcomes: dict[str, dict[str, str]]) -> Table:
    """A row per architecture, a column per check."""
    said = [check for check in checks() if any(check in row for row in outcomes.values())]
    table = Table(title="architecture x check", header_style="bold")
    table.add_column("", no_wrap=True)
    for check in said:
        table.add_column(check.replace("_", "\n"), justify="center", vertical="bottom")
    for architecture, row in outcomes.items():
        table.add_row(architecture, *(MARKS.get(row.get(check, ""), "-") for check in said))
    return table


def main() -> None:
    """Run, print, and write as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=2, help="processes to run in")
    parser.add_argument("--architectures", nargs="*", default=[], help="which ones; all by default")
    parser.add_argument("--checks", nargs="*", default=[], help="which ones; all by default")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    outcomes, seconds, printed = run_checks(options.workers, options.architectures, options.checks)
    console = Console(width=max(Console().width, 180))
    console.print(table_of(outcomes))
    for check, says in checks().items():
        console.print(f"  [bold]{check}[/]: {' '.join(says.split())}", highlight=False)
    every = [outcome for row in outcomes.values() for outcome in row.values()]
    console.print(f"\n{every.count('passed')} of {len(every)} checks passed, {seconds:.0f} s.")
    if options.json:
        options.json.write_text(json.dumps({"outcomes": outcomes, "seconds": seconds}, indent=1))
    if not every or set(every) != {"passed"}:
        console.print(printed[-6000:], markup=False, highlight=False)
        raise SystemExit(1)


if __name__ == "__main__":
    main()
