// Controls of a method's parameters: sliders, choices, and curves over the layers.
import { button, checkbox, drawn, element, field, fresh, number, select, short, shortNames } from "./elements.js";
import { blend, controlsChanged, method, round, setParameter } from "./recipe.js";

const POINTS = 5; // of a new curve
const MOST_POINTS = 12;
const SHAPES = {
  "ramp up": (x) => x, "ramp down": (x) => 1 - x, arch: (x) => 1 - Math.abs(2 * x - 1), valley: (x) => Math.abs(2 * x - 1),
};

let hold = true; // whether weights add up to 1
let redraw = () => {};
export function onRedraw(action) { redraw = action; }
export function holdsSum() { return hold; }

function limitsOf(parameter) {
  const [low, high] = parameter.range ?? [0, 1];
  if (parameter.name === "weight") return { min: Math.max(low, 0), max: Math.min(high, 1), step: 0.01 };
  const span = high - low;
  return { min: low, max: high, step: parameter.type === "int" ? 1 : span > 10 ? 0.1 : span <= 0.01 ? span / 100 : 0.01 };
}

// A number's slider, with a field for the values beyond it.
function slider(label, value, limits, change, more = null) {
  const name = fresh("slider");
  const line = element("input", { type: "range", id: name, ...limits, value: String(value) });
  line.min = Math.min(limits.min, value);
  line.max = Math.max(limits.max, value);
  line.value = value;
  const exact = number(value, { step: "any", "aria-label": label + ", exact" }, (given) => { line.value = given; change(given); });
  line.addEventListener("input", () => { exact.value = line.value; change(Number(line.value)); });
  const row = element("div", { class: "slider" }, element("label", { for: name, title: label }, label), line, exact, more);
  row.show = (given) => {
    if (typeof given !== "number") return;
    if (document.activeElement !== line) line.value = given;
    if (document.activeElement !== exact) exact.value = given;
  };
  return row;
}

// A gradient over the layers. Each point is a slider: arrows move it, left and right go to its neighbours.
const WIDE = 520, HIGH = 130, EDGE = 12;
function curve(label, values, limits, change, even) {
  const picture = drawn("svg", { viewBox: `0 0 ${WIDE} ${HIGH}`, role: "group", "aria-label": label + " over the layers" });
  const caption = element("p", { class: "note caption", "aria-hidden": "true" });
  const box = element("div", { class: "curve" });
  const span = limits.max - limits.min || 1;
  const layers = () => Math.max(0, ...Object.values(blend.plan?.layers ?? {}));
  const across = (index) => EDGE + ((WIDE - 2 * EDGE) * index) / Math.max(1, values.length - 1);
  const down = (value) => HIGH - EDGE - ((HIGH - 2 * EDGE) * (value - limits.min)) / span;
  const bounded = (value) => round(Math.min(limits.max, Math.max(limits.min, Math.round(value / limits.step) * limits.step)));
  const place = (index) => {
    const count = layers();
    return count > 1 ? `layer ${Math.round(((count - 1) * index) / (values.length - 1)) + 1} of ${count}` : `point ${index + 1} of ${values.length}`;
  };
  const line = drawn("polyline", { class: "line" });
  let handles = [];
  const move = (index, value) => {
    values[index] = bounded(value);
    draw();
    change([...values]);
  };
  const draw = () => {
    line.setAttribute("points", values.map((value, index) => across(index) + "," + down(value)).join(" "));
    handles.forEach((handle, index) => {
      handle.setAttribute("cx", across(index));
      handle.setAttribute("cy", down(values[index]));
      handle.setAttribute("aria-valuenow", values[index]);
      handle.setAttribute("aria-valuetext", `${short(values[index])} at ${place(index)}`);
    });
    caption.textContent = values.map((value) => short(value)).join(" · ");
  };
  const keys = { ArrowUp: 1, ArrowDown: -1, PageUp: 10, PageDown: -10 };
  const build = () => {
    handles = values.map((_, index) => drawn("circle", {
      r: 7, class: "handle", tabindex: "0", role: "slider", "aria-label": `${label}, point ${index + 1}`, "aria-orientation": "vertical",
      "aria-valuemin": limits.min, "aria-valuemax": limits.max,
      onkeydown: (event) => {
        const by = keys[event.key];
        if (by) move(index, values[index] + by * limits.step * (event.shiftKey ? 10 : 1));
        else if (event.key === "Home") move(index, limits.min);
        else if (event.key === "End") move(index, limits.max);
        else if (event.key === "ArrowLeft" || event.key === "ArrowRight") handles[index + (event.key === "ArrowLeft" ? -1 : 1)]?.focus();
        else return;
        event.preventDefault();
      },
      onpointerdown: (event) => { event.target.setPointerCapture(event.pointerId); event.target.focus(); event.preventDefault(); },
      onpointermove: (event) => {
        if (!event.target.hasPointerCapture?.(event.pointerId)) return;
        const frame = picture.getBoundingClientRect();
        const y = ((event.clientY - frame.top) / frame.height) * HIGH;
        move(index, limits.min + (span * (HIGH - EDGE - y)) / (HIGH - 2 * EDGE));
      },
    }));
    const levels = [limits.min, (limits.min + limits.max) / 2, limits.max].map((value) =>
      drawn("line", { class: "grid", x1: EDGE, x2: WIDE - EDGE, y1: down(value), y2: down(value) }));
    picture.replaceChildren(...levels, line, ...handles);
    draw();
  };
  const resize = (count) => {
    const before = [...values];
    const at = (x) => { const i = Math.min(before.length - 2, Math.floor(x)); return before[i] + (before[i + 1] - before[i]) * (x - i); };
    values.splice(0, values.length, ...Array.from({ length: count }, (_, i) => bounded(at((i * (before.length - 1)) / (count - 1)))));
    build();
    change([...values]);
  };
  const small = (text, name, action) => { const made = button(text, action, "plain"); made.setAttribute("aria-label", `${name}: ${label}`); return made; };
  const shape = select([["", "shape …"], ...Object.keys(SHAPES).map((name) => [name, name])], "", (name) => {
    if (!name) return;
    values.forEach((_, index) => { values[index] = bounded(limits.min + span * SHAPES[name](index / (values.length - 1))); });
    shape.value = "";
    build();
    change([...values]);
  });
  shape.setAttribute("aria-label", "Shape of " + label);
  const scale = element("div", { class: "scale", "aria-hidden": "true" }, element("span", {}, short(limits.max)), element("span", {}, short(limits.min)));
  const ends = element("div", { class: "ends", "aria-hidden": "true" }, element("span", {}, "first layer"), element("span", {}, "last layer"));
  box.append(scale, picture, ends, caption);
  build();
  const tools = element("div", { class: "row tools" }, shape,
    small("+ point", "Add a point", () => { if (values.length < MOST_POINTS) resize(values.length + 1); }),
    small("− point", "Remove a point", () => { if (values.length > 2) resize(values.length - 1); }), even);
  const row = element("div", { class: "slider curved" }, element("span", { title: label }, label), element("div", {}, box, tools));
  row.show = (given) => {
    if (!Array.isArray(given) || box.contains(document.activeElement)) return;
    const resized = given.length !== values.length;
    values.splice(0, values.length, ...given);
    if (resized) build(); else draw();
  };
  return row;
}

