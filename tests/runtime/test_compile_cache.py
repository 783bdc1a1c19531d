"""Compiled programs are kept where the user says, or where such things belong; a full disk ends no run."""

import jax
import jax.numpy as jnp
import pytest
from jax.experimental.compilation_cache import compilation_cache

from simclr_jax.runtime.compile_cache import default_directory, use_compile_cache

FIELDS = ('jax_compilation_cache_dir', 'jax_enable_compilation_cache',
          'jax_compilation_cache_max_size', 'jax_persistent_cache_min_compile_time_secs')


@pytest.fixture(autouse=True)
def settings(monkeypatch, tmp_path):
    """jax as it is without any setting, a home in tmp_path; all is as before afterwards."""
    before = {name: getattr(jax.config, name) for name in FIELDS}
    monkeypatch.delenv('XDG_CACHE_HOME', raising=False)
    monkeypatch.delenv('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', raising=False)
    monkeypatch.setenv('HOME', str(tmp_path / 'home'))
    jax.config.update('jax_compilation_cache_dir', None)
    jax.config.update('jax_compilation_cache_max_size', -1)
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


def test_the_default_is_where_the_user_keeps_caches(tmp_path, monkeypatch):
    home = tmp_path / 'home' / '.cache' / 'simclr_jax' / 'programs'
    assert use_compile_cache() == '' and jax.config.jax_compilation_cache_dir == str(home)
    assert home.is_dir() and home.stat().st_mode & 0o077 == 0   # whoever writes there runs code as the user
    monkeypatch.setenv('XDG_CACHE_HOME', 'relative')
    assert default_directory() == home
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'xdg'))
    assert default_directory() == tmp_path / 'xdg' / 'simclr_jax' / 'programs'


def test_jaxs_own_setting_comes_before_the_default_and_the_field_before_both(tmp_path, monkeypatch):
    monkeypatch.setenv('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '7')
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 7.0)
    jax.config.update('jax_compilation_cache_dir', str(tmp_path / 'jax'))
    assert use_compile_cache() == '' and jax.config.jax_compilation_cache_dir == str(tmp_path / 'jax')
    assert use_compile_cache(str(tmp_path / 'mine')) == ''
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / 'mine')
    assert use_compile_cache('~/mine') == ''
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / 'home' / 'mine')
    assert jax.config.jax_persistent_cache_min_compile_time_secs == 7.0
    assert not (tmp_path / 'home' / '.cache').exists()


def test_off_is_off_whatever_jax_was_told(tmp_path):
    jax.config.update('jax_compilation_cache_dir', str(tmp_path / 'jax'))
    assert use_compile_cache('off') == '' and not jax.config.jax_enable_compilation_cache
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('choice', ['', 'named'])
def test_a_directory_that_cannot_be_written_to_is_one_warning(choice, tmp_path):
    (tmp_path / 'home').write_text('a file')
    sentence = use_compile_cache(choice and str(tmp_path / 'home' / choice))
    assert sentence.startswith('Compiled programs are not kept, so that every start compiles them: ')
    assert str(tmp_path / 'home') in sentence and '\n' not in sentence
    assert jax.config.jax_compilation_cache_dir is None


def test_a_user_without_a_home_is_one_warning(monkeypatch):
    monkeypatch.setenv('HOME', '~')
    assert use_compile_cache().endswith('compiles them: Could not determine home directory.')


def test_only_the_default_directory_has_a_limit_and_it_takes_the_place_of_the_former_one(tmp_path):
    former = tmp_path / 'home' / '.cache' / 'simclr_jax' / 'compiled'
    former.mkdir(parents=True)
    (former / 'a-cache').write_bytes(b'x')
    assert use_compile_cache(str(tmp_path / 'mine')) == ''
    assert jax.config.jax_compilation_cache_max_size == -1 and former.exists()
    jax.config.update('jax_compilation_cache_dir', None)        # as in a new process
    assert use_compile_cache() == '' and not former.exists()
    assert jax.config.jax_compilation_cache_max_size == 4 << 30


def test_a_second_start_finds_its_programs(tmp_path):
    found = []
    jax.monitoring.register_event_listener(listen := lambda event, **_: found.append(event))
    try:
        jax.config.update('jax_enable_compilation_cache', True)
        assert use_compile_cache(str(tmp_path)) == ''
        jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.0)    # this one compiles fast
        for _ in range(2):
            compilation_cache.reset_cache()                                     # as a new process
            jax.clear_caches()
            jax.jit(lambda x: jnp.sin(x) + 3)(2.0)
    finally:
        jax.monitoring.unregister_event_listener(listen)
    assert '/jax/compilation_cache/cache_hits' in found and list(tmp_path.glob('*-cache'))
