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
