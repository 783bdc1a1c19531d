"""What each augmentation computes, written out slowly in float64: both forms are held to the same."""

import colorsys
import math

import numpy as np


def random_image(height, width, low=0.0, high=1.0):
    """float32 [height, width, 3], uniform in [low, high), always the same."""
    image = np.random.default_rng(0).uniform(low, high, (height, width, 3))
    return image.astype(np.float32)


# ---- colour ------------------------------------------------------------------------------------


def contrast(image, factor):
    mean = image.mean((0, 1), dtype=np.float64)
    return (image - mean) * factor + mean


def saturation(image, factor):
    """v - (v - x) * min(f, 1 / S): HSV saturation scaled and kept at or below 1."""
    image = image.astype(np.float64)
    value, low = image.max(-1, keepdims=True), image.min(-1, keepdims=True)
    with np.errstate(divide='ignore'):
        return value - (value - image) * np.minimum(factor, value / (value - low))


def in_hsv(image, change):
    """change(hue, saturation, value) of one pixel at a time, through the standard library."""
    result = np.empty(image.shape, np.float64)
    for i, j in np.ndindex(image.shape[:2]):
        result[i, j] = colorsys.hsv_to_rgb(*change(*colorsys.rgb_to_hsv(*map(float, image[i, j]))))
    return result


def hue(image, delta):
    return in_hsv(image, lambda h, s, v: ((h + delta) % 1.0, s, v))


def grey(image):
    return np.repeat(image.astype(np.float64) @ [[0.2989], [0.587], [0.114]], 3, axis=-1)


def jitter(image, order, amounts, active, brightness_mode='multiply'):
    functions = [lambda x, amount: x * amount if brightness_mode == 'multiply' else x + amount,
                 contrast, saturation, hue]
    for which in order:
        if active[which]:
            image = functions[which](image, amounts[which])
        image = np.clip(image, 0.0, 1.0)
    return image


# ---- neighbourhoods ----------------------------------------------------------------------------


def sobel(image):
    kernel = np.array([[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]], np.float64)
    padded = np.pad(image.astype(np.float64), ((1, 1), (1, 1), (0, 0)), 'reflect')
    result = np.empty(image.shape)
    for i, j, c in np.ndindex(image.shape):
        patch = padded[i:i + 3, j:j + 3, c]
        result[i, j, c] = np.hypot((patch * kernel).sum(), (patch * kernel.T).sum())
    return result / np.sqrt(20.0)


def blur(image, sigma, kernel_size):
    """Gaussian weights over the neighbours within the kernel; none beyond the border."""
    radius = kernel_size // 2
    height, width = image.shape[:2]
    weights = [math.exp(-d * d / (2 * sigma * sigma)) for d in range(-radius, radius + 1)]
    total, result = sum(weights), np.zeros(image.shape)
    for i, j, k, l in np.ndindex(height, width, height, width):
        if abs(i - k) <= radius and abs(j - l) <= radius:
            weight = weights[k - i + radius] * weights[l - j + radius] / total ** 2
            result[i, j] += weight * image[k, l]
    return result


def cutout(image, centre, side):
    result = image.copy()
    for i, j in np.ndindex(image.shape[:2]):
        if 0 <= i - (centre[0] - side // 2) < side and 0 <= j - (centre[1] - side // 2) < side:
            result[i, j] = 0.0
    return result


# ---- crop and resize ---------------------------------------------------------------------------


def keys_weights(size, target):
    """[target, size] weights of Keys' cubic, a = -0.5; taps beyond the border are left out."""
    weights = np.zeros((target, size))
    for i in range(target):
        source = (i + 0.5) * size / target - 0.5
        for tap in range(math.floor(source) - 1, math.floor(source) + 3):
            x = abs(source - tap)
            weight = 1.5 * x**3 - 2.5 * x**2 + 1 if x <= 1 else -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
            if 0 <= tap < size:
                weights[i, tap] = weight
    return weights / weights.sum(1, keepdims=True)


def resize(image, target):
    """Bicubic, not antialiased. tf.image reads the cubic from a table of 1024 entries: within 2e-3."""
    rows, columns = (keys_weights(size, target) for size in image.shape[:2])
    return np.einsum('ih,jw,hwc->ijc', rows, columns, image.astype(np.float64))


def torchvision_boxes(height, width, count):
    """RandomResizedCrop as torchvision writes it, one try at a time: (top, left, height, width)."""
    rng, boxes = np.random.default_rng(0), []
    for _ in range(count):
        for _ in range(10):
            area = height * width * rng.uniform(0.08, 1.0)
            aspect = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
            w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if 0 < w <= width and 0 < h <= height:
                boxes.append((rng.integers(height - h + 1), rng.integers(width - w + 1), h, w))
                break
        else:
            w, h = min(width, round(height * 4 / 3)), min(height, round(width / (3 / 4)))
            boxes.append(((height - h) // 2, (width - w) // 2, h, w))
    return np.array(boxes)
