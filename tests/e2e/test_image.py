"""The Dockerfile without Docker: each of its steps is run as a script, in a root of its own, and the result used.

There is no engine where these tests run. COPY and RUN are carried out in order with every path moved below a temporary
directory; what only an engine can do (FROM, USER, the read-only root) is held by reading the file.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import urllib.error
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pgherald.emulator.client import emulator_process
from tests.support.daemon import PATIENCE, wait_for
from tests.support.organisation import Organisation
from tests.support.readme import README, blocks

if TYPE_CHECKING:
    from tests.support.postgres import Server

ROOT = Path(__file__).parents[2]

Step = tuple[str, str]


def stages() -> list[list[Step]]:
    """The instructions of each stage, continuation lines joined, comments left out."""
    lines = [line for line in (ROOT / "Dockerfile").read_text().splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    found: list[list[Step]] = []
    for line in filter(None, joined.splitlines()):
        name, _, rest = line.partition(" ")
        if name == "FROM":
            found.append([])
        found[-1].append((name, rest))
    return found


@dataclass(frozen=True, slots=True)
class Image:
    """What the build stage made: `root` is its file system's root, as far as the steps wrote to it."""

    root: Path

    def moved(self, text: str) -> str:
        """A step's text with the image's directories below `root`."""
        return re.sub(r"(?<![\w./-])/(opt|var/lib|src)\b", rf"{self.root}/\1", text)


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Image:
    """The build stage, run here: its pip is this interpreter's own, told which environment it installs into."""
    image = Image(tmp_path_factory.mktemp("image"))
    workdir = image.root / "src"
    for directory in ("src", "opt", "bin"):
        (image.root / directory).mkdir()
    (image.root / "bin" / "pip").write_text(f'#!/bin/sh\nexec {sys.executable} -m pip "$@"\n')
    (image.root / "bin" / "pip").chmod(0o755)
    (image.root / "bin" / "python").symlink_to(sys.executable)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PGHERALD_", "VIRTUAL_"))}
    environment["PATH"] = f"{image.root}/bin:{environment['PATH']}"
    for name, rest in stages()[0]:
        if name == "COPY":
            *sources, target = rest.split()
            for source in sources:
                copy(ROOT / source, workdir / target)
        elif name == "RUN":
            script = image.moved(rest).replace("RUN python ", f"{sys.executable} ")
            ran = subprocess.run(
                ["bash", "-eu", "-o", "pipefail", "-c", script],
                cwd=workdir,
                env=environment,
                capture_output=True,
                text=True,
                check=False,
            )
            assert ran.returncode == 0, f"RUN {rest}\n{ran.stdout[-2000:]}{ran.stderr[-2000:]}"
    return image


def copy(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target, symlinks=True, ignore=shutil.ignore_patterns("__pycache__", ".*_cache"))
    else:
        shutil.copy(source, target / source.name if target.is_dir() else target)


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_the_image_holds_a_daemon_that_runs_and_is_found_healthy(image: Image, pg18: Server, tmp_path: Path) -> None:
    environment = dict(re.findall(r"(\w+)=(\S+)", next(rest for name, rest in stages()[1] if name == "ENV")))
    assert environment["PGHERALD_STATE_DIR"] == "/var/lib/pgherald"
    health = json.loads(next(rest for name, rest in stages()[1] if name == "HEALTHCHECK").partition("CMD ")[2])
    program = str(image.root / "opt/pgherald/bin/pgherald")
    with pg18.database() as database, emulator_process() as emulator:
        settings = {
            "PATH": f"{image.root}/opt/pgherald/bin:{os.environ['PATH']}",
            "PGHERALD_STATE_DIR": str(tmp_path / "state"),
            "PGHERALD_METRICS_LISTEN": "127.0.0.1:0",
            "PGHERALD_DATABASE_URL": database.daemon_dsn,
            **emulator.environment,
        }
        log = tmp_path / "log"
        with log.open("w") as out:
            process = subprocess.Popen([program, "run"], env=settings, stdout=out, stderr=out, cwd=tmp_path)
        try:
            wait_for(lambda: '"event":"ready"' in log.read_text(), otherwise=log.read_text)
            listen = next(json.loads(line)["listen"] for line in log.read_text().splitlines() if "listen" in line)
            healthy = subprocess.run(
                health, env=settings | {"PGHERALD_METRICS_LISTEN": listen}, check=False, capture_output=True
            )
            assert healthy.returncode == 0, healthy.stderr
            organisation = Organisation(database.connect())
            organisation.enqueue(organisation.scenario(), organisation.mentor("phone-1"))
            wait_for(lambda: len(organisation.notifications()) == 1)
        finally:
            process.terminate()
            assert process.wait(PATIENCE) == 0
        ill = subprocess.run(
            health, env=settings | {"PGHERALD_METRICS_LISTEN": listen}, check=False, capture_output=True, text=True
        )
        assert ill.returncode != 0
        assert urllib.error.URLError.__name__ in ill.stderr


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_the_image_says_what_is_in_it_and_holds_no_tool_to_add_more(image: Image) -> None:
    (label,) = [rest for name, rest in stages()[1] if name == "LABEL"]
    told = dict(part.partition("=")[::2] for part in shlex.split(label))
    path = told["org.opencontainers.image.sbom"]
    document = json.loads((image.root / path.lstrip("/")).read_text())
    assert (document["bomFormat"], document["specVersion"]) == ("CycloneDX", "1.5")
    listed = {component["name"].lower().replace("_", "-") for component in document["components"]}
    locked = set(re.findall(r"^([a-z0-9-]+)==", (ROOT / "requirements-demo.lock").read_text(), re.MULTILINE))
    assert {"pgherald", "psycopg", "httpx2", "google-auth"} <= listed
    assert listed - {"pgherald"} <= locked, "something is installed that no lock names"
    assert not (image.root / "opt/pgherald/bin/pip").exists()
    assert sum(file.stat().st_size for file in (image.root / "opt").rglob("*") if file.is_file()) < 250e6


def test_the_container_is_nobody_special_and_keeps_its_spool_on_a_volume() -> None:
    build, final = stages()
    steps = dict(final)
    assert steps["USER"] == "pgherald"
    assert steps["VOLUME"] == "/var/lib/pgherald"
    assert steps["STOPSIGNAL"] == "SIGTERM"
    assert json.loads(steps["ENTRYPOINT"]) == ["pgherald"]
    names = [name for name, _ in final]
    assert names.index("USER") < names.index("ENTRYPOINT")
    assert not [rest for _, rest in build + final if re.search(r"curl|wget|apt-get|https?://(?!127)", rest)]
    (told,) = [block.text for block in blocks("bash") if "docker run" in block.text]
    assert "--read-only" in told
    assert "--cap-drop ALL" in told
    (uid,) = re.findall(r"--uid (\d+)", (ROOT / "Dockerfile").read_text())
    assert f"`chown {uid}`" in README.read_text(), "whose its credentials have to be"
