// Talk: the same prompt answered by base, experts, this blend, and pinned ones.
import { button, checkbox, commandLine, debounce, element, field, number, save, say, select, short, shortName } from "./elements.js";
import { weights } from "./blend.js";
import { blend, live, textChanged, watch } from "./recipe.js";
import { read, send, stream } from "./server.js";

const MOST = 200; // entries of the history
const kept = { prompt: "What is 12 + 30?", tokens: 128, temperature: 0, seed: 1, form: "chat", follow: false, chosen: null, pins: [], entries: [], right: {} };
try { Object.assign(kept, JSON.parse(sessionStorage.getItem("talk") ?? "{}")); } catch { /* a broken memory is none */ }
function remember() {
  kept.entries = kept.entries.slice(-MOST);
  try { sessionStorage.setItem("talk", JSON.stringify(kept)); } catch { kept.entries = kept.entries.slice(-20); }
}

// What a blend is called for people: its weights, or its method.
function label() {
  const { controls } = blend;
  if (!controls) return "recipe";
  const parts = controls.models.map((each) => {
    const value = Object.values(each.parameters)[0];
    return shortName(each.model) + (typeof value === "number" ? " " + short(value) : "");
  });
  const shared = Object.entries(controls.parameters).map(([key, value]) => `${key} ${value}`);
  return [controls.method + ":", parts.join(" + "), ...shared].join(" ");
}

function column(title, kind) {
  const text = element("pre", { tabindex: "0", role: "log", "aria-live": "off", "aria-label": "Answer of " + title });
  const told = element("footer", { role: "status" }, "");
  const head = element("header", {}, element("h3", {}, title));
  const box = element("article", { class: "answer " + kind }, head, text, told);
  return { box, text, told, head };
}

async function ask(model, into, signal) {
  const began = performance.now();
  let first = null;
  into.text.textContent = "";
  into.told.textContent = "waits for its turn …";
  into.told.classList.add("busy");
  into.text.setAttribute("aria-busy", "true");
  const body = { model, max_tokens: kept.tokens, temperature: kept.temperature, seed: kept.seed };
  const onText = (text) => {
    if (first === null) { first = performance.now() - began; into.told.textContent = `first word after ${Math.round(first)} ms …`; }
    into.text.append(text);
    into.text.scrollTop = into.text.scrollHeight;
  };
  try {
    const found = kept.form === "chat"
      ? await stream("/v1/chat/completions", { ...body, messages: [{ role: "user", content: kept.prompt }] }, onText, signal)
      : await stream("/v1/completions", { ...body, prompt: kept.prompt }, onText, signal);
    const all = performance.now() - began;
    const ended = found.finish === "length" ? ", cut off" : "";
    into.told.textContent = `${found.tokens} tokens${ended} · first word ${Math.round(first ?? all)} ms · all ${Math.round(all)} ms · seed ${kept.seed}`;
    return { text: into.text.textContent, first_ms: first && Math.round(first), ...found };
  } catch (error) {
    into.told.textContent = error.name === "AbortError" ? "stopped" : error.message;
    return { text: into.text.textContent, error: into.told.textContent };
  } finally {
    into.told.classList.remove("busy");
    into.text.removeAttribute("aria-busy");
  }
}

// Models that may have a column: [name, title, recipe text or null].
function candidates(library) {
  const found = new Map();
  const base = blend.controls?.base ?? library.models.find((path) => /(^|[/_-])base/.test(shortName(path)));
  if (base) found.set(base, "base: " + shortName(base));
  for (const each of blend.controls?.models ?? []) if (!found.has(each.model)) found.set(each.model, shortName(each.model));
  return found;
}

