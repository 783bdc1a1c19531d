"""MoCo v3 with a Vision Transformer, on ImageNet or CIFAR-10.

    python -m simclr_jax.main --config=configs/moco_v3_vit.py --workdir=DIR                # ViT-S/16
    python -m simclr_jax.main --config=configs/moco_v3_vit.py:size=base --workdir=DIR
    python -m simclr_jax.main --config=configs/moco_v3_vit.py:data=cifar10 --workdir=DIR   # ViT-Ti/4
    python -m simclr_jax.main --config=configs/moco_v3_vit.py:data=cifar10,image_size=64 --workdir=DIR

Hardware: 32 GPUs of 32 GB for ViT-S, 64 for ViT-B, at a batch of 4096 (moco-v3 CONFIG.md). Not run to the end by this
project, which has none. Published top-1 of the linear evaluation, 300 epochs: ViT-S 73.2, ViT-B 76.7 (CONFIG.md).

The projection of the patches stays at its start, the paper's remedy for training that becomes unstable (Chen et
al. 2021, sec. 4.2). What it cures shows as spikes of the gradient of that layer, which the log keeps as
gradient_norm/patch_embed; `--config.optimizer.frozen='()'` trains it.

Numbers: facebookresearch/moco-v3 CONFIG.md, main_moco.py, vits.py and moco/builder.py, whose small ViT has 12 heads.
Patch and size of the network for small images are not published ones, and were not tuned.
"""

from simclr_jax import config as recipes


def get_config(argument: str = '') -> recipes.ConfigDict:
    options = recipes.parse_argument(argument, data='imagenet', size='', image_size=0, epochs=300.0, batch=4096)
    if options.data not in ('imagenet', 'cifar10'):
        raise ValueError(f'data={options.data}: it is imagenet or cifar10.')
    small = options.data == 'cifar10'
    image_size = options.image_size or (32 if small else 224)
    config = recipes.base_config()
    recipes.use_method(config, 'moco_v3')
    config.method.update({'temperature': 0.2, 'momentum': 0.99})
    config.head.num_layers = 3
    config.num_epochs, config.batch_size = options.epochs, options.batch
    size = options.size or ('tiny' if small else 'small')
    config.encoder.name = 'vit'
    config.encoder.arguments = recipes.ConfigDict({
        'size': size, 'heads': 12 if size == 'small' else 0, 'patch': image_size // 8 if small else 16})
    config.augment = recipes.byol_augment(image_size=image_size, blur=not small)
    recipes.resize_as_torchvision(config)
    config.optimizer.update({                       # on everything, norms and biases too
        'name': 'adamw', 'learning_rate': 1.5e-4, 'scaling': 'linear', 'weight_decay': 0.1,
        'weight_decay_groups': (('', 0.1),), 'frozen': ('(^|/)patch_embed/',)})
    config.schedule.update({'name': 'warmup_cosine', 'warmup_epochs': 40.0})
    config.log.gradient_norms = ('patch_embed',)
    config.eval.knn_every_epochs = 20.0
    if small:
        config.data.source = 'cifar10'
        config.eval.crop_proportion = 1.0
    else:
        config.data.update({'source': 'imagenet2012', 'test_split': 'validation'})
        config.eval.linear_at_end = False           # too many features: run configs/linear.py instead
    return recipes.smoke(config) if options.smoke else config
