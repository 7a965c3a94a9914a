"""Of this machine: packages, environment, folders, limits, memory that processes share, Java, address.

Each check takes what it judges from the machine in its first lines, and judges it by a function of its own that tests
give other facts to.
"""

from __future__ import annotations

import difflib
import os
import re
import resource
import socket
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata, util
from pathlib import Path

from antdt_schemas import variables
from antdt_schemas.address import ENV_ADVERTISE, ENV_INTERFACE, is_loopback, own_address
from antdt_schemas.listener import host_port

from antdt_streams.broker import jars, java
from antdt_streams.doctor.checks import Check, Finding, Setup, fault, ok, warning

MIB = 1 << 20
STATE_BYTES, STATE_BYTES_LITTLE = 100 * MIB, 1024 * MIB
CHECKPOINT_BYTES, CHECKPOINT_BYTES_LITTLE = 100 * MIB, 2048 * MIB
SHM_BYTES_LITTLE = 128 * MIB  # Docker's own is 64 MiB
FILES_MIN, FILES_LITTLE = 256, 1024
# Where locks and memory-mapped files cannot be relied on, and what a restart of the machine takes away.
REMOTE = ("nfs", "nfs4", "cifs", "smb3", "9p", "fuse.sshfs", "ceph", "lustre")
IN_MEMORY = ("tmpfs", "ramfs")

# -- packages

REQUIREMENT = re.compile(r"([A-Za-z0-9._-]+)\s*([^;]*)(?:;.*extra\s*==\s*['\"]([\w.-]+)['\"])?")
# What a part of a job needs that no machine has to have: what cannot be run without it.
PARTS = {"streams": "`antdt up`", "ps": "parameter servers"}


@dataclass(frozen=True, slots=True)
class Requirement:
    """A package, the versions that it may have (">=2,<3"), and the extra that asks for it, if one does."""

    name: str
    versions: str
    extra: str = ""


def requirements() -> list[Requirement]:
    """As the installed distribution of this project states them."""
    found = (REQUIREMENT.match(line) for line in metadata.requires("antdt") or ())
    return [Requirement(m[1], m[2].strip(), m[3] or "") for m in found if m is not None]


