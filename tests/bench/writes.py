"""What the app's own writes pay: pgbench inserting single activities, with and without pgherald, in rounds.

`make bench-writes`. Ratios are to the same round without pgherald. "no daemon" rings in every commit, as all would
while a daemon sleeps; "notify always" is a plain trigger that calls pg_notify; "a trigger that does nothing", a
statement's, with its rows, is what no watching could do without. DESIGN: 0.85 or more with the daemon running.
"""

from __future__ import annotations

import argparse
import re
import subprocess
from contextlib import ExitStack
from typing import TYPE_CHECKING, Final

from tests.bench import ground

if TYPE_CHECKING:
    from pathlib import Path

    from pgherald.embedded import Cluster

PEOPLE: Final = 20_000
SCRIPT: Final = f"""\\set n random(1, {PEOPLE})
insert into app.activity (user_id, activity_type)
values (('00000000-0000-4000-8000-' || lpad(to_hex(:n::bigint), 12, '0'))::uuid, 'visit');
"""
#: Triggers instead of the watch: their function's body, and when they fire.
OTHERS: Final = {
    "notify always": ("perform pg_notify('nobody', '');", "after insert on app.activity for each row"),
    "a trigger that does nothing": (
        "",
        "after insert on app.activity referencing new table as new_rows for each statement",
    ),
}
VARIANTS: Final = ("without pgherald", "watched, daemon running", "watched, no daemon", *OTHERS)


def rate(cluster: Cluster, script: Path, clients: int, seconds: int) -> float:
    """Commits a second."""
    found = subprocess.run(
        [
            cluster.binaries / "pgbench",
            *("-n", "-M", "prepared", "-c", str(clients), "-j", "1", "-T", str(seconds), "-f", str(script)),
            cluster.dsn(ground.DATABASE),
        ],
        capture_output=True,
        text=True,
        check=True,
        timeout=seconds + 60,
    )
    tps = re.search(r"^tps = ([0-9.]+)", found.stdout, re.MULTILINE)
    assert tps is not None
    return float(tps[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=5)
    arguments = parser.parse_args()
    found: dict[tuple[str, int], list[float]] = {}
    ratios: dict[tuple[str, int], list[float]] = {}
    with (
        ground.running_server() as cluster,
        ground.running_sink() as sink,
        ground.connect(cluster) as db,
    ):
        ground.load_people(db, PEOPLE)
        # Activities are evaluated, and nobody is due: this is about the writes.
        db.execute("""update herald.scenario set params = '{"counts": [1000000]}'""")
        script = sink.directory / "insert.sql"
        script.write_text(SCRIPT)
        for _ in range(arguments.rounds):
            for clients in (1, 8, 32):
                for variant in VARIANTS:
                    db.execute("truncate app.activity, herald.touched_user")
                    if variant.startswith("watched"):
                        db.execute("select herald.watch('app.activity', 'user_id')")
                    else:
                        db.execute("select herald.unwatch('app.activity')")
                    if variant in OTHERS:
                        body, when = OTHERS[variant]
                        db.execute(
                            "create or replace function app.other() returns trigger language plpgsql as "
                            f"$$ begin {body} return null; end $$"
                        )
                        db.execute(f"create trigger other {when} execute function app.other()")
                    with ExitStack() as stack:
                        if variant == "watched, daemon running":
                            stack.enter_context(ground.running_daemons(cluster, sink.endpoint(), sink.environment))
                        commits = rate(cluster, script, clients, arguments.seconds)
                    db.execute("drop trigger if exists other on app.activity")
                    found.setdefault((variant, clients), []).append(commits)
                    base = found[VARIANTS[0], clients][-1]
                    print(f"{clients} clients, {variant}: {commits:,.0f} commits/s, {commits / base:.2f}", flush=True)
                    ratios.setdefault((variant, clients), []).append(commits / base)
    print(f"commits a second, and the ratio; medians of {arguments.rounds} rounds of {arguments.seconds} s\n")
    rows = [
        [
            variant,
            *(
                f"{ground.median(found[variant, clients]):,.0f} ({ground.median(ratios[variant, clients]):.2f})"
                for clients in (1, 8, 32)
            ),
        ]
        for variant in VARIANTS
    ]
    print(ground.table(["", "1 client", "8 clients", "32 clients"], rows))
    ground.write("writes", {f"{variant}, {clients}": values for (variant, clients), values in found.items()})


if __name__ == "__main__":
    main()
