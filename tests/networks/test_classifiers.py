import pytest
import torch
from torch import nn

from networks import ConvNet, FeedForwardNetwork, get_number_trainable_params


def test_parameter_counts_are_the_courses() -> None:
    assert get_number_trainable_params(FeedForwardNetwork(layers=0)) == 3_140
    assert get_number_trainable_params(FeedForwardNetwork()) == 198_004
    assert get_number_trainable_params(ConvNet(max_pool=True)) == 224_892
    assert get_number_trainable_params(ConvNet(max_pool=False)) == 224_892


def test_only_trainable_parameters_count() -> None:
    network = nn.Linear(3, 2)
    network.bias.requires_grad_(False)
    assert get_number_trainable_params(network) == 6


@pytest.mark.parametrize("max_pool", [True, False])
def test_both_convolutional_networks_reach_6_by_6(max_pool: bool) -> None:
    network = ConvNet(max_pool=max_pool)
    assert network.features(torch.zeros(2, 1, 28, 28)).shape == (2, 16, 6, 6)
    assert network(torch.zeros(2, 1, 28, 28)).shape == (2, 4)


def test_feed_forward_network_is_linear_layers_with_activations_between() -> None:
    torch.manual_seed(0)
    network = FeedForwardNetwork(inputs=12, hidden_size=5, layers=2, activation="tanh")
    first, second, last = (m for m in network if isinstance(m, nn.Linear))
    images = torch.randn(3, 1, 3, 4)
    hidden = torch.tanh(images.flatten(1) @ first.weight.T + first.bias)
    hidden = torch.tanh(hidden @ second.weight.T + second.bias)
    torch.testing.assert_close(network(images), hidden @ last.weight.T + last.bias)
