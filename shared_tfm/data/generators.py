"""Algorithmic tasks: examples that a rule makes, in plain text.

    reverse, difficulty 5    31415=51413

A task writes a prompt and the answer to it; a model is trained and scored on
the answer alone. All examples of one task and difficulty are equally long, and
a stream may mix difficulties.

To add a task, write one function here. It gets a random generator and the
difficulty, an integer of at least 1, and returns prompt and answer.
"""

from collections.abc import Callable

import numpy as np

Task = Callable[[np.random.Generator, int], tuple[str, str]]

TASKS: dict[str, Task] = {}  # what data.source may name
MODULUS = 7
ALPHABET = 'abcd'


def task(rule: Task) -> Task:
  """Registers a task under its function's name, less the underscore."""
  TASKS[rule.__name__.lstrip('_')] = rule
  return rule


@task
def _copy(rng: np.random.Generator, difficulty: int) -> tuple[str, str]:
  """Digits, and the same again; difficulty counts them."""
  digits = _text(rng.integers(0, 10, difficulty))
  return f'{digits}=', digits


@task
def _reverse(rng: np.random.Generator, difficulty: int) -> tuple[str, str]:
  """Digits, and the same backwards; difficulty counts them."""
  digits = _text(rng.integers(0, 10, difficulty))
  return f'{digits}=', digits[::-1]


@task
def _addition(rng: np.random.Generator, difficulty: int) -> tuple[str, str]:
  """The sum of two numbers of `difficulty` digits; zeros keep the places."""
  return _sum(rng.integers(0, 10, (2, difficulty)))


@task
def _reverse_addition(
  rng: np.random.Generator, difficulty: int
) -> tuple[str, str]:
  """`addition`, with all numbers written from their last digit on.

  So a digit of the sum needs no more than two digits and what was carried,
  which is how Tensor2Tensor writes it for the Universal Transformer
  (1807.03819, Table 4).
  """
  prompt, answer = _sum(rng.integers(0, 10, (2, difficulty)))
  return f'{prompt[-2::-1]}=', answer[::-1]


@task
def _n_ary_addition(
  rng: np.random.Generator, difficulty: int
) -> tuple[str, str]:
  """The sum of `difficulty` numbers of three digits each (2502.17416, 2.1)."""
  return _sum(rng.integers(0, 10, (difficulty, 3)))


@task
def _p_hop(rng: np.random.Generator, difficulty: int) -> tuple[str, str]:
  """The letter that `difficulty` hops of induction lead to.

  One hop goes from a letter to where it stood last before, and there to its
  successor: find(i) is the largest j <= i with w[j-1] == w[i] (Sanford et al.,
  2402.09268; Saunshi et al., 2502.17416). It starts at the last letter. No
  letter follows itself, for there a hop would stay where it is. A sequence in
  which the hops run out is drawn again.
  """
  length = 8 * (difficulty + 1)  # a hop goes 3 back on average
  while True:
    steps = rng.integers(1, len(ALPHABET), length)
    word = ''.join(ALPHABET[i] for i in np.cumsum(steps) % len(ALPHABET))
    at = length - 1
    for _ in range(difficulty):
      at = word.rfind(word[at], 0, at) + 1
      if not at:
        break
    else:
      return f'{word}=', word[at]


@task
def _modular(rng: np.random.Generator, difficulty: int) -> tuple[str, str]:
  """The value modulo 7 of a sum of products; difficulty counts operands."""
  operands = rng.integers(0, MODULUS, difficulty).tolist()
  signs = ''.join('+-*'[i] for i in rng.integers(0, 3, difficulty - 1))
  total, product = 0, operands[0]
  for sign, operand in zip(signs, operands[1:], strict=True):
    if sign == '*':
      product = product * operand % MODULUS
    else:
      total, product = total + product, operand if sign == '+' else -operand
  written = ''.join(
    f'{sign}{operand}'
    for sign, operand in zip(' ' + signs, operands, strict=True)
  )
  return f'{written.strip()}=', str((total + product) % MODULUS)


def _text(digits: np.ndarray) -> str:
  return ''.join(map(str, digits))


def _sum(numbers: np.ndarray) -> tuple[str, str]:
  """Numbers, each a row of digits, and their sum as wide as it can be."""
  written = [_text(digits) for digits in numbers]
  width = len(str(len(written) * (10 ** numbers.shape[1] - 1)))
  return f'{"+".join(written)}=', f'{sum(map(int, written)):0{width}d}'


def example(
  name: str,
  difficulty: int,
  seed: int,
  split: int,
  index: int,
  easiest: int = 0,
) -> tuple[str, str]:
  """One example of a task: a pure function of its arguments.

  Args:
    name: a key of TASKS.
    difficulty: at least 1; its unit is the task's.
    seed: the stream of examples, at least 0.
    split: 0 for training, 1 for validation; their streams are independent, but
      an easy task has few different examples and both will meet the same.
    index: the place in the stream, at least 0.
    easiest: where it is not 0, a difficulty is drawn from this one on, up to
      `difficulty`, each being as likely.

  Returns:
    The prompt, and the answer to it.
  """
  rng = np.random.default_rng((seed, split, index))
  if easiest:
    difficulty = int(rng.integers(easiest, difficulty + 1))
  return TASKS[name](rng, difficulty)
