"""The page in a real Chromium: what must be there, that nothing complains, and that it goes back in time and scrolls.

The job lies in memory; a browser is all that it needs. Debian's package is `chromium`, and without it this is skipped.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from antdt_streams.policies.find import READY

from bench.chromium import Tab, chromium, program
from tests.helpers.served_pages import JOB, page_of, served

pytestmark = [
    pytest.mark.kafka,
    pytest.mark.dear,
    pytest.mark.skipif(
        program() is None, reason="no Chromium: install Debian's chromium, or name one by ANTDT_CHROMIUM"
    ),
]
TOKEN = "a-token-of-this-test"


def in_browser(of: Callable[[Tab, str], Awaitable[None]], workers: int = 2) -> None:
    """Something that is done with the page, and that nothing in it complains of."""

    async def run() -> None:
        async with served(page_of(TOKEN, workers)) as url, chromium() as tab:
            await tab.size(1280, 800)
            await tab.go(f"{url}/jobs/{JOB}")
            await tab.until("document.documentElement?.dataset.ready === 'yes'")
            await of(tab, url)
            assert tab.errors == []

    asyncio.run(run())


def test_the_page_has_all_that_it_promises_at_once_and_goes_back_in_time() -> None:
    async def of(tab: Tab, url: str) -> None:
        assert await tab.value("document.getElementById('verdict').textContent") == (
            "w1 is slow (persistent, 2.9 times the median)."
        )
        assert "plan 2" in (await tab.value("document.getElementById('acted').textContent")).lower()
        assert await tab.value("document.querySelectorAll('#evidence li').length") >= 3
        assert await tab.value("document.querySelectorAll('#decisions li').length") == 2
        assert await tab.value("document.querySelectorAll('#health > div').length") == 8
        assert await tab.value("[...document.querySelectorAll('#places b')].map((b) => +b.textContent)") == [
            20,
            0,
            0,
            0,
            0,
        ]
        assert await tab.value("document.querySelectorAll('#pace canvas').length") == 1
        drawn = "new Set(document.getElementById('lanes').getContext('2d').getImageData(0, 0, 300, 60).data).size"
        assert await tab.value(drawn) > 8
        # All of it is on one screen, and nothing is cut off at its side.
        inside = (
            "[document.documentElement.scrollWidth <= innerWidth, document.documentElement.scrollHeight <= innerHeight]"
        )
        assert await tab.value(inside) == [True, True]

        await tab.value("document.getElementById('at').focus()")
        await tab.key("ArrowLeft")
        await tab.until("document.documentElement.dataset.offset === '9'")
        assert (await tab.value("location.search")) == "?at=9"
        assert (await tab.value("document.getElementById('past').textContent")).startswith("The past: everything here")
        await tab.value(
            "((at) => { at.value = 2; at.dispatchEvent(new Event('input')); })(document.getElementById('at'))"
        )
        await tab.until("document.getElementById('step').textContent === '0'")
        assert await tab.value("+document.getElementById('places').querySelector('b').textContent") == 0
        await tab.value("document.getElementById('live').click()")
        await tab.until("document.documentElement.dataset.offset === '10' && document.getElementById('past').hidden")
        assert await tab.value("location.search") == ""

    in_browser(of)


def test_4096_workers_scroll_are_found_and_tell_why_by_keyboard() -> None:
    async def of(tab: Tab, url: str) -> None:
        rows = "[...document.querySelectorAll('#rows .row')].map((row) => row.dataset.worker)"
        assert (await tab.value(rows))[0] == "w1"
        assert len(await tab.value(rows)) <= 100
        assert await tab.value("document.getElementById('rows').offsetHeight") == 4096 * 22
        await tab.value("document.getElementById('scroll').scrollTop = 2000 * 22")
        await tab.until("[...document.querySelectorAll('#rows .row')].some((row) => row.dataset.at === '2010')")
        await tab.value("document.getElementById('scroll').scrollTop = 1e9")
        await tab.until("[...document.querySelectorAll('#rows .row')].some((row) => row.dataset.at === '4095')")
        search = "document.getElementById('search')"
        await tab.value(f"({search}.value = 'w77', {search}.dispatchEvent(new Event('input')))")
        await tab.until(
            "[...document.querySelectorAll('#rows .row')].every((row) => row.dataset.worker.includes('w77'))"
        )
        assert (await tab.value("document.getElementById('lanes-of').textContent")).startswith(
            "11 of 4,096 workers, 1 slow"
        )
        await tab.value("document.getElementById('scroll').focus()")
        for key in ("ArrowDown", "ArrowDown", "Enter"):
            await tab.key(key)
        await tab.until("document.getElementById('why-verdict').textContent.startsWith('w77')")

    in_browser(of, workers=4096)


def test_an_order_is_refused_without_the_token_and_the_index_leads_to_the_job() -> None:
    async def of(tab: Tab, url: str) -> None:
        await tab.until("!document.getElementById('orders').hidden")
        await tab.value("document.getElementById('orders').click()")
        fill = "form.reason.value = 'a try', form.who.value = 'Ada', form.token.value = 'no', form.requestSubmit()"
        await tab.value(f"((form) => ({fill}))(document.querySelector('dialog form'))")
        await tab.until("document.querySelector('dialog .said').textContent.startsWith('The token is not the one')")
        tab.errors = [error for error in tab.errors if "403" not in error]  # which is what it is to say

    in_browser(of)


def test_the_forms_of_a_restart_and_of_another_policy_ask_for_what_they_need() -> None:
    async def of(tab: Tab, url: str) -> None:
        await tab.until("!document.getElementById('orders').hidden")
        await tab.value("document.querySelector('#rows .row').click()")
        await tab.until("document.getElementById('why-verdict').textContent.startsWith('w1')")
        await tab.value("document.getElementById('orders').click()")
        choose = (
            "((s) => (s.value = '{}', s.dispatchEvent(new Event('change'))))(document.querySelector('dialog select'))"
        )
        form = "document.querySelector('dialog form')"
        await tab.value(choose.format("restart"))
        assert await tab.value(f"{form}.worker.value") == "w1", "whoever is looked at"
        send = "reason.value = 'a try', form.who.value = 'Ada', form.token.value = '{}', form.requestSubmit()"
        await tab.value(f"((form) => (form.worker.value = '', form.{send.format(TOKEN)}))({form})")
        assert await tab.value(f"{form}.worker.validity.valueMissing")
        await tab.value(choose.format("promote"))
        assert await tab.value("document.querySelectorAll('dialog datalist option').length") == len(READY)
        for policy, parameters, said in (
            ("nd", "gain_min", "gain_min: say NAME=VALUE."),
            ("best", "", "No policy 'best'"),
        ):
            fill = f"form.policy.value = '{policy}', form.parameters.value = '{parameters}', form.{send.format(TOKEN)}"
            await tab.value(f"((form) => ({fill}))({form})")
            await tab.until(f"document.querySelector('dialog .said').textContent.startsWith(\"{said}\")")
        tab.errors = [error for error in tab.errors if "400" not in error]  # which is what it is to say

    in_browser(of)


def test_it_is_dark_where_the_desktop_is_and_narrow_on_a_phone() -> None:
    async def of(tab: Tab, url: str) -> None:
        paper = "getComputedStyle(document.documentElement).backgroundColor"
        light = await tab.value(paper)
        await tab.size(390, 844, dark=True, phone=True)
        await tab.until(f"{paper} !== '{light}'")
        assert await tab.value("document.documentElement.scrollWidth <= innerWidth")

    in_browser(of)
