"""Asks for what is publicly known of the locked versions' weaknesses, by pip-audit.

    python .ci/audit.py requirements/test-3.11.txt …

Exceptions stand in requirements/exceptions.toml, each with its reason and the last day on which it holds. The exit
status is 1 if a weakness has no exception, an exception has expired or a version could not be looked up.
"""

from __future__ import annotations

import datetime
import json
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

EXCEPTIONS = Path(__file__).parents[1] / "requirements" / "exceptions.toml"


def expired(exceptions: dict[str, dict[str, Any]], today: datetime.date) -> list[str]:
    """Returns a line for each exception that no longer holds or lacks its reason or day."""
    found = []
    for name, exception in exceptions.items():
        until, reason = exception.get("until"), exception.get("reason")
        if not isinstance(until, datetime.date) or not reason:
            found.append(f"{name}: expected `until = YYYY-MM-DD` and a `reason`, got {exception}")
        elif until < today:
            found.append(f"{name}: the exception has expired on {until}: {reason}")
    return found


def complaints(report: dict[str, Any], exceptions: dict[str, dict[str, Any]]) -> list[str]:
    """Returns a line for each weakness without an exception, and for each version that could not be looked up."""
    found = []
    for package in report["dependencies"]:
        if "skip_reason" in package:
            found.append(f"{package['name']}: not looked up: {package['skip_reason']}")
        for known in package.get("vulns", ()):
            if not {known["id"], *known["aliases"]} & exceptions.keys():
                mended = ", ".join(known["fix_versions"]) or "no version"
                found.append(f"{package['name']} {package['version']}: {known['id']}, mended in {mended}")
    return sorted(set(found))


def audit(lock: Path) -> dict[str, Any]:
    """Returns pip-audit's report about a lock.

    Raises:
      RuntimeError: it has none, as the service of advisories cannot be reached.
    """
    command = [sys.executable, "-m", "pip_audit", "--disable-pip", "--require-hashes", "--format", "json"]
    done = subprocess.run([*command, "--requirement", str(lock)], capture_output=True, text=True)
    try:
        report: dict[str, Any] = json.loads(done.stdout)
    except ValueError:
        raise RuntimeError(f"{lock}: no report: {done.stderr.strip()[-500:]}") from None
    return report


def main(locks: list[str]) -> int:
    """Audits the locks; prints what is wrong."""
    exceptions = tomllib.loads(EXCEPTIONS.read_text())
    wrong = expired(exceptions, datetime.date.today())
    for lock in locks:
        try:
            report = audit(Path(lock))
        except RuntimeError as error:
            wrong.append(str(error))
            continue
        found = complaints(report, exceptions)
        print(f"{lock}: {len(report['dependencies'])} versions, {len(found)} complaints")
        wrong += [line for line in found if line not in wrong]
    print("\n".join(wrong))
    return 1 if wrong or not locks else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
