"""Runs on pairs from one command to translations: the same at any number of workers, whatever becomes of them."""

from __future__ import annotations

import json
import os
import re
import signal
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from data.feed.held_out import fixed_batches
from data.stores.store import Store
from model.config import ModelConfig
from model.size import flops_per_pair
from orchestrator.cli.main import app
from orchestrator.config.load import load_recipe
from orchestrator.observe.event_files import HELD_OUT, TRAIN
from orchestrator.run.metrics_file import METRICS
from orchestrator.run.run import Run, feed_spec, open_run
from tests.end_to_end.manta_process import MantaProcess
from tests.orchestrator.event_reader import curves_in

pytestmark = [pytest.mark.chaos, pytest.mark.soak]

STEPS = 200
WORDS = {"red": "rot", "green": "grün", "blue": "blau", "black": "schwarz", "white": "weiß", "grey": "grau"}
RECIPE: dict[str, Any] = {
    "seed": 3,
    "data": {
        "tokenizer": {"kind": "bpe", "vocab_size": 300},
        "seq_len": 40,
        "bucket_steps": 4,
        "validation_fraction": 0.1,
    },
    "model": {"architecture": "encoder_decoder", "preset": "original", "n_layers": 1, "d_model": 32, "n_heads": 2},
    "train": {
        "steps": STEPS,
        "global_batch_size": 32,
        "micro_batch_size": 8,
        "lr": 1e-3,
        "label_smoothing": 0.1,
        "schedule": {"name": "inverse_sqrt", "warmup_steps": 10},
    },
    "eval": {"every_steps": 100, "translate": 20, "translate_during_training": 8, "beam_size": 2, "language": "de"},
}


def sentences(count: int) -> list[tuple[str, str]]:
    """Colours and their names in German, in the same order."""
    names = list(WORDS)
    chosen = [[names[(n * 7 + k * k) % len(names)] for k in range(1 + n % 5)] for n in range(count)]
    return [(f"{n}: {' '.join(words)}", " ".join(WORDS[word] for word in words)) for n, words in enumerate(chosen)]


def written(folder: Path, run: str, pairs: list[tuple[str, str]], **changes: dict[str, Any]) -> str:
    """Path of the recipe of a run on these pairs."""
    for side, place in (("en", 0), ("de", 1)):
        (folder / f"{run}.{side}").write_text("".join(pair[place] + "\n" for pair in pairs))
    sections = {name: {**RECIPE[name], **changes.get(name, {})} for name in ("data", "model", "train", "eval")}
    sections["data"]["sources"] = [{"path": f"{folder}/{run}.de", "input_path": f"{folder}/{run}.en"}]
    path = folder / f"{run}.yaml"
    fields = {**RECIPE, **sections, "run": run, "storage": str(folder / "store")}
    path.write_text(json.dumps(fields | {"scaling": changes.get("scaling", {})}))
    return str(path)


def trained(folder: Path, recipe: str, kill_after: int | None = None) -> tuple[dict[str, Any], list[str]]:
    """Train to the end, a worker killed on the way if asked for.

    Returns:
        what `manta show --json` says then, and what was said of evaluations on the way.
    """
    run = load_recipe(recipe)
    with MantaProcess("train", recipe, folder=folder, environment={}) as process:
        if kill_after is not None:
            process.wait_until(lambda: _steps(run) >= kill_after, f"step {kill_after}")
            os.kill(process.pids_of("ray::TrainingWorker")[-1], signal.SIGKILL)
        assert process.wait() == 0, process.output
        evaluations = re.findall(r"step \d+: held-out loss .*chrF [\d.]+", process.output)
    return json.loads(command("show", recipe, "--json")), evaluations


def _steps(run: Any) -> int:
    try:
        return int(open_run(run).record.last.step)
    except Exception:
        return -1


def command(*arguments: str) -> str:
    """What a command prints that needs no Ray."""
    done = CliRunner().invoke(app, list(arguments))
    assert done.exit_code == 0, done.output
    return str(done.output)


