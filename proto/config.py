"""The base of every configuration model: strict, immutable, and closed to unknown fields."""

import re
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict
from pydantic_core import PydanticCustomError

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


Place = Annotated[str, AfterValidator(_without_credentials)]  # a path or an fsspec URL
