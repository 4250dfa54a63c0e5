// A sweep of the blend: weights, methods and a parameter, with problems and scorers; its file beside it.
import { button, checkbox, chips, commandLine, debounce, element, field, nothing, number, say, select } from "./elements.js";
import { start } from "./jobs.js";
import { blend, method } from "./recipe.js";
import { send } from "./server.js";

const given = { name: "", step: 0.1, low: 0.1, high: 0.9, inside: false, methods: new Set(), over: "", values: "", tasks: [] };

const FIRST = { samples: 1, temperature: 0, max_tokens: 256, limit: null };

function newTask(library) {
  const set = library.sets[0];
  const place = library.problems[0] ?? set.name;
  return { ...FIRST, place, scorers: new Set(library.problems.length ? ["exact", "tokens"] : ["accuracy", "tokens"]) };
}

function request(library) {
  const tasks = given.tasks.map((task) => {
    const preset = task.place.startsWith("preset:") ? task.place.slice(7) : null;
    const own = { samples: task.samples, ...(task.limit ? { limit: task.limit } : {}), scorers: [...task.scorers].filter((name) => library.scorers.includes(name)) };
    const sampling = { temperature: task.temperature, max_tokens: task.max_tokens };
    return preset ? { preset, ...own } : { problems: task.place, ...own, ...sampling };
  });
  const values = given.values.split(/[\s,;]+/).filter(Boolean).map(Number);
  return {
    text: blend.text, step: given.step, low: given.low, high: given.high, inside: given.inside, tasks,
    methods: [...given.methods].length > 1 || !given.methods.has(blend.controls?.method) ? [...given.methods] : [],
    ...(given.over && values.length && values.every(Number.isFinite) ? { over: { parameter: given.over, values } } : {}),
  };
}

function taskFields(task, index, library, change, redraw) {
  const preset = task.place.startsWith("preset:") ? library.presets[task.place.slice(7)] : null;
  const options = [
    { label: "Below " + library.root, options: library.problems.map((path) => [path, path]) },
    { label: "Presets", options: Object.entries(library.presets).filter(([, each]) => each.problems.length > 1).map(([name, each]) => ["preset:" + name, `${name}: ${each.problems.join(", ")}`]) },
    { label: "Public sets, from the Hub's cache", options: library.sets.map((set) => [set.name, `${set.title}, ${set.size} problems`]) },
  ].filter((group) => group.options.length);
  const box = element("fieldset", { class: "panel" }, element("legend", {}, given.tasks.length > 1 ? `Task ${index + 1}` : "Problems and scorers"));
  const set = (key, whole = true) => (value) => { task[key] = whole ? Math.round(value) : value; change(); };
  const limit = element("input", { type: "number", min: 1, placeholder: "all", onchange: () => { task.limit = Number(limit.value) || null; change(); } });
  limit.value = task.limit ?? "";
  box.append(element("div", { class: "row" },
    field("Problems", select(options, task.place, (place) => {
      task.place = place;
      if (place.startsWith("preset:")) task.scorers = new Set(library.presets[place.slice(7)].scorers);
      redraw();
    })),
    field("At most", limit, true)));
  const sampling = [field("Samples", number(task.samples, { min: 1, max: 64 }, set("samples")), true)];
  if (!preset) {
    sampling.push(field("Temperature", number(task.temperature, { min: 0, max: 5, step: 0.1 }, set("temperature", false)), true),
      field("Tokens at most", number(task.max_tokens, { min: 1 }, set("max_tokens")), true));
  } else {
    const { temperature, max_tokens: most } = preset.settings;
    box.append(element("p", { class: "note" }, `The preset's settings: temperature ${temperature}, at most ${most} tokens.`));
  }
  if (given.tasks.length > 1) {
    const remove = button("Remove", () => { given.tasks.splice(index, 1); redraw(); }, "plain");
    remove.setAttribute("aria-label", `Remove task ${index + 1}`);
    sampling.push(remove);
  }
  box.append(element("div", { class: "row" }, sampling), element("p", { class: "note" }, "Scorers"),
    chips("Scorers of task " + (index + 1), library.scorers.map((name) => [name, name]), task.scorers, change));
  return box;
}

