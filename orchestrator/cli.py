"""The `manta` command: arguments in, one call of the package that does the work, its errors as plain messages.

What does the work is imported inside the commands: `manta --help` must not wait for Ray and torch.
"""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from cluster.errors import ClusterError
from data.errors import MantaError
from orchestrator import cluster_commands

if TYPE_CHECKING:
    from orchestrator.config import RunConfig

# What a shell reports for a program ended by Ctrl-C (128 + SIGINT), so that scripts stop too.
_INTERRUPTED = 130


class _Commands(TyperGroup):
    """The one place where an error on purpose becomes a message; any other error is a bug and keeps its traceback."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            typer.secho("stopped.", err=True)
            raise typer.Exit(_INTERRUPTED) from None
        except (MantaError, ClusterError) as error:
            # Ray hands on a task's error as a class of both kinds whose text is a traceback; the error is its cause.
            cause = getattr(error, "cause", error)
            typer.secho("error:", fg=typer.colors.RED, bold=True, err=True, nl=False)
            typer.echo(f" {cause}", err=True)
            raise typer.Exit(error.exit_status) from None


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Train Transformers on a cluster that changes: change the cluster, not the result.",
    epilog="Start with [bold]manta quickstart[/]. Every command explains itself: [bold]manta train --help[/].",
)

app.add_typer(cluster_commands.app, name="cluster")

Recipe = Annotated[Path, typer.Argument(metavar="RECIPE", help="YAML file that describes the run.")]
RecipeOrRun = Annotated[str, typer.Argument(metavar="RECIPE|RUN", help="A recipe, or the run of one in recipes/.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME=VALUE", help="Override a field by its dotted name; may be given many times."),
]
Address = Annotated[
    str | None,
    typer.Option(
        "--address",
        metavar="URL|NAME",
        help="Dashboard of the cluster, http://HOST:8265, or the name of one of this machine; default "
        "RAY_API_SERVER_ADDRESS, else the one that is up here.",
    ),
]
RunOrJob = Annotated[str, typer.Argument(metavar="RUN|JOB", help="A run, of which the newest job counts, or a job.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs instead of text for people.")]


def main() -> None:
    """Entry point of the `manta` script."""
    app()


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import PackageNotFoundError, version

        try:
            typer.echo(f"manta {version('manta')}")
        except PackageNotFoundError:
            typer.echo("manta, run from a source tree that is not installed")
        raise typer.Exit()


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    pass


@app.command(epilog="Example: [bold]manta quickstart[/], then [bold]manta quickstart docstrings[/]")
def quickstart(
    name: Annotated[
        str,
        typer.Argument(
            metavar="[modules|docstrings]",
            help="A language model of Python's standard library, or an encoder-decoder that reads its functions and "
            "writes their docstrings' summaries.",
        ),
    ] = "modules",
    overrides: Overrides = None,
) -> None:
    """From nothing to a trained, evaluated model on this machine, in a few minutes."""
    from orchestrator.errors import InputError
    from orchestrator.quickstart import QUICKSTARTS, quickstart

    if name not in QUICKSTARTS:
        raise InputError(f"There is no quickstart {name!r}. There are: {', '.join(QUICKSTARTS)}.")
    quickstart(name, tuple(overrides or ()))


@app.command(epilog="Example: [bold]manta prepare recipes/quickstart.yaml[/]")
def prepare(recipe: Recipe, overrides: Overrides = None) -> None:
    """Read the shards once: check them, train the tokenizer, tokenize. What is done already is not done again."""
    config = _load(recipe, overrides)
    from orchestrator.run import prepare

    prepare(config)


@app.command(epilog="Example: [bold]manta train recipes/quickstart.yaml --set train.lr=3e-4 --set run=lower-lr[/]")
def train(
    recipe: Recipe,
    overrides: Overrides = None,
    takeover: Annotated[
        bool,
        typer.Option("--takeover", help="Take the run from an attempt that seems alive; it will stop."),
    ] = False,
    patience: Annotated[
        str,
        typer.Option(metavar="SECONDS", help="Wait so long for an attempt that seems alive to end, as 60s."),
    ] = "0s",
    init_from: Annotated[
        str | None,
        typer.Option(
            "--init-from",
            metavar="FOLDER",
            help="Begin with the weights of a folder that [bold]manta export[/] or transformers has written; stands "
            "for --set train.init_from=FOLDER.",
        ),
    ] = None,
) -> None:
    """Train, or continue where the run of this name stopped. Ctrl-C saves, then stops."""
    given = [] if init_from is None else [f"train.init_from={json.dumps(init_from)}"]
    from orchestrator.duration import seconds_of

    wait_s = seconds_of(patience, "--patience")
    config = _load(recipe, [*(overrides or []), *given])
    from orchestrator.run import train
    from orchestrator.run_record import process_started_at

    train(config, takeover=takeover, started_at=process_started_at(), wait_s=wait_s)


@app.command(
    epilog="Example: [bold]manta submit recipes/mine.yaml --address http://HOST:8265[/]. The same by Ray alone: "
    "[bold]ray job submit --working-dir . -- manta train recipes/mine.yaml[/]"
)
def submit(
    recipe: Recipe,
    address: Address = None,
    overrides: Overrides = None,
    wait: Annotated[
        bool, typer.Option("--wait/--detach", help="Follow the run to its end and return its exit status, or leave.")
    ] = True,
    folder: Annotated[
        Path, typer.Option("--working-dir", metavar="FOLDER", help="What is shipped; the recipe lies in it.")
    ] = Path(),
    takeover: Annotated[
        bool, typer.Option("--takeover", help="Take the run from an attempt that seems alive; it will stop.")
    ] = False,
) -> None:
    """Train on a cluster: ship this folder, run [bold]manta train[/] there, and follow it. Ctrl-C leaves it running.

    A run that is live is refused; one that was stopped, or whose cluster died, goes on where it was.
    """
    config = _load(recipe, overrides)
    from orchestrator.submit import submit

    raise typer.Exit(submit(config, recipe, overrides or [], address, folder=folder, wait=wait, takeover=takeover))


@app.command(epilog="Example: [bold]manta jobs --address http://HOST:8265[/]")
def jobs(address: Address = None, as_json: AsJson = False) -> None:
    """Runs submitted to a cluster, and how each stands."""
    from orchestrator.submit import show_jobs

    show_jobs(address, as_json)


@app.command(epilog="Example: [bold]manta logs mine --follow[/]")
def logs(
    run: RunOrJob,
    address: Address = None,
    follows: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the run ends.")] = False,
) -> None:
    """What a submitted run has printed."""
    from orchestrator.submit import show_logs

    raise typer.Exit(show_logs(run, address, follows=follows))


@app.command(epilog="Example: [bold]manta stop mine[/]; [bold]manta submit[/] then continues it")
def stop(
    run: RunOrJob,
    address: Address = None,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Return when it has saved and ended.")] = True,
) -> None:
    """Have a submitted run save, then stop."""
    from orchestrator.submit import stop

    stop(run, address, wait=wait)


@app.command(epilog="Example: [bold]manta tune recipes/sweep.yaml --set searcher.trials=8[/]")
def tune(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="YAML file that describes the sweep.")],
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="NAME=VALUE", help="Override a field of the sweep, or of the run for all trials."
        ),
    ] = None,
    resume_best: Annotated[
        bool, typer.Option("--resume-best", help="Then train the winner to its full length.")
    ] = False,
    takeover: Annotated[
        bool, typer.Option("--takeover", help="Take the sweep from an attempt that seems alive; it will stop.")
    ] = False,
    autoscale: Annotated[
        int | None,
        typer.Option(
            "--autoscale",
            min=1,
            metavar="NODES",
            help="Try it on a local cluster that begins without workers: Ray's autoscaler brings up so many nodes of "
            "one CPU each, and lets them go.",
        ),
    ] = None,
) -> None:
    """Search learning rates, optimizers and whatever else, or go on where the sweep of this name stopped."""
    with ExitStack() as stack:
        if autoscale is not None:
            from cluster.autoscaled import AutoscaledCluster
            from cluster.spec import ClusterSpec, GroupSpec

            group = GroupSpec(name="worker", cpus=1, max=autoscale)
            spec = ClusterSpec(cluster="sweep", groups=(group,))
            stack.enter_context(stack.enter_context(AutoscaledCluster(spec)).joined())
        from orchestrator.sweep.command import tune

        tune(recipe, overrides or [], resume_best=resume_best, takeover=takeover)


@app.command("eval", epilog="Example: [bold]manta eval recipes/quickstart.yaml --json[/]")
def evaluate(
    run: RecipeOrRun,
    split: Annotated[
        str, typer.Option(metavar="train|validation|test", help="Which split of the run's data.")
    ] = "validation",
    step: Annotated[
        int | None, typer.Option(metavar="N", help="Checkpoint of this step instead of the newest.")
    ] = None,
    nearest: Annotated[
        bool,
        typer.Option(
            "--nearest", help="Also score what retrieval finds: the text of the training pair whose input is nearest."
        ),
    ] = False,
    workers: Annotated[
        int,
        typer.Option(
            metavar="N",
            min=0,
            help="Processes that share the work, with the resources of a training worker each, on the cluster of "
            "RAY_ADDRESS or on this machine; 0: this process alone. The result is the same.",
        ),
    ] = 0,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Evaluate a run's newest checkpoint on the text it never saw: perplexity, bits per byte, and BLEU for pairs."""
    from orchestrator.errors import InputError

    if split not in (splits := ("train", "validation", "test")):
        raise InputError(f"--split {split}: there are {', '.join(splits)}.")
    config = _load_run(run, overrides)
    from model.eager import skip_compiler

    skip_compiler()
    from orchestrator.evaluate import evaluate

    result = evaluate(config, split, step, workers, nearest=nearest)
    typer.echo(json.dumps(result, indent=2) if as_json else "\n".join(f"{k:<24}{v}" for k, v in result.items()))


