// What the page asks of its server, and of nobody else.
const found = /^#token=(.+)$/.exec(location.hash);
if (found) {
  sessionStorage.setItem("token", decodeURIComponent(found[1]));
  history.replaceState(null, "", location.pathname);
}

function headers(more = {}) {
  const token = sessionStorage.getItem("token");
  return { ...more, ...(token ? { Authorization: "Bearer " + token } : {}) };
}

export const hasToken = () => sessionStorage.getItem("token") !== null;

async function answer(response) {
  const data = await response.json().catch(() => ({}));
  if (response.ok) return data;
  if (response.status === 401) {
    const token = prompt("The studio's token (the command that started it printed it)");
    if (token) { sessionStorage.setItem("token", token.trim()); location.reload(); }
  }
  throw new Error(data.error?.message ?? "the server answered " + response.status);
}

async function ask(path, options) {
  try {
    return await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The studio does not answer; does its command still run?");
  }
}

export async function read(path, query = {}) {
  const words = new URLSearchParams(query).toString();
  return answer(await ask(path + (words ? "?" + words : ""), { headers: headers() }));
}

export async function send(path, body = {}) {
  const kind = { "Content-Type": "application/json", "X-Merganser": "studio" };
  return answer(await ask(path, { method: "POST", headers: headers(kind), body: JSON.stringify(body) }));
}

// The parts of a streamed answer: calls onText with each text; returns finish, tokens and digest.
export async function stream(path, body, onText, signal) {
  const response = await ask(path, {
    method: "POST", signal, headers: headers({ "Content-Type": "application/json" }),
    body: JSON.stringify({ ...body, stream: true, stream_options: { include_usage: true } }),
  });
  if (!response.ok) await answer(response);
  const result = { finish: null, tokens: 0, digest: null };
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) break;
    const events = (rest + value).split("\n\n");
    rest = events.pop();
    for (const event of events) {
      const text = event.replace(/^data: /, "");
      if (text === "[DONE]") continue;
      const data = JSON.parse(text);
      if (data.error) throw new Error(data.error.message);
      result.digest = data.system_fingerprint ?? result.digest;
      if (data.usage) result.tokens = data.usage.completion_tokens;
      const choice = data.choices[0];
      if (!choice) continue;
      result.finish = choice.finish_reason ?? result.finish;
      const added = choice.delta?.content ?? choice.text ?? "";
      if (added) onText(added);
    }
  }
  return result;
}
