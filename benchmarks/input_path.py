"""Times the way from an encoded image to two random views of it: ours, the official steps, and peers.

    python benchmarks/input_path.py [--rounds=5] [--quick] [--peers_python=PATH] [--before=FOLDER]
        [--settings=224,blur,32] [--leave_out=kornia,...]

Settings: 224, JPEG files to 224 pixels at jitter strength 1.0 without blur; blur, the same with it; 32,
arrays in memory to 32 pixels at strength 0.5 without blur. `images.py` makes the images. Every file is
read from the page cache by its contender.

official     the steps of google-research/simclr tf2/data_util.py in tf.image and tf.data: its own box, full
             decode, float32 bicubic, jitter; with blur, one sigma per image. Views are float32.
ours views   all on the host, rounded to uint8: crops by the compiled loop unless the table says without,
             colour by TensorFlow
ours crops   decode, crop and resize to uint8 on the host; colour and blur are the device's
ours padded  decode to a square of 512 pixels on the host; crop, colour and blur are the device's
decode alone the files read and decoded as far as the two crops need it: the bound of the three above
ours device  the rows of a batch gathered by numpy, all else one JAX function (here on the CPU)
before ...   the same forms of another checkout, --before=FOLDER
PIL, OpenCV, albumentations, kornia: each its own idiom, see `input_peers.py`, in --peers_python

Every contender is a process of its own, which stands still unless it has its turn: in each round every
contender makes the same number of images, and every other round runs in reverse, so that whatever else
the machine does falls on all alike. The first round of each is a warm-up. img is one source image, two views.
A contender's figure is its median over rounds, by the processor time of all its threads, and by the wall;
`threads` says how many it may use. Prints a table and writes benchmarks/input_path.json, where
settings left out keep their rows.
"""

import argparse
import itertools
import json
import os
import pathlib
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time

import numpy as np
from smoke import processor, versions

ROOT = pathlib.Path(__file__).parent.parent
PHOTO_CONTENDERS = ['official', 'PIL', 'OpenCV', 'albumentations', 'kornia', 'ours views']
CONTENDERS = {
    '224': PHOTO_CONTENDERS + ['OpenCV crops', 'ours crops', 'ours padded', 'decode alone'],
    'blur': PHOTO_CONTENDERS,
    '32': PHOTO_CONTENDERS + ['ours device'],
}
PEERS = {'PIL': 'PIL', 'OpenCV': 'cv2', 'OpenCV crops': 'cv2', 'albumentations': 'albumentations',
         'kornia': 'kornia, cv2'}
VERSIONS = ('tensorflow-cpu', 'tensorflow', 'jax', 'numpy', 'pillow', 'opencv-python-headless',
            'albumentations', 'kornia', 'torch')
BATCH = {'224': 64, 'blur': 64, '32': 256}
PER_TURN = {'224': 384, 'blur': 384, '32': 10_240}


def strength_of(setting):
    return 0.5 if setting == '32' else 1.0


def serve(batches, threads, **facts):
    """A contender's process: makes images for each line on stdin, and tells what that took.

    Args:
        batches: endless; a batch is the two views, arrays of the same shape [b, ...].
        threads: how many it may use, for the table.
        facts: for the row of the JSON.
    """
    print(json.dumps({'threads': threads, 'versions': versions(VERSIONS), **facts}), flush=True)
    cpu_end = time.process_time()
    while line := sys.stdin.readline():
        wanted, made = int(line), 0
        start, cpu_start = time.perf_counter(), cpu_end
        while made < wanted:
            views = next(batches)
            made += len(views[0])
        # All since the last answer: threads work ahead until the process is stopped, of which the clock knows nothing.
        cpu_end = time.process_time()
        seconds, cpu_seconds = time.perf_counter() - start, cpu_end - cpu_start
        means = [float(np.asarray(view[:8], np.float32).mean()) for view in views]
        print(json.dumps({'images': made, 'seconds': seconds, 'cpu_seconds': cpu_seconds, 'means': means,
                          'output': f'{views[0].dtype} {list(views[0].shape[1:])}'}), flush=True)


# ---- contenders of this Python -------------------------------------------------------------------------


def our_batches(folder, setting, form):
    from simclr_jax.data import loading, pipeline
    from simclr_jax.data.source import ArraySource

    size = 32 if setting == '32' else 224
    if setting == '32':
        images = np.load(folder / 'arrays.npy')
        source = ArraySource('arrays', 'train', images, np.full(len(images), -1, np.int32), None)
    else:
        source = loading.load_source(f'folder:{folder / "photos"}', 'train')
    batches = pipeline.train_batches(
        source, seed=0, batch_size=BATCH[setting], form=form, **our_views(setting), image_size=size,
        transfer='uint8', pad_to=512 if form == 'padded' else 0)
    keys = {'views': ('view1', 'view2'), 'crops': ('crop1', 'crop2'), 'padded': ('image',)}[form]
    return (tuple(batch[key] for key in keys) for batch in batches)


