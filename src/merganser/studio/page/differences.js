// Differences: two or three models by layer and kind of tensor, and what rounding keeps.
import { button, element, field, nothing, percent, select, short, shortName, shortNames, tiles } from "./elements.js";
import { modelOptions } from "./hub.js";
import { start } from "./jobs.js";
import { blend } from "./recipe.js";

let results = []; // of the last comparison: { first, second, data }
let figure = "relative";
let pair = 0;

const FIGURES = {
  changed: "elements that differ", distance: "distance", relative: "distance, relative to the first",
  relative_a: "first's change, relative to the base", relative_b: "second's change, relative to the base",
  cosine: "cosine of both changes", same_sign: "equal signs where both changed", interference: "interference: what cancels in the sum",
  effective_rank: "effective rank",
};
const SHARES = new Set(["changed", "same_sign", "interference"]);
const shown = (name, value) => value === null || value === undefined ? "–" : SHARES.has(name) ? percent(value) : short(value);

function cells(data, name, most) {
  const kinds = Object.keys(data.cells);
  const layers = [...new Set(kinds.flatMap((kind) => Object.keys(data.cells[kind])))];
  layers.sort((a, b) => (a === "–") - (b === "–") || Number(a) - Number(b));
  const rows = kinds.map((kind) => element("tr", {}, element("th", { scope: "row" }, kind), ...layers.map((layer) => {
    const value = data.cells[kind][layer]?.[name];
    if (value === undefined || value === null) return element("td", { class: "number none-here" }, "");
    const cell = element("td", { class: "number", title: `${kind}, ${layer === "–" ? "outside the layers" : "layer " + layer}: ${shown(name, value)}` }, shown(name, value));
    const share = most ? Math.abs(value) / most : 0;
    cell.style.backgroundColor = `rgba(var(${value < 0 ? "--cold" : "--heat"}), ${(0.42 * share).toFixed(3)})`;
    return cell;
  })));
  return element("div", { class: "wide", tabindex: "0", role: "region", "aria-label": "Heat map of " + FIGURES[name] },
    element("table", { class: "heat" },
      element("thead", {}, element("tr", {}, element("th", { scope: "col" }, "Kind"), layers.map((layer) => element("th", { scope: "col", class: "number" }, layer === "–" ? "outside" : "layer " + layer)))),
      element("tbody", {}, rows)));
}

const GROUPS = [["equal", ["0"]], ["1 unit", ["1"]], ["2 units", ["2"]], ["3 to 16", ["3-4", "5-8", "9-16"]], ["17 to 256", ["17-32", "33-64", "65-128", "129-256"]]];
const largest = (name) => Math.max(...results.flatMap(({ data }) => Object.values(data.cells).flatMap((row) => Object.values(row).map((cell) => Math.abs(cell[name] ?? 0)))), 1e-12);

// How far elements are apart in units in the last place: those at 0 are what rounding has made equal.
function rounding(data) {
  const counts = Object.entries(data.ulps);
  const total = counts.reduce((sum, [, count]) => sum + count, 0);
  if (!total) return null;
  const to = data.ulp_dtype ? `Both rounded to ${data.ulp_dtype}` : "As the models are stored";
  const equal = data.ulps["0"] / total;
  const rows = GROUPS.map(([title, names]) => [title, names.reduce((sum, name) => sum + data.ulps[name], 0)]);
  rows.push(["more", total - rows.reduce((sum, [, count]) => sum + count, 0)]);
  return element("section", { class: "panel" }, element("h2", {}, "What rounding keeps"),
    element("p", {}, `${to}, ${percent(equal)} of ${total.toLocaleString("en")} elements are equal; ${percent(1 - equal)} keep a difference.`),
    element("table", { class: "bars" }, element("caption", {}, "Elements by their difference in units in the last place"),
      element("tbody", {}, rows.map(([name, count]) => {
        const bar = element("span", { class: "bar" });
        bar.style.width = `${(100 * count) / total}%`;
        return element("tr", {}, element("th", { scope: "row" }, name), element("td", {}, bar), element("td", { class: "number" }, percent(count / total)));
      }))));
}

