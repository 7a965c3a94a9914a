"""antdt bridge: a job's figures to a tracker of experiments, as one run."""

from __future__ import annotations

import time
from pathlib import Path

import click

from antdt_streams.cli.common import connection_options, job_argument, note, stop_on_signals
from antdt_streams.local.place import Place
from antdt_streams.views.aggregate import about, numbers, proof
from antdt_streams.views.top import Top, await_current
from antdt_streams.views.trackers import TRACKERS, Tracker


@click.command()
@job_argument
@click.option("--to", "target", type=click.Choice(list(TRACKERS)), required=True, help="Whose library is to be used.")
@click.option(
    "--every-s", type=click.FloatRange(min=1), default=10.0, show_default=True, help="How often it is told anew."
)
@click.option(
    "--folder",
    type=click.Path(path_type=Path, file_okay=False),
    help="Where TensorBoard's files go.  [default: runs/antdt/JOB]",
)
@connection_options
def bridge(job: str, target: str, every_s: float, folder: Path | None, place: Place) -> None:
    """Copy a job's figures to MLflow, Weights & Biases or TensorBoard: as one run, whatever the number of workers.

    Where that is, is up to the tracker's own settings (MLFLOW_TRACKING_URI, WANDB_PROJECT, ...). It ends with the job,
    or with Ctrl-C. A tracker that does not answer is told here, and the job does not notice.
    """
    place.connection.check_reachable()
    watched, stopping = Top(place.connection, job), stop_on_signals()
    watched.follow.start()
    try:
        await_current(watched)
        tracker = TRACKERS[target](about(watched), folder or Path("runs/antdt") / job)
        note(f"Job {job} is told to {target} every {every_s:g} s.")
        copier = Copier(watched, tracker)
        while not copier.look() and not stopping.wait(every_s):
            if watched.follow.failure is not None:
                raise watched.follow.failure
        copier.end()
    finally:
        watched.follow.stop()


class Copier:
    """One job to one tracker."""

    def __init__(self, watched: Top, tracker: Tracker) -> None:
        self._watched, self._tracker = watched, tracker
        self._step, self._done, self._failing_since_s = 0, False, 0.0

    def look(self) -> bool:
        """Tell what is so now. Whether the job is done."""
        with self._watched.follow.changed:  # another thread goes on reading
            found, speeds = self._watched.document(), self._watched.progress.speeds
        self._step, self._done = max(self._step, found["step"]), found["done"] is not None
        try:
            self._tracker.log(numbers(found, speeds), self._step)
        except Exception as error:  # noqa: BLE001  of any library, and its network
            if not self._failing_since_s:
                note(f"The tracker takes nothing: {type(error).__name__}: {error}. It is tried again.")
            self._failing_since_s = self._failing_since_s or time.monotonic()
            return self._done
        if self._failing_since_s:
            note(f"The tracker takes figures again, after {time.monotonic() - self._failing_since_s:.0f} s.")
            self._failing_since_s = 0.0
        return self._done

    def end(self) -> None:
        with self._watched.follow.changed:
            told = proof(self._watched)
        self._tracker.end(told, done=self._done)
