"""Explains in words whether one perceptron can compute a Boolean function."""

from networks.separability import Certificate, Mixture, Separation


def explain(found: Separation | Certificate) -> str:
    """Return the answer and its proof as sentences."""
    if isinstance(found, Separation):
        return f"One perceptron computes it: {found}."
    mean = ", ".join(str(x) for x in found.common_mean())
    return (
        "No perceptron computes it. Inputs with f = +1 and inputs with f = −1 have a common mean,\n"
        f"  f = +1:  {_format(found.positives)}\n"
        f"  f = −1:  {_format(found.negatives)}\n"
        f"both are ({mean}); there w·x + b would be above 0 and below 0 at once."
    )


def _format(mixture: Mixture) -> str:
    """Return a convex combination as a sum, such as ``1/2·(−, +) + 1/2·(+, −)``."""
    return " + ".join(
        f"{weight}·({', '.join('+' if x > 0 else '−' for x in point)})"
        for point, weight in mixture.items()
    )
