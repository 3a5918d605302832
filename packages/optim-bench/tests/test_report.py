"""The page: self-contained, drawn in a real browser, every chart with its table."""

import copy
import html
import json
import math
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from optim_bench.executors import InlineExecutor
from optim_bench.protocol import TIERS, Budget, next_specs
from optim_bench.protocol.campaign import run_campaign
from optim_bench.report.pages import summary_markdown, write_report
from optim_bench.report.pages._chart import log_ticks
from optim_bench.report.pages._groups import all_charts
from optim_bench.report.pages._html import report_html
from optim_bench.report.pages._pack import as_written
from optim_bench.report.pages._theme import THEMES, colour_of, marks_of
from optim_bench.results.store import Store
from optim_bench.results.verdicts import build_results, has_interval, interval_text

MEGABYTES = 1_000_000
BUDGET = Budget(grid_points=5, tuning_seeds=2, fresh_seeds=8, extensions=2, defaults=False)
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-default-apps",
    "--no-first-run",
    "--host-resolver-rules=MAP * ~NOTFOUND",
    "--virtual-time-budget=20000",
    "--enable-logging=stderr",
)


@pytest.fixture(scope="module")
def results(tmp_path_factory, trainer_source, make_plan):
    folder = tmp_path_factory.mktemp("report")
    (folder / "report_trainer.py").write_text(trainer_source)
    plan = make_plan(
        {"jax": ("stam", "stam_lite", "adamw"), "torch": ("stac", "adamw")},
        BUDGET,
        workloads=("toy", "other"),
        target=2.5,
    )
    store = Store(folder / "out")
    store.open()
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        run_campaign(plan, store, InlineExecutor("report_trainer:train"), lambda progress: None)
    return build_results(plan, store.records(), times(plan))


def times(plan):
    """What `optim-bench time --json` would have written for a plan."""
    return {
        "schema_version": 1,
        "times": [
            {
                "workload": workload,
                "framework": framework,
                "rows": {
                    cell.label: {
                        **dict.fromkeys(("median", "low", "high", "first"), 1e-3 * (i + 1)),
                        **dict.fromkeys(("ratio", "ratio_low", "ratio_high"), 0.5 * (i + 1)),
                    }
                    for i, cell in enumerate(plan.cells)
                    if (cell.workload, cell.framework) == (workload, framework)
                },
                "band": [0.95, 1.05],
                "busy": False,
                "load": [0.1, 0.2],
                "rounds": 20,
                "machine": {"cores": 2, "processor": "a processor"},
            }
            for workload, framework in {(c.workload, c.framework): 0 for c in plan.cells}
        ],
    }


@pytest.fixture(scope="module")
def page(results, tmp_path_factory) -> Path:
    return write_report(tmp_path_factory.mktemp("page"), results)


@pytest.fixture
def visit(page, tmp_path):
    """Load the page from file:// without a network, after a script; gives the DOM and the log."""
    if BROWSER is None:
        pytest.skip("no chromium on this machine; CI installs it where it may")

    def run(script: str = "", flags: tuple[str, ...] = ()) -> tuple[str, list[str]]:
        changed = tmp_path / "visited.html"
        start, end = page.read_text().rsplit("</body>", 1)
        steps = f"addEventListener('load', () => setTimeout(() => {{{script}}}, 5000))"
        changed.write_text(f"{start}<script>{steps}</script></body>{end}")
        done = subprocess.run(
            [
                BROWSER,
                *FLAGS,
                *flags,
                f"--user-data-dir={tmp_path / 'profile'}",
                "--dump-dom",
                changed.as_uri(),
            ],
            capture_output=True,
            text=True,
            check=True,
            timeout=120,
        )
        return done.stdout, [line for line in done.stderr.splitlines() if ":CONSOLE" in line]

    return run


