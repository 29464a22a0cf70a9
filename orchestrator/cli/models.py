"""Commands on trained models: eval, generate, export."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from orchestrator.cli.options import AsJson, Overrides, RecipeOrRun, load_run_config

app = typer.Typer()


@app.command("eval", epilog="Example: [bold]manta eval recipes/quickstart.yaml --json[/]")
def evaluate(
    run: RecipeOrRun,
    split: Annotated[
        str, typer.Option(metavar="train|validation|test", help="Split of the run's data.")
    ] = "validation",
    step: Annotated[
        int | None, typer.Option(metavar="N", help="Use the checkpoint of this step, not the newest one.")
    ] = None,
    nearest: Annotated[
        bool,
        typer.Option(
            "--nearest", help="Also score a baseline: the text of the training pair whose input is most similar."
        ),
    ] = False,
    workers: Annotated[
        int,
        typer.Option(
            metavar="N",
            min=0,
            help="Number of processes that share the work, each with the resources of a training worker, on the "
            "cluster of RAY_ADDRESS or on this machine; 0: this process only. The result is the same.",
        ),
    ] = 0,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Evaluate a run's newest checkpoint on held-out text: loss, perplexity, bits per byte, and BLEU for pairs."""
    from data.errors import InputError

    if split not in (splits := ("train", "validation", "test")):
        raise InputError(f"--split {split}: must be one of {', '.join(splits)}.")
    config = load_run_config(run, overrides)
    from model.eager import skip_compiler

    skip_compiler()
    from orchestrator.inference.evaluate import evaluate

    result = evaluate(config, split, step, workers, nearest=nearest)
    typer.echo(json.dumps(result, indent=2) if as_json else "\n".join(f"{k:<24}{v}" for k, v in result.items()))


@app.command(epilog="Example: [bold]manta export recipes/quickstart.yaml --to exported/quickstart[/]")
def export(
    run: RecipeOrRun,
    to: Annotated[str, typer.Option("--to", metavar="FOLDER", help="New folder (path or URL) to write.")],
    format: Annotated[
        str, typer.Option("--format", metavar="hf", help="Format of the folder: hf, which transformers loads.")
    ] = "hf",
    step: Annotated[
        int | None, typer.Option("--step", metavar="N", help="Use the checkpoint of this step, not the newest one.")
    ] = None,
    overrides: Overrides = None,
) -> None:
    """Write a run's model and tokenizer as a folder that other programs load.

    A decoder with preset llama becomes a LlamaForCausalLM, one with preset gpt2 a GPT2LMHeadModel, and an
    encoder-decoder with preset original a MarianMTModel, all with the same logits; other models are refused.
    [bold]manta generate --from FOLDER[/] generates from it without the run, and [bold]manta train --init-from
    FOLDER[/] starts another run from its weights.
    """
    from data.errors import InputError

    if format != "hf":
        raise InputError(f"--format {format}: must be hf.")
    config = load_run_config(run, overrides)
    from model.eager import skip_compiler

    skip_compiler()
    from orchestrator.inference.export import export

    export(config, to, step)


OptionalRun = Annotated[
    str | None,
    typer.Argument(
        metavar="[RECIPE|RUN]",
        help="A recipe, or the name of a run that was started here or has a recipe in recipes/.",
    ),
]

ExportedFolder = Annotated[
    str | None,
    typer.Option(
        "--from",
        metavar="FOLDER",
        help="An exported folder (path or URL) instead of a run; its own sampling defaults apply.",
    ),
]

Prompts = Annotated[
    list[str] | None,
    typer.Option("--prompt", help="Text to continue, instead of the recipe's prompts; repeatable."),
]

PromptFile = Annotated[
    Path | None,
    typer.Option("--prompts", metavar="FILE", help="File with one prompt per line, such as sentences to translate."),
]


@app.command(epilog="Example: [bold]manta generate recipes/quickstart.yaml --prompt 'def main(' --temperature 0.7[/]")
def generate(
    run: OptionalRun = None,
    folder: ExportedFolder = None,
    prompts: Prompts = None,
    prompt_file: PromptFile = None,
    max_new_tokens: Annotated[
        str | None, typer.Option(metavar="N", help="Maximum number of tokens for one prompt.")
    ] = None,
    temperature: Annotated[
        str | None, typer.Option(metavar="T", help="Divisor of the logits; 0 takes the likeliest token.")
    ] = None,
    top_k: Annotated[str | None, typer.Option(metavar="K", help="Sample from the K likeliest tokens.")] = None,
    top_p: Annotated[
        str | None,
        typer.Option(metavar="P", help="Sample from the likeliest tokens that together reach probability P."),
    ] = None,
    seed: Annotated[str | None, typer.Option(metavar="N", help="Seed of sampling.")] = None,
    beam_size: Annotated[
        str | None, typer.Option(metavar="K", help="Beam search with K beams instead of sampling.")
    ] = None,
    overrides: Overrides = None,
) -> None:
    """Generate text with a run's newest checkpoint, or with the model of an exported folder.

    The options are short for --set sample.temperature=… and so on.
    """
    if prompt_file is not None:
        prompts = [*(prompts or []), *_lines(prompt_file)]
    # As overrides, they are checked and reported together with the recipe's own values.
    given = {
        "max_new_tokens": max_new_tokens,
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "seed": seed,
        "beam_size": beam_size,
    }
    from cluster.strict_yaml import override
    from model.eager import skip_compiler

    all_overrides = [
        *(overrides or []),
        *(f"sample.{name}={value}" for name, value in given.items() if value is not None),
        *([override("sample.prompts", prompts)] if prompts else []),
    ]
    if run is not None and folder is None:
        config = load_run_config(run, all_overrides)
        skip_compiler()
        from orchestrator.inference.generate import generate

        generate(config)
    elif folder is not None and run is None:
        skip_compiler()
        from orchestrator.inference.generate import generate_from

        generate_from(folder, all_overrides)
    else:
        from data.errors import InputError

        raise InputError("Give either a recipe or run, or --from FOLDER.")


def _lines(file: Path) -> list[str]:
    from data.errors import InputError

    try:
        return file.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--prompts {file}: {error}") from None
