"""The public names: an example of each that runs, what a checker of types sees, and what is refused."""

import doctest
import functools
import inspect
import json
import pathlib
import subprocess
import sys
import tarfile

import jax
import numpy as np
import pytest

import simclr_jax

ROOT = pathlib.Path(__file__).parent.parent
KEY, IMAGE, LABELS = jax.random.key(0), np.zeros((9, 9, 3), np.uint8), [0, 1]
Z = np.eye(2, dtype=np.float32)


@pytest.mark.parametrize('name', simclr_jax.__all__)
def test_a_public_name_has_an_example_that_runs(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if name in ('load_encoder', 'Encoder'):
        with tarfile.open(ROOT / 'tests' / 'data_files' / 'workdir_77bd7c5' / 'simclr.tar.gz') as archive:
            archive.extractall('runs', filter='data')
        pathlib.Path('runs/simclr').rename('runs/mine')
    example, = doctest.DocTestFinder(recurse=False).find(getattr(simclr_jax, name), name, globs={})
    said = []
    failed, tried = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(example, out=said.append)
    assert tried and not failed, ''.join(said)


@pytest.mark.parametrize('name', sorted({*simclr_jax.__all__} - {'config'}))
def test_a_public_name_says_what_it_gives_and_raises(name):
    thing = getattr(simclr_jax, name)
    words = inspect.getdoc(thing) + (inspect.getdoc(thing.__call__) or '' if inspect.isclass(thing) else '')
    assert ('Raises' in words or 'errors' in words) and inspect.signature(thing).parameters


MISTAKES = """
import jax
import numpy as np
import simclr_jax
from simclr_jax.views.fields import Flip

images, key = np.zeros((2, 8, 8, 3), np.uint8), jax.random.key(0)
right, also_right = simclr_jax.simclr_views(images, key, image_size=8)
right = simclr_jax.augment(images[0], key, image_size=8, flip={'probability': 1.0}, grey={'probability': 1.0})
view = simclr_jax.View(flip=Flip(0.5)).replace(flip=Flip(1.0), crop={'antialias': True})
loss, metrics = simclr_jax.nt_xent(right_array := jax.numpy.eye(2), right_array, temperature=0.1)
accuracy = simclr_jax.knn(right_array, [0, 1], right_array, [0, 1], k=1)
simclr_jax.simclr_view                                              # wrong
simclr_jax.simclr_views(images, key, image_sise=8)                  # wrong
simclr_jax.simclr_views(images, key, image_size='8')                # wrong
simclr_jax.augment(images[0], key, image_size=8, flpi={})           # wrong
simclr_jax.View().replace(flpi={})                                  # wrong
simclr_jax.View.simcrl()                                            # wrong
simclr_jax.nt_xent(right_array, right_array, temprature=0.1)        # wrong
simclr_jax.ResNet(depht=50)                                         # wrong
simclr_jax.load_encoder('runs/mine').widht                          # wrong
simclr_jax.lars(0.1, weight_decy=1e-4)                              # wrong
simclr_jax.knn(images, [0], images, [0], kk=1)                      # wrong
simclr_jax.config.base_cofnig()                                     # wrong
"""


def test_a_misspelt_name_or_keyword_is_seen_by_a_checker_of_types(tmp_path):
    path = tmp_path / 'mistakes.py'
    path.write_text(MISTAKES)
    done = subprocess.run([sys.executable, '-m', 'pyright', '--pythonpath', sys.executable, '--outputjson', path],
                          cwd=ROOT, capture_output=True, text=True)
    errors = json.loads(done.stdout)['generalDiagnostics']
    seen = {error['range']['start']['line'] for error in errors if error['severity'] == 'error'}
    assert seen == {number for number, line in enumerate(MISTAKES.splitlines()) if line.endswith('# wrong')}, errors


views_of = functools.partial(simclr_jax.simclr_views, key=KEY, image_size=4)


@pytest.mark.parametrize('call, message', [
    (lambda: views_of(IMAGE), r'images have the shape \[9, 9, 3\]: expected \[N, H, W, 3\]'),
    (lambda: views_of(IMAGE.transpose(2, 0, 1)[None]), 'channels come first'),
    (lambda: views_of(IMAGE[None, :0]), 'no pixels'),
    (lambda: views_of(IMAGE[None].astype(int)), 'images are int64: expected uint8, or floats'),
    (lambda: views_of(IMAGE[None] + np.float32(1.5)), 'images hold values from 1.5 to 1.5'),
    (lambda: views_of(IMAGE[None] + np.float32(np.nan)), 'values from nan'),
    (lambda: views_of(jax.numpy.full((1, 9, 9, 3), -0.5)), 'values from -0.5'),
    (lambda: views_of(IMAGE[None], image_size=-3), 'image_size is -3: it must be a whole number of pixels'),
    (lambda: views_of(IMAGE[None], image_size=4.0), 'image_size is 4.0'),
    (lambda: views_of(IMAGE[None], key=jax.random.split(KEY)), r'must be one key.*array of keys \[2\]'),
    (lambda: views_of(IMAGE[None], key=0), 'must be one key.*got 0'),
    (lambda: views_of(IMAGE[None], strength=2.0), 'jitter.contrast must be a number'),
    (lambda: simclr_jax.two_views(IMAGE[None], KEY, (simclr_jax.View(),), image_size=4), 'or a pair of them'),
    (lambda: simclr_jax.moco_views(IMAGE[None], KEY, image_size=4, area=(0, 1)), 'crop.area must be a pair'),
    (lambda: simclr_jax.byol_views(IMAGE, KEY, image_size=4), r'expected \[N, H, W, 3\]'),
    (lambda: simclr_jax.augment(IMAGE[None], KEY, image_size=4), r'expected \[H, W, 3\]. Use jax.vmap for a batch'),
    (lambda: simclr_jax.augment(IMAGE + np.float32(2), KEY, image_size=4), 'image holds values from 2 to 2'),
    (lambda: simclr_jax.augment(IMAGE, KEY, image_size=0), 'image_size is 0'),
    (lambda: simclr_jax.eval_crop(IMAGE[None], image_size=4, proportion=1.0), 'jax.vmap'),
    (lambda: simclr_jax.eval_crop(IMAGE, image_size=-3, proportion=1.0), 'image_size is -3'),
    (lambda: simclr_jax.cosine_regression(Z, Z[:1]), r'two equal \[N, D\], got \(2, 2\) and \(1, 2\)'),
    (lambda: simclr_jax.ResNet(10).init(KEY, IMAGE[None], True), 'divide uint8 by 255'),
    (lambda: simclr_jax.ResNet(10).init(KEY, IMAGE / 255, True), 'give a single image an axis'),
    (lambda: simclr_jax.ProjectionHead().init(KEY, Z[0], True), r'takes features \[B, D\], not \[2\]'),
    (lambda: simclr_jax.lars(-0.1), 'learning_rate is -0.1: it must be at least 0'),
    (lambda: simclr_jax.lars(0.1, momentum=1.0), r'momentum is 1.0: it must be in \[0, 1\)'),
    (lambda: simclr_jax.epoch_cosine(0, peak=1.0, steps_per_epoch=0, num_epochs=1), 'more than 0 steps_per_epoch'),
    (lambda: simclr_jax.make_mesh([]), 'at least one device'),
    (lambda: simclr_jax.knn(Z, LABELS, Z, LABELS), 'k is 200, and there are 2 training features'),
    (lambda: simclr_jax.knn(Z, LABELS, Z, LABELS, k=1, temperature=0), 'positive temperature'),
    (lambda: simclr_jax.knn(Z, LABELS, Z[0], LABELS, k=1), r'test features are float32 \[2\]'),
    (lambda: simclr_jax.knn(Z, LABELS, Z[:, :1], LABELS, k=1), '2 wide, the test features 1'),
    (lambda: simclr_jax.knn(Z, LABELS, Z * np.nan, LABELS, k=1), 'not finite'),
    (lambda: simclr_jax.knn(Z, [0.0, 1.0], Z, LABELS, k=1), r'training labels are float64 \[2\]'),
    (lambda: simclr_jax.linear_probe(Z, [0, -1], Z, LABELS), '1 of the 2 training labels are negative'),
    (lambda: simclr_jax.linear_probe(Z, LABELS, Z, LABELS, l2=-1.0), 'l2 is -1.0'),
])
def test_what_will_not_do_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_traced_floats_outside_the_range_are_clipped():
    images = jax.numpy.full((1, 9, 9, 3), 1.5)
    crop = jax.jit(jax.vmap(functools.partial(simclr_jax.eval_crop, image_size=4, proportion=1.0)))(images)
    np.testing.assert_array_equal(crop, 1.0)


def test_knn_and_the_probe_take_any_class_numbers_and_real_types():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 60)
    features = np.eye(3)[labels] + 0.3 * rng.normal(size=(60, 3))
    parts = [part for half in (slice(40), slice(40, 60)) for part in (features[half], labels[half])]
    renamed = [jax.numpy.asarray(part, jax.numpy.bfloat16) if part.ndim == 2 else np.int64(1e9) + 7 * part
               for part in parts]
    for given in (parts, renamed):
        assert simclr_jax.knn(*given, k=np.int64(5)) > 0.9 and simclr_jax.linear_probe(*given) > 0.9
    unknown = [*parts[:3], np.full(20, 99)]                 # a class that was never trained on
    assert simclr_jax.knn(*unknown, k=5) == simclr_jax.linear_probe(*unknown) == 0.0
