"""Counts the functions that one image of a folder passes through, from its file to the value of the loss.

    python benchmarks/trace_path.py [--tree=PATH] [--json=FILE]

Runs one step of `pretrain` on a folder of JPEGs with `sys.setprofile` in every thread, and looks at the
functions of simclr_jax that are called while the folder is listed, its images are decoded and cropped, and
the step makes views, features and the loss of them: how many different ones there are, in how many files they
stand, and how many pairs of a caller and a callee lie in two files. What is beside that way is left out: the
parsing of the config, the initialisation, the gradient (jax.grad gives zeros here, so that no derivative is
traced), the optimiser, the log and evaluation. --tree is another checkout, of any layout so far.
"""

import argparse
import json
import os
import pathlib
import re
import sys
import tempfile
import threading

ROOT = pathlib.Path(__file__).parent.parent
# The functions from which the way begins in the main thread; other threads are all on it.
ROOTS = ('load_sources', 'load_source', 'load_pair', 'choose_form', 'make_batches', 'Inputs.batches',
         'make_train_step.<locals>.train_step')
# What a step does beside it: files, by their names in the layouts so far, and functions.
BESIDE = re.compile(r'((^|/)(optim|optimizers|leaves|schedules|checkpoint|metrics|profile|processes|__init__)\.py$)|'
                    r'^(config|evaluate|runlog|report|studies|inspect|weights)/')
BESIDE_FUNCTIONS = re.compile(r'<module>|after_update|_make_measure|_split_probe|_probe_updates')
# Parts of the function around them.
INNER = re.compile(r'(\.<locals>)?\.<(genexpr|listcomp|dictcomp|setcomp)>')


class Tracer:
    """The functions of one package that were called, and the calls that led from file to file."""

    def __init__(self, package):
        self._root = f'{package}{os.sep}'
        self.functions, self.changes = set(), set()

    def __call__(self, frame, event, _):
        name = self._name(frame) if event == 'call' else None
        if name is None:
            return
        callers = [caller for caller in self._above(frame) if caller]       # not those of jax, flax, threads
        is_main = threading.current_thread() is threading.main_thread()
        if is_main and not any(function in ROOTS for _, function in [name, *callers]):
            return
        self.functions.add(name)
        if callers and callers[0][0] != name[0]:
            self.changes.add((callers[0], name))

    def _above(self, frame):
        while frame := frame.f_back:
            yield self._name(frame)

    def _name(self, frame):
        file = frame.f_code.co_filename
        if not file.startswith(self._root):
            return None
        inside, function = file.removeprefix(self._root), INNER.sub('', frame.f_code.co_qualname)
        return None if BESIDE.search(inside) or BESIDE_FUNCTIONS.search(function) else (inside, function)


def without_gradient():
    """Makes jax.grad and jax.value_and_grad compute the value alone; the gradient is zeros."""
    import jax
    import jax.numpy as jnp

    def value_and_grad(function, *, has_aux=False):
        return lambda params, *rest: (function(params, *rest), jax.tree.map(jnp.zeros_like, params))

    def grad(function, *, has_aux=False):
        def zeros(params, *rest):
            value, gradient = value_and_grad(function)(params, *rest)
            return (gradient, value[1]) if has_aux else gradient
        return zeros

    jax.grad, jax.value_and_grad = grad, value_and_grad


def make_photos(folder):
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(0)
    for number in range(16):
        pixels = rng.integers(0, 256, (12, 16, 3), np.uint8)
        image = Image.fromarray(pixels).resize((150 + number, 140), Image.BICUBIC)
        (folder / f'{number % 2}').mkdir(exist_ok=True)
        image.save(folder / f'{number % 2}' / f'{number:02}.jpg')


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--tree', type=pathlib.Path, default=ROOT)
    parser.add_argument('--json', type=pathlib.Path)
    options = parser.parse_args()
    tree = options.tree.resolve()
    sys.path.insert(0, str(tree))
    os.environ.setdefault('JAX_PLATFORMS', 'cpu')
    from simclr_jax import train
    from simclr_jax.config import base_config, smoke

    config = smoke(base_config())
    config.update({'num_train_steps': 1, 'batch_size': 8})
    config.augment.image_size = 16
    tracer = Tracer(str(tree / 'simclr_jax'))
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(temporary)
        (folder / 'photos').mkdir()
        make_photos(folder / 'photos')
        config.data.update({'source': f'folder:{folder / "photos"}', 'train_split': 'train',
                            'test_split': 'none'})
        without_gradient()
        threading.setprofile(tracer)
        sys.setprofile(tracer)
        try:
            train.pretrain(config, str(folder / 'run'))
        finally:
            sys.setprofile(None)
            threading.setprofile(None)
    files = {}
    for file, function in sorted(tracer.functions):
        files.setdefault(file, []).append(function)
    counts = {'functions': len(tracer.functions), 'files': len(files), 'changes_of_file': len(tracer.changes)}
    print(', '.join(f'{value} {name.replace("_", " ")}' for name, value in counts.items()))
    if options.json:
        pairs = [f'{a[0]}:{a[1]} -> {b[0]}:{b[1]}' for a, b in sorted(tracer.changes)]
        options.json.write_text(json.dumps(counts | {'by_file': files, 'changes': pairs}, indent=1) + '\n')


if __name__ == '__main__':
    main()
