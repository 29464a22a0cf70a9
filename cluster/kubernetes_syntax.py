"""The syntax of names, labels, amounts and references in Kubernetes and in the clouds."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from cluster.known_secrets import NOT_SHOWN, form_of_key

NAME = r"^[a-z]([a-z0-9-]{0,61}[a-z0-9])?$"
"""Names that Kubernetes accepts for objects, and for labels' values: RFC 1035 labels, at most 63 characters."""

SUBDOMAIN = r"^[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*$"
"""Names that Kubernetes accepts for secrets and service accounts: RFC 1123 subdomains."""

IMAGE = (
    r"^([A-Za-z0-9][A-Za-z0-9.-]*(:[0-9]+)?/)?[a-z0-9]([a-z0-9._-]*[a-z0-9])?(/[a-z0-9]([a-z0-9._-]*[a-z0-9])?)*"
    r"(:[A-Za-z0-9_][A-Za-z0-9_.-]{0,127})?(@sha256:[0-9a-f]{64})?$"
)
"""Reference of a container image: registry, path, tag, digest."""

WORD = r"^[A-Za-z0-9_][A-Za-z0-9_.:/@+=,-]*$"
"""Names in a cloud: regions, zones, machine types, projects, images, users."""

QUANTITY = r"^[1-9][0-9]{0,8}(Ki|Mi|Gi|Ti|k|M|G|T)$"
"""An amount of memory or disk in the format of Kubernetes, with a unit."""

KEY = r"^[A-Za-z0-9._-]+$"
"""Keys of a secret."""

USER = r"^[A-Za-z_][A-Za-z0-9._-]*$"
"""Users of a system."""

HTTP_URL = r"^https?://[^\s/?#]+(/[^\s?#]*)?$"

RULES = {
    NAME: "lower-case letters, digits and -, a letter first, no - last, at most 63 characters",
    SUBDOMAIN: "lower-case letters, digits, . and -, at most 253 characters",
    IMAGE: "registry/path:tag, or with @sha256:…, the path in lower case",
    WORD: "letters, digits and _ . : / @ + = , -",
    KEY: "letters, digits, . _ and -",
    USER: "letters, digits, . _ and -, a letter or _ first",
    HTTP_URL: "http:// or https:// and a host",
    QUANTITY: "a whole number and a unit: Mi, Gi, Ti, M, G or T",
}
"""The rule behind each pattern, in words."""

_UNITS: dict[str, int] = {unit + "i": 1024**power for power, unit in enumerate("KMGT", 1)} | {
    unit: 1000**power for power, unit in enumerate("kMGT", 1)
}

_LABEL = re.compile(r"[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?")

_LABEL_PREFIX = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?")


def bytes_of(quantity: str) -> int:
    """Number of bytes of an amount in the format `QUANTITY`."""
    digits = quantity.rstrip("".join(_UNITS))
    return int(digits) * _UNITS[quantity.removeprefix(digits)]


def is_label_key(key: str) -> bool:
    """Whether Kubernetes accepts the key of a label, or the name of a resource: a name, perhaps behind a domain."""
    prefix, slash, name = key.rpartition("/")
    return bool(_LABEL.fullmatch(name)) and (not slash or bool(_LABEL_PREFIX.fullmatch(prefix)))


def label_problems(where: str, labels: Mapping[str, str]) -> Iterator[str]:
    """Yields what Kubernetes would refuse in labels, each with the field `where` it stands."""
    for key, value in labels.items():
        if not is_label_key(key):
            yield f"{where}.{key}: not a valid key of a label, such as tier or example.com/tier"
        if value and not _LABEL.fullmatch(value):
            shown = NOT_SHOWN if form_of_key(value) else repr(value)
            yield (
                f"{where}.{key} = {shown}: not a valid value of a label: at most 63 letters, digits, - _ ., the "
                "first and the last a letter or digit"
            )
