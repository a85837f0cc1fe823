"""A request that is not answered, and what its asker is told."""

from typing import Any


class Refused(Exception):
  """A request that is not answered.

  Attributes:
    status: of HTTP.
    field: of the body that is wrong, if it is one.
    code: a word for it, if it has one.
  """

  def __init__(
    self, status: int, message: str, field: str = '', code: str = ''
  ) -> None:
    """States the rule and what was given."""
    super().__init__(message)
    self.status, self.field, self.code = status, field, code

  def body(self) -> dict[str, Any]:
    """As OpenAI's clients expect it."""
    error = {
      'message': str(self),
      'type': 'invalid_request_error' if self.status < 500 else 'server_error',
      'param': self.field or None,
      'code': self.code or None,
    }
    return {'error': error}
