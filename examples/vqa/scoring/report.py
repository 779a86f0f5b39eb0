"""What is left of a scoring: a table on disk, what is asked for beside it, and a table to read."""

import csv
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from vqa.datasets.annotations import PREDICTED
from vqa.io.files import file_state, open_csv, owned_file, shown, write_csv, writing
from vqa.io.video import is_hdr
from vqa.scoring.finding import Found
from vqa.scoring.scorer import FileScore

_SHOWN = 20
PER_CLIP, PER_FOLDER = ("path", "clip", "score"), ("folder", "files", "score")
# Of a table that is not complete: what it takes to go on, too.
_GROWING = (*PREDICTED, "clips", "state")

Row = Sequence[object]
Known = dict[Path, FileScore]


class ScoreTable:
    """A table that grows in a file, and the scores of an interrupted scoring. Use `score_table`."""

    def __init__(self, growing: Path, files: Sequence[Found], known: Known) -> None:
        self._growing, self._files, self.known = growing, files, known
        self._scores = dict(known)

    @property
    def rows(self) -> list[FileScore]:
        """What has become of the files so far, in their order."""
        return [self._scores[own.path] for own in self._files if own.path in self._scores]

    def add(self, score: FileScore) -> None:
        """Have a row on disk."""
        with writing(self._growing), open_csv(self._growing, "a") as file:
            csv.writer(file, lineterminator="\n").writerow(_growing_row(score))
        self._scores[score.path] = score


def _growing_row(score: FileScore) -> Row:
    clips = " ".join(map(repr, score.clips))
    return score.path, score.score, score.error, clips, file_state(score.path)


@contextmanager
def score_table(
    path: Path, files: Sequence[Found], fingerprint: str, resume: bool = True
) -> Iterator[ScoreTable]:
    """Write `path,score,error`, a row as soon as it is given.

    The table grows in a file beside `path` and takes its place when the block ends well. If the
    block ends otherwise, an older table stays as it is, and the rows so far stay beside it; the
    next scoring of the same `fingerprint` (of all but the files that decides a score) has those of
    files that are as they were.
    """
    refuse_other_file(path, PREDICTED, "output")
    growing = path.with_name(f"{path.name}.{fingerprint[:12]}.part")
    with owned_file(path):
        known = _interrupted(growing, files) if resume else {}
        table = ScoreTable(growing, files, known)
        try:
            write_csv(growing, _GROWING, map(_growing_row, known.values()))
            yield table
            write_csv(path, PREDICTED, ((s.path, s.score, s.error) for s in table.rows))
            growing.unlink()
        except BaseException:
            if rows := len(table.rows):
                print(
                    f"unfinished: the first {rows} rows are in {growing}; the same command goes on"
                    " from there",
                    file=sys.stderr,
                )
            else:
                growing.unlink(missing_ok=True)
            raise


def _interrupted(growing: Path, files: Sequence[Found]) -> Known:
    """The scores in a table that grew, of files that are as they were."""
    if not growing.is_file():
        return {}
    with growing.open(encoding="utf-8", errors="replace", newline="") as file:
        rows = {row["path"]: row for row in csv.DictReader(file)}  # the last one may be cut off
    found = {}
    for path in (own.path for own in files):
        row = rows.get(str(path).encode("utf-8", "backslashreplace").decode())
        if row is not None and row["score"] and row["state"] == str(file_state(path)):
            clips = tuple(map(float, (row["clips"] or "").split()))
            found[path] = FileScore(path, float(row["score"]), None, clips, is_hdr(path))
    return found


def clip_rows(scores: Iterable[FileScore]) -> Iterator[Row]:
    """`PER_CLIP`, a row for every clip or frame; clips count from 0."""
    return ((s.path, clip, score) for s in scores for clip, score in enumerate(s.clips))


def folder_rows(scores: Iterable[FileScore]) -> Iterator[Row]:
    """`PER_FOLDER`: how many files have a score, and their mean."""
    by_folder: dict[Path, list[float]] = defaultdict(list)
    for own in scores:
        if own.score is not None:
            by_folder[own.path.parent].append(own.score)
    return ((folder, len(own), sum(own) / len(own)) for folder, own in by_folder.items())


def refuse_other_file(path: Path, header: Sequence[str], argument: str) -> None:
    """Another file than an older table is not touched: opinion scores may be called so, too."""
    if not path.exists():
        return
    begin = ",".join(header).encode()
    if path.is_file():
        with path.open("rb") as file:
            if file.read(len(begin) + 1).rstrip() == begin:
                return
    raise ValueError(
        f"{argument}: expected a new file or an older table of scores, {shown(path)} is something"
        " else, which would be lost"
    )


def report(scores: Sequence[FileScore], path: Path) -> int:
    """Print a short table, and what went wrong on standard error; the exit status."""
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
    if hdr := [own for own in scored if own.hdr]:
        names = ", ".join(shown(own.path) for own in hdr[:_SHOWN])
        more = f" and {len(hdr) - _SHOWN} more" if len(hdr) > _SHOWN else ""
        print(
            f"doubtful: {len(hdr)} files are HDR (PQ or HLG) and read as if they were not:"
            f" {names}{more}"
        )
    print(f"{shown(path)}: {len(scored)} of {len(scores)} files have a score")
    return 2 if not scored else 1 if failed else 0
