"""What a user gets wrong ends in one sentence that names it, a status that is not 0, and no files."""

import ctypes
import os
import pathlib
import subprocess
import sys
import tempfile

import pytest

SMOKE = '--config=configs/smoke.py:smoke'


@pytest.mark.parametrize('arguments, sentence', [
    (['--config=configs/smok.py'], 'No config file configs/smok.py'),
    (['--config=smok'], 'no recipe of that name: there are barlow_twins, byol, '),
    (['--config=configs/smoke.py:tiny'], "takes no argument 'tiny'; it takes method, no_colour, smoke"),
    ([SMOKE, '--config.batchsize=8'], "no field 'batchsize'; did you mean 'batch_size'?"),
    ([SMOKE, '--config.batch_size=many'], "error: batch_size takes a whole number, not 'many'."),
    ([SMOKE, '--config.shard_state=maybe'], "error: shard_state takes true or false, not 'maybe'."),
    ([SMOKE, '--timeout=long'], "error: --timeout takes a number, not 'long'."),
    (['--config=folder:depth=deep'], "The argument depth takes a whole number, not 'deep'."),
    ([SMOKE, '--config.optimizer.learning_rate=-1'], 'optimizer.learning_rate is -1.0: it must be 0 or more.'),
    ([SMOKE, '--config.method=byol'], '--config=smoke:method=byol'),
    ([SMOKE, '--config.method.name=byol'], '--config=smoke:method=byol'),
    ([SMOKE, '--config.encoder=vit'], 'encoder is a block of fields: set one of them, such as --config.encoder.'),
    (['--config=tests/encoders.py'], 'tests/encoders.py defines no get_config(argument)'),
    ([SMOKE, '--config.seed=4294967296'], 'less than 2**31'),
    ([SMOKE, '--config.task=pretian'], "task is 'pretian'; the tasks are pretrain"),
    ([SMOKE, '--multihost'], 'no Kubernetes job here: give --coordinator, --num_processes and --process_id.'),
    ([SMOKE, 'extra'], "Unexpected argument 'extra'"),
    (['--config=configs/linear.py:smoke'], 'There is no directory /'),
    (['--config=distil:smoke'], 'has no finetuned.safetensors, the teacher: run --config.task=finetune in it first'),
    ([SMOKE, '--config.data.source=./configs'],
     "data.source is './configs', a path without a kind in front: "
     'write folder:./configs.'),
    ([SMOKE, '--config.pretrained=x'], "no field 'pretrained'; did you mean 'init_from'?"),
    (['--config=configs/imagenet_v2.py:sk=ture'], "The argument sk='ture' is neither true nor false."),
], ids=lambda value: value if isinstance(value, str) else ' '.join(value[1:]) or value[0])
def test_a_mistake_is_one_sentence_and_leaves_nothing(arguments, sentence, run_main, tmp_path):
    workdir = tmp_path / 'workdir'
    done = run_main(*arguments, f'--workdir={workdir}')
    assert done.returncode == 1
    assert sentence in done.stderr
    assert 'Traceback' not in done.stderr
    assert not workdir.exists()


def test_the_help_fits_a_screen_and_has_every_recipe_and_task(run_main):
    done = run_main('--help')
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) <= 40 and max(map(len, lines)) < 80
    recipes = (path.stem for path in (pathlib.Path(__file__).parents[1] / 'configs').glob('*.py'))
    for word in ('--config', '--workdir', '--multihost', 'transfer', 'bench_input', *recipes):
        assert word in done.stdout


@pytest.mark.parametrize('config', [['--config', 'smoke:smoke'], ['--config=studies/heads:smoke']])
def test_the_console_command_finds_a_recipe_by_its_name_from_anywhere(config, command, tmp_path):
    argv, options = command(*config, '--config.batch_size=0', '--workdir=run')
    options['env']['PYTHONPATH'] += os.pathsep + str(options['cwd'])
    entry = 'import sys; from simclr_jax.main import run; sys.exit(run())'      # as pip's script of it
    done = subprocess.run([sys.executable, '-c', entry, *argv[3:]], **options | {'cwd': tmp_path})
    assert done.returncode == 1 and 'error: batch_size is 0' in done.stderr and not os.listdir(tmp_path)


