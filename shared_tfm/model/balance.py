"""Losses that keep experts in use, taken over all visits of a router.

A router that several layers share is balanced by what it does in all of them
together. Letters besides those of the package: M experts.
"""

import jax
import jax.numpy as jnp

from shared_tfm.config import Model
from shared_tfm.config.shapes import components
from shared_tfm.sharing import resolve

Losses = dict[str, jax.Array]


def losses(
  model: Model,
  rows: dict[str, jax.Array],
  observed: dict[str, jax.Array],
  mask_BL: jax.Array | None,
) -> Losses:
  """The loss of the attention's routers, and of the feed-forward network's.

  Style moeut: the negative entropy of how often experts are used, averaged over
  a sequence's tokens and a router's visits (MoEUT, 2405.16039, sections 2.1 and
  2.3; per sequence, as in its released code). Style sut: the negative mutual
  information of tokens and experts, likewise over visits, and over the whole
  batch (SUT, 2310.07096, "mutual information maximisation"; its released code
  adds the entropy of usage where the definition subtracts it). Both are summed
  over stored routers, and averaged over the heads that one router serves.

  Args:
    model: the network, one stack of it.
    rows: for every component the rows that visits read, (visits, levels).
    observed: what layers observed, by name: a leading axis of visits. A visit
      that was not run has zeros.
    mask_BL: False at padding; None for no padding.

  Returns:
    Scalars, multiplied by their coefficients; empty where nothing was routed.
  """
  found: Losses = {}
  for name, usage_NBHM in observed.items():
    router, _, what = name.rpartition('.')
    if what != 'usage':
      continue
    part = router.partition('.')[0]
    attends = part == 'attention'
    experts = model.experts
    weight = experts.attention_balance if attends else experts.ff_balance
    ran_N = (jnp.sum(usage_NBHM, axis=(1, 2, 3)) > 0).astype(jnp.float32)
    mean_UN = _mean_by_owner(*_owners(model, rows, router), ran_N)
    usage_UBHM = jnp.einsum('un,nbhm->ubhm', mean_UN, usage_NBHM)
    if experts.style == 'moeut':
      loss = negative_entropy(usage_UBHM)
    else:
      entropy_UBH = jnp.einsum(
        'un,nbh->ubh', mean_UN, observed[f'{router}.entropy']
      )
      share_B = _shares(mask_BL, usage_UBHM.shape[1])
      loss = negative_information(usage_UBHM, entropy_UBH, share_B)
    key = f'{part}_balance'
    found[key] = found.get(key, jnp.zeros(())) + weight * loss
  return found


def negative_entropy(usage_UBHM: jax.Array) -> jax.Array:
  """Of every distribution over M: the mean over B and H, the sum over U."""
  return jnp.sum(jnp.mean(_plogp(usage_UBHM), axis=(1, 2)))


def negative_information(
  usage_UBHM: jax.Array, entropy_UBH: jax.Array, share_B: jax.Array
) -> jax.Array:
  """H(expert | token) - H(expert): the mean over H, the sum over U.

  Args:
    usage_UBHM: the mean probability of each expert in a sequence.
    entropy_UBH: the mean of the tokens' own entropies.
    share_B: of all tokens, those in each sequence.
  """
  usage_UHM = jnp.einsum('ubhm,b->uhm', usage_UBHM, share_B)
  entropy_UH = jnp.einsum('ubh,b->uh', entropy_UBH, share_B)
  return jnp.sum(jnp.mean(entropy_UH + _plogp(usage_UHM), axis=1))


def _plogp(p: jax.Array) -> jax.Array:
  """The sum of p log p over the last axis; 0 log 0 is 0, with gradient 0."""
  positive = p > 0
  return jnp.sum(
    jnp.where(positive, p * jnp.log(jnp.where(positive, p, 1)), 0), axis=-1
  )


def _shares(mask_BL: jax.Array | None, sequences: int) -> jax.Array:
  if mask_BL is None:
    return jnp.full(sequences, 1 / sequences)
  return jnp.sum(mask_BL, axis=1) / jnp.maximum(jnp.sum(mask_BL), 1)


def _mean_by_owner(
  owner_N: jax.Array, stored: int, ran_N: jax.Array
) -> jax.Array:
  """A matrix that averages what visits observed, for each stored row."""
  reads_UN = jnp.arange(stored)[:, None] == owner_N[None]
  reads_UN = reads_UN * ran_N[None]
  return reads_UN / jnp.maximum(jnp.sum(reads_UN, axis=1, keepdims=True), 1)


def _owners(
  model: Model, rows: dict[str, jax.Array], router: str
) -> tuple[jax.Array, int]:
  """The row of a router that each visit reads, and how many rows there are.

  Of a sum, those of its first level.
  """
  found = components(model)
  name = resolve(found, f'{router}.kernel')
  if found[name].spec.same_as:
    return _owners(model, rows, found[name].spec.same_as)
  return rows[name][:, 0], found[name].rows(0)
