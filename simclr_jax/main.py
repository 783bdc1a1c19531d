"""The command: `python -m simclr_jax.main --config=configs/smoke.py --workdir=DIR`."""

import gc
import importlib
import os
import re
import sys
import textwrap
import traceback

from absl import app, flags, logging
from ml_collections import config_flags

from simclr_jax import storage
from simclr_jax.config import ConfigDict, arguments
from simclr_jax.config.names import HOW_TO_CHANGE_METHOD

_CONFIG = config_flags.DEFINE_config_file(
    'config', None, 'A recipe by its name, such as smoke or cifar10:depth=50, or a config file. '
    'Any field can be overridden: --config.batch_size=256.')
_WORKDIR = flags.DEFINE_string(
    'workdir', None, 'Where the run keeps its checkpoints, metrics and results, here or in a bucket (gs://, s3://). '
    'The same command with the same workdir resumes from the last checkpoint.')
_MULTIHOST = flags.DEFINE_bool(
    'multihost', False, 'Join the other processes first (jax.distributed). A TPU pod, Slurm and '
    'Kubernetes say which these are; elsewhere give the three options below, to all the same but for process_id.')
_COORDINATOR = flags.DEFINE_string('coordinator', None, 'host:port of process 0.')
_NUM_PROCESSES = flags.DEFINE_integer('num_processes', None, 'How many processes there are.')
_PROCESS_ID = flags.DEFINE_integer('process_id', None, 'Which of them this is, from 0.')
_TIMEOUT = flags.DEFINE_float(
    'timeout', 300.0, 'Seconds that the processes of a run wait for each other, to join and in a step, before they '
    'end, with status 75, and say for whom: ten times longer while one compiles, evaluates or saves, a third '
    'of it for one that gives no sign of life.')
_TRACEBACK = flags.DEFINE_bool('traceback', False, 'Show where an error came from.')


# Where each task lives; only the one that is asked for is imported.
TASKS = {
    'pretrain': 'train:pretrain', 'linear': 'evaluate.linear:linear', 'knn': 'evaluate.knn_task:knn',
    'finetune': 'evaluate.finetune:finetune', 'distil': 'evaluate.distil:distil',
    'transfer': 'evaluate.transfer:transfer',
    'plan': 'inspect.plan:plan', 'bench_input': 'inspect.input:bench_input',
    'embed': 'evaluate.embed:embed', 'search': 'evaluate.search:search', 'report': 'report.report:report',
    'export': 'weights.write.export:export', 'study': 'studies.study:study',
}


def main(argv: list[str]) -> None:
    """Runs `config.task`; an error that the user can correct ends in one line and exit status 1."""
    processes = None
    os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')      # or tensorflow logs before the first sentence
    try:
        if len(argv) > 1:
            raise ValueError(f'Unexpected argument {argv[1]!r}: options are written --name=value.')
        config = _CONFIG.value
        arguments.check_values(config)
        task = _task(config.task)
        workdir = _WORKDIR.value or ''
        writes_elsewhere = {'export': config.export.dir, 'embed': config.embed.file}.get(config.task)
        storage.check_local_workdir(workdir, is_written=not writes_elsewhere)
        workdir = storage.absolute(workdir)
        if config.keep_freed_memory:
            from simclr_jax.runtime.memory import keep_freed_memory
            keep_freed_memory()         # before jax starts its threads
        import jax  # only now: a mistyped option is reported without this wait

        from simclr_jax.training.checkpoint import quiet_orbax_logs
        quiet_orbax_logs()
        if not flags.FLAGS['verbosity'].present:
            logging.set_verbosity(logging.WARNING)      # or jax names each missing backend
        if config.task == 'plan':
            from simclr_jax.inspect.devices import prepare
            prepare(config)         # before jax looks for devices
        from simclr_jax.runtime.compile_cache import use_compile_cache
        warning = use_compile_cache(config.compile_cache)
        if _MULTIHOST.value:
            from simclr_jax.runtime.processes import Processes
            processes = Processes(_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value,
                                  timeout=_TIMEOUT.value, show_traceback=_TRACEBACK.value)
        if jax.process_index() == 0:
            print(arguments.describe(config), end='\n\n', flush=True)
            if warning:
                print(f'warning: {warning}', file=sys.stderr, flush=True)
        if storage.is_remote(workdir):
            storage.check_workdir(workdir)
        task(config, workdir)
    except KeyboardInterrupt:
        if processes:
            processes.fail('interrupted', 130)
        sys.exit(130)
    except (ValueError, OSError, FloatingPointError, storage.StoreError) as error:
        if _TRACEBACK.value:
            traceback.print_exc()
        if processes:
            processes.fail(str(error), 1)
        sys.exit(f'error: {error}')
    except Exception as error:
        from simclr_jax.runtime.memory import is_out_of_memory, out_of_memory
        if is_out_of_memory(error) and not _TRACEBACK.value:
            sentence = out_of_memory(error, batch_size=config.batch_size, task=config.task)
            if processes:
                processes.fail(sentence, 1)
            sys.exit(f'error: {sentence}')
        if not processes:
            raise
        processes.fail_unexpectedly(error)
    finally:
        if processes:
            processes.leave()


