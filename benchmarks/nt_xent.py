"""Times NT-Xent, forward and backward, against its dense form, optax and Lightly, and measures memory.

    python benchmarks/nt_xent.py [--rounds=5] [--torch_python=PATH] [--sizes=1024,4096,8192]

Every contender is a process of its own with inputs of its own, [N, 128] float32 twice, and waits for
its turn: in each round every contender runs one step, so that whatever else the machine does falls on
all alike. A time is the median over rounds, and beside it stands the processor time of the same steps, which
other work on the machine changes less. Memory is what a step adds to the process beyond its
inputs: on a CPU the peak of the resident set, on a GPU that of the allocator; beside it
what the compiler asks for (of Lightly, what four matrices of all similarities hold). Who asks for more
than half of the free memory is not run.

Lightly runs under --torch_python, by default this Python; without torch and lightly there it is left
out. It needs no torchvision: an empty stand-in takes its place. On a GPU the sizes are larger, and
both run on it. Prints a table and writes benchmarks/nt_xent.json, where sizes left out by --sizes keep
the rows that they have from the same machine.
"""

import argparse
import importlib.util
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import time
from unittest import mock

ROOT = pathlib.Path(__file__).parent.parent
TEMPERATURE, WIDTH = 0.1, 128
SIZES = {'cpu': [1024, 4096, 8192], 'gpu': [8192, 32768, 65536]}
LARGEST = 65536  # ours alone
MIB = 2 ** 20


# ---------------------------------------------------------------------------------------------------
# A contender's process


def jax_contender(name, n):
    """(step, bytes asked for by the compiler, device, versions) of a JAX function."""
    import jax
    import jax.numpy as jnp
    import optax

    sys.path.insert(0, str(ROOT))
    from simclr_jax.objectives.nt_xent import nt_xent, nt_xent_dense

    def optax_loss(view1, view2):
        labels = jnp.tile(jnp.arange(len(view1)), 2)
        return optax.losses.ntxent(jnp.concatenate([view1, view2]), labels, temperature=TEMPERATURE)

    def ours(f):
        return lambda view1, view2: f(view1, view2, temperature=TEMPERATURE)[0]

    loss = {'ours': ours(nt_xent), 'dense': ours(nt_xent_dense), 'optax': optax_loss}[name]
    views = [jax.random.normal(key, (n, WIDTH)) for key in jax.random.split(jax.random.key(0))]
    program = jax.jit(jax.value_and_grad(loss, argnums=(0, 1))).lower(*views).compile()
    asked = program.memory_analysis().temp_size_in_bytes

    def step():
        return float(jax.block_until_ready(program(*views))[0])

    versions = {'jax': jax.__version__, 'optax': optax.__version__}
    return step, asked, jax.devices()[0], versions


def lightly_contender(n):
    """(step, bytes expected, device, versions) of Lightly's NTXentLoss."""
    if importlib.util.find_spec('torchvision') is None:
        for name in ('', '.ops', '.models', '.models.vision_transformer', '.transforms'):
            sys.modules[f'torchvision{name}'] = mock.MagicMock()
    import lightly
    import torch
    from lightly.loss.ntx_ent_loss import NTXentLoss

    on_gpu = os.environ['BACKEND'] == 'gpu' and torch.cuda.is_available()
    device = torch.device('cuda' if on_gpu else 'cpu')
    torch.set_num_threads(len(os.sched_getaffinity(0)))  # as many as XLA takes
    loss_of = NTXentLoss(temperature=TEMPERATURE)

    def run(views):
        for view in views:
            view.grad = None
        loss = loss_of(*views)
        loss.backward()
        if on_gpu:
            torch.cuda.synchronize()
        return float(loss.detach())

    def inputs(n):
        return [torch.randn(n, WIDTH, device=device, requires_grad=True) for _ in range(2)]

    run(inputs(64))  # loads what torch loads lazily, before memory is measured
    views = inputs(n)
    expected = 4 * 4 * (2 * n) ** 2  # four [2N, 2N] float32 at once, as measured where it could run
    return lambda: run(views), expected, device, {'torch': torch.__version__, 'lightly': lightly.__version__}


