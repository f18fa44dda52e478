from __future__ import annotations

import os
from pathlib import Path

import pytest

from autotune.errors import EnvironmentFault
from autotune.profile import store


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home of its own, and an empty working directory."""
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    monkeypatch.setenv("AUTOTUNE_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def test_autotune_home_holds_profiles_and_studies(home: Path):
    """With AUTOTUNE_HOME set, both live below it."""
    assert store.default_profile_path("ResNet 50") == home / "profiles" / "resnet-50.yaml"
    assert store.study_path("ResNet 50") == home / "studies" / "resnet-50.journal"


@pytest.mark.skipif(os.name == "nt" or os.uname().sysname == "Darwin", reason="XDG is for Linux")
def test_without_it_the_platforms_directories_are_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Profiles are configuration, studies are data: each where XDG says."""
    monkeypatch.delenv("AUTOTUNE_HOME", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    assert store.default_profile_path("a") == tmp_path / "config" / "autotune" / "profiles" / "a.yaml"
    assert store.study_path("a") == tmp_path / "data" / "autotune" / "studies" / "a.journal"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("mnist", "mnist"),
        (" ResNet 50 ", "resnet-50"),
        ("../../etc/passwd", "etc-passwd-32e4d2"),
        ("", "profile-e3b0c4"),
        ("..", "profile-5ec1f7"),
        ("con", "autotune-con-51e6bc"),
    ],
)
def test_a_slug_is_a_plain_file_name(name: str, expected: str):
    """Whatever a workload is called, its file stays in its folder and can be made on any system."""
    found = store.slug(name)
    assert found.rpartition("-")[0] == expected.rpartition("-")[0]
    assert found == expected or "-" in found


def test_names_that_lose_letters_keep_files_of_their_own():
    """Two names that differ only in what a slug drops do not overwrite each other."""
    assert (
        len({store.slug(name) for name in ("a/b", "a:b", "a-b", "猫", "犬", "é", "e", "x" * 80, "x" * 90)})
        == 9
    )


def test_saving_makes_folders_and_replaces_whole_files(home: Path):
    """A file is written as it is, twice, and no draft stays beside it."""
    path = home / "profiles" / "a.yaml"
    assert store.save_text(path, "one\n") == path
    store.save_text(path, "zwei ü\n")
    assert store.read_bytes(path) == "zwei ü\n".encode()
    assert [p.name for p in path.parent.iterdir()] == ["a.yaml"]


def test_a_failed_write_leaves_the_old_file(home: Path, monkeypatch: pytest.MonkeyPatch):
    """A disk that fills up while writing costs nothing that was there."""
    path = store.save_text(home / "a.yaml", "old")

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(EnvironmentFault) as caught:
        store.save_text(path, "new")
    assert "no space left on device" in caught.value.why
    assert caught.value.fix
    assert path.read_text() == "old"
    assert [p.name for p in home.iterdir()] == ["a.yaml"]


def test_a_folder_that_is_a_file_is_a_clear_error(home: Path):
    """A path that cannot be made says why, as one of our errors."""
    store.save_text(home, "a file")
    with pytest.raises(EnvironmentFault, match="cannot be written"):
        store.save_text(home / "profiles" / "a.yaml", "text")
    with pytest.raises(EnvironmentFault, match="cannot be read"):
        store.read_bytes(home / "profiles" / "a.yaml")


@pytest.mark.skipif(os.name == "nt", reason="needs POSIX modes and links")
def test_links_and_modes_survive_a_save(home: Path, tmp_path: Path):
    """A linked configuration file stays a link, and a private file private."""
    real = store.save_text(tmp_path / "dotfiles" / "a.yaml", "old")
    real.chmod(0o600)
    link = tmp_path / "work" / "autotune.yaml"
    link.symlink_to(real)
    store.save_text(link, "new")
    assert link.is_symlink()
    assert real.read_text() == "new"
    assert real.stat().st_mode & 0o777 == 0o600


def test_the_local_profile_is_found_first_then_the_newest(home: Path):
    """`autotune.yaml` in the working directory wins; without it the profile saved last."""
    with pytest.raises(EnvironmentFault, match="there is no profile yet"):
        store.find_profile()
    old, new = (store.save_text(store.default_profile_path(name), "") for name in ("b", "a"))
    os.utime(old, (1, 1))
    assert store.find_profile() == new
    store.save_text(Path("autotune.yaml"), "")
    assert store.find_profile() == Path("autotune.yaml")


def test_a_huge_file_is_not_read_into_memory(home: Path):
    """Reading stops one byte after the largest size a profile may have."""
    path = store.save_text(home / "big.yaml", "x" * (2**20 + 5000))
    assert len(store.read_bytes(path)) == 2**20 + 1
