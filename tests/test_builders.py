"""Preparing a dataset once: from which files, and what is said of the rest."""

import dataclasses
import hashlib
import socket
import tarfile
from zipfile import ZipFile

import numpy as np
import pytest
import tensorflow_datasets as tfds
from tensorflow_datasets.core.download import (
  checksums,
  downloader,
  extractor,
  util,
)

from shared_tfm.__main__ import main
from shared_tfm.data.sources import builders, records
from shared_tfm.errors import BadInput

URL = 'https://example.com/lines.txt'
CONTENT = b'one\ntwo\nthree\n'
ARCHIVES = {  # what a builder opens of the files that a user brings
  'archive': ('lines.tar', tarfile.open),
  'packed': ('lines.zip', ZipFile),
}


class FileLines(tfds.core.GeneratorBasedBuilder):
  """The lines of a file that is to be downloaded, or that a user brings."""

  VERSION = tfds.core.Version('1.0.0')
  MANUAL_DOWNLOAD_INSTRUCTIONS = 'Get lines.txt from its authors.'
  BUILDER_CONFIGS = [  # noqa: RUF012
    tfds.core.BuilderConfig(name=name)
    for name in ('web', 'brought', 'package', 'extractor', *ARCHIVES)
  ]
  url_infos = {  # noqa: RUF012
    URL: checksums.UrlInfo(
      size=len(CONTENT),
      checksum=hashlib.sha256(CONTENT).hexdigest(),
      filename='lines.txt',
    )
  }

  def _info(self):
    fields = {'line': tfds.features.Text(), 'number': np.int32}
    return tfds.core.DatasetInfo(
      builder=self, features=tfds.features.FeaturesDict(fields)
    )

  def _split_generators(self, manager):
    name = self.builder_config.name
    if name == 'package':
      import no_such_package  # noqa: F401
    if name == 'extractor':  # which needs TensorFlow, and hides that
      raise extractor.ExtractError("lines.gz: No module named 'tensorflow'")
    if name == 'brought':
      return {
        'train': self._generate_examples(manager.manual_dir / 'lines.txt')
      }
    if name in ARCHIVES:
      file, unpack = ARCHIVES[name]
      with unpack(manager.manual_dir / file):
        return {'train': iter(())}
    return {'train': self._generate_examples(manager.download(URL))}

  def _generate_examples(self, path):
    for number, line in enumerate(path.read_text().splitlines()):
      yield number, {'line': line, 'number': number}


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
  def refuse(*args, **kwargs):
    raise OSError('there is no network')

  monkeypatch.setattr(socket, 'getaddrinfo', refuse)
  monkeypatch.setattr(FileLines, 'url_infos', dict(FileLines.url_infos))
  tfds.disable_progress_bar()


@pytest.fixture
def files(tmp_path):
  (tmp_path / 'files').mkdir()
  (tmp_path / 'files' / 'lines.txt').write_bytes(CONTENT)
  return tmp_path / 'files'


def lines(folder, name):
  found = records.open_tfds(name, str(folder)).split('train')
  return {record['line'] for record in found}


@pytest.mark.parametrize('name', ['web', 'brought'])
def test_files_that_lie_there_are_not_downloaded(tmp_path, files, name, capsys):
  name = f'file_lines/{name}'
  flags = [f'--path={tmp_path / "a"}', f'--manual_dir={files}']
  assert main(['prepare', name, *flags]) == 0
  made = capsys.readouterr().out.splitlines()[-1]
  assert made == str(tmp_path / 'a' / name / '1.0.0')
  assert lines(tmp_path / 'a', name) == {'one', 'two', 'three'}
  (files / 'lines.txt').unlink()  # what is prepared is left as it is
  assert builders.prepare(name, str(tmp_path / 'a')) == made


def test_a_file_without_a_name_has_that_of_its_address(tmp_path, files):
  info = FileLines.url_infos[URL]
  FileLines.url_infos[URL] = dataclasses.replace(info, filename=None)
  builders.prepare('file_lines/web', str(tmp_path / 'a'), str(files))
  assert lines(tmp_path / 'a', 'file_lines/web') == {'one', 'two', 'three'}


def test_another_file_is_taken_only_on_trust(tmp_path, files):
  (files / 'lines.txt').write_text('four\n')
  given = ('file_lines/web', str(tmp_path / 'a'), str(files))
  with pytest.raises(
    BadInput, match=r'wrong checksum: .* --trust takes'
  ) as told:
    builders.prepare(*given)
  assert '\n' not in str(told.value)
  builders.prepare(*given, trust=True)
  assert lines(tmp_path / 'a', 'file_lines/web') == {'four'}


def test_another_format_is_not_overwritten(tmp_path, files):
  given = tfds.download.DownloadConfig(manual_dir=files)
  FileLines(
    config='web', data_dir=tmp_path / 'a', file_format='parquet'
  ).download_and_prepare(download_config=given)
  with pytest.raises(BadInput, match=r'built: .*File format is already set'):
    builders.prepare('file_lines/web', str(tmp_path / 'a'), str(files))


@pytest.mark.parametrize(
  ('name', 'fields', 'message'),
  [
    ('file_line', {}, "file_line is not a name of TFDS; did you mean 'file_l"),
    ('file_lines/wob', {}, 'tfds:file_lines/wob cannot be built: .*wob'),
    ('file_lines/web', {'manual_dir': 'no'}, 'manual_dir no: no such folder'),
    ('file_lines/web', {'trust': True}, 'trust is for the files of a manual_d'),
    (
      'file_lines/package',
      {},
      "file_lines/package needs .*: No module named 'no_such_package'; the ext",
    ),
    (
      'file_lines/extractor',
      {},
      "file_lines/extractor needs .*: No module named 'tensorflow'; the ext",
    ),
    (
      'file_lines/brought',
      {},
      'brought cannot be built: Manual directory .* Get lines.txt from its',
    ),
  ],
)
def test_what_cannot_be_built(tmp_path, name, fields, message):
  with pytest.raises(BadInput, match=message) as told:
    builders.prepare(name, str(tmp_path / 'a'), **fields)
  assert '\n' not in str(told.value)
  assert not list(tmp_path.rglob('*array_record*'))


@pytest.mark.parametrize('name', ['archive', 'packed'])
def test_an_archive_that_is_cut_short(tmp_path, files, name):
  file, pack = ARCHIVES[name]
  with pack(files / file, 'w') as archive:
    add = archive.add if name == 'archive' else archive.write
    add(files / 'lines.txt', 'lines.txt')
  whole = (files / file).read_bytes()
  (files / file).write_bytes(whole[:100])
  with pytest.raises(BadInput, match=f'{name} cannot be built: ') as told:
    builders.prepare(f'file_lines/{name}', str(tmp_path / 'a'), str(files))
  assert '\n' not in str(told.value)


@pytest.mark.parametrize('error', [OSError, util.DownloadError])
def test_a_file_that_cannot_be_downloaded(tmp_path, monkeypatch, error):
  def refuse(self, url, *args, **kwargs):
    raise error(f'no route to {url}')

  monkeypatch.setattr(downloader._Downloader, '_sync_download', refuse)
  rule = 'no route to .*lines.txt; .* taken from --manual_dir, .*: lines.txt'
  with pytest.raises(BadInput, match=rule):
    builders.prepare('file_lines/web', str(tmp_path / 'a'))
