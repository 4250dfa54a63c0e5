// Blend: choose models, a method and its parameters; the recipe beside them.
import { button, bytes, checkbox, commandLine, debounce, drawn, element, facts, field, fresh, number, say, select, short, shortName } from "./elements.js";
import { start } from "./jobs.js";
import { blend, controlsChanged, method, round, setParameter, textChanged, watch } from "./recipe.js";
import { read, send } from "./server.js";

const HANDLES = 5;
let hold = true; // whether weights add up to 1

// A first blend: the base, if one is there, and the first two models that are not it.
export function begin(library) {
  const base = library.models.find((path) => /(^|[/_-])base/.test(shortName(path)));
  const experts = library.models.filter((path) => path !== base);
  const chosen = (experts.length > 1 ? experts : library.models).slice(0, 2);
  if (!chosen.length) return;
  const share = round(1 / chosen.length);
  blend.controls = {
    method: "linear", base: null, parameters: {}, dtype: null, rest: {},
    models: chosen.map((model) => ({ model, parameters: { weight: share } })),
  };
  controlsChanged();
}

function range(parameter) {
  const [low, high] = parameter.range ?? [0, 1];
  const whole = parameter.type === "int";
  if (parameter.name === "weight") return { min: Math.max(low, 0), max: Math.min(high, 1), step: 0.01 };
  return { min: low, max: high, step: whole ? 1 : high - low > 10 ? 0.1 : high - low <= 0.01 ? (high - low) / 100 : 0.01 };
}

// A number's slider, with a field for the values beyond it.
function slider(label, value, limits, change, more = null) {
  const name = fresh("slider");
  const line = element("input", { type: "range", id: name, ...limits, value: String(value) });
  const [low, high] = [Math.min(limits.min, value), Math.max(limits.max, value)];
  line.min = low; line.max = high; line.value = value;
  const exact = number(value, { step: "any", "aria-label": label + ", exact" }, (given) => { line.value = given; change(given); });
  line.addEventListener("input", () => { exact.value = line.value; change(Number(line.value)); });
  const row = element("div", { class: "slider" }, element("label", { for: name }, label), line, exact, more);
  row.show = (given) => {
    if (document.activeElement !== line) line.value = given;
    if (document.activeElement !== exact) exact.value = given;
  };
  return row;
}

// A gradient over the layers: five handles, from the first layer to the last.
function curve(label, values, limits, change, more) {
  const line = drawn("polyline");
  const picture = drawn("svg", { viewBox: "0 0 100 100", preserveAspectRatio: "none", "aria-hidden": "true" }, line);
  const draw = () => {
    const points = values.map((value, i) => {
      const x = (100 * (i + 0.5)) / values.length;
      return x + "," + (100 - (100 * (value - limits.min)) / (limits.max - limits.min || 1));
    });
    line.setAttribute("points", points.join(" "));
  };
  const handles = values.map((value, i) => {
    const shown = element("output", {}, short(value));
    const handle = element("input", {
      type: "range", ...limits, value: String(value), "aria-label": `${label}, depth ${i + 1} of ${values.length}`,
      oninput: () => { values[i] = Number(handle.value); shown.textContent = short(values[i]); draw(); change([...values]); },
    });
    return element("label", {}, handle, shown);
  });
  draw();
  const box = element("div", { class: "curve", role: "group", "aria-label": label + " over the layers" }, picture, ...handles);
  box.style.gridTemplateColumns = `repeat(${values.length}, 1fr)`;
  const row = element("div", { class: "slider" }, element("span", {}, label), box, more);
  row.show = () => {};
  return row;
}

function gradient(value, limits) {
  return Array.from({ length: HANDLES }, () => (typeof value === "number" ? value : limits.min));
}

// The control of a parameter: of one model, or of all.
function control(parameter, label, value, set, change) {
  const given = value ?? parameter.default;
  if (parameter.type === "bool" && !parameter.choices.length) {
    return element("div", { class: "slider" }, checkbox(label, Boolean(given), set));
  }
  if (parameter.choices.length || parameter.type === "str") {
    const words = parameter.type === "bool" ? ["false", "true", ...parameter.choices] : parameter.choices;
    const options = words.map((word) => [word, word]);
    if (parameter.default === null) options.unshift(["", "–"]);
    return field(label, select(options, String(given ?? ""), (word) =>
      set(word === "" ? undefined : word === "true" ? true : word === "false" ? false : word)));
  }
  const limits = range(parameter);
  if (Array.isArray(given)) {
    const back = button("Even", () => change(given[0]), "plain");
    back.setAttribute("aria-label", "Even: one value for all layers, " + label);
    return curve(label, [...given], limits, set, back);
  }
  const bend = parameter.type === "float" ? button("By layer", () => change(gradient(given, limits)), "plain") : null;
  bend?.setAttribute("aria-label", "By layer: a curve for " + label);
  return slider(label, given ?? limits.min, limits, set, bend);
}

