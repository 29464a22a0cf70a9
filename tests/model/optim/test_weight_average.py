"""The moving average of weights against its closed form, and in the model's place."""

import numpy as np
import pytest
import torch
from torch import nn

from model.optim.weight_average import WeightAverage


def course(model: nn.Linear, average: WeightAverage, steps: list[int]) -> list[dict[str, np.ndarray]]:
    """Change the weights before each of `steps` and average; all weights there were, the first ones included."""
    seen = [{name: value.numpy().copy() for name, value in model.state_dict().items()}]
    for step in steps:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter))
        average.update(step)
        seen.append({name: value.numpy().copy() for name, value in model.state_dict().items()})
    return seen


@pytest.mark.parametrize("steps", [list(range(1, 40)), [1, 2, 3, 5, 6]], ids=["all", "without a skipped step"])
@pytest.mark.parametrize("decay", [0.3, 0.9, 0.999])
def test_it_is_the_weighted_sum_of_all_weights_there_were(decay: float, steps: list[int]) -> None:
    model = nn.Linear(3, 2).double()
    average = WeightAverage(model, decay)
    seen = course(model, average, steps)
    decays = np.array([min(decay, (1 + t) / (10 + t)) for t in steps])
    # Weights w_0, w_1, ... have shares (1 - d_i) d_{i+1} d_{i+2} ..., the first one all that is left.
    shares = [np.prod(decays), *((1 - d) * np.prod(decays[i + 1 :]) for i, d in enumerate(decays))]
    assert sum(shares) == pytest.approx(1.0)
    for name, value in average.state_dict().items():
        expected = sum(share * weights[name] for share, weights in zip(shares, seen, strict=True))
        np.testing.assert_allclose(value.numpy(), expected, rtol=1e-11, atol=1e-13)


def test_it_begins_as_the_weights_and_does_not_share_their_memory() -> None:
    model = nn.Linear(3, 2)
    average = WeightAverage(model, 0.9)
    before = model.weight.detach().clone()
    nn.init.zeros_(model.weight)
    assert torch.equal(average.state_dict()["weight"], before)
    assert average.state_dict().keys() == model.state_dict().keys()


def test_the_model_has_it_inside_the_block_and_its_own_weights_again_afterwards() -> None:
    model = nn.Linear(3, 2)
    average = WeightAverage(model, 0.9)
    course(model, average, [1, 2, 3])
    own = {name: value.clone() for name, value in model.state_dict().items()}
    averages = {name: value.clone() for name, value in average.state_dict().items()}
    places = [parameter.data_ptr() for parameter in model.parameters()]
    with pytest.raises(ZeroDivisionError), average.in_place():
        assert all(torch.equal(value, averages[name]) for name, value in model.state_dict().items())
        raise ZeroDivisionError
    assert all(torch.equal(value, own[name]) for name, value in model.state_dict().items())
    assert all(torch.equal(value, averages[name]) for name, value in average.state_dict().items())
    assert places == [parameter.data_ptr() for parameter in model.parameters()]


def test_a_loaded_one_goes_on_as_the_saved_one_would() -> None:
    model = nn.Linear(3, 2)
    average = WeightAverage(model, 0.99)
    course(model, average, [1, 2])
    loaded = WeightAverage(model, 0.99)
    loaded.load_state_dict({name: value.clone() for name, value in average.state_dict().items()})
    course(model, average, [3])
    loaded.update(3)
    assert all(torch.equal(value, average.state_dict()[name]) for name, value in loaded.state_dict().items())
    with pytest.raises(KeyError, match="bias"):
        loaded.load_state_dict({"weight": model.weight.detach()})
