"""An encoder of any make as one serialized StableHLO program with its weights inside (`jax.export`)."""

import dataclasses
import os
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.export
import numpy as np
from jax.extend.mlir import ir
from jax.extend.mlir.dialects import stablehlo
from jaxlib.mlir import passmanager

from simclr_jax import storage
from simclr_jax.models.folding import fold, folded
from simclr_jax.models.network import Network
from simclr_jax.training.steps import make_encode

PLATFORMS = ('cpu', 'cuda', 'tpu')
_VERSION = '1.0.0'      # of StableHLO: the first, which TensorFlow 2.21 reads whatever JAX writes it
_PASSES = 'builtin.module(func.func(stablehlo-legalize-composite-to-call),inline,strip-debuginfo)'
_MOST_BYTES = 2 ** 31 - 2 ** 24     # a flatbuffer, and a protobuf, holds 2 GiB; the program takes some


def write_stablehlo(path: str | os.PathLike, network: Network, variables: Mapping[str, Any], *,
                    image_size: int, layer: int = 0) -> None:
    """Writes `path`: images float32 [b, image_size, image_size, 3] -> features [b, D] float32.

    The batch size is free and the program runs on CPUs, NVIDIA GPUs and TPUs. Images are in [0, 1] and
    normalised inside by the network's mean and std.

    Args:
        network, variables, layer: see `onnx.write_onnx`.

    Raises:
        ValueError: no such layer; or more weights than such a file can hold, 2 GiB.
        OSError: the file could not be written.
    """
    check_size(variables, 'a StableHLO file')
    encode, variables = encode_freely(network, variables, layer)
    program = export_program(lambda images: encode(variables, images), f'{image_size}, {image_size}')
    storage.write_atomically(path, bytes(program.serialize()))


def check_size(variables: Mapping[str, Any], what: str) -> None:
    """ValueError for more weights than a file of one message can hold."""
    size = sum(np.asarray(leaf).nbytes for leaf in jax.tree.leaves(variables))
    if size > _MOST_BYTES:
        raise ValueError(f'The encoder has {size / 2**30:.1f} GiB of weights and {what} holds at most 2: '
                         'export it as a savedmodel.')


def encode_freely(network: Network, variables: Mapping[str, Any], layer: int
                  ) -> tuple[Callable[[Any, jax.Array], jax.Array], dict[str, Any]]:
    """((variables, images [b, S, S, 3]) -> features, to be traced with a batch whose size is not known; its variables).

    The norms of a ResNet are folded into its kernels (models/folding.py). An encoder that needs a number for the
    batch, as `len(images)`, is traced for one image, and mapped over them.
    """
    encode = folded(network, make_encode(network, layer=layer))

    def encode_batch(variables, images):
        try:
            return encode(variables, images)
        except Exception as error:      # of many kinds, as the encoder meets a size that is no number
            try:
                return jax.vmap(lambda image: encode(variables, image[None])[0])(images)
            except Exception:
                raise error from None

    return encode_batch, fold(network, variables)


def export_program(encode: Callable[..., jax.Array], sizes: str, *arguments: Any) -> jax.export.Exported:
    """(*arguments, images [b, *sizes, 3]) -> features as a program, its products of full float32 precision.

    The places in source files that it stems from are taken out. Composite operations such as erf are written
    out, whose free sizes TensorFlow's reader does not follow.

    Sizes that are not known rule out the compiled loops of `models.cpu`, and that of the batch is none.
    """
    images = jax.ShapeDtypeStruct(jax.export.symbolic_shape(f'b, {sizes}, 3'), np.float32)
    with jax.default_matmul_precision('highest'):
        program = jax.export.export(jax.jit(encode), platforms=PLATFORMS)(*arguments, images)
    dialect: Any = stablehlo        # whose stub leaves these functions out
    dialect.register_stablehlo_passes()
    with ir.Context() as context:
        module = dialect.deserialize_portable_artifact(context, program.mlir_module_serialized)
        passmanager.PassManager.parse(_PASSES).run(module.operation)
        text = dialect.serialize_portable_artifact(module, _VERSION)
    return dataclasses.replace(program, mlir_module_serialized=text)


def load_stablehlo(path: str | os.PathLike) -> Callable[[jax.Array], jax.Array]:
    """The program of a file as images -> features, to be called as it is or within `jax.jit`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it holds no program, or one that this version of JAX cannot read.
    """
    with open(path, 'rb') as file:
        data = bytearray(file.read())
    try:
        exported = jax.export.deserialize(data)
        encode = jax.jit(exported.call)
        # Only here is the program itself read, and one of a later JAX refused. Nothing is compiled.
        encode.lower(jax.ShapeDtypeStruct((1, *exported.in_avals[0].shape[1:]), np.float32))
    except Exception as error:      # whatever the parser meets in a file that is none
        raise ValueError(f'{os.fspath(path)} holds no StableHLO program that JAX {jax.__version__} reads '
                         f'({type(error).__name__}): export it again, or update JAX.') from error
    return encode
