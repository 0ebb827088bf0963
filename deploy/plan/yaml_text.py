"""Read the YAML of sweep files and of ``--set``.

Numbers may be written as 7e-5, no key may be given twice, and no text may stand for more than a sweep file can need.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

MOST_VALUES = 100_000  # of one text: a few aliases of aliases stand for billions


def parsed(text: str) -> Any:
    """Return the value of a YAML text. Raises ValueError with the reason, in one line."""
    try:
        value = yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise ValueError(f"is not YAML: {' '.join(str(error).split())}") from error
    except RecursionError as error:
        raise ValueError("nests its values too deeply: no field has more than a few levels") from error
    except ValueError as error:  # of a number that Python does not read
        raise ValueError(f"holds a number that cannot be read: {error}") from error
    _check_size(value)
    return value


def filled(template: str, places: Mapping[str, Path]) -> str:
    """Return a YAML text with places in its braces.

    They are quoted: a folder may be called ``a: b``.
    """
    return template.format(**{name: json.dumps(str(place), ensure_ascii=False) for name, place in places.items()})


def _check_size(value: Any) -> None:
    left, seen = [value], 0
    while left:
        one = left.pop()
        seen += 1
        if seen > MOST_VALUES:
            raise ValueError(f"stands for more than {MOST_VALUES:,} values: an alias repeats too much, or holds itself")
        if isinstance(one, dict):
            left += one.values()
        elif isinstance(one, list):
            left += one


class _Loader(yaml.SafeLoader):
    """YAML in which 7e-5 is a number, 2026-11-25 a text, and a key given twice an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        own = [key for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        keys = [self.construct_object(key, deep=True) for key in own]
        twice = {str(key) for key in keys if keys.count(key) > 1}
        if twice:
            raise yaml.constructor.ConstructorError(None, None, f"{', '.join(sorted(twice))} is given twice", node.start_mark)
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"[-+]?(\d[\d_]*)?\.?\d+([eE][-+]?\d+)$"), list("-+.0123456789"))
