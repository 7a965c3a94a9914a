"""The wheel, built and installed without the extras: what is inside, and what it says of what is missing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import confluent_kafka
import pytest
from antdt_streams.web import assets

HERE = Path(__file__).parents[2]
SITE = Path(confluent_kafka.__file__).parents[1]
# What the wheel depends on; everything else that is installed here is hidden from it.
DEPENDENCIES = ("confluent_kafka", "confluent_kafka.libs", "fastavro", "click", "safetensors")


def run(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """In a folder of its own, with nothing of this project in its environment."""
    environ = {k: v for k, v in os.environ.items() if not k.startswith(("ANTDT_", "PYTHON"))}
    return subprocess.run(
        command, cwd=folder, env=environ, capture_output=True, text=True, timeout=60, check=False
    )  # fmt: skip


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The wheel, and a Python that has it and what it depends on."""
    folder = tmp_path_factory.mktemp("wheel")
    # By the back end itself: no network, no environment to be made.
    built = run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)], HERE)
    assert built.returncode == 0, built.stderr
    (wheel,) = folder.glob("antdt-*.whl")
    venv.create(folder / "env", with_pip=False, symlinks=True)
    (site,) = (folder / "env").glob("lib/python*/site-packages")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)  # which is what installing a pure wheel without scripts does
    for name in DEPENDENCIES:
        if (SITE / name).exists():
            (site / name).symlink_to(SITE / name)
    return wheel, folder / "env" / "bin" / "python"


def test_data_files_and_commands_are_inside(bare: tuple[Path, Path]) -> None:
    wheel, _ = bare
    names = set(zipfile.ZipFile(wheel).namelist())
    files = {str(p.relative_to(HERE / "schemas")) for p in (HERE / "schemas").rglob("*.avsc")}
    assert len(files) > 10
    assert files <= names
    assert "antdt_streams/tools/verify_standalone.py" in names
    assert {f"antdt_streams/web/static/{name}" for name in (*assets.NAMES, *assets.PAGES)} <= names
    assert {f"{part}/py.typed" for part in ("antdt", "antdt_schemas", "antdt_streams")} <= names
    (scripts,) = (name for name in names if name.endswith(".dist-info/entry_points.txt"))
    assert "antdt = antdt_streams.cli.main:main" in zipfile.ZipFile(wheel).read(scripts).decode()
    assert not [name for name in names if name.startswith(("tests", "bench"))]


# Each command in a child that is forked from a Python which has the command line and nothing else of ours: fourteen
# that start by themselves take seconds.
EACH = """
import contextlib, io, json, os, sys, traceback
from antdt_streams.cli.main import main
for arguments in json.loads(sys.argv[1]):
    pid = os.fork()
    if not pid:
        out, err, code = io.StringIO(), io.StringIO(), 0
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                main(arguments, prog_name="antdt")
            except SystemExit as ended:
                code = ended.code or 0
            except BaseException:
                code = 1
                traceback.print_exc()
        print(json.dumps([code, out.getvalue(), err.getvalue()]), flush=True)
        os._exit(0)
    os.waitpid(pid, 0)
"""
NEEDS = (
    (["up", "x"], "antdt[streams]"),
    (["ledger", "x"], "antdt[streams]"),
    (["monitor", "x"], "antdt[streams]"),
    (["controller", "x"], "antdt[streams]"),
    (["recover", "x", "--accept-loss", "--reason", "r"], "antdt[streams]"),
    (["demo"], "antdt[demo,streams]"),
    (["chaos"], "antdt[demo,streams]"),
    (["web"], "antdt[streams]"),
    (["audit", "--file", "log.avro"], "antdt[streams]"),
    (["replay", "--file", "log.avro"], "antdt[streams]"),
    (["launch", "--job", "x", "train.py"], "torch"),
)


def test_without_the_extras_each_command_says_what_to_install_before_anything_starts(
    bare: tuple[Path, Path], tmp_path: Path
) -> None:
    _, python = bare
    told = run([str(python), "-m", "antdt_streams", "-h"], tmp_path)
    assert told.returncode == 0, told.stderr
    assert {"up", "launch", "audit", "demo"} <= {line.split()[0] for line in told.stdout.splitlines() if line.strip()}

    (tmp_path / "log.avro").touch()
    each = [["up", "-h"], *(arguments for arguments, _ in NEEDS)]
    done = run([str(python), "-c", EACH, json.dumps(each)], tmp_path)
    assert done.returncode == 0, done.stderr
    (code, _, _), *ended = [json.loads(line) for line in done.stdout.splitlines()]
    assert code == 0
    for (arguments, package), (code, _, said) in zip(NEEDS, ended, strict=True):
        assert code == 2, said
        extra = "[" in package
        assert not extra or said.startswith(f"antdt: `antdt {arguments[0]}` needs "), said
        assert (f"`pip install '{package}'`" if extra else f"`pip install {package}`") in said, said
        assert len(said.splitlines()) == 1, said
    assert [p.name for p in tmp_path.iterdir()] == ["log.avro"], "nothing was started, nothing was written"


def test_the_auditors_checker_comes_out_of_the_wheel_as_it_is_in_the_source(
    bare: tuple[Path, Path], tmp_path: Path
) -> None:
    _, python = bare
    script = "import pathlib; from antdt_streams.proof import checker; checker.lay_beside(pathlib.Path('log.avro'))"
    done = run([str(python), "-c", script], tmp_path)
    assert done.returncode == 0, done.stderr
    laid = tmp_path / "verify_standalone.py"
    assert laid.read_bytes() == (HERE / "tools" / "verify_standalone.py").read_bytes()
    history = HERE / "tests" / "replay" / "histories" / "calm-1.avro"
    done = run([str(python), "-I", "-S", str(laid), str(history)], tmp_path)
    assert (done.returncode, json.loads(done.stdout)["exactly_once"]) == (0, True), done.stderr


def test_a_worker_has_what_it_needs_but_for_torch(bare: tuple[Path, Path], tmp_path: Path) -> None:
    _, python = bare
    script = """
import antdt, antdt.connect.client, antdt.launch.launcher
from antdt_schemas import codec, records
request = records.Request("w0", "w0.0", 1, records.Heartbeat(1, 2), b"")
assert codec.decode(codec.encode(request), records.Request) == request
try:
    antdt.Agent
except ModuleNotFoundError as error:
    print(error.name)
"""
    done = run([str(python), "-c", script], tmp_path)
    assert (done.returncode, done.stdout) == (0, "torch\n"), done.stderr
