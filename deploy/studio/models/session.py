"""Define what is said about the service itself, and its errors."""

from pydantic import BaseModel, Field

from scopemill.deploy.studio.models.given import Given


class Problem(BaseModel):
    """Describe an error, as RFC 9457 says (``application/problem+json``)."""

    type: str = Field(description="urn:scopemill:problem:<kind>, one of our errors' names in small letters.")
    title: str
    status: int
    detail: str = Field(description="The sentence that the command line prints.")
    instance: str | None = None


class Session(Given):
    """Hold the token that is exchanged for a cookie."""

    token: str


class About(BaseModel):
    """Describe the service, so that the page knows what it can offer."""

    version: str
    bucket: str
    read_only: bool
    address: str | None = Field(description="The Ray cluster that sweeps are submitted to; null: a local process drives them.")
    reachable: bool = Field(description="False while the bucket does not answer; what is shown is then of `read_at`.")
    problem: str | None = Field(description="Why the bucket does not answer.")
    read_at: float | None = Field(description="When the bucket was last read, in seconds since 1970.")
