const read = (id) => JSON.parse(document.getElementById(id).textContent);
const charts = read("chart-data");
const root = document.documentElement;
const dark = window.matchMedia("(prefers-color-scheme: dark)");
const toggle = document.getElementById("theme");
let views = [];
let chosen = null;
let focus = { jax: "", torch: "" };

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
    charts.map(async ({ id, framework, title, specs, data }) => {
      const host = document.getElementById(id);
      const { view } = await vegaEmbed(host, { ...specs[name], data }, { actions: false, renderer: "svg" });
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
  const text = document.getElementById("results").textContent;
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type: "application/json" }));
  link.download = "results.json";
  link.click();
  URL.revokeObjectURL(link.href);
});
draw();
