// Blend: choose models, a method and its parameters; the recipe and the plan beside them.
import { button, bytes, commandLine, debounce, duration, element, field, nothing, say, select, short, shortName, shortNames, tiles } from "./elements.js";
import { control, holdsSum, onRedraw, weights } from "./controls.js";
import { hubPanel, modelOptions } from "./hub.js";
import { start } from "./jobs.js";
import { blend, controlsChanged, live, method, round, textChanged, watch } from "./recipe.js";
import { read, send } from "./server.js";
export { weights };

// A first blend: the base, if one is there, and the first two models that are not it.
export function begin(library) {
  const own = library.models.filter((path) => !library.merged.includes(path));
  const all = [...(own.length > 1 ? own : library.models), ...library.cached];
  const base = all.find((path) => /(^|[/_-])base/.test(shortName(path)));
  const experts = all.filter((path) => path !== base);
  const chosen = (experts.length > 1 ? experts : all).slice(0, 2);
  if (!chosen.length) return;
  const share = round(1 / chosen.length);
  blend.controls = {
    method: "linear", base: null, parameters: {}, dtype: null, rest: {},
    models: chosen.map((model) => ({ model, parameters: { weight: share } })),
  };
  controlsChanged();
}

const guessBase = (library) => library.models.find((path) => /base/.test(path)) ?? library.models[0] ?? library.cached[0];

// Parameters of another method: those that both have stay, and required ones get a value.
function changeMethod(name, library) {
  const { controls } = blend;
  controls.method = name;
  const next = method();
  const keep = (given, per) => Object.fromEntries(Object.entries(given).filter(([key]) =>
    next.parameters.some((each) => each.name === key && (per ? each.per_model : true))));
  controls.models.forEach((each) => { each.parameters = keep(each.parameters, true); });
  controls.parameters = keep(controls.parameters, false);
  for (const each of next.parameters.filter((parameter) => parameter.required)) {
    const value = each.range ? round((Math.max(each.range[0], 0) + Math.min(each.range[1], 1)) / 2) : each.choices[0] ?? 0;
    if (each.per_model) controls.models.forEach((model) => { model.parameters[each.name] ??= round(1 / controls.models.length); });
    else controls.parameters[each.name] ??= value;
  }
  if (next.base === "required" && !controls.base) controls.base = guessBase(library);
  if (next.base === "none") controls.base = null;
}

function modelList(library, change, insert) {
  const { controls } = blend;
  const found = method();
  const [least, most] = found.models;
  const panel = element("fieldset", { class: "panel" }, element("legend", {}, "Models"));
  const options = modelOptions(library, [...controls.models.map((each) => each.model), controls.base]);
  controls.models.forEach((each, index) => {
    const chosen = select(options, each.model, (path) => { each.model = path; change(); });
    chosen.setAttribute("aria-label", "Model " + (index + 1));
    const remove = button("Remove", () => { controls.models.splice(index, 1); change(); }, "plain");
    remove.setAttribute("aria-label", "Remove " + shortName(each.model));
    remove.disabled = controls.models.length <= 1;
    panel.append(element("div", { class: "entry" }, chosen, remove));
  });
  const add = button("Add a model", () => {
    const used = new Set(controls.models.map((each) => each.model));
    insert([...library.models, ...library.cached].find((path) => !used.has(path)) ?? library.models[0]);
  });
  add.disabled = most !== null && controls.models.length >= most;
  panel.append(element("div", { class: "row" }, add));
  if (controls.models.length < least || (most !== null && controls.models.length > most)) {
    const range = least === most ? least : most === null ? least + " or more" : `${least} to ${most}`;
    panel.append(element("p", { class: "problem" }, `${found.title} merges ${range} model${range === 1 ? "" : "s"}${found.base === "required" ? " with a base" : ""}.`));
  }
  panel.append(hubPanel(library, insert));
  return panel;
}

