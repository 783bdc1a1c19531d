"""The task `export`: every file proves itself, and what fails leaves nothing behind."""

import importlib.util
import json
import resource
import subprocess
import sys

import jax
import numpy as np
import pytest

pytest.importorskip('onnxruntime')          # of the extra [export]: what is exported is run

from simclr_jax.config import base_config, smoke
from simclr_jax.evaluate.pretrained import load_pretrained  # noqa: E402
from simclr_jax.models.building import make_network
from simclr_jax.models.network import init_variables
from simclr_jax.training import checkpoint, workdir as workdirs
from simclr_jax.training.state import TrainState
from simclr_jax.weights.tree import Imported
from simclr_jax.weights.write import formats
from simclr_jax.weights.write.export import export, export_encoder
from simclr_jax.weights.write.programs import load_onnx, load_stablehlo
from tests.weights.random_weights import assert_same_arrays, random_imported, random_variables  # noqa: E402
from tests.weights.tiny_encoders import assert_close, own_layers, random_images  # noqa: E402

ENCODER = {'depth': 10, 'width': 0.0625, 'stem': 'cifar', 'dtype': 'float32'}
HEAD = {'mode': 'nonlinear', 'num_layers': 2, 'hidden_width': 8, 'out_dim': 8}
LIGHT = ('flax', 'onnx')


@pytest.fixture(scope='module')
def imported():
    return random_imported(ENCODER, HEAD, image_size=16)


@pytest.fixture(scope='module')
def workdir(tmp_path_factory):
    """A run with a checkpoint of step 3, whose target is not its online network, and results of two steps."""
    directory = tmp_path_factory.mktemp('run')
    config = smoke(base_config())
    config.encoder.update(ENCODER | {'dtype': 'bfloat16'})
    config.head.update(HEAD)
    config.augment.update({'image_size': 16, 'mean': (0.4, 0.5, 0.6)})
    online, target = (random_variables(ENCODER, HEAD, seed) for seed in (1, 2))
    state = TrainState(step=np.int32(3), **online, opt_state=(), method_state={'target': target})
    workdirs.write_json(directory, 'config.json', config.to_dict())
    with checkpoint.Checkpointer(directory) as checkpointer:
        checkpointer.save(jax.tree.map(jax.numpy.asarray, state))
    lines = [{'encoder': 'online', 'step': step, 'knn_accuracy': 0.1 * step} for step in (2, 5, 3)]
    text = ''.join(json.dumps(line) + '\n' for line in lines) + '{"encoder": "onl'     # killed while writing
    (directory / 'results.jsonl').write_text(text)
    return str(directory)


def export_config(**settings):
    config = base_config()
    config.task = 'export'
    config.export.update(settings)
    return config


def listing(directory):
    return sorted(path.name for path in directory.iterdir())


def test_a_workdir_as_files_that_agree_with_it(workdir, tmp_path, capsys):
    files = export(export_config(pretrained=workdir, encoder='target', formats=('flax,onnx', 'stablehlo')),
                   str(tmp_path))
    directory = tmp_path / 'export'
    assert listing(directory) == ['README.md', 'card.json', 'encoder.flax.safetensors', 'encoder.onnx',
                                  'encoder.stablehlo']
    assert all(entry['largest_difference'] <= 1e-5 for entry in files.values())
    assert {name: entry['bytes'] for name, entry in files.items()} == {
        name: (directory / name).stat().st_size for name in files}
    assert 'encoder.onnx' in capsys.readouterr().out

    card = json.loads((directory / 'card.json').read_text())
    assert card['files'] == files
    assert (card['step'], card['network'], card['recipe']['optimizer']['name']) == (3, 'target', 'lars')
    assert card['evaluation'] == [{'encoder': 'online', 'step': 3, 'knn_accuracy': pytest.approx(0.3)}]
    assert card['encoder'].items() >= {'depth': 10, 'max_pool': 'torch', 'norm_epsilon': 1e-5}.items()
    assert card['preprocessing'].items() >= {
        'image_size': 16, 'crop_proportion': 1.0, 'mean': [0.4, 0.5, 0.6], 'std': [1.0, 1.0, 1.0]}.items()

    ours, images = load_pretrained(workdir, network='target'), random_images(2, 16, 16)
    features = own_layers(images, ours.variables, encoder=ENCODER, head=HEAD, mean=(0.4, 0.5, 0.6))[0]
    assert_close(load_stablehlo(directory / 'encoder.stablehlo')(images), features)
    back = load_pretrained(str(directory))
    assert_same_arrays(back.variables, ours.variables)
    assert back.config.encoder.dtype == 'bfloat16' and back.step == 3


