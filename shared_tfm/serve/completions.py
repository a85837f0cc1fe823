"""OpenAI's completions, as JSON: what is asked, and what is answered."""

import dataclasses
import json
import secrets
from collections.abc import Callable, Iterable
from typing import Any, NoReturn

import numpy as np

from shared_tfm.errors import BadInput, unknown
from shared_tfm.infer.batching import Request
from shared_tfm.infer.choice import Sampling
from shared_tfm.serve.refused import Refused

MOST_STOPS = 4, 200  # strings, and characters of each
FIELDS = (
  'model',
  'prompt',
  'max_tokens',
  'temperature',
  'top_p',
  'top_k',  # this one and the next are no fields of OpenAI's
  'repetition_penalty',
  'stop',
  'n',
  'seed',
  'stream',
  'stream_options',
  'user',
)
# What is not offered: these fields may only say so.
NOT_OFFERED: dict[str, tuple[Any, ...]] = {
  'best_of': (None, 1),
  'echo': (None, False),
  'frequency_penalty': (None, 0),
  'logit_bias': (None, {}),
  'logprobs': (None,),
  'presence_penalty': (None, 0),
  'suffix': (None,),
}


@dataclasses.dataclass(frozen=True)
class Limits:
  """What may be asked.

  Attributes:
    model: the only one.
    vocab_size: of it.
    tokens: the most to be added to a text.
    texts: the most of a request.
  """

  model: str
  vocab_size: int
  tokens: int
  texts: int


@dataclasses.dataclass(frozen=True)
class Asked:
  """A body that was understood.

  Attributes:
    requests: the texts to be written: n of the first prompt, and so on.
    prompt_tokens: of all prompts, each counted once.
    stop: strings that end a text.
    stream: whether pieces are wanted as they come.
    usage: whether a stream ends with the numbers of tokens.
  """

  requests: list[Request]
  prompt_tokens: int
  stop: tuple[str, ...]
  stream: bool
  usage: bool

  def usage_of(self, tokens: Iterable[int]) -> dict[str, int]:
    """The numbers of tokens, from how many each text got."""
    completion = sum(tokens)
    return {
      'prompt_tokens': self.prompt_tokens,
      'completion_tokens': completion,
      'total_tokens': self.prompt_tokens + completion,
    }


def understood(
  raw: bytes,
  limits: Limits,
  encode: Callable[[str], np.ndarray],
  check: Callable[[Request], None],
) -> Asked:
  """Reads the body of a request.

  Args:
    raw: JSON.
    limits: of what may be asked.
    encode: text to token ids.
    check: raises BadInput where the model cannot do it.

  Raises:
    Refused: with a message that names the field.
  """
  try:
    body = json.loads(raw)
  except RecursionError:
    raise Refused(400, 'the body is nested too deeply') from None
  except ValueError as error:
    raise Refused(400, f'the body is no JSON: {error}') from None
  if not isinstance(body, dict):
    raise Refused(400, f'the body must be an object, got {_shown(body)}')
  return _Fields(body, limits).asked(encode, check)