// The control of a parameter, of one model or of all: `change` also asks for other controls.
export function control(parameter, label, value, set, change) {
  const given = value ?? parameter.default;
  if (parameter.type === "bool" && !parameter.choices.length) return element("div", { class: "slider" }, checkbox(label, Boolean(given), set));
  if (parameter.choices.length || parameter.type === "str") {
    const words = parameter.type === "bool" ? ["false", "true", ...parameter.choices] : parameter.choices;
    const options = words.map((word) => [word, word]);
    if (parameter.default === null) options.unshift(["", "–"]);
    return field(label, select(options, String(given ?? ""), (word) =>
      set(word === "" ? undefined : word === "true" ? true : word === "false" ? false : word)));
  }
  const limits = limitsOf(parameter);
  if (Array.isArray(given)) {
    const low = Math.min(limits.min, ...given), high = Math.max(limits.max, ...given);
    const even = button("Even", () => change(given[0]), "plain");
    even.setAttribute("aria-label", "Even: one value for all layers, " + label);
    return curve(label, [...given], { ...limits, min: low, max: high }, set, even);
  }
  const bend = parameter.type === "float" ? button("By layer", () => change(Array(POINTS).fill(given ?? limits.min)), "plain") : null;
  bend?.setAttribute("aria-label", "By layer: a curve for " + label);
  return slider(label, given ?? limits.min, limits, set, bend);
}

// The sliders of the models' weights; also on the screen Talk.
export function weights() {
  const box = element("div", {});
  const rows = [];
  const parameter = method()?.parameters.find((each) => each.per_model && each.type === "float");
  if (!parameter) return { box, show: () => {} };
  const numbers = () => blend.controls.models.every((each) => typeof each.parameters[parameter.name] === "number");
  const names = shortNames(blend.controls.models.map((each) => each.model));
  blend.controls.models.forEach((each, index) => {
    const row = control(parameter, names[index], each.parameters[parameter.name],
      (value) => setParameter(index, parameter.name, value, hold && parameter.name === "weight" && numbers()),
      (value) => { each.parameters[parameter.name] = value; controlsChanged(); redraw(); });
    rows.push(row);
    box.append(row);
  });
  if (parameter.name === "weight" && blend.controls.models.length > 1) {
    box.append(checkbox("Weights add up to 1", hold, (on) => { hold = on; }));
  }
  return { box, show: () => rows.forEach((row, index) => row.show?.(blend.controls.models[index]?.parameters[parameter.name])) };
}
