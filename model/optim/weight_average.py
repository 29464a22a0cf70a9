"""An exponential moving average of a model's weights, for evaluation."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


class WeightAverage:
    """e = d e + (1 - d) w after every update (Polyak & Juditsky 1992 average evenly; this forgets).

    e begins as a copy of the weights, and after update t, counted from 1, d is min(decay, (1 + t) / (10 + t)), as in
    TensorFlow's ExponentialMovingAverage. With a fixed d the first weights, which are noise, would be 0.999^280 = 76 %
    of the average after 280 steps; with this d they are 3e-16 of it. d follows from t, so that no further state is
    saved.

    Args:
        model: not wrapped, and on its final device; its weights have one floating-point type.
        decay: d, in (0, 1).
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self._weights = {name: weight.detach() for name, weight in model.state_dict().items()}
        self._averages = {name: weight.clone() for name, weight in self._weights.items()}

    def state_dict(self) -> dict[str, Tensor]:
        """The averages, under the names and in the shapes and types of the model's own state."""
        return dict(self._averages)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Loads averages.

        Raises:
            KeyError: a weight has no average.
        """
        for name, average in self._averages.items():
            average.copy_(state[name])

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Updates the averages with the weights after update `step`, counted from 1."""
        decay = min(self.decay, (1.0 + step) / (10.0 + step))
        average_all = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
        average_all(list(self._averages.values()), list(self._weights.values()), None)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Inside the block the model has the averages as weights; afterwards its own, bit by bit."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        # Values are copied, because compiled code and DDP hold references to the tensors.
        for weight, average in zip(self._weights.values(), self._averages.values(), strict=True):
            held = weight.clone()
            weight.copy_(average)
            average.copy_(held)
