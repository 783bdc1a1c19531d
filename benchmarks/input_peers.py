"""Two random views of an image by other libraries, each in its own idiom: contenders of `input_path.py`.

The recipe is SimCLR's as these libraries write it: a random resized crop by torchvision's law, flip,
jitter at probability 0.8, grey at 0.2, and with blur a Gaussian at 0.5. None gives the official distribution
(another law of boxes, colour in uint8, another bicubic filter). Views stay uint8, which is the cheapest for
them, but for kornia, which computes in float32. Decoding by OpenCV where a library leaves it open. One thread
each, as a worker of torch's DataLoader has: of several, which wait for Python's lock and for each
other, each image would cost up to twice the processor time.
"""

import argparse
import math
import pathlib
import random

import numpy as np
from input_path import BATCH, photos_in, serve, strength_of

AREA, ASPECT = (0.08, 1.0), (3 / 4, 4 / 3)


def random_box(height, width):
    """(top, left, height, width) of torchvision's RandomResizedCrop."""
    for _ in range(10):
        area = height * width * random.uniform(*AREA)
        aspect = math.exp(random.uniform(*map(math.log, ASPECT)))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return random.randint(0, height - h), random.randint(0, width - w), h, w
    side = min(height, width)  # Its fallback is a central crop; for these sizes near enough the square.
    return (height - side) // 2, (width - side) // 2, side, side


def jitter_turns(strength):
    """[(operation, amount)] in random order; factors, and the hue as a part of a circle."""
    change, hue = 0.8 * strength, 0.2 * strength
    turns = [(name, random.uniform(max(0, 1 - change), 1 + change))
             for name in ('brightness', 'contrast', 'saturation')] + [('hue', random.uniform(-hue, hue))]
    random.shuffle(turns)
    return turns


# ---- the official steps, which input_path.py runs ----------------------------------------------------


def official_view(size, strength, has_blur):
    """The function uint8 [H, W, 3] -> float32 [size, size, 3], a view by the official preprocessing."""
    import tensorflow as tf

    def perhaps(probability, function, image):
        return tf.cond(tf.random.uniform([]) < probability, lambda: function(image), lambda: image)

    def crop(image):
        begin, extent, _ = tf.image.sample_distorted_bounding_box(
            tf.shape(image), tf.constant([[[0.0, 0.0, 1.0, 1.0]]]), min_object_covered=0.1, max_attempts=100,
            aspect_ratio_range=(3 / 4, 4 / 3), area_range=(0.08, 1.0), use_image_if_no_bounding_boxes=True)
        (top, left, _), (height, width, _) = tf.unstack(begin), tf.unstack(extent)
        image = tf.image.crop_to_bounding_box(image, top, left, height, width)
        return tf.image.resize([image], [size, size], method='bicubic')[0]

    def jitter(image):
        change = 0.8 * strength
        turns = (
            lambda x: x * tf.random.uniform([], tf.maximum(1.0 - change, 0), 1.0 + change),
            lambda x: tf.image.random_contrast(x, lower=1 - change, upper=1 + change),
            lambda x: tf.image.random_saturation(x, lower=1 - change, upper=1 + change),
            lambda x: tf.image.random_hue(x, max_delta=0.2 * strength))
        order = tf.random.shuffle(tf.range(4))
        for i in range(4):
            which = order[i]
            image = tf.cond(
                which < 2,
                lambda x=image: tf.cond(which < 1, lambda: turns[0](x), lambda: turns[1](x)),
                lambda x=image: tf.cond(which < 3, lambda: turns[2](x), lambda: turns[3](x)))
            image = tf.clip_by_value(image, 0.0, 1.0)
        return image

    def grey(image):
        return tf.tile(tf.image.rgb_to_grayscale(image), [1, 1, 3])

    def blur(image):
        sigma, radius = tf.random.uniform([], 0.1, 2.0), size // 10 // 2
        offsets = tf.range(-radius, radius + 1, dtype=tf.float32)
        kernel = tf.exp(-tf.pow(offsets, 2.0) / (2.0 * tf.pow(sigma, 2.0)))
        kernel = tf.tile((kernel / tf.reduce_sum(kernel))[:, None, None, None], [1, 1, 3, 1])
        image = tf.nn.depthwise_conv2d(image[None], tf.transpose(kernel, [1, 0, 2, 3]), [1] * 4, 'SAME')
        return tf.clip_by_value(tf.nn.depthwise_conv2d(image, kernel, [1] * 4, 'SAME')[0], 0.0, 1.0)

    def view(image):
        image = tf.image.random_flip_left_right(crop(tf.image.convert_image_dtype(image, tf.float32)))
        image = perhaps(0.2, grey, perhaps(0.8, jitter, image))
        image = tf.clip_by_value(tf.reshape(image, [size, size, 3]), 0.0, 1.0)
        return perhaps(0.5, blur, image) if has_blur else image

    return view


