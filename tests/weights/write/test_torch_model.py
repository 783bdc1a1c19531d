"""Exports in PyTorch, in torchvision's and timm's own classes: the same features, trained and in training."""

import ast
import pathlib

import jax
import numpy as np
import pytest

from tests.weights.torch_setup import torch  # isort: skip
import torchvision

from simclr_jax.models.building import make_network
from simclr_jax.weights.read.torch import read_torch
from simclr_jax.weights.torch_names import encoder_to_torch, head_to_torch
from simclr_jax.weights.write import torch_model
from simclr_jax.weights.write.torch import write_torch
from tests.weights.random_weights import assert_same_arrays, random_imported
from tests.weights.tiny_encoders import BOTTLENECKS, depth_of_bottlenecks

IN_TRAINING = 1e-4      # the batch's variances cost digits: float32 in torch is as far from float64
SMALL = {'width': 0.125}
CASES = {
    'cifar': ({**SMALL, 'depth': 10, 'stem': 'cifar', 'project_first': True, 'norm_epsilon': 1e-2},
              {'mode': 'nonlinear', 'num_layers': 3, 'out_dim': 8}),
    'bottleneck': ({**SMALL, 'depth': BOTTLENECKS, 'max_pool': 'same', 'norm_momentum': 0.7},
                   {'mode': 'nonlinear', 'num_layers': 2, 'hidden_width': 12, 'out_dim': 8, 'bias': True,
                    'final_norm': False, 'final_bias': True}),
    # The squeeze has 32, 32, 32 and 48 channels.
    'selective kernels': ({**SMALL, 'depth': BOTTLENECKS, 'sk_ratio': 0.75},
                          {'mode': 'linear', 'out_dim': 8}),
    'resnet-d': ({**SMALL, 'depth': 10, 'sk_ratio': 0.1, 'project_first': True, 'conv_padding': 'same',
                  'max_pool': 'same'}, None),
}


def images(height=35, width=46):
    """[6, H, W, 3], unlike each other in colour and contrast: else batch statistics are all rounding."""
    rng = np.random.default_rng(0)
    noise = rng.uniform(size=(6, height, width, 3)) ** rng.uniform(0.3, 3, (6, 1, 1, 3))
    return (noise * rng.uniform(size=(6, 1, 1, 3))).astype(np.float32)


def in_torch(pixels):
    return torch.from_numpy(pixels).permute(0, 3, 1, 2)


def close(ours, theirs, tolerance=1e-5):
    """As a share of the largest value: the float32 of two libraries."""
    ours, theirs = np.asarray(ours), theirs.detach().numpy()
    np.testing.assert_allclose(theirs, ours, rtol=0, atol=tolerance * np.abs(ours).max())


def recalculated(module, before):
    """Running statistics that torch would have if it kept the variance of n values, not that of n - 1."""
    corrected = {}
    for name, norm in module.named_modules():
        if isinstance(norm, (torch.nn.BatchNorm1d, torch.nn.BatchNorm2d)):
            kept = (1 - norm.momentum) * before[f'{name}.running_var']
            n = norm.rows
            corrected[f'{name}.running_var'] = (norm.running_var - kept) * (n - 1) / n + kept
            corrected[f'{name}.running_mean'] = norm.running_mean
    return corrected


def count_rows(module, arguments):
    module.rows = arguments[0].numel() // arguments[0].shape[1]


@pytest.mark.parametrize('case', CASES)
def test_features_projections_and_training_are_those_of_the_export(case, tmp_path):
    fields, head_fields = CASES[case]
    with depth_of_bottlenecks():
        imported = random_imported(fields, head_fields)
        write_torch(tmp_path, imported)
        network = make_network(encoder=fields, head=imported.head)

        @jax.jit
        def run(variables, pixels):
            trained, updated = network.apply(variables, pixels, train=True, mutable=['batch_stats'])
            return network.apply(variables, pixels, train=False), trained, updated['batch_stats']

        output, trained, updated = run(imported.variables, images())

    encoder, head, card = torch_model.load(tmp_path / 'encoder.safetensors')
    assert (head is None) == (head_fields is None) and card['source'] == 'random'
    with torch.no_grad():
        features = encoder(in_torch(images()))
        close(output.features, features)
        if head:
            close(output.projection, head(features))

        both = torch.nn.Sequential(encoder, head or torch.nn.Identity()).train()
        before = {name: value.clone() for name, value in both.state_dict().items()}
        for module in both.modules():
            if isinstance(module, (torch.nn.BatchNorm1d, torch.nn.BatchNorm2d)):
                module.register_forward_pre_hook(count_rows)
        close(trained.projection, both(in_torch(images())), IN_TRAINING)

    theirs = recalculated(both, before)
    ours = {f'{index}.{name}': value for index, part in enumerate(('encoder', 'head'))
            for name, value in torch_statistics(imported, updated, part).items()}
    assert set(ours) == set(theirs)
    for name, value in ours.items():
        close(value, theirs[name], IN_TRAINING)


