"""kill -9 of everybody in the middle of a checkpoint: it never counts, and what is left of it goes away."""

from __future__ import annotations

from pathlib import Path

import pytest
from antdt_schemas import records
from antdt_schemas.connection import Connection
from antdt_schemas.limits import CHECKPOINTS_KEPT, INIT_FILE

from tests.helpers import dies_while_saving
from tests.helpers.dies_while_saving import POINTS, SPARED
from tests.helpers.job_processes import JobProcesses, job_processes

pytestmark = pytest.mark.kafka
SCRIPT = (dies_while_saving.__file__,)
# The model before any step is the first file; between two deaths one file is written well.
FATES = (POINTS[0], SPARED, SPARED, *(fate for point in POINTS for fate in (point, SPARED)))


@pytest.mark.dear
def test_a_checkpoint_whose_writer_is_killed_never_counts_and_goes_away(
    connection: Connection, job: str, tmp_path: Path
) -> None:
    fates = tmp_path / "fates"
    fates.mkdir()
    for number, fate in enumerate(FATES):
        (fates / f"{number:02d}-{fate}").touch()
    with job_processes(connection, job, tmp_path) as run:
        options = ("--samples", "700", "--epochs", "3", "--delay-ms", "2", "--checkpoint-every", "5")
        run.ended(run.launch(2, "--fates", str(fates), *options, script=SCRIPT, restarts=len(FATES)))
        report = run.judged()
        died = {path.name.split("-", 2)[2]: path.read_text() for path in sorted(fates.glob("DIED-*"))[1:]}
        assert tuple(died) == POINTS
        assert len(restored(run, set(died.values()))) == len(POINTS), "one file for each death"
        kept = {c.file for c in run.now().line.checkpoints}
    assert report["committed"] == 2100
    assert report["rolled_back_steps"] != 0
    (folder,) = (tmp_path / "checkpoints" / job).iterdir()
    assert len(kept) == CHECKPOINTS_KEPT
    files = {path.name for path in folder.iterdir()}
    assert files >= kept
    assert not any(name.endswith(".partial") for name in files), files
    assert not files & set(died.values()), "what nobody knows of stays"
    assert len(files) <= len(kept) + 2, f"the one before any step, and what the next one removes: {files}"


def restored(run: JobProcesses, never: set[str]) -> set[str]:
    """The files that were loaded: each time the newest one that the ledger had been told of, and none of `never`.

    A generation may end before anybody has loaded its file; then the next one is granted the same file again.
    """
    newest, loaded = INIT_FILE, set[str]()
    for event in run.events():
        if isinstance(event, records.Checkpointed):
            assert event.file not in never, "an event without a file"
            newest = event.file
        elif isinstance(event, records.Granted) and event.restore_file is not None:
            assert event.restore_file == newest
            loaded.add(newest)
    return loaded - {INIT_FILE}
