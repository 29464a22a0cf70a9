"""Makes the stored runs anew: `python make.py FOLDER`, with the Python of the version that is to make them.

Every run is made twice: to its end, which tells what is expected, and once more, stopped about midway, which is kept.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
MANTA = Path(sys.executable).parent / "manta"
EVALUATION_S = 8
"""How long an evaluation beside training may take."""

MTIME_S = 1_700_000_000
"""When all files of the corpora were written, which their manifests pin."""

WHO = ["miller", "ferryman", "old clerk", "beekeeper", "tall girl", "mason", "caf\u00e9 owner", "cafe\u0301 owner"]
DOES = ["counts", "paints", "mends", "forgets", "sells", "carries", "hides", "finds"]
WHAT = ["lanterns", "barrels", "letters", "copper kettles", "\ufb01ne ropes", "bells", "wheels", "maps"]
WHERE = ["by the river", "under the bridge", "before noon", "without a word", "in the attic", "for his brother"]
PARTS = (WHO, DOES, WHAT, WHERE)
DIGITS = {
    "en": ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"],
    "de": ["null", "eins", "zwei", "drei", "vier", "fünf", "sechs", "sieben", "acht", "neun"],
}


def paragraphs(seed: int, count: int) -> Iterator[str]:
    """Invented text, in which some paragraphs come twice, some nearly, and some are too short."""
    draw = random.Random(seed)
    seen: list[list[str]] = []
    for number in range(count):
        if number % 9 == 8:
            yield " ".join(draw.choice(seen))
        elif number % 9 == 7:
            sentences = list(draw.choice(seen))
            yield " ".join([*sentences, "So it is."])
        elif number % 9 == 6:
            yield f"Part {number}."
        else:
            seen.append([f"The {' '.join(map(draw.choice, PARTS))}." for _ in range(draw.randint(3, 5))])
            yield " ".join(seen[-1])


def write_corpora(folder: Path) -> None:
    """The text of all runs."""
    for name in ("decoder", "pairs", "sweep"):
        (folder / name / "corpus").mkdir(exist_ok=True)
    for shard in range(3):
        (folder / f"decoder/corpus/part-{shard}.txt").write_text("\n\n".join(paragraphs(shard, 30)) + "\n")
    (folder / "sweep/corpus/part-0.txt").write_text("\n\n".join(paragraphs(9, 30)) + "\n")
    draw = random.Random(4)
    numbers = [[draw.randrange(10) for _ in range(draw.randint(1, 5))] for _ in range(150)]
    for language, words in DIGITS.items():
        lines = (" ".join(words[digit] for digit in digits) + "\n" for digits in numbers)
        (folder / f"pairs/corpus/numbers.{language}").write_text("".join(map(str.capitalize, lines)))
    for path in folder.glob("*/corpus/*"):
        os.utime(path, (MTIME_S, MTIME_S))


def manta(folder: Path, *arguments: str) -> str:
    """What a command prints, given from a run's folder."""
    done = subprocess.run([MANTA, *arguments], cwd=folder, stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout


def stop_midway(folder: Path) -> None:
    """Train until there are a checkpoint and an evaluation, then interrupt; workers stand still until that is heard."""
    process = subprocess.Popen([MANTA, "train", "recipe.yaml"], cwd=folder, start_new_session=True)
    while not any(folder.glob("storage/runs/*/checkpoints/*/manifest.json")):
        assert process.poll() is None, "ended before it could be stopped"
        time.sleep(0.002)
    workers = [int(pid) for pid in os.listdir("/proc") if pid.isdecimal() and is_worker(int(pid), process.pid)]
    for pid in workers:
        os.kill(pid, signal.SIGSTOP)
    until = time.monotonic() + EVALUATION_S
    while not evaluations(folder) and time.monotonic() < until:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    time.sleep(2)
    for pid in workers:
        os.kill(pid, signal.SIGCONT)
    assert process.wait() == 130


def is_worker(pid: int, session: int) -> bool:
    """Whether a process is a training worker of the command."""
    try:
        title = Path(f"/proc/{pid}/cmdline").read_bytes()
        return b"ray::TrainingWorker" in title and os.getsid(pid) == session
    except OSError:
        return False


def evaluations(folder: Path) -> list[dict[str, Any]]:
    """Those on the way, by step, without times."""
    record = json.loads(next(folder.glob("storage/runs/*/run.json")).read_text())
    told = [each for attempt in record["attempts"] for each in attempt["evaluations"]]
    return [{name: each[name] for name in each if name != "at"} for each in sorted(told, key=lambda each: each["step"])]


def story(folder: Path) -> dict[str, Any]:
    """What is known of a run that does not depend on time."""
    shown = json.loads(manta(folder, "show", "recipe.yaml", "--json"))
    same = ("status", "step", "tokens", "samples", "data_steps", "pairs_too_long", "loss", "translations")
    lines = next(folder.glob("storage/runs/*/metrics.jsonl")).read_text().splitlines()
    return {
        **{name: shown[name] for name in same},
        "losses": [json.loads(line)["loss"] for line in lines],
        "evaluations": evaluations(folder),
        "eval": json.loads(manta(folder, "eval", "recipe.yaml", "--json")),
    }


def make_run(folder: Path) -> None:
    """A run stopped midway, and beside it what is expected of it."""
    for made in ("storage", ".manta"):
        shutil.rmtree(folder / made, ignore_errors=True)
    manta(folder, "train", "recipe.yaml")
    finished = story(folder)
    for made in ("storage", ".manta"):
        shutil.rmtree(folder / made)
    stop_midway(folder)
    stopped = story(folder)
    # One that is due at the very step after which a run is stopped is never made.
    due = [each for each in finished["evaluations"] if each["step"] <= stopped["step"]]
    assert due and stopped["evaluations"] == due, "stopped at a step that is evaluated: try again"
    tell(folder, {"stopped": stopped, "finished": finished})


def make_sweep(folder: Path) -> None:
    """A finished sweep, and beside it what is expected of it."""
    for made in ("storage", ".manta", "sweeps"):
        shutil.rmtree(folder / made, ignore_errors=True)
    manta(folder, "tune", "recipe.yaml")
    tell(folder, {"finished": json.loads(manta(folder, "show", "sweep", "--json"))})


def tell(folder: Path, expected: dict[str, Any]) -> None:
    """Write down what is expected."""
    (folder / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")


def without_machine(folder: Path) -> None:
    """Take out of the records what names the machine, and files that are made anew or are only locks."""
    for path in [*folder.glob("*/storage/runs/*/run.json"), *folder.glob("*/storage/sweeps/*/sweep.json")]:
        record = json.loads(path.read_text())
        for attempt in record["attempts"]:
            attempt |= {"host": "example-host", "boot_id": "example-boot", "pid": 1, "pid_started": "1"}
        path.write_text(json.dumps(record, indent=1))
    for path in [*folder.rglob(".lock~"), *folder.glob("*/.manta/reports"), *folder.rglob("report.html")]:
        shutil.rmtree(path) if path.is_dir() else path.unlink()


if __name__ == "__main__":
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else HERE
    write_corpora(target)
    make_run(target / "decoder")
    make_run(target / "pairs")
    make_sweep(target / "sweep")
    without_machine(target)
