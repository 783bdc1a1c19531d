"""ViT and ConvNeXt beside timm's: files in, files out, features and names."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from simclr_jax.models.building import make_network
from simclr_jax.models.convnext import ConvNeXt
from simclr_jax.models.network import init_variables, outputs
from simclr_jax.models.vit import ViT, sincos_positions
from simclr_jax.weights.read.torch import read_torch
from simclr_jax.weights.torch_names import encoder_to_torch
from simclr_jax.weights.tree import expected

torch = pytest.importorskip('torch', reason="the extra 'export' is not installed")
timm = pytest.importorskip('timm', reason="the extra 'export' is not installed")
from timm.models.convnext import ConvNeXt as TimmConvNeXt  # noqa: E402
from timm.models.vision_transformer import VisionTransformer, resample_abs_pos_embed  # noqa: E402

from simclr_jax.weights.write import torch_model  # noqa: E402
from simclr_jax.weights.write.torch import write_torch  # noqa: E402

SIZE = 32
SHAPE = dict(img_size=SIZE, patch_size=8, embed_dim=128, depth=2, num_heads=2)


def with_patches_of_2():
    """timm's own `patch_size=2` has a stride of 2 before its first stage too."""
    model = TimmConvNeXt(depths=(1, 1, 1, 1), dims=(8, 16, 24, 32), num_classes=0)
    model.stem[0] = torch.nn.Conv2d(3, 8, 2, 2)
    return model


MODELS = {
    'class token': lambda: VisionTransformer(**SHAPE, num_classes=0),
    'mean of the patches': lambda: VisionTransformer(**SHAPE, num_classes=0, class_token=False, global_pool='avg'),
    'classifier': lambda: VisionTransformer(**SHAPE, num_classes=3),
    'convnext of convolutions': lambda: TimmConvNeXt(depths=(1, 1, 1, 1), dims=(8, 16, 24, 32), num_classes=0,
                                                     conv_mlp=True),
    'convnext, patches of 2': with_patches_of_2,
    'convnext, classifier': lambda: TimmConvNeXt(depths=(1, 1, 2, 1), dims=(8, 16, 24, 32), num_classes=3),
}


def with_random_weights(model):
    """Every parameter drawn, those too that start at 0 or 1e-6."""
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator) / max(parameter.shape[-1], 4) ** 0.25
    return model.eval()


def images(n=2, size=SIZE):
    return np.random.default_rng(1).random((n, size, size, 3), np.float32)


def theirs(model, pixels):
    with torch.no_grad():
        features = model.forward_head(model.forward_features(torch.from_numpy(pixels.transpose(0, 3, 1, 2))),
                                      pre_logits=True)
    return features.numpy()


def ours(imported, pixels):
    network = make_network(encoder=imported.encoder, head=imported.head)
    with jax.default_matmul_precision('highest'):
        return np.asarray(jax.jit(lambda v, x: outputs(network, v, x).features)(imported.variables, pixels))


def assert_close(got, expected):
    assert got.shape == expected.shape
    assert np.abs(got - expected).max() < 1e-4 * np.sqrt(np.mean(expected ** 2))


@pytest.mark.parametrize('name', sorted(MODELS.keys() - {'class token'}))
def test_a_model_of_timm_comes_in_and_goes_out_with_the_same_features(name, tmp_path):
    model = with_random_weights(MODELS[name]())
    torch.save({'state_dict': model.state_dict()}, tmp_path / 'model.pth')
    imported = read_torch(tmp_path / 'model.pth')
    imported = dataclasses.replace(imported, image_size=SIZE if 'convnext' in name else imported.image_size)
    assert imported.image_size == SIZE and 'mean' in imported.card['assumed']
    assert_close(ours(imported, images()), theirs(model, images()))
    assert (imported.classifier is None) == ('classifier' not in name)

    write_torch(tmp_path, imported)
    back, head, _ = torch_model.load(tmp_path / 'encoder.safetensors')          # strictly
    assert head is None and type(back) is type(model)
    for (key, ours_there), (_, there) in zip(sorted(back.state_dict().items()), sorted(model.state_dict().items())):
        assert torch.equal(ours_there, there.reshape(ours_there.shape)), key
    again = read_torch(tmp_path / 'encoder.safetensors')
    jax.tree.map(np.testing.assert_array_equal, again.variables, imported.variables)


