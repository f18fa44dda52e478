"""Where profiles and studies live, and how a file is written so that it is whole or not there.

The user's directories, as the platform says; below `AUTOTUNE_HOME` where that is set.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import secrets
import unicodedata
from pathlib import Path

import platformdirs

from autotune.errors import EnvironmentFault
from autotune.profile.document import MAX_BYTES

HOME = "AUTOTUNE_HOME"
LOCAL_PROFILE = "autotune.yaml"
_APP = "autotune"
_SLUG_CHARACTERS = 60
_RESERVED = frozenset(
    ("con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(1, 10)))
)
"""Names of devices on Windows, with any suffix."""


def default_profile_path(name: str) -> Path:
    """Where the profile called `name` is saved when the user names no file."""
    return _profiles() / f"{slug(name)}.yaml"


def study_path(name: str) -> Path:
    """Where the study called `name` keeps its journal when the user names no storage."""
    home = os.environ.get(HOME)
    base = Path(home).expanduser() if home else platformdirs.user_data_path(_APP, appauthor=False)
    return base / "studies" / f"{slug(name)}.journal"


def find_profile() -> Path:
    """The profile to load: the local `autotune.yaml`, else the newest saved.

    Raises:
        EnvironmentFault: where there is none.
    """
    local = Path(LOCAL_PROFILE)
    if local.is_file():
        return local
    newest = max(_saved(), key=lambda path: path.stat().st_mtime, default=None)
    if newest is None:
        raise EnvironmentFault(
            "there is no profile yet",
            why=f"neither ./{LOCAL_PROFILE} nor a file in {_profiles()} exists",
            fix="run `autotune tune`, or name a file",
        )
    return newest


def newest_profiles() -> list[Path]:
    """The local `autotune.yaml` and all saved profiles, those written last first; none where none is seen."""
    try:
        found = [path for path in (Path(LOCAL_PROFILE), *_saved()) if path.is_file()]
        return sorted(found, key=lambda path: path.stat().st_mtime, reverse=True)
    except OSError:
        return []


def read_bytes(path: Path) -> bytes:
    """What a profile file holds, up to one byte more than a profile can have.

    Raises:
        EnvironmentFault: where it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return file.read(MAX_BYTES + 1)
    except OSError as error:
        raise EnvironmentFault(
            f"{path} cannot be read", why=_reason(error), fix="check the path and its permissions"
        ) from error


def save_text(path: Path, text: str) -> Path:
    """Writes `text` to `path` in one go: readers see the old file or the new one, never a part.

    Args:
        path: its directories are made, and a file that is there is replaced. A link is followed: what it
            points to is replaced.
        text: written as UTF-8, its line ends as they are.

    Returns:
        The absolute path of the file written.

    Raises:
        EnvironmentFault: where the file system refuses.
    """
    target = Path(os.path.realpath(path.expanduser()))
    draft = target.with_name(f".{target.name[:40]}.{secrets.token_hex(6)}.tmp")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _write(draft, text.encode("utf-8"))
        _keep_mode(target, draft)
        draft.replace(target)
        _sync_directory(target.parent)
    except OSError as error:
        raise EnvironmentFault(
            f"{path} cannot be written",
            why=_reason(error),
            fix=f"free some space, name another file, or set {HOME} to a folder that you may write to",
        ) from error
    finally:
        with contextlib.suppress(OSError):
            draft.unlink(missing_ok=True)
    return target


def slug(name: str) -> str:
    """A file name for `name`: small ASCII letters, digits, dots and hyphens, never a path.

    A name that loses more than case and spaces gets six hex digits of its hash, so that two names that
    look alike without their lost letters keep two files.
    """
    plain = name.strip().lower().replace(" ", "-")
    ascii_only = unicodedata.normalize("NFKD", plain).encode("ascii", "ignore").decode("ascii")
    kept = re.sub(r"[^a-z0-9._-]+", "-", ascii_only).strip("-._")[:_SLUG_CHARACTERS].rstrip("-._")
    if kept.split(".")[0] in _RESERVED:
        kept = f"{_APP}-{kept}"
    if not kept:
        kept = "profile"
    if kept == plain:
        return kept
    return f"{kept}-{hashlib.sha256(name.encode('utf-8', 'surrogatepass')).hexdigest()[:6]}"


def _profiles() -> Path:
    home = os.environ.get(HOME)
    base = Path(home).expanduser() if home else platformdirs.user_config_path(_APP, appauthor=False)
    return base / "profiles"


def _saved() -> list[Path]:
    return sorted(path for path in _profiles().glob("*.yaml") if path.is_file())


def _write(path: Path, data: bytes) -> None:
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _keep_mode(target: Path, draft: Path) -> None:
    if target.exists():
        draft.chmod(target.stat().st_mode & 0o777)


def _sync_directory(directory: Path) -> None:
    """Makes the new name last through a power cut; not every file system can."""
    with contextlib.suppress(OSError):
        handle = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _reason(error: OSError) -> str:
    return (error.strerror or str(error)).lower()
