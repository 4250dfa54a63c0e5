// Talk: the same prompt answered by base, experts, this blend, and pinned ones.
import { button, checkbox, commandLine, element, field, number, say, select, short, shortName } from "./elements.js";
import { weights } from "./blend.js";
import { history, kept, nextNumber, remember, rightAnswer } from "./history.js";
import { blend, live, textChanged, watch } from "./recipe.js";
import { send, stream } from "./server.js";

const MOST_PATIENCE = 200; // milliseconds
let pace = 0; // milliseconds from the last question to its first word

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
  const told = element("footer", { "aria-live": "polite" }, "");
  const name = element("h3", {}, title);
  const box = element("article", { class: "answer " + kind }, element("header", {}, name), text, told);
  return { box, text, told, name };
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

function shuffled(all) {
  const found = [...all];
  for (let i = found.length - 1; i > 0; i--) {
    const j = Math.floor(Math.random() * (i + 1));
    [found[i], found[j]] = [found[j], found[i]];
  }
  return found;
}

// Columns without names, in an order of chance. Their texts come together, since who is first, and
// how fast, would say who it is; so would the server's line at the top of the page.
async function askBlind(wanted, columns, announced, signal) {
  document.body.dataset.blind = "";
  const order = shuffled(wanted);
  const made = order.map((_, index) => column("Answer " + String.fromCharCode(65 + index), "blind"));
  columns.replaceChildren(...made.map((each) => each.box));
  for (const each of made) { each.told.textContent = "comes with the others …"; each.told.classList.add("busy"); }
  let count = 0;
  const found = await Promise.all(order.map(async ({ model }) => {
    const answer = await ask(model, column("", ""), signal);
    announced.textContent = `${++count} of ${order.length} answers are there …`;
    return answer;
  }));
  made.forEach((each, index) => {
    each.text.textContent = found[index].text;
    each.told.classList.remove("busy");
    const like = found.findIndex((other) => !other.error && other.text === found[index].text);
    const same = like < index && like >= 0 ? ` · the same as ${made[like].name.textContent}` : "";
    each.told.textContent = found[index].error ? "no answer" : `${found[index].tokens} tokens${same}`;
  });
  return { order, made, found };
}

