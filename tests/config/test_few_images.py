"""What a run of few images has instead of its recipe's values: chosen when it begins, and kept."""

import json
import pathlib
import runpy

import pytest

from simclr_jax.config import ConfigDict, base_config, flatten
from simclr_jax.config.few_images import as_begun, fit_to
from simclr_jax.train import pretrain

pytestmark = pytest.mark.usefixtures('one_device')
FOLDER = pathlib.Path(__file__).parents[2] / 'configs' / 'folder.py'
SHORT = {'num_train_steps': 1, 'encoder.name': 'tests.encoders:OneBlock', 'augment.image_size': 16,
         'data.test_split': 'none', **{f'augment.{name}.probability': 0.0 for name in ('jitter', 'grey', 'blur')}}


def folder_config(argument: str = '', **overrides) -> ConfigDict:
    config = runpy.run_path(str(FOLDER))['get_config'](argument)
    config.update_from_flattened_dict(overrides)
    return config


def begun_as(config: ConfigDict) -> dict:
    return json.loads(json.dumps(config.to_dict()))


def test_a_folder_of_few_images_is_trained_by_other_values_than_one_of_many():
    config = folder_config()
    below = config.few_images.below
    few, (sentence,) = fit_to(config, below - 1)
    assert fit_to(config, below) == (config, [])
    changed = {name for name, value in flatten(few).items() if value != flatten(config)[name]}
    assert {'optimizer.learning_rate', 'augment.crop.area', 'augment.jitter.hue'} <= changed
    assert changed <= {name for name, _, _ in config.few_images.instead}
    assert sentence.startswith('19,999 training images are few, so that other defaults are used: '
                               'optimizer.learning_rate 0.15 instead of ')
    assert all(f' {name} ' in sentence for name in changed)


def test_a_value_that_the_user_gave_stays():
    few, (sentence,) = fit_to(folder_config(**{'optimizer.learning_rate': 0.5}), 10)
    assert few.optimizer.learning_rate == 0.5 and 'learning_rate' not in sentence
    assert few.augment.crop.area == (0.3, 1.0)
    crops = {f'augment.{view}': {'crop': {'area': (0.5, 1.0)}} for view in ('view1', 'view2')}
    assert fit_to(folder_config(**crops), 10)[0].augment.crop.area == (0.08, 1.0)       # it is of no view
    assert fit_to(folder_config(**{'few_images.below': 0}), 10)[1] == []
    other = {'few_images.instead': (('batch_size', 256, 64), ('augment.image_size', 224, 96))}
    assert fit_to(folder_config(**other), 10)[0].batch_size == 64       # fields of any block, and of none
    assert fit_to(base_config(), 10) == (base_config(), [])


def test_the_values_that_are_replaced_are_those_of_the_recipe():
    for argument in ('', 'smoke', 'epochs=30', 'size=32,epochs=5'):
        fields = flatten(folder_config(argument))
        for name, usual, few in fields['few_images.instead']:
            assert fields[name] == usual or name == 'schedule.warmup_epochs' and argument == 'smoke'
            assert isinstance(few, type(fields[name]))


@pytest.mark.parametrize('num_examples', [10, 10_000_000])
def test_a_run_goes_on_as_it_began_whatever_the_size_is_now(num_examples):
    begun, _ = fit_to(folder_config('epochs=30'), num_examples)
    assert as_begun(folder_config('epochs=30'), begun_as(begun)) == begun
    given = as_begun(folder_config(**{'optimizer.learning_rate': 0.5}), begun_as(begun))
    assert given.optimizer.learning_rate == 0.5             # for the check against the workdir to refuse


def test_a_workdir_from_before_there_was_a_choice_keeps_the_recipe():
    begun = begun_as(folder_config('epochs=30'))
    del begun['few_images']
    assert as_begun(folder_config('epochs=30'), begun) == folder_config(
        'epochs=30', **{'few_images.below': 0, 'few_images.instead': ()})


def test_what_is_chosen_is_printed_kept_and_taken_up(tmp_path, capsys):
    pretrain(folder_config('smoke', **SHORT), str(tmp_path))
    assert '512 training images are few, so that other defaults are used: ' in capsys.readouterr().out
    kept = json.loads((tmp_path / 'config.json').read_text())
    assert kept['optimizer']['learning_rate'] == 0.15 and kept['augment']['crop']['area'] == [0.3, 1.0]
    pretrain(folder_config('smoke', **SHORT), str(tmp_path))
    assert json.loads((tmp_path / 'config.json').read_text()) == kept
    with pytest.raises(ValueError, match='optimizer.learning_rate: 0.15 in the workdir, 0.5 now'):
        pretrain(folder_config('smoke', **SHORT, **{'optimizer.learning_rate': 0.5}), str(tmp_path))


def test_an_older_workdir_of_a_folder_resumes(tmp_path):
    config = folder_config('smoke', **SHORT, **{'few_images.below': 0})
    pretrain(config, str(tmp_path))
    kept = json.loads((tmp_path / 'config.json').read_text())
    del kept['few_images']
    (tmp_path / 'config.json').write_text(json.dumps(kept))
    pretrain(folder_config('smoke', **SHORT), str(tmp_path))
    now = json.loads((tmp_path / 'config.json').read_text())
    assert now.pop('few_images') == {'below': 0, 'instead': []} and now == kept
