"""Served texts are those that `generate` writes, and no request is lost."""

import collections
import concurrent.futures
import contextlib
import functools
import http.client
import json
import pathlib
import signal
import socket
import subprocess
import sys
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import openai
import pytest

from benchmarks import serving
from shared_tfm import config
from shared_tfm.__main__ import main
from shared_tfm.data import tokenizers
from shared_tfm.errors import BadInput, Interrupted
from shared_tfm.infer import sampling
from shared_tfm.infer.batching import Request
from shared_tfm.infer.choice import Sampling
from shared_tfm.infer.pieces import Pieces
from shared_tfm.model import build
from shared_tfm.serve import server
from shared_tfm.serve.engine import Job, Text

M = 64
BYTES = tokenizers.make('bytes', [], 258, None)


@functools.cache
def ready():
  """A decoder of bytes, and weights large enough for opinions of their own."""
  model = {'num_layers': 2, 'd_model': 32, 'num_heads': 2, 'max_len': M}
  made = config.cross({'model': {**model, 'sharing': {'layer': 'all'}}})
  blank = jnp.zeros((1, 4), jnp.int32)
  variables = jax.jit(build(made).init)(jax.random.key(0), blank)
  return made, jax.tree.map(lambda leaf: 2 * leaf, variables)


@contextlib.contextmanager
def running(**how):
  """A server in a thread: itself, where it is, and what ends it, in a list."""
  at, ended = server.bound('127.0.0.1', 0), []
  made = server.prepared(*ready(), BYTES, BYTES.encode, 'tiny', at, **how)

  def run():
    try:
      server.serve(made, at)
    except Exception as error:
      ended.append(error)

  thread = threading.Thread(target=run)
  thread.start()
  wait(lambda: made.started)
  try:
    yield made, at.getsockname()[1], ended
  finally:
    made.handle_exit(signal.SIGTERM, None)
    thread.join(timeout=30)
    assert not thread.is_alive()


@pytest.fixture(scope='module')
def port():
  with running(rows=3, tokens=50) as (_, port, _):
    yield port


def wait(holds, seconds=30):
  """Waits until something holds, for so long at most."""
  until = time.monotonic() + seconds
  while not holds():
    assert time.monotonic() < until
    time.sleep(0.01)


@functools.cache
def client(port):
  url = f'http://127.0.0.1:{port}/v1'
  return openai.OpenAI(base_url=url, api_key='none', max_retries=0, timeout=60)


def complete(port, **given):
  return client(port).completions.create(
    model='tiny', **{'temperature': 0, **given}
  )


def alone(prompt, tokens, how=sampling.GREEDY, stop=()):
  """What `generate` writes."""
  made, variables = ready()
  (added,) = sampling.generate(
    made, variables, [BYTES.encode(prompt)], tokens, how, BYTES.eos
  )
  return Pieces(BYTES.decode, stop).add(added, last=True)


def raw(port, body, kind='application/json', method='POST', at='completions'):
  """The status and the error that an answer has."""
  connection = http.client.HTTPConnection('127.0.0.1', port, timeout=30)
  connection.request(method, f'/v1/{at}', body, {'Content-Type': kind})
  answer = connection.getresponse()
  found = json.loads(answer.read())
  connection.close()
  return answer.status, found['error']['message']


@pytest.mark.slow
def test_the_official_client_gets_what_generate_writes(port):
  assert [each.id for each in client(port).models.list()] == ['tiny']
  assert client(port).models.retrieve('tiny').object == 'model'
  done = complete(port, prompt='layer', max_tokens=20)
  assert done.choices[0].text == alone('layer', 20)
  assert done.choices[0].finish_reason == 'length'
  assert (done.usage.prompt_tokens, done.usage.completion_tokens) == (5, 20)
  ids = complete(port, prompt=[*b'layer'], max_tokens=20)
  assert ids.choices[0].text == done.choices[0].text
  default = complete(port, prompt='layer')
  assert default.usage.completion_tokens == 16