def official_batches(folder, setting):
    """Two official views per image, as the official data.py maps them."""
    import tensorflow as tf

    view = official_view(32 if setting == '32' else 224, strength_of(setting), setting == 'blur')

    def views(image):
        if setting != '32':
            image = tf.io.decode_jpeg(tf.io.read_file(image), channels=3)
        return view(image), view(image)

    images = np.load(folder / 'arrays.npy') if setting == '32' else [str(path) for path in photos_in(folder)]
    dataset = tf.data.Dataset.from_tensor_slices(images).shuffle(len(images)).repeat()
    dataset = dataset.map(views, num_parallel_calls=tf.data.AUTOTUNE)
    return iter(dataset.batch(BATCH[setting], drop_remainder=True).prefetch(2).as_numpy_iterator())


# ---- PIL, as torchvision's transforms of PIL images ----------------------------------------------------


def pil_view(image, size, strength, blur):
    from PIL import Image, ImageEnhance, ImageFilter, ImageOps

    top, left, height, width = random_box(image.height, image.width)
    image = image.resize((size, size), Image.Resampling.BICUBIC, box=(left, top, left + width, top + height))
    if random.random() < 0.5:
        image = ImageOps.mirror(image)
    if random.random() < 0.8:
        enhance = {'brightness': ImageEnhance.Brightness, 'contrast': ImageEnhance.Contrast,
                   'saturation': ImageEnhance.Color}
        for name, amount in jitter_turns(strength):
            if name == 'hue':
                hue, *others = image.convert('HSV').split()
                hue = hue.point([(value + int(amount * 255)) % 256 for value in range(256)])
                image = Image.merge('HSV', (hue, *others)).convert('RGB')
            else:
                image = enhance[name](image).enhance(amount)
    if random.random() < 0.2:
        image = image.convert('L').convert('RGB')
    if blur and random.random() < 0.5:
        image = image.filter(ImageFilter.GaussianBlur(random.uniform(0.1, 2.0)))
    return np.asarray(image)


def pil_views(image, size, strength, blur):
    from PIL import Image

    image = Image.open(image).convert('RGB') if isinstance(image, str) else Image.fromarray(image)
    return tuple(pil_view(image, size, strength, blur) for _ in range(2))


# ---- OpenCV and numpy ----------------------------------------------------------------------------------


def cv2_crop(image, size):
    import cv2

    top, left, height, width = random_box(*image.shape[:2])
    return cv2.resize(image[top:top + height, left:left + width], (size, size), interpolation=cv2.INTER_CUBIC)


