"""A run of two processes in a bucket, killed twice, against one that was not; and images a second from buckets.

    python benchmarks/buckets.py [--steps=24] [--images=300] [--objects=1000000] [--only=listing,...]

Both stores are emulators on loopback (pip install '.[test]'), tests/stores.py. The run trains on a folder of small
images in gs:// and keeps its workdir there; one process, then the other, is killed with SIGKILL, and the launcher
starts both again. Every leaf of the last checkpoint is compared bit by bit with that of a run on this disk. The rates
are of `pipeline.train_batches` (crops of 64 pixels, decoded from JPEGs of 375 x 500) with what it takes by default; the
emulated stores have no distance, so that one row adds 30 ms to each answer. The names of --objects images, 1,000 in a
directory and then all in one, come from a process that answers as Google's store does, by the page. Writes
benchmarks/buckets.json; --only measures some of killed_twice, images_per_second and listing, and keeps the rest.
"""

import argparse
import http.server
import io
import json
import multiprocessing
import os
import pathlib
import re
import resource
import signal
import subprocess
import sys
import tempfile
import time
import urllib.parse

os.environ.setdefault('JAX_PLATFORMS', 'cpu')
ROOT = pathlib.Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

import jax
import numpy as np
from PIL import Image

from simclr_jax import storage
from simclr_jax.config import base_config
from simclr_jax.data import bucket_listing, pipeline
from simclr_jax.data.loading import load_source
from simclr_jax.data.shapes import make_shapes
from simclr_jax.views.from_config import views_of
from tests import stores


def start(workdir, folder, steps):
    """The launcher of two processes of two devices, running."""
    return subprocess.Popen(
        ['bash', 'launch/gpu.sh', '--no-install', '--processes=2', '--cpu-devices=2', '--restarts=5',
         '--config=configs/smoke.py:smoke', f'--workdir={workdir}', f'--config.num_train_steps={steps}',
         '--config.batch_size=32', '--config.augment.image_size=16', '--config.encoder.width=0.0625',
         f'--config.data.source=folder:{folder}', '--config.data.train_split=train',
         '--config.data.test_split=none', '--config.log.every_steps=1', '--config.checkpoint.every_epochs=1.0'],
        cwd=ROOT, env=os.environ | {'PYTHON': sys.executable}, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT)


def kill(launcher, process, after_step, log):
    """Kills a process of the launcher's once the run says that it has done a step."""
    for line in launcher.stdout:
        log.append(line)
        step = re.match(r'step (\d+)/', line)
        if step and int(step[1]) >= after_step:
            break
    listing = subprocess.run(['ps', '-Aww', '-o', 'pid=', '-o', 'ppid=', '-o', 'args='], text=True,
                             stdout=subprocess.PIPE).stdout
    os.kill(*[int(line.split()[0]) for line in listing.splitlines()
              if line.split()[1] == str(launcher.pid) and f'--process_id={process}' in line], signal.SIGKILL)


def rows(workdir):
    """The steps of metrics.jsonl."""
    path = f'{workdir}/metrics.jsonl'
    return [json.loads(line)['step'] for line in storage.read_bytes(path).decode().splitlines()] if storage.exists(
        path) else []