def test_moco_v3s_vit_is_read_out_of_its_checkpoint_with_the_fixed_positions(tmp_path):
    model = with_random_weights(VisionTransformer(**SHAPE | {'embed_dim': 384, 'num_heads': 12}, num_classes=0))
    fixed = np.concatenate([np.zeros((1, 384), np.float32), sincos_positions(4, 4, 384)])
    model.pos_embed.data = torch.from_numpy(fixed)[None]
    names = {f'module.base_encoder.{name}': value for name, value in model.state_dict().items()}
    names |= {'module.base_encoder.head.0.weight': torch.zeros(2, 384), 'module.predictor.0.weight': torch.zeros(2, 2),
              'module.momentum_encoder.cls_token': torch.zeros(1, 1, 384)}
    torch.save({'epoch': 300, 'state_dict': names}, tmp_path / 'vit-s-300ep.pth.tar')
    imported = read_torch(tmp_path / 'vit-s-300ep.pth.tar')
    arguments = imported.encoder['arguments']
    assert (arguments['heads'], arguments['positions'], arguments['patch']) == (12, 'sincos', 8)
    assert imported.card['ignored'] == ['module.base_encoder.head.*', 'module.momentum_encoder.*', 'module.predictor.*']
    assert_close(ours(imported, images()), theirs(model, images()))


