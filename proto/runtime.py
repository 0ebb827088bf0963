"""Keep the files of this machine's running processes in a folder of the user's own."""

import os
import stat
import tempfile
from pathlib import Path

from scopemill.proto.errors import InputError


def runtime_folder() -> Path:
    """Return this user's folder in the temporary directory, made if it is absent.

    Everybody may write in the temporary directory, so whoever comes first could put a link or a folder of their own there. Raises
    InputError if the folder is not this user's own.
    """
    try:
        folder = Path(tempfile.gettempdir()) / f"scopemill-{os.getuid()}"
    except OSError as error:
        raise InputError(f"no temporary directory can be written: {error.strerror}: set TMPDIR to a folder that has room") from error
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        about = folder.lstat()
    except OSError as error:
        raise InputError(f"{folder} cannot be made or read, {error.strerror}: set TMPDIR to a folder that you may write in") from error
    if not stat.S_ISDIR(about.st_mode) or about.st_uid != os.getuid():
        raise InputError(
            f"{folder} is not a folder of yours, and what lies in it may be another's: delete it, or set TMPDIR to another folder"
        )
    if about.st_mode & 0o077:
        folder.chmod(0o700)
    return folder


def replace_file(path: Path, text: str) -> None:
    """Write a file under a new name beside its place, and move it there.

    No link that lies there is followed. Raises OSError if that fails.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)  # made with O_EXCL
    try:
        with open(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.chmod(temporary, 0o644)  # a Prometheus of another user reads it, where the folder lets it
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
