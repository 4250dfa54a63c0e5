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

export function select(options, chosen, onchange) {
  const made = element("select", { onchange: () => onchange(made.value) });
  for (const [value, text] of options) {
    const option = element("option", { value }, text);
    option.selected = value === chosen;
    made.append(option);
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

// A path's last part that says something, as Merganser names models.
export function shortName(path) {
  const parts = path.split("/").filter((part) => part && part !== ".");
  while (parts.length > 1 && /^(actor|huggingface|global_step_.*|checkpoint-.*)$/.test(parts.at(-1))) parts.pop();
  return parts.at(-1) ?? path;
}