BOTH = """
import sys
import tensorflow       # as a run that reads by tf.data has it; the triton of torch would end the process
from simclr_jax.weights.write.export import export_encoder
from tests.weights.write.test_export import ENCODER, HEAD, random_imported
imported = random_imported(ENCODER, HEAD, image_size=16)
export_encoder(sys.argv[1], imported, formats=('savedmodel', 'torch'), layer=-1)
"""


def test_torch_and_tensorflow_are_for_one_process_and_prove_themselves(tmp_path):
    for module in ('tensorflow', 'torch', 'timm'):
        if importlib.util.find_spec(module) is None:
            pytest.skip(f'{module} is not installed')
    directory = tmp_path / 'export'
    (directory / 'savedmodel').mkdir(parents=True)
    (directory / 'savedmodel' / 'old.pb').write_text('')
    subprocess.run([sys.executable, '-c', BOTH, str(directory)], check=True, timeout=300)
    assert listing(directory) == ['README.md', 'card.json', 'encoder.safetensors', 'head.safetensors',
                                  'savedmodel', 'torch_model.py']
    files = json.loads((directory / 'card.json').read_text())['files']
    assert 0 < files['head.safetensors']['largest_difference'] < 1e-5
    assert 0 < files['savedmodel']['largest_difference'] < 1e-5
    assert 'old.pb' not in listing(directory / 'savedmodel')


def test_an_encoder_that_is_not_ours_in_every_format_but_torch(tmp_path, capsys):
    encoder = {'name': 'tests.weights.tiny_encoders:ViT', 'arguments': {}, 'dtype': 'float32'}
    network = make_network(encoder=encoder, head=HEAD)
    variables = jax.device_get(init_variables(network, jax.random.key(0), np.zeros((1, 33, 33, 3))))
    imported = Imported(encoder=encoder, head=HEAD, variables=variables, mean=(0.1, 0.2, 0.3),
                        std=(0.5, 0.6, 0.7), image_size=33, crop_proportion=1.0, source='a test')
    files = export_encoder(str(tmp_path / 'a'), imported, formats=('flax', 'onnx', 'stablehlo'))
    assert all(entry['largest_difference'] <= 1e-5 for entry in files.values())
    assert '33, 33, 3' in files['encoder.onnx']['input']
    back = load_pretrained(str(tmp_path / 'a'))
    assert_same_arrays(back.variables, variables)
    assert back.config.encoder.name == 'tests.weights.tiny_encoders:ViT'
    with pytest.raises(ValueError, match='Not exported: torch: the format torch holds ResNets, ViTs and ConvNeXts '
                                         'alone, and the encoder is tests.weights.tiny_encoders:ViT: export it as'):
        export_encoder(str(tmp_path / 'b'), imported, formats=('torch',))
    assert not (tmp_path / 'b').exists()


def test_programs_may_take_normalised_images(imported, tmp_path):
    files = export_encoder(str(tmp_path), imported, formats=('onnx',), layer=1, normalize_inside=False)
    images = random_images(2, 16, 16)
    ours = own_layers(images, imported.variables, encoder=ENCODER, head=HEAD, mean=imported.mean,
                      std=imported.std)
    normalised = (images - np.float32(imported.mean)) / np.float32(imported.std)
    assert_close(load_onnx(tmp_path / 'encoder.onnx')(normalised), ours[1])
    assert 'normalised: (x - mean) / std' in files['encoder.onnx']['input']


def spoilt(kind, **changes):
    """The format with other functions."""
    return formats.FORMATS[kind]._replace(**changes)