def rows_of(store: Store) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl."""
    return [json.loads(line) for line in store.get(METRICS).splitlines()]


def losses(recipe: str) -> list[float]:
    return [row["loss"] for row in rows_of(open_run(load_recipe(recipe)).store)]


def test_one_worker_and_two_of_which_one_is_killed_end_in_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    pairs = sentences(400)
    alone = written(tmp_path, "alone", pairs)
    two = {"scaling": {"num_workers": 2, "min_workers": 1, "max_workers": 2}}
    disturbed = written(tmp_path, "disturbed", pairs, **two)
    (tmp_path / "disturbed.yaml").write_text((tmp_path / "disturbed.yaml").read_text().replace("disturbed.", "alone."))
    # One worker leaves a core of two free: it does not wait for its evaluation, which two workers do themselves.
    (summary, evaluations), (other, others) = trained(tmp_path, alone), trained(tmp_path, disturbed, kill_after=1)
    summaries = [summary, other]
    assert len(evaluations) == 1 and evaluations == others
    assert [summary["restarts"] for summary in summaries] == [0, 1]
    for summary in summaries:
        samples = summary["samples"]
        assert (samples["missing"], samples["duplicated"], samples["in_order"]) == (0, 0, True)
        assert summary["translations"]["translated"] == 20 and "tok:13a" in summary["translations"]["bleu_signature"]
    assert summaries[0]["samples"]["digest"] == summaries[1]["samples"]["digest"]
    assert losses(disturbed) == pytest.approx(losses(alone), rel=1e-4)
    assert summaries[1]["loss"]["val"] == pytest.approx(summaries[0]["loss"]["val"], rel=1e-4)
    assert summaries[1]["translations"] == summaries[0]["translations"]

    for recipe, summary in zip((alone, disturbed), summaries, strict=True):
        run = open_run(load_recipe(recipe))
        store, inputs, texts = run.store, *mean_lengths(run)
        rows = rows_of(store)
        step_s = sum(row["step_s"] for row in rows)
        shape = ModelConfig.model_validate(RECIPE["model"])
        per_token = flops_per_pair(shape, RECIPE["data"]["tokenizer"]["vocab_size"], inputs, texts) / texts
        assert summary["model_flops_per_s"] == pytest.approx(per_token * summary["tokens"] / step_s, rel=0.02)
        curves = curves_in(Path(store.url_of(TRAIN)))
        assert curves["loss"] == [(row["step"], pytest.approx(row["loss"])) for row in rows]
        held_out = curves_in(Path(store.url_of(HELD_OUT)))
        loss, bleu = (float(number) for number in re.findall(r"(?:loss|BLEU) ([\d.]+)", evaluations[0]))
        assert held_out["loss"] == [(100, pytest.approx(loss, abs=1e-4)), final(summary)]
        scores = [(100, pytest.approx(bleu, abs=0.01)), (STEPS, pytest.approx(summary["translations"]["bleu"]))]
        assert held_out["bleu"] == scores
    with MantaProcess("eval", alone, "--json", "--workers", "2", folder=tmp_path, environment={}) as process:
        assert process.wait() == 0, process.output
        again = json.loads(process.output)
    assert again["val_loss"] == pytest.approx(summaries[0]["loss"]["val"], rel=1e-6)
    assert again["val_bleu"] == summaries[0]["translations"]["bleu"]
    told = json.loads(command("eval", alone, "--json", "--nearest"))
    assert again.items() <= told.items()
    assert told.keys() - again.keys() == {"val_nearest_bleu", "val_nearest_chrf"} and told["val_nearest_chrf"] > 0


def mean_lengths(run: Run) -> tuple[float, float]:
    """Tokens of an input and of a text, over the pairs that are trained on."""
    batches = fixed_batches(feed_spec(run, run.prepare(lambda line: None)), "train")
    pairs = sum(len(batch.target_counts) for batch in batches)
    inputs = sum(int(batch.input_counts.sum()) for batch in batches if batch.input_counts is not None)
    return inputs / pairs, sum(int(batch.target_counts.sum()) for batch in batches) / pairs


def final(summary: dict[str, Any]) -> tuple[int, Any]:
    """Step and held-out loss at the end."""
    return STEPS, pytest.approx(summary["loss"]["val"])


def test_ten_pairs_are_learned_by_heart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = written(
        tmp_path,
        "heart",
        sentences(50)[4::5],  # of five words: BLEU counts four in a row
        data={"validation_fraction": 0.0},
        train={"steps": 150, "lr": 3e-3, "global_batch_size": 10, "micro_batch_size": 5, "label_smoothing": 0.0},
        eval={"every_steps": None},
    )
    summary, _ = trained(tmp_path, recipe)
    assert summary["translations"] == {} and summary["loss"]["train"] < 0.05
    scores = json.loads(command("eval", recipe, "--split", "train", "--json"))
    assert scores["train_bleu"] == pytest.approx(100) and scores["train_translated"] == 10
    [source, target] = sentences(50)[4]
    assert target in command("generate", recipe, "--prompt", source, "--temperature", "0")