def _task(name: str):
    """The function (config, workdir) behind a task; ValueError names the known ones."""
    if name not in TASKS:
        raise ValueError(f'task is {name!r}; the tasks are {", ".join(TASKS)}.')
    module, _, function = TASKS[name].partition(':')
    return getattr(importlib.import_module(f'simclr_jax.{module}'), function)


def _parse_flags(argv: list[str]) -> list[str]:
    """absl's own parser, after a look at the config and its overrides for better messages."""
    if {'--help', '-help', '-h'} & set(argv):
        print(_help())
        sys.exit()
    config, named = ConfigDict(), ''
    try:
        argv = list(argv)
        if '--config' in argv[:-1]:                     # its value is the next word
            place = argv.index('--config')
            argv[place:place + 2] = ['='.join(argv[place:place + 2])]
        for place, item in enumerate(argv):
            if item.startswith('--config='):
                named = arguments.recipe_path(item.removeprefix('--config='))
                argv[place] = f'--config={named}'
                config = arguments.load_recipe(named)
                _check_overrides(config, argv)
        if not config:
            raise ValueError('--config is missing: a recipe by its name, such as --config=smoke, or a config file; '
                             '--help lists the recipes.')
        argv = flags.FLAGS(argv)
        if 'recipe' in _CONFIG.value:
            _CONFIG.value.recipe = arguments.recipe_name(named)
        if _WORKDIR.value is None:
            raise ValueError('--workdir is missing: where the run keeps its files, such as --workdir=runs/mine.')
        return argv
    except (ValueError, OSError, flags.Error) as error:
        sys.exit(f'error: {_of_type(error, config)}')


def _of_type(error: Exception, config: ConfigDict) -> str:
    """The message of an error; where a value is of the wrong type, which one is wanted."""
    found = re.match(r'flag --(config\.)?([\w.]+)=(.*?): ', str(error), flags=re.DOTALL)
    if not isinstance(error, flags.IllegalFlagValueError) or not found:
        return str(error)
    of_config, name, value = found.groups()
    types = {'float': 0.0, 'int': 0, 'bool': False}
    default = arguments.flatten(config).get(name) if of_config else types.get(flags.FLAGS[name].flag_type())
    kind = arguments.kind_of(default)
    return f'{name if of_config else f"--{name}"} takes {kind}, not {value!r}.' if kind else str(error)


def _help() -> str:
    """What --help prints: a screen."""
    lines = ['simclr_jax --config=RECIPE --workdir=DIR [--config.FIELD=VALUE ...]', '']
    for flag in (_CONFIG, _WORKDIR, _MULTIHOST, _COORDINATOR, _NUM_PROCESSES, _PROCESS_ID, _TIMEOUT, _TRACEBACK):
        lines += textwrap.wrap(f'--{flag.name:<14}{flags.FLAGS[flag.name].help}', 79,
                               subsequent_indent=' ' * 16)
    for title, names in (('Recipes', arguments.recipes_here()), ('Tasks, by --config.task', TASKS)):
        lines += ['', *textwrap.wrap(f'{title}: {", ".join(names)}.', 79)]
    return '\n'.join(lines)


def _check_overrides(config: ConfigDict, argv: list[str]) -> None:
    fields = arguments.flatten(config)
    for item in argv:
        name = item.removeprefix('--config.').partition('=')[0]
        inside = [field for field in fields if field.startswith(f'{name}.')]
        if not item.startswith('--config.') or name in fields:
            continue
        if not inside:
            raise ValueError(arguments.no_such_field(config, name))
        if name == 'method':
            raise ValueError(f'method is a block of fields. {HOW_TO_CHANGE_METHOD}')
        if '={' not in item:
            raise ValueError(f'{name} is a block of fields: set one of them, such as --config.{inside[0]}=VALUE.')


def run() -> None:
    """The console entry point."""
    # Imports and traces make millions of objects that live on: looking through them took a sixth of a short run.
    gc.set_threshold(50_000)
    app.run(main, flags_parser=_parse_flags)


if __name__ == '__main__':
    run()
