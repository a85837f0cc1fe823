"""No run is lost: killed, preempted, damaged, out of room or out of time."""

import faults
import pytest
import torture


@pytest.fixture(scope='module')
def place(tmp_path_factory):
  return faults.Place(tmp_path_factory.mktemp('faults'))


@pytest.mark.slow
@pytest.mark.parametrize('name', faults.FAULTS)
def test_nothing_is_lost_by(name, place):
  """What each fault must come to is asserted in faults.py, for torture.py, too.

  Here: that it ran the command, which ended well or said what is wrong, and
  that the runs which every fault starts from are as they were.
  """
  before = len(place.statuses)
  try:
    faults.FAULTS[name](place)
  except faults.CannotBeMade as why:
    pytest.skip(f'{why}')
  told = place.statuses[before:]
  assert told and set(told) <= {0, 2}
  assert torture.steps(place.half) == [8, 9]
  assert torture.same(place.whole, place.whole) == ''


@pytest.mark.slow
def test_a_run_that_is_killed_anywhere_ends_alike(tmp_path):
  figures = torture.torture(tmp_path, kills=3, terms=1)
  assert sum(figures.moments.values()) == 3
  assert len(figures.saved) == 1
  assert figures.lost == []