export function screen(library) {
  const used = blend.controls?.models.map((each) => each.model) ?? [];
  const all = [...library.models, ...library.cached];
  const recipes = library.recipes.filter((path) => !library.sweeps.includes(path));
  const options = (empty) => {
    const listed = modelOptions(library, used, empty);
    return recipes.length ? [...listed, { label: "Recipes, merged in memory", options: recipes.map((path) => [path, path]) }] : listed;
  };
  const given = { models: [used[0] ?? all[0], used[1] ?? all[1] ?? all[0], used[2] ?? ""], base: blend.controls?.base ?? all.find((path) => /(^|[/_-])base/.test(shortName(path))) ?? "", ulp: "" };
  const out = element("div", { "aria-live": "polite" });
  const draw = () => {
    if (!results.length) {
      out.replaceChildren(nothing("Nothing compared yet", "Choose two or three models. With their base you also see how far their changes agree, and how much cancels when they are merged."));
      return;
    }
    pair = Math.min(pair, results.length - 1);
    const { data } = results[pair];
    const names = Object.keys(data.whole).filter((name) => data.whole[name] !== null);
    if (!names.includes(figure)) figure = names.includes("relative") ? "relative" : names[0];
    const names_ = new Map(); // short names of the models
    const paths = [...new Set(results.flatMap(({ first, second }) => [first, second]))];
    shortNames(paths).forEach((name, index) => names_.set(paths[index], name));
    const tabs = results.length < 2 ? null : element("div", { class: "chips", role: "group", "aria-label": "Which two" }, results.map((each, index) => {
      const tab = button(`${names_.get(each.first)} → ${names_.get(each.second)}`, () => { pair = index; draw(); out.querySelectorAll(".chips button")[index].focus(); }, "chip");
      tab.setAttribute("aria-pressed", String(index === pair));
      return tab;
    }));
    const select_ = select(names.map((name) => [name, FIGURES[name] ?? name]), figure, (name) => { figure = name; draw(); out.querySelector("select").focus(); });
    const skipped = Object.entries(data.skipped);
    const most = largest(figure);
    const scale = element("p", { class: "key" }, element("span", { class: "ramp", "aria-hidden": "true" }), `0 to ${shown(figure, most)}${results.length > 1 ? ", the same in all pairs" : ""}`);
    out.replaceChildren(...[
      tabs,
      element("h2", {}, `${names_.get(results[pair].first)} → ${names_.get(results[pair].second)}`),
      tiles(names.map((name) => [FIGURES[name] ?? name, shown(name, data.whole[name])]), "few"),
      element("section", { class: "panel" }, element("div", { class: "head" }, element("h2", {}, "By layer and kind"), field("Figure", select_)), scale, cells(data, figure, most)),
      rounding(data),
      skipped.length ? element("p", { class: "warning" }, `${skipped.length} tensor${skipped.length === 1 ? " was" : "s were"} not compared: ${skipped[0][0]} (${skipped[0][1]})${skipped.length > 1 ? " and others" : ""}.`) : null,
    ].filter(Boolean));
  };
  const compare = button("Compare", async () => {
    const chosen = given.models.filter(Boolean);
    const pairs = chosen.flatMap((first, i) => chosen.slice(i + 1).map((second) => [first, second]));
    out.replaceChildren(element("p", { class: "quiet busy", role: "status" }, `Reading ${chosen.length} models …`));
    compare.disabled = true;
    const found = [];
    let failure = null;
    for (const [first, second] of pairs) {
      await new Promise((done) => {
        start({ kind: "diff", first, second, base: given.base || null, ulp: given.ulp || null }, (ended) => {
          if (ended.state === "done") found.push({ first, second, data: ended.result });
          else failure ??= ended.lines.at(-1) ?? ended.state;
          done();
        }).then((job) => { if (!job) { failure ??= ""; done(); } });
      });
      if (failure !== null) break;
    }
    compare.disabled = false;
    if (failure === null) { results = found; pair = 0; draw(); } else out.replaceChildren(element("p", { class: "problem" }, failure || "The models were not compared."));
  }, "main");
  draw();
  const pick = (index, empty) => select(options(empty), given.models[index], (path) => { given.models[index] = path; });
  return { view: element("div", {}, element("h1", {}, "Differences"),
    element("section", { class: "panel" },
      element("div", { class: "row" },
        field("First", pick(0, null)), field("Second", pick(1, null)), field("Third", pick(2, "none")),
        field("Base", select(options("none"), given.base, (path) => { given.base = path; }))),
      element("div", { class: "row" },
        field("Round both to", select([["", "as stored"], ["bfloat16", "bfloat16"], ["float16", "float16"], ["float32", "float32"]], given.ulp, (name) => { given.ulp = name; }), true), compare)),
    out) };
}
