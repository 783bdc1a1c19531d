"""The task `export`: an encoder as files for PyTorch, Flax, ONNX, TensorFlow and StableHLO, each checked."""

import os
import pathlib
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from simclr_jax import storage
from simclr_jax.config import ConfigDict
from simclr_jax.evaluate.pretrained import Pretrained, as_imported, load_of_task, path_of
from simclr_jax.evaluate.results import metric_title
from simclr_jax.runlog.jsonl import read_rows, read_versions
from simclr_jax.runlog.writer import plain_table
from simclr_jax.runtime import sharding
from simclr_jax.weights import card as cards, hub
from simclr_jax.weights.tree import Imported, flat
from simclr_jax.weights.write.formats import FORMATS, Job, largest_difference, make_job, why_unusable

TOLERANCE = 1e-4        # of the largest difference of features, over their root mean square


def export(config: ConfigDict, workdir: str) -> dict[str, dict[str, Any]]:
    """Writes the encoder of a workdir, or of any file of weights, in the formats of config.export.

    Into config.export.dir, or workdir/export: encoder.safetensors and head.safetensors (names of timm and
    torchvision), encoder.flax.safetensors, encoder.onnx, savedmodel/, encoder.stablehlo, and card.json and
    README.md, which say what they are and how each is loaded. See `export_encoder`. With
    config.export.push_to_hub these go to the Hugging Face Hub too.

    Returns:
        card['files']: {file: {'bytes', 'largest_difference', ...}}; {} on processes other than the first.

    Raises:
        ValueError: an unknown format, a layer that is not there, weights that are not finite; or a format
            was refused.
        FileNotFoundError: no weights there.
        OSError: the files could not be written; what was there stays as it was. Or the Hub refuses them.
    """
    settings = config.export
    formats = _wanted(settings.formats)
    if settings.push_to_hub:
        hub.check_push(settings.push_to_hub)
    source = path_of(settings, workdir)
    pretrained = load_of_task(settings, source, 'export')
    channels = len(pretrained.config.augment.mean)
    if channels != 3:
        raise ValueError(f'The encoder takes images of {channels} channels, and files of weights are for RGB: use '
                         '`simclr_jax.load_encoder`.')
    if not sharding.is_lead():
        return {}
    directory = storage.absolute(settings.dir or os.path.join(workdir, 'export'))
    here = storage.local_dir(directory)         # where the formats can be written and loaded again
    if here != directory and storage.is_dir(directory):
        storage.download(directory, here)
    files = export_encoder(here, with_card(pretrained, source), formats=formats, layer=settings.layer,
                           normalize_inside=settings.normalize_inside, license=settings.license,
                           repository=settings.push_to_hub)
    if here != directory:
        storage.remove(os.path.join(directory, cards.NAME))         # leaves first and comes last, as on a disk
        storage.publish(directory, last=cards.NAME)
        for entry in storage.scan(directory):
            if not os.path.exists(os.path.join(here, entry.name)):
                storage.remove(os.path.join(directory, entry.name))
        print(f'-> {directory}')
    if settings.push_to_hub:
        address = hub.push(here, [*files, cards.NAME, cards.README], settings.push_to_hub, replaces=cards.FILES)
        print(f'Uploaded to {address}. A new repository is private until you change that on its page.', flush=True)
    return files


def with_card(pretrained: Pretrained, path: str) -> Imported:
    """A pretrained encoder, from `path`, with what its files say of it."""
    if pretrained.card:         # of a file
        return as_imported(pretrained)
    return as_imported(pretrained, card={
        'step': pretrained.step, 'network': pretrained.whose,
        'evaluation': [line for line in read_rows(path, 'results.jsonl') if line.get('step') == pretrained.step],
        'recipe': pretrained.config.to_dict(), 'trained_with': read_versions(path)})


def export_encoder(directory: str, imported: Imported, *, formats: Sequence[str] = (), layer: int = 0,
                   normalize_inside: bool = True, license: str = '', repository: str = ''
                   ) -> dict[str, dict[str, Any]]:
    """Writes the files of `formats`, card.json and README.md into `directory`, and prints a table of them.

    Everything is written in a hidden directory first. There each format is loaded again, where its runtime
    is installed, and its features of random images are compared with those of this project's own network
    in float32; it is published only if they agree to `TOLERANCE`. An earlier export of the same encoder
    keeps the formats that are not written now; that of another encoder is replaced as a whole.

    Args:
        formats: names of `FORMATS`; () for all that can hold the encoder and whose libraries are installed.
        layer: of the programs (onnx, savedmodel, stablehlo): 0 for h, k for head layer k, -1 for z. The other
            two always hold the encoder and the head.
        normalize_inside: the programs take images in [0, 1] and normalise them; False: normalised images.
        license, repository: for README.md: the licence's name on the Hugging Face Hub, and OWNER/NAME there.

    Returns:
        {file: {'bytes', 'largest_difference' (None: not measured), 'load', 'input'}}.

    Raises: see `export`.
    """
    _check(imported)
    asked, names = bool(formats), [name for name in FORMATS if not formats or name in formats]
    card = cards.make_card(imported, layer=layer, normalize_inside=normalize_inside)
    job = make_job(imported, layer=layer, normalize_inside=normalize_inside)
    created = not os.path.isdir(directory)
    try:
        os.makedirs(directory, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix='.export-', dir=directory, ignore_cleanup_errors=True) as temporary:
            outcomes = {name: _make(name, os.path.join(temporary, name), job) for name in names}
            files = _publish(directory, temporary, outcomes, card, license, repository)
    except OSError as error:
        raise OSError(f'The export could not be written to {directory} ({error.strerror or error}): make '
                      'room there, or choose another export.dir.') from error
    finally:
        if created and os.path.isdir(directory) and not os.listdir(directory):
            os.rmdir(directory)
    _report(directory, imported.source, outcomes, files)
    refused = [f'{name}: {outcome.note}' for name, outcome in outcomes.items()
               if outcome.wrong or asked and not outcome.whole]
    if refused:
        raise ValueError(f'Not exported: {"; ".join(refused)}.')
    return files


