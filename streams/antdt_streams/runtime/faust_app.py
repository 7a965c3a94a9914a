"""The Faust side: an app whose one agent takes batches from a bounded channel that a thread of ours fills.

The only module that knows Faust. Its own consumer, producer, tables and web server stay off: its consumer cannot be the
source of anything exact, and what it does in a rebalance (it clears the queues of channels) must not reach ours.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import faust
from faust.app.base import BootStrategy

from antdt_streams.runtime.service import Batch

CHANNEL_BATCHES_MAX = 4
SLICE_S = 0.1
# The thread of the source leaves the group behind a last snapshot; without an answer from the broker, it is left alone.
JOIN_TIMEOUT_S = 3.0

Put = Callable[[Batch], bool]


class WithoutKafka(BootStrategy):  # type: ignore[misc]
    """Starts agents and services only."""

    enable_kafka = False
    enable_web = False


class App(faust.App):  # type: ignore[misc]
    """A Faust app that does not talk to Kafka itself."""

    BootStrategy = WithoutKafka


class Host:
    """Runs one service on Faust: `read` fills the channel in a thread, `take` processes in another, in order.

    The first error of either ends it; after that nothing more is processed. `on_end` is called once, before it stops.
    """

    def __init__(
        self,
        name: str,
        folder: Path,
        read: Callable[[Put], None],
        take: Callable[[Batch], None],
        on_end: Callable[[], None],
    ) -> None:
        self.read, self.take, self.on_end = read, take, on_end
        self.error: BaseException | None = None
        self._ending = asyncio.Event()
        self._halted = threading.Event()
        self._loop = asyncio.get_running_loop()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="antdt-fold")
        self.app = App(
            name,
            broker="kafka://127.0.0.1",  # never contacted
            store="memory://",
            datadir=str(folder),
            web_enabled=False,
            autodiscover=False,
        )
        self.channel = self.app.channel(maxsize=CHANNEL_BATCHES_MAX)
        self.app.agent(self.channel, name=f"{name}.fold")(self._fold)
        self.app.service(self._source())

    async def run(self, started: Callable[[], None]) -> None:
        """Work until `end` is called or something fails; raises what failed."""
        await self.app.start()
        started()
        try:
            await self._ending.wait()
        finally:
            self.end()
            await self.app.stop()
            await self._loop.run_in_executor(None, self._pool.shutdown)
        if self.error is not None:
            raise self.error

    def end(self) -> None:
        """Stop in order; on the event loop's thread. Ending twice is fine."""
        if not self._halted.is_set():
            self._halted.set()
            self._ending.set()
            self.on_end()

    def _fail(self, error: BaseException) -> None:
        self.error = self.error or error
        self.end()

    async def _fold(self, stream: Any) -> None:
        async for batch in stream:
            # Not on the event loop: a flush waits for the broker. Not Faust's affair either: an exception in an agent
            # would count as done, and the next batch would be taken.
            if self._halted.is_set():
                continue
            try:
                await self._loop.run_in_executor(self._pool, self.take, batch)
            except Exception as error:  # noqa: BLE001  raised again by run()
                self._fail(error)

    def _source(self) -> type:
        host = self

        class Feed(faust.Service):  # type: ignore[misc]
            async def on_start(self) -> None:
                host.app.flow_control.resume()  # what a rebalance would do; the channel is still empty
                self.thread = threading.Thread(target=host._feed, name="antdt-source", daemon=True)
                self.thread.start()

            async def on_stop(self) -> None:
                await asyncio.get_running_loop().run_in_executor(None, self.thread.join, JOIN_TIMEOUT_S)

        return Feed

    def _feed(self) -> None:
        try:
            self.read(self._put)
        except BaseException as error:  # noqa: BLE001  raised again by run()
            self._loop.call_soon_threadsafe(self._fail, error)

    def _put(self, batch: Batch) -> bool:
        """From the source's thread: wait for room in the channel; False once the service is to stop."""
        if self._halted.is_set():
            return False
        future = asyncio.run_coroutine_threadsafe(self.channel.put(batch), self._loop)
        while not self._halted.is_set():
            try:
                future.result(SLICE_S)
            except TimeoutError:
                continue
            return True
        future.cancel()
        return False
