const read = (id) => unpack(JSON.parse(document.getElementById(id).textContent));
const { themes, charts } = read("chart-data");
const root = document.documentElement;
const dark = window.matchMedia("(prefers-color-scheme: dark)");
const toggle = document.getElementById("theme");
let views = [];
let chosen = null;
let focus = { jax: "", torch: "" };

// Lists of objects travel as tables; see _pack.py.
function unpack(value) {
  if (value === null || typeof value !== "object") return value;
  if (Array.isArray(value)) return value.map(unpack);
  if (value.$texts) return value.$at.map((index) => value.$texts[index]);
  if (value.$columns) {
    const columns = Object.entries(value.$columns).map(([name, column]) => [name, unpack(column)]);
    return columns[0][1].map((_, row) => Object.fromEntries(columns.map(([name, c]) => [name, c[row]])));
  }
  return Object.fromEntries(Object.entries(value).map(([name, item]) => [name, unpack(item)]));
}

// Specifications are in the light theme.
function themed(value, colours) {
  if (Array.isArray(value)) return value.map((item) => themed(item, colours));
  if (value === null || typeof value !== "object") return Object.hasOwn(colours, value) ? colours[value] : value;
  return Object.fromEntries(Object.entries(value).map(([name, item]) => [name, themed(item, colours)]));
}

function theme() {
  return chosen ?? (dark.matches ? "dark" : "light");
}

async function draw() {
  const name = theme();
  root.dataset.theme = name;
  toggle.textContent = name === "dark" ? "Light" : "Dark";
  toggle.setAttribute("aria-label", `Switch to the ${name === "dark" ? "light" : "dark"} theme`);
  for (const swatch of document.querySelectorAll("[data-light]")) {
    swatch.style.color = swatch.dataset[name];
  }
  views.forEach(({ view }) => view.finalize());
  views = await Promise.all(
    charts.map(async ({ id, framework, title, spec }) => {
      const host = document.getElementById(id);
      const { config, colours } = themes[name];
      const { data, ...rest } = spec;
      const drawn = { ...themed(rest, colours), data, config };
      const { view } = await vegaEmbed(host, drawn, { actions: false, renderer: "svg" });
      const picture = host.querySelector("svg");
      picture.setAttribute("role", "img");
      picture.setAttribute("aria-label", title);
      view.signal("focus", focus[framework]);
      await view.runAsync();
      return { view, framework };
    }),
  );
  root.dataset.drawn = String(views.length);
}

async function isolate(framework, label) {
  focus = { ...focus, [framework]: focus[framework] === label ? "" : label };
  for (const button of document.querySelectorAll(`.legend button[data-framework="${framework}"]`)) {
    button.setAttribute("aria-pressed", String(button.dataset.label === focus[framework]));
  }
  for (const entry of views.filter((view) => view.framework === framework)) {
    entry.view.signal("focus", focus[framework]);
    await entry.view.runAsync();
  }
  root.dataset.focus = focus[framework];
}

for (const button of document.querySelectorAll(".legend button")) {
  button.addEventListener("click", () => isolate(button.dataset.framework, button.dataset.label));
}
// Numbers by value, texts by letters; a second click turns the order round.
function sortBy(heading) {
  const table = heading.closest("table");
  const column = heading.cellIndex;
  const down = heading.getAttribute("aria-sort") === "ascending";
  for (const other of heading.parentNode.children) other.removeAttribute("aria-sort");
  heading.setAttribute("aria-sort", down ? "descending" : "ascending");
  const key = (row) => row.cells[column].textContent.trim();
  const compare = (a, b) => {
    const [left, right] = [parseFloat(key(a)), parseFloat(key(b))];
    const both = !Number.isNaN(left) && !Number.isNaN(right);
    return both ? left - right : key(a).localeCompare(key(b));
  };
  const rows = [...table.tBodies[0].rows].sort((a, b) => (down ? compare(b, a) : compare(a, b)));
  table.tBodies[0].append(...rows);
}

for (const heading of document.querySelectorAll(".sortable thead th")) {
  heading.tabIndex = 0;
  heading.addEventListener("click", () => sortBy(heading));
  heading.addEventListener("keydown", (event) => {
    if (event.key === "Enter") sortBy(heading);
  });
}

for (const button of document.querySelectorAll("button.copy")) {
  button.addEventListener("click", async () => {
    const source = document.getElementById(button.dataset.copy);
    const rows = source.rows && [...source.rows].map((row) => [...row.cells].map((c) => c.textContent.trim()).join("\t"));
    const said = button.textContent;
    await navigator.clipboard.writeText(rows ? rows.join("\n") : source.textContent);
    button.textContent = "Copied";
    setTimeout(() => (button.textContent = said), 1500);
  });
}

toggle.addEventListener("click", () => {
  chosen = theme() === "dark" ? "light" : "dark";
  draw();
});
dark.addEventListener("change", draw);
document.getElementById("download").addEventListener("click", () => {
  // The bytes of the file: numbers that JavaScript writes otherwise are texts; see _pack.py.
  const text = `${JSON.stringify(read("results"), null, 1).replace(/"\$number:([-+.\de]+)"/g, "$1")}\n`;
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type: "application/json" }));
  link.download = "results.json";
  link.click();
  URL.revokeObjectURL(link.href);
});
draw();
