"""The routes: OpenAI's completions, the model's name, and how the server is."""

import asyncio
import contextlib
import json
import time
import uuid
from collections.abc import AsyncIterator, Callable
from typing import Any

import numpy as np
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from shared_tfm.serve.completions import Asked, Limits, choice, understood
from shared_tfm.serve.engine import Broken, Engine, Full, Job, Piece, Stopping
from shared_tfm.serve.refused import Refused

BODY = 2**20  # the most bytes of a request
BODY_SECONDS = 30  # that it may take to come


def app(
  engine: Engine, limits: Limits, encode: Callable[[str], np.ndarray]
) -> Starlette:
  """The application.

  Args:
    engine: that writes the texts.
    limits: of what may be asked.
    encode: text to token ids.
  """
  routes = Routes(engine, limits, encode)
  return Starlette(
    routes=[
      Route('/v1/completions', routes.complete, methods=['POST']),
      Route('/v1/models', routes.models),
      Route('/v1/models/{name}', routes.model),
      Route('/health', routes.health),
    ],
    exception_handlers={
      Refused: _refused,
      HTTPException: _no_route,
      ClientDisconnect: _nobody,
      Exception: _failed,
    },
  )


class Routes:
  """What is done at each."""

  def __init__(
    self,
    engine: Engine,
    limits: Limits,
    encode: Callable[[str], np.ndarray],
  ) -> None:
    """Takes the arguments of `app`."""
    self.engine, self.limits, self.encode = engine, limits, encode
    self.created = int(time.time())

  async def complete(self, request: Request) -> Response:
    """POST /v1/completions."""
    raw = await _body(request)
    asked = await run_in_threadpool(
      understood, raw, self.limits, self.encode, self.engine.check
    )
    texts = _Texts(self.engine, asked)
    head = {
      'id': f'cmpl-{uuid.uuid4().hex}',
      'object': 'text_completion',
      'created': int(time.time()),
      'model': self.limits.model,
    }
    if asked.stream:
      return _Events(texts, head)
    try:
      return await _unless_gone(request, _whole(texts, head))
    finally:
      texts.cancel()

  async def models(self, request: Request) -> Response:
    """GET /v1/models."""
    return JSONResponse({'object': 'list', 'data': [self._model()]})

  async def model(self, request: Request) -> Response:
    """GET /v1/models/NAME."""
    name = request.path_params['name']
    if name != self.limits.model:
      line = f'there is no model {name!r} but {self.limits.model!r}'
      raise Refused(404, line, 'model', 'model_not_found')
    return JSONResponse(self._model())

  async def health(self, request: Request) -> Response:
    """GET /health: 200 while requests are taken, else 503."""
    refuses = self.engine.refuses
    status = 'stopping' if refuses else 'ok'
    told = {'status': status, 'texts': self.engine.jobs}
    return JSONResponse(told, 503 if refuses else 200)

  def _model(self) -> dict[str, Any]:
    return {
      'id': self.limits.model,
      'object': 'model',
      'created': self.created,
      'owned_by': 'shared_tfm',
    }


class _Texts:
  """All texts of a request, and what comes of them."""

  def __init__(self, engine: Engine, asked: Asked) -> None:
    """Hands them to the engine.

    Raises:
      Refused: it does not take them.
    """
    self.asked, self.counts = asked, [0] * len(asked.requests)
    self._loop, self._engine = asyncio.get_running_loop(), engine
    self._queue: asyncio.Queue[Any] = asyncio.Queue()
    self._jobs = [
      Job(request, asked.stop, self._tells(index))
      for index, request in enumerate(asked.requests)
    ]
    try:
      engine.submit(self._jobs)
    except (Full, Stopping, Broken) as error:
      raise _refusal(error) from None

  async def pieces(self) -> AsyncIterator[tuple[int, Piece]]:
    """What comes, with the number of its text, until all are over.

    Raises:
      Refused: the engine gave up.
    """
    going = len(self._jobs)
    while going:
      index, piece = await self._queue.get()
      if not isinstance(piece, Piece):
        raise _refusal(piece)
      self.counts[index] = piece.tokens
      going -= bool(piece.finish)
      yield index, piece

  def cancel(self) -> None:
    """Nobody wants what is not over."""
    self._engine.cancel(self._jobs)

  def _tells(self, index: int) -> Callable[[Piece | Exception], None]:
    def tell(piece: Piece | Exception) -> None:
      with contextlib.suppress(RuntimeError):  # the loop has ended
        self._loop.call_soon_threadsafe(self._queue.put_nowait, (index, piece))

    return tell