def killed_twice(root, here, steps):
    """What a run in a bucket that is killed twice keeps, and whether it ends as the straight one."""
    for number, image in enumerate(make_shapes('train', 16, 64)[0]):
        file = io.BytesIO()
        Image.fromarray(image).save(file, 'PNG')
        storage.write_atomically(f'{root}/small/{number % 2}/{number:02}.png', file.getvalue())
    straight = start(f'{here}/straight', f'{root}/small', steps)
    print(straight.communicate()[0][-300:])
    launcher, log, published = start(f'{root}/run', f'{root}/small', steps), [], []
    for process, after in ((1, steps // 3), (0, 2 * steps // 3)):
        kill(launcher, process, after, log)
        published.append(rows(f'{root}/run'))
    log.append(launcher.communicate()[0])
    text = ''.join(log)
    resumed = [int(step) for step in re.findall(r'resumed at step (\d+)/', text)]
    (step, state), (last, expected) = stores.last_state(f'{root}/run'), stores.last_state(f'{here}/straight')
    same = [np.array_equal(a, b) for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(expected))]
    print(text[-400:])
    return {'steps': steps, 'ended_with': launcher.returncode, 'last_step': [step, last], 'resumed_at': resumed,
            'last_row_published_at_each_kill': [found[-1] if found else 0 for found in published],
            'rows_at_the_end_are_1_to_steps': rows(f'{root}/run') == list(range(1, steps + 1)),
            'leaves': len(same), 'identical_leaves': sum(same)}


def rate(name, count, **options):
    """Images a second of the input path; the first batch, which starts threads, does not count."""
    source, batch, (view, _) = load_source(name, 'train', **options), 50, views_of(base_config().augment)
    batches = pipeline.train_batches(source, seed=0, batch_size=batch, form='crops', view1=view,
                                     view2=view, image_size=64)
    next(batches)
    started = time.perf_counter()
    for _ in range(count // batch):
        next(batches)
    return round(count / (time.perf_counter() - started))


def rates(proxies, here, count):
    """{where: images a second}."""
    rng, found = np.random.default_rng(0), {}
    for number in range(count):
        small = rng.integers(0, 256, (24, 32, 3), np.uint8)
        file = io.BytesIO()
        Image.fromarray(small).resize((500, 375), Image.Resampling.BICUBIC).save(file, 'JPEG', quality=90)
        for root in (here, f'gs://{stores.BUCKET}', f's3://{stores.BUCKET}'):
            storage.write_atomically(f'{root}/photos/{number % 2}/{number:04}.jpg', file.getvalue())
    found['a local disk'] = rate(f'folder:{here}/photos', count)
    for store in ('gs', 's3'):
        found[f'{store}:// on loopback'] = rate(f'folder:{store}://{stores.BUCKET}/photos', count)
    with proxies['gs'].failing(lambda method, path: time.sleep(0.03)):
        found['gs:// with 30 ms more'] = rate(f'folder:gs://{stores.BUCKET}/photos', count)
        found['gs:// with 30 ms more, data.cache=resized:256, epochs after the first'] = rate(
            f'folder:gs://{stores.BUCKET}/photos', count, cache='resized:256', cache_dir=f'{here}/cache')
    return found


class Names(http.server.BaseHTTPRequestHandler):
    """A store that holds `count` objects d/0000/00000000.jpg, a thousand in each directory, and one/00000000.jpg."""

    protocol_version, count = 'HTTP/1.1', 0

    def do_GET(self):               # objects.list of the JSON API: at most 1,000 items for a request
        asked = {name: values[0] for name, values in
                 urllib.parse.parse_qs(urllib.parse.urlsplit(self.path).query).items()}
        prefix, first, answer = asked.get('prefix', ''), int(asked.get('pageToken', 0)), {'kind': 'storage#objects'}
        folder = re.fullmatch(r'd/(\d{4})/', prefix)
        numbers = range(self.count) if prefix == 'one/' else range(0)
        if folder:
            numbers = range(1000 * int(folder[1]), min(1000 * int(folder[1]) + 1000, self.count))
        if prefix == 'd/':
            answer['prefixes'] = [f'd/{number:04}/' for number in range(-(-self.count // 1000))]
        answer['items'] = [{'kind': 'storage#object', 'name': f'{prefix}{number:08}.jpg', 'bucket': 'names',
                            'size': '100000', 'generation': '1', 'updated': '2026-01-01T00:00:00.000Z'}
                           for number in numbers[first:first + 1000]]
        if len(numbers) > first + 1000:
            answer['nextPageToken'] = str(first + 1000)
        body = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header('Content-Type', 'application/json')
        self.send_header('Content-Length', str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments):
        """Nothing."""


def answer_names(count, port):
    """What the process of the names does."""
    Names.count = count
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Names)
    port.send(server.server_port)
    server.serve_forever()


def listed(root):
    """(seconds, files) of a listing."""
    bucket_listing.forget()
    started = time.perf_counter()
    found = bucket_listing.listed(root)
    return round(time.perf_counter() - started, 2), len(found.sizes)


def long_lists(count):
    """Seconds to list `count` objects, to take the list that is kept, and the process's peak memory."""
    mine, other = multiprocessing.Pipe()
    server = multiprocessing.get_context('spawn').Process(target=answer_names, args=(count, other), daemon=True)
    server.start()
    before, found = os.environ['STORAGE_EMULATOR_HOST'], {}
    os.environ['STORAGE_EMULATOR_HOST'] = f'http://127.0.0.1:{mine.recv()}'
    try:
        for name, folder in (('1,000 in a directory', 'd'), ('all in one directory', 'one')):
            first, kept = listed(f'gs://names/{folder}'), listed(f'gs://names/{folder}')
            assert first[1] == kept[1] == count, (first, kept)
            found[name] = {'objects': count, 'listed_s': first[0], 'kept_s': kept[0]}
    finally:
        os.environ['STORAGE_EMULATOR_HOST'] = before
        server.terminate()
    return found | {'peak_mb': round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)}


def main():
    """Measures, prints, writes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--steps', type=int, default=24)
    parser.add_argument('--images', type=int, default=300)
    parser.add_argument('--objects', type=int, default=1_000_000)
    parser.add_argument('--only', default='listing,images_per_second,killed_twice')
    given = parser.parse_args()
    file = ROOT / 'benchmarks' / 'buckets.json'
    with tempfile.TemporaryDirectory() as here, stores.running(f'{here}/kept') as proxies:
        measured = {'listing': lambda: long_lists(given.objects),
                    'images_per_second': lambda: rates(proxies, here, given.images),
                    'killed_twice': lambda: killed_twice(f'gs://{stores.BUCKET}', here, given.steps)}
        report = (json.loads(file.read_text()) if file.exists() else {}) | {
            name: measured[name]() for name in given.only.split(',')} | {'cores': len(os.sched_getaffinity(0))}
    print(json.dumps(report, indent=2))
    file.write_text(json.dumps(report, indent=2) + '\n')
    killed = report['killed_twice']
    sys.exit(not (killed['leaves'] == killed['identical_leaves'] and killed['rows_at_the_end_are_1_to_steps']))


if __name__ == '__main__':
    main()
