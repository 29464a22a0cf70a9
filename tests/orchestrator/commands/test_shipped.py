"""What `manta submit` ships of a folder: the right files, nothing secret, nothing that hangs; a reason for the rest."""

from __future__ import annotations

import os
import socket
import zipfile
from pathlib import Path

import pytest

from data.errors import InputError
from orchestrator.commands import shipped
from orchestrator.commands.shipped import shipment

SECRETS = (
    *(".env", ".env.local", ".envrc", ".netrc", ".npmrc", ".pypirc", ".git-credentials", "id_rsa", "id_ed25519.pub"),
    *(".kube/config", ".docker/config.json", ".aws/credentials", ".ssh/known_hosts", "deep/er/.kube/config"),
    *("server.pem", "store.p12", "infra/terraform.tfstate", "infra/terraform.tfstate.backup", "prod.tfvars"),
    *("credentials.json", "client_secret_7.json", "my-service-account.json", "prod.kubeconfig"),
)

KEYS = {
    "notes.txt": "-----BEGIN OPENSSH PRIVATE KEY-----\nabc\n",
    "aws.py": "KEY = 'AKIAIOSFODNN7EXAMPLE'\n",
    "run.sh": "export AWS_SECRET_ACCESS_KEY=wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY\n",
    "other-recipe.yaml": "store:\n  secret_access_key: hush-hush-hush\n",
    "gcp.json": '{"type": "service_account", "private_key_id": "x"}',
    "hub.txt": "ghp_0123456789abcdefghijABCDEFGHIJ012345\n",
}