// The sliders of the models' weights; also on the screen Talk.
export function weights() {
  const box = element("div", {});
  const rows = [];
  const parameter = method()?.parameters.find((each) => each.per_model && each.type === "float");
  if (!parameter) return { box, show: () => {} };
  const others = () => blend.controls.models.every((each) => typeof each.parameters[parameter.name] === "number");
  blend.controls.models.forEach((each, index) => {
    const row = control(parameter, shortName(each.model), each.parameters[parameter.name],
      (value) => setParameter(index, parameter.name, value, hold && parameter.name === "weight" && others()),
      (value) => { each.parameters[parameter.name] = value; controlsChanged(); renderAll(); });
    rows.push(row);
    box.append(row);
  });
  if (parameter.name === "weight" && blend.controls.models.length > 1) {
    box.append(checkbox("Weights add up to 1", hold, (on) => { hold = on; }));
  }
  return { box, show: () => rows.forEach((row, index) => row.show?.(blend.controls.models[index]?.parameters[parameter.name])) };
}

let renderAll = () => {};

function controlsPanel(library, redraw) {
  const panel = element("div", {});
  const { controls } = blend;
  if (!controls) {
    panel.append(element("p", { class: "panel" }, "The controls cannot show this recipe: it has slices, modules, filters, or an unknown method. Edit its text."));
    return { panel, show: () => {} };
  }
  const found = method();
  const change = () => { controlsChanged(); redraw(); };
  const known = [...library.models, ...controls.models.map((each) => each.model)];
  const options = [...new Set(known)].map((path) => [path, path]);
  const head = element("div", { class: "row" },
    field("Method", select([...blend.methods.values()].map((each) => [each.name, each.title]), controls.method, (name) => {
      controls.method = name;
      const next = method();
      const keep = (given, per) => Object.fromEntries(Object.entries(given).filter(([key]) =>
        next.parameters.some((each) => each.name === key && (per ? each.per_model : true))));
      controls.models.forEach((each) => { each.parameters = keep(each.parameters, true); });
      controls.parameters = keep(controls.parameters, false);
      for (const each of next.parameters.filter((p) => p.required)) {
        const value = each.range ? round((Math.max(each.range[0], 0) + Math.min(each.range[1], 1)) / 2) : each.choices[0] ?? 0;
        if (each.per_model) controls.models.forEach((model) => { model.parameters[each.name] ??= round(1 / controls.models.length); });
        else controls.parameters[each.name] ??= value;
      }
      if (next.base === "required" && !controls.base) controls.base = library.models.find((path) => /base/.test(path)) ?? library.models[0];
      change();
    })),
    field("Base", select([["", "none"], ...options], controls.base ?? "", (path) => { controls.base = path || null; change(); })),
    field("Result in", select(["", "bfloat16", "float16", "float32"].map((name) => [name, name || "as the models"]), controls.dtype ?? "", (name) => { controls.dtype = name || null; change(); }), true));
  const about = element("p", { class: "note" }, found.summary + (found.paper ? ` (${found.paper})` : ""));
  const models = element("fieldset", { class: "panel" }, element("legend", {}, "Models"));
  const least = found.models[0], most = found.models[1];
  controls.models.forEach((each, index) => {
    const remove = button("Remove", () => { controls.models.splice(index, 1); change(); }, "plain");
    remove.setAttribute("aria-label", "Remove " + shortName(each.model));
    remove.disabled = controls.models.length <= 1;
    const chosen = select(options, each.model, (path) => { each.model = path; change(); });
    chosen.setAttribute("aria-label", "Model " + (index + 1));
    models.append(element("div", { class: "row" }, element("div", { class: "field" }, chosen), remove));
  });
  const add = button("Add a model", () => {
    const used = new Set(controls.models.map((each) => each.model));
    const model = library.models.find((path) => !used.has(path)) ?? library.models[0];
    const weight = found.parameters.some((each) => each.per_model && each.name === "weight") ? { weight: hold ? 0 : 0.5 } : {};
    controls.models.push({ model, parameters: weight });
    change();
  });
  add.disabled = most !== null && controls.models.length >= most;
  models.append(add);
  if (controls.models.length < least || (most !== null && controls.models.length > most)) {
    models.append(element("p", { class: "problem" }, `${found.title} merges ${least === most ? least : most === null ? least + " or more" : `${least} to ${most}`} models`));
  }
  panel.append(head, about, models);
  const first = found.parameters.find((each) => each.per_model && each.type === "float");
  const sliders = weights();
  const perModel = found.parameters.filter((each) => each.per_model);
  for (const parameter of perModel) {
    const group = element("fieldset", { class: "panel" }, element("legend", {}, parameter.name));
    if (parameter === first) group.append(sliders.box);
    else {
      controls.models.forEach((each) => group.append(control(parameter, shortName(each.model), each.parameters[parameter.name],
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
    text.rows = Math.max(10, Math.min(30, count + 1));
    lines.scrollTop = text.scrollTop;
  };
  text.addEventListener("scroll", () => { lines.scrollTop = text.scrollTop; });
  let typing = false; // whether there is text that is not read yet
  const later = debounce(() => { typing = false; textChanged(text.value); }, 300);
  text.addEventListener("input", () => { typing = true; number(); later(); });
  const show = () => {
    if (text.value !== blend.text && !typing) text.value = blend.text;
    const { error } = blend;
    problem.replaceChildren();
    if (error) {
      problem.append(error.line ? `Line ${error.line}: ${error.message}` : error.message);
      if (error.line) {
        problem.append(" ", button("Go there", () => {
          const all = text.value.split("\n");
          const begin = all.slice(0, error.line - 1).join("\n").length + (error.line > 1 ? 1 : 0);
          text.focus();
          text.setSelectionRange(begin, begin + (all[error.line - 1] ?? "").length);
        }, "plain"));
      }
    }
    text.setAttribute("aria-invalid", String(Boolean(error)));
    number();
  };
  const box = element("div", {}, element("div", { class: "code" }, lines, text), problem);
  return { box, show };
}

function planFacts(effective) {
  const { plan } = blend;
  if (!plan) return element("p", { class: "quiet" }, blend.error ? "No plan: see the recipe's problem." : "Planning …");
  const box = element("div", {}, facts([
    ["Tensors", `${plan.tensors.toLocaleString("en")}, ${plan.parameters.toLocaleString("en")} parameters in ${plan.dtype}`],
    ["Reads", bytes(plan.input_bytes)],
    ["Writes", `${bytes(plan.output_bytes)}, ${plan.files} file${plan.files === 1 ? "" : "s"}`],
    ["Live in memory", `${bytes(plan.output_bytes)} for the blend, and a few tiles`],
    ["Digest", plan.digest.slice(0, 12)],
    ["Effective weights", effective],
  ]));
  for (const warning of plan.warnings) box.append(element("p", { class: "warning" }, warning));
  return box;
}

export function screen(library) {
  const left = element("div", {});
  const { box, show } = editor();
  const planned = element("div", { "aria-live": "polite" });
  let sliders = { show: () => {} };
  const redraw = () => {
    const held = document.activeElement?.closest?.("[data-controls]") ? document.activeElement.getAttribute("aria-label") : null;
    const made = controlsPanel(library, redraw);
    sliders = made;
    left.replaceChildren(made.panel);
    if (held) left.querySelector(`[aria-label="${CSS.escape(held)}"]`)?.focus();
  };
  left.dataset.controls = "";
  const measured = async () => {
    const name = blend.model;
    const found = name ? await read("/v1/models/" + encodeURIComponent(name)).catch(() => null) : null;
    if (name !== blend.model) return;
    const pairs = Object.entries(found?.effective ?? {});
    const text = pairs.length ? pairs.map(([model, weight]) => `${shortName(model)} ${short(weight, 4)}`).join(" · ") : "measured once it has answered";
    planned.replaceChildren(planFacts(text));
  };
  const name = element("input", { type: "text", value: "", placeholder: "my-blend", pattern: "[A-Za-z0-9_][A-Za-z0-9._+=/-]*" });
  const ran = element("div", { role: "status" });
  const commands = () => {
    const chosen = name.value.trim() || "my-blend";
    ran.replaceChildren(commandLine(`merganser merge ${chosen}.yml ${chosen}`));
  };
  name.addEventListener("input", commands);
  commands();
  const attempt = async (action) => {
    if (!name.value.trim()) { name.focus(); say("Give it a name first."); return; }
    try { await action(name.value.trim()); } catch (error) { say(error.message); }
  };
  const saveIt = button("Save recipe", () => attempt(async (chosen) => {
    const found = await send("/studio/save", { text: blend.text, name: chosen });
    ran.replaceChildren(element("p", { class: "note" }, `Saved as ${found.saved}.`), commandLine(found.command));
  }));
  const writeIt = button("Write", () => attempt((chosen) => start({ kind: "merge", text: blend.text, name: chosen })), "main");
  const open = select([["", "choose …"], ...library.recipes.map((path) => [path, path])], "", async (path) => {
    if (!path) return;
    try {
      const { text } = await read("/studio/file", { place: path });
      await textChanged(text);
    } catch (error) { say(error.message); }
  });
  const stop = watch((what) => {
    if (what === "text") { sliders.show(); planned.replaceChildren(planFacts("…")); }
    if (what === "controls") redraw();
    if (what === "plan") measured();
    show();
  });
  renderAll = redraw;
  redraw();
  show();
  measured();
  const view = element("div", {},
    element("h1", {}, "Blend"),
    element("div", { class: "split" }, left, element("div", {},
      element("section", { class: "panel" }, element("h2", {}, element("label", { for: "recipe" }, "Recipe")),
        library.recipes.length ? element("div", { class: "row" }, field("Open", open)) : null, box),
      element("section", { class: "panel" }, element("h2", {}, "Plan"), planned),
      element("section", { class: "panel" }, element("h2", {}, "Keep it"),
        element("div", { class: "row" }, field("Name, below the studio's folder", name), saveIt, writeIt), ran))));
  return { view, leave: stop };
}