class Outline(HTMLParser):
    """Counts of what matters, and every address that a browser would fetch."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.plots: list[str] = []
        self.figures_with_table = 0
        self.addresses: list[str] = []
        self.ids: list[str] = []
        self.headings: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        if given.get("class") == "plot":
            self.plots.append(given["id"])
        if tag in {"h1", "h2", "h3"}:
            self.headings.append(tag)
        self.ids += [given["id"]] if "id" in given else []
        self.addresses += [given[name] for name in ("src", "href", "srcset") if name in given]
        self.figures_with_table += tag == "figure"


def test_the_page_fetches_nothing(page):
    text = page.read_text()
    assert all(address.startswith("#") for address in Outline(text).addresses)
    assert "default-src 'none'" in text
    assert not re.search(r"@import|url\(", text[: text.index("</style>")])


def unpack(value):
    """What `report.js` does, written down a second time."""
    if isinstance(value, list):
        return [unpack(item) for item in value]
    if not isinstance(value, dict):
        return value
    if "$texts" in value:
        return [value["$texts"][index] for index in value["$at"]]
    if "$columns" in value:
        columns = {name: unpack(column) for name, column in value["$columns"].items()}
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    return {name: unpack(item) for name, item in value.items()}


def embedded(text, name, **options):
    found = re.search(rf'id="{name}">(.*?)</script>', text, re.DOTALL).group(1)
    return unpack(json.loads(found, **options))


def test_the_page_is_small_and_holds_the_bytes_of_the_file(page):
    assert page.stat().st_size < 3 * MEGABYTES
    bare = []
    data = embedded(page.read_text(), "results", parse_float=lambda t: bare.append(t) or float(t))
    text = json.dumps(data, indent=1, ensure_ascii=False)
    text = re.sub(r'"\$number:([-+.\de]+)"', r"\1", text) + "\n"
    assert text == (page.parent / "results.json").read_text(encoding="utf-8")
    # What JavaScript would write in another way: 2.0 as 2, 1e-05 as 0.00001.
    assert bare
    assert [t for t in bare if "e" in t or t.endswith(".0")] == []


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (2.0, "2.0"),
        (-0.0, "-0.0"),
        (1e-05, "1e-05"),
        (1.5e300, "1.5e+300"),
        (2**53 + 1, "9007199254740993"),
    ],
)
def test_a_number_that_javascript_would_change_travels_as_a_text(value, text):
    assert as_written([{"b": value, "a": True}]) == [{"a": True, "b": f"$number:{text}"}]
    assert list(as_written({"b": value, "a": None})) == ["a", "b"]


@pytest.mark.parametrize("value", [2, 0.1, -1234.5678, 2**53, None, True, "2.0"])
def test_everything_else_travels_as_it_is(value):
    found = as_written(value)
    assert found == value
    assert type(found) is type(value)


def test_the_page_draws_what_the_figures_show_in_both_themes(page, results):
    found = embedded(page.read_text(), "chart-data")
    charts = [c for f in ("jax", "torch") for c in all_charts(results, f)]
    assert [entry["id"] for entry in found["charts"]] == [chart.name for chart in charts]
    for name, theme in found["themes"].items():
        for entry, chart in zip(found["charts"], charts, strict=True):
            spec = recoloured(entry["spec"], theme["colours"]) | {"config": theme["config"]}
            assert spec == chart.spec(name, "adamw", legend=False, width="container")


def recoloured(value, colours):
    if isinstance(value, list):
        return [recoloured(item, colours) for item in value]
    if isinstance(value, dict):
        return {name: recoloured(item, colours) for name, item in value.items()}
    return colours.get(value, value) if isinstance(value, str) else value


@pytest.mark.slow
def test_a_page_of_every_workload_and_many_optimizers_is_small(make_plan, make_record):
    labels = {
        "jax": (*(f"adamw,b1=0.{n}" for n in range(1, 9)), "adamw"),
        "torch": (*(f"my_module:factory_{n}" for n in range(6)), "adamw"),
    }
    names = [f"workload-{n}" for n in range(7)]
    # Synthetic, because a family of so many tests is refused.
    plan = make_plan(
        labels, TIERS["standard"], workloads=tuple(names), kind="synthetic", target=0.5
    )
    records = {}
    noise = np.random.default_rng(0)
    for cell in plan.cells:
        while specs := next_specs(cell, plan.budget, records):
            for spec in specs:
                off = math.log10(spec.hyperparameters["learning_rate"] / 1e-3)
                loss, low = np.exp(noise.normal(off * off, 0.1, 2)).tolist()
                curve = (loss + np.sort(noise.random(25))[::-1]).tolist()
                points = {"step": list(range(100, 2600, 100)), "val_loss": curve}
                names = ("train_loss", "val_loss", "test_loss", "val_accuracy", "test_accuracy")
                metrics = dict(zip(names, (low, loss, loss, low, low), strict=True))
                record = make_record(
                    spec, loss, metrics=metrics, curve={**points, "train_loss": curve}
                )
                records[spec.key()] = record
    results = build_results(plan, records, times(plan))
    assert len(results["cells"]) == 7 * 16
    assert all(len(cell["curve"]["step"]) == 25 for cell in results["cells"])
    assert 2 * MEGABYTES < len(report_html(results).encode()) < 2.8 * MEGABYTES


def test_every_chart_has_its_table(page, results):
    text = page.read_text()
    charts = [c for f in ("jax", "torch") for c in all_charts(results, f)]
    assert Outline(text).plots == [chart.name for chart in charts]
    figures = re.findall(r"<figure>.*?</figure>", text, re.DOTALL)
    assert len(figures) == len(charts)
    for figure, chart in zip(figures, charts, strict=True):
        assert figure.count("<tr>") == len(chart.rows) + 1
        assert html.escape(chart.rows[0][0]) in figure


@pytest.mark.parametrize("theme", THEMES)
def test_no_two_of_many_optimizers_look_alike(theme):
    labels = ["adamw", *(f"adamw,b1=0.{n}" for n in range(1, 21))]
    colours, marks = colour_of(labels, "adamw", theme), marks_of(labels, "adamw")
    for name in ("shape", "dash"):
        looks = {(colours[label], str(marks[label][name])) for label in labels}
        assert len(looks) == len(labels), name


def test_a_figures_legend_is_no_wider_than_its_plot(results):
    for chart in all_charts(results, "jax"):
        text = json.dumps(chart.spec("light", "adamw", legend=True, width=420))
        shapes = re.findall(r'"legend": \{.*?"columns": (\d), "labelLimit": (\d)\}', text)
        assert set(shapes) == {("2", "0")}, chart.name


def test_every_kind_of_chart_is_there(results):
    kinds = {chart.kind for chart in all_charts(results, "jax")}
    assert kinds == {
        "forest",
        "pareto",
        "pareto-time",
        "sensitivity",
        "search",
        "curves",
        "reach",
        "profile",
    }


def test_ids_are_unique(page):
    ids = Outline(page.read_text()).ids
    assert len(ids) == len(set(ids))


def test_a_tier_that_says_nothing_yet_counts_no_wins(page):
    title = re.search(r"<h1>(.*?)</h1>", page.read_text()).group(1)
    assert title == "Equally tuned AdamW and others at smoke size: too small to say anything yet"


def test_the_verdict_comes_first_and_counts_right(results):
    tier = {**results["protocol"], "tier": "standard"}
    text = report_html({**results, "protocol": tier})
    title = re.search(r"<h1>(.*?)</h1>", text).group(1)
    assert title == (
        "Against equally tuned AdamW, 6 comparisons: 2 better, 2 worse, 2 without a detectable "
        "difference"
    )
    assert text.index("<h1>") < text.index(html.escape(results["headline"][0])) < text.index("<h2")


def test_names_from_outside_cannot_become_markup(results):
    evil = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"
    poisoned = json.loads(json.dumps(results).replace("STAM_LITE", evil))
    text = report_html(poisoned)
    assert "alert(1)" in text
    assert "<script>alert(1)" not in text
    assert "<img src=x" not in text


def test_the_same_results_give_the_same_files(page, results, tmp_path):
    def contents(folder):
        return {p.name: p.read_bytes() for p in folder.rglob("*") if p.is_file()}

    assert contents(write_report(tmp_path, results).parent) == contents(page.parent)


def test_figures_are_drawn(page):
    folder = page.parent / "figures"
    assert (folder / "forest-jax.png").read_bytes().startswith(b"\x89PNG")
    for name in ("forest-jax", "curves-torch-toy", "sensitivity-jax-other", "pareto-jax-toy"):
        text = (folder / f"{name}.svg").read_text()
        assert text.count('aria-roledescription="') > 3
        assert "NaN" not in text
        assert "undefined" not in text


def test_summary_has_every_cell_with_interval_and_seeds(results):
    text = summary_markdown(results)
    rows = [line for line in text.splitlines() if line.startswith(("| toy", "| other"))]
    assert len(rows) == len(results["cells"])
    for row in rows:
        cells = [part.strip() for part in row.strip("|").split("|")]
        assert cells[7] == "8"
        assert cells[-1] == "baseline" or " to " in cells[5]


def test_one_task_of_the_users_own_is_not_summed_up_and_is_named_as_a_file(tmp_path, results):
    assert "Over all real workloads" in summary_markdown(results)
    first = results["workloads"][0]
    alone = {**results, "workloads": [{**first, "own": True}]}
    assert "Over all real workloads" not in summary_markdown(alone)
    text = write_report(tmp_path, alone).read_text()
    assert "Over all real workloads" not in text
    assert "optim-bench run --tier standard my_task.py:task" in text
    assert f"--workload {first['name']}" not in text


def test_the_aggregates_stand_in_the_summary_and_on_the_page(page, results):
    assert {(a["framework"], a["label"]) for a in results["aggregates"]} == {
        ("jax", "stam"),
        ("jax", "stam_lite"),
        ("torch", "stac"),
    }
    lines = summary_markdown(results).splitlines()
    text = page.read_text()
    for found in results["aggregates"]:
        ratio, chance = found["interquartile_ratio"], found["probability_of_improvement"]
        start = [
            found["title"],
            f"{ratio['value']:.3f}",
            f"{ratio['low']:.3f} to {ratio['high']:.3f}",
        ]
        (line,) = (line for line in lines if line.startswith(f"| {' | '.join(start)} | "))
        assert f"| {100 * chance['value']:.0f} % |" in line
        assert f'<td class="n">{start[1]}</td><td class="n">{start[2]}</td>' in text


def test_every_table_that_scrolls_has_a_name_and_can_be_focused(page):
    tables = re.findall(r'<div class="table"[^>]*>', page.read_text())
    assert len(tables) > 10
    assert all('tabindex="0" role="region" aria-label="' in table for table in tables)


@pytest.mark.parametrize(
    ("low", "high"),
    [(0.86, 1.07), (0.1, 10.0), (0.5, 0.9), (1e-4, 3e-4), (0.97, 1.04), (2.0, 90.0), (0.52, 4.2)],
)
def test_ticks_are_round_few_and_inside(low, high):
    ticks = log_ticks(low, high)
    assert 3 <= len(ticks) <= 9
    assert all(low <= tick <= high for tick in ticks)
    # No long stretch at an end goes without one.
    assert max(ticks[0] / low, high / ticks[-1]) < (high / low) ** 0.25
    assert all(float(f"{tick:.3g}") == tick for tick in ticks)


@pytest.mark.parametrize(
    ("low", "high"),
    [(1e-300, 1e300), (5e-324, 2.0), (5e-324, 5e-324), (1e-9, 1e9), (1e308, 1.7e308)],
)
def test_ticks_stay_few_at_the_ends_of_what_a_float_holds(low, high):
    ticks = log_ticks(low, high)
    assert len(ticks) <= 20
    assert all(low <= tick <= high for tick in ticks)


@pytest.mark.slow
def test_a_browser_draws_every_chart_without_a_complaint(visit, page):
    dom, log = visit()
    charts = len(Outline(page.read_text()).plots)
    assert f'data-drawn="{charts}"' in dom
    assert dom.count('role="img" aria-label="') == charts
    assert dom.count('class="mark-') > 5 * charts
    assert log == []


@pytest.mark.slow
def test_a_click_on_the_legend_isolates_an_optimizer(visit):
    before, _ = visit()
    after, log = visit("document.querySelector('.legend button[data-label=stam]').click()")
    assert 'data-focus="stam"' in after
    assert len(re.findall(r'data-label="stam"[^>]*>', after)) == 1
    button = re.search(r"<button[^>]*data-label=\"stam\"[^>]*>", after).group(0)
    assert 'aria-pressed="true"' in button
    assert 'opacity="0.12"' not in before
    # AdamW and STAMLite of JAX are dimmed; PyTorch has its own legend.
    jax, torch = (after[after.index(f'id="{f}"') :] for f in ("jax", "torch"))
    assert 'opacity="0.12"' in jax[: len(jax) - len(torch)]
    assert 'opacity="0.12"' not in torch[: torch.index('id="failures"')]
    assert log == []


@pytest.mark.slow
def test_a_second_click_shows_everything_again(visit):
    click = "document.querySelector('.legend button[data-label=stam]').click();"
    dom, _ = visit(f"{click} setTimeout(() => {{ {click} }}, 1000)")
    assert 'data-focus=""' in dom
    assert 'opacity="0.12"' not in dom


@pytest.mark.slow
def test_the_theme_follows_the_system_and_the_button(visit):
    assert '<html lang="en" data-theme="light"' in visit()[0]
    dark, log = visit(flags=("--blink-settings=preferredColorScheme=0",))
    assert '<html lang="en" data-theme="dark"' in dark
    assert "#5aa9e6" in dark
    assert log == []
    clicked, _ = visit("document.getElementById('theme').click()")
    assert '<html lang="en" data-theme="dark"' in clicked


@pytest.mark.slow
def test_everything_that_acts_can_be_reached_by_keyboard(visit):
    # What a script focuses is focusable; what has a tabindex of -1 or is a div is not.
    script = (
        "const acts = [...document.querySelectorAll('button, summary, .table[tabindex]')];"
        "document.querySelectorAll('details').forEach((d) => { d.open = true; });"
        "const reached = acts.filter((e) => { e.focus(); return document.activeElement === e"
        " && e.tabIndex >= 0; });"
        "document.documentElement.dataset.reached = `${reached.length} of ${acts.length}`;"
    )
    dom, _ = visit(script)
    reached, total = map(int, re.search(r'data-reached="(\d+) of (\d+)"', dom).groups())
    assert reached == total > 20


@pytest.mark.slow
def test_the_download_is_results_json_byte_for_byte(visit, page):
    # The link of the download is clicked by the page; what it points to is read back.
    script = (
        "const make = URL.createObjectURL;"
        "URL.createObjectURL = (blob) => { blob.text().then((text) => {"
        " document.documentElement.dataset.saved = text; }); return make(blob); };"
        "document.getElementById('download').click();"
    )
    dom, log = visit(script)
    saved = html.unescape(re.search(r'data-saved="([^"]*)"', dom).group(1))
    assert saved == (page.parent / "results.json").read_text(encoding="utf-8")
    assert log == []


@pytest.mark.parametrize("loss", [1e28, 1e300])
def test_a_rate_that_explodes_does_not_flatten_the_others(results, loss):
    exploded = copy.deepcopy(results)
    trial = exploded["cells"][0]["tuning"]["trials"][-1]
    trial["val_loss"] = [loss] * len(trial["val_loss"])

    def axis(found):
        chart = next(c for c in all_charts(found, "jax") if c.kind == "sensitivity")
        y = chart.layers[-1]["encoding"]["y"]
        assert max(row["high"] for row in chart.data) == max(
            max(t["val_loss"]) for t in trials(found, chart.title)
        ), "the table and the tooltip keep the loss"
        return y["scale"], y["axis"]["values"]

    def trials(found, workload):
        cells = (c for c in found["cells"] if (c["workload"], c["framework"]) == (workload, "jax"))
        return (trial for cell in cells for trial in cell["tuning"]["trials"])

    assert "domain" not in axis(results)[0], "what is calm is not cut"
    scale, ticks = axis(exploded)
    assert scale["clamp"]
    assert scale["domain"][1] / scale["domain"][0] < 1e6
    assert ticks[-1] <= scale["domain"][1]


def test_a_cost_axis_begins_at_nothing(results):
    charts = [c for f in ("jax", "torch") for c in all_charts(results, f) if "pareto" in c.kind]
    assert charts
    for chart in charts:
        scales = [
            found["scale"]
            for layer in chart.layers
            for found in layer.get("encoding", {}).values()
            if found and "scale" in found and found.get("field") == "cost"
        ]
        assert scales
        assert all(scale["domain"][0] == 0 and "padding" not in scale for scale in scales)


def test_the_page_has_contents_that_lead_somewhere(page):
    text = page.read_text()
    targets = re.findall(r'<a href="#([^"]+)"', text[text.index("<nav") : text.index("</nav")])
    assert len(targets) > 5
    for target in targets:
        assert text.count(f'id="{target}"') == 1, target


def test_the_plain_interval_is_in_the_tooltip(page, results):
    shown = [c for c in results["comparisons"] if has_interval(c)]
    assert shown
    for comparison in shown:
        assert f'title="95 % before Holm: {interval_text(comparison)}"' in page.read_text()


@pytest.mark.slow
def test_a_table_is_sorted_by_value_and_copied_as_text(visit):
    heading = "document.querySelectorAll('.sortable thead th')[5]"
    note = (
        "const copied = []; Object.defineProperty(navigator, 'clipboard', { value: { writeText: "
        "async (text) => document.body.append(Object.assign(document.createElement('pre'), "
        "{ id: 'copied', textContent: text })) } });"
    )
    dom, log = visit(f"{note} {heading}.click(); document.querySelector('button.copy').click()")
    table = dom[dom.index('class="sortable"') :]
    rows = re.findall(r"<tr.*?</tr>", table[: table.index("</table>")])[1:]
    ratios = [re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", row)[5] for row in rows]
    numbers = [float(text) for text in ratios if text]
    assert numbers == sorted(numbers)
    assert len(numbers) > 2
    copied = re.search(r'<pre id="copied">(.*?)</pre>', dom, re.DOTALL).group(1)
    assert copied.splitlines()[0].split("\t")[:3] == ["workload", "optimizer", "verdict"]
    assert len(copied.splitlines()) == len(rows) + 1
    assert log == []