def our_decoded(folder):
    """Files read and decoded one after another, nothing more; a pixel of each, so that it was done."""
    from simclr_jax.data import loading
    from simclr_jax.data.decode import EncodedImage
    from simclr_jax.views.draws import Draws, union

    source, views = loading.load_source(f'folder:{folder / "photos"}', 'train'), our_views('224').values()

    def pixel(epoch, index):
        image = EncodedImage(source.load(index), source.rules)
        boxes = [Draws(0, epoch, index, slot).box(image.height, image.width, view.crop)
                 for slot, view in enumerate(views)]
        return image.region(union(boxes))[0, 0]

    for epoch in itertools.count():
        order = np.random.default_rng(epoch).permutation(source.num_examples)
        for first in range(0, len(order) - BATCH['224'] + 1, BATCH['224']):
            yield (np.stack([pixel(epoch, int(index)) for index in order[first:first + BATCH['224']]]),)


def our_device_batches(folder):
    """What the training step does first: its rows of the data set on the device, and both views."""
    import jax

    from simclr_jax.data.batches import Inputs
    from simclr_jax.data.source import ArraySource
    from simclr_jax.runtime import sharding

    images, (view1, view2) = np.load(folder / 'arrays.npy'), our_views('32').values()
    source = ArraySource('arrays', 'train', images, np.full(len(images), -1, np.int32), None)

    mesh = sharding.make_mesh()
    inputs = Inputs('memory', view1, view2, 32, 0, BATCH['32'])
    prepare = jax.jit(inputs.make_prepare(mesh))

    def batches():
        with inputs.batches(source, mesh) as memory:
            for step, data in enumerate(memory):
                views = jax.block_until_ready(prepare(data, step))
                yield views['view1'], views['view2']

    return batches()


def our_views(setting):
    """{'view1', 'view2'}: of SimCLR's recipe."""
    from simclr_jax.config import augment_config
    from simclr_jax.views.from_config import views_of

    augment = augment_config(image_size=32 if setting == '32' else 224, strength=strength_of(setting),
                             blur=setting == 'blur')
    return dict(zip(('view1', 'view2'), views_of(augment)))


def photos_in(folder):
    return sorted((folder / 'photos').iterdir())


def worker(name, setting, folder):
    sys.path.insert(0, str(ROOT))
    os.environ |= {'TF_CPP_MIN_LOG_LEVEL': '2', 'JAX_PLATFORMS': 'cpu'}
    if name == 'official':
        from input_peers import official_batches

        serve(official_batches(folder, setting), cores())
    elif name == 'ours device':
        serve(our_device_batches(folder), cores())
    elif name == 'decode alone':
        serve(our_decoded(folder), 1)
    else:
        from simclr_jax.data import compiled

        batches = our_batches(folder, setting, name.removeprefix('ours '))
        serve(batches, cores(), is_compiled=compiled.library() is not None)


def cores():
    return len(os.sched_getaffinity(0))



# ---- the rounds ----------------------------------------------------------------------------------------


class Contender:
    """A process that makes images of `setting` whenever it is asked to, and is stopped in between.

    A pipeline that works ahead would otherwise do so in the others' time. All share one core: two that
    are one processor's threads make each other's time longer.
    """

    def __init__(self, name, setting, folder, python, before):
        self.name, self.answers = name, []
        script = (before if name.startswith('before') else ROOT) / 'benchmarks' / (
            'input_peers.py' if name in PEERS else 'input_path.py')
        self._errors = tempfile.TemporaryFile('w+')
        self._process = subprocess.Popen(
            [python, str(script), f'--worker={name.replace("before", "ours")}', f'--settings={setting}',
             f'--folder={folder}'],
            cwd=script.parent.parent, env=os.environ | {'PYTHONPATH': str(script.parent.parent)},
            text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors,
            preexec_fn=lambda: os.sched_setaffinity(0, {max(os.sched_getaffinity(0))}))
        self.ready = self._answer()
        self._process.send_signal(signal.SIGSTOP)

    def run(self, images):
        """The answer of one turn; None if the process died."""
        self._process.send_signal(signal.SIGCONT)
        try:
            print(images, file=self._process.stdin, flush=True)
        except BrokenPipeError:
            return None
        answer = self._answer()
        self._process.send_signal(signal.SIGSTOP)
        return answer

    def why(self):
        """The last line that a dead process wrote."""
        self._errors.seek(0)
        return (self._errors.read().strip().splitlines() or ['no reason given'])[-1][:200]

    def close(self):
        self._process.kill()
        self._process.wait()

    def _answer(self):
        line = self._process.stdout.readline()
        return json.loads(line) if line else None


