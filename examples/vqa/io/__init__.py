"""Files: videos, label lists, documents that are there completely or not at all."""
