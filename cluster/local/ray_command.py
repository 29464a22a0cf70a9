"""Runs the `ray` command of this installation as a separate process."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from cluster.errors import ClusterError

_OWN_FOLDER = (
    "import os; from ray._private import ray_constants as c; c.DEFAULT_RUNTIME_ENV_DIR_NAME += f'_{os.getpid()}'"
)

RAY = (sys.executable, "-c", f"{_OWN_FOLDER}; from ray.scripts.scripts import main; main()")
"""Command line of `ray`; arguments follow. Every process unpacks working directories of jobs into its own folder,
because there may be several nodes on one machine, see `cluster.local.fake_provider`."""


def run_ray(arguments: Sequence[str], environment: Mapping[str, str]) -> None:
    """Runs `ray` with these arguments and waits for its end.

    Args:
        arguments: the subcommand and its options.
        environment: replaces all variables of Ray.

    Raises:
        ClusterError: the command failed; the message has the end of its output.
    """
    done = subprocess.run([*RAY, *arguments], env=without_ray(environment), capture_output=True, text=True)
    if done.returncode:
        end = " ".join((done.stdout + done.stderr).splitlines()[-3:])
        raise ClusterError(f"`ray {arguments[0]}` failed: {end}")


def without_ray(own: Mapping[str, str]) -> dict[str, str]:
    """This process's environment, with `own` in place of all its variables for Ray."""
    return {**{name: value for name, value in os.environ.items() if not name.startswith("RAY_")}, **own}


def path_with_commands() -> str:
    """PATH with this installation's commands first: a job's command, such as `manta`, is looked up by name."""
    return os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
