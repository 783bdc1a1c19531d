import collections

import pytest

from simclr_jax.config.names import importable_name, is_path, resolve


def test_an_object_is_found_by_its_name_and_named_by_its_object():
    assert resolve('collections:OrderedDict', 'encoder.name') is collections.OrderedDict
    assert resolve('collections:OrderedDict.fromkeys', 'f') == collections.OrderedDict.fromkeys
    assert importable_name(collections.Counter) == 'collections:Counter'
    assert importable_name(lambda: 0) == ''


def test_a_module_of_the_current_directory_is_found(tmp_path, monkeypatch):
    (tmp_path / 'module_of_mine.py').write_text('class Encoder: pass\n')
    monkeypatch.chdir(tmp_path)
    assert resolve('module_of_mine:Encoder', 'encoder.name').__name__ == 'Encoder'


@pytest.mark.parametrize('name, is_one', [
    ('a.b:C', True), ('a:b', True), ('resnet', False), ('folder:/a/b', False), ('arrays:x.npz', True),
    ('a:b:c', False), ('', False)])
def test_a_name_is_told_from_a_path(name, is_one):
    assert is_path(name) == is_one


@pytest.mark.parametrize('name, message', [
    ('mine', "encoder.name is 'mine': a part of your own is written 'package.module:Name'"),
    ('no_such_module_anywhere:X', 'no_such_module_anywhere cannot be imported'),
    ('collections:NoSuchName', 'collections has no NoSuchName')])
def test_a_name_that_leads_nowhere_is_named_with_its_field(name, message):
    with pytest.raises(ValueError, match=message):
        resolve(name, 'encoder.name')