// The form; it is drawn anew when the blend changes.
export function sweepForm(library) {
  const box = element("div", {});
  const summary = element("p", { class: "summary", role: "status" });
  const file = element("pre", { tabindex: "0", role: "group", "aria-label": "The study's file" });
  const problem = element("p", { class: "problem", role: "status" });
  const equal = element("div", {});
  const name = element("input", { type: "text", placeholder: "my-study", autocomplete: "off", value: given.name, oninput: () => { given.name = name.value.trim(); command(); } });
  const command = () => { const chosen = given.name || "my-study"; equal.replaceChildren(commandLine(`merganser plan ${chosen}.yml`), commandLine(`merganser sweep ${chosen}.yml ${chosen} --no-write`)); };
  let asked = 0;
  const preview = debounce(async () => {
    const turn = ++asked;
    try {
      const made = await send("/studio/sweep", request(library));
      if (turn !== asked) return;
      if (made.error) throw new Error(made.error);
      problem.textContent = "";
      file.textContent = made.text;
      const models = `${made.points} merge${made.points === 1 ? "" : "s"} and ${made.models} model${made.models === 1 ? "" : "s"} to compare with`;
      const problems = made.problems === null ? "" : ` · ${made.problems.toLocaleString("en")} problem${made.problems === 1 ? "" : "s"}`;
      const completions = made.completions === null ? "" : ` · ${made.completions.toLocaleString("en")} completions`;
      summary.textContent = models + problems + completions;
      go.disabled = false;
    } catch (error) {
      if (turn !== asked) return;
      problem.textContent = error.message;
      summary.textContent = "";
      go.disabled = true;
    }
  }, 200);
  const go = button("Run the study", () => {
    if (!given.name) { name.focus(); say("Give the study a name first."); return; }
    start({ kind: "sweep", name: given.name, ...request(library) });
  }, "main");
  const redraw = () => {
    const { controls } = blend;
    const count = (controls?.models.length ?? 0) + (controls?.method === "slerp" && controls.base ? 1 : 0);
    if (count < 2) {
      box.replaceChildren(nothing("Nothing to sweep yet", controls ? "A sweep needs a blend of two models or more." : "The blend's recipe is text only; write a sweep: block into it.",
        element("p", {}, element("a", { href: "#blend" }, "Go to Blend"))));
      return;
    }
    if (!given.tasks.length) given.tasks.push(newTask(library));
    const two = count === 2;
    const sweepable = [...blend.methods.values()].filter((each) => each.sweep[two ? 2 : 3] && (each.base !== "required" || controls.base || each.sweep[2] === "t"));
    given.methods = new Set([...given.methods].filter((chosen) => sweepable.some((each) => each.name === chosen)));
    if (!given.methods.size) given.methods.add(controls.method);
    const set = (key) => (value) => { given[key] = value; preview(); };
    const weights = element("fieldset", { class: "panel" }, element("legend", {}, "Weights"),
      element("p", { class: "note" }, two ? "The first model's weight goes from one end to the other; the second has what is left of 1." : "All weights of the models that add up to 1."),
      element("div", { class: "row" },
        two ? field("From", number(given.low, { step: 0.05 }, set("low")), true) : null,
        two ? field("To", number(given.high, { step: 0.05 }, set("high")), true) : null,
        field("Step", number(given.step, { min: 0.01, max: 0.5, step: 0.01 }, set("step")), true),
        two ? null : checkbox("Each model above 0", given.inside, set("inside"))));
    const numeric = (method()?.parameters ?? []).filter((each) => each.type !== "bool" && each.type !== "str" && each.name !== "weight");
    if (!numeric.some((each) => each.name === given.over)) given.over = "";
    const values = element("input", { type: "text", placeholder: "0.2, 0.5, 0.8", value: given.values, oninput: () => { given.values = values.value; preview(); } });
    const over = numeric.length ? element("div", { class: "row" },
      field("Also vary", select([["", "nothing else"], ...numeric.map((each) => [each.name, each.name])], given.over, (chosen) => { given.over = chosen; redraw(); })),
      given.over ? field("Its values", values) : null) : null;
    const ways = element("fieldset", { class: "panel" }, element("legend", {}, "Methods"),
      chips("Methods", sweepable.map((each) => [each.name, each.title, each.summary]), given.methods, preview), over,
      controls.base ? null : element("p", { class: "note" }, "Methods that need a base are listed once the blend has one."));
    const add = button("Add a task", () => { given.tasks.push(newTask(library)); redraw(); });
    box.replaceChildren(element("div", { class: "split" },
      element("div", {}, weights, ways),
      element("div", {}, given.tasks.map((task, index) => taskFields(task, index, library, preview, redraw)), element("div", { class: "row" }, add))),
    problem, summary,
    element("details", { class: "more" }, element("summary", {}, "The study's file"), file),
    element("div", { class: "row" }, field("Name, below the studio's folder", name), go), equal);
    command();
    preview();
  };
  redraw();
  return { box, redraw };
}