function controlsPanel(library, redraw) {
  const panel = element("div", {});
  const { controls } = blend;
  if (!controls) {
    panel.append(blend.error ? nothing("The recipe has a problem", "The controls come back once its text is mended.")
      : nothing("This recipe is text only", "It has slices, modules or filters. Edit its text, or open another recipe."));
    return { panel, show: () => {} };
  }
  const found = method();
  const change = () => { controlsChanged(); redraw(); };
  const insert = (model) => {
    const weight = found.parameters.some((each) => each.per_model && each.name === "weight") ? { weight: holdsSum() ? 0 : 0.5 } : {};
    controls.models.push({ model, parameters: weight });
    change();
  };
  const options = modelOptions(library, [controls.base], found.base === "required" ? null : "none");
  const base = found.base === "none" ? null : field("Base", select(options, controls.base ?? "", (path) => { controls.base = path || null; change(); }));
  const paper = found.paper ? ` (${/^\d/.test(found.paper) ? "arXiv:" + found.paper : found.paper})` : "";
  panel.append(element("section", { class: "panel" },
    element("div", { class: "row" },
      field("Method", select([...blend.methods.values()].map((each) => [each.name, each.title]), controls.method, (name) => { changeMethod(name, library); change(); })),
      base,
      field("Result in", select(["", "bfloat16", "float16", "float32"].map((name) => [name, name || "as stored"]), controls.dtype ?? "", (name) => { controls.dtype = name || null; change(); }), true)),
    element("p", { class: "note" }, found.summary + paper)), modelList(library, change, insert));
  const first = found.parameters.find((each) => each.per_model && each.type === "float");
  const sliders = weights();
  for (const parameter of found.parameters.filter((each) => each.per_model)) {
    const group = element("fieldset", { class: "panel" }, element("legend", {}, parameter.name === "weight" ? "Weights" : parameter.name));
    if (parameter === first) group.append(sliders.box);
    else {
      const names = shortNames(controls.models.map((each) => each.model));
      controls.models.forEach((each, index) => group.append(control(parameter, names[index], each.parameters[parameter.name],
        (value) => { each.parameters[parameter.name] = value; controlsChanged(); },
        (value) => { each.parameters[parameter.name] = value; change(); })));
    }
    panel.append(group);
  }
  const shared = found.parameters.filter((each) => !each.per_model);
  if (shared.length) {
    const group = element("fieldset", { class: "panel" }, element("legend", {}, "Parameters of " + found.title));
    for (const parameter of shared) {
      const set = (value) => {
        if (value === undefined) delete controls.parameters[parameter.name];
        else controls.parameters[parameter.name] = value;
        controlsChanged();
      };
      group.append(control(parameter, parameter.name, controls.parameters[parameter.name], set, (value) => { set(value); redraw(); }));
    }
    panel.append(group);
  }
  return { panel, show: sliders.show };
}

// The text with its lines' numbers; the line of an error is marked.
function editor() {
  const lines = element("ol", { "aria-hidden": "true" });
  const text = element("textarea", { id: "recipe", spellcheck: "false", autocapitalize: "off", wrap: "off", "aria-describedby": "recipe-problem" });
  const problem = element("p", { class: "problem", id: "recipe-problem", role: "status" });
  const number = () => {
    const count = text.value.split("\n").length;
    lines.replaceChildren(...Array.from({ length: count }, (_, i) =>
      element("li", { class: blend.error?.line === i + 1 ? "wrong" : "" }, String(i + 1))));
    text.rows = Math.max(8, Math.min(30, count + 1));
    lines.scrollTop = text.scrollTop;
  };
  text.addEventListener("scroll", () => { lines.scrollTop = text.scrollTop; });
  let typing = false; // whether there is text that is not read yet
  const later = debounce(() => { typing = false; textChanged(text.value); }, 300);
  text.addEventListener("input", () => { typing = true; number(); later(); });
  const goTo = (line) => {
    const all = text.value.split("\n");
    const begin = all.slice(0, line - 1).join("\n").length + (line > 1 ? 1 : 0);
    text.focus();
    text.setSelectionRange(begin, begin + (all[line - 1] ?? "").length);
  };
  const show = () => {
    if (text.value !== blend.text && !typing) text.value = blend.text;
    const { error } = blend;
    problem.replaceChildren();
    if (error) {
      problem.append(error.line ? `Line ${error.line}: ${error.message}` : error.message);
      if (error.line) problem.append(" ", button("Go there", () => goTo(error.line), "plain"));
    }
    text.setAttribute("aria-invalid", String(Boolean(error)));
    number();
  };
  return { box: element("div", {}, element("div", { class: "code" }, lines, text), problem), show };
}

// Weights that were asked for and that rounding leaves, measured once the blend is in memory.
function effective(pairs, measure) {
  if (!pairs.length) {
    return element("div", { class: "row" }, element("span", { class: "quiet" }, "Effective weights are measured once the blend is in memory."), button("Blend now", measure));
  }
  return element("table", { class: "bars" }, element("caption", {}, "Effective weights: what rounding leaves of each model"),
    element("tbody", {}, pairs.map(([model, weight], index) => {
      const bar = element("span", { class: "bar" });
      bar.style.width = `${Math.max(0, Math.min(1, weight)) * 100}%`;
      return element("tr", {}, element("th", { scope: "row", title: model }, shortNames(pairs.map(([each]) => each))[index]), element("td", {}, bar), element("td", { class: "number" }, short(weight, 4)));
    })));
}

