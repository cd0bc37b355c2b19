"""Compare Maclaurin with softmax attention: time, peak memory, crossover and error.

    python -m benchmarks.attention [--longest 65536] [--bfloat16] [--output docs]

Writes ``attention_benchmark.md`` and ``attention_benchmark.png`` to the output folder. Uses one
head, K = 3, and a GPU if there is one. The peer is PyTorch's `scaled_dot_product_attention`; the
naive form computes the truncated series by its definition.
"""

import argparse
import math
import os
import statistics
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor

from benchmarks.harness import stopwatch
from networks.attention import (
    count_features,
    maclaurin_attention,
    maclaurin_attention_naive,
    truncation_error,
)

TERMS = 3
SIZES = (8, 16, 32, 64)
NAIVE_LONGEST = 4096  # it holds several copies of the L × L weights
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
FORMS: dict[str, Callable[..., Tensor]] = {
    "softmax": lambda q, k, v, causal: F.scaled_dot_product_attention(q, k, v, is_causal=causal),
    "naive": lambda q, k, v, causal: maclaurin_attention_naive(q, k, v, TERMS, causal=causal),
    "linear": lambda q, k, v, causal: maclaurin_attention(q, k, v, TERMS, causal=causal),
}


@dataclass(frozen=True)
class Case:
    """One configuration to measure: head size, causal or not, with or without a backward pass."""

    size: int
    causal: bool
    backward: bool
    dtype: torch.dtype = torch.float32

    def title(self) -> str:
        """Return the case in words."""
        what = "forward + backward" if self.backward else "forward"
        return f"D = {self.size}, {'causal' if self.causal else 'not causal'}, {what}"

    def call(self, form: str, length: int) -> Callable[[], None]:
        """Return a function that attends once over ``length`` positions."""
        shape = (1, 1, length, self.size)
        q, k, v = (
            torch.randn(shape, device=DEVICE, dtype=self.dtype, requires_grad=self.backward)
            for _ in "qkv"
        )

        def attend() -> None:
            output = FORMS[form](q, k, v, self.causal)
            if self.backward:
                torch.autograd.grad(output.sum(), (q, k, v))
            if DEVICE.type == "cuda":
                torch.cuda.synchronize()

        return attend


def list_cases(dtype: torch.dtype) -> list[Case]:
    """Return all cases of a data type."""
    flags = [(causal, backward) for backward in (False, True) for causal in (False, True)]
    return [Case(size, *flag, dtype) for flag in flags for size in SIZES]


def lengths_up_to(longest: int, form: str) -> list[int]:
    """Return the lengths to measure: powers of two from 256."""
    longest = min(longest, NAIVE_LONGEST) if form == "naive" else longest
    return [2**n for n in range(8, int(math.log2(longest)) + 1)]


def measure_in_turn(calls: dict[str, Callable[[], None]], budget: float) -> dict[str, float]:
    """Call all in turn until the budget is spent; return each one's median time in seconds.

    The first round warms up and does not count: a first call loads and caches.
    """
    rounds: list[dict[str, float]] = []
    while len(rounds) < 2 or sum(sum(times.values()) for times in rounds[1:]) < budget:
        rounds.append({form: stopwatch(call) for form, call in calls.items()})
    return {form: statistics.median(times[form] for times in rounds[1:]) for form in calls}


def peak_bytes(function: Callable[[], None]) -> int:
    """Return the peak memory of a call, in bytes above the memory used before it."""
    if DEVICE.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        function()
        return torch.cuda.max_memory_allocated() - before
    status = Path("/proc/self/status")

    def kilobytes(field: str) -> int:
        lines = status.read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(field))

    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = kilobytes("VmRSS")
    function()
    return 1024 * (kilobytes("VmHWM") - before)


def memory_lines(longest: int, dtype: torch.dtype) -> list[str]:
    """Measure peak memory at D = 16 with a backward pass; return a Markdown table's lines."""
    lines = ["| L | causal | softmax | naive | linear | linear, bytes per position |",
             "|---:|---|---:|---:|---:|---:|"]  # fmt: skip
    for causal in (False, True):
        case = Case(16, causal, True, dtype)
        for length in lengths_up_to(longest, "linear")[::2]:
            cells = {}
            for form in FORMS:
                if length <= NAIVE_LONGEST or form != "naive":
                    call = case.call(form, length)
                    case.call(form, 256)()  # loads and caches what only a first call needs
                    cells[form] = peak_bytes(call)
            shown = (f"{cells[form] / 2**20:.1f} MiB" if form in cells else "–" for form in FORMS)
            per_position = f"{cells['linear'] / length:,.0f}"
            lines.append(f"| {length:,} | {causal} | {' | '.join(shown)} | {per_position} |")
    return lines


