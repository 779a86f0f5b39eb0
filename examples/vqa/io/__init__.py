"""Files: videos, documents that are there completely or not at all."""
