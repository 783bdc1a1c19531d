"""The door for sources: what comes in as it is, its pixels and labels, and one sentence where it will not."""

import time

import numpy as np
import pytest
from PIL import Image

from simclr_jax.config import base_config
from simclr_jax.data import loading, pipeline
from simclr_jax.data.decode import EncodedImage
from simclr_jax.data.source import RandomAccess, Source, Streamed
from tests.data.streams import VIEW, encoded

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (6, 9, 12, 3), np.uint8)


def assert_holds(source, labels=None, class_names=None, images=IMAGES):
    """Every image of a source, and its labels and classes."""
    assert len(source) == source.num_examples == len(images)
    for index, expected in enumerate(images):
        image = EncodedImage(source[index]['image'])
        np.testing.assert_array_equal(image.region((0, 0, image.height, image.width)), expected)
    assert source.labels.dtype == np.int32
    assert source.labels.tolist() == (labels or [-1] * len(images))
    assert source.class_names == class_names


def test_a_list_of_dicts_in_every_form_of_image(tmp_path):
    Image.fromarray(IMAGES[4]).save(tmp_path / 'a.png')
    items = [{'image': IMAGES[0], 'label': 0}, {'image': encoded(IMAGES[1]), 'label': np.int64(1)},
             {'image': Image.fromarray(IMAGES[2]), 'label': None}, {'image': IMAGES[3].tolist(), 'label': 2},
             {'image': str(tmp_path / 'a.png')}, {'image': memoryview(encoded(IMAGES[5])), 'label': 1}]
    items[3]['image'] = IMAGES[3].astype(np.int32) * 257        # as 16 bits hold it
    assert_holds(loading.as_source(items), [0, 1, -1, 2, -1, 1], ('0', '1', '2'))


def test_images_alone_and_pairs():
    assert_holds(loading.as_source(list(IMAGES)))
    assert_holds(loading.as_source(IMAGES))
    assert_holds(loading.as_source([(image, label) for image, label in zip(IMAGES, 'bacbac')]),
                 [1, 0, 2, 1, 0, 2], ('a', 'b', 'c'))


def test_grey_and_channels_first_and_floats():
    grey = loading.as_source([{'image': IMAGES[0, :, :, 0]}])
    np.testing.assert_array_equal(grey.load(0), np.repeat(IMAGES[0, :, :, :1], 3, axis=-1))
    floats = IMAGES.astype(np.float32) / 255
    assert_holds(loading.as_source([image.transpose(2, 0, 1) for image in floats]))


def test_torch_data_sets_of_pairs_and_of_dicts():
    torch = pytest.importorskip('torch')

    class Pairs(torch.utils.data.Dataset):
        classes = ['x', 'y', 'z']

        def __len__(self):
            return 6

        def __getitem__(self, index):
            return Image.fromarray(IMAGES[index]), index % 3

    class Dicts(Pairs):
        def __getitem__(self, index):
            return {'image': torch.tensor(IMAGES[index].transpose(2, 0, 1)), 'label': torch.tensor(index % 3)}

    for kind in (Pairs, Dicts):
        assert_holds(loading.as_source(kind()), [0, 1, 2] * 2, ('x', 'y', 'z'))
    subset = torch.utils.data.Subset(Pairs(), [1, 2])
    assert_holds(loading.as_source(subset), [0, 1], ('1', '2'), images=IMAGES[1:3])


def test_labels_that_a_data_set_keeps_apart_cost_no_image():
    class Targets(list):
        targets = [1, 0, 1, 0, 1, 0]
        read = 0

        def __getitem__(self, index):
            self.read += 1
            return super().__getitem__(index)

    items = Targets(zip(IMAGES, Targets.targets))
    source = loading.as_source(items)
    assert items.read < 10 and source.labels.tolist() == Targets.targets     # to see whether they will do


def test_a_hugging_face_data_set_made_in_memory():
    datasets = pytest.importorskip('datasets')
    features = datasets.Features({'picture': datasets.Image(),
                                  'kind': datasets.ClassLabel(names=['cat', 'dog'])})
    made = datasets.Dataset.from_dict(
        {'picture': [Image.fromarray(image) for image in IMAGES], 'kind': [0, 1] * 3}, features=features)
    assert_holds(loading.as_source(made), [0, 1] * 3, ('cat', 'dog'))
    both = datasets.DatasetDict({'train': made, 'test': made.select([3])})
    assert_holds(loading.as_source(both, 'test'), [1], ('cat', 'dog'), images=IMAGES[3:4])
    assert_holds(loading.as_source(made.remove_columns('kind')))
    with pytest.raises(ValueError, match="no split 'val'; it has train, test"):
        loading.as_source(both, 'val')


