"""Record a run of the tests with the lowest versions that pyproject.toml allows.

    make test-lowest

runs this in the environment of the lowest versions, once all tests passed. It reads what pytest wrote with
`--junitxml`, in one file or several, and writes `benchmarks/results/lowest_versions.json`: what pyproject.toml asks
for, the versions that were tested, and how many tests passed or were skipped, and why.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import platform
import tomllib
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
RECORD = ROOT / "benchmarks" / "results" / "lowest_versions.json"


def direct_requirements(project: dict[str, Any], extra: str = "dev") -> dict[str, str]:
    """What a project asks for by itself and with an extra, and with the extras that this one names.

    Args:
        project: the table `project` of pyproject.toml.
        extra: the extra that is installed.

    Returns:
        Name of a package to its requirement, in the order of names.
    """
    found, waiting = {}, [*project["dependencies"], *project["optional-dependencies"][extra]]
    for line in waiting:
        requirement = Requirement(line)
        if requirement.name == project["name"]:
            for named in sorted(requirement.extras):
                waiting += project["optional-dependencies"][named]
        else:
            found[requirement.name] = line
    return dict(sorted(found.items(), key=lambda item: item[0].lower()))


def counted(files: Iterable[Path]) -> dict[str, Any]:
    """How many tests passed, failed, and were skipped for which reason.

    Args:
        files: what pytest wrote with `--junitxml`.
    """
    outcomes: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    for file in files:
        for case in ElementTree.parse(file).iter("testcase"):
            skip = case.find("skipped")
            if skip is not None:
                outcomes["skipped"] += 1
                reasons[skip.get("message", "")] += 1
            else:
                bad = case.find("failure") is not None or case.find("error") is not None
                outcomes["failed" if bad else "passed"] += 1
    return {
        "passed": outcomes["passed"],
        "failed": outcomes["failed"],
        "skipped": outcomes["skipped"],
        "reasons_to_skip": dict(sorted(reasons.items())),
    }


def main() -> None:
    """Write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path, help="what pytest wrote with --junitxml")
    files = parser.parse_args().files
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    requirements = direct_requirements(project)
    record = {
        "command": "make test-lowest",
        "date": datetime.date.today().isoformat(),
        "python": platform.python_version(),
        "tests": counted(files),
        "requirements": list(requirements.values()),
        "versions": {name: importlib.metadata.version(name) for name in requirements},
    }
    RECORD.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(f"{RECORD.relative_to(ROOT)}: {record['tests']['passed']} tests passed")


if __name__ == "__main__":
    main()
