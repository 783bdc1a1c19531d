"""Promises of metrics.py: every row is told once, on screen, in the file and in TensorBoard."""

import io
import json
import os
import pathlib
import re
import subprocess
import sys
import time
import types

import jax.numpy as jnp
import numpy as np
import pytest

from simclr_jax.runlog.late import LateLog
from simclr_jax.runlog.progress import Throughput, noting_length
from simclr_jax.runlog.tensorboard import TensorBoard
from simclr_jax.runlog.writer import MetricWriter

REPOSITORY = pathlib.Path(__file__).parents[2]


class Terminal(io.StringIO):
    def isatty(self):
        return True


def rows(workdir):
    return [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]


def write_steps(workdir, steps, value=1.0, **arguments):
    with MetricWriter(workdir, total_steps=100, stream=io.StringIO(), **arguments) as writer:
        for step in steps:
            writer.write(step, {'loss': value})


@pytest.fixture
def accumulator(monkeypatch):
    """TensorBoard's own reader; this module's presence makes it do without tensorflow."""
    monkeypatch.setitem(sys.modules, 'tensorboard.compat.notf', types.ModuleType('notf'))
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    def scalars(workdir, tag):
        reader = EventAccumulator(str(workdir / 'tensorboard'))
        reader.Reload()
        return [(event.step, event.value) for event in reader.Scalars(tag)]

    return scalars


def test_rows_are_json_with_null_for_what_json_has_no_number_for(tmp_path):
    with MetricWriter(tmp_path, total_steps=9, stream=io.StringIO()) as writer:
        writer.write(1, {'loss': jnp.float32(0.5), 'accuracy': 1})
        writer.write(2, {'loss': float('nan'), 'accuracy': jnp.float32(jnp.inf)})

    def refuse(constant):
        raise AssertionError(f'{constant} is not JSON')

    first, second = (json.loads(line, parse_constant=refuse)
                     for line in (tmp_path / 'metrics.jsonl').read_text().splitlines())
    assert (first['step'], first['loss'], first['accuracy']) == (1, 0.5, 1.0)
    assert (second['loss'], second['accuracy']) == (None, None)
    assert second['time'] >= first['time'] > 1e9


def test_a_row_is_on_disk_as_soon_as_it_is_written(tmp_path):
    writer = MetricWriter(tmp_path, total_steps=9, stream=io.StringIO())
    writer.write(1, {'loss': 2.0})
    assert rows(tmp_path)[0]['loss'] == 2.0
    writer.close()
    writer.close()


def test_after_a_kill_and_resume_no_step_appears_twice(tmp_path, accumulator):
    write_steps(tmp_path, [10, 20, 30, 40], value=1.0)
    with open(tmp_path / 'metrics.jsonl', 'a') as file:
        file.write('{"step": 15, "lo')
    write_steps(tmp_path, [30, 40, 50], value=2.0, start_step=20)
    expected = [(10, 1.0), (20, 1.0), (30, 2.0), (40, 2.0), (50, 2.0)]
    assert [(row['step'], row['loss']) for row in rows(tmp_path)] == expected
    assert accumulator(tmp_path, 'loss') == expected


def test_tensorboard_that_is_named_writes_one_file_of_events(tmp_path, accumulator):
    write_steps(tmp_path, [10, 20], writers=[lambda: TensorBoard(tmp_path)])
    assert len([*(tmp_path / 'tensorboard').iterdir()]) == 1
    assert accumulator(tmp_path, 'loss') == [(10, 1.0), (20, 1.0)]


def test_a_last_line_cut_just_before_its_newline_is_dropped(tmp_path):
    write_steps(tmp_path, [10, 20])
    path = tmp_path / 'metrics.jsonl'
    path.write_text(path.read_text()[:-1])
    write_steps(tmp_path, [30], start_step=20)
    assert [row['step'] for row in rows(tmp_path)] == [10, 30]


def test_a_fresh_run_starts_the_metrics_anew(tmp_path, accumulator):
    write_steps(tmp_path, [0, 10, 20], value=1.0)
    write_steps(tmp_path, [10], value=2.0)
    assert [(row['step'], row['loss']) for row in rows(tmp_path)] == [(10, 2.0)]
    assert accumulator(tmp_path, 'loss') == [(10, 2.0)]


