"""The formats of an export: how each is written, run, and compared with our own network."""

import importlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from simclr_jax.models.building import make_network
from simclr_jax.models.network import Network, outputs
from simclr_jax.weights.read.torch import spare_triton
from simclr_jax.weights.tensors import read_flax, to_header, write_flax
from simclr_jax.weights.tree import Imported, is_resnet, size_step
from simclr_jax.weights.write import programs
from simclr_jax.weights.write.torch import write_torch

_NUM_IMAGES = 3


Layers = dict[int, np.ndarray]      # {0: the features, k: layer k of the head}, those that a format gives


class Job(NamedTuple):
    """What is exported; see `make_job`."""

    imported: Imported
    layer: int                  # of the programs, as an index from 0
    normalize_inside: bool
    network: Network            # ours, in float32
    run: Callable[[Mapping[str, Any], np.ndarray], Layers]      # our network: (variables, images in [0, 1])
    images: np.ndarray          # [3, S, S, 3] float32 in [0, 1], random
    ours: Layers                # what our own network makes of them


class Format(NamedTuple):
    """A format; its functions raise ValueError where it cannot hold this encoder."""

    write: Callable[[str, Job], Any]                                    # into an empty directory
    load: Callable[[str, Job], Callable[[np.ndarray], Layers]]          # from there: of images in [0, 1]
    needs: tuple[str, ...]                                              # modules to write it
    runtime: tuple[str, ...]                                            # and to run it


def make_job(imported: Imported, *, layer: int, normalize_inside: bool) -> Job:
    """The job, with our own features, which are computed in float32 whatever the run's dtype was.

    Raises:
        ValueError: the head has no such layer.
    """
    network = make_network(encoder=dict(imported.encoder, dtype='float32'), mean=imported.mean,
                           std=imported.std, head=dict(imported.head, dtype='float32'))
    compiled = jax.jit(lambda variables, images: outputs(network, variables, images).layers)

    def run(variables, images):
        with jax.default_matmul_precision('highest'):
            return dict(enumerate(map(np.asarray, compiled(variables, images))))

    size = imported.image_size
    images = np.random.default_rng(0).random((_NUM_IMAGES, size, size, 3), np.float32)
    ours = run(imported.variables, images)
    if not -len(ours) <= layer < len(ours):
        raise ValueError(f'export.layer is {layer}: the head has layers 0 (features) to {len(ours) - 1} '
                         '(projection), which is also -1.')
    return Job(imported, layer % len(ours), normalize_inside, network, run, images, ours)


def largest_difference(theirs: Layers, ours: Layers) -> float:
    """The largest `relative_difference` of the layers in `theirs`."""
    return max(relative_difference(output, ours[layer]) for layer, output in theirs.items())


def why_unusable(modules: Sequence[str]) -> str:
    """Why one of the modules cannot be imported; '' if all can."""
    if 'torch' in modules:
        spare_triton()
    for module in modules:
        try:
            importlib.import_module(module)
        except Exception as error:      # a broken installation raises anything
            return (f'{module} is not installed' if isinstance(error, ModuleNotFoundError) else
                    f'{module} cannot be imported ({type(error).__name__})')
    return ''


def relative_difference(theirs: np.ndarray, ours: np.ndarray) -> float:
    """The largest absolute difference over the root mean square of ours; inf for another shape."""
    if theirs.shape != ours.shape:
        return float('inf')
    largest = float(np.abs(theirs.astype(np.float64) - ours).max())
    scale = float(np.sqrt(np.mean(np.square(ours, dtype=np.float64))))
    return largest / scale if scale else 0.0 if largest == 0 else float('inf')


def _normalized(images, job):
    return (images - np.float32(job.imported.mean)) / np.float32(job.imported.std)


# ---- weights -----------------------------------------------------------------------------------------


def _load_torch(directory, job):
    import torch

    from simclr_jax.weights.write import torch_model

    encoder, head, _ = torch_model.load(os.path.join(directory, 'encoder.safetensors'))
    if job.imported.classifier is not None:
        encoder.reset_classifier(0)

    def run(images):
        images = np.ascontiguousarray(_normalized(images, job).transpose(0, 3, 1, 2))
        with torch.no_grad():
            features = encoder(torch.from_numpy(images))
            outputs = {0: features} | ({max(job.ours): head(features)} if head else {})
        return {layer: output.numpy() for layer, output in outputs.items()}

    return run


def _load_flax(directory, job):
    """Our own network with what the file holds."""
    back = read_flax(os.path.join(directory, 'encoder.flax.safetensors'))
    written, read = (json.loads(to_header(each, 'flax')) for each in (job.imported, back))
    if written != read:
        raise ValueError(f'{", ".join(name for name in written if written[name] != read.get(name))} does '
                         'not read back as it was written')
    return lambda images: job.run(back.variables, images)


# ---- programs ----------------------------------------------------------------------------------------


def _program(job: Job) -> dict[str, Any]:
    """What a program is made of; the network without its normalisation where images come normalised."""
    network = job.network if job.normalize_inside else job.network.clone(mean=(0.0,) * 3, std=(1.0,) * 3)
    return {'network': network, 'variables': job.imported.variables, 'layer': job.layer}


def _write_onnx(directory, job):
    imported = job.imported
    metadata = {'source': imported.source, 'step': imported.card.get('step', ''), 'layer': job.layer,
                'image_size': imported.image_size, 'crop_proportion': imported.crop_proportion,
                'mean': imported.mean, 'std': imported.std, 'normalize_inside': job.normalize_inside}
    programs.write_onnx(os.path.join(directory, 'encoder.onnx'), **_program(job),
                        image_size=0 if is_resnet(imported.encoder) else imported.image_size,
                        metadata={name: str(value) for name, value in metadata.items()})


def _write_savedmodel(directory, job):
    size, step = job.imported.image_size, size_step(job.imported.encoder, job.imported.image_size)
    programs.write_savedmodel(os.path.join(directory, 'savedmodel'), **_program(job),
                              image_size=0 if step else size, size_step=step)


def _program_loader(file, load):
    def load_program(directory, job):
        encode = load(os.path.join(directory, file))
        return lambda images: {job.layer: np.asarray(
            encode(images if job.normalize_inside else _normalized(images, job)))}

    return load_program


FORMATS = {
    'torch': Format(lambda directory, job: write_torch(directory, job.imported), _load_torch, (),
                    ('torch', 'timm')),
    'flax': Format(lambda directory, job: write_flax(os.path.join(directory, 'encoder.flax.safetensors'),
                                                     job.imported), _load_flax, (), ()),
    'onnx': Format(_write_onnx, _program_loader('encoder.onnx', programs.load_onnx), ('onnx',), ('onnxruntime',)),
    'savedmodel': Format(_write_savedmodel, _program_loader('savedmodel', programs.load_savedmodel), ('tensorflow',),
                         ()),
    'stablehlo': Format(lambda directory, job: programs.write_stablehlo(
        os.path.join(directory, 'encoder.stablehlo'), **_program(job), image_size=job.imported.image_size),
        _program_loader('encoder.stablehlo', programs.load_stablehlo), ('flatbuffers',), ()),
}