@app.command(epilog="Example: [bold]manta export recipes/quickstart.yaml --to exported/quickstart[/]")
def export(
    run: RecipeOrRun,
    to: Annotated[str, typer.Option("--to", metavar="FOLDER", help="New folder (path or URL) to write to.")],
    format: Annotated[
        str, typer.Option("--format", metavar="hf", help="Form of the folder: hf, as transformers loads it.")
    ] = "hf",
    step: Annotated[
        int | None, typer.Option("--step", metavar="N", help="Checkpoint of this step, not the newest.")
    ] = None,
    overrides: Overrides = None,
) -> None:
    """Write a run's model, tokenizer included, as a folder that other programs load.

    A decoder of preset llama becomes a LlamaForCausalLM, one of preset gpt2 a GPT2LMHeadModel, an encoder-decoder of
    preset original a MarianMTModel, with the same logits; any other is refused.
    [bold]manta generate --from FOLDER[/] reads it without the run, and [bold]manta train --init-from FOLDER[/] begins
    another run with it.
    """
    from orchestrator.errors import InputError

    if format != "hf":
        raise InputError(f"--format {format}: there is one, `hf`.")
    config = _load_run(run, overrides)
    from model.eager import skip_compiler

    skip_compiler()
    from orchestrator.export import export

    export(config, to, step)


