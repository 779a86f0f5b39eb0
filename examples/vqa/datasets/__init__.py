"""Labelled data sets on disk: the published ones, any list or CSV, and the generated ones."""

from vqa.datasets.loading import load_dataset, summary
from vqa.datasets.specs import SPECS, DataSet, Sample
from vqa.datasets.tables import DatasetError

__all__ = ["SPECS", "DataSet", "DatasetError", "Sample", "load_dataset", "summary"]
