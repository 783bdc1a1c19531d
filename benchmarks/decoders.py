"""Times JPEG decoders on the photographs of `images.py`, and compares their pixels with ours.

    python benchmarks/decoders.py [--rounds=7] [--count=64] [--folder=OF_IMAGES]

Whole files, and the part that holds the two crops of a view (`simclr_jax.data.compiled`, and TensorFlow's
decode_and_crop_jpeg with the margin that makes its pixels right). Decoders that are not installed are left out. One
process, all taking turns over the same files in memory; processor time per image, medians over rounds. Writes
benchmarks/decoders.json.
"""

import argparse
import io
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

os.environ |= {'TF_CPP_MIN_LOG_LEVEL': '2', 'JAX_PLATFORMS': 'cpu'}

import numpy as np
from PIL import Image
from smoke import processor, versions

from simclr_jax.config import augment_config
from simclr_jax.data import compiled
from simclr_jax.views.draws import Draws, union
from simclr_jax.views.from_config import views_of

ROOT = pathlib.Path(__file__).parent.parent
PACKAGES = ('pillow', 'tensorflow-cpu', 'opencv-python-headless', 'simplejpeg')


def of_ours():
    return {'ours': lambda data, size, box: compiled.read_box(data, size, (0, 0, *size)),
            'ours, the part': compiled.read_box}


def of_pillow():
    return {'Pillow': lambda data, *_: np.asarray(Image.open(io.BytesIO(data)).convert('RGB'))}


def of_tensorflow():
    import tensorflow as tf

    def whole(dct, is_smooth):
        return lambda data, *_: np.asarray(memoryview(tf.raw_ops.DecodeJpeg(
            contents=data, channels=3, dct_method=dct, fancy_upscaling=is_smooth)))

    def part(data, size, box):
        top, left, height, width = box
        margin = min(left, 2)
        window = top, left - margin, height, min(width + margin + 2, size[1] - left + margin)
        return np.asarray(memoryview(tf.raw_ops.DecodeAndCropJpeg(
            contents=data, crop_window=np.array(window, np.int32), channels=3,
            dct_method='INTEGER_ACCURATE')))[:, margin:margin + width]

    return {'tensorflow': whole('INTEGER_ACCURATE', True), 'tensorflow, fast transform': whole('INTEGER_FAST', True),
            'tensorflow, plain upsampling': whole('INTEGER_ACCURATE', False), 'tensorflow, the part': part}


def of_opencv():
    import cv2

    cv2.setNumThreads(0)
    return {'OpenCV': lambda data, *_: cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)}


def of_simplejpeg():
    from simplejpeg import decode_jpeg

    return {'simplejpeg': lambda data, *_: decode_jpeg(data),
            'simplejpeg, fast transform': lambda data, *_: decode_jpeg(data, fastdct=True),
            'simplejpeg, fast transform and plain upsampling': lambda data, *_: decode_jpeg(
                data, fastdct=True, fastupsample=True)}


def installed():
    decoders = {}
    for make in (of_ours, of_pillow, of_tensorflow, of_opencv, of_simplejpeg):
        try:
            decoders |= make()
        except ImportError as error:
            print(f'left out: {error}')
    return decoders


def part_of(number, size):
    """The box that holds both crops of the official preprocessing."""
    views = views_of(augment_config(image_size=224, strength=1.0, blur=False))
    return union([Draws(0, 0, number, slot).box(*size, view.crop) for slot, view in enumerate(views)])


def differences(decode, files):
    """{'most', 'mean', 'share'} of the values that are not ours, over all files."""
    found = []
    for data, size, box in files:
        ours, theirs = compiled.read_box(data, size, (0, 0, *size)), decode(data, size, box)
        if theirs.shape != ours.shape:
            ours = ours[box[0]:box[0] + box[2], box[1]:box[1] + box[3]]
        found.append(np.abs(ours.astype(np.int16) - theirs).ravel())
    found = np.concatenate(found)
    return {'most': int(found.max()), 'mean': round(float(found.mean()), 4),
            'share': round(float((found > 0).mean()), 4)}


def measure(files, rounds):
    decoders = installed()
    times = {name: [] for name in decoders}
    for number in range(rounds + 1):
        for name in list(decoders)[::1 if number % 2 else -1]:
            start = time.process_time()
            for file in files:
                decoders[name](*file)
            times[name].append(1e3 * (time.process_time() - start) / len(files))
    return [{'decoder': name, 'ms': round(statistics.median(times[name][1:]), 4),
             'rounds': [round(value, 4) for value in times[name][1:]], **differences(decode, files)}
            for name, decode in decoders.items()]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--rounds', type=int, default=7)
    parser.add_argument('--count', type=int, default=64)
    parser.add_argument('--folder', type=pathlib.Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or pathlib.Path(temporary)
        if not options.folder:
            subprocess.run([sys.executable, str(ROOT / 'benchmarks/images.py'), str(folder), '--arrays=8'], check=True)
        encoded = [path.read_bytes() for path in sorted((folder / 'photos').iterdir())[:options.count]]
    sizes = [compiled.plain_size(data, 1 << 30) for data in encoded]
    files = [(data, size, part_of(number, size)) for number, (data, size) in enumerate(zip(encoded, sizes))]
    rows = measure(files, options.rounds)
    parts = [box[2] * box[3] / np.prod(size) for _, size, box in files]
    report = {'machine': f'one core, {processor()}', 'versions': versions(PACKAGES), 'files': len(files),
              'part': round(float(np.mean(parts)), 3), 'rows': rows}
    (ROOT / 'benchmarks/decoders.json').write_text(json.dumps(report, indent=1) + '\n')
    for row in rows:
        print(f'{row["decoder"]:<48} {row["ms"]:.3f} ms  most {row["most"]:>3}  mean {row["mean"]:.3f}  '
              f'other {100 * row["share"]:.1f} %')


if __name__ == '__main__':
    main()
