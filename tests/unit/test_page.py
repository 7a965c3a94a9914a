"""The page's server, over real HTTP, of a job in memory: documents, events, the past, orders, and what is refused."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp
import pytest
from antdt_schemas.address import is_loopback
from antdt_schemas.errors import Unavailable, UnknownJob
from antdt_streams.kafka import operating
from antdt_streams.policies.find import READY
from antdt_streams.views import orders
from antdt_streams.views.glance import View
from antdt_streams.web import actions, server
from antdt_streams.web.assets import asset
from antdt_streams.web.live import to_json
from antdt_streams.web.server import name_of
from antdt_streams.web.viewers import Viewers

from tests.helpers.served_pages import JOB, page_of, served

TOKEN = "a-token-of-this-test"
PAYLOAD_MAX = 75_000
Client = tuple[aiohttp.ClientSession, str]


def asked(of: Callable[[Client], Awaitable[Any]], **page: Any) -> Any:
    """What a client of a page finds."""

    async def run() -> Any:
        async with served(page_of(**page)) as url, aiohttp.ClientSession() as session:
            return await of((session, url))

    return asyncio.run(run())


def got(path: str, headers: dict[str, str] | None = None, **page: Any) -> tuple[int, Any]:
    """Status, and the JSON or the text of an answer."""

    async def of(client: Client) -> tuple[int, Any]:
        session, url = client
        async with session.get(url + path, headers=headers) as answer:
            text = await answer.text()
            return answer.status, json.loads(text) if "json" in answer.content_type else text

    found: tuple[int, Any] = asked(of, **page)
    return found


def test_the_document_says_where_each_number_comes_from() -> None:
    status, found = got(f"/api/jobs/{JOB}?rows=10")
    assert (status, found["document"], found["live"]) == (200, "antdt.page/1", True)
    assert found["verdict"] == "w1 is slow (persistent, 2.9 times the median)."
    total, *parts = found["samples"].values()
    assert (total, sum(parts)) == (20, 20)
    assert [row["worker"] for row in found["workers"]] == ["w1", "w0"]
    assert [len(row["lane"]) for row in found["workers"]] == [5 * 32] * 2
    assert (found["offset"], found["measured_at"], found["workers"][0]["steps_at"]) == (found["end"], 4, 1)
    first, second = found["decisions"]
    assert (first["offset"], first["evidence"], first["effect"]["verdict"]) == (0, [3, 3], "helped")
    assert (second["plan"], second["effect"], second["changes"]) == (2, None, [["w0", 40, 44], ["w1", 24, 20]])
    assert found["why"]["worker"] == "w1" and "measurements@4" in found["why"]["evidence"][0]
    assert found["void_entries"] == 2 and found["health"]["dead_letters"]["count"] == 0


def test_of_4096_workers_only_those_in_sight_are_sent() -> None:
    async def of(client: Client) -> list[Any]:
        session, url = client
        found = []
        for words in ("first=4000&rows=500", "search=w40"):
            async with session.get(f"{url}/api/jobs/{JOB}?{words}") as answer:
                found.append(await answer.json())
        return found

    last, searched = asked(of, workers=4096)
    assert (last["workers_total"], last["workers_found"], last["first"]) == (4096, 4096, 4000)
    assert len(last["workers"]) == 96  # 100 at most, and there are no more
    assert len(to_json(last)) < PAYLOAD_MAX
    assert (searched["workers_found"], searched["workers_total"]) == (107, 4096)
    assert {row["worker"][:3] for row in searched["workers"]} == {"w40"}


def test_the_past_is_as_it_was_and_what_was_never_there_is_said() -> None:
    status, found = got(f"/api/jobs/{JOB}?at=2")
    assert (status, found["live"], found["offset"], found["step"]) == (200, False, 2, 0)
    assert found["end"] > 2 and found["trouble"] is None
    status, found = got(f"/api/jobs/{JOB}?at=99999")
    assert (status, found) == (
        400,
        {"error": f"The log of job {JOB} has no entry at offset 99999: it has 11, from 0 on."},
    )
    assert got(f"/api/jobs/{JOB}?at=-1")[0] == 400
    assert got("/api/jobs/Not_A_Name")[0] == 400


def test_events_are_sent_at_once_and_again_when_something_changes() -> None:
    async def of(client: Client) -> list[int]:
        session, url = client
        seen = []
        async with session.get(f"{url}/api/jobs/{JOB}/events?rows=5") as answer:
            assert answer.content_type == "text/event-stream"
            for _ in range(2):
                line = await asyncio.wait_for(answer.content.readline(), 5)
                assert (await answer.content.readline()) == b"\n"
                seen.append(json.loads(line.removeprefix(b"data: "))["step"])
                (live,) = page.watched
                assert live.top is not None
                live.top.fold.state.line.committed += 5  # type: ignore[union-attr]
                live.top.follow.changes += 1
        return seen

    page = page_of(every_s=0.02)

    async def run() -> list[int]:
        async with served(page) as url, aiohttp.ClientSession() as session:
            return await of((session, url))

    assert asyncio.run(run()) == [2, 7]


def test_nothing_is_made_or_sent_again_while_nothing_changes() -> None:
    page = page_of()
    live = page.watched.get(JOB)
    assert live.payload(View(lanes=True)) is live.payload(View(lanes=True))


def test_a_slow_viewer_misses_some_and_holds_up_nobody() -> None:
    async def run() -> tuple[list[bytes | None], int]:
        with Viewers().one_more(JOB, View()) as viewer:
            for number in range(5):
                viewer.offer(b"%d" % number)
            viewer.offer(viewer._last or b"")  # the same is none
            return [await viewer.take(0.01) for _ in range(3)], viewer.missed

    assert asyncio.run(run()) == ([b"3", b"4", None], 3)


def test_more_viewers_than_are_served_are_told_so() -> None:
    viewers = Viewers(2)
    said = "2 pages are open already, as many as are served at once: close one first"
    one, other, third = (viewers.one_more(JOB, View()) for _ in range(3))
    with one, other, pytest.raises(Unavailable, match=said), third:
        pass
    assert len(viewers) == 0
    status, found = got(f"/api/jobs/{JOB}/events", viewers=0)
    assert status == 503 and "close one first" in found["error"]


# -- what a browser is told


def test_every_answer_has_its_headers_and_no_script_or_style_is_inline() -> None:
    async def of(client: Client) -> None:
        session, url = client
        for path in ("/", f"/jobs/{JOB}", "/static/page.js", "/static/uPlot.LICENSE.txt", f"/api/jobs/{JOB}", "/none"):
            async with session.get(url + path) as answer:
                policy = answer.headers["Content-Security-Policy"]
                assert "default-src 'none'" in policy and "unsafe" not in policy
                assert answer.headers["X-Content-Type-Options"] == "nosniff"
                assert answer.status == (404 if path == "/none" else 200), path
                if answer.content_type == "text/html":
                    text = await answer.text()
                    assert "style=" not in text and " onclick" not in text and "http" not in text
                    assert all('src="/static/' in tag for tag in text.split("<script")[1:])
        async with session.get(f"{url}/static/page.js") as first:
            tag = first.headers["ETag"]
        async with session.get(f"{url}/static/page.js", headers={"If-None-Match": tag}) as again:
            assert again.status == 304
        for path in ("/static/job.html", "/static/..%2fserver.py", "/static/server.py"):
            async with session.get(url + path) as answer:
                assert answer.status == 404, path

    asked(of)


@pytest.mark.parametrize(
    ("host", "local"),
    [
        ("127.0.0.1:8780", True), ("localhost", True), ("[::1]:80", True), ("[::1]", True), ("127.0.0.1", True),
        ("evil.example:8780", False), ("10.0.0.1:8780", False), ("localhost.evil.example", False), ("", False),
    ],
)  # fmt: skip
def test_who_makes_another_name_mean_this_machine_is_not_answered(host: str, local: bool) -> None:
    assert is_loopback(name_of(host)) is local


def test_a_page_from_elsewhere_reads_nothing() -> None:
    status, found = got(f"/api/jobs/{JOB}", headers={"Host": "evil.example"})
    assert status == 403 and found["error"].startswith("This page is served to this machine only")
    assert got("/healthz", headers={"Host": "evil.example"}, loopback=False)[0] == 200


# -- orders


def ordered(
    order: str, given: Any, headers: dict[str, str] | None = None, token: str | None = TOKEN
) -> tuple[int, str]:
    async def of(client: Client) -> tuple[int, str]:
        session, url = client
        own = {"Origin": url, actions.TOKEN_HEADER: TOKEN} | (headers or {})
        async with session.post(f"{url}/api/jobs/{JOB}/orders/{order}", json=given, headers=own) as answer:
            said = await answer.json()
            return answer.status, said.get("error") or said["said"]

    found: tuple[int, str] = asked(of, token=token)
    return found


ORDER = {"who": "Ada", "reason": "the loss  went up", "step": 40}


@pytest.mark.parametrize(
    ("headers", "token", "said"),
    [
        ({}, None, "This page only shows: whoever started it did not say --allow-actions."),
        ({actions.TOKEN_HEADER: "guessed"}, TOKEN, "The token is not the one that was printed"),
        ({actions.TOKEN_HEADER: ""}, TOKEN, "The token is not the one that was printed"),
        ({"Origin": "http://evil.example"}, TOKEN, "An order must come from this page"),
        ({"Origin": "null"}, TOKEN, "An order must come from this page"),
    ],
)
def test_who_may_not_order_is_refused(headers: dict[str, str], token: str | None, said: str) -> None:
    status, found = ordered("rollback", ORDER, headers, token)
    assert status == 403 and found.startswith(said), found


def test_an_order_is_what_the_command_line_sends_and_names_who_gave_it(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[Any] = []
    monkeypatch.setattr(operating, "rollback", lambda *given: sent.append(given) or "goes back")
    assert ordered("rollback", ORDER) == (200, "goes back")
    ((connection, job, secret, step, reason, who),) = sent
    assert (connection.client_id, job, secret) == (f"antdt.{JOB}.page", JOB, None)
    assert (step, reason, who) == (40, "the loss went up", "Ada")


def test_a_restart_and_another_policy_are_ordered_as_the_command_line_orders_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sent: list[Any] = []
    monkeypatch.setattr(orders, "restart", lambda *given: sent.append(given[1:]) or ("w1.0.x", "w1.0.x is to leave"))
    monkeypatch.setattr(orders, "promote", lambda *given: sent.append(given[1:]) or "nd decides")
    assert ordered("restart", {**ORDER, "worker": "w1"}) == (200, "w1.0.x is to leave")
    assert ordered("promote", {**ORDER, "policy": "nd", "changes": {"gain_min": 0.08}}) == (200, "nd decides")
    assert sent == [
        (JOB, "w1", "the loss went up", "Ada"),
        (JOB, "nd", {"gain_min": "0.08"}, "the loss went up", "Ada"),
    ]


def test_the_page_names_the_policies_that_there_are() -> None:
    found = asset("orders.js")
    assert found is not None
    (listed,) = re.findall(r"^const POLICIES = (\[.*\]);$", found.body.decode(), flags=re.MULTILINE)
    assert sorted(json.loads(listed)) == sorted(READY)


@pytest.mark.parametrize(
    ("order", "given", "said"),
    [
        ("restart", {**ORDER, "worker": ""}, "worker is to be a name, of 1 to 63 characters."),
        ("promote", ORDER, "policy is to be a name, of 1 to 63 characters."),
        ("promote", {**ORDER, "policy": "nd", "changes": [1]}, "changes are 0 to 16 parameters"),
        ("promote", {**ORDER, "policy": "a.py:Mine"}, "The page promotes no policy of a file"),
        ("promote", {**ORDER, "policy": "best"}, "No policy 'best': take one of"),
        ("rollback", {**ORDER, "who": ""}, "Say who you are"),
        ("rollback", {**ORDER, "who": "<script>"}, "Say who you are"),
        ("rollback", {**ORDER, "reason": " "}, "Say why"),
        ("rollback", {**ORDER, "step": "40"}, "step is to be a whole number"),
        ("rollback", [], "An order is a JSON object."),
        ("policy", {**ORDER, "changes": {}}, "changes are 1 to 16 parameters"),
        ("cluster", {**ORDER, "cluster": "full"}, "cluster is busy or free"),
        ("delete", ORDER, "There is no order 'delete'"),
    ],
)
def test_an_order_that_lacks_something_says_what(order: str, given: Any, said: str) -> None:
    status, found = ordered(order, given)
    assert status == 400 and found.startswith(said), found


def test_a_large_order_is_not_read() -> None:
    assert ordered("rollback", {**ORDER, "reason": "x" * server.BODY_MAX})[0] == 413


# -- which jobs


def test_a_job_that_is_not_there_is_said_and_not_followed() -> None:
    from antdt_streams.web.live import Live
    from antdt_streams.web.watched import Watched

    class Missing(Live):
        def run(self) -> None:
            self._say("it is not on this broker", gone=True)
            self.begun.set()

    watched = Watched(page_of().place.connection, make=Missing)
    with pytest.raises(UnknownJob, match="Job 'other' is not on this broker"):
        watched.get("other")
    assert list(watched) == []


def test_jobs_are_listed_once_for_all_who_ask() -> None:
    calls: list[int] = []

    def jobs() -> dict[str, Any]:
        calls.append(1)
        return {"jobs": []}

    async def of(client: Client) -> None:
        session, url = client
        for _ in range(3):
            async with session.get(f"{url}/api/jobs") as answer:
                assert await answer.json() == {"jobs": []}

    asked(of, jobs=jobs)
    assert len(calls) == 1
