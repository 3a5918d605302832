"""Checks on saving and continuing, and on what a step compiles."""

from __future__ import annotations

from optim_conformance._base import Checks
from optim_conformance._compare import identical
from optim_conformance.rules import plain_case


class PersistenceChecks(Checks):
    """A run that was saved continues as if nothing had happened."""

    def test_resume_is_bit_exact(self, opt: str) -> None:
        """Saved after any step and restored into a fresh run, every later bit is the same."""
        self.need("resume")
        case = plain_case(opt)
        grads = case.grads("float32")
        whole = self.drive(self.start(case), grads)
        for split in (0, 1, 3, len(grads) - 1):
            blob = self.drive(self.start(case), grads[:split]).save()
            other = {k: v * 0 + 3 for k, v in case.params("float32").items()}
            resumed = self.drive(self.start(case, params=other).restore(blob), grads[split:])
            what = f"{opt}, saved after step {split} and restored"
            identical(resumed.params(), whole.params(), what)
            identical(resumed.state(), whole.state(), what)

    def test_saving_changes_nothing(self, opt: str) -> None:
        """A run that is saved after every step ends where an unsaved one ends."""
        self.need("resume")
        case = plain_case(opt)
        plain = self.drive(self.start(case), case.grads("float32"))
        run = self.start(case)
        for g in case.grads("float32"):
            run.step(g)
            assert isinstance(run.save(), bytes)
        identical(run.params(), plain.params(), f"{opt}, saved after every step")
        identical(run.state(), plain.state(), f"{opt}, saved after every step")

    def test_restored_run_is_independent(self, opt: str) -> None:
        """Stepping a restored run does not move the run that was saved."""
        self.need("resume")
        case = plain_case(opt)
        grads = case.grads("float32")
        run = self.drive(self.start(case), grads[:3])
        params, state = run.params(), run.state()
        self.drive(run.restore(run.save()), grads[3:])
        identical(run.params(), params, f"{opt}, after stepping a restored copy")
        identical(run.state(), state, f"{opt}, after stepping a restored copy")

    def test_low_precision_resume(self, opt: str) -> None:
        """A bfloat16 run resumes with its storage: no state is widened on the way."""
        self.need("resume", "bf16")
        case = plain_case(opt)
        grads = case.grads("bfloat16")
        whole = self.drive(self.start(case, "bfloat16"), grads)
        blob = self.drive(self.start(case, "bfloat16"), grads[:3]).save()
        resumed = self.drive(self.start(case, "bfloat16").restore(blob), grads[3:])
        identical(resumed.params(), whole.params(), f"{opt} in bfloat16, restored")
        identical(resumed.state(), whole.state(), f"{opt} in bfloat16, restored")

    def test_one_compilation(self, opt: str) -> None:
        """After the first steps nothing compiles again, whatever the learning rate is."""
        self.need("jit")
        case = plain_case(opt)
        run = self.start(case)
        rates = [None, None] if "lr" not in self.adapter.capabilities else [1e-2, 2e-3]
        grads = case.grads("float32")
        run.step(grads[0], lr=rates[0])
        run.step(grads[1], lr=rates[0])
        compiled = run.compilations()
        assert compiled is not None, "declares 'jit' but counts no compilations"
        assert compiled >= 1, "declares 'jit' but has compiled nothing after two steps"
        for g in grads[2:]:
            run.step(g, lr=rates[1])
        assert run.compilations() == compiled, (
            f"{opt}: {run.compilations()} compilations after {len(grads)} steps, {compiled} after 2"
        )
