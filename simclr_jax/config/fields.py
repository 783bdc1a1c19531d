"""Every field of a config with its default and source.

The defaults are those of the official TF2 code (google-research/simclr, tf2/run.py), so that a recipe
in configs/ lists only what it changes. Who reads a config: docs/architecture.md.
"""

from simclr_jax.config import few_images
from simclr_jax.config.config_dict import ConfigDict
from simclr_jax.config.recipes import augment_config, use_method
from simclr_jax.config.tasks import task_configs


def base_config() -> ConfigDict:
    """SimCLR with the official TF2 defaults: ResNet-50, 224 px, batch 512, 100 epochs, LARS."""
    config = ConfigDict()
    config.task = 'pretrain'            # see main.TASKS
    config.recipe = ''                  # set by the command: name and argument of the recipe, for the report
    config.seed = 0                     # the only one: weights, data order and views follow from it
    config.batch_size = 512             # global, over all devices (tf2/run.py train_batch_size)
    config.num_epochs = 100.0           # tf2/run.py train_epochs
    config.num_train_steps = 0          # more than 0 overrides num_epochs (tf2/run.py train_steps)

    config.init_from = ''               # weights to start from: a workdir, or any file of load_encoder
    config.shard_state = False          # split parameters and optimizer state over the devices
    config.encoder_chunks = 1           # k: the encoder sees 1/k of the batch at a time, the loss all of it
    config.profile_steps = ()           # 10,20: steps 10 to 19 are traced into workdir/profile
    config.keep_freed_memory = False    # on a CPU: 13 % less processor time of a small step, for 65 % more memory
    config.deterministic = True         # on a GPU: no kernel whose sums run in any order; no effect elsewhere
    config.compile_cache = ''           # directory of compiled programs; '' = a default one, off = none

    config.encoder = ConfigDict({
        'name': 'resnet',               # vit, convnext, or 'package.module:Name', a Flax module of your own; of
        'arguments': ConfigDict(),      # the fields below they have dtype and norm_groups: docs/extending.md
        'depth': 50,                    # 18, 34, 50, 101, 152, 200; 10 for smoke runs
        'width': 1.0,                   # multiplies the 64, 128, 256, 512 channels
        'stem': 'imagenet',             # imagenet: 7x7/2 and max-pool; cifar: 3x3/1
        'sk_ratio': 0.0,                # 0.0625 = selective kernels and ResNet-D (SimCLRv2)
        'zero_init_last_gamma': True,   # tf2/resnet.py
        'remat': False,                 # recompute each block in the backward pass: less memory, more time
        'max_pool': 'torch',            # torch: pad 1; same: TensorFlow's, as in official weights
        'conv_padding': 'symmetric',    # of strides; same: TensorFlow's, as in BYOL's Haiku weights
        'project_first': False,         # depth 18, 34: True as official weights, False as torchvision
        'norm_groups': 1,               # BatchNorm statistics: 1 = of the global batch, G = of groups
        'norm_momentum': 0.9,           # tf2/run.py batch_norm_decay
        'norm_epsilon': 1e-5,           # tf2/resnet.py
        'dtype': 'auto',                # of activations: bfloat16 where a device has it, else float32
    })
    use_method(config, 'simclr')        # config.method, config.head, config.predictor
    config.augment = augment_config(image_size=224, strength=1.0)
    config.data = ConfigDict({
        'source': 'imagenet2012',       # a TFDS name, folder:PATH, arrays:PATH.npz, shapes, or
                                        # 'package.module:Name', docs/extending.md
        'arguments': {},                # keywords of the latter, beside split
        'dir': '',                      # where TFDS data sets were prepared; '' = TFDS's own default
        'train_split': 'train',
        'test_split': '',               # measured on; none; 10%: held out of training; '' = test, validation
                                        # or val if there, else 10% if there are labels
        'download': False,              # True lets TFDS download and prepare the data set
        'augment_on': 'device',         # device: all that can be done there; host: everything there
        'pad_to': 0,                    # P > 0: files are decoded and padded to P x P on the host, and
                                        # cropped on the device; P is at least twice the image size
        'transfer': 'uint8',            # views of the host cross as uint8 (rounded), bfloat16 or float32
        'cache': '',                    # decoded, or resized:256 (short side): kept on disk, data/cache.py
        'cache_dir': '',                # where; needed where there is a cache
        'max_bad_share': 0.05,          # a larger share of unreadable files stops the run
        'folders': 'auto',              # classes: no splits; none: no classes; auto: data/folder.py
        'background': 'white',          # behind transparent pixels; '' leaves them their own colour
        'range': (),                    # low,high: the values of 16 bits and floats that become 0 and 255;
                                        # () = the extremes of a sample, then kept here
        'channels': 0,                  # of an image, 1 to 16; 3: RGB; 0: RGB, or those of arrays that have others
        'max_pixels': 178_956_970,      # a larger JPEG is read at a half or less, any other is unreadable
        'reading': 2,                   # how data are read; runs begun before this field have 1
        'num_threads': 0,               # that decode; 0 = a few more than there are processors
    })
    config.optimizer = ConfigDict({
        'name': 'lars',                 # lars, sgd, adamw
        'learning_rate': 0.3,           # before scaling (tf2/run.py, "per batch size of 256")
        'scaling': 'linear',            # linear: x B/256; sqrt: x sqrt(B); none
        'momentum': 0.9,
        'rate_in_momentum': True,       # lars: SimCLR's, lr inside the buffer; False: BYOL's and MoCo v3's
        'nesterov': False,              # for sgd; the official LARS has none
        'weight_decay': 1e-6,           # paper and tf2/run.py; the README's commands pass 1e-4
        'weight_decay_groups': (),      # ((regex over parameter paths, value), ...), the first match wins
        'b1': 0.9, 'b2': 0.999,         # adamw
        'trust_coefficient': 0.001,     # lars (tf2/lars_optimizer.py eeta)
        'exclude': ('(^|/)probe/',),    # from decay and trust ratio, as all scales and biases are
        'frozen': (),                   # regexes over parameter paths: neither gradient nor decay changes these
    })
    # warmup_cosine; epoch_cosine, which changes between epochs only (MoCo); epoch_steps, a tenth from each of
    # the epochs `drops` on; constant
    config.schedule = ConfigDict({'name': 'warmup_cosine', 'warmup_epochs': 10.0, 'drops': ()})
    config.few_images = ConfigDict(few_images.NONE)     # what sets below so many images have instead
    config.eval = ConfigDict({
        'online_probe': True,           # a linear classifier on stop-gradient features, trained alongside
        'layer': 0,                     # 0: features h; k: output of head layer k; -1: projection z
        'encoder': 'online',            # whose is measured: online, or target, the average of MoCo and BYOL
        'batch_size': 256,              # tf2/run.py eval_batch_size
        'crop_proportion': 0.875,       # centre crop (tf2/data_util.py); 1.0 for 32 px and below
        'resize': 'bicubic',            # or bilinear
        'antialias': False,             # True: as torchvision resizes
        'resize_to': 0,                 # > 0: the shorter side to this (torchvision: 256), then a cut
        'knn_every_epochs': 10.0,       # 0 = only at the end
        'evaluators': (),               # of your own: ('package.module:Name', ...), docs/extending.md
        'evaluators_every_epochs': 1.0,     # 0 = only at the end
        'knn_k': 200,                   # Wu et al. 2018, sec. 3.4
        'knn_max_images': 100_000,      # of the kNN in the log: a random part of larger sets; 0 = all
        'knn_temperature': 0.07,        # Wu et al. 2018, sec. 3.4
        'linear_at_end': True,          # the linear probe on the same features, beside the last kNN
        'pixel_floor': False,           # kNN of the raw pixels beside them; for sets that fit in memory
    })
    config.update(task_configs())       # linear, finetune, ..., one block for each other task
    config.checkpoint = ConfigDict({'every_epochs': 1.0, 'keep_last': 5, 'keep_best': 1})
    config.log = ConfigDict({
        'every_steps': 50,
        'writers': (),                  # wandb, mlflow, or 'package.module:Name', beside the usual ones
        'gradient_norms': (),           # regexes over parameter paths: gradient_norm/REGEX beside gradient_norm
        'step_breakdown': True,         # a table of where a step's time goes, from a trace of steps 11 to 13
    })
    return config


def view_config(augment: ConfigDict, view: str) -> dict[str, dict]:
    """The operations of 'view1', 'view2' or 'small_view' as plain dicts: the shared ones with its overrides."""
    operations = {name: dict(value) for name, value in augment.items()
                  if isinstance(value, ConfigDict) and name not in ('view1', 'view2', 'small_view')}
    for name, overrides in augment[view].items():
        if name not in operations:
            raise ValueError(f'augment.{view} overrides {name!r}, which is not an operation; '
                             f'the operations are {", ".join(operations)}.')
        operations[name] |= dict(overrides)
    return operations
