"""Labelled data sets on disk: the published ones, any list or CSV, and the generated ones."""

from vqa.datasets.comparison import summary
from vqa.datasets.loading import load_dataset
from vqa.datasets.samples import DataSet, DatasetError, Part, Sample
from vqa.datasets.specs import SPECS

__all__ = [
    "SPECS",
    "DataSet",
    "DatasetError",
    "Part",
    "Sample",
    "load_dataset",
    "summary",
]
