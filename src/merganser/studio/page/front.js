// The front of a study as a figure, and its scores as a table.
import { checkbox, drawn, element, short } from "./elements.js";

const WIDTH = 720, HEIGHT = 440, LEFT = 64, BOTTOM = 52, TOP = 16, RIGHT = 24;

function ticks(low, high) {
  const span = high - low || 1;
  const step = 10 ** Math.floor(Math.log10(span / 4));
  const wide = [1, 2, 5, 10].map((by) => by * step).find((size) => span / size <= 6);
  const found = [];
  for (let value = Math.ceil(low / wide) * wide; value <= high + wide / 1e6; value += wide) found.push(Number(value.toPrecision(12)));
  return found;
}

// The points' limits, not their errors', of which a few samples have large ones.
function limits(entries, name) {
  const all = entries.map((entry) => entry.scores[name].mean);
  const [low, high] = [Math.min(...all), Math.max(...all)];
  const more = (high - low || Math.abs(high) || 1) * 0.1;
  return [low - more, high + more];
}

export function front(study, x, y, picked, toggle, fresh = new Set()) {
  const shown = study.entries.filter((entry) => entry.scores[x] && entry.scores[y]);
  const picture = drawn("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "group", "aria-label": `${y} against ${x}, ${shown.length} models` });
  if (!shown.length) return picture;
  const [[x0, x1], [y0, y1]] = [limits(shown, x), limits(shown, y)];
  const across = (value) => LEFT + ((value - x0) / (x1 - x0)) * (WIDTH - LEFT - RIGHT);
  const down = (value) => HEIGHT - BOTTOM - ((value - y0) / (y1 - y0)) * (HEIGHT - BOTTOM - TOP);
  const inX = (value) => Math.min(WIDTH - RIGHT, Math.max(LEFT, across(value)));
  const inY = (value) => Math.min(HEIGHT - BOTTOM, Math.max(TOP, down(value)));
  for (const value of ticks(x0, x1)) {
    picture.append(drawn("line", { class: "grid", x1: across(value), x2: across(value), y1: TOP, y2: HEIGHT - BOTTOM }),
      drawn("text", { x: across(value), y: HEIGHT - BOTTOM + 20, "text-anchor": "middle" }, short(value)));
  }
  for (const value of ticks(y0, y1)) {
    picture.append(drawn("line", { class: "grid", x1: LEFT, x2: WIDTH - RIGHT, y1: down(value), y2: down(value) }),
      drawn("text", { x: LEFT - 8, y: down(value) + 4, "text-anchor": "end" }, short(value)));
  }
  const arrow = { max: " (more is better)", min: " (less is better)" };
  picture.append(
    drawn("text", { class: "name", x: (LEFT + WIDTH - RIGHT) / 2, y: HEIGHT - 8, "text-anchor": "middle" }, x + (arrow[study.directions[x]] ?? "")),
    drawn("text", { class: "name", x: 16, y: (HEIGHT - BOTTOM + TOP) / 2, "text-anchor": "middle", transform: `rotate(-90 16 ${(HEIGHT - BOTTOM + TOP) / 2})` }, y + (arrow[study.directions[y]] ?? "")));
  for (const entry of shown) {
    const [a, b] = [entry.scores[x], entry.scores[y]];
    if (!picked.includes(entry.name)) continue;
    if (a.error) picture.append(drawn("line", { class: "bar", x1: inX(a.mean - a.error), x2: inX(a.mean + a.error), y1: down(b.mean), y2: down(b.mean) }));
    if (b.error) picture.append(drawn("line", { class: "bar", x1: across(a.mean), x2: across(a.mean), y1: inY(b.mean - b.error), y2: inY(b.mean + b.error) }));
  }
  for (const entry of shown) {
    const [a, b] = [entry.scores[x], entry.scores[y]];
    const kind = entry.role === "point" ? "" : entry.role === "expert" || entry.role === "base" ? entry.role : "other";
    const open = () => toggle(entry.name);
    const words = `${entry.short}, ${entry.role}: ${x} ${short(a.mean)}, ${y} ${short(b.mean)}`;
    const on = picked.includes(entry.name);
    picture.append(drawn("circle", {
      class: ["mark", kind, entry.front ? "" : "dominated", on ? "on" : "", fresh.has(entry.name) ? "fresh" : ""].filter(Boolean).join(" "),
      cx: across(a.mean), cy: down(b.mean), r: 8,
      tabindex: "0", role: "button", "aria-pressed": String(on), "aria-label": words, "data-name": entry.name, onclick: open,
      onkeydown: (event) => { if (event.key === "Enter" || event.key === " ") { event.preventDefault(); open(); } },
    }, drawn("title", {}, words)));
    if (on) {
      const left = across(a.mean) > WIDTH * 0.7;
      picture.append(drawn("text", { class: "label", x: across(a.mean) + (left ? -13 : 13), y: down(b.mean) - 10, "text-anchor": left ? "end" : "start", "aria-hidden": "true" }, entry.short));
    }
  }
  return picture;
}

// Whether the study's rule preferred an entry to others.
export function isChosen(entry) { return Boolean(entry.chosen) && entry.chosen !== "all"; }

export function legend(study) {
  const roles = new Set(study.entries.map((entry) => entry.role));
  const others = study.entries.some((entry) => !["point", "expert", "base"].includes(entry.role));
  const key = (kind, text) => element("span", {}, drawn("svg", { viewBox: "0 0 16 16", width: 14, height: 14, "aria-hidden": "true" },
    drawn("circle", { class: "mark " + kind, cx: 8, cy: 8, r: 6 })), text);
  return element("p", { class: "key" }, key("", "merge on the front"), key("dominated", "another is better in all"),
    roles.has("expert") ? key("expert", "expert") : "", roles.has("base") ? key("base", "base") : "", others ? key("other", "compared with") : "");
}

export function scores(study, picked, toggle) {
  const names = Object.keys(study.directions);
  const rows = study.entries.map((entry) => element("tr", { class: picked.includes(entry.name) ? "picked" : "" },
    element("th", { scope: "row", title: entry.name }, checkbox(entry.short + (isChosen(entry) ? " ‡" : ""), picked.includes(entry.name), () => toggle(entry.name))),
    element("td", { class: "quiet" }, entry.role === "point" ? (entry.front ? "front" : "") : entry.role),
    ...names.map((name) => {
      const score = entry.scores[name];
      return element("td", { class: "number" }, score ? short(score.mean) : "–", score?.error ? element("span", { class: "quiet" }, ` ± ${short(score.error, 2)}`) : null);
    })));
  const head = element("tr", {}, element("th", { scope: "col" }, "Model"), element("th", { scope: "col" }, "Role"),
    ...names.map((name) => element("th", { scope: "col", class: "number" }, name)));
  const box = element("div", { class: "wide", tabindex: "0", role: "region", "aria-label": "Scores" },
    element("table", { class: "scores" }, element("thead", {}, head), element("tbody", {}, rows)));
  return study.entries.some(isChosen) ? element("div", {}, box, element("p", { class: "note" }, "‡ chosen by the study's rule.")) : box;
}