export function screen(library) {
  let running = null;
  const columns = element("div", { class: "columns" });
  const announced = element("p", { class: "quiet", role: "status", "aria-live": "polite" });
  const history = element("div", {});
  const equal = element("div", {});
  const prompt = element("textarea", { rows: "3", value: kept.prompt, oninput: () => { kept.prompt = prompt.value; remember(); } });
  prompt.addEventListener("keydown", (event) => { if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) run(); });

  const picks = element("div", { class: "row", role: "group", "aria-label": "Columns" });
  const showPicks = () => {
    const others = candidates(library);
    const chosen = (name) => (kept.chosen ? kept.chosen.includes(name) : true);
    const set = (name) => (on) => {
      const all = kept.chosen ?? [...others.keys()];
      kept.chosen = on ? [...all, name] : all.filter((each) => each !== name);
      remember();
    };
    picks.replaceChildren(...[...others].map(([name, title]) => checkbox(title, chosen(name), set(name))));
    const more = library.models.filter((path) => !others.has(path));
    for (const name of kept.chosen?.filter((each) => more.includes(each)) ?? []) picks.append(checkbox(shortName(name), true, (on) => { set(name)(on); showPicks(); }));
    const left = more.filter((path) => !kept.chosen?.includes(path));
    if (left.length) {
      const extra = select([["", "another model …"], ...left.map((path) => [path, path])], "", (path) => { if (path) { set(path)(true); showPicks(); } });
      extra.setAttribute("aria-label", "Another model as a column");
      picks.append(element("div", { class: "field small" }, extra));
    }
    for (const pin of kept.pins) {
      const drop = button("Unpin " + pin.label, () => { kept.pins = kept.pins.filter((each) => each !== pin); remember(); showPicks(); });
      picks.append(drop);
    }
  };

  async function run(onlyBlend = false) {
    running?.abort();
    const mine = (running = new AbortController());
    stopIt.disabled = false;
    announced.textContent = "Asking …";
    let name;
    try { name = await live(); } catch (error) { say(error.message); announced.textContent = ""; stopIt.disabled = true; return; }
    if (mine.signal.aborted) return;
    const title = label();
    const entry = { number: (kept.entries.at(-1)?.number ?? 0) + 1, label: title, recipe: blend.text, digest: blend.plan?.digest ?? null,
      prompt: kept.prompt, settings: { max_tokens: kept.tokens, temperature: kept.temperature, seed: kept.seed, form: kept.form }, answers: {} };
    const others = candidates(library);
    const wanted = [[name, "this blend · " + title, "this", "this blend"]];
    if (!onlyBlend) {
      const chosen = kept.chosen ?? [...others.keys()];
      for (const path of chosen) if (others.has(path) || library.models.includes(path)) wanted.push([path, others.get(path) ?? shortName(path), "", shortName(path)]);
      for (const pin of kept.pins) {
        const found = await send("/studio/blend", { text: pin.recipe, live: true }).catch(() => null);
        if (found?.model && found.model !== name) wanted.push([found.model, "pinned · " + pin.label, "pin", pin.label]);
      }
    }
    const made = wanted.map(([, shown, kind]) => column(shown, kind));
    if (onlyBlend && columns.querySelector(".this")) columns.querySelector(".this").replaceWith(made[0].box);
    else columns.replaceChildren(...made.map((each) => each.box));
    await Promise.all(wanted.map(async ([model, , , key], index) => {
      const found = await ask(model, made[index], mine.signal);
      entry.answers[key] = found;
      if (!found.error) {
        const right = button("Right answer", () => {
          kept.right[entry.prompt] = found.text;
          remember();
          say("Kept as this prompt's right answer, for the problem set.");
        }, "plain");
        right.setAttribute("aria-label", "Right answer: that of " + made[index].head.textContent);
        made[index].told.append(" ", right);
      }
    }));
    if (mine !== running) return;
    stopIt.disabled = true;
    announced.textContent = `${wanted.length === 1 ? "The blend has" : `${wanted.length} models have`} answered.`;
    equal.replaceChildren(commandLine(`merganser generate RECIPE.yml ${quote(kept.prompt)} --max-tokens ${kept.tokens} --temperature ${kept.temperature} --seed ${kept.seed}`));
    kept.entries.push(entry);
    remember();
    showHistory();
  }

  const showHistory = () => {
    if (!kept.entries.length) { history.replaceChildren(element("p", { class: "quiet" }, "Each question adds a line here: the blend, the prompt, and its answers.")); return; }
    const rows = kept.entries.toReversed().map((entry) => {
      const back = button("Back to this", async () => { await textChanged(entry.recipe); prompt.value = kept.prompt = entry.prompt; remember(); drawSliders(); showPicks(); }, "plain");
      back.setAttribute("aria-label", "Back to this: number " + entry.number);
      const pinned = kept.pins.some((pin) => pin.recipe === entry.recipe);
      const pin = button(pinned ? "Pinned" : "Pin", () => { if (!pinned) kept.pins.push({ label: entry.label, recipe: entry.recipe }); remember(); showPicks(); showHistory(); }, "plain");
      pin.setAttribute("aria-pressed", String(pinned));
      const show = button("Show", () => {
        const made = Object.entries(entry.answers).map(([title, found]) => {
          const each = column(title === "this blend" ? `number ${entry.number} · ${entry.label}` : title, title === "this blend" ? "this" : "");
          each.text.textContent = found.text;
          each.told.textContent = found.error ?? `${found.tokens} tokens · ${entry.prompt.slice(0, 60)}`;
          return each.box;
        });
        columns.append(...made);
        made[0]?.scrollIntoView({ block: "nearest" });
      }, "plain");
      show.setAttribute("aria-label", "Show number " + entry.number + " beside the others");
      const found = entry.answers["this blend"];
      return element("tr", {}, element("td", { class: "number" }, String(entry.number)), element("th", { scope: "row" }, entry.label),
        element("td", {}, entry.prompt.slice(0, 80)), element("td", {}, (found?.text ?? "").slice(0, 120)), element("td", {}, back, pin, show));
    });
    const heads = ["No.", "Blend", "Prompt", "Its answer", "Do"].map((text) => element("th", { scope: "col" }, text));
    history.replaceChildren(
      element("div", { class: "wide", tabindex: "0", role: "region", "aria-label": "History" },
        element("table", {}, element("thead", {}, element("tr", {}, heads)), element("tbody", {}, rows))),
      element("div", { class: "row" },
        button("Export as JSONL", () => save("studio-history.jsonl", kept.entries.map((entry) => JSON.stringify(entry)).join("\n") + "\n")),
        button("Export as problem set", exportProblems),
        button("Clear", () => { kept.entries = []; kept.right = {}; remember(); showHistory(); }, "plain")));
  };

  const sliderBox = element("fieldset", { class: "panel" });
  let sliders = { show: () => {} };
  const drawSliders = () => {
    sliderBox.replaceChildren(element("legend", {}, "This blend"));
    if (blend.controls) { sliders = weights(); sliderBox.append(sliders.box); }
    else sliderBox.append(element("p", { class: "quiet" }, "A recipe without controls; change it on the screen Blend."));
  };
  const follow = debounce(() => { if (kept.follow && columns.childElementCount) run(true); }, 10);
  const stop = watch((what) => {
    if (what === "text") sliders.show();
    if (what === "controls") { drawSliders(); showPicks(); }
    if (what === "plan" && !blend.error) follow();
  });

  const stopIt = button("Stop", () => { running?.abort(); stopIt.disabled = true; });
  stopIt.disabled = true;
  drawSliders();
  showPicks();
  showHistory();
  const settings = element("div", { class: "row" },
    field("Tokens at most", number(kept.tokens, { min: 1, max: 100000 }, (value) => { kept.tokens = Math.max(1, Math.round(value)); remember(); }), true),
    field("Temperature", number(kept.temperature, { min: 0, max: 5, step: 0.1 }, (value) => { kept.temperature = value; remember(); }), true),
    field("Seed", number(kept.seed, { min: 0, step: 1 }, (value) => { kept.seed = Math.round(value); remember(); }), true),
    field("Ask as", select([["chat", "chat"], ["text", "plain text"]], kept.form, (value) => { kept.form = value; remember(); }), true),
    checkbox("Ask the blend anew when a slider moves", kept.follow, (on) => { kept.follow = on; remember(); }));
  const view = element("div", {}, element("h1", {}, "Talk"),
    sliderBox,
    element("div", { class: "panel" }, field("Prompt (Ctrl+Enter asks)", prompt), element("p", {}), settings, picks,
      element("div", { class: "row" }, button("Ask", () => run(), "main"), stopIt, announced), equal),
    columns, element("h2", {}, "History"), history);
  return { view, leave: () => { stop(); running?.abort(); } };
}

function quote(text) { return "'" + text.replaceAll("'", "'\\''") + "'"; }

// Prompts as problems; the right answers are those that were marked.
function exportProblems() {
  const prompts = [...new Set(kept.entries.map((entry) => entry.prompt))];
  const lines = prompts.map((prompt, index) => JSON.stringify({ id: String(index + 1), prompt, ...(prompt in kept.right ? { answer: kept.right[prompt] } : {}) }));
  save("problems.jsonl", lines.join("\n") + "\n");
}
