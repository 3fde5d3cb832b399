"""Files are written whole and renamed into place: a kill or a full disk leaves the old one or the new one."""

import os
import pathlib


def write_atomically(path: pathlib.Path, content: str | bytes) -> None:
    """Replaces a file's content at once, text in UTF-8; OSError leaves the old one."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())  # or a power cut may find the new name before the new content
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
