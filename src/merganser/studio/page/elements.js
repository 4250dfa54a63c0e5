// Elements, whose texts go in as text and never as markup.
let count = 0;
export function fresh(name) { return name + "-" + ++count; }

export function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  return fill(made, attributes, children);
}

export function drawn(name, attributes = {}, ...children) {
  return fill(document.createElementNS("http://www.w3.org/2000/svg", name), attributes, children);
}

function fill(made, attributes, children) {
  for (const [key, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else if (key === "value") made.value = value;
    else made.setAttribute(key, value === true ? "" : String(value));
  }
  made.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return made;
}

// A control with its label above.
export function field(label, control, small = false) {
  control.id ||= fresh("field");
  return element("div", { class: small ? "field small" : "field" }, element("label", { for: control.id }, label), control);
}

export function checkbox(label, checked, onchange) {
  const input = element("input", { type: "checkbox", onchange: () => onchange(input.checked) });
  input.checked = checked;
  return element("label", { class: "check" }, input, element("span", {}, label));
}

// Options are [value, text], or groups of them: { label, options }.
export function select(options, chosen, onchange) {
  const made = element("select", { onchange: () => onchange(made.value) });
  const choice = ([value, text]) => {
    const option = element("option", { value }, text);
    option.selected = value === chosen;
    return option;
  };
  for (const each of options) {
    made.append(Array.isArray(each) ? choice(each) : element("optgroup", { label: each.label }, each.options.map(choice)));
  }
  return made;
}

export function number(value, attributes, onchange) {
  return element("input", {
    type: "number", ...attributes, value: String(value),
    onchange: (event) => { const found = Number(event.target.value); if (Number.isFinite(found)) onchange(found); },
  });
}

export function button(text, onclick, kind = "") {
  return element("button", { type: "button", class: kind, onclick }, text);
}

export function facts(pairs) {
  return element("dl", { class: "facts" }, pairs.filter(([, value]) => value !== null).map(([name, value]) =>
    element("div", {}, element("dt", {}, name), element("dd", {}, value))));
}

// Numbers that matter, in tiles.
export function tiles(pairs, kind = "") {
  return element("dl", { class: "tiles " + kind }, pairs.filter(([, value]) => value !== null && value !== "").map(([name, value, more]) =>
    element("div", {}, element("dt", {}, name), element("dd", {}, value, more ? element("span", { class: "quiet" }, more) : null))));
}

// Choices of which several can hold, each a button that stays down.
export function chips(label, options, chosen, onchange) {
  return element("div", { class: "chips", role: "group", "aria-label": label }, options.map(([value, text, hint]) => {
    const chip = button(text, () => {
      if (chosen.has(value)) chosen.delete(value); else chosen.add(value);
      chip.setAttribute("aria-pressed", String(chosen.has(value)));
      onchange();
    }, "chip");
    chip.setAttribute("aria-pressed", String(chosen.has(value)));
    if (hint) chip.title = hint;
    return chip;
  }));
}

// An empty place, with what to do about it.
export function nothing(title, text, ...more) {
  return element("div", { class: "nothing" }, element("p", {}, element("strong", {}, title)), element("p", {}, text), ...more);
}

// A command line, with a button that copies it.
export function commandLine(text) {
  const copy = button("Copy", async () => {
    await navigator.clipboard.writeText(text);
    copy.textContent = "Copied";
    setTimeout(() => { copy.textContent = "Copy"; }, 1500);
  });
  copy.setAttribute("aria-label", "Copy the command");
  return element("div", { class: "commandline" }, element("code", { class: "command" }, text), copy);
}

export function say(text) {
  const line = element("p", {}, text);
  document.getElementById("messages").append(line);
  setTimeout(() => line.remove(), 9000);
}

export function bytes(count) {
  const units = ["bytes", "kB", "MB", "GB", "TB"];
  let unit = 0;
  while (count >= 1000 && unit < units.length - 1) { count /= 1000; unit += 1; }
  return (unit ? count.toPrecision(3) : count) + " " + units[unit];
}

export function duration(seconds) {
  if (seconds < 1) return "under a second";
  if (seconds < 90) return `about ${Math.round(seconds)} s`;
  return seconds < 5400 ? `about ${Math.round(seconds / 60)} min` : `about ${(seconds / 3600).toPrecision(2)} h`;
}

export function percent(share, digits = 3) {
  if (share === null || share === undefined) return "–";
  const text = short(100 * share, digits);
  return text === "100" && share < 1 ? "over 99.9 %" : text + " %";
}

export function short(value, digits = 3) {
  return value === null || value === undefined ? "–" : String(Number(Number(value).toPrecision(digits)));
}

export function save(name, text, kind = "application/jsonl") {
  const link = element("a", { href: URL.createObjectURL(new Blob([text], { type: kind })), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

export function debounce(action, wait) {
  let timer;
  return (...all) => { clearTimeout(timer); timer = setTimeout(() => action(...all), wait); };
}

// Short names of several models, without the ending that all share: acc and accfmt.
export function shortNames(paths) {
  const names = paths.map(shortName);
  const different = [...new Set(names)];
  if (different.length < 2) return names;
  const parts = different.map((name) => name.split(/(?=[_-])/));
  let count = 0;
  while (parts.every((each) => each.length > count + 1 && each.at(-1 - count) === parts[0].at(-1 - count))) count += 1;
  const cut = (name) => name.split(/(?=[_-])/).slice(0, count ? -count : undefined).join("");
  return new Set(different.map(cut)).size === different.length ? names.map(cut) : names;
}

// A path's last part that says something, as Merganser names models.
export function shortName(path) {
  const parts = path.split("/").filter((part) => part && part !== ".");
  while (parts.length > 1 && /^(actor|huggingface|global_step_.*|checkpoint-.*)$/.test(parts.at(-1))) parts.pop();
  return parts.at(-1) ?? path;
}
