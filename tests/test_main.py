"""The start of the command line: what it loads, and what it says where a package is missing."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "eidetic_hf"


# Loading the package registers its models with transformers, which takes seconds and has nothing to do with the start.
BARE_PACKAGE = f"""
import sys, types
package = types.ModuleType("eidetic_hf")
package.__path__ = [{str(PACKAGE)!r}]
sys.modules["eidetic_hf"] = package
"""


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize("missing", ["typer", "evaluate"])
def test_without_a_package_of_the_extra_one_sentence_says_what_to_install(missing: str) -> None:
    done = python(BARE_PACKAGE + f"sys.modules[{missing!r}] = None; from eidetic_hf.__main__ import main; main()")
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr == (
        f"error: the command line needs packages that are not installed ({missing}). Install them with: pip install "
        "'eidetic-hf[recipe]'\n"
    )


def test_help_loads_neither_torch_nor_transformers() -> None:
    heavy = ("torch", "transformers", "datasets", "evaluate", "sklearn", "matplotlib")
    done = python(
        BARE_PACKAGE + "from eidetic_hf.__main__ import main\n"
        "for arguments in (['--help'], ['predict', '--help'], ['--version']):\n"
        "    sys.argv = ['eidetic-hf', *arguments]\n"
        "    try:\n"
        "        main()\n"
        "    except SystemExit as end:\n"
        "        assert not end.code, end.code\n"
        f"print([name for name in {heavy!r} if name in sys.modules])\n"
    )
    assert done.returncode == 0, done.stderr
    assert "Usage: eidetic-hf" in done.stdout and "--plugin" in done.stdout
    assert done.stdout.splitlines()[-1] == "[]"


def test_python_dash_m_and_the_script_start_in_the_same_place() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "eidetic_hf", "--version"], capture_output=True, text=True, timeout=300
    )
    assert done.stdout.startswith("eidetic-hf ") and done.returncode == 0
    text = (PACKAGE.parent / "pyproject.toml").read_text()
    assert 'eidetic-hf = "eidetic_hf.__main__:main"' in text
    assert importlib.metadata.version("eidetic-hf") == done.stdout.split()[1]
