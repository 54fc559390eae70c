"""Peak speeds of devices, as published by their manufacturers."""

import re

PEAKS = {
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "H200": 989e12,
    "B200": 2250e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "A10G": 70e12,
    "A10": 125e12,
    "RTX 4090": 165e12,
}
"""FLOP/s of devices in bf16, dense, by what their names contain: manufacturers' figures."""

BANDWIDTHS = {
    "L4": (0.3e12, 24e9),
    "L40S": (0.864e12, 48e9),
    "RTX 4090": (1.008e12, 24e9),
    "A100": (2.04e12, 80e9),
    "H100": (3.35e12, 80e9),
    "H200": (4.8e12, 141e9),
    "B200": (8e12, 180e9),
}
"""Bytes a second to and from a device's memory, and bytes that it holds: manufacturers' figures (A100 and H100: SXM,
80 GB)."""


def device_peak(name: str) -> float | None:
    """The FLOP/s of `PEAKS` for a device's name; None when it is unknown, or a part of a device."""
    words = set(re.split(r"[\s-]+", name))
    found = (peak for key, peak in PEAKS.items() if set(key.split()) <= words and "MIG" not in words)
    return next(found, None)
