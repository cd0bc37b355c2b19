from collections.abc import Callable

import pytest
import torch
from torch import nn

from networks import (
    ConvNet,
    FeedForwardNetwork,
    ResidualNetwork,
    ScanAugment,
    get_number_trainable_params,
)


def test_parameter_counts_match_the_course() -> None:
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


@pytest.mark.parametrize("max_pool", [True, False])
def test_convolutional_networks_take_any_size(max_pool: bool) -> None:
    network = ConvNet(max_pool=max_pool, image_size=65)
    assert network(torch.zeros(2, 1, 65, 65)).shape == (2, 4)


@pytest.mark.parametrize(
    "build",
    [
        lambda: FeedForwardNetwork(layers=-1),
        lambda: FeedForwardNetwork(hidden_size=0),
        lambda: ResidualNetwork(widths=[]),
        lambda: ResidualNetwork(blocks=0),
    ],
)
def test_sizes_that_no_network_has_are_refused(build: Callable[[], object]) -> None:
    with pytest.raises(ValueError, match=r"-1|0|\[\]"):
        build()


def test_feed_forward_network_is_linear_layers_with_activations_between() -> None:
    torch.manual_seed(0)
    network = FeedForwardNetwork(inputs=12, hidden_size=5, layers=2, activation="tanh")
    first, second, last = (m for m in network if isinstance(m, nn.Linear))
    images = torch.randn(3, 1, 3, 4)
    hidden = torch.tanh(images.flatten(1) @ first.weight.T + first.bias)
    hidden = torch.tanh(hidden @ second.weight.T + second.bias)
    torch.testing.assert_close(network(images), hidden @ last.weight.T + last.bias)


def test_the_residual_network_accepts_any_size_and_has_the_documented_parameters() -> None:
    network = ResidualNetwork()
    assert get_number_trainable_params(network) == 694_884
    for size in (28, 64):
        assert network(torch.zeros(2, 1, size, size)).shape == (2, 4)
    assert ResidualNetwork(channels=3, classes=8)(torch.zeros(2, 3, 28, 28)).shape == (2, 8)


def test_scan_augmentation_without_bounds_only_mirrors() -> None:
    torch.manual_seed(0)
    images = torch.rand(64, 1, 28, 28)
    augmented = ScanAugment(0, 0, 0, 0, 0, 0)(images)
    same = torch.isclose(augmented, images, atol=1e-5).flatten(1).all(1)
    mirrored = torch.isclose(augmented, images.flip(-1), atol=1e-5).flatten(1).all(1)
    assert (same ^ mirrored).all()
    assert 16 < mirrored.sum() < 48


def test_scan_augmentation_moves_within_its_bounds() -> None:
    torch.manual_seed(0)
    images = torch.zeros(200, 1, 29, 29)
    images[:, :, 14, 14] = 1.0  # at the centre, which rotation, scale and mirror do not move
    augment = ScanAugment(
        rotation=20, shift=0.2, scale=0.0, contrast=0.0, brightness=0.0, noise=0.0
    )
    moved = augment(images)[:, 0]
    mass = moved.sum((1, 2))
    axis = torch.arange(29) - 14.0
    down = (moved.sum(2) * axis).sum(1) / mass
    right = (moved.sum(1) * axis).sum(1) / mass
    for shift in (down, right):
        assert (
            shift.abs().max() <= 0.2 * 29 * 1.45 + 0.5
        )  # a rotated shift may be longer along an axis
        assert shift.abs().max() > 0.15 * 29
    assert (augment(images) != augment(images)).any()
