"""Sample text from a model, to see what a run has learned."""

import torch
import torch.nn.functional as F
from torch import Tensor

from model.transformer import Transformer


@torch.no_grad()
def generate(
    model: Transformer,
    prompt_ids: list[int],
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
    end_of_text: int | None = None,
    vocab_limit: int | None = None,
) -> list[int]:
    """Continue a prompt, one token at a time.

    Every token recomputes the whole context. A cache of keys and values would save that, but learned positions void
    it as soon as the context slides, and it would give the training model a second way through its blocks. For the
    few hundred tokens a run prints, one way that is surely the trained one is worth more than speed.

    Args:
        model: left in the mode (training or evaluation) it came in; dropout is off meanwhile.
        prompt_ids: at least one token; an end-of-text token asks for a new document.
        max_new_tokens: tokens to add at most.
        temperature: divides the logits; 0 always takes the likeliest token.
        top_k: sample among the k likeliest tokens only (Fan et al. 2018).
        top_p: sample among the fewest tokens whose probabilities reach p (Holtzman et al. 2020), after `top_k`.
        seed: of this call's own generator; the same seed gives the same tokens and leaves the global one alone.
        end_of_text: stop when this token comes.
        vocab_limit: produce ids below this only; the tokenizer's size, where the embedding is padded beyond it.

    Returns:
        The new tokens, without prompt and without the end-of-text token.

    Raises:
        ValueError: the prompt is empty, or a sampling setting is out of range.
    """
    _check_settings(prompt_ids, temperature, top_k, top_p)
    device = model.output_weight.device
    # On the CPU whatever the model's device, so that samples do not depend on where it runs.
    generator = torch.Generator().manual_seed(seed)
    was_training = model.training
    model.eval()
    try:
        ids = list(prompt_ids)
        for _ in range(max_new_tokens):
            context_1T = torch.tensor([ids[-model.seq_len :]], device=device)
            logits_V = _next_token_logits(model, context_1T)[:vocab_limit]
            token = _choose(logits_V, temperature, top_k, top_p, generator)
            if token == end_of_text:
                break
            ids.append(token)
    finally:
        model.train(was_training)
    return ids[len(prompt_ids) :]


def _check_settings(prompt_ids: list[int], temperature: float, top_k: int | None, top_p: float | None) -> None:
    if not prompt_ids:
        raise ValueError("prompt_ids is empty, and a model continues something. Start with the end-of-text token.")
    if not temperature >= 0.0:
        raise ValueError(f"temperature={temperature} is below 0. Use 0 for the likeliest token, 1 for the model's own.")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k={top_k} leaves no token to choose. Use 1 or more, or None for all.")
    if top_p is not None and not 0.0 < top_p <= 1.0:
        raise ValueError(f"top_p={top_p} is outside (0, 1]. Use 1 or None for all tokens.")


def _next_token_logits(model: Transformer, context_1T: Tensor) -> Tensor:
    """(V,) float32 on the CPU: scores of the token after the context. Only the last position's are computed."""
    hidden_D = model.hidden_states(context_1T)[0, -1]
    return F.linear(hidden_D, model.output_weight).float().cpu()


def _choose(
    logits_V: Tensor, temperature: float, top_k: int | None, top_p: float | None, generator: torch.Generator
) -> int:
    """Pick one token from (V,) float32 logits."""
    if temperature == 0.0:
        return int(logits_V.argmax())
    sorted_V, tokens_V = (logits_V / temperature).sort(descending=True, stable=True)
    probs_V = sorted_V[:top_k].softmax(dim=0)
    if top_p is not None:
        # A token stays if those before it have not reached p yet, so the likeliest always does.
        mass_before_V = probs_V.cumsum(dim=0) - probs_V
        probs_V = probs_V.where(mass_before_V < top_p, 0.0)
    return int(tokens_V[torch.multinomial(probs_V, 1, generator=generator)])
