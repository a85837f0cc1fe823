"""Text to ids and back: nothing is lost, and every byte is counted once."""

import json
import pathlib
import random

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from shared_tfm.data import tokenizers
from shared_tfm.errors import BadInput

TEXTS = [pathlib.Path(__file__).read_text(), 'ein Bär, zwei Bären ' * 40]
ODD = [
  '',
  ' ',
  '\x00\x01\x7f',
  'tabs\tand\r\nlines\n\n\n  indented   twice ',
  'naïve café, Ünïcödé, ﬁ ligature',
  'e\u0301 combining, \u200d joiner, \ufeff mark, \u202e right to left',
  '日本語テキスト العربية हिन्दी',
  '👩‍👩‍👧‍👦 🏳️‍🌈 \U0010ffff \ue000',
  '<eos> <mask> [MASK] <|endoftext|> </s>',
  "don't we'll I'M 12345 ... ??",
]


@pytest.fixture(scope='module')
def bpe(tmp_path_factory):
  folder = tmp_path_factory.mktemp('bpe')
  return tokenizers.make('bpe', TEXTS, 400, folder)


@pytest.fixture(scope='module', params=['bytes', 'bpe'])
def tokenizer(request, bpe):
  if request.param == 'bpe':
    return bpe
  return tokenizers.make('bytes', [], 258, pathlib.Path())


@pytest.mark.parametrize('text', ODD)
def test_round_trip(tokenizer, text):
  check(tokenizer, text)


@hypothesis.settings(deadline=None, max_examples=100)
@hypothesis.given(text=st.text())
def test_round_trip_of_any_text(tokenizer, text):
  check(tokenizer, text)


def check(tokenizer, text):
  ids = tokenizer.encode(text)
  assert ids.dtype == np.int32 and ids.ndim == 1
  assert tokenizer.decode(ids) == text
  assert tokenizer.byte_lengths[ids].sum() == len(text.encode())
  assert not {tokenizer.eos, tokenizer.mask} & set(ids.tolist())


def test_ids_of_bytes_are_bytes():
  bytes_ = tokenizers.make('bytes', [], 300, pathlib.Path())
  assert bytes_.encode('aß').tolist() == [97, 0xC3, 0x9F]
  assert (bytes_.vocab_size, bytes_.eos, bytes_.mask) == (258, 256, 257)
  assert bytes_.byte_lengths.tolist() == [1] * 256 + [0, 0]


def test_bpe_fills_its_vocabulary_and_shortens_text(bpe):
  assert (bpe.vocab_size, bpe.eos, bpe.mask) == (400, 398, 399)
  assert bpe.byte_lengths.shape == (400,)
  assert bpe.byte_lengths[-2:].tolist() == [0, 0]
  assert bpe.byte_lengths[:-2].min() == 1
  assert len(bpe.encode(TEXTS[0])) < 0.6 * len(TEXTS[0].encode())


def test_a_short_text_makes_fewer_pieces(tmp_path):
  small = tokenizers.make('bpe', ['aaab'], 10_000, tmp_path)
  assert 258 <= small.vocab_size < 265
  assert small.decode(small.encode('zebra')) == 'zebra'


def test_decode_takes_whatever_a_model_says(tokenizer):
  ids = [*tokenizer.encode('a'), tokenizer.eos, tokenizer.mask, 9999, -1]
  assert tokenizer.decode(ids) == 'a'
  assert tokenizer.decode(tokenizer.encode('é')[:1]) in ('é', '\ufffd')
  assert tokenizer.decode([]) == ''


def test_many_texts_at_once_are_each_alone(tokenizer):
  texts = [f'{i} {ODD[i % len(ODD)]}' for i in range(600)]
  together = list(tokenizer.encode_all(texts))
  assert len(together) == 600
  for text, ids in zip(texts, together, strict=True):
    np.testing.assert_array_equal(ids, tokenizer.encode(text))


@pytest.mark.parametrize('name', ['bytes', 'bpe', 'characters', 'words'])
def test_a_long_text_in_pieces_is_the_text(tmp_path, monkeypatch, name):
  rng = random.Random(0)
  texts = [
    ''.join(rng.choices([*"aabb' .\n\t\u00a0é", '  ', "'s", ' \n '], k=400))
    for _ in range(50)
  ]
  monkeypatch.setattr(tokenizers, 'PIECE', 10**6)
  tokenizer = tokenizers.make(name, texts, 600, tmp_path)
  whole = tokenizers.joined(texts, tokenizer)
  monkeypatch.setattr(tokenizers, 'PIECE', 7)
  np.testing.assert_array_equal(tokenizers.joined(texts, tokenizer), whole)
  again = tokenizers.make(name, texts, 600, tmp_path / 'again')
  assert again.pieces == tokenizer.pieces
  ends = [ids for text in texts for ids in (*tokenizer.encode(text), -1)]
  expected = [tokenizer.eos if ids < 0 else ids for ids in ends]
  assert whole.tolist() == expected


def test_training_twice_gives_the_same_file(tmp_path):
  for name in 'ab':
    tokenizers.make('bpe', TEXTS, 350, tmp_path / name)
  first, second = (tmp_path / name / 'tokenizer.json' for name in 'ab')
  assert first.read_bytes() == second.read_bytes()
  assert [path.name for path in (tmp_path / 'a').iterdir()] == [first.name]


def test_a_trained_file_is_used_again(tmp_path):
  trained = tokenizers.make('bpe', TEXTS, 350, tmp_path)
  before = (tmp_path / 'tokenizer.json').stat()
  again = tokenizers.make('bpe', ['other text altogether'], 350, tmp_path)
  after = (tmp_path / 'tokenizer.json').stat()
  assert again.pieces == trained.pieces
  assert (before.st_mtime_ns, before.st_ino) == (
    after.st_mtime_ns,
    after.st_ino,
  )


def damaged(text):
  whole = json.loads(text)
  del whole['model']['vocab']['a']
  return json.dumps(whole)


@pytest.mark.parametrize(
  'damage',
  [lambda text: text[:100], lambda text: '', lambda text: '{}', damaged],
)
def test_a_corrupt_file_is_named(tmp_path, damage):
  tokenizers.make('bpe', TEXTS, 300, tmp_path)
  path = tmp_path / 'tokenizer.json'
  path.write_text(damage(path.read_text()))
  with pytest.raises(BadInput, match=f'{path} is not a byte-level BPE') as told:
    tokenizers.make('bpe', TEXTS, 300, tmp_path)
  assert '\n' not in str(told.value)


@pytest.mark.parametrize(
  ('name', 'size', 'message'),
  [
    ('bytes', 257, "at least 258 for the tokenizer 'bytes', got 257"),
    ('bpe', 257, "at least 258 for the tokenizer 'bpe', got 257"),
    ('bp', 300, "unknown tokenizer 'bp'; did you mean 'bpe'"),
  ],
)
def test_bad_input(tmp_path, name, size, message):
  with pytest.raises(BadInput, match=message):
    tokenizers.make(name, TEXTS, size, tmp_path)
  assert not list(tmp_path.iterdir())


def test_a_model_smaller_than_its_trained_tokenizer(tmp_path):
  tokenizers.make('bpe', TEXTS, 350, tmp_path)
  rule = 'vocab_size must be at least 350 for .*tokenizer.json, got 300'
  with pytest.raises(BadInput, match=rule):
    tokenizers.make('bpe', TEXTS, 300, tmp_path)