def test_a_log_gets_one_plain_line_a_row(tmp_path):
    stream = io.StringIO()
    with MetricWriter(tmp_path, total_steps=31_279, stream=stream) as writer:
        writer.write(1_200, {'learning_rate': 0.48, 'other': 3.0, 'probe_accuracy': 0.41234,
                             'loss': 5.12345})
        writer.write(1_200, {'test_recall': 0.25})
        writer.note('evaluating [test]')
    assert stream.getvalue().splitlines() == [
        'step 1,200/31,279  loss 5.123  probe 0.4123  lr 0.48',
        'step 1,200/31,279  test_recall 0.25',
        'evaluating [test]']
    assert (tmp_path / 'log.txt').read_text().endswith('  evaluating [test]\n')


def test_throughput_and_eta_leave_out_compilation_and_evaluation(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr('simclr_jax.runlog.writer.Throughput',
                        lambda step: Throughput(step, clock=lambda: now[0]))
    stream = io.StringIO()
    with MetricWriter(tmp_path, total_steps=1_000, batch_size=256, stream=stream) as writer:
        now[0] = 500.0                     # compilation
        writer.write(10, {'loss': 1.0})
        now[0] += 20.0                     # 40 steps at 2 a second
        with writer.pause():
            now[0] += 999.0
        writer.write(50, {'loss': 1.0})
        now[0] += 5.0
        writer.write(50, {'knn_accuracy': 0.5})
        now[0] += 20.0                     # 50 steps in the 25 seconds
        writer.write(100, {'loss': 1.0})
    assert [row.get('images_per_second') for row in rows(tmp_path)] == [None, 512.0, None, 512.0]
    lines = stream.getvalue().splitlines()
    assert lines[1] == 'step 50/1,000  loss 1  512 images/s  ETA 8 min'
    assert lines[3] == 'step 100/1,000  loss 1  512 images/s  ETA 8 min'


@pytest.mark.parametrize('rate,expected', [
    (100 / 45, '45 s'), (100 / 420, '7 min'), (100 / 4980, '1 h 23 min'),
    (100 / 183_600, '2 d 3 h'), (100 / 3599, '1 h 0 min')])
def test_the_eta_is_told_in_words(tmp_path, monkeypatch, rate, expected):
    monkeypatch.setattr(Throughput, '__call__', lambda self, step: rate)
    stream = io.StringIO()
    with MetricWriter(tmp_path, total_steps=200, stream=stream) as writer:
        writer.write(100, {'loss': 1.0})
    assert stream.getvalue().strip().endswith(f'  ETA {expected}')


def test_a_table_is_aligned_in_a_log_and_kept(tmp_path):
    stream = io.StringIO()
    with MetricWriter(tmp_path, total_steps=9, stream=stream) as writer:
        writer.table('results', ['evaluation', 'top-1'], [['kNN', 0.912345], ['linear', 90]])
    assert stream.getvalue() == ('results\n'
                                 'evaluation  top-1\n'
                                 '----------  ------\n'
                                 'kNN         0.9123\n'
                                 'linear      90\n')
    assert stream.getvalue() in (tmp_path / 'log.txt').read_text()


def test_a_terminal_gets_a_bar_with_notes_and_tables_above_it(tmp_path, monkeypatch):
    monkeypatch.setenv('TERM', 'xterm')
    monkeypatch.setenv('COLUMNS', '120')
    for name in ('TTY_COMPATIBLE', 'FORCE_COLOR', 'NO_COLOR'):
        monkeypatch.delenv(name, raising=False)
    stream = Terminal()
    with MetricWriter(tmp_path, total_steps=2_000, stream=stream) as writer:
        writer.write(1_000, {'loss': 5.0, 'learning_rate': 0.1})
        writer.note('saved [1000]')
        writer.write(1_000, {'knn_accuracy': 0.75})
        writer.table('results', ['name', 'value'], [['kNN [k=20]', 0.75]])
    shown = re.sub(r'\x1b\[[0-9;?]*[a-zA-Z]', '', stream.getvalue())
    assert re.search(r'step 1,000/2,000 .*loss 5  kNN 0\.75  lr 0\.1', shown)
    assert 'saved [1000]' in shown and 'kNN [k=20]' in shown
    assert stream.getvalue().endswith('\x1b[?25h')  # the cursor is given back


def test_a_process_that_does_not_lead_writes_nothing(tmp_path):
    stream = io.StringIO()
    workdir = tmp_path / 'run'
    with MetricWriter(workdir, total_steps=9, is_lead=False, stream=stream) as writer:
        writer.write(1, {'loss': 1.0})
        writer.note('text')
        writer.table('title', ['a'], [[1]])
        with writer.pause():
            pass
    assert stream.getvalue() == '' and not workdir.exists()


def test_a_whole_workdir_is_written_without_importing_tensorflow(tmp_path):
    script = ('import sys\n'
              'import simclr_jax.data.pipeline, simclr_jax.methods, simclr_jax.training.optimizers\n'
              'from simclr_jax.data.loading import load_source\n'
              'from simclr_jax.runlog.writer import MetricWriter\n'
              'from simclr_jax.training.workdir import save_run\n'
              f'with MetricWriter({str(tmp_path)!r}, total_steps=1) as writer:\n'
              '    writer.write(1, {"loss": 1.0})\n'
              f'save_run({str(tmp_path)!r}, {{}}, load_source("shapes", "test[:8]"))\n'
              'assert "tensorflow" not in sys.modules\n')
    subprocess.run([sys.executable, '-c', script], cwd=REPOSITORY, check=True, timeout=120,
                   env=os.environ | {'PYTHONPATH': str(REPOSITORY)})


def test_a_long_run_says_its_length_after_two_steps(tmp_path):
    """The first row of a slow run is far off."""
    for num_steps, is_long in ((10 ** 6, True), (100, False)):
        stream = io.StringIO()
        with MetricWriter(tmp_path / str(num_steps), total_steps=num_steps, stream=stream) as writer:
            log = LateLog(writer, every_steps=50, num_steps=num_steps, waited=lambda: 0.0, layers=(),
                          judge=lambda step, row: '', advice=lambda: '')
            log.restart(0)
            for step in range(1, 5):
                log(step, {'loss': np.float32(1), 'gradient_norm': np.float32(1)})
                time.sleep(0.01)
        found = re.findall(r'The second step took 0.01\d* s: 999,998 more take about \d+ h \d+ min\.',
                           stream.getvalue())
        assert len(found) == is_long, stream.getvalue()


@pytest.mark.parametrize('share, notes', [(0.1, 0), (0.9, 1)])
def test_devices_that_wait_for_images_are_noted_once(tmp_path, monkeypatch, share, notes):
    now = [0.0]
    monkeypatch.setattr('time.perf_counter', lambda: now[0])
    with MetricWriter(tmp_path, total_steps=4, stream=io.StringIO()) as writer:
        log = LateLog(writer, every_steps=1, num_steps=4, waited=lambda: share * now[0], layers=(),
                      judge=lambda step, row: '', advice=lambda: '', faster_input='decode them once.')
        log.restart(0)
        for step in range(1, 5):
            now[0] += 40.0
            log(step, {'loss': np.float32(1), 'gradient_norm': np.float32(1)})
    text = (tmp_path / 'log.txt').read_text() if (tmp_path / 'log.txt').exists() else ''
    assert text.count('The devices wait for images 90 % of the time: decode them once.') == notes


@pytest.mark.parametrize('seconds, expected', [
    (0.01, []), (30.0, ['Reading and encoding 1,000 images takes about 50 min.'])])
def test_a_long_encoding_says_its_length_after_two_batches(seconds, expected):
    now, notes = [0.0], []
    advance = noting_length(1000, notes.append, clock=lambda: now[0])
    for _ in range(100):        # batches of ten, of which the first is compiled
        now[0] += seconds if now[0] else 1000.0
        for _ in range(10):
            advance()
    assert notes == expected


@pytest.mark.skipif(not os.path.exists('/dev/full'), reason='/dev/full is of Linux')
def test_a_full_disk_is_one_sentence_that_names_the_file(tmp_path):
    (tmp_path / 'log.txt').symlink_to('/dev/full')
    with pytest.raises(OSError) as caught, MetricWriter(tmp_path, total_steps=2, stream=io.StringIO()) as writer:
        writer.note('a sentence')
    assert str(caught.value) == (f'{tmp_path}/log.txt cannot be written (No space left on device): make room there, '
                                 'and start again to resume.')


def test_events_that_cannot_be_written_are_noted_and_the_run_continues(tmp_path, monkeypatch):
    records = pytest.importorskip('tensorboardX.record_writer', reason="pip install '.[tensorboard]'")

    def full(*_):
        raise OSError(28, 'No space left on device')

    with MetricWriter(tmp_path, total_steps=10_000, stream=io.StringIO()) as writer:
        monkeypatch.setattr(records.RecordWriter, 'write', full)
        for step in range(1, 10_000):           # its queue was full after ten, for ever
            writer.write(step, {'loss': 1.0})
            if 'TensorBoard' in (tmp_path / 'log.txt').read_text():
                break
            time.sleep(0.01)
    assert re.search('TensorBoard.write failed .*the run continues: .*No space left',
                     (tmp_path / 'log.txt').read_text())
    assert len(rows(tmp_path)) == step