def test_array_records_through_grain(tmp_path):
    grain = pytest.importorskip('grain')
    from array_record.python import array_record_module
    path = str(tmp_path / 'a.array_record')
    writer = array_record_module.ArrayRecordWriter(path, 'group_size:1')
    for image in IMAGES:
        writer.write(encoded(image))
    writer.close()
    records = grain.sources.ArrayRecordDataSource(path)
    assert_holds(loading.as_source(records))
    labelled = grain.MapDataset.source(records).map_with_index(
        lambda index, record: {'image': record, 'label': index % 2})
    assert_holds(loading.as_source(labelled), [0, 1] * 3, ('0', '1'))


def of_split(split, size=2):
    """A source by its name: what a config calls."""
    return [{'image': image, 'label': index % 2} for index, image in enumerate(IMAGES[:size])]


class OneSplit(list):
    """A source of one split."""

    def __init__(self, count=3):
        super().__init__(IMAGES[:count])


def test_a_source_by_its_name_is_called_with_its_split_and_arguments():
    name = f'{__name__}:of_split'
    source = loading.load_source(name, 'train', arguments={'size': 4})
    assert_holds(source, [0, 1] * 2, ('0', '1'), IMAGES[:4])
    assert loading.load_test_source(name, '').split == 'test'
    alone = f'{__name__}:OneSplit'
    assert loading.load_source(alone, 'train').num_examples == 3
    assert loading.load_test_source(alone, '') is None
    assert loading.load_source(alone, 'train', decode_once=True).uniform
    with pytest.raises(ValueError, match="takes no argument `split`.*'test' was asked for"):
        loading.load_source(alone, 'test')
    with pytest.raises(ValueError, match=r"cannot be made with \(size=2\): TypeError: .*'size'"):
        loading.load_source(alone, 'train', arguments={'size': 2})


def test_what_is_given_to_python_has_its_test_split_too():
    def pair(source, **options):
        return loading.load_pair('', 'train', '', source=source, **options)

    train, test = pair(of_split, arguments={'size': 4})
    assert len(train) == len(test) == 4 and test.split == 'test'
    train, test = pair({'train': of_split('', 6), 'val': of_split('', 2)})
    assert len(train) == 6 and len(test) == 2 and test.split == 'val'
    train, test = pair(of_split('', 6))
    assert len(train) == 4 and len(test) == 2 and test.held_out == '10%'       # one of each class
    train, test = pair(of_split('', 6), test_source=of_split('', 3))
    assert len(train) == 6 and len(test) == 3
    with pytest.raises(ValueError, match='data.source is empty: give .* given its images as an object names none'):
        loading.load_source('', 'train')


@pytest.mark.parametrize('anything, sentence', [
    (iter([1]), 'is a list_iterator, which is not a source of images: give something with len.source.'),
    (3, 'is a int, which is not a source of images'), ([], 'holds no images'),
    ([{'img': 1, 'y': 2}], "^Item 0 of 'list' has the keys img, y: expected {'image': ...,"),
    ([(1, 2, 3)], 'Item 0 .* is a tuple of 3: expected'),
    ([1, 2, 3], "^Item 0 of 'list' is a int: expected {'image': ...,"),
    ([{'image': np.zeros((5, 5, 2), np.uint8)}], r'Item 0 .* holds the image ndarray uint8 \[5, 5, 2\]: an'),
    ([{'image': object()}], 'Item 0 .* holds the image object object'),
    ([{'image': IMAGES[0], 'label': 1.5}], 'has labels of float64'),
    ([{'image': IMAGES[0], 'label': -3}], 'has the label -3: labels are 0, 1, 2'),
    ({'train': [1]}, "no split 'val'; it has train")])
def test_what_is_no_source_ends_in_one_sentence(anything, sentence):
    with pytest.raises(ValueError, match=sentence):
        loading.as_source(anything, 'val' if isinstance(anything, dict) else 'train')


def test_labels_that_do_not_fit():
    class Named(list):
        class_names = ['a']

    with pytest.raises(ValueError, match="'Named' has the label 1, but names 1 classes"):
        loading.as_source(Named([(IMAGES[0], 1)]))
    Named.labels = [0, 0]
    with pytest.raises(ValueError, match='has 1 items but 2 labels'):
        loading.as_source(Named([(IMAGES[0], 0)]))


