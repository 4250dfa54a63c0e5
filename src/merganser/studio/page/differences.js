// Differences: two models by layer and kind of tensor.
import { button, element, facts, field, select, shortName } from "./elements.js";
import { start } from "./jobs.js";
import { blend } from "./recipe.js";

let result = null;

function cells(data, figure) {
  const kinds = Object.keys(data.cells);
  const layers = [...new Set(kinds.flatMap((kind) => Object.keys(data.cells[kind])))];
  layers.sort((a, b) => (a === "–") - (b === "–") || Number(a) - Number(b));
  const all = kinds.flatMap((kind) => Object.values(data.cells[kind]).map((cell) => cell[figure])).filter((value) => value !== null && value !== undefined);
  const most = Math.max(...all.map(Math.abs), 1e-12);
  const rows = kinds.map((kind) => element("tr", {}, element("th", { scope: "row" }, kind), ...layers.map((layer) => {
    const value = data.cells[kind][layer]?.[figure];
    if (value === undefined || value === null) return element("td", { class: "number quiet" }, "");
    const cell = element("td", { class: "number" }, Number(value).toPrecision(2));
    cell.style.backgroundColor = `rgba(var(--heat), ${((0.45 * Math.abs(value)) / most).toFixed(3)})`;
    return cell;
  })));
  return element("div", { class: "wide", tabindex: "0", role: "region", "aria-label": "Heat map of " + figure.replaceAll("_", " ") },
    element("table", { class: "heat" },
      element("thead", {}, element("tr", {}, element("th", { scope: "col" }, "Kind"), layers.map((layer) => element("th", { scope: "col", class: "number" }, layer === "–" ? "outside" : layer)))),
      element("tbody", {}, rows)));
}

export function screen(library) {
  const options = library.models.map((path) => [path, path]);
  const used = blend.controls?.models.map((each) => each.model) ?? [];
  const given = { first: used[0] ?? library.models[0], second: used[1] ?? library.models[1] ?? library.models[0], base: blend.controls?.base ?? "" };
  const shown = element("div", { "aria-live": "polite" });
  const draw = () => {
    if (!result) return;
    const names = Object.keys(result.data.whole).filter((name) => result.data.whole[name] !== null);
    result.figure = names.includes(result.figure) ? result.figure : names.includes("relative") ? "relative" : names[0];
    shown.replaceChildren(element("h2", {}, result.title),
      element("div", { class: "row" }, field("Figure", select(names.map((name) => [name, name.replaceAll("_", " ")]), result.figure, (name) => { result.figure = name; draw(); }))),
      cells(result.data, result.figure),
      facts(names.map((name) => [name.replaceAll("_", " "), Number(result.data.whole[name]).toPrecision(4)])));
    const skipped = Object.entries(result.data.skipped);
    if (skipped.length) shown.append(element("p", { class: "warning" }, `${skipped.length} tensors were not compared: ${skipped[0][0]} (${skipped[0][1]})`));
  };
  const compare = button("Compare", async () => {
    shown.replaceChildren(element("p", { class: "quiet", role: "status" }, "Reading both models …"));
    const asked = { kind: "diff", first: given.first, second: given.second, base: given.base || null };
    const job = await start(asked, (ended) => {
      if (ended.state !== "done") { shown.replaceChildren(element("p", { class: "problem" }, ended.lines.at(-1) ?? ended.state)); return; }
      result = { data: ended.result, title: `${shortName(asked.first)} → ${shortName(asked.second)}`, figure: result?.figure };
      draw();
    });
    if (!job) shown.replaceChildren();
  }, "main");
  draw();
  return { view: element("div", {}, element("h1", {}, "Differences"),
    element("p", { class: "note" }, "How far two models are from each other, and with a base how far their changes agree."),
    element("div", { class: "row" },
      field("First", select(options, given.first, (path) => { given.first = path; })),
      field("Second", select(options, given.second, (path) => { given.second = path; })),
      field("Base", select([["", "none"], ...options], given.base, (path) => { given.base = path; })), compare),
    shown) };
}
