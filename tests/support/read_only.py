"""A command whose writes below a folder fail, as on a file system that is mounted read-only, for root too."""

import sys

_CODE = """
import errno, os, sys
CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.link", "os.rmdir", "os.truncate", "os.utime", "os.chmod"}
def refuse(event, arguments):
    wanted = arguments[0] if arguments else None
    writes = event in CHANGES or (event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR))
    if writes and isinstance(wanted, str | bytes | os.PathLike) and os.path.abspath(os.fsdecode(wanted)).startswith(ROOT):
        raise OSError(errno.EROFS, "Read-only file system", os.fsdecode(wanted))
sys.addaudithook(refuse)
"""


def read_only(root: str) -> str:
    """Python that refuses all changes below ``root`` in its process from there on."""
    return _CODE.replace("ROOT", repr(root))


def command_on_read_only(root: str, *arguments: str) -> list[str]:
    """Return ``scopemill ARGUMENTS`` as a command that finds ``root`` read-only."""
    main = f"from scopemill.deploy.cli.main import main\nsys.argv = ['scopemill', *{list(arguments)!r}]\nmain()"
    return [sys.executable, "-c", read_only(root) + main]
