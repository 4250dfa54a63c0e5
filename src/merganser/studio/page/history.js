// The history of the screen Talk: its table, answers compared, choices counted, and its export.
import { button, checkbox, element, save, say, short } from "./elements.js";

const MOST = 200; // entries
const MOST_WORDS = 1500; // of an answer that is compared word by word

export const kept = { prompt: "What is 12 + 30?", tokens: 128, temperature: 0, seed: 1, form: "chat", follow: false, blind: false, chosen: null, pins: [], entries: [], right: {} };
try { Object.assign(kept, JSON.parse(sessionStorage.getItem("talk") ?? "{}")); } catch { /* a broken memory is none */ }

export function remember() {
  kept.entries = kept.entries.slice(-MOST);
  try { sessionStorage.setItem("talk", JSON.stringify(kept)); } catch { kept.entries = kept.entries.slice(-20); }
}

export const nextNumber = () => (kept.entries.at(-1)?.number ?? 0) + 1;

// What the blend of an entry is called in counts, where entries have different blends.
const nameOf = (entry, key) => (key === "this blend" ? entry.label : key);

// How often each model was shown in a blind comparison, and chosen.
export function counts(entries) {
  const found = new Map();
  for (const entry of entries) {
    if (!entry.choice) continue;
    for (const key of entry.choice.shown) {
      const name = nameOf(entry, key);
      const count = found.get(name) ?? { shown: 0, chosen: 0 };
      count.shown += 1;
      if (entry.choice.chosen === key) count.chosen += 1;
      found.set(name, count);
    }
  }
  return [...found].sort(([, a], [, b]) => b.chosen / b.shown - a.chosen / a.shown);
}

function table(heads, rows, label) {
  return element("div", { class: "wide", tabindex: "0", role: "region", "aria-label": label },
    element("table", {}, element("thead", {}, element("tr", {}, heads.map(([text, kind]) => element("th", { scope: "col", class: kind }, text)))), element("tbody", {}, rows)));
}

function countTable() {
  const all = counts(kept.entries);
  if (!all.length) return null;
  const number = (text) => element("td", { class: "number" }, text);
  const rows = all.map(([name, { shown, chosen }]) =>
    element("tr", {}, element("th", { scope: "row" }, name), number(String(chosen)), number(String(shown)), number(short(100 * chosen / shown, 2) + " %")));
  const none = kept.entries.filter((entry) => entry.choice && entry.choice.chosen === null).length;
  const blind = kept.entries.filter((entry) => entry.choice).length;
  return element("section", { id: "choices" }, element("h2", {}, "Choices"),
    element("p", { class: "note" }, `${blind} blind comparison${blind === 1 ? "" : "s"}; in ${none} no answer was better.`),
    table([["Model"], ["Chosen", "number"], ["Shown", "number"], ["Share", "number"]], rows, "Choices"));
}

// The words of a text that another one does not have in the same order, marked.
export function marked(text, other) {
  const [mine, theirs] = [text, other].map((each) => each.match(/[\p{L}\p{N}_]+\s*|[^\p{L}\p{N}_]\s*/gu) ?? []);
  if (mine.length > MOST_WORDS || theirs.length > MOST_WORDS) return [text];
  const rest = Array.from({ length: mine.length + 1 }, () => new Uint16Array(theirs.length + 1));
  for (let i = mine.length - 1; i >= 0; i--) {
    for (let j = theirs.length - 1; j >= 0; j--) {
      rest[i][j] = mine[i].trim() === theirs[j].trim() ? rest[i + 1][j + 1] + 1 : Math.max(rest[i + 1][j], rest[i][j + 1]);
    }
  }
  const parts = [];
  for (let i = 0, j = 0; i < mine.length; i++) {
    while (j < theirs.length && rest[i][j] === rest[i][j + 1] && mine[i].trim() !== theirs[j].trim()) j++;
    const same = j < theirs.length && mine[i].trim() === theirs[j].trim();
    if (same) j++;
    parts.push(same ? mine[i] : element("mark", {}, mine[i]));
  }
  return parts;
}

