"""What docs/kubernetes.md and docs/virtual-machines.md have people type and allow is what Manta takes and needs."""

from __future__ import annotations

import inspect
import json
import re
from pathlib import Path

import pytest
import yaml
from typer.main import get_command

from data.stores import s3 as s3_store
from orchestrator.cli.main import app
from orchestrator.config.load import config_from

DOCS = Path(__file__).parents[3] / "docs"
PAGES = {name: (DOCS / f"{name}.md").read_text() for name in ("kubernetes", "virtual-machines")}

ACTIONS = {
    "get_object": {"s3:GetObject"},
    "head_object": {"s3:GetObject"},
    "put_object": {"s3:PutObject"},
    "upload_file": {"s3:PutObject", "s3:AbortMultipartUpload"},
    "delete_object": {"s3:DeleteObject"},
    "delete_objects": {"s3:DeleteObject"},
    "list_objects_v2": {"s3:ListBucket"},
    "list_multipart_uploads": {"s3:ListBucketMultipartUploads"},
    "abort_multipart_upload": {"s3:AbortMultipartUpload"},
    "download_file": {"s3:GetObject"},
}
"""What AWS wants to have allowed for a call of boto3's."""


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGES[page], re.MULTILINE | re.DOTALL)


def test_the_policy_allows_what_the_store_calls_and_no_more() -> None:
    source = inspect.getsource(s3_store)
    called = set(re.findall(r"(?:_s3|client|parts)\.([a-z_0-9]+)\(", source)) - {"get_paginator"}
    called |= set(re.findall(r'get_paginator\("([a-z_0-9]+)"\)', source))
    assert called == ACTIONS.keys(), "another call: what has to be allowed for it?"
    policy = json.loads(blocks("kubernetes", "json")[0])
    allowed = {statement["Sid"]: statement["Action"] for statement in policy["Statement"]}
    everything = {
        action for actions in allowed.values() for action in ([actions] if isinstance(actions, str) else actions)
    }
    assert everything == set().union(*ACTIONS.values())
    assert allowed["Shards"] == "s3:GetObject"


def test_the_recipe_is_one() -> None:
    [recipe] = [block for block in blocks("kubernetes", "yaml") if block.startswith("run:")]
    assert config_from(yaml.safe_load(recipe), "docs/kubernetes.md").scaling.effective_max_workers == 8


@pytest.mark.parametrize("page", PAGES)
def test_every_command_is_one(page: str) -> None:
    commands = get_command(app).commands  # type: ignore[attr-defined]
    for line in re.findall(r"(?:^|-- |`)manta ([a-z]+(?: [a-z]+)?)", PAGES[page], re.MULTILINE):
        name, _, below = line.partition(" ")
        assert name in commands, line
        if below and hasattr(commands[name], "commands"):
            assert below in commands[name].commands, line


@pytest.mark.parametrize("page", PAGES)
def test_json_is_json_and_links_lead_somewhere(page: str) -> None:
    for block in blocks(page, "json"):
        json.loads(block)
    for link in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", PAGES[page]):
        assert (DOCS / link).exists(), link