def measure(setting, names, pythons, folder, rounds, images, before=None):
    """One row for each contender."""
    contenders = [Contender(name, setting, folder, pythons.get(name, sys.executable), before) for name in names]
    rows = {contender.name: {'setting': setting, 'contender': contender.name, **(contender.ready or {})}
            for contender in contenders}
    for number in range(rounds + 1):
        for contender in contenders[::1 if number % 2 else -1]:
            row = rows[contender.name]
            if 'failed' in row:
                continue
            answer = contender.run(images) if contender.ready else None
            if answer is None:
                row['failed'] = contender.why()
            elif number:  # The first is the warm-up.
                contender.answers.append(answer)
    for contender in contenders:
        contender.close()
        row, answers = rows[contender.name], contender.answers
        if 'failed' not in row:
            row |= {'output': answers[-1]['output'], 'means': answers[-1]['means']}
            for unit in ('cpu_seconds', 'seconds'):
                rates = [round(answer['images'] / answer[unit], 1) for answer in answers]
                row |= {f'images_per_{unit[:-1]}': statistics.median(rates), f'rounds_{unit}': rates}
    return list(rows.values())


TITLES = {'224': 'JPEG files to 224 pixels, no blur', 'blur': 'JPEG files to 224 pixels, with blur',
          '32': 'arrays of 32 pixels in memory, no blur'}


def table(rows):
    official = next((row['images_per_cpu_second'] for row in rows
                     if row['contender'] == 'official' and 'failed' not in row), None)
    lines = [TITLES[rows[0]['setting']],
             f'{"contender":<15}  {"img/CPU-s":>9}  {"x official":>10}  {"spread":>13}  {"img/s":>8}  '
             f'{"threads":>7}  output']
    for row in rows:
        if 'failed' in row:
            lines.append(f'{row["contender"]:<15}  failed: {row["failed"]}')
            continue
        rates = row['rounds_cpu_seconds']
        ratio = f'{row["images_per_cpu_second"] / official:.2f}' if official else ''
        lines.append(f'{row["contender"]:<15}  {row["images_per_cpu_second"]:>9,.0f}  {ratio:>10}  '
                     f'{f"{min(rates):,.0f}..{max(rates):,.0f}":>13}  {row["images_per_second"]:>8,.0f}  '
                     f'{row["threads"]:>7}  {row["output"]}'
                     f'{"" if row.get("is_compiled", True) else ", without the compiled crop"}')
    return '\n'.join(lines)


def has(python, modules):
    return subprocess.run([python, '-c', f'import {modules}'], capture_output=True).returncode == 0


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument('--quick', action='store_true', help='half the images in a turn, nothing written')
    parser.add_argument('--peers_python', default=sys.executable)
    parser.add_argument('--before', type=pathlib.Path, help='another checkout, its loops built')
    parser.add_argument('--leave_out', default='', help='contenders')
    parser.add_argument('--settings', default=','.join(CONTENDERS))
    parser.add_argument('--folder', type=pathlib.Path, help='of images that images.py made before')
    parser.add_argument('--worker', help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        return worker(options.worker, options.settings, options.folder)
    settings = options.settings.split(',')
    if unknown := set(settings) - set(CONTENDERS):
        parser.error(f'--settings: {", ".join(sorted(unknown))} is none of {", ".join(CONTENDERS)}')

    left_out = set(options.leave_out.split(','))
    missing = {name for name, modules in PEERS.items() if not has(options.peers_python, modules)} - left_out
    for name in missing:
        print(f'{name} is left out: {options.peers_python} cannot import {PEERS[name]}.')
    python_of = {name: options.peers_python if name in PEERS else sys.executable
                 for names in CONTENDERS.values() for name in names}
    path = ROOT / 'benchmarks' / 'input_path.json'
    report = {'machine': f'{cores()} cores {processor()}', 'python': platform.python_version(),
              'rounds': options.rounds, 'rows': []}
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or pathlib.Path(temporary)
        if not options.folder:
            maker = options.peers_python if has(options.peers_python, 'skimage, PIL') else sys.executable
            made = subprocess.run([maker, str(ROOT / 'benchmarks' / 'images.py'), str(folder)], check=True,
                                  text=True, stdout=subprocess.PIPE)
            report['images'] = made.stdout.strip()
            print(report['images'], flush=True)
        if path.exists():
            report['rows'] = json.loads(path.read_text())['rows']
        for setting in settings:
            names = [name for name in CONTENDERS[setting] if name not in missing | left_out]
            if options.before:
                names += [name.replace('ours', 'before') for name in names if name.startswith('ours')]
            images = PER_TURN[setting] // (2 if options.quick else 1)
            rows = measure(setting, names, python_of, folder, options.rounds, images, options.before)
            report['rows'] = [row for row in report['rows'] if row['setting'] != setting] + rows
            if not options.quick:
                path.write_text(json.dumps(report, indent=1) + '\n')
            print(table(rows), end='\n\n', flush=True)


if __name__ == '__main__':
    main()
