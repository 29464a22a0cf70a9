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
    from data.errors import InputError

    if split not in (splits := ("train", "validation", "test")):
        raise InputError(f"--split {split}: there are {', '.join(splits)}.")
    config = load_run_config(run, overrides)
    from model.eager import skip_compiler

    skip_compiler()
    from orchestrator.inference.evaluate import evaluate

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
    from data.errors import InputError

    if format != "hf":
        raise InputError(f"--format {format}: there is one, `hf`.")
    config = load_run_config(run, overrides)
    from model.eager import skip_compiler

    skip_compiler()
    from orchestrator.inference.export import export

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

        raise InputError("Give one of the two: a recipe or run, or --from FOLDER.")


def _lines(file: Path) -> list[str]:
    from data.errors import InputError

    try:
        return file.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--prompts {file}: {error}") from None
