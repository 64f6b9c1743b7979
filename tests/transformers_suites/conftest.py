"""Keeps transformers' suites out of the fast run, and holds their failures against the list of what is by design."""

from __future__ import annotations

import fnmatch
import re
from pathlib import Path

import pytest
import transformers.testing_utils
from transformers_suites import suites
from transformers_suites.by_design import BY_DESIGN, KNOWN, SKIPPED

MARK = re.compile(r"\bmark\.(\w+)")


def pytest_configure(config: pytest.Config) -> None:
    """Make the suites' own markers known; pytest refuses others here."""
    folder = suites.folder()
    if folder is not None:
        files = [Path(transformers.testing_utils.__file__), *folder.glob("*.py")]
        files += [path for name in suites.FOLDERS for path in folder.glob(f"{name}/*.py")]
        for name in sorted({name for path in files for name in MARK.findall(path.read_text())}):
            config.addinivalue_line("markers", f"{name}: of transformers' suites")


def pytest_itemcollected(item: pytest.Item) -> None:
    """Mark every test of a suite, those that have to fail, and those that can not be run."""
    item.add_marker(pytest.mark.transformers)
    suite = item.getparent(pytest.Class)
    item.add_marker(pytest.mark.xdist_group(item.path.name if suite is None else suite.name))
    name = item.nodeid.partition("transformers_suites/")[2]
    for pattern, reason in {**BY_DESIGN, **KNOWN}.items():
        if fnmatch.fnmatchcase(name, pattern):
            item.add_marker(pytest.mark.xfail(reason=reason, strict=True))
    for pattern, reason in SKIPPED.items():
        if fnmatch.fnmatchcase(name, pattern):
            item.add_marker(pytest.mark.skip(reason=reason))