def test_an_item_that_raises_is_named_and_one_that_cannot_be_read_is_skipped(tmp_path):
    class Broken(list):
        def __getitem__(self, index):
            if index == 2:
                raise KeyError('gone')
            return super().__getitem__(index)

    with pytest.raises(ValueError, match="Item 2 of 'Broken' cannot be read: KeyError: 'gone'"):
        loading.as_source(Broken([{'image': image} for image in IMAGES]))
    items = [{'image': image} for image in IMAGES]
    items[3] = {'image': str(tmp_path / 'nothing.png')}
    source = loading.as_source(items)
    source.max_bad_share = 0.5
    next(pipeline.train_batches(source, seed=0, batch_size=6, form='crops', image_size=4, view1=VIEW,
                                view2=VIEW))
    assert source.skipped == ['example 3']


class Items:
    """No list: its labels are asked for item by item."""

    def __init__(self, *items):
        self._items = items

    def __len__(self):
        return len(self._items)

    def __getitem__(self, index):
        item = self._items[index]
        if isinstance(item, Exception):
            raise item
        return item


@pytest.mark.parametrize('odd', [OSError('broken'), {'image': None, 'label': 0}, {'image': IMAGES[0][:0], 'label': 0}],
                         ids=['unreadable', 'None', 'without pixels'])
@pytest.mark.parametrize('place', [0, 3])
def test_an_item_without_an_image_is_skipped_wherever_it_is(odd, place):
    items = [{'image': image, 'label': 0} for image in IMAGES]
    items[place] = odd
    source = loading.as_source(Items(*items))
    source.max_bad_share = 0.5
    found = loading.in_memory(source)
    assert found and len(found) == 5 and source.skipped == [f'example {place}']
    assert source.labels.tolist()[1 - place // 3] == 0
    with pytest.raises(ValueError, match="No item of 'Items' can be read; item 0: "):
        loading.as_source(Items(odd, odd))


def test_labels_of_which_the_first_is_none():
    items = Items(*({'image': image, 'label': label} for image, label in zip(IMAGES, [None, 0, 1, None, 1, 0])))
    assert_holds(loading.as_source(items), [-1, 0, 1, -1, 1, 0], ('0', '1'))
    datasets = pytest.importorskip('datasets')
    kinds = (datasets.ClassLabel(names=['a', 'b']), ('a', 'b'), [0, None, 1] * 2), (
        datasets.Value('string'), ('x', 'y'), ['x', None, 'y'] * 2)
    for kind, names, labels in kinds:
        made = datasets.Dataset.from_dict(
            {'image': [{'bytes': encoded(image), 'path': None} for image in IMAGES], 'label': labels},
            features=datasets.Features({'image': datasets.Image(), 'label': kind}))
        assert_holds(loading.as_source(made), [0, -1, 1] * 2, names)


def test_names_of_classes_hold_for_labels_that_are_strings():
    class Named(list):
        classes = ['dog', 'cat', 'zebra']

    source = loading.as_source(Named(zip(IMAGES, ['cat', 'dog'] * 3)))
    assert_holds(source, [1, 0] * 3, ('dog', 'cat', 'zebra'))


def test_arguments_for_what_takes_none_are_refused():
    with pytest.raises(ValueError, match="data.arguments are for a class or function .*'list' is one already"):
        loading.as_source(list(IMAGES), arguments={'count': 7})


@pytest.mark.parametrize('num_threads', [0, 1])
def test_with_one_thread_items_are_read_one_at_a_time(num_threads):
    class Slow(list):
        reading = most = 0

        def __getitem__(self, index):
            self.reading += 1
            self.most = max(self.most, self.reading)
            time.sleep(0.002)
            self.reading -= 1
            return super().__getitem__(index)

    items = Slow({'image': image, 'label': 0} for image in np.tile(IMAGES, (8, 1, 1, 1)))
    data = base_config().data
    data.num_threads = num_threads
    source, _ = loading.load_pair('', 'train', 'none', source=items,
                                  **loading.options(data, image_size=4, is_lead=True))
    assert source.uniform and (items.most == 1) == (num_threads == 1)


def test_the_fingerprint_tells_what_is_in_it():
    def of(images, labels):
        return loading.as_source(list(zip(images, labels))).fingerprint()

    known = of(IMAGES, [0, 1] * 3)
    assert known == of(IMAGES.copy(), [0, 1] * 3)
    others = of(IMAGES[:5], [0, 1, 0, 1, 0]), of(IMAGES, [1, 0] * 3), of(IMAGES[::-1], [0, 1] * 3)
    assert len({known, *others}) == 4


def test_protocols_tell_sources_apart_and_our_own_are_of_the_same_kind():
    source = loading.load_source('shapes:20', 'train', image_size=8)
    assert isinstance(source, RandomAccess) and not isinstance(source, Streamed)
    again = loading.as_source([source[index] for index in range(len(source))])
    assert_holds(again, source.labels.tolist(), tuple('0123456789'), source.images)
    assert isinstance(again, Source) and loading.as_source(again) is again
