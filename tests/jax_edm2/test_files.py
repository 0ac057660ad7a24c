"""Outputs appear whole or not at all, whenever a process is killed, and what it leaves is removed by the next."""

import os
import shutil

import pytest

from jax_edm2 import files, read_record
from jax_edm2.files import whole_or_nothing
from tests.support import children
from tests.support.children import kill_at_random
from tests.support.killed import conversions, names


def test_conversion_killed_at_any_moment(tmp_path):
    """SIGKILL while an output is replaced: it is the old one or the new one; `make kills` does more."""
    seen, midst, left = conversions(tmp_path, 25)
    assert midst > 5
    assert left > 0
    assert min(seen.values()) > 0, seen
    read_record(tmp_path / "out" / "x.safetensors")


@pytest.mark.parametrize("exchange", [True, False], ids=["exchanged", "renamed twice"])
def test_a_folder_replaced_by_a_killed_process(tmp_path, exchange):
    target = tmp_path / "x.orbax"
    for i in range(60):
        children.write_folder(str(target), "old")
        assert names(tmp_path) == ["x.orbax"]
        kill_at_random(children.write_folder, (str(target), "new", exchange), 0.03, i)
        if not exchange:
            files.scratch(target)  # puts the old one back, where the process was killed between its two renamings
        assert len(names(target)) == 20
        assert {path.read_text() for path in target.iterdir()} in ({"old"}, {"new"})


def test_killed_between_two_renamings(tmp_path):
    """Where folders cannot be exchanged in one step the old one is found beside, and put back by the next run."""
    target = tmp_path / "x.orbax"
    children.write_folder(str(target), "old")
    process = children.FORKS.Process(target=int)
    process.start()
    process.join()
    retired = files.scratch(target).name.replace(str(os.getpid()), str(process.pid)).replace(".tmp", ".old")
    target.rename(tmp_path / retired)
    with pytest.raises(RuntimeError, match="in the midst"), whole_or_nothing(target, overwrite=True):
        raise RuntimeError("in the midst")
    assert {path.read_text() for path in target.iterdir()} == {"old"}
    assert names(tmp_path) == ["x.orbax"]


def test_what_others_are_writing_is_left_alone(tmp_path):
    target = tmp_path / "x[1].txt"
    alive = files.scratch(target).with_name(files.scratch(target).name.replace(str(os.getpid()), str(os.getppid())))
    elsewhere = tmp_path / ".x[1].txt.another-host-1.tmp"
    for path in (alive, elsewhere):
        path.write_text("half")
    with whole_or_nothing(target, overwrite=False) as temporary:
        temporary.write_text("whole")
        shutil.copy(temporary, f"{temporary}.made-by-a-library")
    assert names(tmp_path) == sorted([alive.name, elsewhere.name, target.name])


def test_a_folder_is_not_replaced_by_a_file(tmp_path):
    """It would be lost with everything in it."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "kept").write_text("precious")
    with pytest.raises(IsADirectoryError), whole_or_nothing(tmp_path / "out", overwrite=True) as temporary:
        temporary.write_text("new")
    assert (tmp_path / "out" / "kept").read_text() == "precious"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
