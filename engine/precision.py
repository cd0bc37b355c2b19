"""The precision that a device computes best in."""

import torch


def choose_precision(accelerator: str) -> str:
    """Return ``bf16-mixed`` if the device computes bfloat16 natively, otherwise ``32-true``.

    Args:
        accelerator: accelerator of the trainer; ``auto`` takes a GPU if there is one.
    """
    if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        is_native = torch.cuda.is_bf16_supported(including_emulation=False)
    elif accelerator == "cpu" or (accelerator == "auto" and not torch.backends.mps.is_available()):
        capabilities = torch.cpu.get_capabilities()
        is_native = any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))
    else:
        is_native = False
    return "bf16-mixed" if is_native else "32-true"
