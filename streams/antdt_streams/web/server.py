"""The page's server: routes, what a browser is told of security, and how errors reach people.

Read-only unless it was started with a token. It listens where it was told to, on loopback if nobody said otherwise, and
answers there only those who ask for it by a name of this machine: a page from elsewhere cannot make its own name mean
this one. Knows aiohttp, which nothing else here does.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any

from aiohttp import web
from antdt_schemas.address import is_loopback
from antdt_schemas.errors import AntdtError, Unavailable, UnknownJob, UsageError
from antdt_schemas.topics import check_job

from antdt_streams.local.place import Place
from antdt_streams.views.glance import View
from antdt_streams.views.jobs import jobs_of
from antdt_streams.web.actions import Actions, Forbidden, Order, carry_out
from antdt_streams.web.assets import Asset, asset
from antdt_streams.web.live import Live, to_json
from antdt_streams.web.viewers import Viewers
from antdt_streams.web.watched import Watched

EVERY_S = 1.0
SILENT_S = 15.0  # then a comment is sent, so that whoever is gone is noticed
WRITE_S = 30.0
ROWS, ROWS_MAX = 40, 100
SEARCH_MAX = 63
BODY_MAX = 16 << 10
PAST_WAITING_MAX = 4
JOBS_EVERY_S = 5.0
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Server": "antdt",
}

log = logging.getLogger("antdt.web")


@dataclass
class Page:
    """What one server has. jobs: makes the list of all jobs of the broker."""

    place: Place
    watched: Watched
    actions: Actions = field(default_factory=Actions)
    viewers: Viewers = field(default_factory=Viewers)
    loopback: bool = True
    every_s: float = EVERY_S
    jobs: Callable[[], Any] | None = None

    def __post_init__(self) -> None:
        self.past = ThreadPoolExecutor(1, "antdt-past")
        self.past_waiting = 0
        self._jobs: tuple[float, bytes] | None = None
        self._listing = asyncio.Lock()

    # -- pages

    async def index(self, _: web.Request) -> web.Response:
        return _file(asset("jobs.html"))

    async def job(self, request: web.Request) -> web.Response:
        """The page itself; the job is being read while the browser still asks for scripts."""
        self.watched.begin(request.match_info["job"])
        return _file(asset("job.html"))

    async def static(self, request: web.Request) -> web.Response:
        found = asset(request.match_info["name"])
        if found is None or found.content_type == "text/html":
            raise web.HTTPNotFound
        if request.headers.get("If-None-Match") == found.tag:
            return web.Response(status=304, headers={"ETag": found.tag})
        return _file(found)

    async def healthz(self, _: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    # -- data

    async def list_jobs(self, _: web.Request) -> web.Response:
        loop = asyncio.get_running_loop()
        async with self._listing:
            if self._jobs is None or loop.time() - self._jobs[0] > JOBS_EVERY_S:
                listed = await asyncio.to_thread(self.jobs or self._all_jobs)
                self._jobs = loop.time(), to_json(listed)
        return _json(self._jobs[1])

    def _all_jobs(self) -> dict[str, Any]:
        rows = [asdict(row) for row in jobs_of(self.place.connection)]
        return {"document": "antdt.jobs/1", "broker": self.place.connection.bootstrap, "jobs": rows}

    async def document(self, request: web.Request) -> web.Response:
        live, view = await self._live(request), view_of(request)
        if "at" not in request.query:
            return _json(await asyncio.to_thread(live.payload, view))
        at = _number(request, "at", 0)
        if self.past_waiting >= PAST_WAITING_MAX:
            raise Unavailable("Other looks at the past are under way: try again in a moment.")
        self.past_waiting += 1
        try:
            made = await asyncio.get_running_loop().run_in_executor(self.past, lambda: to_json(live.at(at, view)))
        finally:
            self.past_waiting -= 1
        return _json(made)

    async def events(self, request: web.Request) -> web.StreamResponse:
        """The document whenever it changes, at most once a second."""
        live, view = await self._live(request), view_of(request)
        with self.viewers.one_more(live.job, view) as viewer:
            viewer.offer(await asyncio.to_thread(live.payload, view))
            response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-store"})
            await response.prepare(request)
            with suppress(ConnectionError, TimeoutError):
                while True:
                    payload = await viewer.take(SILENT_S)
                    said = b": still here\n\n" if payload is None else b"data: %b\n\n" % payload
                    await asyncio.wait_for(response.write(said), WRITE_S)
        return response

    async def act(self, request: web.Request) -> web.Response:
        self.actions.check(request.headers, request.host)
        job, name = check_job(request.match_info["job"]), request.match_info["order"]
        try:
            given = await request.json()
        except ValueError as error:
            raise UsageError("An order is a JSON object.") from error
        if not isinstance(given, dict):
            raise UsageError("An order is a JSON object.")
        connection = self.place.connection.named(job, "page")
        said = await asyncio.to_thread(carry_out, name, Order(connection, job, self.place.secret, given))
        log.info("event=ordered job=%s order=%s who=%r said=%r", job, name, given.get("who"), said)
        return _json(to_json({"said": said}))

    async def may(self, _: web.Request) -> web.Response:
        """Whether anything can be ordered here."""
        return _json(to_json({"actions": self.actions.allowed}))

    async def _live(self, request: web.Request) -> Live:
        job = check_job(request.match_info["job"])
        return await asyncio.to_thread(self.watched.get, job)

    # -- what goes on

    async def tell(self) -> None:
        """Make each view's document once, and offer it to all who look at that."""
        while True:
            await asyncio.sleep(self.every_s)
            for live in self.watched:
                looking = self.viewers.of(live.job)
                for view in {viewer.view for viewer in looking}:
                    try:
                        payload = await asyncio.to_thread(live.payload, view)
                    except Exception:
                        log.exception("event=document-failed job=%s", live.job)
                        continue
                    for viewer in looking:
                        if viewer.view == view:
                            viewer.offer(payload)
            self.watched.let_go({live.job for live in self.watched if self.viewers.of(live.job)})