def _wanted(formats: Sequence[str]) -> tuple[str, ...]:
    """('torch,onnx',), as a command line gives it, and ('torch', 'onnx') are the same."""
    wanted = tuple(name.strip() for item in formats for name in str(item).split(',') if name.strip())
    for name in wanted:
        if name not in FORMATS:
            raise ValueError(f'export.formats names {name!r}: the formats are {", ".join(FORMATS)}.')
    return wanted


def _check(imported: Imported) -> None:
    """ValueError for weights that are not finite."""
    broken = [path for path, array in flat(imported.variables).items() if not np.isfinite(array).all()]
    if broken:
        raise ValueError(f'{imported.source} has weights that are not finite, such as {broken[0]}: nothing '
                         'was exported. Choose an earlier checkpoint (export.checkpoint).')


class _Outcome(NamedTuple):
    whole: bool                         # written, and not refused
    difference: float | None = None     # of its features; None where it was not measured
    note: str = ''                      # why it is not there, or was not measured
    wrong: bool = False                 # its features are not ours


def _make(name: str, directory: str, job: Job) -> _Outcome:
    """Writes one format into `directory`, and checks it."""
    kind = FORMATS[name]
    if unusable := why_unusable(kind.needs):
        extra = 'tfds' if 'tensorflow' in kind.needs else 'export'
        return _Outcome(False, note=f"{unusable}: pip install 'simclr_jax[{extra}]'")
    os.mkdir(directory)
    try:
        kind.write(directory, job)
        if unusable := why_unusable(kind.runtime):
            return _Outcome(True, note=f'not checked: {unusable}')
        difference = largest_difference(kind.load(directory, job)(job.images), job.ours)
    except ValueError as error:
        return _Outcome(False, note=str(error).rstrip('.'))
    if not difference <= TOLERANCE:     # a NaN is refused too
        return _Outcome(False, difference, f'its features differ by {difference:.1e} from ours, and at most '
                        f'{TOLERANCE:.0e} is right', wrong=True)
    return _Outcome(True, difference)


# ---- publishing --------------------------------------------------------------------------------------


def _publish(directory: str, temporary: str, outcomes: Mapping[str, _Outcome], card: dict[str, Any],
             license: str, repository: str) -> dict[str, dict[str, Any]]:
    """Moves what is whole into `directory`; card.json leaves first and comes last. Returns card['files']."""
    new = {file: (os.path.join(temporary, name, file), None if file.endswith('.py') else outcome.difference)
           for name, outcome in outcomes.items() if outcome.whole
           for file in sorted(os.listdir(os.path.join(temporary, name)))}
    if not new:
        return {}
    old = cards.read_card(directory)
    files = {}
    if old:
        same = old.get('fingerprint') == card['fingerprint']
        os.remove(os.path.join(directory, cards.NAME))
        for file in cards.FILES:
            path = os.path.join(directory, file)
            if same and file in old.get('files', {}) and os.path.exists(path):
                files[file] = old['files'][file]
            elif file not in new:
                storage.remove(path)
    for file, (path, difference) in new.items():
        parts = pathlib.Path(path), *pathlib.Path(path).rglob('*')
        size = sum(part.stat().st_size for part in parts if part.is_file())
        files[file] = cards.describe_file(file, card, size=size, difference=difference)
        target = os.path.join(directory, file)
        if os.path.isdir(target):               # os.replace takes the place of a file alone
            os.rename(target, os.path.join(temporary, f'{file}.old'))
        os.replace(path, target)
    card['files'], before = files, (old or {}).get('readme')
    card['readme'] = cards.write_model_card(directory, card, _results(card), license=license,
                                                 repository=repository, written=before)
    if card['readme'] is None:
        print(f'{os.path.join(directory, cards.README)} was edited after its export and is kept; rename it to get '
              'a new one.')
        card['readme'] = before
    cards.write_card(directory, card)
    return files


def _results(card: Mapping[str, Any]) -> list[cards.Result]:
    """What was measured of this network at this step."""
    return [cards.Result(line.get('encoder', ''), title, value, line.get(f'{name}_interval'),
                              line.get('data', ''), line.get('split', ''))
            for line in card.get('evaluation', []) if line.get('network') in (None, card.get('network'))
            for name, value in line.items() if (title := metric_title(name)) and isinstance(value, float)]


def _report(directory: str, source: str, outcomes: Mapping[str, _Outcome], files: Mapping[str, dict]) -> None:
    rows = []
    for file, entry in files.items():
        difference = entry['largest_difference']
        rows.append([file, f'{entry["bytes"]:,}', '' if difference is None else f'{difference:.1e}'])
    print(plain_table(f'{source} -> {directory}', ['file', 'bytes', 'largest difference'], rows))
    for name, outcome in outcomes.items():
        if outcome.note:
            print(f'{name}: {outcome.note}')
    print('The difference is the largest of features of random images from those of this program, over their '
          'root mean square.', flush=True)
