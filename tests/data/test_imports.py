"""Modules of `data` load a heavy library only where they need it."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("modules", "unwanted"),
    [
        (
            ["data.stores.open", "data.shards.build", "data.readers.documents", "data.tokens.tokenizer"],
            ["ray", "torch", "boto3", "pyarrow", "tiktoken", "tokenizers"],
        ),
        (["data.config"], ["ray", "torch", "boto3", "pyarrow", "numpy"]),
        (["data.prepare", "data.feed.spec"], ["ray", "torch", "boto3", "tiktoken", "tokenizers"]),
        (
            ["data.prepare", "data.tokens.pipeline", "orchestrator.run.run"],
            ["rensa", "rjieba", "simplemma", "py3langid", "stopwordsiso"],
        ),
    ],
    ids=["reading shards", "the recipe's sections", "preparing", "cleaning"],
)
def test_importing_loads_no_library_that_is_not_needed(modules: list[str], unwanted: list[str]) -> None:
    code = f"import sys, {', '.join(modules)}; print([name for name in {unwanted} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
