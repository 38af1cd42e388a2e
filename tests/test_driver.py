"""pytest tests/test_driver.py"""

import pytest

from polypersona.driver import other_kinds
from polypersona.events import EventLog
from polypersona.storage import RunDirectory


@pytest.mark.parametrize(
    ("earlier", "now", "told"),
    [
        ([], ["T4"], []),
        ([["T4"]], ["T4"], []),
        ([["T4"]], ["H100"], ["T4"]),
        ([["T4"], ["H100", "T4"]], ["T4"], []),
        ([["H100", "T4"]], ["CPU"], ["H100", "T4"]),
    ],
)
def test_a_session_on_another_kind_of_place_than_before_is_told(tmp_path, earlier, now, told):
    run = RunDirectory.at(tmp_path / "run")
    log = EventLog(run, "driver")
    log.write("start", session="of an older version")
    for pools in earlier:
        log.write("start", session="x", pools=pools)
    assert other_kinds(run, now) == told