def test_memory_that_runs_out_names_the_fields_that_help(run_main, tmp_path):
    done = run_main(SMOKE, '--config.encoder.name=tests.encoders:Huge', f'--workdir={tmp_path}')
    assert done.returncode == 1 and done.stderr.count('\n') == 1
    assert all(field in done.stderr for field in (
        'Out of memory with batch_size 64', 'encoder_chunks', 'encoder.remat', 'shard_state',
        '--config.task=plan'))


@pytest.mark.parametrize('arguments, sentence', [
    ([SMOKE], '--workdir is missing: where the run keeps its files, such as --workdir=runs/mine.'),
    (['--workdir=run'], '--config is missing: a recipe by its name, such as --config=smoke'),
    ([SMOKE, '--workdir='], '--workdir is empty: give the directory of the run'),
    ([SMOKE, '--workdir=gs://'], "'gs://' names no bucket: write gs://BUCKET/PATH."),
    ([SMOKE, '--workdir=README.md/run'], "README.md' is a file"),
])
def test_a_workdir_that_cannot_be_is_named_before_jax_starts(arguments, sentence, run_main):
    done = run_main(*arguments)
    assert done.returncode == 1 and done.stderr.startswith('error: ') and done.stderr.count('\n') == 1
    assert sentence in done.stderr and not done.stdout


@pytest.mark.parametrize('task', ['pretrain', 'export'])
def test_a_workdir_that_may_not_be_written_to_is_named_before_anything_is_done(task, command):
    with tempfile.TemporaryDirectory() as workdir:
        os.chmod(workdir, 0o555)
        argv, options = command(SMOKE, f'--config.task={task}', f'--workdir={workdir}')
        if os.geteuid() == 0:       # who may write anywhere, but for this: PR_CAPBSET_DROP of CAP_DAC_OVERRIDE
            options['preexec_fn'] = lambda: ctypes.CDLL(None).prctl(24, 1, 0, 0, 0)
        done = subprocess.run(argv, **options)
        assert done.returncode == 1 and not done.stdout and not os.listdir(workdir)
        assert done.stderr == (f'error: --workdir={workdir} may not be written to: give another; a task finds the '
                               f'run in this one by its field, such as --config.linear.pretrained={workdir}.\n')


@pytest.mark.parametrize('text, sentence', [
    ('get_config = 3', 'defines no get_config(argument)'),
    ('def get_config(argument): return {}', 'returns dict: it must return a config'),
    ('def get_config(): ...', "takes no argument: its get_config() has none, and ':smoke' was given"),
    ('import simclr_jax\ndef get_config(_):\n    config = simclr_jax.config.base_config()\n'
     '    config.batchsize = 3\n    return config', "no field 'batchsize'; did you mean 'batch_size'?"),
])
def test_a_recipe_file_that_will_not_do_is_one_sentence(text, sentence, run_main, tmp_path):
    (tmp_path / 'mine.py').write_text(text)
    done = run_main(f'--config={tmp_path}/mine.py:smoke', f'--workdir={tmp_path}/run')
    assert done.returncode == 1 and sentence in done.stderr and 'Traceback' not in done.stderr


def test_a_deprecated_call_of_ours_would_fail_the_command(run_main, tmp_path):
    """The promise that the tests of the command stand on: deprecations are errors there."""
    (tmp_path / 'old.py').write_text(
        'def get_config(argument):\n'
        '    exec("import warnings; warnings.warn(\'old\', DeprecationWarning)", '
        '{"__name__": "simclr_jax.any"})\n')
    done = run_main(f'--config={tmp_path}/old.py', f'--workdir={tmp_path}')
    assert done.returncode == 1 and 'DeprecationWarning: old' in done.stderr
