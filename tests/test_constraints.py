"""The versions that `make install` takes are those that setup.cfg allows."""

from configparser import ConfigParser
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent


def read_requirements(text: str) -> list[Requirement]:
    lines = (line.strip() for line in text.splitlines())
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


def test_every_dependency_has_one_allowed_version_everywhere() -> None:
    pins: dict[str, list[Requirement]] = {}
    for pin in read_requirements((ROOT / "constraints.txt").read_text(encoding="utf-8")):
        pins.setdefault(canonicalize_name(pin.name), []).append(pin)

    config = ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    groups = [config["options"]["install_requires"], *config["options.extras_require"].values()]
    requirements = [requirement for group in groups for requirement in read_requirements(group)]
    assert len(requirements) > 20

    for requirement in requirements:
        found = pins.get(canonicalize_name(requirement.name), [])
        assert found, f"constraints.txt has no {requirement.name}: run make constraints"
        for pin in found:  # several where a newer version needs a newer Python
            (version,) = (specifier.version for specifier in pin.specifier)
            assert requirement.specifier.contains(version), f"{pin}, but setup.cfg: {requirement}"
        here = [pin for pin in found if pin.marker is None or pin.marker.evaluate()]
        assert len(here) == 1, f"{requirement.name}: {here}"
