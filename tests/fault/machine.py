"""What is done to the machine: small disks, networks with a cable that can be pulled; and what a process costs it."""

from __future__ import annotations

import os
import subprocess
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from tests.fault.conftest import lacks, needs_root

if TYPE_CHECKING:
    from collections.abc import Iterator


def run(*command: str) -> None:
    """Run it; skip the test, loudly, where this machine does not let it."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        lacks(f"{' '.join(command[:3])}: {done.stderr.strip()}")


@contextmanager
def namespace(name: str) -> Iterator[None]:
    """A network of its own, joined to this one by a cable that can be pulled."""
    run("ip", "netns", "add", name)
    try:
        run("ip", "link", "add", f"{name}a", "type", "veth", "peer", "name", f"{name}b", "netns", name)
        run("ip", "addr", "add", "10.213.7.1/24", "dev", f"{name}a")
        run("ip", "link", "set", f"{name}a", "up")
        run("ip", "netns", "exec", name, "ip", "addr", "add", "10.213.7.2/24", "dev", f"{name}b")
        run("ip", "netns", "exec", name, "ip", "link", "set", f"{name}b", "up")
        run("ip", "netns", "exec", name, "ip", "link", "set", "lo", "up")
        yield
    finally:
        subprocess.run(["ip", "link", "del", f"{name}a"], capture_output=True, check=False)
        subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)


@contextmanager
def small_disk(directory: Path, megabytes: int) -> Iterator[Path]:
    """A file system that is soon full, in this directory."""
    needs_root("a disk that is full")
    directory.chmod(0o755)
    run("mount", "-t", "tmpfs", "-o", f"size={megabytes}m,mode=755", "tmpfs", str(directory))
    try:
        yield directory
    finally:
        subprocess.run(["umount", "-l", str(directory)], capture_output=True, check=False)


def fill(disk: Path, block: int = 65_536) -> Path:
    """Write a file until there is no room for another block; deleted, it gives all back."""
    filler = disk / "filler"
    with suppress(OSError), filler.open("wb") as out:
        while True:
            out.write(b"\0" * block)
            out.flush()
    return filler


def cpu_seconds(pid: int) -> float:
    """What a process has used of the CPU so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def is_alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()
