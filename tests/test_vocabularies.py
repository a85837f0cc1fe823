"""Characters and words: the ids users expect, and what they stand for."""

import pathlib

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from shared_tfm.data import tokenizers, vocabularies
from shared_tfm.errors import BadInput

TEXTS = ['to be, or\n', 'not to be!\n']
WIKI = ' \n = Robert <unk> = \n \n He had a @-@ role in 2000 . \n'


def characters(folder, size=14, texts=TEXTS):
  return tokenizers.make('characters', texts, size, folder)


def words(folder, size=100, texts=(WIKI,)):
  return tokenizers.make('words', texts, size, folder)


def test_characters_are_the_training_text_s_by_code_point(tmp_path):
  made = characters(tmp_path)
  known = '\n !,benort'
  assert made.pieces == (*(c.encode() for c in known), b'', b'')
  assert made.encode('be\n').tolist() == [known.index(c) for c in 'be\n']
  assert made.encode('').tolist() == [] and made.encode('').dtype == np.int32
  assert (made.eos, made.mask, made.vocab_size) == (10, 11, 12)


@hypothesis.settings(deadline=None, max_examples=100)
@hypothesis.given(text=st.text())
def test_bytes_spell_what_the_training_text_lacks(tmp_path_factory, text):
  folder = tmp_path_factory.getbasetemp() / 'spelled'
  made = characters(folder, 400, [*TEXTS, 'Bär'])
  assert made.vocab_size == 256 + len('ä') + 2
  ids = made.encode(text)
  assert ids.dtype == np.int32
  assert made.decode(ids) == text
  assert made.byte_lengths[ids].sum() == len(text.encode())
  assert not {made.eos, made.mask} & {*ids.tolist()}


def test_no_room_for_bytes(tmp_path):
  made = characters(tmp_path / 'a', 257)  # of the 258 that it would take
  assert made.vocab_size == 12
  rule = r"the training text has no 'é'; .*vocab_size must be at least 258$"
  with pytest.raises(BadInput, match=rule):
    made.encode('to bé')
  assert characters(tmp_path / 'b', 258).encode('é').tolist() == [
    10 + byte - sum(c.encode()[0] < byte for c in '\n !,benort')
    for byte in 'é'.encode()
  ]


def test_words_of_wikitext_lose_nothing(tmp_path):
  made = words(tmp_path)
  ids = made.encode(WIKI)
  assert made.decode(ids) == WIKI
  assert made.byte_lengths[ids].sum() == len(WIKI.encode())
  assert len(ids) == vocabularies.count_words(WIKI) == 16
  assert made.pieces[:5] == (b' \n', b' <unk>', b' =', b' .', b' 2000')
  assert made.vocab_size == 12 + 2


def test_the_most_frequent_words_are_kept(tmp_path):
  made = words(tmp_path, 7, ['b a c a\nb  a\n', '\td e'])
  assert made.pieces == (b' \n', b' <unk>', b' a', b' b', b' c', b'', b'')
  assert made.encode('a  z\n\nb').tolist() == [2, 1, 0, 0, 3]
  assert made.decode([2, 1, 0, 0, 3]) == ' a <unk> \n \n b'


@pytest.mark.parametrize(
  ('text', 'count'),
  [('', 0), ('\n', 1), ('a b', 2), ('a b\n', 3), ('a\tb \n\n c', 5)],
)
def test_counting_words(tmp_path, text, count):
  assert vocabularies.count_words(text) == count
  assert len(words(tmp_path).encode(text)) == count


@pytest.mark.parametrize('kind', vocabularies.KINDS)
def test_a_learned_file_is_used_again(tmp_path, kind):
  first = tokenizers.make(kind, [WIKI], 300, tmp_path)
  again = tokenizers.make(kind, ['other text'], 300, tmp_path)
  assert again.pieces == first.pieces
  assert [path.name for path in tmp_path.iterdir()] == ['tokenizer.json']


@pytest.mark.parametrize('kind', vocabularies.KINDS)
@pytest.mark.parametrize(
  'damage',
  [
    lambda text: text[: len(text) // 2],
    lambda text: '',
    lambda text: '{}',
    lambda text: '[1]',
    lambda text: text.replace('"\\n", ', '"\\n", 7, '),
    lambda text: text.replace('"\\n", ', '"\\n", "\\n", '),
    lambda text: text.replace('"\\n", ', '"a  b", '),
    lambda text: text.replace('characters', 'w').replace('words', 'bpe'),
  ],
)
def test_a_corrupt_file_is_named(tmp_path, kind, damage):
  tokenizers.make(kind, [WIKI], 300, tmp_path)
  path = tmp_path / 'tokenizer.json'
  path.write_text(damage(path.read_text()))
  with pytest.raises(BadInput, match=f'{path} is not a list of {kind}') as told:
    tokenizers.make(kind, [WIKI], 300, tmp_path)
  assert '\n' not in str(told.value)


@pytest.mark.parametrize(
  ('kind', 'size', 'message'),
  [
    ('characters', 11, 'at least 12 for the 10 characters .*, got 11'),
    ('words', 3, "at least 4 for the tokenizer 'words', got 3"),
    ('word', 300, "unknown tokenizer 'word'; did you mean 'words'"),
  ],
)
def test_bad_input(tmp_path, kind, size, message):
  with pytest.raises(BadInput, match=message):
    tokenizers.make(kind, TEXTS, size, tmp_path)
  assert not list(tmp_path.iterdir())


def test_a_model_smaller_than_its_characters(tmp_path):
  characters(tmp_path, 300)
  with pytest.raises(BadInput, match=r'at least 12 for .*json, got 9'):
    characters(tmp_path, 9)


def test_this_file_round_trips(tmp_path):
  text = pathlib.Path(__file__).read_text()
  made = characters(tmp_path, 400, [text[:500]])
  assert made.decode(made.encode(text)) == text