def cv2_view(image, size, strength, blur):
    import cv2

    image = cv2_crop(image, size)
    if random.random() < 0.5:
        image = cv2.flip(image, 1)
    levels = np.arange(256, dtype=np.float32)
    if random.random() < 0.8:
        for name, amount in jitter_turns(strength):
            if name == 'brightness':
                image = cv2.LUT(image, np.clip(levels * amount, 0, 255).astype(np.uint8))
            elif name == 'contrast':
                mean = cv2.mean(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY))[0]
                image = cv2.LUT(image, np.clip(mean + (levels - mean) * amount, 0, 255).astype(np.uint8))
            elif name == 'saturation':
                grey = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
                image = cv2.addWeighted(image, amount, grey, 1 - amount, 0)
            else:
                hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV_FULL)
                hsv[..., 0] += np.uint8(int(amount * 256) % 256)
                image = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB_FULL)
    if random.random() < 0.2:
        image = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    if blur and random.random() < 0.5:
        kernel = 2 * (size // 10 // 2) + 1
        image = cv2.GaussianBlur(image, (kernel, kernel), random.uniform(0.1, 2.0))
    return image


def cv2_decoded(image):
    import cv2

    return cv2.imread(image, cv2.IMREAD_COLOR_RGB) if isinstance(image, str) else image


def cv2_views(image, size, strength, blur):
    image = cv2_decoded(image)
    return tuple(cv2_view(image, size, strength, blur) for _ in range(2))


def cv2_crops(image, size, strength, blur):
    image = cv2_decoded(image)
    return cv2_crop(image, size), cv2_crop(image, size)


# ---- albumentations ------------------------------------------------------------------------------------


def albumentations_views(size, strength, blur):
    """The function (image, ...) -> two views of one Compose."""
    import albumentations
    import cv2

    change, kernel = 0.8 * strength, 2 * (size // 10 // 2) + 1
    factors = (max(0.0, 1 - change), 1 + change)
    steps = [
        albumentations.RandomResizedCrop((size, size), AREA, ASPECT, interpolation=cv2.INTER_CUBIC),
        albumentations.HorizontalFlip(p=0.5),
        albumentations.ColorJitter(factors, factors, factors, (-0.2 * strength, 0.2 * strength), p=0.8),
        albumentations.ToGray(p=0.2),
    ]
    if blur:
        steps.append(albumentations.GaussianBlur(blur_limit=(kernel, kernel), sigma_limit=(0.1, 2.0), p=0.5))
    compose = albumentations.Compose(steps)

    def views(image, *_):
        image = cv2_decoded(image)
        return compose(image=image)['image'], compose(image=image)['image']

    return views


# ---- kornia --------------------------------------------------------------------------------------------


def kornia_batches(images, setting):
    """Crops image by image where sizes differ, all else on the batch, as kornia is made for.

    At 224 pixels batches of 16, which suit it better on a CPU than larger ones.
    """
    import kornia.augmentation as K
    import torch

    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    size, strength = (32 if setting == '32' else 224), strength_of(setting)
    change, kernel = 0.8 * strength, 2 * (size // 10 // 2) + 1
    mode = 'resample' if setting == '32' else 'slice'  # The faster one for a batch, and for one image.
    crop = K.RandomResizedCrop((size, size), AREA, ASPECT, resample='bicubic', cropping_mode=mode)
    steps = [K.RandomHorizontalFlip(p=0.5), K.ColorJitter(change, change, change, 0.2 * strength, p=0.8),
             K.RandomGrayscale(p=0.2)]
    if setting == 'blur':
        steps.append(K.RandomGaussianBlur((kernel, kernel), (0.1, 2.0), p=0.5))
    rest = torch.nn.Sequential(*steps)

    def as_floats(images):
        return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255

    def batches():
        while True:
            chosen = random.choices(range(len(images)), k=BATCH['32'] if setting == '32' else 16)
            if setting == '32':
                whole = as_floats(images[chosen])
                yield tuple(rest(crop(whole)).numpy() for _ in range(2))
            else:
                decoded = [as_floats(cv2_decoded(images[index])[None]) for index in chosen]
                crops = [torch.cat([crop(image) for image in decoded]) for _ in range(2)]
                yield tuple(rest(view).numpy() for view in crops)

    return batches()


# ---- batches -------------------------------------------------------------------------------------------


def batches_of(views, images, setting):
    """Batches of views(image, size, strength, blur)."""
    size, strength, blur = (32 if setting == '32' else 224), strength_of(setting), setting == 'blur'
    while True:
        chosen = random.choices(range(len(images)), k=BATCH[setting])
        made = [views(images[index], size, strength, blur) for index in chosen]
        yield tuple(np.stack(view) for view in zip(*made))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--worker', required=True)
    parser.add_argument('--settings', required=True)
    parser.add_argument('--folder', type=pathlib.Path, required=True)
    options = parser.parse_args()
    setting = options.settings
    photos = list(map(str, photos_in(options.folder)))
    images = np.load(options.folder / 'arrays.npy') if setting == '32' else photos
    if options.worker == 'kornia':
        return serve(kornia_batches(images, setting), threads=1)
    if options.worker != 'PIL':
        import cv2

        cv2.setNumThreads(0)
    views = {'PIL': pil_views, 'OpenCV': cv2_views, 'OpenCV crops': cv2_crops}.get(options.worker)
    if views is None:
        views = albumentations_views(32 if setting == '32' else 224, strength_of(setting), setting == 'blur')
    serve(batches_of(views, images, setting), threads=1)


if __name__ == '__main__':
    main()
