"""The structure of the code: which way imports run, how large folders, modules and functions are, what processes load.

Imports inside functions and those for type checkers count like any other.
"""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
from collections import Counter
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import grimp
import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("cluster", "data", "model", "orchestrator")

LAYERS = (
    ("errors", "printable"),
    ("config",),
    ("policy",),
    ("run",),
    ("evaluation", "nodes", "observe", "console"),
    ("report",),
    ("workers",),
    ("snapshots",),
    ("inference", "monitor", "train"),
    ("driver",),
    ("chaos", "sweep"),
    ("commands",),
    ("cli",),
)
"""Rooms of `orchestrator`: each imports only from rows above its own, or from itself."""

BELOW = {
    "cluster": (),
    "model": (),
    "data": ("cluster.errors", "cluster.known_secrets", "cluster.local.seaweedfs", "cluster.ray_nodes"),
    "orchestrator": ("cluster", "data", "model"),
}
"""What each package may import of the others, by the beginning of module names."""


@cache
def imports() -> dict[str, set[str]]:
    """Modules that each module of the project imports."""
    graph = grimp.build_graph(*PACKAGES, cache_dir=None)
    return {module: set(graph.find_modules_directly_imported_by(module)) for module in graph.modules}


def edges() -> list[tuple[str, str]]:
    return [(module, imported) for module, found in imports().items() for imported in found]


def test_no_module_imports_itself_by_any_way() -> None:
    TopologicalSorter(imports()).prepare()  # raises CycleError, which names the circle


def test_packages_import_only_those_below_them() -> None:
    wrong = [
        f"{module} imports {imported}"
        for module, imported in edges()
        if (own := module.split(".")[0]) != imported.split(".")[0] and not imported.startswith(BELOW[own] or ("-",))
    ]
    assert wrong == []


def test_rooms_of_the_orchestrator_import_only_those_above_them() -> None:
    row_of = {f"orchestrator.{room}": row for row, rooms in enumerate(LAYERS) for room in rooms}

    def room_of(module: str) -> str:
        return ".".join(module.split(".")[:2])

    rooms = {room_of(module) for module in imports() if module.startswith("orchestrator.")}
    assert rooms == row_of.keys(), "every room has its place in LAYERS"
    wrong = [
        f"{module} imports {imported}"
        for module, imported in edges()
        if module.startswith("orchestrator.")
        and imported.startswith("orchestrator.")
        and room_of(module) != room_of(imported)
        and row_of[room_of(imported)] >= row_of[room_of(module)]
    ]
    assert wrong == []


def test_no_folder_has_more_than_twenty_modules() -> None:
    count = Counter(path.parent for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
    assert {str(folder.relative_to(ROOT)): number for folder, number in count.items() if number > 20} == {}


def sources() -> list[Path]:
    """Every Python file outside of tests."""
    folders = ("manta_start", *PACKAGES, "bench", ".ci")
    return [path for folder in folders for path in (ROOT / folder).rglob("*.py")]


def test_modules_and_functions_are_short() -> None:
    long = []
    for path in sources():
        text = path.read_text()
        name = path.relative_to(ROOT)
        if (lines := text.count("\n")) > 320:
            long.append(f"{name}: {lines} lines")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                if lines > 60:
                    long.append(f"{name}:{node.name}: {lines} lines")
    assert long == []


def loads(code: str, *heavy: str, folder: Path = ROOT) -> str:
    """Those of the modules `heavy` that a fresh interpreter has loaded after running `code` in `folder`."""
    script = f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{code}\nprint(sorted({set(heavy)!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


CONTROLLER = (
    "import orchestrator.workers.ray_train, orchestrator.workers.hooks, orchestrator.workers.pool, "
    "orchestrator.workers.worker, orchestrator.nodes.requests"
)
HELP = "from orchestrator.cli.main import app\napp(['train', '--help'], standalone_mode=False)"
SHOW = "import orchestrator.commands.show"
RUN = "import " + ", ".join(
    f"orchestrator.run.{path.stem}"
    for path in sorted((ROOT / "orchestrator/run").glob("*.py"))
    if path.stem != "__init__"
)


@pytest.mark.parametrize(
    ("code", "heavy"),
    [
        pytest.param(RUN, ("ray", "torch", "pandas"), id="run"),
        pytest.param(CONTROLLER, ("torch",), id="controller"),
        pytest.param("import orchestrator.commands.quickstart, orchestrator.driver.train", ("torch",), id="quickstart"),
        pytest.param("import orchestrator.monitor.monitor, orchestrator.driver.attempt", ("torch",), id="driver"),
        pytest.param(HELP, ("ray", "torch"), id="help"),
        pytest.param("import orchestrator.report.run", ("ray", "torch", "numpy"), id="report"),
        pytest.param(
            "import orchestrator.sweep.report.page, orchestrator.sweep.report.table",
            ("ray", "torch", "pandas"),
            id="report of a sweep",
        ),
        pytest.param("import model.transformer, model.optim.optimizer", ("ray",), id="model"),
        pytest.param("import data.config", ("ray", "torch", "boto3", "pyarrow", "numpy"), id="recipe of data"),
        pytest.param(
            "import data.stores.open, data.shards.build, data.readers.documents, data.tokens.tokenizer",
            ("ray", "torch", "boto3", "pyarrow", "tiktoken", "tokenizers"),
            id="reading shards",
        ),
        pytest.param(
            "import data.prepare, data.feed.spec", ("ray", "torch", "boto3", "tiktoken", "tokenizers"), id="preparing"
        ),
        pytest.param(
            "import data.prepare, data.tokens.pipeline, orchestrator.run.run",
            ("rensa", "rjieba", "simplemma", "py3langid", "stopwordsiso"),
            id="cleaning",
        ),
    ],
)
@pytest.mark.slow  # an interpreter each, some with torch
def test_what_a_process_loads(code: str, heavy: tuple[str, ...]) -> None:
    assert loads(code, *heavy) == "[]"


def test_a_run_is_shown_without_ray_and_torch(tmp_path: Path) -> None:
    folder = tmp_path / "decoder"
    shutil.copytree(ROOT / "tests/end_to_end/stored_runs/decoder", folder)
    assert loads(SHOW, "ray", "torch", folder=folder) == "[]"
