"""The machine that the daemon runs on: where accepted pushes are kept until they are recorded, and the metrics' TLS."""

from __future__ import annotations

import os
import tempfile
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pgherald import tls
from pgherald.config import STATE_DIR
from pgherald.doctor.finding import Part, ok, problem, warning
from pgherald.errors import ConfigError
from pgherald.screen import count

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pgherald.config import Settings
    from pgherald.doctor.finding import Finding

SPACE_WANTED: Final = 64 * 2**20
"""Bytes free at least: the spool's reserve, and a few segments."""

EXPIRY_WARNING: Final = timedelta(days=14)
"""What is left of the metrics' certificate when it is time to renew it."""

_NOT_LOCAL: Final = ("nfs", "nfs4", "cifs", "smb3", "9p", "fuse.sshfs", "ceph", "glusterfs")
_NOT_LASTING: Final = ("tmpfs", "ramfs")


def examine(settings: Settings) -> Iterator[Finding]:
    """Everything that is on this machine."""
    yield from _state_directory(settings)
    yield from _metrics_tls(settings)


def _metrics_tls(settings: Settings) -> Iterator[Finding]:
    """The certificate that the metrics are served with, where they are."""
    part, check = Part.HOST, "metrics_tls"
    certificate, key = settings.metrics_tls_certificate, settings.metrics_tls_key
    try:
        context = tls.server_context(settings)
    except ConfigError as error:
        for line in str(error).splitlines():
            name, _, wrong = line.partition(": ")
            yield problem(part, check, f"the daemon will not start: {wrong}", f"mend the file, or {name}")
        return
    if context is None or certificate is None or key is None:
        return
    until = tls.good_until(certificate, key)
    left = None if until is None else until - datetime.now(UTC)
    if until is None or left is None:
        yield problem(
            part,
            check,
            f"the metrics' certificate {certificate} has run out, or is not one for a server: whoever checks it reads "
            "no metrics",
            "put a new one there, and reload the daemon",
        )
    elif left < EXPIRY_WARNING:
        yield warning(
            part,
            check,
            f"the metrics' certificate {certificate} runs out in {count(left.days, 'day')}",
            "put a new one there, and reload the daemon",
        )
    else:
        who = "anybody" if settings.metrics_tls_client_ca is None else "clients with a certificate"
        yield ok(part, check, f"the metrics are served over TLS to {who}, until {until:%Y-%m-%d}")


def _state_directory(settings: Settings) -> Iterator[Finding]:
    """The state directory: there or to be made, writable, on a disk that lasts, with space; and what lies in it."""
    part, directory = Part.HOST, settings.state_dir
    spool = directory / "spool"
    # os.path: what this user may not look into is not there for it, where Path.exists() raises
    existing = next(each for each in (spool, directory, *directory.parents) if os.path.exists(each))
    if reason := _refusal(existing):
        yield problem(
            part,
            "state_directory",
            f"the state directory {directory} is of no use: {existing} {reason} (as uid {os.getuid()})",
            f"chown it to the daemon's user, or set {STATE_DIR.name} to a directory on a local disk",
        )
        return
    made = "is used" if existing == spool else f"will be made in {existing}"
    kind = _file_system(existing)
    free = os.statvfs(existing)
    if free.f_bavail * free.f_frsize < SPACE_WANTED:
        yield problem(
            part,
            "state_directory_space",
            f"{existing} has {free.f_bavail * free.f_frsize // 2**20} MiB left: when it is full, no push is sent",
            "free some space there",
        )
    if kind in _NOT_LOCAL:
        yield problem(
            part,
            "state_directory_kind",
            f"{existing} lies on a network file system ({kind}): what is accepted there may be lost, or locked twice",
            f"set {STATE_DIR.name} to a directory on a local disk",
        )
    elif kind in _NOT_LASTING:
        yield warning(
            part,
            "state_directory_kind",
            f"{existing} lies in memory ({kind}): a reboot forgets pushes that were accepted and not yet recorded",
            f"set {STATE_DIR.name} to a directory on a local disk",
        )
    else:
        yield ok(
            part, "state_directory", f"the state directory {directory} {made}: writable, synced, on {kind or 'disk'}"
        )
    yield from _contents(spool)


def _refusal(directory: Path) -> str:
    """Why nothing can be written and synced there; empty if it can."""
    if not directory.is_dir() or not os.access(directory, os.W_OK | os.X_OK):
        return "may not be written"
    try:
        with tempfile.NamedTemporaryFile(dir=directory, prefix="doctor-") as file:
            file.write(b"pgherald doctor")
            file.flush()
            os.fdatasync(file.fileno())
    except OSError as error:
        return f"refuses to be written ({error.strerror})"
    return ""


def _file_system(path: Path) -> str:
    """The kind of file system, as the kernel names it; empty where it does not."""
    best = ("", "")
    with suppress(OSError):
        for line in Path("/proc/self/mounts").read_text(encoding="utf-8", errors="replace").splitlines():
            _, mounted, kind, *_ = line.split(" ")
            mounted = mounted.encode().decode("unicode_escape")
            if path.resolve().is_relative_to(mounted) and len(mounted) >= len(best[0]):
                best = (mounted, kind)
    return best[1]


def _contents(spool: Path) -> Iterator[Finding]:
    damaged: list[str] = []
    with suppress(OSError):
        damaged = [each.name for each in spool.iterdir() if each.name.endswith(".damaged")]
    if damaged:
        yield problem(
            Part.HOST,
            "spool_damaged",
            f"{count(len(damaged), 'spool file')} could not be read whole: some accepted push may lack its record "
            "(it is `unknown` then)",
            f"look at `pgherald unknown list`, then remove {spool}/*.damaged",
        )