def test_several_texts_of_one_request(port):
  how = Sampling(0.9, top_k=40, top_p=0.9, repetition_penalty=1.1, seed=7)
  done = complete(
    port,
    prompt=['rows', 'a bank of weights'],
    max_tokens=12,
    n=2,
    temperature=0.9,
    top_p=0.9,
    seed=7,
    extra_body={'top_k': 40, 'repetition_penalty': 1.1},
  )
  assert [each.index for each in done.choices] == [0, 1, 2, 3]
  for place, each in enumerate(done.choices):
    prompt = ('rows', 'a bank of weights')[place // 2]
    seeded = Sampling(**{**vars(how), 'seed': 7 + place})
    assert each.text == alone(prompt, 12, seeded)
  assert done.usage.prompt_tokens == 4 + 17
  free = {
    complete(port, prompt='a', temperature=1).choices[0].text for _ in '12'
  }
  assert len(free) == 2  # no seed: another text each time


def test_pieces_come_as_they_are_written(port):
  parts = [
    *complete(
      port,
      prompt=['layer', 'rows'],
      max_tokens=30,
      stream=True,
      stream_options={'include_usage': True},
    )
  ]
  for index, prompt in enumerate(('layer', 'rows')):
    mine = [p.choices[0] for p in parts[:-1] if p.choices[0].index == index]
    assert ''.join(each.text for each in mine) == alone(prompt, 30)
    assert [each.finish_reason for each in mine if each.finish_reason] == [
      'length'
    ]
    assert len(mine) > 3
  assert parts[-1].usage.completion_tokens == 60


def test_a_stop_sequence_ends_a_text(port):
  whole = alone('layer', 40)
  stop = whole[9:12]
  done = complete(port, prompt='layer', max_tokens=40, stop=[stop, 'nowhere'])
  (found,) = done.choices
  assert found.text == whole[: whole.index(stop)] != whole
  assert found.finish_reason == 'stop'
  parts = complete(port, prompt='layer', max_tokens=40, stop=stop, stream=True)
  assert ''.join(p.choices[0].text for p in parts) == found.text


@pytest.mark.parametrize('step', [1, 2, 5])
def test_characters_come_whole_and_tokens_are_counted_up_to_a_stop(step):
  said = 'naïve café — déjà vu 🙂 end'
  tokens = np.append(BYTES.encode(said), BYTES.eos)
  for stop, text, count, finish in [
    ((), said, len(tokens), 'stop'),
    (('é — d',), 'naïve caf', len('naïve café — d'.encode()), 'stop'),
  ]:
    one = Text(Job(Request(tokens, 1), stop, print), BYTES)
    ends = [*range(step, len(tokens), step), len(tokens)]
    told = []
    for end in ends:
      told.append(one.look(tokens[:end], end == len(tokens)))
      if told[-1].finish:
        break
    assert ''.join(each.text for each in told) == text
    assert not any('\ufffd' in each.text for each in told)
    assert (told[-1].tokens, told[-1].finish) == (count, finish)


WRONG = [
  ({'max_tokens': 51}, 400, 'max_tokens must be 1 to 50, got 51'),
  ({'max_tokens': '9'}, 400, 'max_tokens must be an integer, got "9"'),
  ({'max_tokens': True}, 400, 'max_tokens must be an integer, got true'),
  ({'prompt': 60 * 'a'}, 400, '60 tokens and 16 more exceed model.max_len 64'),
  ({'prompt': None}, 400, 'prompt must be a string, token ids, or a list'),
  ({'prompt': ''}, 400, 'prompt must not be empty'),
  ({'prompt': [['a']]}, 400, 'prompt must be strings, or token ids below 258'),
  ({'prompt': [1, 258]}, 400, 'token ids below 258, got [1, 258]'),
  ({'prompt': '\ud800'}, 400, 'prompt must be Unicode, got "\\ud800"'),
  ({'prompt': 99 * ['a']}, 400, 'prompt must be at most 67 texts'),
  ({'n': 68}, 400, 'n must be 1 to 67, got 68'),
  ({'temperature': -1}, 400, 'temperature must be at least 0, got -1'),
  ({'temperature': float('inf')}, 400, 'temperature must be at least 0'),
  ({'temperature': 10**400}, 400, 'temperature must be a number'),
  ({'top_p': 0}, 400, 'top_p must be above 0'),
  ({'top_k': 259}, 400, 'top_k must be 0 to 258, got 259'),
  ({'seed': -1}, 400, 'seed must be 0 to 2^32 - 1, got -1'),
  ({'stop': 5 * ['x']}, 400, 'stop must be up to 4 strings of 1 to 200'),
  ({'stop': ['']}, 400, 'stop must be up to 4 strings of 1 to 200'),
  ({'stream': 1}, 400, 'stream must be true or false, got 1'),
  ({'stream_options': {'x': 1}}, 400, 'stream_options has include_usage'),
  ({'echo': True}, 400, 'echo is not offered, got true'),
  ({'logprobs': 2}, 400, 'logprobs is not offered, got 2'),
  ({'tempature': 1}, 400, "unknown field 'tempature'; did you mean 'temp"),
  ({99 * '\ud800': 1}, 400, 'unknown field'),
  ({'model': 'other'}, 404, 'there is no model "other" but \'tiny\''),
  ({'model': None}, 400, 'model must be given, got null'),
]


def test_what_is_wrong_is_said(port):
  for given, status, rule in WRONG:
    body = {'model': 'tiny', 'prompt': 'a', **given}
    found = raw(port, json.dumps(body))
    assert found[0] == status and rule in found[1], found
  for body, status, rule in [
    ('{"model"', 400, 'the body is no JSON'),
    (b'\xff\xfe\xfd', 400, 'the body is no JSON'),
    ('[1]', 400, 'the body must be an object, got [1]'),
    (100_000 * '[', 400, 'the body is nested too deeply'),
    ((2**20 + 1) * ' ', 413, 'a body may have at most 1048576 bytes'),
  ]:
    found = raw(port, body)
    assert found[0] == status and rule in found[1], found
  assert raw(port, '{}', 'text/plain')[0] == 415
  assert raw(port, None, method='GET')[0] == 405
  assert raw(port, '{}', at='chat/completions')[0] == 404
  with pytest.raises(openai.BadRequestError) as caught:
    complete(port, prompt='a', max_tokens=51)
  assert caught.value.param == 'max_tokens'
  with pytest.raises(openai.NotFoundError) as caught:
    client(port).completions.create(model='other', prompt='a')
  assert caught.value.code == 'model_not_found'
  assert complete(port, prompt='layer').choices[0].text == alone('layer', 16)


def test_its_speed_can_be_measured(port, capsys):
  url = f'--url=http://127.0.0.1:{port}/v1'
  sizes = '--requests=6', '--tokens=8', '--askers', '1', '3'
  serving.main([url, *sizes])
  _, _, *rows = capsys.readouterr().out.splitlines()
  cells = [row.strip('| ').split(' | ') for row in rows]
  assert [row[0] for row in cells] == ['1', '3']
  assert cells[0][3] == cells[1][3]  # the same texts
  assert 6 * 2 <= int(cells[0][3]) <= 6 * 8


def test_an_engine_that_breaks_ends_its_requests_and_the_server():
  with running(rows=2) as (made, port, ended):
    made.engine._batcher.variables = {'params': {}}
    with pytest.raises(openai.InternalServerError, match='met an error'):
      complete(port, prompt='a')
    wait(lambda: ended)
  assert not isinstance(ended[0], Interrupted)


def test_what_cannot_be_served(monkeypatch, capsys):
  taken, rule = socket.create_server(('127.0.0.1', 0)), 'cannot be had: Address'
  with taken, pytest.raises(BadInput, match=rule):
    server.bound('127.0.0.1', taken.getsockname()[1])
  with pytest.raises(BadInput, match='--port must be 0 to 65535, got 70000'):
    server.bound('127.0.0.1', 70000)
  with server.bound('127.0.0.1', 0) as at:
    for how, rule in [
      ({'queue': -1}, '--queue must be at least 0, got -1'),
      ({'rows': 0}, 'at least 1 row, got 0'),
      ({'tokens': -1}, '--max_tokens must be at least 0, got -1'),
    ]:
      with pytest.raises(BadInput, match=rule):
        server.prepared(*ready(), BYTES, BYTES.encode, 'tiny', at, **how)
  monkeypatch.setitem(sys.modules, 'uvicorn', None)
  assert main(['serve', '--workdir=nowhere']) == 2
  assert 'serve needs uvicorn, the extra serve' in capsys.readouterr().err


def asked(number):
  """A request, and what it must get."""
  random = np.random.default_rng(number)
  prompt = ''.join(random.choice([*'abcdé '], random.integers(1, 14)))
  tokens = int(random.integers(1, 40))
  how = Sampling(float(number % 3 > 1), seed=number)
  stop = ('\x00', 'e') if number % 4 == 0 else ()
  given = {'prompt': prompt, 'max_tokens': tokens, 'stop': stop or None}
  given |= {'temperature': how.temperature, 'seed': how.seed}
  return given, lambda: alone(prompt, tokens, how, stop)


def broken(port, number):
  """Asks what is wrong, or does not wait for the answer."""
  body = {'model': 'tiny', 'prompt': 'a', 'max_tokens': 50}
  kind = number // 10 % 5
  if kind == 0:
    return raw(port, '{"model": "tiny", ')[0]
  if kind == 1:
    return raw(port, json.dumps({**body, 'max_tokens': 'many'}))[0]
  if kind == 2:
    return raw(port, json.dumps({**body, 'prompt': 90 * 'a'}))[0]
  sent = json.dumps({**body, 'stream': kind == 4}).encode()
  head = (
    'POST /v1/completions HTTP/1.1\r\nHost: x\r\n'
    f'Content-Type: application/json\r\nContent-Length: {len(sent)}\r\n\r\n'
  )
  with socket.create_connection(('127.0.0.1', port), timeout=30) as mine:
    mine.sendall(head.encode() + sent)
    if kind == 4:
      mine.recv(20)
  return 'gone'


@pytest.mark.slow
def test_under_load_nothing_is_lost():
  """300 requests, a tenth of them broken, and fewer places than askers."""
  found, seen = {}, collections.Counter()

  def ask(port, number):
    if number % 10 == 9:
      seen[broken(port, number)] += 1
      return
    given, _ = asked(number)
    for _ in range(200):
      try:
        done = complete(port, **given, stream=number % 2 == 0)
        break
      except openai.RateLimitError as error:
        assert error.response.headers['Retry-After'] == '1'
        seen[429] += 1
        time.sleep(0.05)
    if number % 2 == 0:
      found[number] = ''.join(part.choices[0].text for part in done)
    else:
      found[number] = done.choices[0].text

  with running(rows=4, queue=4) as (made, port, ended):
    with concurrent.futures.ThreadPoolExecutor(24) as pool:
      every = [pool.submit(ask, port, number) for number in range(300)]
      for each in every:
        each.result(timeout=120)
    wait(lambda: made.engine.jobs == 0)
    assert not ended
  assert len(found) == 270 and sum(seen[s] for s in (400, 'gone')) == 30
  assert seen[400] == 18 and seen[429] > 0
  assert {n: asked(n)[1]() for n in found} == found
  assert isinstance(ended[0], Interrupted)


@pytest.mark.slow
def test_a_signal_lets_texts_end(tmp_path):
  """What was taken is finished, what comes later is refused, and it ends."""
  (tmp_path / 'text.txt').write_text('rows of a bank of weights; ' * 60)
  (tmp_path / 'config.py').write_text(
    'import ml_collections\n'
    'def get_config():\n'
    '  return ml_collections.ConfigDict({\n'
    "    'model': {'num_layers': 2, 'd_model': 16, 'num_heads': 2,\n"
    "              'max_len': 512},\n"
    "    'data': {'source': 'text', 'seq_len': 16,\n"
    f"             'path': {str(tmp_path / 'text.txt')!r}}},\n"
    "    'train': {'num_steps': 1, 'batch_size': 2}})\n"
  )
  run = f'--workdir={tmp_path / "tiny"}'
  assert main(['train', f'--config={tmp_path / "config.py"}', run]) == 0
  process = subprocess.Popen(
    [
      *(sys.executable, '-m', 'shared_tfm', 'serve', run),
      *('--port=0', '--rows=2', '--queue=8'),
    ],
    cwd=pathlib.Path(__file__).parents[1],
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )
  try:
    port = int(process.stdout.readline().rpartition(':')[2].split('/')[0])
    with concurrent.futures.ThreadPoolExecutor(6) as pool:
      every = [
        pool.submit(complete, port, prompt='rows', max_tokens=500)
        for _ in range(6)
      ]
      wait(lambda: health(port)['texts'] == 6)
      process.send_signal(signal.SIGTERM)
      wait(lambda: health(port)['status'] == 'stopping')
      with pytest.raises(openai.InternalServerError) as caught:
        complete(port, prompt='late')
      assert caught.value.status_code == 503
      assert caught.value.response.headers['Retry-After'] == '1'
      texts = {each.result(timeout=60).choices[0].text for each in every}
    assert len(texts) == 1
    _, err = process.communicate(timeout=30)
    assert process.returncode == 128 + signal.SIGTERM
    assert 'SIGTERM ended the server; of its texts all were finished' in err
  finally:
    process.kill()


def health(port):
  connection = http.client.HTTPConnection('127.0.0.1', port, timeout=30)
  connection.request('GET', '/health')
  found = json.loads(connection.getresponse().read())
  connection.close()
  return found
