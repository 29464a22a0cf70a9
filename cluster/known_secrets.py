"""What is known to be secret: variables by their names, keys by their form, and values that this process was given.

Whatever leaves the process passes `struck`: text on the terminal, messages in records, what rendered files contain.
"""

from __future__ import annotations

import functools
import os
import re
import threading
from collections.abc import Iterable, Iterator

STRUCK, NOT_SHOWN = "***", "(not shown)"

LEAST_LENGTH = 8
"""Characters of the shortest value that is struck. Shorter ones occur in other text by chance."""

WORD_LENGTH = 16
"""Letters up to which a value that is nothing but small letters counts as a word of other text."""

_ALWAYS = frozenset(
    (
        *("SECRET", "SECRETS", "PASSWORD", "PASSWORDS", "PASSWD", "PASSPHRASE", "PASS", "PWD", "PW", "TOKEN", "PAT"),
        *("KEY", "APIKEY", "APIKEYS", "CREDENTIAL", "CREDENTIALS", "CREDS", "BEARER", "COOKIE", "WEBHOOK", "DSN"),
    )
)
"""Words that say so anywhere in a name."""

_LAST = frozenset(("AUTH", "AUTHORIZATION", "KEYS", "TOKENS", "JWT", "SAS", "PRIVATE"))
"""Words that say so at the end of a name only: RAY_AUTH_MODE holds no secret."""

_JOINED = re.compile(
    r"\w*(SECRET|PASSWORD|PASSWD|PASSPHRASE|CREDENTIALS?|(AUTH|ACCESS|REFRESH|BOT|ID)TOKEN"
    r"|(API|ACCESS|AUTH|PRIVATE)KEY)"
)
"""The same words where a name does not separate them."""

_NO_SECRETS = re.compile(
    r".*_(FILES?|PATH|DIR|NAME|TYPE|URI)|(MAX|MIN|NUM|N|TOTAL|SEEN|NEW|MAX_NEW)_TOKENS|TOKENS"
    r"|GOOGLE_APPLICATION_CREDENTIALS|GIT_CONFIG_KEY_\d+|(OLD)?PWD"
)
"""Names with such a word that tell where a secret is, or how many tokens, and not the secret."""

_FORMS = {
    r"-----BEGIN [A-Z ]*PRIVATE KEY( BLOCK)?-----": "a private key",
    r"\b(AKIA|ASIA)[0-9A-Z]{16}\b": "an AWS access key",
    r"(?i)aws_secret_access_key[\"']?\s*[:=]\s*[\"']?[A-Za-z0-9/+]{40}\b": "an AWS secret key",
    r"(?im)^[ \t]*secret_access_key[ \t]*:\s*[\"']?[^\s\"'#${}]{8,}": "a secret key of a store",
    r"\"type\"\s*:\s*\"service_account\"": "a service account's key",
    r"\b(ghp|gho|ghs|ghu|ghr|github_pat)_[A-Za-z0-9_]{30,}": "a GitHub token",
    r"\bhf_[A-Za-z]{30,}\b": "a Hugging Face token",
    r"\bxox[abprs]-[A-Za-z0-9-]{20,}": "a Slack token",
    r"\bhooks\.slack\.com/services/[A-Z0-9]+/[A-Z0-9]+/\w{16,}": "a Slack webhook",
    r"\bglpat-[A-Za-z0-9_-]{20,}": "a GitLab token",
    r"\bAIza[A-Za-z0-9_-]{35}\b": "a Google API key",
    r"\beyJ[A-Za-z0-9_-]{8,}\.eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}": "a signed token",
}
"""Keys that are told by their form, in any text."""

_PASSWORD_IN_URL = re.compile(r"\b[a-z][a-z0-9+.-]{0,30}://[^/@\s:\"']*:([^/@\s\"'${}]+)@")

_FORMS_OF_VALUES = {
    **_FORMS,
    _PASSWORD_IN_URL.pattern: "a password in a URL",
    r"\bsk-[A-Za-z0-9_-]{32,}": "an API key",
    r"\bBearer [A-Za-z0-9._~+/-]{16,}=*": "a bearer token",
}
"""The same, and forms that examples in source files have, too."""

_given = set[str]()
"""Secret values of recipes that this process has read."""

_lock = threading.Lock()


def looks_secret(name: str) -> bool:
    """Whether a variable's name suggests a secret value. Names of files are no secrets."""
    upper = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).upper().replace("-", "_").strip("_")
    if _NO_SECRETS.fullmatch(upper):
        return False
    words = upper.split("_")
    return (
        bool(_ALWAYS.intersection(words))
        or words[-1] in _LAST
        or words[-2:] == ["AUTH", "HEADER"]
        or any(_JOINED.fullmatch(word) for word in words)
    )


def form_of_key(text: str, *, in_source: bool = False) -> str | None:
    """What kind of key the text contains, by the key's form; None if none is seen.

    Args:
        in_source: the text is a file that may hold examples of passwords, which are none.
    """
    forms = _FORMS if in_source else _FORMS_OF_VALUES
    return next((kind for form, kind in forms.items() if re.search(form, text)), None)


def remember(values: Iterable[str | None]) -> None:
    """Has values struck from now on that no variable of the environment holds, such as a recipe's keys."""
    with _lock:
        _given.update(value for value in values if value is not None and len(value) >= LEAST_LENGTH)


def struck(text: str) -> str:
    """The text without the secret values known to this process."""
    for value in sorted(_values(), key=len, reverse=True):
        if value in text:
            text = _whole(value).sub(STRUCK, text)
    return text


def held_in(text: str) -> list[str]:
    """Names of the variables whose secret values the text contains."""
    return sorted({name for value, name in _values().items() if value in text and _whole(value).search(text)})


def _values() -> dict[str, str]:
    """The secret values known to this process, and where each is from."""
    with _lock:
        known = dict.fromkeys(_given, "a recipe's keys")
    for name in list(os.environ):  # another thread may change it meanwhile
        known |= dict.fromkeys(_secrets_of(name, os.environ.get(name, "")), name)
    return known


@functools.lru_cache(maxsize=4096)
def _secrets_of(name: str, value: str) -> tuple[str, ...]:
    return tuple(each for each in _parts(name, value) if len(each) >= LEAST_LENGTH)


def _parts(name: str, value: str) -> Iterator[str]:
    """The secrets in a variable's value: all of it, or the passwords in URLs."""
    passwords = _PASSWORD_IN_URL.findall(value)
    yield from passwords
    if not passwords and (looks_secret(name) or form_of_key(value)):
        is_word = value.isalpha() and value.islower() and len(value) < WORD_LENGTH
        if not is_word and not re.match(r"[~.]{0,2}/|https?://", value):  # a path, or an address
            yield value


@functools.lru_cache(maxsize=256)
def _whole(value: str) -> re.Pattern[str]:
    """Finds the value where it is no part of a longer word."""
    return re.compile(rf"(?<![A-Za-z0-9]){re.escape(value)}(?![A-Za-z0-9])")