def measure_times(
    longest: int, dtype: torch.dtype, budget: float
) -> dict[tuple[Case, str], dict[int, float]]:
    """Return each case's and form's time in seconds, by length."""
    times: dict[tuple[Case, str], dict[int, float]] = {
        (case, form): {} for case in list_cases(dtype) for form in FORMS
    }
    Case(8, causal=False, backward=True).call("linear", 2**16)()  # loads torch.utils.checkpoint
    for case in list_cases(dtype):
        for length in lengths_up_to(longest, "linear"):
            forms = [form for form in FORMS if length <= NAIVE_LONGEST or form != "naive"]
            calls = {form: case.call(form, length) for form in forms}
            found = measure_in_turn(calls, budget)
            for form, seconds in found.items():
                times[case, form][length] = seconds
        print(case.title(), "measured")
    return times


def crossover(softmax: dict[int, float], linear: dict[int, float]) -> float | None:
    """Return the length after which linear stays faster; interpolates on logarithmic axes."""
    ratios = [(length, softmax[length] / linear[length]) for length in linear]
    if ratios[-1][1] < 1:
        return None
    for (short, low), (long, high) in zip(ratios[-2::-1], ratios[::-1], strict=False):
        if low < 1 <= high:
            share = math.log(1 / low) / math.log(high / low)
            return short * (long / short) ** share
    return float(ratios[0][0])


def time_lines(times: dict[tuple[Case, str], dict[int, float]]) -> list[str]:
    """Return the table of softmax's time divided by linear's, by length."""
    cases = list(dict.fromkeys(case for case, _ in times))
    lengths = list(times[cases[0], "linear"])
    shown = lengths[::2]
    heading = [f"L = {length:,}" for length in shown]
    lines = [
        (
            f"| case | M | {' | '.join(heading)} | crossover | time of L = {lengths[-1]:,} / "
            f"{lengths[-2]:,} |"
        ),
        "|---|---:|" + "---:|" * (len(shown) + 2),
    ]
    for case in cases:
        softmax, linear = times[case, "softmax"], times[case, "linear"]
        ratios = [f"{softmax[length] / linear[length]:.2f}" for length in shown]
        where = crossover(softmax, linear)
        found = "none" if where is None else f"{'below ' * (where <= lengths[0])}{where:,.0f}"
        growth = linear[lengths[-1]] / linear[lengths[-2]]
        m = count_features(case.size, TERMS)
        lines.append(f"| {case.title()} | {m:,} | {' | '.join(ratios)} | {found} | {growth:.2f} |")
    return lines


def measure_errors() -> dict[int, list[tuple[float, float, float]]]:
    """Return (norm, relative error, bound) by number of terms, at D = 16, L = 512."""
    torch.manual_seed(0)
    directions = torch.randn(3, 1, 1, 512, 16, dtype=torch.float64)
    q, k = (F.normalize(x, dim=-1) for x in directions[:2])
    errors: dict[int, list[tuple[float, float, float]]] = {}
    for terms in (2, 3, 4, 5):
        for norm in (0.5, 1, 1.5, 2, 3, 4, 6, 8):
            # After scaling by D^−¼, queries and keys have this norm, so |t| ≤ norm².
            scaled_q, scaled_k = (norm * 16**0.25 * x for x in (q, k))
            exact = F.scaled_dot_product_attention(scaled_q, scaled_k, directions[2])
            ours = maclaurin_attention(scaled_q, scaled_k, directions[2], terms)
            error = ((ours - exact).norm() / exact.norm()).item()
            bound = truncation_error(torch.tensor(-(norm**2), dtype=torch.float64), terms)
            relative = bound.item() * math.exp(norm**2)
            errors.setdefault(terms, []).append((norm, error, relative))
    return errors


def error_lines(errors: dict[int, list[tuple[float, float, float]]]) -> list[str]:
    """Return the table of errors."""
    norms = [norm for norm, *_ in next(iter(errors.values()))]
    lines = [f"| terms | {' | '.join(f'norm {norm:g}' for norm in norms)} |"]
    lines.append("|---:|" + "---:|" * len(norms))
    for terms, found in errors.items():
        cells = [f"{error:.2g} ({bound:.1g})" for _, error, bound in found]
        lines.append(f"| {terms} | {' | '.join(cells)} |")
    return lines


