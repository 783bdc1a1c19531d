"""Compares encoders with their exports in PyTorch: features, projections, training mode, and the way back.

    python benchmarks/torch_parity.py [--size=128] [--networks=resnet18,resnet50]

Weights are random and running statistics near those of the batch, so that no entry is special (at the start
of a training the last scale of each block is 0). Eight images: noise, and crops of the two photographs that
scikit-learn brings. Heads get our features, so that their differences are their own. ResNet-18 and 50 also
go through torchvision's own class, loaded strictly. A difference is the largest one as a share of the
largest value. In training mode torch keeps the running variance of n - 1 values and simclr_jax that of n: it
is compared after that factor. Prints a table and writes torch_parity.json.
"""

import argparse
import dataclasses
import pathlib
import sys
import tempfile
import time

import jax
import numpy as np
import runs
import torch

ROOT = pathlib.Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
NETWORKS = {'resnet18': {'depth': 18}, 'resnet50': {'depth': 50}, 'resnet50x2': {'depth': 50, 'width': 2.0},
            'resnet50-sk': {'depth': 50, 'sk_ratio': 0.0625}}
HEAD = {'mode': 'nonlinear', 'num_layers': 3, 'out_dim': 128}


def make_images(size):
    """[8, size, size, 3] float32 in [0, 1]: two of noise, six crops of photographs."""
    from sklearn.datasets import load_sample_images
    rng = np.random.default_rng(0)
    images = [rng.uniform(size=(size, size, 3)), rng.uniform(size=(size, size, 3)) ** 3]
    for index in range(6):
        photograph = load_sample_images().images[index % 2] / 255
        y, x = (rng.integers(0, side - 2 * size) for side in photograph.shape[:2])
        step = 1 + index // 2 % 2
        images.append(photograph[y:y + step * size:step, x:x + step * size:step])
    return np.stack(images).astype(np.float32)


def share(ours, theirs):
    ours, theirs = np.asarray(ours), theirs.detach().numpy()
    return float(np.abs(theirs - ours).max() / np.abs(ours).max())


def in_torchvision(depth, directory, pixels):
    """Features of torchvision's own class."""
    import torchvision
    from safetensors.torch import load_file
    model = getattr(torchvision.models, f'resnet{depth}')().eval()
    model.fc = torch.nn.Identity()
    model.load_state_dict(load_file(directory / 'encoder.safetensors'), strict=True)
    return model(pixels)


def statistics_difference(both, before, ours):
    """The largest share over all running statistics; `ours` is {torch name: array}."""
    largest = 0.0
    for name, value in ours.items():
        module, kind = name.rsplit('.', 1)
        norm, theirs = both.get_submodule(module), both.get_submodule(module).get_buffer(kind)
        if kind == 'running_var':
            kept = (1 - norm.momentum) * before[name]
            theirs = (theirs - kept) * (norm.rows - 1) / norm.rows + kept
        largest = max(largest, share(value, theirs))
    return largest


def near_batch(old, updated):
    """Running statistics that are near the batch's, as in a trained network, but all of them off by a factor.

    Were they quite random, maps would grow from block to block, and the mixing weights of selective kernels
    with them: a softmax of numbers in the ten thousands turns rounding into 1e-4 of the features, in torch
    against its own float64 too.
    """
    rng = np.random.default_rng(1)

    def draw(path, before, after):
        near = (after - 0.9 * before) / 0.1 * rng.uniform(0.8, 1.25, before.shape)
        return np.float32(np.maximum(near, 1e-6) if path[-1].key == 'var' else near)

    return jax.tree_util.tree_map_with_path(draw, old, updated)


def compare(name, fields, images, directory):
    from simclr_jax.models.building import make_network
    from simclr_jax.weights.read.torch import read_torch
    from simclr_jax.weights.torch_names import encoder_to_torch, head_to_torch
    from simclr_jax.weights.tree import flat
    from simclr_jax.weights.write import torch_model
    from simclr_jax.weights.write.torch import write_torch
    from tests.weights.random_weights import random_imported

    imported = random_imported(fields, HEAD)
    network = make_network(encoder=fields, head=HEAD)

    @jax.jit
    def run(variables, pixels):
        trained, updated = network.apply(variables, pixels, train=True, mutable=['batch_stats'])
        return network.apply(variables, pixels, train=False), trained, updated['batch_stats']

    _, _, updated = jax.device_get(run(imported.variables, images))
    imported = dataclasses.replace(imported, variables={
        **imported.variables, 'batch_stats': near_batch(imported.variables['batch_stats'], updated)})
    write_torch(directory, imported)
    output, trained, updated = jax.device_get(run(imported.variables, images))
    encoder, head, _ = torch_model.load(directory / 'encoder.safetensors')
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2)
    row = {'network': name}
    with torch.no_grad():
        features = encoder(pixels)
        row['features'] = share(output.features, features)
        row['projections'] = share(output.projection, head(torch.tensor(output.features)))
        if name in ('resnet18', 'resnet50'):
            row['torchvision'] = share(output.features, in_torchvision(fields['depth'], directory, pixels))
        both = torch.nn.Sequential(encoder, head).train()
        before = {key: value.clone() for key, value in both.state_dict().items()}
        for module in both.modules():
            module.register_forward_pre_hook(
                lambda module, inputs: setattr(module, 'rows', inputs[0].numel() // inputs[0].shape[1]))
        row['training: features'] = share(trained.features, encoder(pixels))
        row['training: projections'] = share(trained.projection, head(torch.tensor(trained.features)))
    variables = {**imported.variables, 'batch_stats': updated}
    ours = {f'0.{key}': value for key, value in encoder_to_torch(fields, variables).items()}
    ours |= {f'1.{key}': value for key, value in head_to_torch(HEAD, variables).items()}
    row['training: statistics'] = statistics_difference(
        both, before, {key: value for key, value in ours.items() if 'running_' in key})
    back = flat(read_torch(directory / 'encoder.safetensors').variables)
    row['back bit for bit'] = all(np.array_equal(back.pop(path), array)
                                  for path, array in flat(imported.variables).items()) and not back
    return row


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument('--size', type=int, default=128)
    parser.add_argument('--networks', default=','.join(NETWORKS))
    options = parser.parse_args()
    import tests.weights.torch_setup  # noqa: F401  (torchvision where its operations do not fit torch)
    torch.set_num_threads(2)
    rows = []
    for name in options.networks.split(','):
        started = time.time()
        with tempfile.TemporaryDirectory() as directory:
            row = compare(name, NETWORKS[name], make_images(options.size), pathlib.Path(directory))
        rows.append(row)
        for key, value in row.items():
            print(f'{key} {value:.1e}' if isinstance(value, float) else f'{key} {value}', end='   ')
        print(f'({time.time() - started:.0f} s)', flush=True)
    runs.keep('torch_parity', f'{options.size} px, torch {torch.__version__}', rows)


if __name__ == '__main__':
    main()
