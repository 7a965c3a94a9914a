"""The pages of docs/: each block is of a kind that some test runs, and each command line is understood.

Blocks are run by `integration/test_pages_run.py`; those of SCRIPTS, TOPICS and POLICIES by tests of these pages.
"""

from __future__ import annotations

import re
from pathlib import Path

import click
import pytest
from antdt_streams.cli.main import GROUPS

from tests.helpers.pages import DOCS, HERE, KINDS, blocks, mentioned, recognise, told, understand

PAGES = sorted(DOCS.glob("*.md"))
# Blocks that cannot be run here, of all pages: what installs, and what speaks to a cluster.
ELSEWHERE_MAX = 6


@pytest.mark.parametrize("page", [*PAGES, HERE / "README.md"], ids=lambda page: page.name)
def test_every_command_of_a_page_is_understood(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for ask, found in ((understand, told(text)), (recognise, mentioned(text))):
        for arguments in found:
            try:
                ask(arguments)
            except (click.UsageError, AssertionError) as error:
                raise AssertionError(f"antdt {' '.join(arguments)}: {error}") from error


def test_every_block_is_of_a_known_kind_and_few_are_not_run() -> None:
    found = [(page.name, block) for page in PAGES for block in blocks(page.read_text(encoding="utf-8"))]
    for page, block in found:
        assert block.language in KINDS, (page, block.language)
        words = KINDS[block.language]
        assert words is None or block.word in words, (page, block.word)
    assert len([block for _, block in found if block.word == "elsewhere"]) <= ELSEWHERE_MAX


def test_every_page_is_in_the_contents_and_every_link_leads_to_a_file() -> None:
    index = (DOCS / "index.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"^([-a-z]+)$", index, re.M))
    assert "\n[A-Z]*\n" in index, "those in capitals: whoever adds one finds it listed"
    assert {page.stem for page in PAGES if page.stem.islower()} - {"index"} == listed
    for page in PAGES:
        for link in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8")):
            assert "://" in link or (page.parent / link).exists(), (page.name, link)


def test_the_reference_has_every_group_of_commands() -> None:
    named = [name for page in PAGES for name in re.findall(r"^```\{commands\} (\w+)$", page.read_text(), re.M)]
    assert sorted(named) == sorted(GROUPS)


def test_what_is_python_on_these_pages_runs() -> None:
    """The other pages have tests of their own, and a file is run by the commands behind it."""
    found = [b for page in PAGES if page.stem.islower() for b in blocks(page.read_text()) if b.language == "python"]
    assert len(found) > 1
    for block in found:
        code = compile(block.text, block.word or "block", "exec")
        if not block.word:
            exec(code, {})