class _Events(StreamingResponse):
  """Pieces as they come, each an event of its own."""

  def __init__(self, texts: _Texts, head: dict[str, Any]) -> None:
    super().__init__(
      self._events(texts, head),
      headers={'Cache-Control': 'no-cache'},
      media_type='text/event-stream',
    )
    self._texts = texts

  async def __call__(self, *args: Any) -> None:
    try:
      await super().__call__(*args)
    finally:
      self._texts.cancel()

  async def _events(
    self, texts: _Texts, head: dict[str, Any]
  ) -> AsyncIterator[str]:
    try:
      async for index, piece in texts.pieces():
        each = choice(index, piece.text, piece.finish)
        yield _event({**head, 'choices': [each]})
    except Refused as refused:  # too late for another status
      yield _event(refused.body())
      return
    if texts.asked.usage:
      usage = texts.asked.usage_of(texts.counts)
      yield _event({**head, 'choices': [], 'usage': usage})
    yield 'data: [DONE]\n\n'


async def _whole(texts: _Texts, head: dict[str, Any]) -> Response:
  """The answer, once all texts are over."""
  told = [''] * len(texts.counts)
  finish = [''] * len(texts.counts)
  async for index, piece in texts.pieces():
    told[index] += piece.text
    finish[index] = piece.finish
  choices = [
    choice(i, *each) for i, each in enumerate(zip(told, finish, strict=True))
  ]
  usage = texts.asked.usage_of(texts.counts)
  return JSONResponse({**head, 'choices': choices, 'usage': usage})


async def _unless_gone(request: Request, answer: Any) -> Response:
  """The answer, or none where the client does not wait for it."""

  async def gone() -> Response:
    while (await request.receive())['type'] != 'http.disconnect':
      pass
    return Response(status_code=499)

  tasks = [asyncio.ensure_future(each) for each in (answer, gone())]
  try:
    done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    return next(task for task in tasks if task in done).result()
  finally:
    for task in tasks:
      task.cancel()


async def _body(request: Request) -> bytes:
  """The bytes of a request.

  Raises:
    Refused: it is no JSON, too large or too slow.
  """
  kind = request.headers.get('content-type', '').partition(';')[0].strip()
  if kind.lower() != 'application/json':
    raise Refused(415, f'Content-Type must be application/json, got {kind!r}')
  found = bytearray()
  try:
    async with asyncio.timeout(BODY_SECONDS):
      async for part in request.stream():
        found += part
        if len(found) > BODY:
          raise Refused(413, f'a body may have at most {BODY} bytes')
  except TimeoutError:
    line = f'the body did not come within {BODY_SECONDS} seconds'
    raise Refused(408, line) from None
  return bytes(found)


def _event(told: dict[str, Any]) -> str:
  return f'data: {json.dumps(told)}\n\n'


def _refusal(error: Exception) -> Refused:
  """Why the engine does not write a text."""
  if isinstance(error, Full):
    return Refused(429, 'too many texts wait; try again', code='queue_full')
  if isinstance(error, Stopping):
    return Refused(503, 'the server is stopping', code='stopping')
  return Refused(500, 'the server met an error and ends', code='broken')


async def _refused(_: Request, error: Any) -> Response:
  headers = {'Retry-After': '1'} if error.status in (429, 503) else None
  return JSONResponse(error.body(), error.status, headers)


async def _no_route(request: Request, error: Any) -> Response:
  line = f'{request.method} {request.url.path}: {error.detail}'
  return JSONResponse(
    Refused(error.status_code, line).body(), error.status_code, error.headers
  )


async def _nobody(*_: Any) -> Response:
  return Response(status_code=499)


async def _failed(*_: Any) -> Response:
  return JSONResponse(Refused(500, 'the server met an error').body(), 500)
