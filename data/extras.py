"""What is not installed by default."""

from __future__ import annotations


def installing(extra: str) -> str:
    """How to get what an extra of the project brings: not by the name `manta`, which on PyPI is another project's."""
    return f"pip install -c constraints.txt -e '.[{extra}]' in Manta's folder"
