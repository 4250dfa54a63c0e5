// Study: the front of a study, its completions side by side, and sweeps of the blend.
import { button, checkbox, commandLine, drawn, element, field, number, say, select, short } from "./elements.js";
import { ends, start } from "./jobs.js";
import { blend, textChanged } from "./recipe.js";
import { hasToken, read } from "./server.js";

const WIDTH = 720, HEIGHT = 420, LEFT = 60, BOTTOM = 46, TOP = 14, RIGHT = 20;

function ticks(low, high) {
  const span = high - low || 1;
  const step = 10 ** Math.floor(Math.log10(span / 4));
  const wide = [1, 2, 5, 10].map((by) => by * step).find((size) => span / size <= 6);
  const found = [];
  for (let value = Math.ceil(low / wide) * wide; value <= high + wide / 1e6; value += wide) found.push(Number(value.toPrecision(12)));
  return found;
}

function front(study, x, y, picked, toggle) {
  const shown = study.entries.filter((entry) => entry.scores[x] && entry.scores[y]);
  const picture = drawn("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "group", "aria-label": `${y} against ${x}, ${shown.length} models` });
  if (!shown.length) return picture;
  const limits = (name) => {
    const all = shown.map((entry) => entry.scores[name].mean);
    const [low, high] = [Math.min(...all), Math.max(...all)];
    const more = (high - low || Math.abs(high) || 1) * 0.08;
    return [low - more, high + more];
  };
  const [[x0, x1], [y0, y1]] = [limits(x), limits(y)];
  const across = (value) => LEFT + ((value - x0) / (x1 - x0)) * (WIDTH - LEFT - RIGHT);
  const down = (value) => HEIGHT - BOTTOM - ((value - y0) / (y1 - y0)) * (HEIGHT - BOTTOM - TOP);
  for (const value of ticks(x0, x1)) {
    picture.append(drawn("line", { class: "grid", x1: across(value), x2: across(value), y1: TOP, y2: HEIGHT - BOTTOM }),
      drawn("text", { x: across(value), y: HEIGHT - BOTTOM + 18, "text-anchor": "middle" }, short(value)));
  }
  for (const value of ticks(y0, y1)) {
    picture.append(drawn("line", { class: "grid", x1: LEFT, x2: WIDTH - RIGHT, y1: down(value), y2: down(value) }),
      drawn("text", { x: LEFT - 8, y: down(value) + 4, "text-anchor": "end" }, short(value)));
  }
  const arrow = { max: " ↑", min: " ↓" };
  picture.append(drawn("text", { x: (LEFT + WIDTH - RIGHT) / 2, y: HEIGHT - 8, "text-anchor": "middle" }, x + (arrow[study.directions[x]] ?? "")),
    drawn("text", { x: 14, y: HEIGHT / 2, "text-anchor": "middle", transform: `rotate(-90 14 ${HEIGHT / 2})` }, y + (arrow[study.directions[y]] ?? "")));
  for (const entry of shown) {
    const [a, b] = [entry.scores[x], entry.scores[y]];
    if (a.error) picture.append(drawn("line", { class: "bar", x1: across(a.mean - a.error), x2: across(a.mean + a.error), y1: down(b.mean), y2: down(b.mean) }));
    if (b.error) picture.append(drawn("line", { class: "bar", x1: across(a.mean), x2: across(a.mean), y1: down(b.mean - b.error), y2: down(b.mean + b.error) }));
    const kind = entry.role === "point" ? "" : entry.role === "expert" || entry.role === "base" ? entry.role : "other";
    const open = () => toggle(entry.name);
    const words = `${entry.short}, ${entry.role}: ${x} ${short(a.mean)}, ${y} ${short(b.mean)}`;
    const mark = drawn("circle", {
      class: `mark ${kind} ${entry.front ? "" : "dominated"} ${picked.includes(entry.name) ? "on" : ""}`, cx: across(a.mean), cy: down(b.mean), r: 8,
      tabindex: "0", role: "button", "aria-pressed": String(picked.includes(entry.name)), "aria-label": words, "data-name": entry.name, onclick: open,
      onkeydown: (event) => { if (event.key === "Enter" || event.key === " ") { event.preventDefault(); open(); } },
    }, drawn("title", {}, words));
    picture.append(mark);
  }
  return picture;
}

function scores(study, picked, toggle) {
  const names = Object.keys(study.directions);
  const rows = study.entries.map((entry) => element("tr", { class: picked.includes(entry.name) ? "picked" : "" },
    element("th", { scope: "row" }, checkbox(entry.short + (entry.chosen ? " ‡" : ""), picked.includes(entry.name), () => toggle(entry.name))),
    element("td", {}, entry.role),
    ...names.map((name) => element("td", { class: "number" }, entry.scores[name] ? `${short(entry.scores[name].mean)} ± ${short(entry.scores[name].error, 2)}` : "–"))));
  const head = element("tr", {}, element("th", { scope: "col" }, "Model"), element("th", { scope: "col" }, "Role"),
    ...names.map((name) => element("th", { scope: "col", class: "number" }, name)));
  return element("div", { class: "wide", tabindex: "0", role: "region", "aria-label": "Scores" },
    element("table", {}, element("thead", {}, head), element("tbody", {}, rows)));
}

function sideBySide(problems, picked, study) {
  const box = element("div", {});
  const shownAt = { index: 0 };
  const answers = element("div", { class: "columns", "aria-live": "polite" });
  const question = element("pre", { tabindex: "0" });
  const names = new Map(study.entries.map((entry) => [entry.name, entry.short]));
  const show = () => {
    const problem = problems[shownAt.index];
    question.textContent = problem.question + (problem.answer === null ? "" : "\n\nRight answer: " + problem.answer);
    const listed = problem.completions.filter((each) => picked.includes(each.name));
    answers.replaceChildren(...listed.map((each) => element("article", { class: "answer" },
      element("header", {}, element("h3", {}, names.get(each.name) ?? each.name)),
      element("pre", { tabindex: "0" }, each.text),
      element("footer", {}, Object.entries(each.scores).map(([name, value]) =>
        element("span", { class: value === 1 ? "full" : value === 0 ? "none" : "" }, `${name} ${short(value)} · `)),
      `${each.tokens} tokens${each.cut ? ", cut off" : ""}`))));
  };
  const chosen = select(problems.map((problem, index) => [String(index), problem.title + ": " + problem.question.slice(0, 60)]), "0",
    (index) => { shownAt.index = Number(index); show(); });
  box.append(field("Problem", chosen), element("p", {}), question, element("p", {}), answers);
  show();
  return box;
}

function sweepForm(library) {
  const given = { name: "", step: 0.1, low: 0.1, high: 0.9, problems: library.problems[0] ?? "", samples: 1, temperature: 0, tokens: 128, scorers: new Set(["exact", "tokens"]) };
  const set = (key) => (value) => { given[key] = value; };
  if (!library.problems.length) return element("p", { class: "quiet" }, "A study needs problems: a .jsonl file below the folder, one problem a line (Talk exports one).");
  const two = () => blend.controls?.models.length === 2;
  const name = element("input", { type: "text", placeholder: "my-study", oninput: () => set("name")(name.value.trim()) });
  const go = button("Run", () => {
    if (!given.name) { name.focus(); say("Give the study a name first."); return; }
    start({ kind: "sweep", text: blend.text, name: given.name, step: given.step, low: given.low, high: given.high, problems: given.problems,
      scorers: [...given.scorers], samples: given.samples, temperature: given.temperature, max_tokens: given.tokens });
  }, "main");
  const scorers = element("details", {}, element("summary", {}, "Scorers"), element("div", { class: "row" },
    library.scorers.map((each) => checkbox(each, given.scorers.has(each), (on) => { if (on) given.scorers.add(each); else given.scorers.delete(each); }))));
  return element("div", {},
    element("p", { class: "note" }, two()
      ? "The first model's weight w goes from one end to the other, the second has 1 − w."
      : "All weights that add up to 1, in steps."),
    element("div", { class: "row" }, field("Name", name),
      two() ? field("From", number(given.low, { step: 0.05 }, set("low")), true) : null,
      two() ? field("To", number(given.high, { step: 0.05 }, set("high")), true) : null,
      field("Step", number(given.step, { min: 0.01, max: 0.5, step: 0.01 }, set("step")), true)),
    element("div", { class: "row" },
      field("Problems", select(library.problems.map((path) => [path, path]), given.problems, set("problems"))),
      field("Samples", number(1, { min: 1, max: 64 }, (value) => set("samples")(Math.round(value))), true),
      field("Temperature", number(0, { min: 0, max: 5, step: 0.1 }, set("temperature")), true),
      field("Tokens at most", number(128, { min: 1 }, (value) => set("tokens")(Math.round(value))), true)),
    scorers, element("p", {}), go);
}

export function screen(library) {
  const picked = [];
  const shown = element("div", {});
  let current = null;
  const open = async (place) => {
    current = null;
    shown.replaceChildren(element("p", { class: "quiet", role: "status" }, "Reading …"));
    try {
      const study = await read("/studio/study", { place });
      const { problems } = study.entries.some((entry) => entry.samples) ? await read("/studio/answers", { place }) : { problems: [] };
      current = { place, study, problems };
      picked.splice(0, picked.length, ...study.entries.filter((entry) => entry.chosen || entry.role === "expert").map((entry) => entry.name).slice(0, 3));
      const names = Object.keys(study.directions);
      current.x = names[0];
      current.y = names[1] ?? names[0];
      draw();
    } catch (error) { shown.replaceChildren(element("p", { class: "problem" }, error.message)); }
  };
  const toggle = (name) => {
    const at = picked.indexOf(name);
    if (at < 0) picked.push(name); else picked.splice(at, 1);
    const held = document.activeElement?.dataset?.name;
    draw();
    if (held) shown.querySelector(`[data-name="${CSS.escape(held)}"]`)?.focus();
  };
  const draw = () => {
    const { place, study, problems } = current;
    const names = Object.keys(study.directions).map((name) => [name, name]);
    const report = !study.report ? null : hasToken()
      ? element("p", { class: "note" }, `Its report is ${place}/report.html.`)
      : element("p", {}, element("a", { href: "/studio/report?" + new URLSearchParams({ place }), target: "_blank", rel: "noopener" }, "The report, as it will be published"));
    shown.replaceChildren(
      element("div", { class: "row" },
        field("Across", select(names, current.x, (name) => { current.x = name; draw(); }), true),
        field("Up", select(names, current.y, (name) => { current.y = name; draw(); }), true)),
      element("div", { class: "split" },
        element("div", {}, element("div", { class: "picture" }, front(study, current.x, current.y, picked, toggle)),
          element("p", { class: "note" }, "Blue: merges, pale where another is better in all. Orange: experts, green: base, pink: compared with. Click points to compare their completions."), report),
        scores(study, picked, toggle)),
      element("div", { class: "row" }, study.entries.filter((entry) => picked.includes(entry.name)).map((entry) => {
        const take = button("Blend " + entry.short, async () => {
          try {
            await textChanged((await read("/studio/recipe", { place, name: entry.name })).text);
            location.hash = "#blend";
          } catch (error) { say(error.message); }
        });
        return take;
      })),
      element("h2", {}, "Completions side by side"),
      !problems.length ? element("p", { class: "quiet" }, "This study has no completions.")
        : picked.length ? sideBySide(problems, picked, study) : element("p", { class: "quiet" }, "Choose models in the figure or in the table."),
      commandLine(`merganser report ${place}`));
  };
  const chosen = select([...(library.studies.length ? [] : [["", "none below the folder"]]), ...library.studies.map((path) => [path, path])], library.studies[0] ?? "", (place) => { if (place) open(place); });
  // After a command: studies that are new, and the one that it has gone on with.
  let last = null;
  const list = () => {
    const before = chosen.value;
    chosen.replaceChildren(...(library.studies.length ? library.studies : [""]).map((path) => element("option", { value: path }, path || "none below the folder")));
    const wanted = last && library.studies.includes(last) ? last : library.studies.includes(before) ? before : library.studies[0];
    chosen.value = wanted ?? "";
    if (wanted && (wanted === last || wanted !== before)) open(wanted);
    last = null;
  };
  const ended = (event) => { last = /^merganser sweep \S+\.yml (\S+)/.exec(event.detail.command)?.[1] ?? null; };
  ends.addEventListener("end", ended);
  ends.addEventListener("library", list);
  if (library.studies.length) open(library.studies[0]);
  const view = element("div", {}, element("h1", {}, "Study"),
    element("div", { class: "row" }, field("Study", chosen)), shown,
    element("section", { class: "panel" }, element("h2", {}, "Sweep the blend"), sweepForm(library)));
  const leave = () => { ends.removeEventListener("end", ended); ends.removeEventListener("library", list); };
  return { view, leave };
}
