"""Bad input ends in exit status 2 and a message that names the thing and the remedy, and loses nothing."""

from __future__ import annotations

import gzip
import io
import json
import os
import random
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from data.config import StoreConfig
from orchestrator.cli.main import app
from tests.end_to_end.manta_process import MantaProcess

WORDS = ("the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "and", "then", "sleeps")


def text(seed: int, words: int = 40) -> str:
    return " ".join(random.Random(seed).choices(WORDS, k=words))


def json_lines(documents: int = 50, key: str = "text") -> bytes:
    return "".join(json.dumps({key: text(seed)}) + "\n" for seed in range(documents)).encode()


def parquet(column: str = "text") -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.table({column: [text(seed) for seed in range(2000)]}), sink, compression="none")
    return sink.getvalue()


def recipe(folder: Path, **sections: Any) -> str:
    """Path of a recipe that trains on `folder`/shards and keeps everything in `folder`/kept, unless told otherwise."""
    fields: dict[str, Any] = {
        "run": "bad",
        "storage": str(folder / "kept"),
        "data": {
            "sources": [{"path": str(folder / "shards")}],
            "tokenizer": {"vocab_size": 300},
            "seq_len": 32,
            "validation_fraction": 0.05,
        },
        "model": {"n_layers": 1, "d_model": 32, "n_heads": 2},
        "train": {"steps": 2, "global_batch_size": 4, "micro_batch_size": 2, "lr": 1e-3},
    }
    for name, value in sections.items():
        fields[name] = {**fields[name], **value} if isinstance(fields.get(name), dict) else value
    path = folder / "bad.yaml"
    path.write_text(json.dumps(fields))
    return str(path)


def refused(*command: str) -> str:
    """The message with which a command refuses its input."""
    done = CliRunner().invoke(app, list(command))
    assert done.exit_code == 2, done.output
    assert done.output.count("error:") == 1
    assert "Traceback" not in done.output
    return done.output


