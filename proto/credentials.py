"""Recognize credentials in URLs and environment variables.

Both are shown to others.
"""

import re

# A password, or a key, before the host's name. A secret may hold a slash; digits and a slash are a port, and @ then part of the path.
_USER = re.compile(r"://[^/@\s]*:(?!\d{1,5}/)[^@\s]*@")
_WORD = r"(?:key|secret|token|passw(?:or)?d|passphrase|pwd|credential|signature|\bsig)"
# A field of a query, of a connection string, or of JSON, whose name says what it holds.
_FIELD = re.compile(rf"(?:^|[?&;,\s{{'\"])[\w.-]*{_WORD}[\w.-]*['\"]?\s*[=:]\s*['\"]?[^\s'\",;&}}]", re.IGNORECASE)
# Tokens that are known by their form: of GitHub, GitLab, Hugging Face, AWS, OpenAI, Slack, and JSON Web Tokens.
_TOKEN = re.compile(
    r"\b(?:gh[pousr]_\w{20,}|github_pat_\w{20,}|glpat-[\w-]{20,}|hf_[A-Za-z0-9]{20,}|(?:AKIA|ASIA)[0-9A-Z]{16}\b|sk-[\w-]{20,}"
    r"|xox[abps]-[\w-]{10,}|eyJ[\w-]{10,}\.[\w-]{10,})"
)
_NAME = re.compile(r"KEY|SECRET|TOKEN|PASSW|CREDENTIAL|CONNECTION_STRING|DATABASE_URL|(^|_)(DSN|PWD|PAT|SAS)($|_)", re.IGNORECASE)


def in_url(url: str) -> bool:
    """Return True if a URL holds a password, a key or a signature."""
    return bool(_USER.search(url) or _TOKEN.search(url) or ("://" in url and _FIELD.search(url.partition("://")[2])))


def in_variable(name: str, value: str) -> bool:
    """Return True if a variable may hold a credential, by its name or value."""
    return bool((_NAME.search(name) and name != "PWD") or _USER.search(value) or _TOKEN.search(value) or _FIELD.search(value))
