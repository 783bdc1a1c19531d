"""Published figures of TPUs and GPUs, and the description of a GPU by which XLA compiles without one."""

from typing import NamedTuple

_GIB = 1 << 30


class Chip(NamedTuple):
    """Published figures of one jax device; None = not published, or not known here.

    Attributes:
        memory: bytes.
        flops: a second, bfloat16 inputs (float16 where a GPU has no bfloat16), dense.
        bandwidth: of the memory, bytes a second.
        interconnect: bytes a second that a device can send to its neighbours over all its links.
    """

    memory: int | None = None
    flops: float | None = None
    bandwidth: float | None = None
    interconnect: float | None = None


class Gpu(NamedTuple):
    """What XLA asks of a GPU to compile for it, beside `Chip`.

    Attributes:
        device_kind: as jax names it.
        capability: CUDA's, (major, minor).
        cores: streaming multiprocessors.
        clock: GHz, boosted.
        l2_cache: bytes.
    """

    device_kind: str
    capability: tuple[int, int]
    cores: int
    clock: float
    l2_cache: int
    chip: Chip


# TPUs, by jax's device_kind: cloud.google.com/tpu/docs/v3, v4, v5e, v5p and v6e, 'key specifications'; of a
# bidirectional interconnect half counts. A v3 chip is two devices, and each has half of it. v4's and v3's
# pages give no interconnect.
_TPUS = {
    'TPU v3': Chip(16 * _GIB, 61.5e12, 450e9),
    'TPU v4': Chip(32 * _GIB, 275e12, 1200e9),
    'TPU v5 lite': Chip(16 * _GIB, 197e12, 819e9, 200e9),
    'TPU v5': Chip(95 * _GIB, 459e12, 2765e9, 600e9),
    'TPU v6 lite': Chip(32 * _GIB, 918e12, 1638e9, 400e9),
}

# GPUs: NVIDIA's data sheets (H100 and H200 SXM, A100 80 GB SXM, L4, T4) and architecture papers (Ada, GA102), products
# with float32 sums and without sparsity; the interconnect is half of NVLink's figure, or of PCIe's x16.
# Where openxla/xla has the GPU (xla/tools/hlo_opt/gpu_specs), its figures stand here. H200, A100, L4 and
# RTX 4090 have their memory as nvidia-smi shows it.
GPUS = {
    'h100': Gpu('NVIDIA H100 80GB HBM3', (9, 0), 132, 1.98, 50 << 20,
                Chip(84942979072, 989e12, 3352.32e9, 450e9)),
    'h200': Gpu('NVIDIA H200', (9, 0), 132, 1.98, 50 << 20, Chip(143771 << 20, 989e12, 4800e9, 450e9)),
    'a100': Gpu('NVIDIA A100-SXM4-80GB', (8, 0), 108, 1.41, 40 << 20,
                Chip(81920 << 20, 312e12, 2039e9, 300e9)),
    'l4': Gpu('NVIDIA L4', (8, 9), 58, 2.04, 48 << 20, Chip(23034 << 20, 121e12, 300e9, 32e9)),
    'rtx4090': Gpu('NVIDIA GeForce RTX 4090', (8, 9), 128, 2.52, 72 << 20,
                   Chip(24564 << 20, 165.2e12, 1008e9, 32e9)),
    'rtx3090': Gpu('NVIDIA GeForce RTX 3090', (8, 6), 82, 1.695, 6 << 20,
                   Chip(25438126080, 71e12, 936.096e9, 32e9)),
    't4': Gpu('Tesla T4', (7, 5), 40, 1.695, 4 << 20, Chip(15828320256, 65e12, 320.064e9, 16e9)),
}

CHIPS = _TPUS | {gpu.device_kind: gpu.chip for gpu in GPUS.values()}

# By capability: threads a multiprocessor, its shared memory, that of one block at most (bytes), float32 units;
# CUDA C++ Programming Guide, 'Compute Capabilities'.
_CAPABILITIES = {
    (7, 5): (1024, 65536, 65536, 64),
    (8, 0): (2048, 167936, 166912, 64),
    (8, 6): (1536, 102400, 101376, 128),
    (8, 9): (1536, 102400, 101376, 128),
    (9, 0): (2048, 233472, 232448, 128),
}


def gpu_target(name: str) -> str:
    """XLA's GpuTargetConfigProto of a GPU of GPUS, as text, with CUDA 12.9 and cuDNN 9.10."""
    gpu = GPUS[name]
    threads, shared, shared_of_block, units = _CAPABILITIES[gpu.capability]
    major, minor = gpu.capability
    features = ' feature_extension: ACCELERATED_FEATURES' if major >= 9 else ''
    return f"""gpu_device_info {{
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: {shared}
  threads_per_core_limit: {threads}
  core_count: {gpu.cores}
  fpus_per_core: {units}
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: {gpu.chip.bandwidth:.0f}
  l2_cache_size: {gpu.l2_cache}
  clock_rate_ghz: {gpu.clock}
  device_memory_size: {gpu.chip.memory}
  shared_memory_per_block_optin: {shared_of_block}
  cuda_compute_capability {{ major: {major} minor: {minor}{features} }}
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  thread_dim_limit_x: 1024
  thread_dim_limit_y: 1024
  thread_dim_limit_z: 64
  device_vendor: "NVIDIA Corporation"
  device_address_bits: 64
  name: "{gpu.device_kind}"
  driver_version: "13.0.0"
  runtime_version: "12.9.0"
  compile_time_toolkit_version: "12.9.0"
  dnn_version: "9.10.0"
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 patch: 0 }}
runtime_version {{ major: 12 minor: 9 patch: 0 }}
device_description_str: "{gpu.device_kind}"
"""