def test_a_file_with_other_features_is_refused_and_removed(imported, tmp_path, monkeypatch):
    wrong = random_imported(ENCODER, HEAD, image_size=16)
    wrong.variables['params']['encoder']['stem_conv']['kernel'] *= np.float32(1.001)

    for kind in LIGHT:
        write = formats.FORMATS[kind].write
        monkeypatch.setitem(formats.FORMATS, kind, spoilt(
            kind, write=lambda directory, job, write=write: write(directory, job._replace(imported=wrong))))
        with pytest.raises(ValueError, match=f'Not exported: {kind}: its features differ by .* from ours'):
            export_encoder(str(tmp_path / kind), imported, formats=LIGHT)
        other = {'flax': 'encoder.onnx', 'onnx': 'encoder.flax.safetensors'}[kind]
        assert listing(tmp_path / kind) == ['README.md', 'card.json', other]
        monkeypatch.undo()


def test_what_is_not_installed_is_said(imported, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(formats.FORMATS, 'onnx', spoilt('onnx', runtime=('no_such_runtime',)))
    files = export_encoder(str(tmp_path / 'a'), imported, formats=('onnx',))
    assert files['encoder.onnx']['largest_difference'] is None
    assert 'onnx: not checked: no_such_runtime is not installed' in capsys.readouterr().out

    for kind in set(formats.FORMATS) - {'flax'}:
        monkeypatch.setitem(formats.FORMATS, kind, spoilt(kind, needs=('no_such_library',)))
    assert list(export_encoder(str(tmp_path / 'b'), imported)) == ['encoder.flax.safetensors']
    assert 'onnx: no_such_library is not installed: pip install' in capsys.readouterr().out
    with pytest.raises(ValueError, match='Not exported: onnx: no_such_library is not installed'):
        export_encoder(str(tmp_path / 'c'), imported, formats=('onnx',))
    assert not (tmp_path / 'c').exists()


def test_the_next_export_adds_to_that_of_the_same_encoder_and_replaces_another(imported, tmp_path):
    (tmp_path / 'mine.txt').write_text('')
    export_encoder(str(tmp_path), imported, formats=('flax',))
    both = export_encoder(str(tmp_path), imported, formats=('onnx',))
    assert both.keys() == {'encoder.flax.safetensors', 'encoder.onnx'}
    other = random_imported(ENCODER, HEAD, image_size=16, seed=5)
    assert list(export_encoder(str(tmp_path), other, formats=('onnx',))) == ['encoder.onnx']
    assert listing(tmp_path) == ['README.md', 'card.json', 'encoder.onnx', 'mine.txt']


def test_weights_that_are_not_finite_and_settings_that_are_none_are_refused(workdir, tmp_path):
    broken = random_imported(ENCODER, HEAD, image_size=16)
    broken.variables['batch_stats']['encoder']['stem_norm']['var'][0] = np.nan
    with pytest.raises(ValueError, match='not finite, such as batch_stats/encoder/stem_norm/var'):
        export_encoder(str(tmp_path / 'new'), broken, formats=LIGHT)
    with pytest.raises(ValueError, match="names 'tflite': the formats are torch, flax, onnx, savedmodel,"):
        export(export_config(pretrained=workdir, formats=('onnx', 'tflite')), str(tmp_path / 'new'))
    with pytest.raises(ValueError, match=r'export.layer is 3: the head has layers 0 \(features\) to 2'):
        export(export_config(pretrained=workdir, formats=('onnx',), layer=3), str(tmp_path / 'new'))
    assert not (tmp_path / 'new').exists()


@pytest.mark.parametrize('kind', formats.FORMATS)
def test_a_full_disk_leaves_what_was_there(kind, imported, tmp_path):
    before = {'encoder.onnx': b'earlier', 'encoder.safetensors': b'earlier', 'card.json': b'{}'}
    for name, data in before.items():
        (tmp_path / name).write_bytes(data)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with pytest.raises(OSError, match='The export could not be written to .*make room there'):
            export_encoder(str(tmp_path), imported, formats=(kind,))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_place_where_no_directory_can_be_is_said_in_a_sentence(imported, tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(OSError, match='file/export .Not a directory.: make room there, or choose another'):
        export_encoder(str(tmp_path / 'file' / 'export'), imported, formats=('flax',))
