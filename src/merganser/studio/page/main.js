// The page: its screens by the address's #, and what the server does at this moment.
import { commandLine, element, nothing, say } from "./elements.js";
import { ends, update } from "./jobs.js";
import { blend } from "./recipe.js";
import { read } from "./server.js";
import * as blendScreen from "./blend.js";
import * as talkScreen from "./talk.js";
import * as studyScreen from "./study.js";
import * as differencesScreen from "./differences.js";
import * as publishScreen from "./publish.js";

const screens = { blend: blendScreen, talk: talkScreen, study: studyScreen, differences: differencesScreen, publish: publishScreen };
let library = null;
let leave = () => {};

function open(focus) {
  const name = location.hash.slice(1) in screens ? location.hash.slice(1) : "blend";
  for (const link of document.querySelectorAll("nav a")) {
    if (link.hash === "#" + name) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  leave();
  const made = screens[name].screen(library);
  leave = made.leave ?? (() => {});
  const main = document.getElementById("main");
  main.replaceChildren(made.view);
  document.title = made.view.querySelector("h1").textContent + " · Merganser studio";
  main.dataset.screen = name;
  if (focus) main.focus();
}

// Read anew what is below the folder; the next screen shows it, and a screen may listen.
async function refresh() {
  library = Object.assign(library ?? {}, await read("/studio/library"));
  ends.dispatchEvent(new CustomEvent("library"));
}

async function queue() {
  const state = document.hidden ? null : await read("/merganser").catch(() => null);
  if (state) {
    const waiting = Object.values(state.waiting).reduce((sum, count) => sum + count, 0);
    const name = state.current?.id ?? "no model yet";
    const parts = [`live: ${name}`, `${state.completions.running} running`];
    if (waiting) parts.push(`${waiting} waiting`);
    const text = parts.join(" · ");
    const line = document.getElementById("queue");
    if (line.textContent !== text) line.textContent = text;
  }
  setTimeout(queue, 2000);
}

async function begin() {
  try {
    const [, listed] = await Promise.all([refresh(), read("/studio/methods")]);
    for (const method of listed.methods) blend.methods.set(method.name, method);
  } catch (error) {
    document.getElementById("loading").textContent = error.message;
    return;
  }
  document.getElementById("root").textContent = library.root;
  if (library.cut_off) say("There is more below the folder than is listed; give a folder further down.");
  if (!library.models.length && !library.cached.length) {
    document.getElementById("main").replaceChildren(element("h1", {}, "Blend"), nothing("No models here",
      "Below this folder is no model: a folder with config.json and weights, or a training run. Start the studio on a folder that has some:",
      commandLine("merganser studio runs")));
    return;
  }
  blendScreen.begin(library);
  addEventListener("hashchange", () => open(true));
  ends.addEventListener("end", () => refresh().catch((error) => say(error.message)));
  open(false);
  queue();
  update();
}
begin();
