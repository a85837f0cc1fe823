"""The notebook for Colab: it runs, and it is the script beside it."""

import os

import jupytext
import nbclient
import nbformat
import pytest
from pages import TOP

PATH = TOP / 'notebooks' / 'compare_sharing.ipynb'


@pytest.fixture
def notebook():
  return nbformat.read(PATH, as_version=4)


def test_it_is_the_script(notebook):
  """After a change of either: jupytext --sync notebooks/*.ipynb."""
  script = jupytext.read(PATH.with_suffix('.py'))
  assert [(cell.cell_type, cell.source) for cell in notebook.cells] == [
    (cell.cell_type, cell.source) for cell in script.cells
  ]


def test_its_outputs_are_cleared(notebook):
  for cell in notebook.cells:
    if cell.cell_type == 'code':
      assert cell.outputs == [] and cell.execution_count is None


@pytest.mark.slow
def test_it_runs(notebook, tmp_path, monkeypatch):
  monkeypatch.setenv('SHARED_TFM_SMALL', '1')
  monkeypatch.setenv('PYTHONPATH', f'{TOP}:{os.environ.get("PYTHONPATH", "")}')
  nbclient.NotebookClient(
    notebook,
    timeout=300,
    kernel_name='python3',
    resources={'metadata': {'path': str(tmp_path)}},
  ).execute()
  outputs = [
    output
    for cell in notebook.cells
    if cell.cell_type == 'code'
    for output in cell.outputs
  ]
  pictures = [o for o in outputs if 'image/png' in o.get('data', {})]
  assert len(pictures) == 4  # tables, two plots, and tables of one's own
  said = ''.join(o.text for o in outputs if o.output_type == 'stream')
  assert 'zigzag:3' in said and 'def main(' in said
  tables = [
    o.data['text/markdown']
    for o in outputs
    if 'text/markdown' in o.get('data', {})
  ]
  assert len(tables) == 2 and 'attention=all' in tables[0]
  assert (tmp_path / 'runs/notebook/first/mine/report.html').is_file()
