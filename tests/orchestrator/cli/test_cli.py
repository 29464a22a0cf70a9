"""The command line: help that is quick and teaches, errors as messages with an exit status, arguments passed on."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
import types
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cluster.errors import ClusterError
from data.errors import BadShardError, TransientStoreError
from orchestrator.cli.main import app
from tests.recipes import tiny_recipe, write_recipe

ROOT = Path(__file__).parents[3]
COMMANDS = ["quickstart", "prepare", "train", "eval", "generate", "show", "report", "doctor", "schema"]


@pytest.fixture
def recipe(tmp_path: Path) -> str:
    fields = tiny_recipe(run="first", sample={"prompts": ["one"], "temperature": 0.5})
    return str(write_recipe(tmp_path / "first.yaml", fields))


def standing_in(monkeypatch: pytest.MonkeyPatch, module: str, function: str, result: Any = None) -> list[Any]:
    """Replaces the module that does the work by a recorder; returns the list of its calls."""
    calls: list[Any] = []

    def record(*arguments: Any, **named: Any) -> Any:
        calls.append((arguments, named))
        if isinstance(result, BaseException):
            raise result
        return result

    stand_in = types.ModuleType(module)
    setattr(stand_in, function, record)
    monkeypatch.setitem(sys.modules, module, stand_in)
    return calls


def test_help_imports_nothing_heavy() -> None:
    program = (
        "import sys, orchestrator.cli.main\n"
        "try: orchestrator.cli.main.app(['--help'])\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        "heavy = ('ray', 'torch', 'pyarrow', 'boto3', 'numpy', 'pydantic', 'yaml')\n"
        "print('IMPORTED', [name for name in heavy if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert all(command in done.stdout for command in COMMANDS)
    assert done.stdout.splitlines()[-1] == "IMPORTED []"


def test_reading_a_recipe_imports_neither_ray_nor_torch(recipe: str) -> None:
    program = (
        "import sys; from orchestrator.config.load import load_recipe; load_recipe(sys.argv[1])\n"
        "print([name for name in ('ray', 'torch', 'pyarrow', 'boto3') if name in sys.modules])"
    )
    command = [sys.executable, "-c", program, recipe]
    assert subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout == "[]\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_shows_an_example(command: str) -> None:
    result = CliRunner().invoke(app, [command, "--help"])
    assert result.exit_code == 0
    assert f"Example: manta {command}" in result.output


def test_version() -> None:
    result = CliRunner().invoke(app, ["--version"])
    assert result.exit_code == 0
    assert result.output.startswith("manta")


@pytest.mark.parametrize("arguments", [["nonsense"], ["train"], ["train", "a.yaml", "--nonsense"], ["show"]])
def test_wrong_usage_ends_with_2(arguments: list[str]) -> None:
    assert CliRunner().invoke(app, arguments).exit_code == 2


@pytest.mark.parametrize("arguments", [["{}"], ["--{}"], ["show", "a", "--{}"], ["show", "a", "{}"]])
def test_wrong_usage_is_told_without_what_a_terminal_obeys(arguments: list[str]) -> None:
    result = CliRunner().invoke(app, [each.format("no\u202e\x07") for each in arguments], env={"COLUMNS": "200"})
    assert result.exit_code == 2
    assert r"no\u202e\x07" in result.output and not {"\u202e", "\x07"} & set(result.output)


def test_an_output_that_lacks_characters_gets_their_numbers(tmp_path: Path) -> None:
    folder = shutil.copytree(ROOT / "tests/end_to_end/stored_runs/decoder", tmp_path / "run")
    environment = os.environ | {"PYTHONIOENCODING": "ascii", "PYTHONPATH": str(ROOT), "COLUMNS": "40"}
    command = [sys.executable, "-m", "manta_start", "show", "recipe.yaml"]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert r"\u2026" in done.stdout, "what does not fit ends with three dots"


def test_a_folder_that_was_deleted_is_a_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    result = CliRunner().invoke(app, ["show", "a"])
    assert result.exit_code == 2 and "was deleted. Change into another one" in result.stderr


@pytest.mark.parametrize("command", ["prepare", "train", "eval", "generate", "doctor"])
def test_a_bad_recipe_is_a_message_and_status_2(command: str, recipe: str) -> None:
    result = CliRunner().invoke(app, [command, recipe, "--set", "train.lr=-1", "--set", "nope=1"])
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.startswith(f"error: {recipe}: 2 problems\n")
    assert "train.lr = -1: should be greater than 0" in result.stderr
    assert "nope: there is no such field" in result.stderr


@pytest.mark.parametrize(
    ("error", "status", "says"),
    [
        (BadShardError("shard 3 is cut short"), 2, "error: shard 3 is cut short\n"),
        (TransientStoreError("no answer"), 1, "error: no answer\n"),
        (ClusterError("weed ended"), 1, "error: weed ended\n"),
        (KeyboardInterrupt(), 130, "stopped.\n"),
    ],
)
def test_errors_become_messages(
    monkeypatch: pytest.MonkeyPatch, recipe: str, error: BaseException, status: int, says: str
) -> None:
    standing_in(monkeypatch, "orchestrator.driver.train", "train", error)
    result = CliRunner().invoke(app, ["train", recipe])
    assert (result.exit_code, result.stderr) == (status, says)


def test_an_error_from_a_ray_task_is_printed_without_rays_traceback(
    monkeypatch: pytest.MonkeyPatch, recipe: str
) -> None:
    from ray.exceptions import RayTaskError

    inner = BadShardError("shard 3 is cut short")
    outer = RayTaskError("read", "Traceback (most recent call last): ...", inner).as_instanceof_cause()
    standing_in(monkeypatch, "orchestrator.driver.train", "train", outer)
    result = CliRunner().invoke(app, ["train", recipe])
    assert (result.exit_code, result.stderr) == (2, "error: shard 3 is cut short\n")


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch, recipe: str) -> None:
    standing_in(monkeypatch, "orchestrator.driver.train", "train", ZeroDivisionError("a bug"))
    result = CliRunner().invoke(app, ["train", recipe])
    assert isinstance(result.exception, ZeroDivisionError)


def test_train_passes_on_overrides_and_takeover(monkeypatch: pytest.MonkeyPatch, recipe: str) -> None:
    calls = standing_in(monkeypatch, "orchestrator.driver.train", "train")
    assert CliRunner().invoke(app, ["train", recipe, "--set", "train.lr=3e-4", "--takeover"]).exit_code == 0
    (((config,), named),) = calls
    assert config.train.lr == 3e-4
    assert named["takeover"] is True
    assert 0 < named["started_at"] < time.time()


def test_generate_options_are_checked_and_override_the_recipe(monkeypatch: pytest.MonkeyPatch, recipe: str) -> None:
    calls = standing_in(monkeypatch, "orchestrator.inference.generate", "generate")
    options = ["--prompt", "a: [b", "--prompt", "c", "--top-k", "5", "--top-p", "0.9", "--seed", "3"]
    assert CliRunner().invoke(app, ["generate", recipe, *options]).exit_code == 0
    (((config,), _),) = calls
    sample = config.sample
    assert sample.prompts == ("a: [b", "c")
    assert (sample.max_new_tokens, sample.temperature, sample.top_k, sample.top_p, sample.seed) == (64, 0.5, 5, 0.9, 3)

    wrong = CliRunner().invoke(app, ["generate", recipe, "--top-p", "2", "--temperature", "warm"])
    assert wrong.exit_code == 2
    assert "sample.top_p = 2" in wrong.stderr
    assert 'sample.temperature = "warm"' in wrong.stderr
    assert len(calls) == 1


def test_eval_prints_json_or_lines(monkeypatch: pytest.MonkeyPatch, recipe: str) -> None:
    scores = {"val_loss": 1.5, "val_perplexity": 4.48}
    standing_in(monkeypatch, "orchestrator.inference.evaluate", "evaluate", scores)
    assert json.loads(CliRunner().invoke(app, ["eval", recipe, "--json"]).stdout) == scores
    assert CliRunner().invoke(app, ["eval", recipe]).stdout.split() == ["val_loss", "1.5", "val_perplexity", "4.48"]


@pytest.mark.parametrize("command", ["eval", "generate"])
def test_an_unknown_run_is_named(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, [command, "nope"])
    assert result.exit_code == 2
    assert result.stderr.startswith("error: nope is neither a recipe nor a run that was started from this folder")


def test_show_passes_on_its_argument(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = standing_in(monkeypatch, "orchestrator.commands.show", "show")
    assert CliRunner().invoke(app, ["show", "first", "--json", "--audit", "--set", "run=second"]).exit_code == 0
    assert calls == [(("first", True, ("run=second",), True), {})]


def test_report_passes_on_its_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = standing_in(monkeypatch, "orchestrator.commands.report", "report")
    assert CliRunner().invoke(app, ["report", "first", "--to", "a/b.html", "--set", "run=second"]).exit_code == 0
    assert CliRunner().invoke(app, ["report", "first", "--audit"]).exit_code == 0
    assert calls == [(("first", Path("a/b.html"), ("run=second",), False), {}), (("first", None, (), True), {})]


def test_schema_is_json_or_a_table() -> None:
    assert "train" in json.loads(CliRunner().invoke(app, ["schema"]).stdout)["properties"]
    assert "| `train.lr` | number | required |" in CliRunner().invoke(app, ["schema", "--markdown"]).stdout


@pytest.mark.parametrize(("status", "exit_code"), [("ok", 0), ("warn", 0), ("fail", 1)])
def test_doctor_ends_with_1_if_anything_fails(monkeypatch: pytest.MonkeyPatch, status: Any, exit_code: int) -> None:
    from orchestrator.commands.doctor import examine
    from orchestrator.commands.doctor.check import Check

    monkeypatch.setattr(examine, "examine", lambda config: [Check("disk", status, "0.5 GB", "Free some.")])
    result = CliRunner().invoke(app, ["doctor", "--json"])
    assert result.exit_code == exit_code
    assert json.loads(result.stdout) == [{"name": "disk", "status": status, "found": "0.5 GB", "remedy": "Free some."}]
    assert "Free some." in CliRunner().invoke(app, ["doctor"]).stdout


def test_output_that_cannot_be_written_is_one_line() -> None:
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "manta_start", "schema", "--markdown"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, cwd=ROOT, check=False)
    assert done.returncode == 1
    assert done.stderr == "error: No space left on device: the output or a file could not be written.\n"
