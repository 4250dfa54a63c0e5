// Study: the front of a study, which grows while it runs; its completions side by side; sweeps of the blend.
import { button, commandLine, element, field, nothing, say, select, short } from "./elements.js";
import { front, isChosen, legend, scores } from "./front.js";
import { ends, start, states, stop } from "./jobs.js";
import { textChanged, watch } from "./recipe.js";
import { hasToken, read } from "./server.js";
import { sweepForm } from "./sweep.js";

const EVERY = 900; // milliseconds between two looks at a study that runs
let last = ""; // the study that was open

function sideBySide(problems, picked, study, at) {
  const answers = element("div", { class: "columns", "aria-live": "polite" });
  const question = element("pre", { tabindex: "0", class: "question" });
  const names = new Map(study.entries.map((entry) => [entry.name, entry.short]));
  const count = problems.length;
  const show = () => {
    const problem = problems[at.index];
    question.textContent = problem.question + (problem.answer === null ? "" : "\n\nRight answer: " + problem.answer);
    const listed = problem.completions.filter((each) => picked.includes(each.name));
    answers.replaceChildren(...listed.map((each) => element("article", { class: "answer" },
      element("header", {}, element("h3", { title: each.name }, names.get(each.name) ?? each.name)),
      element("pre", { tabindex: "0" }, each.text),
      element("footer", {}, Object.entries(each.scores).map(([name, value]) =>
        element("span", { class: value === 1 ? "full" : value === 0 ? "none" : "" }, `${name} ${short(value)}`)),
      "tokens" in each.scores ? null : element("span", {}, `${each.tokens} tokens`), each.cut ? element("span", {}, "cut off") : null))));
  };
  if (at.index >= count) at.index = 0;
  const chosen = select(problems.map((problem, index) => [String(index), problem.title + ": " + problem.question.slice(0, 80)]), String(at.index),
    (index) => { at.index = Number(index); show(); });
  const step = (by) => { at.index = (at.index + by + count) % count; chosen.value = String(at.index); show(); };
  show();
  return element("div", {}, element("div", { class: "row" }, field("Problem", chosen), button("Previous", () => step(-1)), button("Next", () => step(1))), question, answers);
}

// What a study is about to do, does or did; and what can be done about it.
function state(place, study, job, total) {
  const scored = study?.entries.filter((entry) => Object.keys(entry.scores).length).length ?? 0;
  const runs = job?.state === "running";
  const row = element("div", { class: "state" });
  if (runs || (study && total !== null)) {
    const bar = element("progress", { max: total || 1, value: scored, "aria-label": "Models that are scored" });
    bar.value = scored;
    row.append(element("p", { role: "status" }, element("strong", {}, runs ? "Running" : "Stopped"), total ? `: ${scored} of ${total} models are scored` : ": being planned"), bar);
  }
  const act = element("div", { class: "row" });
  if (runs) act.append(button("Stop", () => stop(job.job)));
  else if (!study || total !== null) act.append(button(study ? "Resume" : "Run", () => start({ kind: "again", name: place }), "main"));
  const unwritten = study && total === null && !runs ? study.entries.filter((entry) => entry.chosen && !entry.folder) : [];
  if (unwritten.length) {
    const which = unwritten.every((entry) => entry.chosen === "all") ? "" : "chosen ";
    act.append(button(`Write the ${unwritten.length} ${which}merge${unwritten.length === 1 ? "" : "s"}`, () => start({ kind: "again", name: place, write: true })));
  }
  if (study && !runs) act.append(button("Draw the report", () => start({ kind: "report", name: place })));
  if (study?.report && !hasToken()) {
    act.append(element("a", { class: "button", href: "/studio/report?" + new URLSearchParams({ place }), target: "_blank", rel: "noopener" }, "Open the report"));
  } else if (study?.report) act.append(element("span", { class: "quiet" }, `Its report is ${place}/report.html.`));
  row.append(act);
  return row;
}

