"""Tables of "Better & Faster Large Language Models via Multi-token Prediction" (arXiv 2404.19737), as published.

A shape is (layers, width of the residual stream, attention heads).
"""

SYNTHETIC_SIZES = {
    "1M": (5, 128, 4),
    "3M": (4, 256, 8),
    "10M": (6, 384, 8),
    "30M": (10, 512, 8),
    "100M": (14, 768, 12),
    "300M": (25, 1024, 16),
    "1B": (36, 1536, 24),
}
"""Table S14: the shapes of the synthetic experiments, named by non-embedding parameters."""

REAL_DATA_SIZES = {
    "0.3B": (18, 1024, 16),
    "0.6B": (27, 1280, 20),
    "1.3B": (24, 2048, 16),
    "3B": (36, 2560, 20),
    "6.7B": (32, 4096, 32),
    "13B": (40, 5120, 40),
}
"""Table S14: the shapes of the experiments on real data, named by all parameters with V = 32,000."""

TRAINING_TIMES = {
    "0.3B": {2: 1.07, 4: 1.22},
    "0.6B": {2: 1.05, 4: 1.13},
    "1.3B": {2: 1.04, 4: 1.12},
    "3B": {2: 1.02, 4: 1.07},
    "6.7B": {2: 1.02, 4: 1.07},
    "13B": {2: 1.04, 4: 1.09},
}
"""Table S5: training time relative to n = 1, by size and n."""

SPEED_UPS = {
    "Wikipedia": {2: (1.88, 1.79), 3: (2.57, 2.35), 4: (3.12, 2.74)},
    "books": {2: (1.87, 1.77), 3: (2.56, 2.32), 4: (3.09, 2.67)},
    "code": {2: (1.94, 1.85), 3: (2.78, 2.54), 4: (3.50, 3.05)},
}
"""Table S2: tokens per forward pass and measured speed-up over k = 1, by text and k, of the 7B models with n = 4."""

SPEED_UPS_BATCH, SPEED_UPS_CONTEXT = 42, 768
"""Table S2's batch size, and the mean number of cached positions (half way from 512 to 1024)."""

BYTE_SPEED_UPS = {
    8: {2: (1.98, 1.94), 4: (3.84, 3.67), 8: (7.04, 6.39)},
    16: {2: (1.98, 1.94), 4: (3.81, 3.63), 8: (6.92, 6.25), 12: (9.36, 8.07), 16: (11.20, 9.24)},
    32: {
        2: (1.97, 1.93), 4: (3.80, 3.62), 8: (6.89, 6.22), 12: (9.30, 8.01), 16: (11.15, 9.15), 20: (12.61, 9.83),
        24: (13.67, 10.34), 28: (14.58, 10.55), 32: (15.35, 10.84),
    },
}  # fmt: skip
"""Table S3: tokens per forward pass and measured speed-up over k = 1, by n and k, of the 7B byte models on code (4096
prompts of 1024 bytes, 1024 generated, batch 16)."""
