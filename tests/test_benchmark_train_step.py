"""What benchmarks/train_step.py compares: the same network and loss on both sides, and its sums."""

import json
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from simclr_jax.inspect import hlo as compiled
from simclr_jax.models.building import make_network
from simclr_jax.models.cpu import loops
from simclr_jax.objectives.nt_xent import nt_xent_dense
from tests.weights.torch_setup import torch

BENCHMARKS = str(pathlib.Path(__file__).parent.parent / 'benchmarks')


@pytest.fixture(autouse=True)
def path_of_benchmarks(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)


@pytest.mark.parametrize('ours', [
    {'depth': 18, 'width': 0.0625, 'stem': 'cifar'}, {'depth': 50, 'width': 0.0625, 'stem': 'imagenet'},
    {'name': 'vit', 'arguments': {'size': 'tiny', 'patch': 16}}],
    ids=('ResNet-18', 'ResNet-50', 'ViT-Ti'))
def test_the_network_of_pytorch_has_the_parameters_and_flops_of_ours(ours, monkeypatch):
    from torch.utils.flop_counter import FlopCounterMode
    from train_step_torch import Head, make_encoder

    if 'name' in ours:
        monkeypatch.setattr('timm.layers.config._USE_FUSED_ATTN', 0)        # the form whose FLOPs can be counted
    monkeypatch.setenv(loops.SWITCH, 'off')                                 # likewise
    encoder = make_encoder({'vit': ours.get('arguments', {}).get('size', ''), 'size': 64} | ours)
    theirs = torch.nn.Sequential(encoder, Head(encoder.features, 3, 128))
    ours = make_network(encoder=ours, head={})
    images = jnp.zeros((2, 64, 64, 3))
    variables = jax.eval_shape(lambda: ours.init(jax.random.key(0), images, train=False))
    shapes = [leaf.shape for leaf in jax.tree.leaves(variables['params'])]
    assert sorted(sorted(p.shape) for p in theirs.parameters() if p.requires_grad) == sorted(map(sorted, shapes))
    with FlopCounterMode(display=False) as counter:
        theirs(torch.zeros(2, 3, 64, 64))
    forward = jax.make_jaxpr(lambda variables: ours.apply(variables, images, train=False))(variables)
    assert counter.get_total_flops() == compiled.count_flops(forward.jaxpr)


def test_the_loss_of_pytorch_is_that_of_ours():
    from train_step_torch import nt_xent

    views = np.random.default_rng(0).normal(size=(2, 6, 8)).astype(np.float32)
    theirs = nt_xent(torch.from_numpy(views.reshape(12, 8)), 0.2)
    ours, _ = nt_xent_dense(*jnp.asarray(views), temperature=0.2)
    np.testing.assert_allclose(float(theirs), float(ours), rtol=1e-6)


@pytest.mark.parametrize('size,kernel,stride', [(33, 3, 2), (16, 1, 2)])
def test_flops_of_a_layer_are_those_of_its_program(size, kernel, stride):
    from train_step_layers import layer_flops

    images, weights = (2, size, size, 3), (kernel, kernel, 3, 5)
    pads = [(kernel // 2, kernel // 2)] * 2
    jaxpr = jax.make_jaxpr(lambda x, w: jax.lax.conv_general_dilated(
        x, w, (stride, stride), pads, dimension_numbers=('NHWC', 'HWIO', 'NHWC')))(
            jnp.zeros(images), jnp.zeros(weights))
    assert layer_flops(images, weights, stride) == compiled.count_flops(jaxpr.jaxpr)


def test_a_contender_that_hangs_has_failed(monkeypatch):
    import turns

    monkeypatch.setattr(turns, 'LONGEST', 2.0)
    process = turns.Contender([sys.executable, '-c', 'import time; print("ANSWER {}", flush=True); time.sleep(60)'], {})
    assert process.start() == {}
    with pytest.raises(turns.Failed):
        process.ask('steps')


def test_the_race_over_cifar_size_images_runs_from_start_to_table(tmp_path, capsys, monkeypatch):
    """A tiny network on 48 images, ours and PyTorch: what a GPU runs at full size."""
    import cifar_speed

    rng, arrays = np.random.default_rng(0), {}
    for split, count in (('train', 48), ('test', 8)):
        arrays |= {f'{split}_images': rng.integers(0, 256, (count, 16, 16, 3), np.uint8),
                   f'{split}_labels': np.arange(count) % 3}
    np.savez(tmp_path / 'images.npz', **arrays)
    monkeypatch.setattr('sys.argv', [
        'cifar_speed.py', f'--data={tmp_path / "images.npz"}', '--epochs=3', '--batch=16', '--every=2', '--depth=10',
        # With 4 channels PyTorch 2.14 spoils its memory: oneDNN's AVX2 gradient of a 1x1 kernel, channels last.
        '--width=0.125', '--targets=0,1.1', '--only=ours,channels-last', f'--out={tmp_path / "speed.json"}'])
    cifar_speed.main()
    (title, report), = json.loads((tmp_path / 'speed.json').read_text()).items()
    assert '48 images of 16 px' in title
    for row, name in zip(report['rows'], ('ours', 'channels-last'), strict=True):
        assert row['contender'] == name and row['steps'] == 9 and list(row['reached']) == ['0']
        assert 0 < row['seconds to start'] < row['reached']['0'] < row['seconds'] and 0 <= row['knn'] <= 1
    table = capsys.readouterr().out
    assert '| channels-last' in table and '| not' in table and 'dkobak' in table