def test_positions_of_other_sizes_are_resampled_as_timm_does(tmp_path):
    model = with_random_weights(MODELS['class token']())
    torch.save(model.state_dict(), tmp_path / 'model.pth')
    imported = read_torch(tmp_path / 'model.pth')
    for size in (24, 56):
        model.pos_embed.data = resample_abs_pos_embed(MODELS['class token']().pos_embed.data * 0 + torch.from_numpy(
            encoder_to_torch(imported.encoder, imported.variables)['pos_embed']), [size // 8] * 2, num_prefix_tokens=1)
        model.patch_embed.img_size, model.patch_embed.strict_img_size = (size, size), False
        assert_close(ours(imported, images(size=size)), theirs(model, images(size=size)))


def test_moco_v3s_positions_are_rows_then_columns():
    """moco-v3 vits.py: the sine of the first half of the columns' rates, ... of one place, by hand."""
    table, width = sincos_positions(3, 5, 8), 8
    omega = 1 / 10000 ** (np.arange(width // 4) / (width // 4))
    for row, column in ((0, 0), (2, 1), (1, 4)):
        place = np.concatenate([np.sin(row * omega), np.cos(row * omega), np.sin(column * omega),
                                np.cos(column * omega)])
        np.testing.assert_allclose(table[row * 5 + column], place, atol=1e-6)


@pytest.mark.parametrize('timm_name, fields', [
    ('vit_small_patch32_224', {'name': 'vit', 'arguments': {'size': 'small', 'patch': 32, 'positions': 'learned'}}),
    ('vit_base_patch8_224', {'name': 'vit', 'arguments': {'size': 'base', 'patch': 8, 'positions': 'learned'}}),
    ('convnext_tiny', {'name': 'convnext', 'arguments': {'size': 'tiny'}}),
    ('convnext_base', {'name': 'convnext', 'arguments': {'size': 'base'}}),
    ('convnext_pico', {'name': 'convnext', 'arguments': {'size': 'pico'}}),
])
def test_every_name_and_shape_of_timms_models(timm_name, fields):
    with torch.device('meta'):
        model = timm.create_model(timm_name, num_classes=0)
    # The smallest ConvNeXts have convolutions of one pixel for matrices.
    there = {name: tuple(value.shape)[:2 if '.mlp.' in name else 4] for name, value in model.state_dict().items()}
    shapes = expected(fields, {'mode': 'none'}, image_size=224)
    tree = {'params': {}, 'batch_stats': {}}
    for path, shape in shapes.items():
        parts = path.split('/')
        node = tree
        for part in parts[:-1]:
            node = node.setdefault(part, {})
        node[parts[-1]] = np.broadcast_to(np.float32(0), shape)
    assert {name: value.shape for name, value in encoder_to_torch(fields, tree).items()} == there


@pytest.mark.parametrize('size, name', [('tiny', 'vit_tiny_patch16_224'), ('large', 'vit_large_patch14_224')])
def test_the_size_of_a_vit_is_timms(size, name):
    with torch.device('meta'):
        model = timm.create_model(name, num_classes=0)
    assert ViT(size=size).shape() == (model.embed_dim, len(model.blocks), model.blocks[0].attn.num_heads)


@pytest.mark.parametrize('change, problem', [
    (lambda names: names.pop('blocks.1.mlp.fc1.bias'), 'missing: blocks.1.mlp.fc1.bias'),
    (lambda names: names.update({'blocks.0.ls1.gamma': torch.ones(128)}), 'unexpected: blocks.0.ls1.gamma'),
    (lambda names: names.update({'pos_embed': torch.zeros(1, 16, 128)}), 'pos_embed is missing, or is not of a square'),
    (lambda names: names.pop('pos_embed'), 'pos_embed is missing, or is not of a square'),
])
def test_what_does_not_fit_is_named(change, problem, tmp_path):
    names = dict(MODELS['class token']().state_dict())
    change(names)
    torch.save(names, tmp_path / 'model.pth')
    with pytest.raises(ValueError, match=problem):
        read_torch(tmp_path / 'model.pth')


@pytest.mark.parametrize('module, pixels, problem', [
    (ViT(size='huge'), 32, "ViT has size tiny, small, base, large, not 'huge'"),
    (ViT(size='tiny', patch=16), 24, 'patches of 16 pixels, and 24 x 24 is no multiple'),
    (ViT(width=30, heads=4, depth=1), 32, 'a width of 30 does not divide into 4 heads'),
    (ConvNeXt(size='nano'), 32, "ConvNeXt has size pico, tiny, small, base, not 'nano'"),
    (ConvNeXt(size='pico'), 16, 'divides images by 32, and these are 16 x 16'),
    (ConvNeXt(depths=(1, 2)), 32, 'four depths and four widths'),
])
def test_fields_and_sizes_that_make_no_encoder_are_refused_in_one_sentence(module, pixels, problem):
    with pytest.raises(ValueError, match=problem):
        jax.eval_shape(lambda x: module.init(jax.random.key(0), x, train=False), jnp.zeros((1, pixels, pixels, 3)))


def test_the_start_of_moco_v3s_vit_is_that_of_its_code():
    """vits.py: Xavier's uniform bounds, of queries, keys and values each for itself, and of patches as rows."""
    network = make_network(encoder={'name': 'vit', 'arguments': {'width': 64, 'depth': 1, 'heads': 2, 'patch': 8}},
                           head={'mode': 'none'})
    params = init_variables(network, jax.random.key(0), jnp.zeros((1, 16, 16, 3)))['params']['encoder']
    bounds = {'patch_embed': 6 / (3 * 8 * 8 + 64), 'qkv': 6 / (64 + 64), 'proj': 6 / 128, 'fc1': 6 / (64 + 256)}
    for name, squared in bounds.items():
        kernel = params.get(name, params['blocks_0'].get(name))['kernel']
        assert 0.95 * squared ** 0.5 < np.abs(kernel).max() <= squared ** 0.5