class _Fields:
  """The fields of a body, each with its rule."""

  def __init__(self, body: dict[str, Any], limits: Limits) -> None:
    self.body, self.limits = body, limits

  def asked(
    self, encode: Callable[[str], np.ndarray], check: Callable[[Request], None]
  ) -> Asked:
    self.known()
    prompts = self.prompts(encode)
    most = self.limits.tokens
    tokens = self.integer('max_tokens', min(16, most), most)
    n = self.integer('n', 1, max(1, self.limits.texts // len(prompts)))
    if len(prompts) * n > self.limits.texts:
      self.refuse('prompt', f'must be at most {self.limits.texts} texts')
    how = self.sampling()
    requests = []
    for place in range(len(prompts) * n):
      seed = (how.seed + place) % 2**32
      request = Request(
        prompts[place // n], tokens, dataclasses.replace(how, seed=seed)
      )
      try:
        check(request)
      except BadInput as error:
        code = 'context_length_exceeded'  # all else was looked at
        raise Refused(400, str(error), 'prompt', code) from None
      requests.append(request)
    options = self.of('stream_options', dict, {})
    if set(options) - {'include_usage'}:
      self.refuse('stream_options', 'has include_usage alone')
    usage = options.get('include_usage', False)
    if not isinstance(usage, bool):
      self.refuse('stream_options', 'has include_usage true or false')
    return Asked(
      requests,
      sum(map(len, prompts)),
      self.stops(),
      self.of('stream', bool, False),
      usage,
    )

  def known(self) -> None:
    """Refuses fields, and a model, that there are not."""
    for name in self.body:
      if name in NOT_OFFERED:
        if self.body[name] not in NOT_OFFERED[name]:
          self.refuse(name, 'is not offered')
      elif name not in FIELDS:
        short = ascii(name[:60])[1:-1]
        raise Refused(400, str(unknown('field', short, FIELDS)), short)
    model = self.of('model', str, None)
    if model is None:
      self.refuse('model', 'must be given')
    if model != self.limits.model:
      line = f'there is no model {_shown(model)} but {self.limits.model!r}'
      raise Refused(404, line, 'model', 'model_not_found')
    self.of('user', str, '')

  def refuse(self, name: str, rule: str) -> NoReturn:
    line = f'{name} {rule}, got {_shown(self.body.get(name))}'
    raise Refused(400, line, name)

  def of(self, name: str, kind: type, default: Any) -> Any:
    """A field of a type; none, or null, is the default."""
    value = self.body.get(name)
    if value is None:
      return default
    if kind is float and type(value) is int and abs(value) < 2**53:
      return float(value)
    if type(value) is not kind:
      kinds = {int: 'an integer', float: 'a number', bool: 'true or false'}
      known = {**kinds, str: 'a string', dict: 'an object'}
      self.refuse(name, f'must be {known[kind]}')
    return value

  def integer(self, name: str, default: int, most: int) -> int:
    value = self.of(name, int, default)
    if not 1 <= value <= most:
      self.refuse(name, f'must be 1 to {most}')
    return int(value)

  def sampling(self) -> Sampling:
    """How tokens are chosen: unlike elsewhere here, they are drawn."""
    given = {
      'temperature': self.of('temperature', float, 1.0),
      'top_k': self.of('top_k', int, 0),
      'top_p': self.of('top_p', float, 1.0),
      'repetition_penalty': self.of('repetition_penalty', float, 1.0),
      'seed': self.of('seed', int, secrets.randbits(32)),
    }
    for name, value in given.items():
      try:
        Sampling(**{name: value}).check(self.limits.vocab_size)
      except BadInput as error:
        raise Refused(400, str(error), name) from None
    return Sampling(**given)

  def stops(self) -> tuple[str, ...]:
    """The strings that end a text."""
    given = self.body.get('stop')
    if given is None or given == []:
      return ()
    given = [given] if isinstance(given, str) else given
    count, length = MOST_STOPS
    fine = _are(given, str) and len(given) <= count
    if not fine or not all(1 <= len(each) <= length for each in given):
      rule = f'must be up to {count} strings of 1 to {length} characters'
      self.refuse('stop', rule)
    return tuple(given)

  def prompts(self, encode: Callable[[str], np.ndarray]) -> list[np.ndarray]:
    """A string, token ids, or a list of either."""
    given = self.body.get('prompt')
    if isinstance(given, str) or _are(given, int):
      given = [given]
    if not isinstance(given, list) or not given:
      self.refuse('prompt', 'must be a string, token ids, or a list of either')
    return [self.prompt(each, encode) for each in given]

  def prompt(
    self, given: Any, encode: Callable[[str], np.ndarray]
  ) -> np.ndarray:
    if given == '':
      self.refuse('prompt', 'must not be empty')
    if isinstance(given, str):
      try:
        return encode(given)
      except UnicodeEncodeError:
        self.refuse('prompt', 'must be Unicode')
    most = self.limits.vocab_size
    if not _are(given, int) or not all(0 <= i < most for i in given):
      self.refuse('prompt', f'must be strings, or token ids below {most}')
    return np.array(given, np.int32)


def _are(values: Any, kind: type) -> bool:
  """Whether it is a list of that, and of something."""
  fine = isinstance(values, list) and bool(values)
  return fine and all(type(value) is kind for value in values)


def _shown(value: Any) -> str:
  """A value as a message may have it: short, and ASCII."""
  try:
    told = json.dumps(value)
  except RecursionError:
    told = '...'
  return told if len(told) <= 60 else f'{told[:57]}...'


def choice(index: int, text: str, finish: str) -> dict[str, Any]:
  """One text of an answer, or a piece of it."""
  return {
    'index': index,
    'text': text,
    'logprobs': None,
    'finish_reason': finish or None,
  }