def version_of(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def packages(_: Setup) -> Iterator[Finding]:
    wanted = requirements()
    there = {one.name: version_of(one.name) for one in wanted}
    yield from judged_packages(wanted, there, has_torch=util.find_spec("torch") is not None)


def judged_packages(
    wanted: Sequence[Requirement], there: Mapping[str, str | None], *, has_torch: bool
) -> Iterator[Finding]:
    """there: package -> version, None where it is not installed."""
    for one in wanted:
        version = there.get(one.name)
        if one.extra in ("", *PARTS) and version is not None and not fits(version, one.versions):
            extra = f"[{one.extra}]" if one.extra else ""
            yield fault(
                f"{one.name} {version} is installed, and this version of antdt is made for {one.name}{one.versions}",
                f"`pip install 'antdt{extra}'` installs it",
            )
    missing = {extra: [o.name for o in wanted if o.extra == extra and there.get(o.name) is None] for extra in PARTS}
    core = [one.name for one in wanted if not one.extra and there.get(one.name) is None]
    if core:
        yield fault(f"{', '.join(core)} is not installed", "`pip install antdt` installs what antdt is made of")
    if missing["streams"] and not has_torch:
        yield fault(
            "neither the extra streams nor PyTorch is installed: neither services nor workers can run here",
            "`pip install 'antdt[streams]'` for services, `pip install torch` for workers",
        )
        return
    for extra, names in missing.items():
        if names:
            yield warning(
                f"{', '.join(names)} is not installed: {PARTS[extra]} cannot run here",
                f"`pip install 'antdt[{extra}]'`, unless another machine does that",
            )
    if not has_torch:
        yield warning("PyTorch is not installed: workers cannot run here", "`pip install torch`, or launch elsewhere")
    shown = [f"{name} {there[name]}" for name in ("confluent-kafka", "fastavro", "rocksdict") if there.get(name)]
    yield ok(", ".join(shown) + (", PyTorch" if has_torch else ""))


def fits(version: str, versions: str) -> bool:
    """Whether a version is one of ">=1,<2" or "==1.2.3". What is no number in it (rc1) does not count."""
    here = _numbers(version)
    for part in filter(None, (one.strip() for one in versions.split(","))):
        match = re.fullmatch(r"(==|>=|<=|<|>|!=)\s*(\S+)", part)
        if match is None:
            continue
        there = _numbers(match[2])
        width = max(len(here), len(there))
        left, right = (each + (0,) * (width - len(each)) for each in (here, there))
        holds = {
            "==": left == right, "!=": left != right, ">=": left >= right, "<=": left <= right, "<": left < right,
            ">": left > right,
        }  # fmt: skip
        if not holds[match[1]]:
            return False
    return True


def _numbers(version: str) -> tuple[int, ...]:
    found = re.match(r"\d+(?:\.\d+)*", version)
    return tuple(map(int, found[0].split("."))) if found is not None else ()


# -- environment


def environment(setup: Setup) -> Iterator[Finding]:
    for name in variables.unknown(setup.environ):
        like = difflib.get_close_matches(name, [*variables.NAMES, "ANTDT_KAFKA_CONFIG"], n=1, cutoff=0.8)
        meant = f"say {like[0]}, if that is meant" if like else "take it away"
        yield warning(f"{name} is set, and nothing of antdt reads a variable of that name", meant)
    for name in ("MASTER_ADDR", "RANK"):
        if setup.environ.get(name) and not setup.environ.get("ANTDT_JOB"):
            yield ok(f"{name} is set: workers that are started here without `antdt launch` take their place from it")
            break
    known = sorted(name for name in setup.environ if name in variables.NAMES or name.startswith(variables.KAFKA_PREFIX))
    yield ok(f"{', '.join(known)} set" if known else "no variable of antdt is set")


# -- folders


@dataclass(frozen=True, slots=True)
class Folder:
    """A folder that is, or would be made. refused: why nothing can be written there; kind: of its file system."""

    path: Path
    free_bytes: int
    free_files: int
    kind: str = ""
    refused: str = ""


def folder_at(path: Path) -> Folder:
    """Writes a byte into a file without a name, which is gone with its descriptor."""
    there = next(part for part in (path.absolute(), *path.absolute().parents) if part.exists())
    refused = "" if there.is_dir() else f"{there} is no folder"
    if not refused:
        try:
            with tempfile.TemporaryFile(dir=there) as file:
                file.write(b"x")
                file.flush()
        except OSError as error:
            refused = f"{error.strerror} in {there}"
    found = os.statvfs(there)
    unlimited = found.f_files == 0  # a file system that does not count them
    files = 1 << 40 if unlimited else found.f_favail
    return Folder(path, found.f_bavail * found.f_frsize, files, _kind_of(there), refused)


def _kind_of(path: Path) -> str:
    """The type of the file system that holds it; the longest mount point is the nearest."""
    found, length = "", -1
    for line in Path("/proc/self/mounts").read_text(encoding="utf-8", errors="replace").splitlines():
        _, where, kind, *_ = line.split()
        where = where.replace("\\040", " ")
        if (path == Path(where) or Path(where) in path.parents) and len(where) >= length:
            found, length = kind, len(where)
    return found


def state_folder(setup: Setup) -> Iterator[Finding]:
    folder = folder_at(setup.data)
    yield from judged_folder(folder, "state and logs", STATE_BYTES, STATE_BYTES_LITTLE, "--data-dir or ANTDT_DATA")
    if folder.kind in REMOTE:
        yield warning(
            f"{folder.path} lies on {folder.kind}, where locks and RocksDB's files cannot be relied on",
            "name a folder on a disk of this machine by --data-dir or ANTDT_DATA",
        )


def checkpoint_folder(setup: Setup) -> Iterator[Finding]:
    named = setup.environ.get("ANTDT_CHECKPOINTS")
    folder = folder_at(Path(named) if named else setup.data / "checkpoints")
    yield from judged_folder(folder, "models", CHECKPOINT_BYTES, CHECKPOINT_BYTES_LITTLE, "ANTDT_CHECKPOINTS")


def judged_folder(folder: Folder, what: str, least: int, little: int, option: str) -> Iterator[Finding]:
    path, free = folder.path, f"{folder.free_bytes / MIB:,.0f} MiB"
    if folder.refused:
        yield fault(
            f"{path} cannot be written ({folder.refused}): {what} go there",
            f"let this user write there, or name another folder by {option}",
        )
    elif folder.free_files < 100:
        yield fault(f"{path} has {folder.free_files} inodes left", "delete files there, or name another disk")
    elif folder.free_bytes < least:
        yield fault(f"{path} has {free} left: {what} go there", f"make room there, or name another disk by {option}")
    elif folder.free_bytes < little:
        yield warning(f"{path} has {free} left only: {what} go there", f"make room, or name another disk by {option}")
    elif folder.kind in IN_MEMORY:
        yield warning(
            f"{path} lies in memory ({folder.kind}): {what} are gone when this machine starts anew",
            f"name a folder on a disk by {option}",
        )
    else:
        yield ok(f"{path}: {free} free on {folder.kind}")


# -- limits


def open_files(_: Setup) -> Iterable[Finding]:
    return judged_files(*resource.getrlimit(resource.RLIMIT_NOFILE))


def judged_files(soft: int, hard: int) -> Iterator[Finding]:
    def fix(wanted: int) -> str:
        if hard == resource.RLIM_INFINITY or hard >= wanted:
            return f"`ulimit -n {wanted}` in the shell that starts it"
        return f"raise the hard limit, which is {hard} (limits.conf, LimitNOFILE=, --ulimit nofile={wanted})"

    if soft != resource.RLIM_INFINITY and soft < FILES_MIN:
        yield fault(f"a process may open {soft} files: a ledger and a broker need more", fix(FILES_LITTLE))
    elif soft != resource.RLIM_INFINITY and soft < FILES_LITTLE:
        yield warning(f"a process may open {soft} files, which a job of many workers exceeds", fix(4096))
    else:
        yield ok(f"a process may open {'any number of' if soft == resource.RLIM_INFINITY else soft} files")


def shared_memory(_: Setup) -> Iterable[Finding]:
    shm = Path("/dev/shm")
    return judged_shm(folder_at(shm) if shm.is_dir() else None)


def judged_shm(shm: Folder | None) -> Iterator[Finding]:
    """None: there is no such folder."""
    if shm is None or shm.refused:
        why = "is not there" if shm is None else f"cannot be written ({shm.refused})"
        yield warning(
            f"/dev/shm {why}: data processes of torch, and NCCL within a machine, need it",
            "mount a tmpfs there (`docker run --shm-size=8g`, an emptyDir of medium Memory)",
        )
    elif shm.free_bytes < SHM_BYTES_LITTLE:
        yield warning(
            f"/dev/shm has {shm.free_bytes / MIB:,.0f} MiB left: a DataLoader with processes, or NCCL, ends with a bus "
            "error when it is full",
            "make it larger (`docker run --shm-size=8g`, an emptyDir of medium Memory)",
        )
    else:
        yield ok(f"/dev/shm: {shm.free_bytes / MIB:,.0f} MiB free")


# -- a broker of this machine's own


def embedded(setup: Setup) -> Iterator[Finding]:
    """Whether `antdt up` could start one; asked only where none is named. Nothing is fetched."""
    if setup.named:
        yield ok("a broker is named: none is started here")
        return
    found = java.find_java(setup.environ)
    if setup.environ.get(jars.ENV_JARS):
        jars.class_path(setup.environ)
        yield ok(f"{found}, with the jars that {jars.ENV_JARS} names")
    elif jars.is_cached(setup.environ):
        yield ok(f"{found}, and Apache Kafka {jars.KAFKA_VERSION} is here")
    elif util.find_spec("jgo") is not None:
        yield ok(f"{found}; Apache Kafka {jars.KAFKA_VERSION} ({jars.SIZE_MB} MB) is fetched at the first start")
    else:
        yield fault(
            "no broker is named, and what `antdt up` starts one from is not here: the jars of Apache Kafka",
            f"`pip install 'antdt[broker]'`, name a folder that has them in {jars.ENV_JARS}, or name a broker",
        )


# -- where others reach this machine


def address(setup: Setup) -> Iterator[Finding]:
    bootstrap = setup.connection.bootstrap if setup.connection is not None else "127.0.0.1:9092"
    own = own_address(setup.environ, bootstrap)
    yield from judged_address(own, bootstrap, setup.environ)
    names = {name for _, name in socket.if_nameindex()}
    yield from judged_interfaces(setup.environ.get("NCCL_SOCKET_IFNAME", ""), names)
    host = socket.gethostname()
    try:
        socket.getaddrinfo(host, None)
    except OSError as error:
        yield warning(
            f"this machine's own name {host!r} cannot be resolved ({error.strerror}): process groups that a script "
            "makes by itself meet there",
            f"add {host} to /etc/hosts, or set MASTER_ADDR",
        )


def judged_address(own: str, bootstrap: str, environ: Mapping[str, str]) -> Iterator[Finding]:
    """own: where the other members are told to find this machine."""
    named = ENV_ADVERTISE if environ.get(ENV_ADVERTISE) else ENV_INTERFACE if environ.get(ENV_INTERFACE) else ""
    brokers = [host_port(server)[0] for server in bootstrap.split(",")]
    try:
        socket.getaddrinfo(own, None)
    except OSError as error:
        yield fault(
            f"the other members are told to find this machine at {own}, which cannot be resolved ({error.strerror})",
            f"set {ENV_ADVERTISE} to a name or an address of this machine that they can reach",
        )
        return
    if is_loopback(own) and not all(map(is_loopback, brokers)):
        why = f"{named} says so" if named else "it is the route to the broker"
        yield warning(
            f"the broker is at {', '.join(brokers)}, and the other members are told to find this machine at {own} "
            f"({why}): those on other machines find themselves there",
            f"set {ENV_ADVERTISE} to an address that they can reach, or {ENV_INTERFACE} to the interface that has it",
        )
        return
    came = f" ({named})" if named else ""
    alone = ": workers are on this machine only, as the broker is" if is_loopback(own) else ""
    yield ok(f"the other members find this machine at {own}{came}{alone}")


def judged_interfaces(nccl: str, names: Iterable[str]) -> Iterator[Finding]:
    """nccl: NCCL_SOCKET_IFNAME, what names of interfaces begin with; behind `=` whole ones, behind `^` none of them."""
    known = sorted(names)
    if not nccl or nccl.startswith("^"):
        return
    wanted = [part.strip() for part in nccl.removeprefix("=").split(",")]
    whole = nccl.startswith("=")
    if not any(name == part if whole else name.startswith(part) for part in wanted for name in known):
        yield fault(
            f"NCCL_SOCKET_IFNAME={nccl}: there is no such interface here, there are {', '.join(known)}",
            "name one of them, or take the variable away",
        )


CHECKS = (
    Check("packages", "installed packages against what this version is made for", packages),
    Check("environment", "variables that begin with ANTDT_", environment),
    Check("state folder", "room, rights, file system", state_folder),
    Check("checkpoint folder", "room, rights, file system", checkpoint_folder),
    Check("open files", "ulimit -n", open_files),
    Check("shared memory", "/dev/shm", shared_memory),
    Check("own broker", "Java and the jars of Kafka, where no broker is named", embedded, bound_s=45.0),
    Check("address", "where gloo and NCCL tell others to find this machine", address),
)
