"""Two runs in one workdir are refused; a lock ends with its process."""

import os
import subprocess
import sys

import pytest

from simclr_jax.runtime.lock import WorkdirLock


def lock(workdir, **options):
    return WorkdirLock(str(workdir), **{'is_lead': True, **options})


def test_the_second_run_is_told_of_the_first_and_may_go_on_after_it(tmp_path):
    workdir = tmp_path / 'w'
    first, second = lock(workdir), lock(workdir)
    first.acquire()
    first.acquire()
    with pytest.raises(ValueError, match=f'Another run is using .*w .process {os.getpid()}.: wait for it'):
        second.acquire()
    with first:
        pass
    second.acquire()


def test_a_killed_process_leaves_no_lock(tmp_path):
    script = ('import os, sys; from simclr_jax.runtime.lock import WorkdirLock\n'
              'WorkdirLock(sys.argv[1], is_lead=True).acquire(); os.kill(os.getpid(), 9)')
    subprocess.run([sys.executable, '-c', script, str(tmp_path)], timeout=60)
    assert (tmp_path / '.lock').exists()
    lock(tmp_path).acquire()


def test_processes_that_do_not_lead_take_none(tmp_path):
    lock(tmp_path / 'w', is_lead=False).acquire()
    assert not (tmp_path / 'w').exists()
