"""Our models give Hugging Face's numbers. See peers.py."""

import functools

import jax
import numpy as np
import peers
import pytest

every_peer = pytest.mark.parametrize('name', peers.PEERS)


@functools.cache
def loaded(name):
  """A peer's golden file, its weights as our parameters, and our model."""
  peer, golden = peers.PEERS[name], peers.load(name)
  return golden, peers.converted(peer, golden), peers.our_run(peer.config)


@every_peer
def test_weights_fill_our_parameters(name):
  golden, params, _ = loaded(name)
  shapes = jax.tree.map(np.shape, params)
  assert shapes == peers.init_shapes(peers.PEERS[name].config)
  theirs = [a for n, a in golden.items() if n.startswith(peers.WEIGHTS)]
  ours = jax.tree.leaves(params)
  assert sum(a.size for a in ours) == sum(a.size for a in theirs)


@every_peer
def test_outputs_equal_theirs(name):
  golden, params, run = loaded(name)
  largest = peers.difference(run(params, golden), golden)
  print(f'{name}: {largest:.1e}')
  assert largest <= peers.TOLERANCE


# What follows shows that the comparison can fail.


@every_peer
def test_every_weight_is_seen(name):
  golden, params, run = loaded(name)
  leaves, structure = jax.tree.flatten_with_path(params)
  for i, (path, leaf) in enumerate(leaves):
    changed = [leaf for _, leaf in leaves]
    changed[i] = np.roll(leaf, 1, axis=-1)
    outputs = run(jax.tree.unflatten(structure, changed), golden)
    moved = peers.difference(outputs, golden)
    where = jax.tree_util.keystr(path, simple=True, separator='.')
    # A key's bias adds one number to all scores of a query, which the softmax
    # takes out again.
    unseen = where.endswith('attention.key.bias')
    assert (moved <= peers.TOLERANCE) == unseen, (where, moved)


@pytest.mark.parametrize(
  ('name', 'dropped'),
  [(name, 'mask') for name in peers.PEERS]
  + [(name, 'types') for name in ('albert', 'albert_groups', 'bert')],
)
def test_every_input_is_seen(name, dropped):
  golden, params, run = loaded(name)
  blank = np.full_like(golden[dropped], dropped == 'mask')
  outputs = run(params, golden | {dropped: blank})
  assert peers.difference(outputs, golden) > peers.TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize(
  ('name', 'wrong'),
  [
    ('albert', {'activation': 'gelu'}),
    ('albert_groups', {'norm_eps': 1e-5}),
    ('albert_groups', {'sharing': {'layer': 'cycle:2'}}),
    ('bert', {'activation': 'gelu_tanh'}),
    ('gpt2', {'activation': 'gelu'}),
    ('llama', {'activation': 'geglu'}),
    ('llama', {'norm_eps': 1e-5}),
    ('llama', {'rope_theta': 10000.0}),
  ],
)
def test_a_neighbouring_config_is_told_apart(name, wrong):
  golden, params, _ = loaded(name)
  run = peers.our_run(peers.PEERS[name].config | wrong)
  assert peers.difference(run(params, golden), golden) > peers.TOLERANCE
