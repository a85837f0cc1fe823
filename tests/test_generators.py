"""Every task's answers, against a plain second way to find them."""

import itertools
import re

import numpy as np
import pytest

from shared_tfm import config, tasks
from shared_tfm.data import generators
from shared_tfm.data.generators import example
from shared_tfm.errors import BadInput


def hop(word, times):
  """The definition, by trying every j (2402.09268): None where undefined."""
  at = len(word) - 1
  for _ in range(times):
    found = [j for j in range(1, at + 1) if word[j - 1] == word[at]]
    if not found:
      return None
    at = max(found)
  return word[at]


SOLVERS = {
  'copy': lambda text, difficulty: text,
  'reverse': lambda text, difficulty: ''.join(reversed(text)),
  'addition': lambda text, difficulty: (
    f'{sum(map(int, text.split("+"))):0{difficulty + 1}}'
  ),
  'reverse_addition': lambda text, difficulty: (
    f'{sum(int(n[::-1]) for n in text.split("+")):0{difficulty + 1}}'[::-1]
  ),
  'n_ary_addition': lambda text, difficulty: str(
    sum(map(int, text.split('+')))
  ).zfill(len(str(999 * difficulty))),
  'p_hop': hop,
  'modular': lambda text, difficulty: str(eval(text) % 7),
}

every_task = pytest.mark.parametrize('name', generators.TASKS)


def test_every_task_has_a_second_solver():
  assert set(SOLVERS) == set(generators.TASKS)


@every_task
@pytest.mark.parametrize('difficulty', [1, 2, 3, 8, 20])
def test_answers_are_right_and_equally_long(name, difficulty):
  made = [example(name, difficulty, 0, 0, i) for i in range(200)]
  for prompt, answer in made:
    assert prompt.endswith('=')
    assert answer == SOLVERS[name](prompt[:-1], difficulty)
  assert len({(len(prompt), len(answer)) for prompt, answer in made}) == 1
  assert len(set(made)) > (3 if difficulty == 1 else 30)


@pytest.mark.parametrize(
  ('name', 'form'),
  [
    ('copy', r'\d{5}=\d{5}'),
    ('reverse', r'\d{5}=\d{5}'),
    ('addition', r'\d{5}\+\d{5}=[01]\d{5}'),
    ('reverse_addition', r'\d{5}\+\d{5}=\d{5}[01]'),
    ('n_ary_addition', r'(\d{3}\+){4}\d{3}=[0-4]\d{3}'),
    ('p_hop', r'[abcd]{48}=[abcd]'),
    ('modular', r'([0-6][+*-]){4}[0-6]=[0-6]'),
  ],
)
def test_written_form(name, form):
  for i in range(20):
    assert re.fullmatch(form, ''.join(example(name, 5, 0, 0, i)))


def test_hops_move_and_lead_to_every_letter():
  made = [example('p_hop', 4, 0, 0, i) for i in range(2000)]
  for prompt, _ in made:
    assert all(a != b for a, b in itertools.pairwise(prompt))
  share = {c: sum(a == c for _, a in made) / 2000 for c in 'abcd'}
  assert all(0.2 < s < 0.3 for s in share.values()), share
  fewer = sum(hop(prompt[:-1], 3) == answer for prompt, answer in made)
  assert fewer == 0  # the fourth hop never stays


@every_task
def test_an_example_is_a_function_of_its_place(name):
  first = [example(name, 8, 3, 0, i) for i in range(50)]
  for i in reversed(range(50)):
    assert example(name, 8, 3, 0, i) == first[i]
  for seed, split in [(4, 0), (3, 1)]:
    other = {example(name, 8, seed, split, i) for i in range(50)}
    assert not other & set(first)


@every_task
def test_difficulties_can_be_mixed(name):
  made = [example(name, 5, 0, 0, i, easiest=2) for i in range(200)]
  alone = {d: len(''.join(example(name, d, 0, 0, 0))) for d in (2, 3, 4, 5)}
  lengths = [len(prompt + answer) for prompt, answer in made]
  assert {lengths.count(n) for n in alone.values()} <= set(range(30, 71))
  assert set(lengths) == set(alone.values())
  for prompt, answer in made:
    difficulty = next(d for d, n in alone.items() if n == len(prompt + answer))
    assert answer == SOLVERS[name](prompt[:-1], difficulty)


def made(tmp_path, **fields):
  fields = {'source': 'addition', 'difficulty': 3, 'seq_len': 16} | fields
  return tasks.prepare(config.cross({'data': fields}), tmp_path)


@every_task
def test_only_the_answer_and_its_end_count(tmp_path, name):
  ready = made(tmp_path, source=name, seq_len=64)
  eos = ready.tokenizer.eos
  batch = next(ready.train(7))
  assert batch['inputs'].shape == (16, 64)
  for inputs, targets, weights in zip(*batch.values(), strict=True):
    np.testing.assert_array_equal(inputs[1:], targets[:-1])
    text = ready.tokenizer.decode(inputs)
    prompt, answer = text[: text.index('=') + 1], text[text.index('=') + 1 :]
    assert answer == SOLVERS[name](prompt[:-1], 3)
    counted = targets[weights == 1].tolist()
    assert counted == [*answer.encode(), eos]
    assert set(weights.tolist()) == {0, 1}
    assert set(targets[len(text) - 1 :].tolist()) == {eos}


def test_a_batch_of_mixed_lengths(tmp_path):
  batch = next(made(tmp_path, easiest=1).train(0))  # addition, to 3 digits
  counted = set(batch['weights'].sum(axis=1).tolist())
  assert counted == {3, 4, 5}  # one digit more than the numbers, and eos


def test_an_example_that_just_fits(tmp_path):
  batch = next(made(tmp_path, seq_len=12).train(0))  # '123+456=' '0579'
  assert batch['weights'].sum(axis=1).tolist() == [5] * 16
  assert (batch['targets'][:, -1] == 256).all()


def test_splits_and_seeds_are_streams_of_their_own(tmp_path):
  ready = made(tmp_path, difficulty=8, seq_len=64)
  decode = ready.tokenizer.decode

  def first(split, seed):
    stream = ready.elements(split, seed)
    return {decode(stream[i]['inputs']) for i in range(50)}

  streams = [first('train', 0), first('train', 1), first('validation', 0)]
  assert len(set.union(*streams)) == 150
  held_out = [decode(row) for b in ready.validation(0) for row in b['inputs']]
  assert len(set(held_out)) == 1024
  assert streams[2] < set(held_out)


@pytest.mark.parametrize(
  ('model', 'fields', 'message'),
  [
    ({}, {'seq_len': 11}, r'seq_len 11 is too short for addition at .* 12'),
    ({}, {'easiest': 4}, r'easiest must be at most data.difficulty 3, got 4'),
    ({}, {'difficulty': 10**9}, r'difficulty 1000000000: it takes at least'),
    ({'family': 'encoder'}, {}, r"addition needs model.family 'decoder'"),
    ({}, {'tokenizer': 'bpe'}, r"addition needs data.tokenizer 'bytes'"),
    ({'vocab_size': 257}, {}, r'vocab_size must be at least 258 .* got 257'),
    ({}, {'source': 'additon'}, r"source 'additon'; did you mean 'addition'"),
  ],
)
def test_bad_input(tmp_path, model, fields, message):
  fields = {'source': 'addition', 'difficulty': 3, 'seq_len': 16} | fields
  with pytest.raises(BadInput, match=message):
    tasks.prepare(config.cross({'model': model, 'data': fields}), tmp_path)
