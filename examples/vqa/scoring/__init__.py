"""Scores of files without opinion scores: which files, on which scale, and what became of each."""
