"""The base of every configuration model: strict, immutable, and closed to unknown fields."""

import re
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict
from pydantic_core import PydanticCustomError

LOOPBACK = "127.0.0.1"  # where processes listen unless they are told otherwise
HOLDS_CREDENTIAL = "credential"  # the type of an error whose input must not be shown
# A password before the host's name, or a query field that signs or names a key.
_CREDENTIAL = re.compile(r"://[^/@]*:[^/]*@|[?&][^=&]*(key|secret|token|passw|credential|sig)[^=&]*=", re.IGNORECASE)


class Config(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


def _without_credentials(url: str) -> str:
    if _CREDENTIAL.search(url):
        raise PydanticCustomError(
            HOLDS_CREDENTIAL, "holds a password or key, and would be copied into the bucket: give credentials by the environment"
        )
    return url


_LABEL = re.compile(r"([\w.-]+/)?[A-Za-z0-9]([\w.-]{0,61}[A-Za-z0-9])?")


def _are_labels(labels: dict[str, str]) -> dict[str, str]:
    for part in (*labels, *labels.values()):
        if not _LABEL.fullmatch(part):
            raise ValueError(f"{part!r} is no label: letters, digits, '.', '_' and '-', at most 63, such as accelerator: h100")
    return labels


NodeLabels = Annotated[dict[str, str], AfterValidator(_are_labels)]  # Ray's, as in `ray start --labels`
Place = Annotated[str, AfterValidator(_without_credentials)]  # a path or an fsspec URL