def draw(
    times: dict[tuple[Case, str], dict[int, float]],
    errors: dict[int, list[tuple[float, float, float]]],
    path: Path,
) -> None:
    """Plot forward times by length, predicted and measured crossovers, and errors."""
    dtype = next(iter(times))[0].dtype
    figure = Figure(figsize=(14, 9), layout="constrained")
    panels = figure.subplots(2, 3).flat
    for axes, (causal, size) in zip(
        panels, [(False, 16), (False, 64), (True, 16), (True, 64)], strict=False
    ):
        case = Case(size, causal, False, dtype)
        for form, style in (("softmax", "C0-"), ("naive", "C2:"), ("linear", "C1-")):
            curve = times[case, form]
            axes.loglog(list(curve), list(curve.values()), style, label=form, base=2)
        m = count_features(size, TERMS)
        axes.axvline(m, color="grey", linestyle="--", label=f"predicted crossover, M = {m:,}")
        where = crossover(times[case, "softmax"], times[case, "linear"])
        if where:
            axes.axvline(where, color="C3", label=f"measured, {where:,.0f}")
        axes.set(title=case.title(), xlabel="length L", ylabel="seconds")
        axes.legend(fontsize=8)
    axes = panels[4]
    features = [count_features(size, TERMS) for size in SIZES]
    axes.loglog(features, features, "--", color="grey", label="L = M")
    for causal, backward, marker in ((False, False, "o"), (False, True, "s"), (True, False, "^")):
        cases = [Case(size, causal, backward, dtype) for size in SIZES]
        found = [crossover(times[case, "softmax"], times[case, "linear"]) for case in cases]
        label = cases[0].title().partition(", ")[2]
        axes.plot(features, [math.nan if x is None else x for x in found], marker, label=label)
    axes.set(title="crossover", xlabel="number of features M", ylabel="length L")
    axes.legend(fontsize=8)
    axes = panels[5]
    for i, (terms, found_errors) in enumerate(errors.items()):
        norms, measured, _ = zip(*found_errors, strict=True)
        axes.loglog(norms, measured, f"C{i}o-", label=f"{terms} terms")
    axes.set(title="relative error of the output", xlabel="norm of scaled q and k")
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=110)


def main() -> None:
    """Measure everything; write tables and picture."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--longest", type=int, default=65_536, help="maximum length (65536)")
    parser.add_argument("--output", type=Path, default=Path("docs"), help="folder (docs)")
    parser.add_argument("--memory", action="store_true", help="print the memory table only")
    parser.add_argument("--bfloat16", action="store_true", help="queries, keys, values in bfloat16")
    parser.add_argument("--budget", type=float, default=1.0, help="seconds a case and length (1)")
    args = parser.parse_args()
    dtype = torch.bfloat16 if args.bfloat16 else torch.float32
    if args.memory:
        print("\n".join(memory_lines(args.longest, dtype)))
        return
    # Memory is measured in a separate process that returns freed blocks to the system at once.
    memory = subprocess.run(
        [sys.executable, "-m", "benchmarks.attention", "--memory", *sys.argv[1:]],
        env={**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"},
        check=True,
        text=True,
        stdout=subprocess.PIPE,
    ).stdout
    times, errors = measure_times(args.longest, dtype, args.budget), measure_errors()
    device = (
        torch.cuda.get_device_name()
        if DEVICE.type == "cuda"
        else f"CPU, {torch.get_num_threads()} threads"
    )
    given = "".join(f" {argument}" for argument in sys.argv[1:])
    text = "\n".join(
        [
            "# Maclaurin attention against softmax, measured\n",
            (
                f"Measured by `python -m benchmarks.attention{given}` on: {device}, PyTorch "
                f"{torch.__version__}, {str(dtype).removeprefix('torch.')}, one head, K = {TERMS}."
            ),
            "\nTime of `scaled_dot_product_attention` / time of the linear form:\n",
            *time_lines(times),
            (
                "\nThe predicted crossovers are near L = M (section 7 of "
                "[maclaurin_attention.md](maclaurin_attention.md)). On a CPU the measured ones are "
                "several times that: the fused softmax kernel uses the processor better than "
                "matrix products with D + 1 columns do.\n"
            ),
            "![time by length, crossovers and errors](attention_benchmark.png)",
            "\nPeak memory of forward + backward, D = 16:\n",
            memory,
            (
                "Features exist for one block at a time: 4 MiB, and several times that in a "
                "backward pass. This is most of the linear form's memory at these lengths. It does "
                "not grow with L, so the bytes per position fall.\n"
            ),
            (
                "Relative error of the output compared with softmax attention, for random "
                "directions, D = 16 and L = 512, by the norm of the scaled queries and keys. In "
                "brackets: the bound on the relative error of a weight.\n"
            ),
            *error_lines(errors),
        ]
    )
    args.output.mkdir(parents=True, exist_ok=True)
    (args.output / "attention_benchmark.md").write_text(text + "\n", encoding="utf-8")
    draw(times, errors, args.output / "attention_benchmark.png")
    print(text)


if __name__ == "__main__":
    main()
