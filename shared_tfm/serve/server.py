"""The server: a socket, signals, and an end in good order."""

import socket
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import uvicorn

from shared_tfm.config import Config
from shared_tfm.data.tokenizers import Tokenizer
from shared_tfm.errors import BadInput, Interrupted, need
from shared_tfm.infer.batching import Batcher
from shared_tfm.serve.app import app
from shared_tfm.serve.completions import Limits
from shared_tfm.serve.engine import Engine

CONNECTIONS = 512  # more of them are answered by 503
LAST_SECONDS = 5  # for what is still to be sent when all texts are over


class Server(uvicorn.Server):
  """uvicorn's, that ends when the engine has nothing more to do.

  Attributes:
    signal: that asked for the end; 0: none did.
  """

  def __init__(
    self, config: uvicorn.Config, engine: Engine, grace: float, line: str
  ) -> None:
    """Takes the arguments of `serve`, and what to say when it can be asked."""
    super().__init__(config)
    self.engine, self.grace, self.line = engine, grace, line
    self.signal, self.until = 0, 0.0

  async def startup(self, sockets: list[socket.socket] | None = None) -> None:
    """Opens the socket, and says so."""
    await super().startup(sockets)
    print(self.line, flush=True)

  def handle_exit(self, sig: int, frame: Any) -> None:
    """Begins nothing new; at the second signal nothing is waited for."""
    self.until = time.monotonic() + (0 if self.signal else self.grace)
    self.signal = self.signal or sig
    self.engine.refuses = True

  async def on_tick(self, counter: int) -> bool:
    """Whether it is over; asked ten times a second."""
    late = time.monotonic() >= self.until
    if self.signal and (late or not self.engine.jobs):
      self.engine.close()
      return True
    return await super().on_tick(counter) or self.engine.error is not None


def bound(host: str, port: int) -> socket.socket:
  """A socket that nobody can connect to yet.

  Raises:
    BadInput: the address cannot be had.
  """
  need(0 <= port < 2**16, f'--port must be 0 to 65535, got {port}')
  made = socket.socket(socket.AF_INET6 if ':' in host else socket.AF_INET)
  made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
  try:
    made.bind((host, port))
  except OSError as error:
    made.close()
    raise BadInput(f'{host}:{port} cannot be had: {error.strerror}') from None
  return made


def prepared(
  config: Config,
  variables: Any,
  tokenizer: Tokenizer,
  encode: Callable[[str], np.ndarray],
  name: str,
  at: socket.socket,
  rows: int = 8,
  queue: int = 64,
  tokens: int = 0,
  grace: float = 30,
  policy: str = 'visit',
) -> Server:
  """A server that has compiled all it needs, and is to be run.

  Args:
    config: of a decoder.
    variables: the model's, 'params' among them.
    tokenizer: of its texts.
    encode: a prompt to token ids.
    name: of the model.
    at: its socket, of `bound`.
    rows: texts of the batch.
    queue: texts that may wait for a row of it.
    tokens: the most to add to a text; 0: as many as the model has places.
    grace: seconds that running texts have to end after a signal.
    policy: what visits keep apart; see model/kept.py.

  Raises:
    BadInput: a value is out of range.
  """
  need(queue >= 0, f'--queue must be at least 0, got {queue}')
  need(tokens >= 0, f'--max_tokens must be at least 0, got {tokens}')
  need(grace >= 0, f'--grace must be at least 0, got {grace}')
  m = config.model
  batcher = Batcher(config, variables, rows, m.max_len, tokenizer.eos, policy)
  engine = Engine(batcher, tokenizer, rows + queue)
  limits = Limits(name, m.vocab_size, tokens or m.max_len - 1, rows + queue)
  engine.start()
  host, port = at.getsockname()[:2]
  host = f'[{host}]' if ':' in host else host
  return Server(
    uvicorn.Config(
      app(engine, limits, encode),
      http='h11',
      ws='none',
      lifespan='off',
      log_config=None,
      access_log=False,
      server_header=False,
      limit_concurrency=CONNECTIONS,
      timeout_graceful_shutdown=LAST_SECONDS,
    ),
    engine,
    grace,
    f'{name} is served at http://{host}:{port}/v1',
  )


def serve(server: Server, at: socket.socket) -> None:
  """Serves until a signal.

  Args:
    server: of `prepared`.
    at: its socket.

  Raises:
    Interrupted: always, unless something broke, which is then raised.
  """
  server.run(sockets=[at])
  engine = server.engine
  engine.close()
  engine.join()
  if engine.error is not None:
    raise engine.error
  left = f'{engine.cut} were cut' if engine.cut else 'all were finished'
  raise Interrupted(server.signal, f'ended the server; of its texts {left}')
