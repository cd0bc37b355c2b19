from pathlib import Path

import pytest

import cli


def test_xor_is_refuted_and_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "[red]" / ("long" * 20)
    cli.main(["separable", *"--dimension 2 --low 0 --high 0 --output".split(), str(folder)])
    output = capsys.readouterr().out
    assert "+1 on 2 of 4 inputs" in output
    assert "No perceptron computes it." in output
    assert "f = +1:  1/2·(−, +) + 1/2·(+, −)" in output
    assert "f = −1:  1/2·(−, −) + 1/2·(+, +)" in output
    assert "both are (0, 0)" in output
    assert f"drawn in {folder / 'separable_0_0.png'}\n" in output
    assert (folder / "separable_0_0.png").read_bytes().startswith(b"\x89PNG")


def test_an_interval_with_the_smallest_sum_is_separated(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cli.main(["separable", "--dimension=3", "--low=-3", "--high=-1", f"--output={tmp_path}"])
    assert "One perceptron computes it: sign(− 1·x1 − 1·x2 − 1·x3)." in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("interval", "message"),
    [
        ("--dimension 2 --low 1 --high 0", "low 1 is above high 0"),
        ("--dimension 2 --low 0 --high 3", "high 3 is beyond ±2"),
        ("--dimension 0 --low 0 --high 0", "dimension 0 is less than 1"),
        ("--dimension 40 --low 0 --high 0", r"dimension 40 has 2\^40 inputs, too many to list"),
    ],
)
def test_invalid_arguments_are_rejected(interval: str, message: str) -> None:
    with pytest.raises(SystemExit, match=f"error: {message}"):
        cli.main(["separable", *interval.split()])