function planFacts(pairs, measure) {
  const { plan } = blend;
  if (!plan) {
    return blend.error ? nothing("No plan", "The recipe has a problem; its text says where.") : element("p", { class: "quiet busy" }, "Planning …");
  }
  const { estimate } = plan;
  const box = element("div", {}, tiles([
    ["Tensors", plan.tensors.toLocaleString("en"), `${plan.parameters.toLocaleString("en")} parameters`],
    ["Stored in", plan.dtype, `plan ${plan.digest.slice(0, 8)}`],
    ["Reads", bytes(plan.input_bytes), "each byte once"],
    ["Writes", bytes(plan.output_bytes), `${plan.files} file${plan.files === 1 ? "" : "s"}`],
    ["Memory", bytes(plan.memory), "to write it"],
    estimate ? ["Time, estimated", duration(estimate.seconds), `${bytes(estimate.rate)}/s, from ${estimate.source}`] : ["Time", "–", "too little to measure by"],
  ]), effective(pairs, measure));
  for (const warning of plan.warnings) box.append(element("p", { class: "warning" }, warning));
  return box;
}

function keepPanel() {
  const name = element("input", { type: "text", placeholder: "my-blend", autocomplete: "off" });
  const said = element("div", { role: "status" });
  const commands = () => {
    const chosen = name.value.trim() || "my-blend";
    said.replaceChildren(commandLine(`merganser plan ${chosen}.yml`), commandLine(`merganser merge ${chosen}.yml ${chosen}`));
  };
  name.addEventListener("input", commands);
  commands();
  const attempt = async (action) => {
    if (!name.value.trim()) { name.focus(); say("Give it a name first."); return; }
    try { await action(name.value.trim()); } catch (error) { say(error.message); }
  };
  const saveIt = button("Save recipe", () => attempt(async (chosen) => {
    const found = await send("/studio/save", { text: blend.text, name: chosen });
    said.replaceChildren(element("p", { class: "note" }, `Saved as ${found.saved}.`), commandLine(found.command));
  }));
  const writeIt = button("Write", () => attempt((chosen) => start({ kind: "merge", text: blend.text, name: chosen })), "main");
  return element("section", { class: "panel" }, element("h2", {}, "Keep it"),
    element("div", { class: "row" }, field("Name, below the studio's folder", name), saveIt, writeIt), said);
}

export function screen(library) {
  const left = element("div", {});
  const { box, show } = editor();
  const planned = element("div", { "aria-live": "polite" });
  let sliders = { show: () => {} };
  const redraw = () => {
    const held = left.contains(document.activeElement) ? document.activeElement.getAttribute("aria-label") : null;
    const made = controlsPanel(library, redraw);
    sliders = made;
    left.replaceChildren(made.panel);
    if (held) left.querySelector(`[aria-label="${CSS.escape(held)}"]`)?.focus();
  };
  const measured = async () => {
    const name = blend.model;
    const found = name ? await read("/v1/models/" + encodeURIComponent(name)).catch(() => null) : null;
    if (name === blend.model) planned.replaceChildren(planFacts(Object.entries(found?.effective ?? {}), measure));
  };
  const measure = async () => {
    try {
      await send("/v1/completions", { model: await live(), prompt: "1", max_tokens: 1 });
      await measured();
    } catch (error) { say(error.message); }
  };
  const recipes = library.recipes.filter((path) => !library.sweeps.includes(path));
  const open = select([["", "choose …"], ...recipes.map((path) => [path, path])], "", async (path) => {
    if (!path) return;
    try { await textChanged((await read("/studio/file", { place: path })).text); } catch (error) { say(error.message); }
  });
  const stop = watch((what) => {
    if (what === "text") { sliders.show(); planned.classList.add("stale"); }
    if (what === "controls") redraw();
    if (what === "plan") { planned.classList.remove("stale"); measured(); }
    show();
  });
  onRedraw(redraw);
  redraw();
  show();
  measured();
  const opened = recipes.length ? field("Open", open) : null;
  const view = element("div", {},
    element("h1", {}, "Blend"),
    element("div", { class: "split" }, left, element("div", { class: "beside" },
      element("section", { class: "panel" }, element("div", { class: "head" }, element("h2", {}, element("label", { for: "recipe" }, "Recipe")), opened), box),
      element("section", { class: "panel" }, element("h2", {}, "Plan"), planned),
      keepPanel())));
  return { view, leave: stop };
}
