"""What is known to be secret: variables by their names, keys by their form, and values that this process was given.

Whatever leaves the process passes `struck`: text on the terminal, messages in records, what rendered files contain.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable

STRUCK = "***"

LEAST_LENGTH = 8
"""Characters of the shortest value that is struck. Shorter ones occur in other text by chance."""

_ALWAYS = frozenset(
    (
        *("SECRET", "SECRETS", "PASSWORD", "PASSWORDS", "PASSWD", "PASSPHRASE", "PASS", "PWD", "PW", "TOKEN", "PAT"),
        *("KEY", "APIKEY", "APIKEYS", "CREDENTIAL", "CREDENTIALS", "CREDS", "BEARER", "COOKIE", "WEBHOOK", "DSN"),
    )
)
"""Words that say so anywhere in a name."""

_LAST = frozenset(["AUTH", "AUTHORIZATION", "KEYS", "JWT", "SAS", "PRIVATE"])
"""Words that say so at the end of a name only: RAY_AUTH_MODE holds no secret."""

_JOINED = re.compile(
    r"\w*(SECRET|PASSWORD|PASSWD|PASSPHRASE|AUTHTOKEN|ACCESSTOKEN|CREDENTIALS?|(API|ACCESS|AUTH|PRIVATE)KEY)"
)
"""The same words where a name does not separate them."""

_NO_VALUES = frozenset(["FILE", "FILES", "PATH", "DIR", "NAME", "TYPE"])
"""What a name ends with that tells where a secret is, and not the secret."""

_FOLDERS = frozenset(["PWD", "OLDPWD"])
"""Variables of every shell that sound like a password."""

_FORMS = {
    r"-----BEGIN [A-Z ]*PRIVATE KEY( BLOCK)?-----": "a private key",
    r"\b(AKIA|ASIA)[0-9A-Z]{16}\b": "an AWS access key",
    r"(?i)aws_secret_access_key[\"']?\s*[:=]\s*[\"']?[A-Za-z0-9/+]{40}\b": "an AWS secret key",
    r"(?im)^\s*secret_access_key\s*:\s*[\"']?[^\s\"'#${}]{8,}": "a secret key of a store",
    r"\"type\"\s*:\s*\"service_account\"": "a service account's key",
    r"\b(ghp|gho|ghs|ghu|ghr|github_pat)_[A-Za-z0-9_]{30,}": "a GitHub token",
    r"\bhf_[A-Za-z]{30,}\b": "a Hugging Face token",
    r"\bxox[abprs]-[A-Za-z0-9-]{20,}": "a Slack token",
    r"\bhooks\.slack\.com/services/[A-Z0-9]+/[A-Z0-9]+/\w{16,}": "a Slack webhook",
    r"\bglpat-[A-Za-z0-9_-]{20,}": "a GitLab token",
    r"\bsk-[A-Za-z0-9_-]{32,}": "an API key",
    r"\bAIza[A-Za-z0-9_-]{35}\b": "a Google API key",
    r"\beyJ[A-Za-z0-9_-]{8,}\.eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}": "a signed token",
    r"\b[a-z][a-z0-9+.-]*://[^/@\s:\"']*:[^/@\s\"'${}]+@": "a password in a URL",
    r"\bBearer [A-Za-z0-9._~+/-]{16,}=*": "a bearer token",
}
"""Keys that are told by their form."""

_given = set[str]()
"""Secret values of recipes that this process has read."""


def looks_secret(name: str) -> bool:
    """Whether a variable's name suggests a secret value. Names of files are no secrets."""
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).upper().replace("-", "_").strip("_").split("_")
    if words[-1] in _NO_VALUES:
        return False
    return bool(_ALWAYS.intersection(words)) or words[-1] in _LAST or any(_JOINED.fullmatch(word) for word in words)


def form_of_key(text: str) -> str | None:
    """What kind of key the text contains, by the key's form; None if none is seen."""
    return next((kind for form, kind in _FORMS.items() if re.search(form, text)), None)


def remember(values: Iterable[str | None]) -> None:
    """Has values struck from now on that no variable of the environment holds, such as a recipe's keys."""
    _given.update(value for value in values if value is not None and len(value) >= LEAST_LENGTH)


def struck(text: str) -> str:
    """The text without the secret values known to this process."""
    for value in sorted(_values(), key=len, reverse=True):
        if value in text:
            text = text.replace(value, STRUCK)
    return text


def held_in(text: str) -> list[str]:
    """Names of the variables whose secret values the text contains."""
    return sorted(name for value, name in _values().items() if value in text)


def _values() -> dict[str, str]:
    """The secret values known to this process, and where each is from."""
    from_variables = {
        value: name
        for name, value in os.environ.items()
        if len(value) >= LEAST_LENGTH and name not in _FOLDERS and looks_secret(name)
    }
    return dict.fromkeys(_given, "a recipe's keys") | from_variables
