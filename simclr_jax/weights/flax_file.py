"""This project's own file: safetensors under the paths of the variables, with all that it takes to use them.

The names are those of the tree ('params/encoder/stem_conv/kernel', 'batch_stats/...'), the axes Flax's, so
that in any JAX code the file is read with two libraries:

    variables = flax.traverse_util.unflatten_dict(safetensors.numpy.load_file(path), sep='/')

The header (see header.py) has the fields of the network and the preprocessing; a classifier, if there is
one, stands under 'classifier/kernel' and 'classifier/bias'.
"""

import os

from simclr_jax.weights import header
from simclr_jax.weights.tensors import read_json, read_metadata, read_tensors, write_tensors
from simclr_jax.weights.tree import Imported, all_arrays, fit


def write_flax(path: str | os.PathLike, imported: Imported) -> None:
    """Writes `imported` to one file, whole or not at all.

    Raises:
        ValueError: the variables do not fit the network or are not finite; nothing is written.
        OSError: the file cannot be written.
    """
    write_tensors(path, all_arrays(imported), {header.KEY: header.to_header(imported, 'flax')})


def read_flax(path: str | os.PathLike) -> Imported:
    """What `write_flax` wrote, bit for bit.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no such file, or does not fill the network that its header describes.
    """
    arrays, metadata = read_tensors(path)
    fields = header.from_header(metadata.get(header.KEY, '{}'), str(path), layout='flax')
    variables, classifier = fit(arrays, encoder=fields['encoder'], head=fields['head'], file=str(path),
                                image_size=fields['image_size'], channels=len(fields['mean']))
    return Imported(variables=variables, classifier=classifier, **header.imported_fields(fields))


def is_flax_file(path: str | os.PathLike) -> bool:
    """Whether `path` is a safetensors file that says it is of this layout."""
    try:
        return read_json(read_metadata(path).get(header.KEY, '{}'), str(path)).get('layout') == 'flax'
    except (ValueError, OSError):
        return False
