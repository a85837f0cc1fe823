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
  try:
    faults.FAULTS[name](place)
  except faults.CannotBeMade as why:
    pytest.skip(f'{why}')


@pytest.mark.slow
def test_a_run_that_is_killed_anywhere_ends_alike(tmp_path):
  figures = torture.torture(tmp_path, kills=3, terms=1)
  assert sum(figures.moments.values()) == 3
  assert len(figures.saved) == 1
  assert figures.lost == []
