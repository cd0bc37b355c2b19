"""The documentation site: it builds without warnings, and holds what it includes."""

import html
import os
import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote

import pytest

import callbacks
import datamodules
import lightning_modules
import metrics
import networks
from tests.conftest import ROOT

pytest.importorskip("mkdocs", reason="the extra docs is not installed")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site."""
    folder = tmp_path_factory.mktemp("site")
    subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        check=True,
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
    )
    return folder


def test_links_lead_somewhere_and_nothing_is_loaded_from_elsewhere(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) > 15
    for page in pages:
        if page.name == "404.html":  # its links are absolute
            continue
        text = page.read_text(encoding="utf-8")
        for target in re.findall(r"(?:href|src)=\"([^\"#]+)", text):
            if not re.match(r"https?:|mailto:|data:", target):
                path = (page.parent / unquote(html.unescape(target))).resolve()
                assert path.exists(), f"{page.relative_to(site)}: {target}"
        assert not re.findall(r"<(?:script|link|img)[^>]+(?:src|href)=\"https?:", text), page


def test_included_parts_are_there(site: Path) -> None:
    use = (site / "how_to" / "use" / "index.html").read_text(encoding="utf-8")
    assert "Without PyTorch" in use
    assert "--8<--" not in use
    extend = (site / "how_to" / "extend" / "index.html").read_text(encoding="utf-8")
    assert "TinyNetwork" in extend
    for room in (callbacks, datamodules, lightning_modules, metrics, networks):
        name = room.__name__
        reference = (site / "reference" / name / "index.html").read_text(encoding="utf-8")
        missing = [part for part in room.__all__ if f'id="{name}.{part}"' not in reference]
        assert missing == []