def view_of(request: web.Request) -> View:
    """What is asked for, within bounds."""
    search, worker = request.query.get("search", ""), request.query.get("worker", "")
    if max(len(search), len(worker)) > SEARCH_MAX:
        raise UsageError(f"Names have at most {SEARCH_MAX} characters.")
    rows = min(_number(request, "rows", ROWS), ROWS_MAX)
    return View(_number(request, "first", 0), rows, search, True, worker)


def _number(request: web.Request, name: str, default: int) -> int:
    given = request.query.get(name, str(default))
    if not given.isascii() or not given.isdecimal() or len(given) > 15:
        raise UsageError(f"{name}={given[:20]!r}: take a number from 0 on.")
    return int(given)


def _json(body: bytes) -> web.Response:
    return web.Response(
        body=body, content_type="application/json", charset="utf-8", headers={"Cache-Control": "no-store"}
    )


def _file(found: Asset | None) -> web.Response:
    assert found is not None
    headers = {"Cache-Control": "no-cache", "ETag": found.tag}
    return web.Response(body=found.body, content_type=found.content_type, charset="utf-8", headers=headers)


STATUS: dict[type[AntdtError], int] = {UnknownJob: 404, Forbidden: 403, UsageError: 400, Unavailable: 503}


def guard(loopback: bool) -> Any:
    """The middleware that says what is wrong, in one sentence."""

    @web.middleware
    async def guarded(request: web.Request, handler: Any) -> web.StreamResponse:
        if loopback and not is_loopback(name_of(request.host)):
            return _wrong(403, f"This page is served to this machine only, and not under the name {request.host!r}.")
        try:
            response: web.StreamResponse = await handler(request)
        except AntdtError as error:
            return _wrong(next((code for kind, code in STATUS.items() if isinstance(error, kind)), 409), str(error))
        except web.HTTPException as error:
            return _wrong(error.status, f"{error.reason}.")
        except Exception as error:
            log.exception("event=request-failed path=%s", request.path)
            return _wrong(500, f"{type(error).__name__}: this is a bug of ours; the log of the page has more.")
        return response

    return guarded


def _wrong(status: int, sentence: str) -> web.Response:
    made = _json(to_json({"error": sentence}))
    made.set_status(status)
    return made


async def _secured(_: web.Request, response: web.StreamResponse) -> None:
    response.headers.update(HEADERS)


def name_of(host: str) -> str:
    """What a Host header names, without its port."""
    name = host.rpartition(":")[0] if not host.endswith("]") and ":" in host else host
    return name.strip("[]")


def application(page: Page) -> web.Application:
    app = web.Application(middlewares=[guard(page.loopback)], client_max_size=BODY_MAX)
    app.on_response_prepare.append(_secured)
    app.add_routes(
        [
            web.get("/", page.index),
            web.get("/jobs/{job}", page.job),
            web.get("/static/{name}", page.static),
            web.get("/healthz", page.healthz),
            web.get("/api/may", page.may),
            web.get("/api/jobs", page.list_jobs),
            web.get("/api/jobs/{job}", page.document),
            web.get("/api/jobs/{job}/events", page.events),
            web.post("/api/jobs/{job}/orders/{order}", page.act),
        ]
    )

    async def telling(_: web.Application) -> Any:
        task = asyncio.create_task(page.tell())
        yield
        task.cancel()
        page.watched.stop()
        page.past.shutdown(wait=False, cancel_futures=True)

    app.cleanup_ctx.append(telling)
    return app


async def serve(page: Page, host: str, port: int, stopping: threading.Event, ready: Callable[[int], None]) -> None:
    """Serve until told to stop. ready: is told the port.

    Raises:
        UsageError: there is no listening there.
    """
    runner = web.AppRunner(application(page), access_log=None, handle_signals=False, shutdown_timeout=1.0)
    await runner.setup()
    try:
        site = web.TCPSite(runner, host, port)
        try:
            await site.start()
        except OSError as error:
            why = error.strerror or error
            raise UsageError(
                f"{host}:{port} cannot be listened at: {why}. Name another --port, or --port 0."
            ) from error
        ready(runner.addresses[0][1])
        await asyncio.to_thread(stopping.wait)
    finally:
        await runner.cleanup()