export function screen(library) {
  const picked = [];
  const at = { index: 0 };
  const standing = element("div", {});
  const shown = element("div", {});
  let current = null, timer = null, gone = false;

  const runFiles = () => library.sweeps.filter((path) => path.endsWith(".yml")).map((path) => path.slice(0, -4));
  const places = () => [...new Set([...library.studies, ...runFiles(), ...states().filter((job) => job.folder && job.kind === "sweep").map((job) => job.folder)])].sort();
  const jobOf = (place) => states().filter((job) => job.kind === "sweep" && job.folder === place).at(-1);

  let told = ""; // what the state's line shows, which is not drawn anew in vain
  const drawState = () => {
    const { place, study } = current;
    const job = jobOf(place);
    const now = JSON.stringify([place, job?.job, job?.state, study?.version, study?.report]);
    if (now === told) return;
    told = now;
    standing.replaceChildren(state(place, study, job, study?.total ?? null));
  };
  const look = async () => {
    clearTimeout(timer);
    const { place } = current;
    const mine = current;
    try {
      const study = await read("/studio/study", { place, seen: current.study?.version ?? "" });
      if (gone || mine !== current) return;
      if (study.entries) {
        const known = new Set(current.study?.entries.map((entry) => entry.name));
        const fresh = new Set(current.study ? study.entries.map((entry) => entry.name).filter((name) => !known.has(name)) : []);
        const first = !current.study;
        current.study = study;
        if (first || study.total === null) await readAnswers();
        if (gone || mine !== current) return;
        const names = Object.keys(study.directions);
        current.x ??= names[0];
        current.y ??= names[1] ?? names[0];
        if (first) picked.push(...study.entries.filter((entry) => isChosen(entry) || entry.role === "expert").map((entry) => entry.name).slice(0, 3));
        draw(fresh);
      } else if (!current.study) {
        shown.replaceChildren(jobOf(place)?.state === "running" ? element("p", { class: "quiet busy" }, "The first model is being scored …")
          : nothing("Not run yet", `${place}.yml describes this study. Run it, and its front grows here.`));
      }
    } catch (error) {
      if (gone || mine !== current) return;
      if (!current.study) shown.replaceChildren(element("p", { class: "problem" }, error.message));
    }
    drawState();
    if (jobOf(place)?.state === "running") timer = setTimeout(look, EVERY);
  };
  // Completions are many bytes: while a study runs they are read when a model is chosen that has none yet.
  const readAnswers = async () => {
    const { place, study } = current;
    if (!study.entries.some((entry) => entry.samples)) return;
    const mine = current;
    const { problems } = await read("/studio/answers", { place });
    mine.problems = problems;
  };
  const open = (place) => {
    last = place;
    picked.splice(0);
    at.index = 0;
    current = { place, study: null, problems: [] };
    told = "";
    standing.replaceChildren();
    shown.replaceChildren(element("p", { class: "quiet", role: "status" }, "Reading …"));
    look();
  };
  const toggle = (name) => {
    const index = picked.indexOf(name);
    if (index < 0) picked.push(name); else picked.splice(index, 1);
    draw();
    const mine = current;
    const known = mine.problems.some((problem) => problem.completions.some((each) => each.name === name));
    if (index < 0 && !known) readAnswers().then(() => { if (!gone && mine === current) drawReading(); }).catch((error) => say(error.message));
  };
  const figure = element("section", { class: "panel" });
  const table = element("div", {});
  const reading = element("div", {});
  const draw = (fresh) => {
    const { place, study } = current;
    const held = document.activeElement;
    const marked = figure.contains(held) ? held.dataset.name : null;
    const row = table.contains(held) && held.closest("tbody") ? held.closest("tr").rowIndex : -1;
    const names = Object.keys(study.directions).map((name) => [name, name]);
    figure.replaceChildren(
      element("div", { class: "row" },
        field("Across", select(names, current.x, (name) => { current.x = name; draw(); })),
        field("Up", select(names, current.y, (name) => { current.y = name; draw(); }))),
      element("div", { class: "picture" }, front(study, current.x, current.y, picked, toggle, fresh)), legend(study),
      element("p", { class: "note" }, "Click points, or press Enter on them, to read their completions below."));
    const { scrollTop } = table.firstElementChild ?? {};
    table.replaceChildren(scores(study, picked, toggle));
    if (scrollTop) table.firstElementChild.scrollTop = scrollTop;
    if (!fresh || !reading.contains(held)) drawReading();
    if (!figure.isConnected) {
      shown.replaceChildren(element("div", { class: "split wider" }, figure, table), reading, element("div", { class: "after" }, commandLine(`merganser report ${place}`)));
    }
    if (marked) figure.querySelector(`[data-name="${CSS.escape(marked)}"]`)?.focus();
    else if (row >= 0) table.querySelector("table").rows[row]?.querySelector("input")?.focus();
  };
  const drawReading = () => {
    const { place, study, problems } = current;
    const takes = study.entries.filter((entry) => picked.includes(entry.name)).map((entry) => button("Blend " + entry.short, async () => {
      try {
        await textChanged((await read("/studio/recipe", { place, name: entry.name })).text);
        location.hash = "#blend";
      } catch (error) { say(error.message); }
    }));
    reading.replaceChildren(element("h2", {}, "Completions side by side"),
      !problems.length ? element("p", { class: "quiet" }, "This study has no completions.")
        : picked.length ? sideBySide(problems, picked, study, at) : nothing("No model is chosen", "Choose points in the figure, or models in the table."),
      element("div", { class: "row after" }, takes));
  };

  const chosen = select([], "", (place) => { if (place) open(place); });
  const list = () => {
    const all = places();
    const running = states().find((job) => job.kind === "sweep" && job.state === "running")?.folder;
    const wanted = [last, running, library.studies[0], all[0]].find((place) => place && all.includes(place)) ?? "";
    const suffix = (path) => jobOf(path)?.state === "running" ? " (running)" : library.studies.includes(path) ? "" : " (not run yet)";
    chosen.replaceChildren(...all.map((path) => element("option", { value: path }, path + suffix(path))));
    chosen.value = wanted;
    picker.hidden = !all.length;
    if (!all.length) {
      standing.replaceChildren();
      shown.replaceChildren(nothing("No study yet", "A study scores merges at many weights, and shows which are best. Make one from the blend below."));
    } else if (current?.place !== wanted) open(wanted);
    else look();
  };
  const picker = element("div", { class: "which" }, field("Study", chosen));
  const began = (event) => { if (event.detail.kind === "sweep") { last = event.detail.folder; list(); } };
  ends.addEventListener("begin", began);
  ends.addEventListener("library", list);
  list();
  const { box, redraw } = sweepForm(library);
  const form = element("details", { class: "panel form" }, element("summary", {}, element("h2", {}, "New study: sweep the blend")), box);
  form.open = !library.studies.length;
  const unwatch = watch((what) => { if (what === "controls") redraw(); });
  const view = element("div", {}, element("h1", {}, "Study"), element("div", { class: "top" }, picker, standing), shown, form);
  const leave = () => {
    gone = true;
    clearTimeout(timer);
    unwatch();
    ends.removeEventListener("begin", began);
    ends.removeEventListener("library", list);
  };
  return { view, leave };
}
