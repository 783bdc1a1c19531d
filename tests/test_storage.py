"""One module for every path: the same promises on a disk and on an object store."""

import os

import pytest

from simclr_jax import buckets, storage


@pytest.mark.parametrize('path', ['gs://', 's3:///', 'memory://'])
def test_a_path_of_no_bucket_is_refused(path):
    with pytest.raises(ValueError, match='names no bucket: write .*://BUCKET/PATH'):
        storage.as_path(path)


def test_a_bucket_that_must_not_be_written_to_is_named_as_it_was_given(monkeypatch):
    def refuse(path, *_):
        raise storage.StoreError(f"'{path}': this account has no permission to do that.")

    monkeypatch.setattr(buckets, 'call', refuse)
    with pytest.raises(storage.StoreError, match="^'gs://mine/run': this account has no permission"):
        storage.check_workdir('gs://mine/run')


@pytest.fixture(params=['local', 'memory'])
def root(request, tmp_path):
    """A directory of each kind, empty."""
    path = str(tmp_path) if request.param == 'local' else f'memory://{tmp_path}'
    yield path
    if storage.is_remote(path):
        storage.remove(path)


def test_what_is_written_is_found_listed_and_read(root):
    storage.write_atomically(f'{root}/a/b.bin', b'123')
    storage.write_atomically(f'{root}/c.bin', b'4')
    assert storage.scan(root) == [('a', True), ('c.bin', False)]
    assert storage.read_bytes(f'{root}/a/b.bin') == b'123' and storage.size(f'{root}/a/b.bin') == 3
    assert storage.read_bytes(f'{root}/a/b.bin', 1, 1) == b'2'
    with storage.open_read(f'{root}/a/b.bin') as file:
        file.seek(1)
        assert file.read(1) == b'2'
    assert storage.is_dir(f'{root}/a') and not storage.is_dir(f'{root}/c.bin')
    assert storage.exists(f'{root}/c.bin') and not storage.exists(f'{root}/d')


def test_files_are_replaced_and_removed(root):
    storage.write_atomically(f'{root}/a', b'old')
    storage.write_atomically(f'{root}/a', b'new')
    storage.write_atomically(f'{root}/b', b'other')
    storage.replace(f'{root}/b', f'{root}/a')
    assert storage.read_bytes(f'{root}/a') == b'other'
    assert storage.scan(root) == [('a', False)]        # and no unfinished file
    storage.write_atomically(f'{root}/deep/er/x', b'')
    storage.remove(f'{root}/deep')
    storage.remove(f'{root}/nothing')
    assert storage.scan(root) == [('a', False)]


def test_a_write_that_fails_leaves_what_was_there(tmp_path):
    storage.write_atomically(tmp_path / 'a', b'old')
    with pytest.raises(TypeError):
        storage.write_atomically(tmp_path / 'a', 'text is no bytes')
    assert storage.read_bytes(tmp_path / 'a') == b'old' and os.listdir(tmp_path) == ['a']


def test_what_is_not_there_is_an_os_error(root):
    with pytest.raises(FileNotFoundError):
        storage.read_bytes(f'{root}/nothing')


def test_a_remote_path_without_its_package_or_of_no_kind_ends_in_one_sentence():
    with pytest.raises(OSError, match="'az://bucket/a' needs a package that is not installed: .*adlfs"):
        storage.read_bytes('az://bucket/a')
    with pytest.raises(OSError, match="'xy://a': no file system is called 'xy'"):
        storage.exists('xy://a')


def test_the_home_directory_is_expanded_in_local_paths_alone():
    assert storage.as_path('~/a') == os.path.expanduser('~/a')
    assert storage.as_path('gs://bucket/~/a') == 'gs://bucket/~/a'


def test_what_is_added_stands_at_the_end(tmp_path):
    storage.append(tmp_path / 'a', b'1')
    storage.append(tmp_path / 'a', b'2')
    assert storage.read_bytes(tmp_path / 'a') == b'12'


def test_half_a_scheme_is_told_before_it_becomes_a_directory():
    with pytest.raises(ValueError, match="'gs:/bucket/run' is not a path in a bucket: write gs://bucket/run"):
        storage.absolute('gs:/bucket/run')
