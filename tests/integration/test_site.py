"""The documentation as a site: built without a warning, whole, and with nothing that a browser fetches elsewhere."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from antdt_schemas import records
from antdt_streams.cli.main import COMMANDS

from tests.helpers.pages import DOCS

pytestmark = [
    pytest.mark.dear,
    pytest.mark.skipif(
        any(find_spec(name) is None for name in ("sphinx", "myst_parser", "furo")),
        reason="the extra `docs` is not installed: `make docs` installs it, and runs this",
    ),
]
# What makes a browser fetch: links that somebody clicks are none.
FETCHES = re.compile(r"""<(?:script|img|iframe|link)\b[^>]*?\b(?:src|href)=["']([^"']+)["']""")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-b", "html", "-W", "--keep-going", "-n", "-q", str(DOCS), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return folder


def test_every_page_is_there_and_nothing_is_fetched_from_elsewhere(site: Path) -> None:
    pages = {page.stem for page in site.glob("*.html")}
    assert {page.stem for page in DOCS.glob("*.md")} <= pages
    for page in site.rglob("*.html"):
        found = FETCHES.findall(page.read_text(encoding="utf-8"))
        assert found and not [where for where in found if where.startswith(("http:", "https:", "//"))], page
    for sheet in site.rglob("*.css"):
        text = sheet.read_text(encoding="utf-8")
        assert "@import" not in text and not re.findall(r"url\(\s*[\"']?(?:https?:)?//", text), sheet


def test_the_reference_has_every_command_and_the_log_every_event(site: Path) -> None:
    text = "".join(page.read_text(encoding="utf-8") for page in site.glob("commands-*.html"))
    told = {re.sub(r"<[^>]+>", "", title) for title in re.findall(r"<h2>(.*?)<a ", text)}
    assert {f"antdt {name}" for name in COMMANDS} <= told
    assert "antdt topics print" in told and "--restart-elsewhere" in text
    log = (site / "log-format.html").read_text(encoding="utf-8")
    events = records.Cycle.__annotations__["events"]
    assert events and all(name in log for name in ("Committed", "Checkpointed", "Moved", "lineage"))


@pytest.mark.skipif(shutil.which("chromium") is None, reason="there is no Chromium here (Debian's package chromium)")
def test_the_search_finds_in_a_browser_without_a_server(site: Path, tmp_path: Path) -> None:
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
    command += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
    command += [f"--user-data-dir={tmp_path}", "--virtual-time-budget=20000", "--dump-dom"]
    page = f"file://{site}/search.html?q=quarantine"
    done = subprocess.run([*command, page], capture_output=True, text=True, check=True, timeout=100)
    found = re.findall(r'<li[^>]*><a href="([^"]+)"', done.stdout)
    assert {"guarantees.html", "operations.html", "log-format.html"} <= {link.partition("?")[0] for link in found}
