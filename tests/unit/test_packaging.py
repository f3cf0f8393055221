"""What is shipped: the wheel and the sdist, the locks, and that the program works from the wheel alone."""

from __future__ import annotations

import ast
import importlib.metadata
import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import venv
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.support.postgres import Server

ROOT = Path(__file__).parents[2]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
SQL = {str(file.relative_to(ROOT / "sql")): file.read_bytes() for file in ROOT.glob("sql/**/*.*")}

pytestmark = pytest.mark.check


@dataclass(frozen=True, slots=True)
class Installation:
    """A virtual environment in which pgherald comes from the wheel, and its dependencies from where the tests run."""

    home: Path

    def run(self, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "PG"))}
        return subprocess.run(
            [self.home / "bin" / command[0], *command[1:]],
            cwd=self.home,
            env=clean | environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=180,
            check=False,
        )


def build(target: str, into: Path, source: Path = ROOT) -> Path:
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "--target", target, "--directory", into],
        cwd=source,
        check=True,
        capture_output=True,
    )
    (built,) = into.iterdir()
    return built


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("wheel", tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("sdist", tmp_path_factory.mktemp("sdist"))


@pytest.fixture(scope="module")
def installation(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installation:
    home = tmp_path_factory.mktemp("venv")
    venv.create(home, with_pip=False, symlinks=True)
    subprocess.run(
        [sys.executable, "-m", "pip", "--python", home / "bin" / "python", "install", "--quiet", "--no-deps", wheel],
        check=True,
        capture_output=True,
    )
    packages = Path(sysconfig.get_path("purelib", vars={"base": str(home), "platbase": str(home)}))
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return Installation(home)


def test_the_wheel_carries_every_sql_file_as_it_is(wheel: Path) -> None:
    assert SQL
    with zipfile.ZipFile(wheel) as archive:
        shipped = {
            name.removeprefix("pgherald/sql/"): archive.read(name)
            for name in archive.namelist()
            if name.startswith("pgherald/sql/")
        }
    assert shipped == SQL


def test_the_sdist_carries_the_sql_as_files_and_makes_the_same_wheel(wheel: Path, sdist: Path, tmp_path: Path) -> None:
    with tarfile.open(sdist) as archive:
        assert [member.name for member in archive.getmembers() if not member.isfile()] == []
    (tmp_path / "source").mkdir()
    subprocess.run(["tar", "--extract", "--file", sdist, "--directory", tmp_path / "source"], check=True)
    (source,) = (tmp_path / "source").iterdir()
    again = build("wheel", tmp_path / "again", source)
    with zipfile.ZipFile(wheel) as first, zipfile.ZipFile(again) as second:
        assert {(i.filename, i.CRC) for i in first.infolist()} == {(i.filename, i.CRC) for i in second.infolist()}


def test_the_wheel_is_pure_typed_and_holds_nothing_but_the_package(wheel: Path) -> None:
    assert wheel.name == f"pgherald-{PYPROJECT['project']['version']}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert "pgherald/py.typed" in names
    assert {name.split("/")[0].removesuffix(".dist-info") for name in names} == {
        "pgherald",
        f"pgherald-{PYPROJECT['project']['version']}",
    }
    assert [name for name in names if name.endswith((".pyc", ".orig", "~")) or "test" in name.split("/")] == []


def test_the_commands_work_from_the_wheel_alone(installation: Installation) -> None:
    where = installation.run("python", "-c", "import pgherald; print(pgherald.__file__)")
    assert Path(where.stdout.strip()).is_relative_to(installation.home)
    done = installation.run("pgherald", "--help")
    assert (done.returncode, done.stderr) == (0, "")
    for command in ("demo", "migrate", "run", "doctor", "fcm-emulator"):
        assert command in done.stdout


def test_the_module_stands_for_the_command(installation: Installation) -> None:
    for arguments in (["--help"], ["migrate", "--dump-sql"], ["no-such-command"]):
        command = installation.run("pgherald", *arguments)
        module = installation.run("python", "-m", "pgherald", *arguments)
        assert (module.returncode, module.stdout, module.stderr) == (
            command.returncode,
            command.stdout,
            command.stderr,
        )


def test_migrate_works_from_the_wheel_alone_and_twice(installation: Installation, pg18: Server) -> None:
    with pg18.database(empty=True) as database:
        for _ in range(2):
            done = installation.run("pgherald", "migrate", PGHERALD_DATABASE_URL=database.migrator_dsn)
            assert done.returncode == 0, done.stderr
        found = database.connect().execute("select count(*) from herald.migration").fetchone()
        assert found == (sum(name.startswith("migrations/") for name in SQL),)


def test_a_database_that_is_away_ends_migrate_without_a_traceback(installation: Installation) -> None:
    done = installation.run("pgherald", "migrate", PGHERALD_DATABASE_URL="postgresql://u:secret@127.0.0.1:1/none")
    assert done.returncode not in (0, 2)
    assert "Traceback" not in done.stderr
    assert "secret" not in done.stderr + done.stdout


def locked(name: str) -> dict[str, str]:
    """What a lock pins: package -> version, or versions with their markers."""
    return dict(re.findall(r"^([a-z0-9.-]+)==(.*?) \\$", (ROOT / name).read_text(), re.MULTILINE))


def normalised(requirement: str) -> str:
    found = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert found is not None
    return re.sub(r"[._-]+", "-", found[0]).lower()


def test_both_locks_pin_every_dependency_by_hash_and_name_no_place_to_fetch_it_from() -> None:
    project, groups = PYPROJECT["project"], PYPROJECT["dependency-groups"]
    needed = {normalised(r) for r in [*project["dependencies"], *project["optional-dependencies"]["demo"]]}
    needed |= {normalised(r) for r in [*PYPROJECT["build-system"]["requires"], *groups["build"]]}
    developers = {normalised(r) for r in groups["dev"] if isinstance(r, str)}
    assert needed <= locked("requirements-demo.lock").keys()
    assert needed | developers <= locked("requirements.lock").keys()
    assert locked("requirements-demo.lock").items() <= locked("requirements.lock").items()
    for lock in ("requirements.lock", "requirements-demo.lock"):
        text = (ROOT / lock).read_text()
        assert "://" not in text
        assert "--index" not in text
        for pinned in re.split(r"^(?=[a-z0-9])", text, flags=re.MULTILINE)[1:]:
            assert "--hash=sha256:" in pinned


def test_what_the_daemon_imports_is_declared_and_nothing_that_only_the_demo_needs() -> None:
    package = ROOT / "daemon" / "pgherald"
    for_trying = {package / "embedded.py", *package.glob("emulator/**/*.py"), *package.glob("demo/**/*.py")}
    imported = set()
    for file in set(package.rglob("*.py")) - for_trying:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module is not None:
                imported.add(node.module.partition(".")[0])
    known = importlib.metadata.packages_distributions()
    foreign = imported - sys.stdlib_module_names - {"pgherald"}
    declared = {normalised(r) for r in PYPROJECT["project"]["dependencies"]} | {"psycopg-pool"}  # psycopg[pool]
    assert [each for each in sorted(foreign) if not {normalised(d) for d in known[each]} & declared] == []


def test_the_installed_packages_are_those_of_the_lock_and_fit_together() -> None:
    done = subprocess.run([sys.executable, "-m", "pip", "check"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
