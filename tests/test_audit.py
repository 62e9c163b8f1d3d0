"""What `make audit` says: a vulnerability fails, and what could not be audited does not pass for harmless."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

report = runpy.run_path(str(Path(__file__).parent.parent / ".ci/audit.py"))["report"]


def test_a_vulnerable_version_fails_and_is_named() -> None:
    advisory = {"id": "PYSEC-2020-1", "fix_versions": ["2.1", "1.9"], "aliases": [], "description": ""}
    packages = [{"name": "one", "version": "2.0", "vulns": [advisory]}, {"name": "two", "version": "1", "vulns": []}]
    lines, vulnerable = report(json.dumps({"dependencies": packages, "fixes": []}), "Found 1 known vulnerability")
    assert vulnerable
    assert lines == ["one 2.0: PYSEC-2020-1, fixed in 2.1, 1.9", "2 of 2 pinned packages audited, 1 advisories"]


def test_what_could_not_be_audited_is_said() -> None:
    packages = [{"name": "one", "skip_reason": "not found"}, {"name": "two", "version": "1", "vulns": []}]
    lines, vulnerable = report(json.dumps({"dependencies": packages}), "")
    assert not vulnerable
    assert lines[-1] == "not audited: 1 that the advisory service does not know here"
    assert report("", "Traceback\nConnectionError: no route") == (
        ["not audited: the advisory service cannot be reached (ConnectionError: no route)"],
        False,
    )