def resident(field):
    """VmRSS, or VmHWM its peak, of this process in bytes; 0 where there is no /proc."""
    try:
        lines = pathlib.Path('/proc/self/status').read_text().splitlines()
    except OSError:
        return 0
    return 1024 * int(next(line for line in lines if line.startswith(field)).split()[1])


def peak_of(device, is_torch):
    """() -> bytes that the steps since this call held at most beyond what was held before."""
    if is_torch and device.type == 'cuda':
        import torch

        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        return lambda: torch.cuda.max_memory_allocated() - before
    if not is_torch and device.platform != 'cpu':
        # JAX's peak cannot be reset: what came before, inputs and their making, is small.
        before = device.memory_stats()['bytes_in_use']
        return lambda: device.memory_stats()['peak_bytes_in_use'] - before
    try:
        pathlib.Path('/proc/self/clear_refs').write_text('5')  # resets VmHWM
    except OSError:
        pass
    before = resident('VmRSS')
    return lambda: resident('VmHWM') - before


def worker(name, n):
    """Builds the contender, says what it asks for, and then runs one step for each line on stdin."""
    is_torch = name == 'lightly'
    step, asked, device, versions = lightly_contender(n) if is_torch else jax_contender(name, n)
    print(json.dumps({'asked': asked, 'versions': versions}), flush=True)
    if not sys.stdin.readline():
        return
    peak = peak_of(device, is_torch)
    while True:
        start, cpu_start = time.perf_counter(), time.process_time()
        loss = step()
        seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
        print(json.dumps({'seconds': seconds, 'cpu_seconds': cpu_seconds, 'peak': peak(), 'loss': loss}),
              flush=True)
        if not sys.stdin.readline():
            return


# ---------------------------------------------------------------------------------------------------
# The rounds


