"""Define the base of every configuration model: strict, immutable, no unknown fields."""

import re
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict
from pydantic_core import PydanticCustomError

from scopemill.proto.credentials import in_url

LOOPBACK = "127.0.0.1"  # default listening address of every process
HOLDS_CREDENTIAL = "credential"  # type of the error for a URL with credentials: its input must not be shown
_LABEL = re.compile(r"([\w.-]+/)?[A-Za-z0-9]([\w.-]{0,61}[A-Za-z0-9])?")


class Config(BaseModel):
    """Refuse unknown fields, changes after creation and implicit type conversions."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    def check_effect(self, field: str, reason: str, remedy: str) -> None:
        """Raise ValueError if a field without an effect has another value than its default.

        ``reason`` says why it has none.
        """
        value = getattr(self, field)
        if value != type(self).model_fields[field].default:
            raise ValueError(f"{field} ({value!r}) has no effect: {reason}; leave {field} out, or {remedy}")


def _without_credentials(url: str) -> str:
    if in_url(url):
        raise PydanticCustomError(
            HOLDS_CREDENTIAL,
            "the URL holds a password or key, which would be copied into the bucket: set credentials in environment variables",
        )
    return url


def _are_labels(labels: dict[str, str]) -> dict[str, str]:
    for part in (*labels, *labels.values()):
        if not _LABEL.fullmatch(part):
            raise ValueError(
                f"{part!r} is not a valid label: use at most 63 letters, digits, '.', '_' and '-', for example accelerator: h100"
            )
    return labels


NodeLabels = Annotated[dict[str, str], AfterValidator(_are_labels)]  # Ray's node labels, as in `ray start --labels`
Place = Annotated[str, AfterValidator(_without_credentials)]  # a path or an fsspec URL
