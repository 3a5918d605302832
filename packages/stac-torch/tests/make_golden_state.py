"""Write the golden state of the current format: run once per format, never over an old file.

The file holds the parameters and the state dict after 7 steps, the gradients of the eighth, and the
parameters after it.
"""

import sys
from copy import deepcopy
from pathlib import Path

import torch
from stac_torch import STAC
from stac_torch._stac_options import FORMAT
from torch import nn

# Every key that a state can have: a momentum as it is, narrow, and in 8 bits; counters; maxima.
GROUPS = {
    "plain": ((5,), {"role": "sign"}),
    "narrow": ((3, 4), {"role": "sign", "sign_state_dtype": "bf16", "weight_decay": 0.1}),
    "coded": ((16, 256), {"role": "sign", "sign_state_dtype": "int8", "sign_lr_scale": 0.75}),
    "rounded": ((8,), {"role": "sign", "stochastic_rounding": True, "rounding_seed": 3}),
    "adamw": ((2, 3), {"role": "adamw", "amsgrad": True}),
    "narrow_adamw": ((7,), {"role": "adamw", "adamw_state_dtype": "bf16", "maximize": True}),
}


def main(folder):
    path = Path(folder) / f"stac-format{FORMAT}.pt"
    if path.exists():
        raise FileExistsError(path)
    generator = torch.Generator().manual_seed(0)

    def draw():
        return {
            name: torch.randn(shape, generator=generator).to(
                torch.bfloat16 if "stochastic_rounding" in options else torch.float32
            )
            for name, (shape, options) in GROUPS.items()
        }

    params = {name: nn.Parameter(value) for name, value in draw().items()}
    groups = [{"params": [(name, params[name])], **GROUPS[name][1]} for name in GROUPS]
    optimizer = STAC(groups, lr=0.05)

    def step(grads):
        for name, p in params.items():
            p.grad = grads[name]
        optimizer.step()
        return {name: p.detach().clone() for name, p in params.items()}

    for _ in range(7):
        before = step(draw())
    saved = {"before": before, "state": deepcopy(optimizer.state_dict()), "grads": draw()}
    torch.save({**saved, "after": step(saved["grads"])}, path)


if __name__ == "__main__":
    main(sys.argv[1])