export function screen(library) {
  let running = null;
  let pending = null; // puts a blind comparison into the history, without a choice
  const columns = element("div", { class: "columns" });
  const announced = element("p", { class: "quiet", role: "status", "aria-live": "polite" });
  const verdict = element("div", { class: "row" });
  const equal = element("div", {});
  const prompt = element("textarea", { rows: "3", value: kept.prompt, oninput: () => { kept.prompt = prompt.value; remember(); } });
  prompt.addEventListener("keydown", (event) => { if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) run(); });

  const past = history({
    column,
    show: (boxes, alone) => { if (alone) columns.replaceChildren(...boxes); else columns.append(...boxes); boxes[0]?.scrollIntoView({ block: "nearest" }); },
    back: async (entry) => { await textChanged(entry.recipe); prompt.value = kept.prompt = entry.prompt; remember(); drawSliders(); showPicks(); },
    changed: () => showPicks(),
  });

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
      const drop = button("Unpin " + pin.label, () => { kept.pins = kept.pins.filter((each) => each !== pin); remember(); showPicks(); past.draw(); });
      picks.append(drop);
    }
  };

  // Who answers: { model, title, kind, key }, where the key is unique among them.
  async function askedFor(name, title, onlyBlend) {
    const wanted = [{ model: name, title: "this blend · " + title, kind: "this", key: "this blend" }];
    if (onlyBlend) return wanted;
    const others = candidates(library);
    for (const path of kept.chosen ?? [...others.keys()]) {
      if (others.has(path) || library.models.includes(path)) wanted.push({ model: path, title: others.get(path) ?? shortName(path), kind: "", key: shortName(path) });
    }
    const pins = await Promise.all(kept.pins.map((pin) => send("/studio/blend", { text: pin.recipe, live: true }).catch(() => null)));
    kept.pins.forEach((pin, index) => {
      const model = pins[index]?.model;
      if (model && !wanted.some((each) => each.model === model)) wanted.push({ model, title: "pinned · " + pin.label, kind: "pin", key: pin.label });
    });
    const taken = new Set();
    for (const each of wanted) {
      const plain = each.key;
      for (let count = 2; taken.has(each.key); count++) each.key = `${plain} (${count})`;
      taken.add(each.key);
    }
    return wanted;
  }

  async function run(onlyBlend = false) {
    running?.abort();
    pending?.();
    delete document.body.dataset.blind;
    const mine = (running = new AbortController());
    stopIt.disabled = false;
    announced.textContent = "Asking …";
    verdict.replaceChildren();
    let name;
    try { name = await live(); } catch (error) { say(error.message); announced.textContent = ""; stopIt.disabled = true; return; }
    if (mine.signal.aborted) return;
    const title = label();
    const entry = { number: nextNumber(), label: title, recipe: blend.text, digest: blend.plan?.digest ?? null, prompt: kept.prompt,
      settings: { max_tokens: kept.tokens, temperature: kept.temperature, seed: kept.seed, form: kept.form }, answers: {} };
    const wanted = await askedFor(name, title, onlyBlend);
    if (mine !== running) return;
    if (kept.blind && wanted.length > 1) await compareBlind(entry, wanted, mine);
    else await compareOpenly(entry, wanted, mine, onlyBlend);
    if (mine !== running) return;
    stopIt.disabled = true;
    equal.replaceChildren(commandLine(`merganser generate RECIPE.yml ${quote(entry.prompt)} --max-tokens ${entry.settings.max_tokens} --temperature ${entry.settings.temperature} --seed ${entry.settings.seed}`));
  }

  function record(entry) {
    entry.number = nextNumber();
    kept.entries.push(entry);
    remember();
    past.draw();
  }

  async function compareOpenly(entry, wanted, mine, onlyBlend) {
    const made = wanted.map((each) => column(each.title, each.kind));
    if (onlyBlend && columns.querySelector(".this")) columns.querySelector(".this").replaceWith(made[0].box);
    else columns.replaceChildren(...made.map((each) => each.box));
    await Promise.all(wanted.map(async ({ model, key }, index) => {
      const found = await ask(model, made[index], mine.signal);
      entry.answers[key] = found;
      if (!found.error) made[index].told.append(" ", rightAnswer(entry, found, made[index].name.textContent));
    }));
    if (mine !== running) return;
    if (onlyBlend) pace = entry.answers["this blend"].first_ms ?? pace;
    announced.textContent = `${wanted.length === 1 ? "The blend has" : `${wanted.length} models have`} answered.`;
    record(entry);
  }

  async function compareBlind(entry, wanted, mine) {
    const { order, made, found } = await askBlind(wanted, columns, announced, mine.signal);
    if (mine !== running) return;
    order.forEach(({ key }, index) => { entry.answers[key] = found[index]; });
    const answered = order.filter((_, index) => !found[index].error);
    const reveal = (chosen) => {
      pending = null;
      delete document.body.dataset.blind;
      verdict.replaceChildren();
      order.forEach((each, index) => {
        const { box, name, told } = made[index];
        const best = each.key === chosen;
        name.append(" · " + each.title);
        box.classList.remove("blind");
        box.classList.toggle("this", best);
        told.replaceChildren(found[index].error ?? `${best ? "chosen · " : ""}${found[index].tokens} tokens · seed ${entry.settings.seed}`);
        if (!found[index].error) told.append(" ", rightAnswer(entry, found[index], each.title));
      });
      record(entry);
    };
    const choose = (chosen) => {
      entry.choice = { shown: answered.map(({ key }) => key), chosen };
      const title = order.find(({ key }) => key === chosen)?.title;
      announced.textContent = title ? "Chosen: " + title + "." : "No answer is better; the names are shown.";
      reveal(chosen);
    };
    if (answered.length < 2 || mine.signal.aborted) { announced.textContent = "Fewer than two models have answered."; reveal(null); return; }
    pending = () => reveal(null);
    made.forEach(({ told, name }, index) => {
      if (found[index].error) return;
      const best = button("This one is better", () => choose(order[index].key));
      best.setAttribute("aria-label", "This one is better: " + name.textContent);
      told.append(" ", best);
    });
    verdict.replaceChildren(button("None is better", () => choose(null)));
    announced.textContent = "Which answer is best? The names are shown after the choice.";
  }

  const sliderBox = element("fieldset", { class: "panel" });
  let sliders = { show: () => {} };
  const drawSliders = () => {
    sliderBox.replaceChildren(element("legend", {}, "This blend"));
    if (blend.controls) { sliders = weights(); sliderBox.append(sliders.box); }
    else sliderBox.append(element("p", { class: "quiet" }, "A recipe without controls; change it on the screen Blend."));
  };
  // A slider that still moves need not swap the weights at each of its places, where a swap is slow.
  let timer;
  const follow = () => {
    clearTimeout(timer);
    if (kept.follow && !kept.blind && columns.childElementCount) timer = setTimeout(() => run(true), Math.min(MOST_PATIENCE, pace / 10));
  };
  const stop = watch((what) => {
    if (what === "text") sliders.show();
    if (what === "controls") { drawSliders(); showPicks(); }
    if (what === "plan" && !blend.error) follow();
  });

  const stopIt = button("Stop", () => { running?.abort(); stopIt.disabled = true; });
  stopIt.disabled = true;
  drawSliders();
  showPicks();
  const following = checkbox("Ask the blend anew when a slider moves", kept.follow, (on) => { kept.follow = on; remember(); });
  const blinding = checkbox("Blind: shuffle the columns, and name them after a choice", kept.blind, (on) => {
    kept.blind = on;
    following.firstChild.disabled = on;
    remember();
  });
  following.firstChild.disabled = kept.blind;
  const settings = element("div", { class: "row" },
    field("Tokens at most", number(kept.tokens, { min: 1, max: 100000 }, (value) => { kept.tokens = Math.max(1, Math.round(value)); remember(); }), true),
    field("Temperature", number(kept.temperature, { min: 0, max: 5, step: 0.1 }, (value) => { kept.temperature = value; remember(); }), true),
    field("Seed", number(kept.seed, { min: 0, step: 1 }, (value) => { kept.seed = Math.round(value); remember(); }), true),
    field("Ask as", select([["chat", "chat"], ["text", "plain text"]], kept.form, (value) => { kept.form = value; remember(); }), true),
    following, blinding);
  const view = element("div", {}, element("h1", {}, "Talk"),
    sliderBox,
    element("div", { class: "panel" }, field("Prompt (Ctrl+Enter asks)", prompt), element("p", {}), settings, picks,
      element("div", { class: "row" }, button("Ask", () => run(), "main"), stopIt, announced), verdict, equal),
    element("h2", { class: "unseen" }, "Answers"), columns, past.view);
  return { view, leave: () => { stop(); running?.abort(); pending?.(); delete document.body.dataset.blind; } };
}

function quote(text) { return "'" + text.replaceAll("'", "'\\''") + "'"; }
