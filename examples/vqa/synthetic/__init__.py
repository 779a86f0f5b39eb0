"""Data sets that are built here, with synthetic opinion scores."""
