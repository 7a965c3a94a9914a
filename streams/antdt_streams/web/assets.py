"""The files of the page, as they lie in the package: nothing else is served, and each is the same until it changes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from hashlib import blake2b
from importlib import resources

TYPES = {"html": "text/html", "js": "text/javascript", "css": "text/css", "svg": "image/svg+xml", "txt": "text/plain"}
# By name: what may be asked for.
NAMES = ("page.js", "lanes.js", "charts.js", "words.js", "orders.js", "jobs.js", "page.css", "uPlot.iife.min.js",
         "uPlot.min.css", "uPlot.LICENSE.txt", "icon.svg")  # fmt: skip
PAGES = ("job.html", "jobs.html")


@dataclass(frozen=True, slots=True)
class Asset:
    body: bytes
    content_type: str
    tag: str


@cache
def asset(name: str) -> Asset | None:
    """None: there is no such file."""
    if name not in (*NAMES, *PAGES):
        return None
    body = resources.files("antdt_streams.web").joinpath("static", name).read_bytes()
    kind = TYPES[name.rpartition(".")[2]]
    return Asset(body, kind, f'"{blake2b(body, digest_size=8).hexdigest()}"')
