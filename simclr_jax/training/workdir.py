"""What a workdir says of its run beside the checkpoints: config.json, data.json and versions.json."""

import importlib.metadata
import json
import os
import pathlib
import platform
import re
from collections.abc import Iterable, Mapping
from typing import Any

import jax

import simclr_jax
from simclr_jax import storage
from simclr_jax.config import ConfigDict, base_config, flatten
from simclr_jax.config.arguments import OPEN

_PACKAGES = ('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'ml-collections', 'numpy',
             'tensorflow', 'tensorflow-cpu', 'tensorflow-datasets',
             'libtpu', 'jax-cuda12-plugin', 'jax-cuda13-plugin', 'nvidia-cudnn-cu12', 'nvidia-cudnn-cu13',
             'nvidia-nccl-cu12', 'nvidia-nccl-cu13')
_DRIVER = '/proc/driver/nvidia/version'     # on Linux, with NVIDIA's driver
# Fields of any name, and those of a user's recipe that nothing is built from.
_MAY_BE_UNKNOWN = rf'{OPEN.pattern}|(?!(encoder|head|predictor)\.)'

Workdir = str | os.PathLike


def save_run(workdir: Workdir, config: Mapping[str, Any], data: Any) -> None:
    """Writes config.json (of JSON values), data.json, and versions.json: packages, driver, devices (process 0).

    data: the training data, a `data.source.Source`; their names, counts and fingerprint are kept.
    """
    packages = {}
    for name in _PACKAGES:
        try:
            packages[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    write_json(workdir, 'config.json', config)
    write_json(workdir, 'data.json', _describe_data(data))
    write_json(workdir, 'versions.json', {
        'simclr_jax': simclr_jax.__version__, 'python': platform.python_version(), 'packages': packages,
        'platform': platform.platform(), 'backend': jax.default_backend(),
        'driver': pathlib.Path(_DRIVER).read_text().splitlines()[0] if os.path.exists(_DRIVER) else '',
        'device_kind': jax.devices()[0].device_kind, 'devices': jax.device_count(),
        'local_devices': jax.local_device_count(), 'processes': jax.process_count()})


def write_json(workdir: Workdir, name: str, value: Any) -> None:
    """Writes a file of `workdir` (process 0): a reader, and a run killed in the middle, finds the old or the new."""
    if jax.process_index() != 0:
        return
    storage.write_atomically(os.path.join(workdir, name), (json.dumps(value, indent=2) + '\n').encode())


def load_config(workdir: Workdir) -> dict[str, Any]:
    """The config of the run in `workdir`; tuples come back as lists.

    Raises:
        FileNotFoundError: the directory has no config.json.
        ValueError: it is damaged, or a newer version wrote it.
    """
    config = _read_json(workdir, 'config.json')
    if config is None:
        raise FileNotFoundError(f'There is no config.json in {workdir}: give the workdir of a run with --workdir.')
    wrote, here = (_read_json(workdir, 'versions.json') or {}).get('simclr_jax', ''), simclr_jax.__version__
    known, may_be_unknown = flatten(base_config()), OPEN.pattern if _number(wrote) > _number(here) else _MAY_BE_UNKNOWN
    unknown = [name for name in flatten(config) if name not in known and not re.match(may_be_unknown, name)]
    if unknown:
        raise ValueError(f'{workdir}/config.json has {", ".join(unknown)}, which simclr_jax {here} does not know: use '
                         f'the version that wrote it{f", {wrote}" if wrote else ""}, or a newer one.')
    return config


def leave_crops_as_begun(config: ConfigDict, begun: Mapping[str, Any]) -> str:
    """Undoes antialiasing by a recipe in the config of a run that began before its crops could have it.

    begun: the run's config.json. Returns the sentence that says so, '' where there is nothing to undo.
    """
    crop, before = config.augment.crop, begun['augment'].get('crop', {})
    if 'resize' in before or (crop.get('resize', 'bicubic'), crop.get('antialias', False)) == ('bicubic', False):
        return ''
    with config.unlocked():
        for name in ('resize', 'antialias'):
            for block, then in ((crop, before), (config.eval, begun['eval'])):
                del block[name]
                block.update({name: then[name]} if name in then else {})
    return ('The run began before crops could be antialiased: they, and the evaluation, stay bicubic without '
            'antialiasing.')


def check_config(workdir: Workdir, config: Mapping[str, Any], ignore: tuple[str, ...] = ('log',)) -> None:
    """Refuses to go on in a workdir that was made with another config; a new workdir is fine.

    A field that a later version added, and that has its default now, is no difference: defaults do what
    was done before there was a choice. Where data.json tells the data apart, their name may differ.

    Args:
        config: nested dict of JSON values. Tuples equal lists.
        ignore: dotted names ('log', 'data.dir') that may differ, with all below them.

    Raises:
        ValueError: it names each field that differs, with both values.
    """
    if not has(workdir, 'config.json'):
        return
    if has(workdir, 'data.json'):
        ignore += 'data.source',

    now, then = compared(config, ignore), compared(load_config(workdir), ignore)
    added = {name: value for name, value in compared(base_config().to_dict(), ignore).items() if name in now}
    then = added | then
    if 'none' in (then.get('predictor.mode'), now.get('predictor.mode')):      # then nothing is built from the rest
        then, now = ({name: value for name, value in fields.items() if not name.startswith('predictor.')
                      or name == 'predictor.mode'} for fields in (then, now))
    found = differences(then, now, 'in the workdir', 'now')
    if found:
        lines = ''.join(f'\n  {line}' for line in found) + '\n' if len(found) > 1 else f' {found[0]}. '
        raise ValueError(f'{workdir} was made with another config:{lines}'
                         'Give another --workdir, or set these fields back.')


def compared(config: Mapping[str, Any], ignore: Iterable[str]) -> dict[str, Any]:
    """{dotted name: value} of a config as it is read back, without those of `ignore` and all below them."""
    return {name: value for name, value in flatten(json.loads(json.dumps(config))).items()
            if not any(f'{name}.'.startswith(f'{prefix}.') for prefix in ignore)}


def check_data(workdir: Workdir, data: Any) -> None:
    """ValueError, with what differs, if the workdir was trained on other data; a new workdir is fine."""
    changes = data_changes(workdir, data)
    if changes:
        raise ValueError(f'The training data of {workdir} have changed: {changes}. Restore them, or give another '
                         '--workdir.')


def data_changes(workdir: Workdir, data: Any) -> str:
    """What tells `data` from those that the workdir was trained on; '' if nothing does, or if it does not say.

    Where they lie, and what they are called, may have changed.
    """
    then, now = _read_json(workdir, 'data.json'), _describe_data(data)
    if then is None or then.get('fingerprint') == now['fingerprint']:
        return ''
    if then.get('num_examples') != now['num_examples']:
        return f'{then.get("num_examples"):,} images before, {now["num_examples"]:,} now'
    if then.get('class_names') != now['class_names']:
        return f'{len(then.get("class_names") or ())} classes before, {len(now["class_names"] or ())} now'
    return f'{now["num_examples"]:,} images as before, but different ones or in a different order'


def has(workdir: Workdir, name: str) -> bool:
    """Whether a file lies in `workdir`."""
    return storage.is_file(os.path.join(workdir, name))


def has_checkpoint(workdir: Workdir) -> bool:
    """Whether a whole checkpoint lies in `workdir`; looks, and touches nothing."""
    directory = os.path.join(workdir, 'checkpoints')
    return storage.is_dir(directory) and any(
        entry.name.isdigit() and is_committed(os.path.join(directory, entry.name)) for entry in storage.scan(directory))


def is_committed(path: Workdir) -> bool:
    """Whether the checkpoint at `path` is whole: a local one has its name only then, one in a bucket a mark."""
    return not storage.is_remote(path) or storage.is_file(os.path.join(path, 'commit_success.txt'))


def differences(old: Mapping, new: Mapping, old_name: str, new_name: str) -> list[str]:
    """One phrase for every key at which the two flat dicts differ, in the order of `new`."""
    absent = object()

    def name(value):
        return 'absent' if value is absent else repr(value)

    pairs = {key: (old.get(key, absent), new.get(key, absent)) for key in {**new, **old}}
    return [f'{key}: {name(before)} {old_name}, {name(after)} {new_name}'
            for key, (before, after) in pairs.items() if before != after]


def _number(version: str) -> list[int]:
    return [int(part) for part in re.findall(r'\d+', version)]


def _read_json(workdir: Workdir, name: str) -> Any:
    """None where there is no such file; ValueError: it is damaged."""
    path = os.path.join(workdir, name)
    if not storage.exists(path):
        return None
    try:
        return json.loads(storage.read_bytes(path))
    except ValueError as error:
        mend = 'restore it, or give another --workdir' if name == 'config.json' else (
            'restore it, or remove it and the next run writes it again')
        raise ValueError(f'{path} is damaged ({error}): {mend}.') from None


def _describe_data(data: Any) -> dict[str, Any]:
    return {'name': data.name, 'split': data.split, 'num_examples': data.num_examples,
            'class_names': list(data.class_names) if data.class_names else None,
            'fingerprint': data.fingerprint()}