class Contender:
    """A process that runs one step of `name` at size `n` whenever it is asked to."""

    def __init__(self, name, n, python, backend):
        self.answers = []
        environment = {**os.environ, 'XLA_PYTHON_CLIENT_PREALLOCATE': 'false', 'BACKEND': backend}
        self.process = subprocess.Popen(
            [python, __file__, f'--worker={name}', f'--sizes={n}'], text=True, env=environment,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        ready = self.process.stdout.readline()
        self.ready = json.loads(ready) if ready else None

    def run(self):
        try:
            self.process.stdin.write('run\n')
            self.process.stdin.flush()
            answer = self.process.stdout.readline()
        except BrokenPipeError:
            answer = ''
        if not answer:
            return False
        self.answers.append(json.loads(answer))
        return True

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def measure(n, names, pythons, rounds, limit, backend):
    """One row for each contender: median seconds and bytes, or why there are none."""
    rows, running = [], []
    for name in names:
        contender = Contender(name, n, pythons[name], backend)
        asked = (contender.ready or {}).get('asked')
        row = {'n': n, 'contender': name, 'asked': asked, **(contender.ready or {}).get('versions', {})}
        rows.append(row)
        if contender.ready is None:
            row['skipped'] = 'does not start'
        elif asked and asked > limit:
            row['skipped'] = f'not run, asks for {asked / 2 ** 30:,.1f} GiB'
        else:
            running.append((contender, row))
            continue
        contender.close()
    warm_up = 1 if rounds > 1 else 0
    for _ in range(warm_up + rounds):
        for contender, row in running:
            if 'skipped' not in row and not contender.run():
                row['skipped'] = 'out of memory'
    for contender, row in running:
        contender.close()
        if 'skipped' not in row:
            row |= {'loss': contender.answers[-1]['loss'], 'peak': contender.answers[-1]['peak']}
            for name in ('seconds', 'cpu_seconds'):
                row[name] = [round(answer[name], 6) for answer in contender.answers[warm_up:]]
                row[f'median_{name}'] = statistics.median(row[name])
    return rows


HEAD = (f'{"N":>6}  {"contender":<9}  {"wall ms":>9}  {"x ours":>7}  {"CPU ms":>9}  {"x ours":>7}'
        f'  {"peak MiB":>9}  {"x ours":>7}  {"asks MiB":>9}')


def table(rows):
    lines = []
    for row in rows:
        ours = next(r for r in rows if r['n'] == row['n'] and r['contender'] == 'ours')
        asked = f'{row["asked"] / MIB:>9,.0f}' if row['asked'] else ''
        cells = f'{row.get("skipped", ""):<61}' if 'skipped' in row else '  '.join(
            f'{row[name] * unit:>9,.1f}  {row[name] / max(ours[name], 1e-9):>7.2f}' for name, unit in
            [('median_seconds', 1e3), ('median_cpu_seconds', 1e3), ('peak', 1 / MIB)])
        lines.append(f'{row["n"]:>6,}  {row["contender"]:<9}  {cells}  {asked}')
    return '\n'.join(lines)


def free_memory(backend):
    """Bytes that a program could have now."""
    if backend == 'gpu':
        import jax

        stats = jax.devices()[0].memory_stats()
        return stats['bytes_limit'] - stats['bytes_in_use']
    try:
        lines = pathlib.Path('/proc/meminfo').read_text().splitlines()
        return 1024 * int(next(line for line in lines if line.startswith('MemAvailable')).split()[1])
    except OSError:
        return os.sysconf('SC_AVPHYS_PAGES') * os.sysconf('SC_PAGE_SIZE')


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument('--torch_python', default=sys.executable)
    parser.add_argument('--sizes', help='N, separated by commas')
    parser.add_argument('--worker', help=argparse.SUPPRESS)
    options = parser.parse_args()
    sizes = [int(n) for n in options.sizes.split(',')] if options.sizes else None
    if options.worker:
        return worker(options.worker, sizes[0])

    os.environ['XLA_PYTHON_CLIENT_PREALLOCATE'] = 'false'  # the contenders need the device's memory
    import jax
    from smoke import processor  # it imports jax, which a peer's Python need not have

    backend = jax.default_backend()
    names = ['ours', 'dense', 'optax']
    found = subprocess.run([options.torch_python, '-c', 'import torch, lightly'], capture_output=True)
    if found.returncode == 0:
        names.append('lightly')
    else:
        print(f'Lightly is left out: {options.torch_python} has no torch and lightly.')
    pythons = {'ours': sys.executable, 'dense': sys.executable, 'optax': sys.executable,
               'lightly': options.torch_python}
    device = jax.devices()[0].device_kind if backend == 'gpu' else processor()
    report = {'backend': backend, 'device': device, 'threads': len(os.sched_getaffinity(0)),
              'python': platform.python_version(), 'width': WIDTH, 'temperature': TEMPERATURE, 'rows': []}
    path = ROOT / 'benchmarks' / 'nt_xent.json'
    if path.exists() and {**(old := json.loads(path.read_text())), 'rows': []} == report:
        report['rows'] = old['rows']
    plan = [(n, names, options.rounds) for n in sizes or SIZES.get(backend, SIZES['cpu'])]
    if sizes is None and LARGEST not in [n for n, _, _ in plan]:
        plan.append((LARGEST, ['ours'], 1))
    print(HEAD, flush=True)
    for n, contenders, rounds in plan:
        rows = measure(n, contenders, pythons, rounds, free_memory(backend) / 2, backend)
        others = [row for row in report['rows'] if row['n'] != n]
        report['rows'] = sorted(others + rows, key=lambda row: row['n'])
        path.write_text(json.dumps(report, indent=1) + '\n')
        print(table(rows), flush=True)


if __name__ == '__main__':
    main()
