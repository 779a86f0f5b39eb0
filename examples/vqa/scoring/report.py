"""What is left of a scoring: a table on disk, and a short one to read."""

from __future__ import annotations

import csv
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from vqa.datasets.annotations import PREDICTED
from vqa.io.files import open_csv, shown
from vqa.scoring.scorer import FileScore

_SHOWN = 20


@contextmanager
def score_table(path: Path) -> Iterator[Callable[[FileScore], None]]:
    """Write `path,score,error`, a row as soon as it is given; the block gets what takes rows.

    Another file of that name is not touched: opinion scores may be called so, too.

    The table grows in a file beside `path` and takes its place when the block ends well. If the
    block ends otherwise, an older table stays as it is, and the rows so far stay beside it.

    Raises:
        ValueError: there is something other than an older table.
    """
    if path.exists() and not _is_score_table(path):
        raise ValueError(
            f"output: expected a new file or an older table of scores, {shown(path)} is something"
            " else, which would be lost"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    growing = path.with_name(f"{path.name}.{os.getpid()}.part")
    rows = 0
    try:
        with open_csv(growing) as file:
            table = csv.writer(file, lineterminator="\n")
            table.writerow(PREDICTED)

            def add(score: FileScore) -> None:
                nonlocal rows
                table.writerow([score.path, score.score, score.error])
                file.flush()
                rows += 1

            yield add
        os.replace(growing, path)
    except BaseException:
        if rows:
            print(f"unfinished: the first {rows} rows are in {growing}", file=sys.stderr)
        else:
            growing.unlink(missing_ok=True)
        raise


def _is_score_table(path: Path) -> bool:
    header = ",".join(PREDICTED).encode()
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(header) + 1).rstrip() == header


def report(scores: Sequence[FileScore], path: Path) -> int:
    """Print a short table, and what went wrong on standard error.

    Returns:
        0 if every file has a score, 1 if some have, 2 if none has.
    """
    scored = [own for own in scores if own.score is not None]
    failed = [own for own in scores if own.score is None]
    if scored:
        print(f"{'score':>10}  path")
    for own in scored[:_SHOWN]:
        print(f"{own.score:10.4f}  {shown(own.path)}")
    if len(scored) > _SHOWN:
        print(f"{'':>10}  and {len(scored) - _SHOWN} more")
    for own in failed[:_SHOWN]:
        where = shown(own.path)
        told = own.error or ""
        print(told if where in told else f"{where}: {told}", file=sys.stderr)
    if len(failed) > _SHOWN:
        print(f"and {len(failed) - _SHOWN} more without a score", file=sys.stderr)
    print(f"{shown(path)}: {len(scored)} of {len(scores)} files have a score")
    return 2 if not scored else 1 if failed else 0
