"""Ask the advisory service whether a pinned version is known to be vulnerable; where it cannot be asked, say so.

A vulnerability fails, a service that is out of reach does not: pip-audit itself leaves with 1 for both, and with 0 for
packages that its index does not know.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

PINNED = Path(__file__).parent.parent / "constraints.txt"


def report(printed: str, errors: str) -> tuple[list[str], bool]:
    """Lines for a person, and whether something is vulnerable, from what pip-audit printed."""
    try:
        packages: list[dict[str, Any]] = json.loads(printed)["dependencies"]
    except (ValueError, KeyError):
        last = (errors.strip() or "it said nothing").splitlines()[-1]
        return [f"not audited: the advisory service cannot be reached ({last})"], False
    found = [
        f"{package['name']} {package['version']}: {advisory['id']}, fixed in {', '.join(advisory['fix_versions'])}"
        for package in packages
        for advisory in package.get("vulns", ())
    ]
    unknown = sum("skip_reason" in package for package in packages)
    lines = [*found, f"{len(packages) - unknown} of {len(packages)} pinned packages audited, {len(found)} advisories"]
    if unknown:
        lines.append(f"not audited: {unknown} that the advisory service does not know here")
    return lines, bool(found)


def main() -> None:
    audit = [sys.executable, "-m", "pip_audit", "-r", str(PINNED), "--no-deps", "--disable-pip", "-f", "json"]
    done = subprocess.run([*audit, "--progress-spinner", "off"], capture_output=True, text=True, check=False)
    lines, vulnerable = report(done.stdout, done.stderr)
    print("\n".join(lines))
    sys.exit(vulnerable)


if __name__ == "__main__":
    main()
