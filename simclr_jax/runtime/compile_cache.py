"""Compiled programs, kept on disk by jax so that the second start of a run is fast.

jax's key of a program holds the program, the versions, XLA's flags and the processor or accelerator: a
directory that unlike machines share is safe. Whoever may write to it may run code as the user who reads it.
"""

import os
import pathlib
import shutil
import tempfile
from typing import Any

import jax

from simclr_jax import storage

# A program that compiles faster is not kept. Of the ten of configs/smoke.py four do, in 0.1 s together.
_MIN_SECONDS = 0.1
_MAX_BYTES = 4 << 30            # of the default directory; jax itself keeps all, for ever


def use_compile_cache(choice: str = '') -> str:
    """Sets where jax keeps compiled programs; to be called before the first one is compiled.

    Args:
        choice: a directory, here or in a bucket; 'off' for none; '' for that of jax's own settings
            (JAX_COMPILATION_CACHE_DIR), else `default_directory()`, where jax lets the programs longest unused
            make room for new ones.

    Returns:
        '', or a sentence on why nothing is kept: a directory that cannot be written to is no error.
    """
    if choice == 'off':
        jax.config.update('jax_enable_compilation_cache', False)
        return ''
    if 'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS' not in os.environ:
        jax.config.update('jax_persistent_cache_min_compile_time_secs', _MIN_SECONDS)
    of_jax = '' if choice else jax.config.jax_compilation_cache_dir or ''   # pyright: ignore[reportAttributeAccessIssue]
    if storage.is_remote(choice or of_jax):     # by etils.epath, in jax
        choice = storage.as_path(choice or of_jax)
        try:
            storage.check_workdir(choice)
        except (OSError, ValueError, storage.StoreError) as error:
            return f'Compiled programs are not kept, so that every start compiles them: {error}'
        jax.config.update('jax_persistent_cache_enable_xla_caches', 'none')     # of XLA's own, which are local
        jax.config.update('jax_compilation_cache_dir', choice)
        return ''
    if of_jax:
        return ''
    try:
        directory = pathlib.Path(choice).expanduser().absolute() if choice else default_directory()
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            pass
    except (OSError, RuntimeError) as error:
        return f'Compiled programs are not kept, so that every start compiles them: {error}'
    jax.config.update('jax_compilation_cache_dir', str(directory))
    if not choice:
        jax.config.update('jax_compilation_cache_max_size', _MAX_BYTES)
        # What earlier versions kept has no times of use, without which jax cannot make room.
        shutil.rmtree(directory.with_name('compiled'), ignore_errors=True)
    return ''


def keeps_programs() -> bool:
    """Whether jax keeps compiled programs, by its settings of now."""
    settings: Any = jax.config
    return bool(settings.jax_enable_compilation_cache and settings.jax_compilation_cache_dir)


def default_directory() -> pathlib.Path:
    """$XDG_CACHE_HOME/simclr_jax/programs, or ~/.cache/...; RuntimeError without a home."""
    pathlib.Path.home()
    return pathlib.Path(storage.user_cache('programs'))
