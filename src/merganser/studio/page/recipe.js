// The blend that all screens share: controls and text, each made from the other.
import { send } from "./server.js";

export const blend = {
  controls: null, // what the controls show; null where they cannot show the text
  text: "",
  plan: null,
  error: null,
  model: null, // its name in the API
  methods: new Map(),
};
const listeners = new Set();
export function watch(listener) { listeners.add(listener); return () => listeners.delete(listener); }
function tell(what) { for (const listener of listeners) listener(what); }

const WORDS = /^(true|false|yes|no|on|off|null|y|n|~)$/i;
function scalar(value) {
  if (typeof value !== "string") return JSON.stringify(value);
  const plain = /^[A-Za-z_][\w./+=-]*$/.test(value) && !WORDS.test(value);
  return plain ? value : JSON.stringify(value);
}
function flow(value) {
  if (Array.isArray(value)) return "[" + value.map(flow).join(", ") + "]";
  if (value && typeof value === "object") {
    return "{" + Object.entries(value).map(([key, each]) => scalar(key) + ": " + flow(each)).join(", ") + "}";
  }
  return scalar(value);
}

export function written(controls) {
  const lines = ["merge_method: " + scalar(controls.method)];
  if (controls.base) lines.push("base_model: " + scalar(controls.base));
  lines.push("models:");
  for (const { model, parameters } of controls.models) {
    lines.push("  - model: " + scalar(model));
    if (Object.keys(parameters).length) lines.push("    parameters: " + flow(parameters));
  }
  if (Object.keys(controls.parameters).length) lines.push("parameters: " + flow(controls.parameters));
  if (controls.dtype) lines.push("dtype: " + scalar(controls.dtype));
  for (const [key, value] of Object.entries(controls.rest)) lines.push(scalar(key) + ": " + flow(value));
  return lines.join("\n") + "\n";
}

let asked = 0;
async function plan() {
  const number = ++asked;
  const found = await send("/studio/blend", { text: blend.text, live: true }).catch((error) =>
    ({ error: { message: error.message, line: null }, controls: blend.controls, plan: null, model: null }));
  if (number !== asked) return false; // there is a newer one
  Object.assign(blend, { plan: found.plan, error: found.error, model: found.model });
  return found;
}

// The controls have changed: write the text, and plan it.
export function controlsChanged() {
  blend.text = written(blend.controls);
  blend.model = null;
  tell("text");
  settle();
}

// The text has changed: plan it, and show what the controls can.
export async function textChanged(text) {
  blend.text = text;
  blend.model = null;
  const found = await plan();
  if (!found) return;
  blend.controls = found.controls;
  tell("controls");
  tell("plan");
}

// Plan the newest text at once; of those that come while one is planned, only the last follows.
let planning = false;
let changed = false;
async function settle() {
  changed = true;
  if (planning) return;
  planning = true;
  try {
    while (changed) { changed = false; if (await plan()) tell("plan"); }
  } finally { planning = false; }
}

// The name of the blend in the API, once it is planned.
export async function live() {
  for (let tries = 0; tries < 20 && !blend.model; tries++) { // a newer plan may come between
    if (await plan()) break;
  }
  if (!blend.model) throw new Error(blend.error?.message ?? "the recipe is not ready");
  return blend.model;
}

export function method() { return blend.controls ? blend.methods.get(blend.controls.method) : null; }

// Set a weight; where the sum is held, the others share what is left as they did before.
export function setParameter(index, name, value, hold) {
  const models = blend.controls.models;
  models[index].parameters[name] = value;
  const others = models.filter((_, other) => other !== index);
  if (hold && others.length && others.every((other) => typeof other.parameters[name] === "number")) {
    const sum = others.reduce((total, other) => total + other.parameters[name], 0);
    let left = round(1 - value);
    others.forEach((other, place) => {
      const share = sum > 0 ? other.parameters[name] / sum : 1 / others.length;
      const given = place === others.length - 1 ? left : round((1 - value) * share);
      left = round(left - given);
      other.parameters[name] = given;
    });
  }
  controlsChanged();
}
export function round(value) { return Math.round(value * 1e4) / 1e4; }