@app.command(epilog="Example: [bold]manta generate recipes/quickstart.yaml --prompt 'def main(' --temperature 0.7[/]")
def generate(
    run: Annotated[
        str | None, typer.Argument(metavar="[RECIPE|RUN]", help="A recipe, or the run of one in recipes/.")
    ] = None,
    folder: Annotated[
        str | None,
        typer.Option(
            "--from", metavar="FOLDER", help="An exported folder (path or URL) instead of a run; sampled as it says."
        ),
    ] = None,
    prompts: Annotated[
        list[str] | None,
        typer.Option("--prompt", help="Beginning to continue, in place of the recipe's; may be repeated."),
    ] = None,
    prompt_file: Annotated[
        Path | None,
        typer.Option("--prompts", metavar="FILE", help="A file with a prompt a line: sentences to translate."),
    ] = None,
    max_new_tokens: Annotated[str | None, typer.Option(metavar="N", help="Most tokens for one prompt.")] = None,
    temperature: Annotated[str | None, typer.Option(metavar="T", help="0 takes the likeliest token.")] = None,
    top_k: Annotated[str | None, typer.Option(metavar="K", help="Draw among the K likeliest tokens.")] = None,
    top_p: Annotated[str | None, typer.Option(metavar="P", help="Draw among tokens of total probability P.")] = None,
    seed: Annotated[str | None, typer.Option(metavar="N", help="Seed of the draw.")] = None,
    beam_size: Annotated[
        str | None, typer.Option(metavar="K", help="Beam search over K texts instead of a draw.")
    ] = None,
    overrides: Overrides = None,
) -> None:
    """Continue prompts with a run's newest checkpoint, or with the model of an exported folder.

    The options stand for --set sample.temperature=… and so on.
    """
    if prompt_file is not None:
        prompts = [*(prompts or []), *_lines(prompt_file)]
    # As overrides, they are checked where the recipe's own values are, and reported together with them.
    given = {
        "max_new_tokens": max_new_tokens,
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "seed": seed,
        "beam_size": beam_size,
        "prompts": json.dumps(prompts, ensure_ascii=False) if prompts else None,
    }
    all_overrides = [
        *(overrides or []),
        *(f"sample.{name}={value}" for name, value in given.items() if value is not None),
    ]
    from model.eager import skip_compiler

    if run is not None and folder is None:
        config = _load_run(run, all_overrides)
        skip_compiler()
        from orchestrator.sample import generate

        generate(config)
    elif folder is not None and run is None:
        skip_compiler()
        from orchestrator.sample import generate_from

        generate_from(folder, all_overrides)
    else:
        from orchestrator.errors import InputError

        raise InputError("Give one of the two: a recipe or run, or --from FOLDER.")