@pytest.fixture(autouse=True)
def no_ray(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Refusals come before Ray is started: a user should not wait for a cluster to hear of a misspelt bucket."""

    def start(*_: Any, **__: Any) -> None:
        raise AssertionError("Ray was started")

    if request.node.get_closest_marker("ray") is None:
        monkeypatch.setattr("orchestrator.nodes.ray_session.ray_cluster", start)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands note in the working directory what they did."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """The folder of the recipe's shards, one sound shard in it."""
    folder = tmp_path / "shards"
    folder.mkdir()
    (folder / "a-sound.jsonl").write_bytes(json_lines())
    return folder


class TestStorage:
    @pytest.mark.s3
    @pytest.mark.parametrize("command", ["prepare", "train", "show", "eval", "generate"])
    def test_missing_bucket(self, command: str, shards: Path, s3_store_config: StoreConfig) -> None:
        store = s3_store_config.model_dump()
        output = refused(command, recipe(shards.parent, storage="s3://no-such-bucket/runs", store=store))
        assert "no-such-bucket" in output
        assert "Create" in output

    @pytest.mark.s3
    def test_missing_bucket_of_a_source(self, shards: Path, s3_store_config: StoreConfig) -> None:
        data = {"sources": [{"path": "s3://no-such-bucket/shards"}]}
        output = refused("prepare", recipe(shards.parent, data=data, store=s3_store_config.model_dump()))
        assert "sources[0]" in output
        assert "no-such-bucket" in output

    @pytest.mark.s3
    @pytest.mark.parametrize("wrong", ["access_key_id", "secret_access_key"])
    def test_wrong_credentials(self, wrong: str, shards: Path, s3_store_config: StoreConfig, s3_bucket: str) -> None:
        store = {**s3_store_config.model_dump(), wrong: "wrong-and-never-printed"}
        output = refused("train", recipe(shards.parent, storage=f"s3://{s3_bucket}/runs", store=store))
        assert s3_bucket in output
        assert "Check the access key, the secret key" in output
        assert "wrong-and-never-printed" not in output
        assert str(s3_store_config.secret_access_key) not in output

    def test_endpoint_that_refuses(self, shards: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            address = f"http://127.0.0.1:{taken.getsockname()[1]}"
        self._refused_in_time(shards, address)

    def test_endpoint_that_is_silent(self, shards: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as silent:  # takes connections, and never says a word
            self._refused_in_time(shards, f"http://127.0.0.1:{silent.getsockname()[1]}")

    def _refused_in_time(self, shards: Path, address: str) -> None:
        store = {"endpoint_url": address, "access_key_id": "key", "secret_access_key": "secret", "timeout_s": 1.5}
        began = time.monotonic()
        output = refused("train", recipe(shards.parent, storage="s3://bucket/runs", store=store))
        assert time.monotonic() - began < 15
        assert address in output
        assert "endpoint" in output

    def test_storage_that_is_a_file(self, shards: Path) -> None:
        (shards.parent / "kept").write_text("")
        assert str(shards.parent / "kept") in refused("train", recipe(shards.parent))

    def test_full_disk(self, shards: Path, small_disk: Path) -> None:
        storage = small_disk / "kept"
        done = CliRunner().invoke(app, ["show", recipe(shards.parent, storage=str(storage))])
        assert "There is no run" in done.output
        with (small_disk / "ballast").open("wb", buffering=0) as ballast, pytest.raises(OSError, match="No space left"):
            while True:
                ballast.write(bytes(4096))
        output = refused("prepare", recipe(shards.parent, storage=str(storage)))
        assert "No space left" in output
        assert str(storage) in output
        assert "Free some" in output
        assert [path for path in storage.rglob("*") if path.is_file()] == [], "half-written files are left"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own with room for 8 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("mounting a small file system needs root and the right to mount")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


BAD_SHARDS: dict[str, tuple[str, bytes, dict[str, Any], list[str]]] = {
    "empty": ("b.jsonl", b"", {}, ["empty shard", "write them again or remove them"]),
    "truncated gz": ("b.jsonl.gz", gzip.compress(json_lines())[:-20], {}, ["truncated", "Upload the shard again"]),
    "not gz": ("b.jsonl.gz", json_lines(), {}, ["is not gzip", "Write them again"]),
    "truncated parquet": ("b.parquet", parquet()[:-100], {}, ["truncated", "Write them again"]),
    "not JSON": ("b.jsonl", json_lines(3) + b"{'text': 1}\n", {}, ["line 4", "not JSON", "one JSON object a line"]),
    "no such key": (
        "b.jsonl",
        json_lines(3, "txet"),
        {},
        ["no key 'text'", "Nearest: 'txet'", "text_column"],
    ),
    "no such column": ("b.parquet", parquet("Text"), {}, ["no column 'text'", "Nearest: 'Text'", "text_column"]),
    "not UTF-8": ("b.txt", b"good \xff\xfe bad " * 9, {}, ["invalid UTF-8", "offset 5", "invalid_utf8: replace"]),
    "too long": (
        "b.jsonl",
        json.dumps({"text": "x" * 5000}).encode(),
        {"max_document_bytes": 4000},
        ["line 1", "data.max_document_bytes=4,000", "Split it"],
    ),
    "unknown ending": ("b.docx", b"PK", {}, ["'.docx'", "Set format"]),
    "not utf-8 in gz": ("b.txt.gz", gzip.compress(b"\xff" * 9), {}, ["invalid UTF-8", "invalid_utf8: replace"]),
}


class TestShards:
    @pytest.mark.parametrize("case", BAD_SHARDS)
    def test_refused_by_name(self, case: str, shards: Path) -> None:
        name, content, data, words = BAD_SHARDS[case]
        (shards / name).write_bytes(content)
        output = refused("train", recipe(shards.parent, data={"on_bad_shard": "refuse", **data}))
        assert str(shards / name) in output
        assert "a-sound" not in output
        for word in words:
            assert word in output
        assert not (shards.parent / "kept" / "runs" / "bad" / "checkpoints").exists()

    def test_all_that_can_be_told_at_once_is(self, shards: Path) -> None:
        (shards / "b.jsonl").write_bytes(b"")
        (shards / "c.parquet").write_bytes(parquet()[:-100])
        (shards / "d.docx").write_bytes(b"PK")
        output = refused("prepare", recipe(shards.parent))
        for name in ("b.jsonl", "c.parquet", "d.docx"):
            assert str(shards / name) in output

    def test_no_shards(self, tmp_path: Path) -> None:
        output = refused("prepare", recipe(tmp_path))
        assert f"nothing found under {tmp_path / 'shards'}" in output
        assert "Check the path" in output

    def test_nothing_but_white_space(self, shards: Path) -> None:
        (shards / "a-sound.jsonl").write_text('{"text": "  "}\n' * 9)
        assert "no text to learn a tokenizer from" in refused("prepare", recipe(shards.parent))


class TestVocabulary:
    def test_larger_than_the_embedding_in_the_recipe(self, shards: Path) -> None:
        output = refused("train", recipe(shards.parent, model={"vocab_size": 200}))
        assert "model.vocab_size = 200" in output
        assert "At least 300, or null" in output

    def test_bytes_larger_than_the_embedding(self, shards: Path) -> None:
        output = refused(
            "train", recipe(shards.parent, data={"tokenizer": {"kind": "bytes"}}, model={"vocab_size": 256})
        )
        assert "model.vocab_size = 256" in output
        assert "At least 257, or null" in output

    def test_characters_larger_than_the_embedding(self, shards: Path) -> None:
        """How many characters there are is known once the shards have been read."""
        tokens = len(set("".join(WORDS) + " ")) + 2
        data = {"tokenizer": {"kind": "chars"}, "prepare": "streaming"}
        output = refused("train", recipe(shards.parent, data=data, model={"vocab_size": tokens - 1}))
        assert f"model.vocab_size={tokens - 1} is smaller than the tokenizer's {tokens} tokens" in output
        assert "null takes 64" in output


@pytest.mark.ray
@pytest.mark.soak
def test_skipped_and_replaced_are_counted(shards: Path) -> None:
    (shards / "b.jsonl").write_bytes(json_lines(3) + b"{'text': 1}\n")
    (shards / "c.jsonl.gz").write_bytes(gzip.compress(json_lines())[:-20])
    (shards / "d.jsonl").write_bytes(json.dumps({"text": text(1) + "?"}).encode().replace(b"?", b"\xff a \xfe"))
    path = recipe(shards.parent, data={"on_bad_shard": "skip", "invalid_utf8": "replace"})
    with MantaProcess("train", path, folder=shards.parent, environment={}) as process:
        assert process.wait() == 0, process.output
        assert "2 bad units skipped; 2 invalid UTF-8 sequences replaced" in process.output
        assert "Traceback" not in process.output
    done = CliRunner().invoke(app, ["show", path, "--json"])
    skipped = json.loads(done.output)["skipped_units"]
    assert skipped["count"] == 2
    reasons = "\n".join(skipped["reasons"])
    assert f"{shards / 'b.jsonl'}, line 4: not JSON" in reasons
    assert f"{shards / 'c.jsonl.gz'}" in reasons
    assert "truncated" in reasons


@pytest.mark.chaos
@pytest.mark.ray
@pytest.mark.soak
def test_disk_that_fills_while_training(shards: Path, small_disk: Path) -> None:
    """The run ends, with a word; the checkpoints it had are whole, and with room made it goes on from the last one."""
    path = recipe(
        shards.parent, storage=str(small_disk), train={"steps": 400}, checkpoint={"every_steps": 5, "keep": 999}
    )
    with MantaProcess("train", path, folder=shards.parent, environment={}) as process:
        assert process.wait() == 2, process.output
        assert "No space left" in process.output
        assert "Free some" in process.output
        assert "Traceback" not in process.output
    done = CliRunner().invoke(app, ["show", path, "--json"])
    assert done.exit_code == 0, done.output
    summary = json.loads(done.output)
    assert summary["status"] == "failed"
    assert summary["step"] == summary["checkpoints"][-1]["step"] > 0
    assert (summary["samples"]["duplicated"], summary["samples"]["missing"]) == (0, 0)

    subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
    with MantaProcess("train", path, "--set", "checkpoint.keep=1", folder=shards.parent, environment={}) as process:
        assert process.wait() == 0, process.output
    done = CliRunner().invoke(app, ["show", path, "--json"])
    after = json.loads(done.output)
    assert after["status"] == "finished"
    assert after["samples"]["seen"] == after["samples"]["expected"] == 400 * 4
    assert (after["samples"]["duplicated"], after["samples"]["missing"]) == (0, 0)
