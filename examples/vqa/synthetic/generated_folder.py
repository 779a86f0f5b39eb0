"""Folders of generated files: complete or not there, and made again when outdated."""

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from vqa.io.files import writing


@dataclass(frozen=True)
class GeneratedFolder:
    """A kind of generated data set; the file `record` in its folder says how it was made."""

    title: str
    record: str

    def build(
        self, folder: Path, made: Mapping[str, object], write: Callable[[Path], None]
    ) -> bool:
        """Fill a folder unless it holds the data set, made the same way; whether that was needed.

        `made` is how the set is made (version, settings), as JSON has it; one that was made another
        way is replaced. `write` gets an empty folder, which is renamed when the set is complete.
        """
        if self._read_record(folder) == made:
            return False
        if folder.exists() and any(folder.iterdir()) and not self.is_complete(folder):
            raise ValueError(
                f"{folder}: expected a {self.title} set or an empty folder, found other files"
            )
        folder.parent.mkdir(parents=True, exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        try:
            with writing(folder):
                write(unfinished)
            text = json.dumps(made, indent=2) + "\n"
            (unfinished / self.record).write_text(text, encoding="utf-8")
            if self._read_record(folder) == made:  # by another command meanwhile, which reads it
                return False
            if folder.exists():
                shutil.rmtree(folder)
            os.replace(unfinished, folder)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
        return True

    def is_complete(self, folder: Path) -> bool:
        """Whether a complete set, however made, is in the folder."""
        return self._read_record(folder) is not None

    def _read_record(self, folder: Path) -> object:
        """How the set in the folder was made, None where there is none."""
        try:
            return json.loads((folder / self.record).read_text(encoding="utf-8"))
        except (OSError, json.JSONDecodeError):
            return None
