"""A data set by name: annotation files found, every row checked, every media file in place."""

from __future__ import annotations

from pathlib import Path

from vqa.datasets.annotations import find_annotations, read_labels
from vqa.datasets.media import find_samples, tell_kind
from vqa.datasets.samples import DataSet, DatasetError
from vqa.datasets.specs import SPECS


def load_dataset(
    name: str,
    root: Path,
    annotations: Path | None = None,
    *,
    score_column: str | None = None,
    drop_missing: bool = False,
) -> DataSet:
    """Load a data set; nothing is decoded, but every row and the presence of every file is checked.

    Besides the published data sets there are `list` (four-column lists of anything), `csv` (a
    folder of videos or images with a table of names and scores: commas, tabs, semicolons or blanks
    between cells, with or without a header) and the generated `mini-ugc` and `mini-iqa`, which are
    built if they are not there.

    Args:
        name: one of `SPECS`.
        root: folder of the media files; names in annotation files are relative to it or to its
            usual sub-folders.
        annotations: an annotation file (official, or a four-column list), or a folder with the
            usual annotation files. `root` by default.
        score_column: another score than the usual one, such as MOS instead of MOS_zscore of
            KonIQ-10k; of several columns, such as anna,ben or rater*, the mean.
        drop_missing: leave out rows whose file is missing; `DataSet.dropped` counts them.

    Raises:
        ValueError: no such data set.
        DatasetError: an annotation file is missing or unusable, or media files are missing.
    """
    spec = SPECS.get(name)
    if spec is None:
        raise ValueError(f"name: expected one of {', '.join(SPECS)}, got {name!r}")
    if spec.build is not None:
        spec.build(root)
    if not root.is_dir():
        raise DatasetError(f"{root}: expected the folder of {name}, there is none")
    files = find_annotations(spec, root, annotations)
    labels = read_labels(spec, files, score_column)
    rated = [label for label in labels if label.score is not None]
    if not rated:
        raise DatasetError(f"{files[0].path}: expected scores, they are all unknown (-1)")
    samples, dropped = find_samples(spec, root, rated, drop_missing)
    return DataSet(
        name=name,
        kind=spec.kind or tell_kind(samples),
        samples=samples,
        source=files[0].path,
        synthetic=spec.build is not None,
        dropped=dropped,
        unrated=len(labels) - len(rated),
    )