@app.command(epilog="Example: [bold]manta show quickstart --json[/]")
def show(
    run: RecipeOrRun,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Where a run stands: steps, losses, samples, checkpoints, and where the time went."""
    from orchestrator.show import show

    show(run, as_json, tuple(overrides or ()))


@app.command(epilog="Example: [bold]manta report quickstart[/], then open .manta/reports/quickstart.html")
def report(
    run: RecipeOrRun,
    to: Annotated[
        Path | None,
        typer.Option("--to", metavar="FILE", help="Where to write it, in place of .manta/reports/RUN.html."),
    ] = None,
    overrides: Overrides = None,
) -> None:
    """Write a run's report: one HTML file with its curves, workers and events over time, seconds, samples and config.

    It needs no network and runs no script from elsewhere, and is also put into the run's folder. Works at any time:
    also while the run goes on. For a sweep, its report is written anew.
    """
    from orchestrator.report.command import report

    report(run, to, tuple(overrides or ()))


@app.command(
    epilog="Example: [bold]manta doctor recipes/quickstart.yaml[/], "
    "[bold]manta doctor recipes/mine.yaml --cluster --address http://HOST:8265[/]"
)
def doctor(
    recipe: Annotated[
        Path | None, typer.Argument(metavar="[RECIPE]", help="Also try this recipe's object storage.")
    ] = None,
    cluster: Annotated[
        bool, typer.Option("--cluster", help="Examine a cluster instead of this machine, the one of --address.")
    ] = False,
    address: Address = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Check Python, packages, machine, object storage and Ray, and say what to do about each thing that fails.

    With [bold]--cluster[/], a job on the cluster's head does so there.
    """
    config = _load(recipe, overrides) if recipe else None
    from orchestrator.doctor import examine, print_checks

    if cluster or address is not None:
        from orchestrator.cluster_doctor import examine_cluster

        checks = examine_cluster(address, config, recipe, overrides or [], Path())
    else:
        checks = examine(config)
    if as_json:
        typer.echo(json.dumps([check.as_dict() for check in checks], indent=2))
    else:
        print_checks(checks)
    raise typer.Exit(int(any(check.status == "fail" for check in checks)))


@app.command(
    epilog="Example: [bold]manta chaos recipes/quickstart.yaml --faults kill-worker,kill-node,add-node --every 15s[/]"
)
def chaos(
    recipe: Recipe,
    faults: Annotated[
        str,
        typer.Option(metavar="KIND,KIND,…", help="Faults to do, or all: every kind once before any comes again."),
    ] = "all",
    every: Annotated[str, typer.Option(metavar="SECONDS", help="Time from one fault to the next, as 20s.")] = "20s",
    count: Annotated[int | None, typer.Option(min=1, help="Most faults; as many as there is time for.")] = None,
    seed: Annotated[int, typer.Option(help="Decides which faults come in which order, and to whom.")] = 1,
    nodes: Annotated[int, typer.Option(min=2, help="Nodes of the local cluster, of one CPU each.")] = 4,
    baseline: Annotated[
        str | None, typer.Option(metavar="ray", help="Also do the faults to the same model on stock Ray Train.")
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the report here.")] = None,
    overrides: Overrides = None,
) -> None:
    """Train a run twice on a local cluster of real nodes, once disturbed, and report what every fault cost.

    Faults: kill-worker, kill-node, drain-node, remove-node, add-node, hang-worker, store-errors, store-slow,
    corrupt-checkpoint. Ends with status 1 if the disturbed run is not the undisturbed one: its samples, or its losses
    by more than rounding.
    """
    from orchestrator.chaos.command import Plan, chaos, is_same_run
    from orchestrator.chaos.plan import KINDS
    from orchestrator.chaos.report import print_report
    from orchestrator.console import Console
    from orchestrator.duration import seconds_of
    from orchestrator.errors import InputError

    if baseline not in (None, "ray"):
        raise InputError(f"--baseline {baseline}: there is one, `ray`.")
    kinds = list(KINDS) if faults == "all" else [kind.strip() for kind in faults.split(",") if kind.strip()]
    plan = Plan(kinds, seconds_of(every), seed, count, nodes)

    def tell(report: dict[str, Any]) -> None:
        if json_file is not None:
            json_file.write_text(json.dumps(report, indent=1))
        print_report(report, Console().rich)

    report = chaos(recipe, overrides or [], plan, baseline is not None, tell)
    raise typer.Exit(0 if is_same_run(report) else 1)


@app.command(epilog="Example: [bold]manta schema --markdown[/]")
def schema(
    as_table: Annotated[
        bool, typer.Option("--markdown", help="A table of name, type, default and meaning instead of JSON schema.")
    ] = False,
    of_cluster: Annotated[
        bool, typer.Option("--cluster", help="The fields of a cluster's spec, not of a recipe.")
    ] = False,
) -> None:
    """Print every field a recipe may have, as JSON schema for editors or as a table for people."""
    from cluster.spec import ClusterSpec
    from orchestrator.config import RunConfig
    from orchestrator.schema import markdown

    model = ClusterSpec if of_cluster else RunConfig
    schema = model.model_json_schema()
    typer.echo(markdown(model) if as_table else json.dumps(schema, indent=2, ensure_ascii=False))


def _lines(file: Path) -> list[str]:
    from orchestrator.errors import InputError

    try:
        return file.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--prompts {file}: {error}") from None


def _load(recipe: Path, overrides: list[str] | None) -> RunConfig:
    from orchestrator.config import load_recipe

    return load_recipe(recipe, overrides or [])


def _load_run(run: str, overrides: list[str] | None) -> RunConfig:
    from orchestrator.recipe_file import find_recipe

    return _load(find_recipe(run), overrides)


if __name__ == "__main__":
    main()
