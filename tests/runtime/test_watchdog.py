"""Whoever keeps the others waiting is named in time: stopped, stuck, or never come."""

import math
import os
import re
import signal
import socket
import subprocess
import sys
import time

import pytest

from simclr_jax.runtime.watchdog import Doing, verdict

NOW = 1000.0
HOST = re.escape(socket.gethostname())


def doing(place=0, *, since=0.0, heard=0.0, patience=1.0, name=''):
    """At 'step PLACE' for `since` seconds, last heard of `heard` seconds ago."""
    return Doing(place, f'step {place}', patience, NOW - since, NOW - heard, name)


def judge(mine, **others):
    return verdict(NOW, mine, {int(name[1:]): other for name, other in others.items()}, timeout=30, silence=10)


def test_who_gives_no_sign_of_life_is_named_whatever_it_does():
    found = judge(doing(7), p1=doing(6, heard=11, patience=math.inf, name='B'), p2=doing(7, heard=1, name='C'))
    assert found == ('waited in step 7 for B, not heard of for 11 s (last in step 6): it is stopped, or its host or '
                     'network is lost')
    # Process 0 keeps what all others say: where it is silent, all seem so.
    found = judge(doing(7), p0=doing(6, heard=11, name='A'), p2=doing(7, heard=11, name='C'))
    assert ' for A, ' in found and 'C' not in found


def test_who_is_behind_is_named_and_who_is_behind_says_so():
    late = doing(7, since=31)
    assert judge(late, p1=doing(6, name='B'), p2=doing(7, name='C')) == (
        'waited 31 s in step 7 for B, which is alive and stuck in step 6')
    assert judge(late, p1=doing(8, name='B')) == 'stuck in step 7 for 31 s, and the others wait for it'
    assert judge(late, p1=doing(7, name='B')).startswith('stuck in step 7 for 31 s, as are all others')


def test_all_wait_as_long_as_the_most_patient():
    def ends(seconds, mine, other):
        return bool(judge(doing(7, since=seconds, patience=mine), p1=doing(6, patience=other, name='B')))

    assert ends(31, 1, 1) and not ends(29, 1, 1)
    for mine, other in ((10, 1), (1, 10)):
        assert ends(301, mine, other) and not ends(299, mine, other)
    assert not ends(1e9, math.inf, 1)           # it is in an evaluation of any length
    assert ends(31, 1, math.inf)                # but not the one that waits for it in a step


STEPS = """
import sys, time
from simclr_jax.runtime.processes import Processes
from simclr_jax.runtime.watchdog import at
address, number, timeout, stuck = sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), sys.argv[4:]
processes = Processes(address, 2, number, timeout=timeout)
from jax.experimental import multihost_utils
for step in range(1, 10_000):
    at(step, f'the images of step {step}')
    print(step, flush=True)
    if stuck and number == 1 and step == 3:
        time.sleep(1000)
    at(step + 0.1, f'step {step}')
    multihost_utils.sync_global_devices(f'step {step}')
    time.sleep(0.05)
"""


@pytest.fixture(scope='module')
def groups():
    """{name: processes of a run of two, by number}, all started together, since most of their time is waiting."""
    started = {}

    def start(name, numbers, *arguments):
        with socket.socket() as free:
            free.bind(('localhost', 0))
            address = f'localhost:{free.getsockname()[1]}'
        started[name] = {number: subprocess.Popen(
            [sys.executable, '-c', STEPS, address, str(number), *arguments], text=True, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, env=os.environ | {
                'XLA_FLAGS': '--xla_force_host_platform_device_count=1', 'PYTHONPATH': os.pathsep.join(sys.path)})
            for number in numbers}

    start('stopped', (0, 1), '9')
    start('stuck', (0, 1), '9', 'stuck')
    start('no partner', (0,), '3')
    start('no process 0', (1,), '3')
    yield started
    for group in started.values():
        for process in group.values():
            process.kill()
            process.communicate()


def sentences(process, *, timeout=60):
    """The status of a process that ends, and what it says of an error."""
    error = process.communicate(timeout=timeout)[1]
    return process.returncode, ' '.join(line for line in error.splitlines() if line.startswith('error:'))


def test_a_stopped_process_is_named_in_time_and_ends_when_it_comes_back(groups):
    lead, other = groups['stopped'].values()
    for line in other.stdout:
        if line == '60\n':         # three seconds, so that each has heard of the other
            break
    other.send_signal(signal.SIGSTOP)
    stopped = time.monotonic()
    status, said = sentences(lead)
    assert status == 75 and time.monotonic() - stopped < 9 + 7      # it is told to all, and process 0 leaves last
    assert re.search(rf'process 0 of 2 \({HOST}\): waited in step \d+ for process 1 of 2 \({HOST}\), not heard of for',
                     said)
    assert 'The same command resumes from the last checkpoint.' in said
    other.send_signal(signal.SIGCONT)
    before = other.stdout.readline()
    assert sentences(other)[0] in (75, 134, -signal.SIGABRT)        # jax may be faster to abort it
    assert not before


def test_a_process_that_is_alive_and_stuck_is_named_by_both(groups):
    (status, said), (other_status, other_said) = map(sentences, groups['stuck'].values())
    assert status == other_status == 75
    assert f'process 1 of 2 ({socket.gethostname()})' in said and 'stuck in the images of step 3' in said
    assert 'stuck in the images of step 3' in other_said


def test_a_partner_that_never_comes_is_one_sentence(groups):
    status, said = sentences(groups['no partner'][0])
    assert status == 75
    assert re.search(r'process 0 of 2 .*: waited 3 s for the others, and not all have joined at localhost:\d+\.', said)


def test_a_process_0_that_never_comes_is_one_sentence(groups):
    status, said = sentences(groups['no process 0'][1])
    assert status == 75
    assert re.search(r'process 1 of 2 .*: process 0 has not answered at localhost:\d+ for 3 s', said)
