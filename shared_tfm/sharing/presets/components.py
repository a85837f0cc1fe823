"""Presets that share one component of a layer."""

from shared_tfm.sharing.presets.registry import (
  FEED_FORWARD,
  Fields,
  preset,
)


@preset('Thawakar et al. 2024, 2402.16840; mbzuai-oryx/MobiLlama')
def mobillama(num_layers: int) -> Fields:
  """One feed-forward network for all layers; attention and norms are own."""
  del num_layers
  return {FEED_FORWARD: 'all'}


def _wide_ffn(name: str, says: str, given: Fields) -> None:
  def rule(num_layers: int) -> Fields:
    del num_layers
    return {'model.family': 'encoder_decoder', **given}

  rule.__name__, rule.__doc__ = name, says
  preset('Pires et al. 2023, 2309.01826', layers=6)(rule)


_wide_ffn(
  'one_wide_ffn',
  'One feed-forward network for the encoder, none in the decoder.',
  {FEED_FORWARD: 'all', 'model.d_ff_decoder': -1},
)
_wide_ffn(
  'one_wide_ffn_shared_enc',
  "One feed-forward network for the encoder; the decoder's are own.",
  {FEED_FORWARD: 'all', 'model.sharing_decoder.feed_forward': 'none'},
)
_wide_ffn(
  'one_wide_ffn_shared_dec',
  "One feed-forward network for the decoder; the encoder's are own.",
  {'model.sharing_decoder.feed_forward': 'all'},
)
_wide_ffn(
  'one_wide_ffn_shared_both',
  'One feed-forward network for the encoder and one for the decoder.',
  {FEED_FORWARD: 'all'},
)
_wide_ffn(
  'one_wide_ffn_shared_enc_dec',
  'One feed-forward network for encoder and decoder together.',
  {FEED_FORWARD: 'all', 'model.sharing.across': 'feed_forward'},
)
_wide_ffn(
  'one_wide_ffn_no_enc',
  'Nothing; an encoder without feed-forward networks.',
  {'model.d_ff_encoder': -1},
)
_wide_ffn(
  'one_wide_ffn_no_dec',
  'Nothing; a decoder without feed-forward networks.',
  {'model.d_ff_decoder': -1},
)
_wide_ffn(
  'one_wide_ffn_no_enc_no_dec',
  'Nothing; no feed-forward networks at all.',
  {'model.d_ff_encoder': -1, 'model.d_ff_decoder': -1},
)
