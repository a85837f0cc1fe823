"""Presets whose tables change while the model trains."""

from shared_tfm.sharing.presets.registry import (
  LAYER,
  Fields,
  preset,
)


def _swe(name: str, says: str, method: str) -> None:
  def rule(num_layers: int, every: int = 100) -> Fields:
    del num_layers
    return {
      LAYER: 'all',
      'model.shared_gradient': 'mean',
      'adapt.method': method,
      'adapt.every': every,
    }

  rule.__name__, rule.__doc__ = name, says
  preset('Yang et al. 2021, 2110.03848', example=f'{name}:2')(rule)


_swe(
  'swe_f',
  'Everything, until a fixed step; every layer then goes on from a copy.',
  'unshare_at',
)
_swe(
  'swe_a',
  'Everything, until the gradients of visits correlate less than 0.5 three'
  ' times in a row, looked at every so many steps.',
  'unshare_when',
)
_swe(
  'swe_m',
  'Everything at first; each group of layers falls in two every so many steps.',
  'unshare_steps',
)


@preset(
  'Hay & Wolf 2024, 2401.12819; tamirdh/Dynamic-Layer-Tying',
  example='dynamic_layer_tying:2',
)
def dynamic_layer_tying(num_layers: int, every: int = 100) -> Fields:
  """What a small Q-network ties, layer by layer, while the model trains.

  As published, tied layers send no gradient: their owner's visit alone does.
  """
  return _tying(num_layers, every, 'owner')


@preset(
  'Hay & Wolf 2024, 2401.12819, with the gradient of every visit',
  example='dynamic_layer_tying_summed:2',
)
def dynamic_layer_tying_summed(num_layers: int, every: int = 100) -> Fields:
  """The same, tied properly: every visit trains the weights it reads."""
  return _tying(num_layers, every, 'sum')


def _tying(num_layers: int, every: int, gradient: str) -> Fields:
  del num_layers
  return {
    LAYER: 'none',
    'model.shared_gradient': gradient,
    'adapt.method': 'q_network',
    'adapt.every': every,
  }