SOUND = {
    "mine.yaml": "run: mine\n",
    "train.py": "import os\nKEY = os.environ['AWS_SECRET_ACCESS_KEY']\n",
    "src/clean.py": "def clean(text):\n    return text\n",
    "src/token_count.py": "",
    "environment.md": "secret_access_key: set it in the environment\n",
    "docs/keys.md": "Put your key into .env\n",
    "empty/.keep": "",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    for name, content in {**SOUND, **KEYS, **dict.fromkeys(SECRETS, "secret\n")}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    for name in (".git/HEAD", ".venv/bin/python", "__pycache__/x.pyc", ".manta/runs/mine.yaml", "wandb/log"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("derived")
    return folder


def test_the_right_files_go_and_nothing_secret_does(folder: Path) -> None:
    ships = shipment(folder, ["mine.yaml"])
    assert ships.files == {name: len(content) for name, content in sorted(SOUND.items())}
    reasons = {name.rstrip("/"): reason for name, reason in ships.excluded}
    for name in SECRETS:
        parents = [str(parent) for parent in Path(name).parents]
        assert any("may hold keys" in reasons.get(each, "") for each in (name, *parents)), name
    for name in KEYS:
        assert reasons[name].startswith("holds a"), name
    assert reasons[".git"] == reasons[".venv"] == "is derived"


def test_what_would_hang_break_or_lead_out_is_left_out_by_name(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/data.txt").write_text("x")
    os.mkfifo(folder / "pipe")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(os.path.relpath(folder / "socket"))
    (folder / "out").symlink_to(tmp_path / "outside")
    (folder / "out.txt").symlink_to(tmp_path / "outside/data.txt")
    (folder / "gone").symlink_to(folder / "nothing")
    (folder / "loop").symlink_to(folder)
    (folder / "in.py").symlink_to(folder / "train.py")
    (folder / "src-again").symlink_to(folder / "src")
    (folder / os.fsdecode(b"caf\xe9.txt")).write_text("x")
    (folder / "large.bin").write_bytes(b"x" * 21_000_000)
    ships = shipment(folder, ["mine.yaml"])
    reasons = dict(ships.excluded)
    assert reasons["pipe"] == reasons["socket"] == "is no file, but a pipe, socket or device"
    assert "outside the folder" in reasons["out/"] and "outside the folder" in reasons["out.txt"]
    assert reasons["gone"] == "is missing, or a link to what is"
    assert reasons["loop/"] == "links to a folder that it is in"
    assert reasons[os.fsdecode(b"caf\xe9.txt")] == "has a name that is no UTF-8"
    assert reasons["large.bin"].startswith("has 21 MB")
    assert ships.files.keys() == {*SOUND, "in.py", "src-again/clean.py", "src-again/token_count.py"}
    assert "\\udce9" in "".join(map(ascii, ships.report()))


def test_the_folders_own_ignore_files_are_honoured_and_the_recipe_goes_all_the_same(folder: Path) -> None:
    (folder / ".gitignore").write_text("*.yaml\n/docs/\n# comment\nenvironment.md\n!src/\n")
    (folder / ".rayignore").write_text("empty/\n")
    (folder / "src/.gitignore").write_text("*.py\n!clean.py\n")
    ships = shipment(folder, ["mine.yaml"])
    assert ships.files.keys() == {"mine.yaml", "train.py", "src/clean.py", ".gitignore", ".rayignore", "src/.gitignore"}
    reasons = dict(ships.excluded)
    assert reasons["docs/"] == "is ignored by .gitignore"
    assert reasons["empty/"] == "is ignored by .rayignore"
    assert reasons["src/token_count.py"] == "is ignored by src/.gitignore"


def test_a_recipe_below_an_ignored_folder_goes_without_its_neighbours(folder: Path) -> None:
    (folder / "recipes").mkdir()
    for name in ("mine.yaml", "other.yaml"):
        (folder / "recipes" / name).write_text("run: mine\n")
    (folder / ".gitignore").write_text("recipes/\n")
    ships = shipment(folder, ["recipes/mine.yaml"])
    assert "recipes/mine.yaml" in ships.files and "recipes/other.yaml" not in ships.files
    assert dict(ships.excluded)["recipes/other.yaml"] == "is ignored by .gitignore"


def test_a_recipe_with_a_key_is_refused(folder: Path) -> None:
    with pytest.raises(InputError, match=r"other-recipe\.yaml cannot be shipped: it holds a secret key"):
        shipment(folder, ["other-recipe.yaml"])


def test_a_package_has_the_files_and_is_the_same_again(folder: Path, tmp_path: Path) -> None:
    ships = shipment(folder, ["mine.yaml"])
    for number in (1, 2):
        ships.write(tmp_path / f"{number}.zip")
        os.utime(folder / "train.py", (number, number))
    assert (tmp_path / "1.zip").read_bytes() == (tmp_path / "2.zip").read_bytes()
    with zipfile.ZipFile(tmp_path / "1.zip") as zipped:
        assert {name: zipped.read(name).decode() for name in zipped.namelist()} == SOUND


def test_a_package_that_is_too_large_names_the_largest_files(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shipped, "MOST_ZIPPED_BYTES", 2000)
    (folder / "noise.dat").write_bytes(os.urandom(5000))
    with pytest.raises(InputError, match=r"5,000 bytes  noise\.dat") as raised:
        shipment(folder, ["mine.yaml"]).write(tmp_path / "1.zip")
    assert ".rayignore" in str(raised.value)


def test_the_report_lists_everything(folder: Path) -> None:
    lines = list(shipment(folder, ["mine.yaml"]).report())
    assert any(line.endswith("  mine.yaml") for line in lines)
    assert any("left out  .env: may hold keys" in line for line in lines)
    assert f"in {len(SOUND)} files" in lines[-1]


def test_lines_of_an_ignore_file_that_are_no_patterns_are_passed_over(tmp_path: Path) -> None:
    (tmp_path / ".gitignore").write_text("!\na\\\n\\\n[z-a]\nleft-out.txt\n")
    for name in ("mine.yaml", "kept.txt", "left-out.txt"):
        (tmp_path / name).write_text("text")
    assert {"kept.txt", "mine.yaml"} <= shipment(tmp_path, ["mine.yaml"]).files.keys()
    assert "left-out.txt" not in shipment(tmp_path, ["mine.yaml"]).files


def test_a_file_in_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("text")
    with pytest.raises(InputError, match=r"mine\.yaml is not a folder"):
        shipment(tmp_path / "mine.yaml", [])