def torch_statistics(imported, batch_stats, part):
    """{torch name: running statistic} of encoder or head, out of our tree."""
    variables = {**imported.variables, 'batch_stats': jax.device_get(batch_stats)}
    with depth_of_bottlenecks():
        arrays = (encoder_to_torch(imported.encoder, variables) if part == 'encoder'
                  else head_to_torch(imported.head, variables))
    return {name: value for name, value in arrays.items() if 'running_' in name}


def test_torchvisions_own_resnet18_gives_our_logits():
    imported = random_imported({'depth': 18}, classes=5)
    network = make_network(encoder=imported.encoder, head=imported.head)
    features = jax.jit(lambda variables, pixels: network.apply(variables, pixels, train=False).features)(
        imported.variables, images(33, 40)[:2])
    theirs = torchvision.models.resnet18(num_classes=5).eval()
    arrays = encoder_to_torch(imported.encoder, imported.variables, imported.classifier)
    theirs.load_state_dict({name: torch.from_numpy(array) for name, array in arrays.items()}, strict=True)
    close(features @ imported.classifier['kernel'] + imported.classifier['bias'],
          theirs(in_torch(images(33, 40)[:2])))


@pytest.mark.parametrize('name', ['cifar', 'selective kernels'])
def test_what_is_trained_on_in_torch_comes_back_with_its_head(name, tmp_path):
    fields, head_fields = CASES[name]
    file = tmp_path / 'encoder.safetensors'
    with depth_of_bottlenecks():
        imported = random_imported(fields, head_fields)
        write_torch(tmp_path, imported)
        assert_same_arrays(read_torch(file).variables, imported.variables)

        encoder, head, card = torch_model.load(file)
        with torch.no_grad():
            for parameter in (*encoder.parameters(), *head.parameters()):
                parameter *= 2
        torch_model.save(file, encoder, card, head)
        back = read_torch(file)
        doubled = jax.tree.map(lambda array: 2 * array, imported.variables['params'])
        assert_same_arrays(back.variables, {**imported.variables, 'params': doubled})
        assert (back.mean, back.std, back.image_size, back.crop_proportion, back.card) == (
            imported.mean, imported.std, imported.image_size, imported.crop_proportion, imported.card)

        torch_model.save(file, encoder, card)
        assert read_torch(file).head['mode'] == 'none' and not (tmp_path / 'head.safetensors').exists()


def test_the_classifier_travels_as_fc(tmp_path):
    imported = random_imported({**SMALL, 'depth': 10}, classes=3)
    write_torch(tmp_path, imported)
    file = tmp_path / 'encoder.safetensors'
    assert_same_arrays(read_torch(file).classifier, imported.classifier)
    encoder, _, card = torch_model.load(file)
    assert encoder(torch.zeros(1, 3, 32, 32)).shape == (1, 3)
    encoder.reset_classifier(0)
    torch_model.save(file, encoder, card)
    assert read_torch(file).classifier is None
    assert torch_model.load(file)[0](torch.zeros(1, 3, 32, 32)).shape == (1, 64)


def test_a_head_of_another_export_is_refused(tmp_path):
    for seed in (0, 1):
        (tmp_path / str(seed)).mkdir()
        write_torch(tmp_path / str(seed), random_imported(*CASES['cifar'], seed=seed))
    (tmp_path / '1/head.safetensors').replace(tmp_path / '0/head.safetensors')
    for load in (torch_model.load, read_torch):
        with pytest.raises(ValueError, match=r'/head\.safetensors and .* come from different exports'):
            load(tmp_path / '0/encoder.safetensors')
    (tmp_path / '0/head.safetensors').unlink()
    assert torch_model.load(tmp_path / '0/encoder.safetensors')[1] is None
    assert 'left out' in read_torch(tmp_path / '0/encoder.safetensors').card['head']


def test_an_odd_width_is_refused_by_name(tmp_path):
    write_torch(tmp_path, random_imported({'depth': 10, 'width': 3 / 64}))
    with pytest.raises(ValueError, match='no ResNet of 3 channels'):
        torch_model.load(tmp_path / 'encoder.safetensors')


def test_the_exported_loader_needs_nothing_of_this_project(tmp_path):
    write_torch(tmp_path, random_imported({**SMALL, 'depth': 10}))
    tree = ast.parse((tmp_path / 'torch_model.py').read_text())
    modules = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    modules |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {module.split('.')[0] for module in modules} == {
        'json', 'os', 'pathlib', 'safetensors', 'timm', 'torch', 'typing'}
    assert pathlib.Path(torch_model.__file__).read_text() == (tmp_path / 'torch_model.py').read_text()
