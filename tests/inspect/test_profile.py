"""Traces of training steps: they hold the steps that were asked for, and change nothing."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from simclr_jax.config import check_profile_steps
from simclr_jax.inspect.profile import StepProfiler
from simclr_jax.train import MAY_DIFFER, pretrain
from tests.runs import small_config

pytestmark = pytest.mark.usefixtures('one_device')


def short_config(num_steps=14, **overrides):
    return small_config(**{'num_train_steps': num_steps, 'data.test_split': 'none', 'checkpoint.every_epochs': 0.0,
                           'log.every_steps': 1, **overrides})


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
    """The workdirs of one run without traces and of one with both kinds."""
    plain, traced = tmp_path_factory.mktemp('plain'), tmp_path_factory.mktemp('traced')
    pretrain(short_config(), str(plain))        # the breakdown's steps would be 11 to 13
    pretrain(short_config(**{'profile_steps': (10, 12), 'log.step_breakdown': True}), str(traced))
    return plain, traced


def traces_in(workdir):
    return list(pathlib.Path(workdir).glob('profile/plugins/profile/*/*.xplane.pb'))    # as TensorBoard


def steps_in(path):
    trace = jax.profiler.ProfileData.from_file(str(path))
    return [dict(event.stats)['step_num'] for plane in trace.planes for line in plane.lines
            for event in line.events if event.name == 'train']


def log_of(workdir):
    return (pathlib.Path(workdir) / 'log.txt').read_text()


def test_a_trace_holds_the_steps_from_the_first_number_up_to_the_second(runs):
    plain, traced = runs
    path, = traces_in(traced)
    assert steps_in(path) == [10, 11]
    assert f'Steps 10 to 11 are traced in {traced}/profile; to see them: pip install xprof' in log_of(traced)
    assert f'tensorboard --logdir={traced}/profile' in log_of(traced)
    assert not (plain / 'profile').exists()


def test_traced_runs_end_bit_for_bit_as_others_and_log_the_same(runs):
    states = [ocp.PyTreeCheckpointer().restore(workdir / 'checkpoints' / '14' / 'state') for workdir in runs]
    jax.tree.map(np.testing.assert_array_equal, *states)
    losses = [[json.loads(line)['loss'] for line in (workdir / 'metrics.jsonl').read_text().splitlines()]
              for workdir in runs]
    assert losses[0] == losses[1] and len(losses[0]) == 14


def test_the_breakdown_names_the_parts_of_a_real_step_after_the_other_trace(runs):
    plain, traced = runs
    rows = [json.loads(line) for line in (traced / 'metrics.jsonl').read_text().splitlines()]
    told, = [row for row in rows if 'step_ms/forward' in row]
    assert told['step'] == 14                                   # steps 12 to 14: 11 was taken
    ms = {name.removeprefix('step_ms/'): value for name, value in told.items() if name.startswith('step_ms/')}
    assert all(ms[part] > 0 for part in ('views', 'forward', 'loss', 'backward', 'optimizer'))
    assert ms['input_wait'] == 0                                # the data set lies on the device
    assert ms['unnamed'] < 0.05 * sum(ms.values())
    log = log_of(traced)
    assert 'step breakdown: of steps 12 to 14' in log
    step, = [line.split() for line in log.splitlines() if line.startswith('step  ')]
    assert float(step[1]) == pytest.approx(sum(ms.values()), rel=1e-3) and step[2] == '100.0'
    assert 'step breakdown' not in log_of(plain)
    assert all(0 <= row['input_wait_share'] <= 1 for row in rows)


def test_what_is_traced_makes_no_other_run():
    assert {'profile_steps', 'compile_cache', 'log'} <= set(MAY_DIFFER)


@pytest.mark.parametrize('steps', [(5,), (20, 10), (10, 10), (0, 5), (-1, 4), (1, 2, 3), (1.0, 2), (True, 3),
                                   '10,20', ('a', 'b'), 10])
def test_steps_that_are_no_window_are_refused(steps):
    with pytest.raises(ValueError, match='profile_steps is .*: it must be two step numbers from 1'):
        check_profile_steps(steps)


def test_a_window_lies_within_the_run(tmp_path):
    for steps in ((), (1, 2), (12, 13)):
        check_profile_steps(steps, 12)
    with pytest.raises(ValueError, match='profile_steps is 12,14: the run has 12 steps.* 13 at most'):
        pretrain(short_config(12, profile_steps=(12, 14)), str(tmp_path / 'w'))
    assert not (tmp_path / 'w').exists()


# --- the profiler in a loop of its own


class Writer:
    def __init__(self):
        self.notes = []

    def note(self, text):
        self.notes.append(text)


def profiler(tmp_path, writer, **options):
    return StepProfiler(writer, str(tmp_path), waited=lambda: 0.0, **{
        'steps': (2, 9), 'breakdown': False, 'start': 0, 'num_steps': 20, 'is_lead': True, **options})


def loop(profiler, first, last):
    """The steps at whose end there was something to report."""
    ended = []
    for step in range(first, last + 1):
        profiler.begin(step, jnp.zeros(()))
        if profiler.end(step, jnp.zeros(()) + step):
            ended.append(step)
            profiler.report(lambda: '')
    return ended


def test_a_trace_that_the_run_does_not_live_to_end_is_kept(tmp_path):
    writer = Writer()
    with pytest.raises(SystemExit), profiler(tmp_path, writer) as tracing:
        assert loop(tracing, 1, 4) == []
        tracing.begin(5, jnp.zeros(()))
        raise SystemExit(143)
    path, = traces_in(tmp_path)
    assert steps_in(path) == [2, 3, 4, 5]
    assert len(writer.notes) == 1 and writer.notes[0].startswith('Steps 2 to 4 are traced in')
    with profiler(tmp_path / 'next', writer, steps=(2, 4)) as tracing:      # none is open any more
        assert loop(tracing, 1, 5) == [3]


def test_a_run_that_resumes_within_the_window_traces_the_rest(tmp_path):
    writer = Writer()
    with profiler(tmp_path, writer, start=6) as tracing:
        assert loop(tracing, 7, 12) == [8]
    assert steps_in(*traces_in(tmp_path)) == [7, 8]
    assert writer.notes[0].startswith('Steps 7 to 8 are traced in')


def test_a_run_that_resumes_behind_the_window_says_so_and_goes_on(tmp_path):
    writer = Writer()
    with profiler(tmp_path, writer, start=8) as tracing:
        assert loop(tracing, 9, 12) == []
    note, = writer.notes
    assert note == 'profile_steps 2,9: the run resumes after step 8, past them; nothing is traced.'
    assert not traces_in(tmp_path)


def test_only_the_lead_process_traces(tmp_path):
    writer = Writer()
    with profiler(tmp_path, writer, is_lead=False, breakdown=True) as tracing:
        assert loop(tracing, 1, 20) == []
    assert not writer.notes and not list(tmp_path.iterdir())


def test_what_the_profiler_refuses_is_said_and_ends_no_run(tmp_path):
    writer = Writer()
    with profiler(tmp_path, writer) as first, profiler(tmp_path, writer, steps=(3, 5)) as second:
        loop(first, 1, 3)
        assert loop(second, 1, 6) == []
    assert writer.notes[0].startswith('Steps 3 to 4 are not traced: ')
    assert writer.notes[1].startswith('Steps 2 to 3 are traced')


def test_a_breakdown_of_nothing_ends_no_run(tmp_path):
    writer = Writer()
    with profiler(tmp_path, writer, steps=(), breakdown=True) as tracing:
        for step in range(1, 14):
            tracing.begin(step, jnp.zeros(()))
            if tracing.end(step, jnp.zeros(())):
                assert step == 13
                assert tracing.report(lambda: 'HloModule jit_other\n') == {}
                assert tracing.report(lambda: 1 / 0) == {}
    assert writer.notes[0].startswith('No step breakdown: the profiler saw no operation of the step')
    assert writer.notes[1].startswith('No step breakdown: ')
    assert not (tmp_path / 'profile').exists()


def test_a_run_too_short_for_a_breakdown_has_none(tmp_path):
    with profiler(tmp_path, Writer(), steps=(), breakdown=True, num_steps=12) as tracing:
        assert loop(tracing, 1, 12) == []
