"""All global generators that a PyTorch run can draw from, lent to it and given back."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from optim_bench.train._seeding import seeded


@contextmanager
def torch_seeded(seed: int, device: str = "cpu") -> Iterator[None]:
    """Seed the generators of NumPy, `random`, the CPU and the device; restore them afterwards."""
    # Not `torch.manual_seed`: it seeds every accelerator, and the others belong to the caller.
    place = torch.device(device)
    before = torch.default_generator.get_state()
    cuda = torch.cuda.get_rng_state(place) if place.type == "cuda" else None
    with seeded(seed):
        torch.default_generator.manual_seed(seed)
        if cuda is not None:
            with torch.cuda.device(place):
                torch.cuda.manual_seed(seed)
        try:
            yield
        finally:
            torch.default_generator.set_state(before)
            if cuda is not None:
                torch.cuda.set_rng_state(cuda, place)
