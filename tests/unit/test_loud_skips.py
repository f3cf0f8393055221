"""What a machine lacks is named at the end of a run, all of it together, and not only in the small print."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.parametrize(("environment", "status"), [({}, 0), ({"CI": "true"}, 1)], ids=["here", "ci"])
def test_tools_that_are_not_there_are_named_together_at_the_end_with_what_they_kept_from_being_tested(
    environment: dict[str, str], status: int
) -> None:
    """CI can have them all, so there the run fails."""
    skipping = ["tests/unit/test_metrics.py", "tests/e2e/test_readme.py", "tests/e2e/test_prometheus.py"]
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", *skipping, "-k", "the_metrics_check or every_block or without_a_word"],
        cwd=ROOT,
        env={"PATH": "/nowhere", "PYTHONPATH": "daemon", **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == status, ran.stdout + ran.stderr
    loud = ran.stdout.partition("!! NOT TESTED on this machine !!")[2].splitlines()[1:]
    assert [line for line in loud if " skipped, in " in line] == [
        "needs bash: 1 skipped, in tests/e2e/test_readme.py",
        "no Prometheus on this machine: 1 skipped, in tests/e2e/test_prometheus.py",
        "promtool is not installed (Debian: prometheus): 1 skipped, in tests/unit/test_metrics.py",
    ]
