"""Labelled data sets on disk: the published ones, any list or CSV, and the generated ones."""

from vqa.datasets.loading import load_dataset, summary
from vqa.datasets.specs import SPECS, DataSet, DatasetError, Part, Sample

__all__ = [
    "SPECS",
    "DataSet",
    "DatasetError",
    "Part",
    "Sample",
    "load_dataset",
    "summary",
]
