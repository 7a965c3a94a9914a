"""The jars of Apache Kafka: fetched once from Maven Central, kept in the user's cache folder.

Only resolution and download are left to jgo; its environment builder would also look for a JDK to sort jars by.
"""

from __future__ import annotations

import fcntl
import os
import pwd
import shutil
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from antdt_schemas.errors import Unavailable, UsageError

KAFKA_VERSION = "4.4.0"
COORDINATES = f"org.apache.kafka:kafka_2.13:{KAFKA_VERSION}+org.slf4j:slf4j-simple:1.7.36"  # or it logs nothing
SIZE_MB = 44
ENV_JARS = "ANTDT_BROKER_JARS"


def class_path(environ: Mapping[str, str]) -> str:
    """Java's class path of the broker: ANTDT_BROKER_JARS (one or more folders, `:` between them) or the cache.

    Raises:
        UsageError: the extra that fetches them is not installed, or the named folder has no Kafka in it.
        Unavailable: they cannot be fetched.
    """
    if environ.get(ENV_JARS):
        folders = [Path(part) for part in environ[ENV_JARS].split(os.pathsep)]
        if not any(list(folder.glob("kafka_2.1*.jar")) for folder in folders):
            what = f"{ENV_JARS}={environ[ENV_JARS]} has no kafka_2.13….jar."
            raise UsageError(what, "Name the `libs` folder of Kafka.")
    else:
        folders = [cached_jars(environ)]
    return os.pathsep.join(f"{folder}/*" for folder in folders)


def cache_folder(environ: Mapping[str, str]) -> Path:
    """Where things that can be fetched again are kept: XDG_CACHE_HOME, `~/.cache`, or a folder of this user in /tmp.

    Raises:
        UsageError: somebody else has that folder.
    """
    if environ.get("XDG_CACHE_HOME"):
        return Path(environ["XDG_CACHE_HOME"]) / "antdt"
    home = _home(environ)
    if home is not None:
        folder = home / ".cache" / "antdt"
        if (folder / f"kafka-{KAFKA_VERSION}").is_dir() or _may_write(folder):
            return folder
    folder = Path(tempfile.gettempdir()) / f"antdt-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise UsageError(f"{folder} belongs to somebody else: name a folder of your own in XDG_CACHE_HOME.")
    return folder


def _home(environ: Mapping[str, str]) -> Path | None:
    """None where the user id has neither a name nor a home."""
    if environ.get("HOME"):
        return Path(environ["HOME"])
    try:
        return Path(pwd.getpwuid(os.getuid()).pw_dir)
    except KeyError:
        return None


def _may_write(folder: Path) -> bool:
    """Whether it could be made: a user id without a name has `/` as its home."""
    return os.access(next(part for part in (folder, *folder.parents) if part.exists()), os.W_OK)


def is_cached(environ: Mapping[str, str]) -> bool:
    """Whether they are here already; nothing is made or fetched."""
    home = _home(environ)
    caches = [Path(environ["XDG_CACHE_HOME"]) / "antdt"] if environ.get("XDG_CACHE_HOME") else []
    if not caches and home is not None:
        caches = [home / ".cache" / "antdt"]
    caches.append(Path(tempfile.gettempdir()) / f"antdt-{os.getuid()}")
    return any((cache / f"kafka-{KAFKA_VERSION}").is_dir() for cache in caches)


def cached_jars(environ: Mapping[str, str]) -> Path:
    """Folder with every jar of the broker; the first call fetches them and says so on stderr."""
    folder = cache_folder(environ) / f"kafka-{KAFKA_VERSION}"
    if folder.is_dir():  # it gets this name only when it is complete
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # what fetches them is not made for two that write the same files
        if folder.is_dir():  # somebody else has fetched them meanwhile
            return folder
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f"{folder.name}.") as scratch:
            jars = Path(scratch) / "jars"
            jars.mkdir()
            for jar in _fetched(environ, folder.parent):
                shutil.copy2(jar, jars / jar.name)
            try:
                jars.rename(folder)
            except OSError:
                if not folder.is_dir():  # another machine that shares it was first
                    raise
    return folder


def _fetched(environ: Mapping[str, str], cache: Path) -> list[Path]:
    home = _home(environ)
    if home is None or not _may_write(home):
        os.environ["HOME"] = str(cache)  # where the library keeps what it fetches
    try:
        import jgo
    except ImportError as error:
        raise UsageError(
            "The embedded broker needs the jars of Apache Kafka. Install what fetches them with "
            f"`pip install 'antdt[broker]'`, or name a folder that has them in {ENV_JARS}."
        ) from error
    print(f"Fetching Apache Kafka {KAFKA_VERSION} ({SIZE_MB} MB) …", file=sys.stderr, flush=True)
    try:
        return [Path(artifact.resolve()) for artifact in jgo.resolve(COORDINATES)]
    except Exception as error:
        raise Unavailable(
            f"Apache Kafka {KAFKA_VERSION} cannot be fetched from Maven Central: {type(error).__name__}: {error}.",
            f"Check the network, or download Kafka on another machine and name its folder `libs` in {ENV_JARS}.",
        ) from error
