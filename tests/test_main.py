"""What a user gets wrong ends in one sentence that names it, a status that is not 0, and no files."""

import numpy as np
import pytest

SMOKE = '--config=configs/smoke.py:smoke'


@pytest.mark.parametrize('arguments, sentence', [
    (['--config=configs/smok.py'], 'No config file configs/smok.py'),
    (['--config=configs/smoke.py:tiny'], "takes no argument 'tiny'; it takes no_colour, smoke"),
    ([SMOKE, '--config.batchsize=8'], "no field 'batchsize'; did you mean 'batch_size'?"),
    ([SMOKE, '--config.encoder.dept=18'], "did you mean 'encoder.depth'?"),
    ([SMOKE, '--config.batch_size=many'], 'batch_size=many'),
    ([SMOKE, '--config.batch_size=0'], 'batch_size is 0: it must be more than 0'),
    ([SMOKE, '--config.task=pretian'], "task is 'pretian'; the tasks are pretrain"),
    ([SMOKE, '--config.method.name=simclrr'], "method.name is 'simclrr'"),
    ([SMOKE, '--config.encoder.depth=20'], '20'),
    ([SMOKE, '--config.optimizer.name=lamb'], "'lamb'"),
    ([SMOKE, '--config.batch_size=60'], 'batch_size 60 is not divisible by the 8 devices'),
    ([SMOKE, '--config.batch_size=1024'], 'has only 512 images: choose a smaller batch'),
    ([SMOKE, '--config.data.train_split=training'], "no split 'training'"),
    ([SMOKE, '--config.data.source=folder:/nowhere'], "no directory '/nowhere'"),
    ([SMOKE, '--config.data.source=cifar1'], "There is no data source 'cifar1'"),
    ([SMOKE, '--config.augment.jitter.probability=2.0'], 'probability'),
    ([SMOKE, '--config.schedule.warmup_epochs=90.0'], 'warmup_steps'),
    ([SMOKE, 'extra'], "Unexpected argument 'extra'"),
    (['--config=configs/linear.py:smoke'], 'no config.json'),
], ids=lambda value: value if isinstance(value, str) else ' '.join(value[1:]) or value[0])
def test_a_mistake_is_one_sentence_and_leaves_nothing(arguments, sentence, run_main, tmp_path):
    workdir = tmp_path / 'workdir'
    done = run_main(*arguments, f'--workdir={workdir}', devices=8)
    assert done.returncode != 0
    assert sentence in done.stderr
    assert 'Traceback' not in done.stderr
    assert not workdir.exists()


def test_a_folder_without_images_is_named(run_main, tmp_path):
    (tmp_path / 'images').mkdir()
    (tmp_path / 'images' / 'notes.txt').write_text('no image')
    done = run_main(SMOKE, f'--config.data.source=folder:{tmp_path}/images', f'--workdir={tmp_path}/w',
                    '--config.data.train_split=train')
    assert done.returncode == 1 and f"no images below '{tmp_path}/images'" in done.stderr


def test_images_without_labels_train_and_say_what_is_off(run_main, tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (80, 20, 20), np.uint8)
    np.savez(tmp_path / 'grey.npz', images=images)
    done = run_main(SMOKE, f'--config.data.source=arrays:{tmp_path}/grey.npz', f'--workdir={tmp_path}/w',
                    '--config.data.train_split=train', '--config.data.test_split=',
                    '--config.num_train_steps=2',
                    '--config.schedule.warmup_epochs=0')
    assert done.returncode == 0, done.stderr
    assert 'No labels: the online probe, kNN and the linear probe are off.' in done.stdout
    assert not (tmp_path / 'w' / 'results.jsonl').exists()
