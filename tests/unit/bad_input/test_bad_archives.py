"""Archives that are damaged, incomplete or hostile: nothing is unpacked beside the place for it, nothing is packed, and
the archive stays."""

import io
import pickle
import shutil
import tarfile

import pytest

from .conftest import BIRDS, birds, contents


def packed(path, *extra, leave_out=""):
    """The birds as a tar, with members of a person's own: (name, bytes, and what else is said of it)."""
    root = birds(path.parent / "tree" / "birds")
    if leave_out:
        shutil.rmtree(root / leave_out)
    with tarfile.open(path, "w") as tar:
        tar.add(root, "birds")
        for name, data, more in extra:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            for key, value in more.items():
                setattr(member, key, value)
            tar.addfile(member, io.BytesIO(data))
    shutil.rmtree(path.parent / "tree")


def halved(path):
    packed(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def member(name, data=b"x", **more):
    return lambda path: packed(path, (name, data, more))


REFUSED = {  # what is wrong -> how it is made, exit code, words of the screen
    "cut in half": (halved, 65, ["A-102", "damaged or ended early", "at byte", "fetch the archive anew"]),
    "no archive": (lambda path: path.write_text("<html>"), 65, ["A-101", "not an archive"]),
    "a way up": (member("../x.png"), 77, ["A-103", "unsafe name '../x.png'"]),
    "an absolute path": (member("/tmp/x.png"), 77, ["A-103", "an absolute path"]),
    "a drive letter": (member("C:\\x.png"), 77, ["A-103"]),
    "a symbolic link": (
        member("birds/l", b"", type=tarfile.SYMTYPE, linkname="/etc"),
        77,
        ["A-104", "links are not accepted"],
    ),
    "a hard link": (
        member("birds/l", b"", type=tarfile.LNKTYPE, linkname="birds/train/owl/0.png"),
        77,
        ["A-104", "a hard link"],
    ),
    "a device": (member("birds/d", b"", type=tarfile.CHRTYPE), 77, ["A-105", "a device"]),
    "a pipe": (member("birds/p", b"", type=tarfile.FIFOTYPE), 77, ["A-105"]),
    "the same name twice": (member("birds/train/owl/0.png"), 65, ["A-107", "the second would overwrite the first"]),
    "a name that differs by case": (member("birds/train/OWL/0.png"), 65, ["A-107", "case does not count"]),
    "a class is missing": (lambda path: packed(path, leave_out="test/owl"), 65, ["D-107", "owl: only in train/"]),
}


@pytest.mark.parametrize("what", REFUSED)
def test_refused(what, sandglass, tmp_path):
    make, exit, words = REFUSED[what]
    make(tmp_path / "birds.tar")
    before = contents(tmp_path)
    code, told = sandglass("data", settings=BIRDS.replace("../birds", "../birds.tar"))
    assert code == exit and all(word in told for word in words), told
    after = {path: data for path, data in contents(tmp_path).items() if (tmp_path / "place") not in path.parents}
    assert after == before, "nothing beside the place has changed"
    assert not [path for path in (tmp_path / "place").rglob("*") if path.suffix in (".npy", ".png")]


def test_modes_of_files_do_not_matter(sandglass, tmp_path):
    packed(tmp_path / "birds.tar", ("birds/train/owl/s.txt", b"x", {"mode": 0o6777}))
    assert sandglass("data", settings=BIRDS.replace("../birds", "../birds.tar"))[0] == 0


def test_another_sum_sets_the_archive_of_a_download_aside_and_leaves_a_users_own(sandglass, tmp_path):
    packed(tmp_path / "birds.tar")
    settings = BIRDS.replace("../birds", f"../birds.tar, sha256: {'ab' * 32}")
    code, told = sandglass("data", settings=settings)
    assert code == 65 and "ab" * 32 in told and (tmp_path / "birds.tar").exists(), told


def test_a_pickle_that_would_run_is_not_run(sandglass, tmp_path):
    class Hostile:
        def __reduce__(self):
            return exec, (f"open({str(tmp_path / 'canary')!r}, 'w')",)

    batches = tmp_path / "birds" / "cifar-10-batches-py"
    batches.mkdir(parents=True)
    for name in ("batches.meta", *(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
        (batches / name).write_bytes(pickle.dumps(Hostile()))
    code, told = sandglass("data", settings=BIRDS.replace("format: folder", "format: cifar10"))
    assert code == 77 and "D-112" in told and not (tmp_path / "canary").exists(), told
