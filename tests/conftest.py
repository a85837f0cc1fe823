"""What every test runs under, and whatever programs it starts."""

import functools
import gc
import importlib.metadata
import os
import pathlib

HERE = pathlib.Path(__file__).parent
# Compiling is half of what the tests do: little is optimised, by the emitters
# that take least time where XLA still has them, and on the one core that a
# worker has. What is narrow is rounded wherever the program says so: XLA may
# leave that out, at one place in a loop and at another where there is none.
FLAGS = (
  '--xla_backend_optimization_level=0 --xla_allow_excess_precision=false'
  ' --xla_cpu_parallel_codegen_split_count=1'
)
if importlib.metadata.version('jaxlib') < '0.11':
  FLAGS += ' --xla_cpu_use_fusion_emitters=false'
# Programs that take long are kept. Writing every small one costs more than
# finding some of them again saves.
os.environ.update(
  {
    'XLA_FLAGS': f'{os.environ.get("XLA_FLAGS", "")} {FLAGS}',
    'JAX_COMPILATION_CACHE_DIR': str(HERE.parent / '.jax_cache'),
    'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0.5',
    'JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES': '-1',
    'JAX_NUMPY_RANK_PROMOTION': 'raise',
  }
)

# Tracing makes objects by the million, hardly any of them garbage: a fifteenth
# of the tests' time went into looking.
gc.set_threshold(200_000, 20, 100)

import jax  # noqa: E402
import pytest  # noqa: E402

from shared_tfm.train import programs  # noqa: E402


@pytest.fixture(scope='module', autouse=True)
def programs_are_dropped():
  """A process may map memory 65,530 times, and a program takes several.

  Until then the programs of several configs are kept, not of one as in a run.
  """
  made = programs._programs.__wrapped__
  with pytest.MonkeyPatch.context() as patch:
    kept = functools.lru_cache(maxsize=8)(made)
    patch.setattr(programs, '_programs', kept)
    yield
  jax.clear_caches()


@pytest.fixture(scope='session')
def corpus() -> pathlib.Path:
  """A small real text that every checkout has: the project's own code."""
  return HERE.parent / 'shared_tfm'


def kept_from(seconds):
  """A fixture: a program is kept that takes as long to compile."""

  @pytest.fixture
  def fixture():
    name = 'jax_persistent_cache_min_compile_time_secs'
    before = getattr(jax.config, name)
    jax.config.update(name, seconds)
    yield
    jax.config.update(name, before)

  return fixture


every_program_is_kept = kept_from(0)
no_program_is_kept = kept_from(60)  # random ones would only fill the folder
