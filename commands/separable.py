"""``separable``: decide, with proof, whether a perceptron computes f(x) = +1 iff A ≤ Σ xᵢ ≤ B."""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from commands.folders import make_console
from errors import UserError
from networks.boolean import check_interval, interval_labels
from networks.separability import Certificate, Mixture, Separation, separate, signs

MAX_DIMENSION = 16
"""Maximum dimension: a linear program over all 65,536 inputs."""


def separable(dimension: int, low: int, high: int, output: Path) -> None:
    """Print the answer and its proof; for dimension 2, also draw them.

    Args:
        dimension: D, number of inputs.
        low: A, smallest sum with f = +1.
        high: B, largest sum with f = +1.
        output: folder of the drawing.

    Raises:
        UserError: unless 1 ≤ D ≤ `MAX_DIMENSION` and −D ≤ A ≤ B ≤ D.
    """
    try:
        check_interval(dimension, low, high)
    except ValueError as error:
        raise UserError(f"{error}") from error
    if dimension > MAX_DIMENSION:
        raise UserError(
            f"dimension {dimension} has 2^{dimension} inputs, too many to list: the maximum is "
            f"{MAX_DIMENSION} (docs/boolean_functions.md answers for any dimension)"
        )
    points = signs(dimension)
    labels = interval_labels(torch.from_numpy(points), low, high).numpy()
    found = separate(points, labels)
    console = make_console()
    console.print(
        f"f(x) = +1 iff {low} ≤ x1 + … + x{dimension} ≤ {high}, on {{−1, +1}}^{dimension}: +1 on "
        f"{(labels > 0).sum():,} of {len(labels):,} inputs."
    )
    console.print(explain(found))
    if dimension == 2:
        output.mkdir(parents=True, exist_ok=True)
        path = output / f"separable_{low}_{high}.png"
        draw(points, labels, found, path)
        console.print(f"drawn in {path}")


def explain(found: Separation | Certificate) -> str:
    """Return the answer and its proof as sentences."""
    if isinstance(found, Separation):
        return f"One perceptron computes it: {found}."
    return (
        "No perceptron computes it. Inputs with f = +1 and inputs with f = −1 have a common mean,\n"
        f"  f = +1:  {_format(found.positives)}\n"
        f"  f = −1:  {_format(found.negatives)}\n"
        f"both are {found}; there w·x + b would be above 0 and below 0 at once."
    )


def _format(mixture: Mixture) -> str:
    """Return a convex combination as a sum, such as ``1/2·(−, +) + 1/2·(+, −)``."""
    return " + ".join(
        f"{weight}·({', '.join('+' if x > 0 else '−' for x in point)})"
        for point, weight in mixture.items()
    )


def draw(
    points: NDArray[np.int64],
    labels: NDArray[np.int64],
    found: Separation | Certificate,
    path: Path,
) -> None:
    """Draw the four inputs with the separating line, or with the two mixtures and their mean."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 5), layout="constrained")
    axes = figure.subplots()
    for label, color, marker in ((1, "C0", "o"), (-1, "C3", "X")):
        chosen = points[labels == label]
        text = f"f = {'+' if label > 0 else '−'}1"
        x, y = chosen.T
        axes.scatter(x, y, s=150, c=color, marker=marker, label=text, zorder=3)
    grid = np.linspace(-2, 2, 201)
    if isinstance(found, Separation):
        x, y = np.meshgrid(grid, grid)
        scores = found.weights[0] * x + found.weights[1] * y + found.bias
        axes.contourf(x, y, np.sign(scores), levels=[-2, 0, 2], colors=["C3", "C0"], alpha=0.15)
        axes.set_title("one perceptron computes it")
    else:
        for mixture, color in ((found.positives, "C0"), (found.negatives, "C3")):
            axes.plot(*zip(*mixture, strict=True), color=color)
        x, y = map(float, found.common_mean())
        axes.scatter(x, y, s=60, c="black", zorder=4, label="common mean")
        axes.set_title("no perceptron computes it")
    axes.set(xlim=(-2, 2), ylim=(-2, 2), xlabel="x1", ylabel="x2", aspect="equal")
    axes.legend()
    figure.savefig(path, dpi=120)
