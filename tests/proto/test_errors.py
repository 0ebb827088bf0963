"""The tree of errors is the one that its module draws, and each of them survives the way between two processes."""

import copy
import pickle
import re
from collections.abc import Iterator

import pytest

from scopemill.proto import errors
from scopemill.proto.errors import ScopemillError

SENTENCE = "s3://mill/activations/demo/dataset.json: \u00e9 {not} %s 'formatted'"


def all_errors(base: type = ScopemillError) -> Iterator[type]:
    yield base
    for child in base.__subclasses__():
        if child.__module__ == errors.__name__:
            yield from all_errors(child)


def drawn_tree() -> dict[str, str | None]:
    """Each name in the drawing and the name above it."""
    parents: dict[str, str | None] = {}
    path: list[str] = []
    for line in errors.__doc__.splitlines():
        if match := re.match(r" {4}((?:[│ ] {3})*)([├└]── )?(\w+)( {2,}\S.*)?$", line):
            depth = len(match[1]) // 4 + bool(match[2])
            del path[depth:]
            parents[match[3]] = path[-1] if path else None
            path.append(match[3])
    return parents


def test_the_drawn_tree_is_the_tree_of_the_classes():
    defined = {name: value for name, value in vars(errors).items() if isinstance(value, type)}
    assert drawn_tree() == {name: None if value is ScopemillError else value.__base__.__name__ for name, value in defined.items()}
    assert set(defined.values()) == set(all_errors())


@pytest.mark.parametrize("error", list(all_errors()))
def test_an_error_survives_pickling_as_it_is(error):
    for made in (pickle.loads(pickle.dumps(error(SENTENCE))), copy.copy(error(SENTENCE))):
        assert type(made) is error
        assert str(made) == SENTENCE
        assert made.args == (SENTENCE,)


@pytest.mark.parametrize("error", list(all_errors()))
def test_an_error_is_no_system_exit_and_no_error_of_pythons(error):
    assert issubclass(error, Exception)
    assert not issubclass(error, OSError | ValueError | LookupError | RuntimeError)
