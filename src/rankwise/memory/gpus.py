"""How much memory a GPU has, by the name that people call it, or as a size."""

from __future__ import annotations

import difflib
import re

from rankwise.errors import UserError

_MIB = 1 << 20

# MiB as nvidia-smi and rocm-smi show them.
_MEMORY_MIB = {
    "t4": 15360,
    "p100": 16384,
    "v100-16": 16384,
    "v100-32": 32768,
    "l4": 23034,
    "a10": 23028,
    "a10g": 23028,
    "l40s": 46068,
    "l40": 46068,
    "a40": 46068,
    "a6000": 49140,
    "rtx6000-ada": 49140,
    "a100-40": 40960,
    "a100-80": 81920,
    "h100": 81559,
    "h200": 143771,
    "b200": 183359,
    "gh200": 97871,
    "rtx2080ti": 11264,
    "rtx3060": 12288,
    "rtx3080": 10240,
    "rtx3090": 24576,
    "rtx4060ti-16": 16380,
    "rtx4070": 12282,
    "rtx4080": 16376,
    "rtx4090": 24564,
    "rtx5070ti": 16303,
    "rtx5080": 16303,
    "rtx5090": 32607,
    "mi250": 65536,
    "mi300x": 196592,
}
_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 1 << 10, "MIB": _MIB, "GIB": 1 << 30}


def gpu_bytes(name: str) -> int:
    """Bytes of a GPU's memory: `rtx4090` or `4090`, `a100-80`, or a size such as `24GiB` or `40GB`.

    >>> gpu_bytes("NVIDIA H100 80GB HBM3") == gpu_bytes("h100"), gpu_bytes("NVIDIA A100-SXM4-80GB") // 2**20
    (True, 81920)
    >>> gpu_bytes("24GiB") == 24 * 2**30, gpu_bytes("40 GB"), gpu_bytes("RTX 4090") // 2**20, gpu_bytes("4090") // 2**20
    (True, 40000000000, 24564, 24564)
    """
    # As people say it, and as nvidia-smi does: NVIDIA A100-SXM4-80GB, NVIDIA H100 80GB HBM3, Tesla T4, RTX A6000.
    key = re.sub(r"nvidia|geforce|tesla|amd|generation|instinct|-?(sxm\d?|pcie|hbm\d?e?)|[\s_]+", "", name.lower())
    key = key.removesuffix("gb")
    known = {_plain(gpu): mib for gpu, mib in _MEMORY_MIB.items()}
    plain = _plain(key)
    for spelling in (plain, f"rtx{plain}", plain.removeprefix("rtx"), plain.removesuffix("80")):
        if (mib := known.get(spelling)) is not None:
            return mib * _MIB
    size = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMG]I?B|B|)\s*", name.upper())
    if size:
        count = round(float(size[1]) * _UNITS[size[2]])
        if count >= _MIB:
            return count
        raise UserError(f"gpu {name}: less than 1 MiB; write the unit, as in 24GiB")
    beginning = [known for known in _MEMORY_MIB if key and known.startswith(key)]
    near = beginning or difflib.get_close_matches(key, _MEMORY_MIB, cutoff=0.5) or list(_MEMORY_MIB)
    raise UserError(f"gpu {name!r} is not known: give its memory, as in 24GiB, or a name such as {', '.join(near)}")


def _plain(name: str) -> str:
    return name.replace("-", "")
