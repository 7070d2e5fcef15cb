"""Run the zoo, or a part of it, and write what is found into its table.

python -m tests.zoo [TASK] [--only NAME,…] [--part 1/4] [--again RESULT,…] [--limit-s 120]
"""

from __future__ import annotations

import argparse

from tests.zoo.forking import run_apart
from tests.zoo.table import architectures, read_table, write_table


def main() -> None:
    """Run what is asked for, one architecture after the other."""
    parser = argparse.ArgumentParser(prog="python -m tests.zoo")
    parser.add_argument("task", nargs="?", help="one task; all without")
    parser.add_argument("--only", default="", help="these architectures alone")
    parser.add_argument("--part", default="1/1", help="every fourth from the first: 1/4")
    parser.add_argument("--again", default="", help="those alone of which the table has such a result")
    parser.add_argument("--limit-s", type=float, default=120)
    asked = parser.parse_args()
    part, parts = (int(number) for number in asked.part.split("/"))
    only, again = (set(filter(None, value.split(","))) for value in (asked.only, asked.again))
    rows = read_table()
    for zone, names in architectures().items():
        if asked.task and zone.task != asked.task:
            continue
        for number, name in enumerate(names):
            key = zone.task, name
            chosen = number % parts == part - 1 and (not only or name in only)
            if not chosen or (again and (key not in rows or rows[key].result not in again)):
                continue
            found = run_apart(zone, name, limit_s=asked.limit_s)
            rows = {**read_table(), key: found}
            write_table(rows)
            print(f"{zone.task:22} {name:28} {found.result:12} {found.how}", flush=True)


if __name__ == "__main__":
    main()
