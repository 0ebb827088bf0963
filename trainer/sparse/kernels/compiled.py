"""Compile loops with numba, and keep their machine code for later processes."""

import os
from collections.abc import Callable
from typing import Any

from numba import config, njit

from scopemill.proto.errors import InputError
from scopemill.proto.runtime import runtime_folder


def compiled(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    """Return a decorator that compiles a loop without Python's lock.

    The machine code is kept beside the loop's file or in the user's home, as numba does. Where neither can be written, it is kept in the
    user's runtime folder, and where that cannot be made either, every process compiles anew.
    """

    def decorate(loop: Callable[..., Any]) -> Any:
        try:
            return njit(cache=True, nogil=True, **options)(loop)
        except RuntimeError:  # numba has no place for the code
            return njit(cache=_has_other_place(), nogil=True, **options)(loop)

    return decorate


def _has_other_place() -> bool:
    try:
        os.environ["NUMBA_CACHE_DIR"] = str(runtime_folder() / "numba")
    except InputError:
        return False
    config.reload_config()
    return True
