"""Define work that the service itself does."""

from typing import Any, Literal

from pydantic import BaseModel, Field

from scopemill.deploy.studio.models.given import Given


class Job(BaseModel):
    """Describe work that the service itself does: an import, or a steering."""

    id: str
    kind: Literal["import", "steer"]
    state: Literal["running", "completed", "failed"]
    done: int
    total: int | None
    reason: str | None
    result: dict[str, Any] | None
    command: str


class SteerRequest(Given):
    """Ask for a steered continuation; docs/steering.md says what an edit holds."""

    prompt: str
    configurations: dict[str, list[dict[str, Any]]] = Field(description="Edits by configuration; `sae` is a path in the bucket.")
    model: str | None = Field(None, description="Absent: the model that the first SAE names.")
    sampling: dict[str, Any] = {}
    samples: int = Field(1, ge=1, le=16)
    text: str | None = None
    doses: bool = False
