"""Run the zoo, or a part of it, and write what is found into its table.

python -m tests.zoo [TASK] [--only NAME,…] [--part 1/4] [--again RESULT,…] [--begin NAME] [--reverse] [--check]

`--again` takes those alone of which the table has such a result; `new` are those that it lacks.
"""

from __future__ import annotations

import argparse
import signal
import sys

from tests.zoo.forking import run_apart
from tests.zoo.table import add_rows, architectures, read_table


def main() -> None:
    """Run what is asked for, one architecture after the other."""
    parser = argparse.ArgumentParser(prog="python -m tests.zoo")
    parser.add_argument("task", nargs="?", help="one task; all without")
    parser.add_argument("--only", default="", help="these architectures alone")
    parser.add_argument("--part", default="1/1", help="every fourth from the first: 1/4")
    parser.add_argument("--again", default="", help="those alone of which the table has such a result")
    parser.add_argument("--limit-s", type=float, default=120)
    parser.add_argument("--check", action="store_true", help="write nothing, and end with 1 where the table differs")
    parser.add_argument("--begin", default="", help="with this one, in the order of names")
    parser.add_argument("--reverse", action="store_true", help="from the last to the first")
    asked = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that nothing is left behind
    part, parts = (int(number) for number in asked.part.split("/"))
    only, again = (set(filter(None, value.split(","))) for value in (asked.only, asked.again))
    zones = {zone: set(names) for zone, names in architectures().items() if asked.task in (None, zone.task)}
    wrong: list[str] = []
    for number, name in enumerate(sorted(set().union(*zones.values()), reverse=asked.reverse)):
        if number % parts != part - 1 or (only and name not in only) or name < asked.begin:
            continue
        for zone in [zone for zone, names in zones.items() if name in names]:
            key = zone.task, name
            rows = read_table()
            if again and (rows[key].result if key in rows else "new") not in again:
                continue
            found = run_apart(zone, name, limit_s=asked.limit_s)
            if asked.check:
                if (was := read_table().get(key)) != found:
                    wrong += [name]
                    print(f"{zone.task} {name} was {was}, is {found}", flush=True)
                continue
            add_rows({key: found})
            print(f"{zone.task:22} {name:28} {found.result:12} {found.how}", flush=True)
    sys.exit(f"not as in the table: {', '.join(wrong)}" if wrong else 0)


if __name__ == "__main__":
    main()