// Args: column makes an answer's column, show puts columns on the screen, back goes to an entry's
// blend, changed is called when pins have changed.
export function history({ column, show, back, changed }) {
  const view = element("div", {});
  const chosen = new Set();

  function compare() {
    const entries = kept.entries.filter((entry) => chosen.has(entry.number));
    const texts = entries.map((entry) => entry.answers["this blend"]?.text ?? "");
    show(entries.map((entry, index) => {
      const each = column(`number ${entry.number} · ${entry.label}`, index ? "" : "this");
      each.text.replaceChildren(...(index ? marked(texts[index], texts[0]) : [texts[0]]));
      const same = index && texts[index] === texts[0] ? `the answer of number ${entries[0].number} · ` : "";
      each.told.textContent = `${same}${entry.answers["this blend"]?.tokens ?? 0} tokens · ${entry.prompt.slice(0, 60)}`;
      return each.box;
    }), true);
  }

  function row(entry, compareIt) {
    const returns = button("Back to this", () => back(entry), "plain");
    returns.setAttribute("aria-label", "Back to this: number " + entry.number);
    const pinned = kept.pins.some((pin) => pin.recipe === entry.recipe);
    const pin = button(pinned ? "Pinned" : "Pin", () => {
      if (!pinned) kept.pins.push({ label: entry.label, recipe: entry.recipe });
      remember();
      changed();
      draw();
    }, "plain");
    pin.setAttribute("aria-pressed", String(pinned));
    const again = button("Show", () => show(Object.entries(entry.answers).map(([title, found]) => {
      const own = title === "this blend";
      const each = column(own ? `number ${entry.number} · ${entry.label}` : title, own ? "this" : "");
      each.text.textContent = found.text;
      each.told.textContent = found.error ?? `${found.tokens} tokens · ${entry.prompt.slice(0, 60)}`;
      if (entry.choice?.chosen === title) each.told.prepend("chosen · ");
      return each.box;
    })), "plain");
    again.setAttribute("aria-label", "Show number " + entry.number + " beside the others");
    const pick = checkbox("", chosen.has(entry.number), (on) => {
      chosen[on ? "add" : "delete"](entry.number);
      compareIt.disabled = chosen.size < 2;
    });
    pick.firstChild.setAttribute("aria-label", "Compare number " + entry.number);
    const found = entry.answers["this blend"];
    return element("tr", {}, element("td", {}, pick), element("td", { class: "number" }, String(entry.number)),
      element("th", { scope: "row" }, entry.label), element("td", {}, entry.prompt.slice(0, 80)),
      element("td", {}, (found?.text ?? "").slice(0, 120)), element("td", { class: "doings" }, returns, pin, again));
  }

  function draw() {
    if (!kept.entries.length) {
      view.replaceChildren(element("h2", {}, "History"), element("p", { class: "quiet" }, "Each question adds a line here: the blend, the prompt, and its answers."));
      return;
    }
    for (const number of chosen) if (!kept.entries.some((entry) => entry.number === number)) chosen.delete(number);
    const compareIt = button("Compare the chosen", compare);
    compareIt.disabled = chosen.size < 2;
    const rows = kept.entries.toReversed().map((entry) => row(entry, compareIt));
    view.replaceChildren(...[countTable(), element("h2", {}, "History"),
      table([["Compare"], ["No.", "number"], ["Blend"], ["Prompt"], ["Its answer"], ["Do"]], rows, "History"),
      element("div", { class: "row" }, compareIt,
        button("Export as JSONL", () => save("studio-history.jsonl", kept.entries.map((entry) => JSON.stringify(entry)).join("\n") + "\n")),
        button("Export as problem set", exportProblems),
        button("Clear", () => { kept.entries = []; kept.right = {}; chosen.clear(); remember(); draw(); }, "plain"))].filter(Boolean));
  }

  draw();
  return { view, draw };
}

// Prompts as problems; the right answers are those that were marked.
function exportProblems() {
  const prompts = [...new Set(kept.entries.map((entry) => entry.prompt))];
  const lines = prompts.map((prompt, index) => JSON.stringify({ id: String(index + 1), prompt, ...(prompt in kept.right ? { answer: kept.right[prompt] } : {}) }));
  save("problems.jsonl", lines.join("\n") + "\n");
}

export function rightAnswer(entry, found, title) {
  const right = button("Right answer", () => {
    kept.right[entry.prompt] = found.text;
    remember();
    say("Kept as this prompt's right answer, for the problem set.");
  }, "plain");
  right.setAttribute("aria-label", "Right answer: that of " + title);
  return right;
}
