"""Counts what one training batch of a folder of JPEGs passes through, from the files to the loss.

    python benchmarks/trace_path.py [--tree=PATH] [--json=FILE]

Runs `pretrain` for one step with `sys.setprofile` in every thread, and looks at the functions of simclr_jax: how
many different ones are called, in how many files they stand, and how often a call leads from one file into
another (different pairs of caller and callee). What is not on the path is left out: checkpoints, logs, evaluation,
config, compile cache. --tree is another checkout, of any layout.
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
# Files that a batch does not pass: by their names in the layouts so far.
BESIDE = re.compile(r'(^|/)(main|config|task_configs|compile_cache|interruption|checkpoint|metrics|profile|'
                    r'step_breakdown|storage|processes|__init__)\.py$|^(config|evaluate|runlog|report|studies|inspect|weights)/')


class Tracer:
    """The functions of one package that were called, and the calls that led from file to file."""

    def __init__(self, package):
        self._root = f'{package}{os.sep}'
        self.functions, self.changes = set(), set()

    def __call__(self, frame, event, _):
        if event != 'call':
            return
        name = self._name(frame)
        if name is None:
            return
        self.functions.add(name)
        caller = frame.f_back
        while caller is not None and self._name(caller) is None:      # through jax, flax, threads
            caller = caller.f_back
        before = caller and self._name(caller)
        if before and before[0] != name[0]:
            self.changes.add((before, name))

    def _name(self, frame):
        file = frame.f_code.co_filename
        if not file.startswith(self._root):
            return None
        inside = file.removeprefix(self._root)
        function = frame.f_code.co_qualname
        return None if BESIDE.search(inside) or function == '<module>' else (inside, function)


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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
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
        config.data.update({'source': f'folder:{folder / "photos"}', 'train_split': 'train', 'test_split': 'none'})
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
        options.json.write_text(json.dumps(counts | {'by_file': files}, indent=1) + '\n')


if __name__ == '__main__':
    main()
