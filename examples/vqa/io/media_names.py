"""Which files are called videos and images: the endings of their names.

What a file holds is decided by decoding it; names decide what a search of folders tries.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

MediaKind = Literal["video", "image"]

_ENDINGS: dict[MediaKind, frozenset[str]] = {
    "video": frozenset(
        (
            *("3g2", "3gp", "asf", "avi", "divx", "dv", "f4v", "flv", "h264", "h265", "hevc"),
            *("ivf", "m1v", "m2ts", "m2v", "m4v", "mjpeg", "mjpg", "mkv", "mov", "mp4", "mpe"),
            *("mpeg", "mpg", "mts", "mxf", "nut", "obu", "ogm", "ogv", "qt", "rm", "rmvb"),
            *("ts", "vob", "webm", "wmv", "wtv", "y4m"),
        )
    ),
    "image": frozenset(
        (
            *("apng", "avif", "bmp", "dds", "gif", "heic", "heif", "jfif", "jp2", "jpe", "jpeg"),
            *("jpg", "pbm", "pcx", "pgm", "png", "pnm", "ppm", "sgi", "tga", "tif", "tiff", "webp"),
        )
    ),
}


def kind_by_name(path: Path) -> MediaKind | None:
    """What a file is called; None if neither video nor image.

    >>> kind_by_name(Path("a.MP4")), kind_by_name(Path("b.jpg")), kind_by_name(Path("c.txt"))
    ('video', 'image', None)
    """
    ending = path.suffix.lower().removeprefix(".")
    return next((kind for kind, endings in _ENDINGS.items() if ending in endings), None)
