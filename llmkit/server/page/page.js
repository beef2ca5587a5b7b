/**
 * The page of llmkit serve: a form for each task, and its results by one model or two side by side.
 *
 * Texts of models and of users only ever become text nodes. Positions in answers count code points, as in Python.
 */

import { EXAMPLES, LANGUAGES, TEXTS } from "./texts.js";

const KEY = "llmkit-key";
const $ = (id) => document.getElementById(id);

// Words and elements.

let language = localStorage.getItem("llmkit-language") ?? (/^zh\b/i.test(navigator.language) ? "zh" : "en");

const inLanguage = (pair) => pair[language === "zh" ? 1 : 0];

const words = (key, ...values) => inLanguage(TEXTS[key]).replace(/\{(\d)\}/g, (_, place) => values[place]);

/** Give a node words that follow the language of the page. */
function say(node, key, ...values) {
  node.dataset.t = key;
  node.values = values;
  node.textContent = words(key, ...values);
}

function element(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name === "t") say(node, ...[value].flat());
    else if (name.includes("-")) node.setAttribute(name, value);
    else node[name] = value;
  }
  node.append(...children.filter((child) => child != null));
  return node;
}

const button = (key, onclick, properties) => element("button", { type: "button", t: key, onclick, ...properties });

function translate() {
  document.documentElement.lang = language === "zh" ? "zh-CN" : "en";
  for (const node of document.querySelectorAll("[data-t]")) say(node, node.dataset.t, ...(node.values ?? []));
  for (const node of document.querySelectorAll("[data-placeholder]")) node.placeholder = words(node.dataset.placeholder);
  for (const node of document.querySelectorAll("[data-label]")) node.ariaLabel = words(node.dataset.label);
  const names = new Intl.DisplayNames(language, { type: "language" });
  $("languages").replaceChildren(...LANGUAGES.map((code) => element("option", { value: names.of(code) })));
}

/** Announce something to screen readers. */
function announce(text) {
  $("news").append(element("p", {}, text.slice(0, 2000)));
  while ($("news").childElementCount > 4) $("news").firstChild.remove();
}

// Requests.

const address = (path) => new URL(path, new URL(".", location.href)).href;

async function request(path, body, signal) {
  const key = sessionStorage.getItem(KEY);
  let response;
  try {
    response = await fetch(address(path), {
      method: body ? "POST" : "GET",
      headers: { ...(body && { "Content-Type": "application/json" }), ...(key && { Authorization: `Bearer ${key}` }) },
      body: body && JSON.stringify(body),
      signal,
    });
  } catch (error) {
    throw error.name === "AbortError" ? error : new Error(words("unreachable"));
  }
  if (response.ok) return response;
  if (response.status === 401) {
    if (await askForKey(key !== null)) return request(path, body, signal);
    throw new Error(words("keyMissing"));
  }
  const problem = await response.json().catch(() => null);
  throw new Error(problem?.error?.message ?? words("status", response.status));
}

/** The objects of a stream of server-sent events, up to its end mark. */
async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  for (let waiting = ""; ; ) {
    const { done, value } = await reader.read().catch((error) => {
      throw error.name === "AbortError" ? error : new Error(words("broken"));
    });
    if (done) throw new Error(words("broken"));
    const parts = (waiting + value).split("\n\n");
    waiting = parts.pop();
    for (const part of parts) {
      const data = part.replace(/^data: ?/, "");
      if (data === "[DONE]") return;
      const event = JSON.parse(data);
      if (event.error) throw new Error(event.error.message);
      yield event;
    }
  }
}

/** The command that sends a request. The body is a here-document, which needs no quoting and has no limit. */
function curl({ path, body }) {
  const key = sessionStorage.getItem(KEY) === null ? "" : ` -H "Authorization: Bearer $LLMKIT_API_KEY"`;
  const send = `curl -N '${address(path)}' -H 'Content-Type: application/json'${key} --data-binary @- <<'JSON'`;
  return `${send}\n${JSON.stringify(body)}\nJSON\n`;
}

/** Ask for the key; whether there is one now. Several requests share one question. */
let asking = null;
function askForKey(wrong) {
  $("key").hidden = false;
  say($("key-hint"), wrong ? "keyMissing" : "keyHint");
  $("key-value").value = "";
  if (!$("ask-key").open) $("ask-key").showModal();
  asking ??= new Promise((resolve) => {
    $("ask-key").onclose = () => {
      asking = null;
      resolve($("ask-key").returnValue === "keep");
    };
  });
  return asking;
}

function prepareKeyDialog() {
  const close = (result) => $("ask-key").close(result);
  $("ask-key").querySelector("form").onsubmit = (event) => {
    event.preventDefault();
    const key = $("key-value").value.trim();
    if (!/^[\x21-\x7e]+$/.test(key)) return say($("key-hint"), "keyMissing"); // no header can have it
    sessionStorage.setItem(KEY, key);
    close("keep");
  };
  $("key-forget").onclick = () => {
    sessionStorage.removeItem(KEY);
    close("");
  };
  $("key-cancel").onclick = () => close("");
  $("ask-key").oncancel = () => ($("ask-key").returnValue = "");
  $("key").hidden = sessionStorage.getItem(KEY) === null;
  $("key").onclick = async () => (await askForKey(false)) && loadModels();
}

// Models.

let models = [];

const suits = (task, model) => task === "answer" || model.head !== "span";

async function loadModels() {
  $("failure").hidden = true;
  try {
    models = (await (await request("v1/models")).json()).data;
  } catch (error) {
    $("failure").textContent = error.message;
    $("failure").hidden = false;
    return;
  }
  const name = ({ id, parent }) => (parent ? words("adapter", id, parent) : id);
  const options = () => models.map((model) => element("option", { value: model.id, title: model.id }, name(model)));
  $("model").replaceChildren(...options());
  $("other").replaceChildren(element("option", { value: "", t: "noComparison" }), ...options());
  $("other").closest("label").hidden = models.length < 2;
  showTask(current ?? taskInAddress() ?? tasks[HOME[models[0]?.head]]);
}

/** Offer the models that can do a task, and move to one of them. */
function offerModels(task) {
  for (const option of document.querySelectorAll(".pickers option")) {
    const model = models.find(({ id }) => id === option.value);
    option.disabled = model !== undefined && !suits(task.name, model);
  }
  for (const picker of [$("model"), $("other")]) {
    if (picker.selectedOptions[0]?.disabled ?? true) {
      picker.selectedIndex = [...picker.options].findIndex((option) => !option.disabled);
    }
  }
  if ($("other").value === $("model").value) $("other").value = "";
  task.unsuited.hidden = models.length === 0 || $("model").value !== "";
}

// The tasks: the fields of each, and the request that they make.

const AREA = { tag: "textarea", rows: 4, dir: "auto", required: true };
const FILE = { ...AREA, rows: 7, file: true };
const LINE = { tag: "input", type: "text", dir: "auto" };
const number = (limits) => ({ tag: "input", type: "number", placeholder: "byModel", ...limits });
const TO = { ...LINE, languages: true, placeholder: "anyLanguage", half: true };
const LENGTH = { tag: "select", choices: ["medium", "short", "long"] };
const SETTINGS = {
  temperature: number({ min: 0, max: 2, step: "any" }),
  max_new_tokens: number({ min: 1 }),
  seed: number({ min: 0 }),
};

const TASKS = {
  chat: { fields: { message: { ...AREA, rows: 2, placeholder: "message" } }, settings: { system: { ...AREA, required: false }, ...SETTINGS } },
  generate: { fields: { prompt: AREA }, settings: SETTINGS },
  summarize: { fields: { document: FILE, length: LENGTH }, settings: SETTINGS, long: "document" },
  answer: { fields: { question: { ...LINE, required: true }, context: FILE }, settings: SETTINGS, long: "context" },
  translate: {
    fields: { source: FILE, source_lang: { ...TO, placeholder: "detected" }, target_lang: TO },
    settings: SETTINGS,
    long: "source",
  },
  next: { fields: { prompt: AREA, top: number({ min: 1, max: 100, value: 10, required: true }) }, settings: {} },
};

function values(task) {
  const filled = Object.entries(task.controls).filter(([, control]) => control.value !== "");
  return Object.fromEntries(filled.map(([name, { type, value }]) => [name, type === "number" ? Number(value) : value]));
}

function makeRequest(task, model, given, messages) {
  if (task.name === "next") return { path: "v1/next", body: { model, ...given } };
  if (task.name !== "chat") return { path: `v1/${task.name}`, body: { model, ...given, stream: true } };
  const { system, message, max_new_tokens: max_completion_tokens, ...settings } = given;
  const first = system ? [{ role: "system", content: system }] : [];
  const body = { model, messages: [...first, ...messages, { role: "user", content: message }], ...settings };
  const stream = { stream: true, stream_options: { include_usage: true } };
  return { path: "v1/chat/completions", body: { ...body, max_completion_tokens, ...stream } };
}

/** Add an event of a stream to an answer, of OpenAI's API or of a task; the new text and reasoning. */
function take(answer, event) {
  if (event.task) {
    Object.assign(answer, event).whole = event;
    return {};
  }
  const [choice] = event.choices ?? [];
  if (event.usage) answer.usage = event.usage;
  if (choice?.finish_reason) answer.finish_reason = choice.finish_reason;
  const delta = choice?.delta ?? event;
  const piece = { text: delta.content ?? delta.text ?? "", reasoning: delta.reasoning_content ?? delta.reasoning ?? "" };
  answer.text += piece.text;
  answer.reasoning += piece.reasoning;
  return piece;
}

// Results.

/** The index in UTF-16 of a position that counts code points from another index. */
function unitIndex(text, points, from = 0) {
  for (; points > 0; points--) from += text.codePointAt(from) > 0xffff ? 2 : 1;
  return from;
}

function markedContext(context, start, end) {
  const from = unitIndex(context, start);
  const to = unitIndex(context, end - start, from);
  const mark = element("mark", {}, context.slice(from, to));
  const properties = { className: "context", dir: "auto", tabIndex: 0, role: "group" };
  const box = element("div", properties, context.slice(0, from), mark, context.slice(to));
  box.dataset.label = "inContext";
  box.ariaLabel = words("inContext");
  requestAnimationFrame(() => (box.scrollTop = mark.offsetTop - box.clientHeight / 2));
  return box;
}

function partsOf(chunks, text) {
  const items = chunks.map(({ start, end, text: summary }) => {
    const from = unitIndex(text, start);
    const part = text.slice(from, unitIndex(text, end - start, from)).trim();
    const range = element("summary", { t: ["part", start, end] });
    const source = element("p", { className: "text note", dir: "auto" }, part);
    return element("li", {}, element("p", { className: "text", dir: "auto" }, summary), element("details", {}, range, source));
  });
  const title = element("summary", { t: ["parts", chunks.length] });
  return element("details", { open: true }, title, element("ol", { className: "parts" }, ...items));
}

/** A token with its spaces and line ends visible. */
const visible = (token) => token.replaceAll(" ", "␣").replaceAll("\n", "↵").replaceAll("\t", "⇥");

function tokenTable(task, tokens) {
  const rows = tokens.map(({ text, probability }) => {
    const goOn = () => {
      task.controls.prompt.value += text;
      task.form.requestSubmit();
    };
    const partial = /^<[0-9A-F]{2}( [0-9A-F]{2})*>$/.test(text);
    const shown = element("code", {}, visible(text));
    const choice = element("button", { type: "button", className: "small", onclick: goOn, title: text }, shown);
    choice.ariaLabel = words("goOn", text);
    const bar = element("i");
    bar.style.width = `${100 * probability}%`;
    const cell = element("div", { className: "bar" }, `${(100 * probability).toFixed(1)} %`, element("span", {}, bar));
    bar.style.display = "block";
    return element("tr", {}, element("td", {}, partial ? shown : choice), element("td", {}, cell));
  });
  const head = ["token", "probability"].map((t) => element("th", { t, scope: "col" }));
  return element("table", {}, element("thead", {}, element("tr", {}, ...head)), element("tbody", {}, ...rows));
}

/** A place for one answer of one model. */
class Result {
  constructor(task, sent, shownInJson) {
    Object.assign(this, { task, sent, shownInJson, answer: { text: "", reasoning: "" }, begun: performance.now() });
    this.text = document.createTextNode("");
    this.thoughts = document.createTextNode("");
    this.body = element("p", { className: "text", dir: "auto" }, this.text);
    const thoughts = element("p", { className: "text note", dir: "auto" }, this.thoughts);
    this.reasoning = element("details", { hidden: true }, element("summary", { t: "reasoning" }), thoughts);
    this.facts = element("p", { className: "facts", t: "running" });
    this.title = element("h3", {}, sent.body.model);
    const copyCurl = button("curl", (event) => copy(event.target, curl(sent)), { className: "small" });
    this.buttons = element("div", { className: "buttons" }, copyCurl);
    const parts = [this.title, this.reasoning, this.body, this.facts, this.buttons];
    this.card = element("article", { className: `card busy ${task.name}` }, ...parts);
  }

  add({ text = "", reasoning = "" }) {
    this.text.appendData(text);
    this.thoughts.appendData(reasoning);
    if (reasoning) this.reasoning.hidden = false;
  }

  /** Show a whole answer, or what there is of one that was stopped. */
  finish() {
    const { answer, task } = this;
    this.card.classList.remove("busy");
    this.text.data = answer.text;
    const context = this.sent.body[task.long];
    if (answer.tokens) this.body.replaceWith(tokenTable(task, answer.tokens));
    if (Number.isInteger(answer.start)) this.body.after(markedContext(context, answer.start, answer.end));
    if (answer.chunks?.length) this.facts.before(partsOf(answer.chunks, context));
    if (answer.notes?.length) {
      const notes = answer.notes.map(({ code, text }) => element("li", {}, `${text} `, element("code", {}, code)));
      this.facts.before(element("ul", { className: "notes" }, ...notes));
    }
    if (!answer.text && !answer.tokens && answer.finish_reason !== "stopped") this.body.before(this.explainEmpty());
    if (answer.target_language) this.body.lang = answer.target_language;
    this.showFacts();
    const small = { className: "small" };
    this.buttons.prepend(
      button("copy", (event) => copy(event.target, this.plain()), small),
      button("download", () => download(`${task.name}.txt`, this.plain()), small),
      button("json", () => download(`${task.name}.json`, JSON.stringify(this.shownInJson(this), null, 2)), small),
    );
    announce(words("done", this.sent.body.model, this.plain() || this.facts.textContent));
  }

  explainEmpty() {
    const { answered } = this.answer;
    const t = answered === false ? "noAnswer" : answered === null ? "noVerdict" : "emptyOutput";
    return element("p", { className: "note", t });
  }

  showFacts() {
    const { usage, score, finish_reason: reason, source_language: from, target_language: to } = this.answer;
    const facts = [
      usage && ["tokensIn", usage.prompt_tokens],
      usage?.completion_tokens && ["tokensOut", usage.completion_tokens],
      ["seconds", ((performance.now() - this.begun) / 1000).toFixed(1)],
      typeof score === "number" && ["score", score.toFixed(3)],
      from && to && ["languages", from, to],
      `finish_${reason}` in TEXTS && [`finish_${reason}`],
    ];
    const shown = facts.filter(Boolean).flatMap((t) => [" · ", element("span", { t })]);
    delete this.facts.dataset.t;
    this.facts.replaceChildren(...shown.slice(1));
  }

  fail(message) {
    this.card.classList.remove("busy");
    this.facts.replaceWith(element("p", { className: "error", role: "alert" }, message));
  }

  plain() {
    const { tokens, text } = this.answer;
    return tokens ? tokens.map((each) => `${each.probability}\t${each.text}`).join("\n") : text;
  }
}

async function fill(result, signal) {
  const { answer, sent } = result;
  try {
    const response = await request(sent.path, sent.body, signal);
    if (!sent.body.stream) Object.assign(answer, (answer.whole = await response.json()));
    else for await (const event of events(response)) result.add(take(answer, event));
  } catch (error) {
    if (error.name !== "AbortError") return result.fail(error.message);
    answer.finish_reason = "stopped";
  }
  result.finish();
}

/** Put a text on the clipboard, which plain HTTP from another machine lets pages do in the old way only. */
async function copy(source, text) {
  let copied = true;
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const area = element("textarea", { value: text, className: "unseen", "aria-hidden": "true" });
    source.after(area);
    area.select();
    copied = document.execCommand("copy");
    area.remove();
    source.focus();
  }
  const t = (source.dataset.own ??= source.dataset.t);
  say(source, copied ? "copied" : "notCopied");
  announce(source.textContent);
  setTimeout(() => say(source, t), 1500);
}

function download(name, text) {
  const link = element("a", { href: URL.createObjectURL(new Blob([text])), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

// Forms.

function makeControl(task, name, { tag, file, choices, languages, placeholder, half, ...properties }) {
  const id = `${task.name}-${name}`;
  const control = element(tag, { id, ...properties });
  if (choices) control.append(...choices.map((t) => element("option", { t, value: t })));
  if (languages) control.setAttribute("list", "languages");
  if (placeholder) control.dataset.placeholder = placeholder;
  task.controls[name] = control;
  const parts = [element("label", { htmlFor: id, t: name }), control];
  if (file) parts.push(makeUpload(control));
  return element("div", { className: half ? "field half" : "field" }, ...parts);
}

function makeUpload(area) {
  const report = element("span", { className: "note", role: "status" });
  const picker = element("input", { type: "file", className: "unseen" });
  picker.onchange = async () => {
    const [file] = picker.files;
    picker.value = "";
    try {
      area.value = new TextDecoder("utf-8", { fatal: true }).decode(await file.arrayBuffer());
      say(report, "opened", file.name, [...area.value].length);
    } catch {
      say(report, "notText", file.name);
    }
  };
  const label = element("label", { className: "button small" }, element("span", { t: "open" }), picker);
  return element("div", { className: "buttons" }, label, report);
}

function makeTask(name) {
  const task = { name, ...TASKS[name], controls: {}, running: null, panes: new Map() };
  const isChat = name === "chat";
  const fields = Object.entries(task.fields).map(([field, kind]) => makeControl(task, field, kind));
  const halves = fields.filter((field) => field.classList.contains("half"));
  if (halves.length) fields.splice(-halves.length, halves.length, element("div", { className: "pair" }, ...halves));
  const settings = Object.entries(task.settings).map(([setting, kind]) => makeControl(task, setting, kind));
  const more = element("details", { className: "settings" }, element("summary", { t: "settings" }), element("div", {}, ...settings));
  task.run = element("button", { className: "primary", t: isChat ? "send" : "run" });
  task.stop = button("stop", () => task.running?.abort(), { hidden: true });
  const example = button("example", () => useExample(task), { className: "plain" });
  const clear = isChat ? button("clear", () => forget(task), { className: "plain" }) : null;
  const keys = element("p", { className: "keys", t: isChat ? "keysChat" : "keys" });
  const buttons = element("div", { className: "buttons" }, task.run, task.stop, example, clear, keys);
  task.unsuited = element("p", { className: "notice", t: "unsuited", hidden: true });
  task.form = element("form", {}, task.unsuited, ...fields, settings.length ? more : null, buttons);
  task.form.onsubmit = (event) => {
    event.preventDefault();
    if (!task.running && $("model").value) run(task);
  };
  task.form.addEventListener("invalid", ({ target }) => target.closest("details")?.setAttribute("open", ""), true);
  task.form.onkeydown = (event) => submitByKey(task, event);
  task.results = element("div", { className: "results" });
  const empty = element("p", { className: "empty", t: isChat ? "emptyChat" : "empty" });
  const right = element("section", {}, task.results, empty);
  right.dataset.label = isChat ? "conversation" : "result";
  const columns = element("div", { className: "columns" }, ...(isChat ? [right, task.form] : [task.form, right]));
  const title = element("h2", { t: name });
  task.section = element("section", { className: `task ${name}`, hidden: true }, title, element("p", { className: "help", t: `${name}Help` }), columns);
  task.link = element("a", { href: `#${name}`, t: name });
  document.querySelector("nav").append(task.link);
  $("main").append(task.section);
  return task;
}

function submitByKey(task, event) {
  if (event.key !== "Enter" || event.target.tagName !== "TEXTAREA") return;
  if (event.isComposing || event.keyCode === 229) return; // an input method takes this key
  const sends = event.target === task.controls.message && !event.shiftKey;
  if (!sends && !event.ctrlKey && !event.metaKey) return;
  event.preventDefault();
  task.form.requestSubmit();
}

function useExample(task) {
  for (const [name, pair] of Object.entries(EXAMPLES[task.name])) task.controls[name].value = inLanguage(pair);
  task.run.focus();
}

/** Run a task with the chosen model, and with the other one beside it. */
async function run(task) {
  const chosen = [...new Set([$("model").value, $("other").value])].filter(Boolean);
  const given = values(task);
  task.running = new AbortController();
  const { signal } = task.running;
  task.run.setAttribute("aria-disabled", "true");
  task.stop.hidden = false;
  announce(words("running"));
  try {
    await Promise.all(task.name === "chat" ? talk(task, chosen, given, signal) : compute(task, chosen, given, signal));
  } finally {
    task.running = null;
    task.run.removeAttribute("aria-disabled");
    if (document.activeElement === task.stop) task.run.focus();
    task.stop.hidden = true;
  }
}

function compute(task, chosen, given, signal) {
  const results = chosen.map((model) => new Result(task, makeRequest(task, model, given), ({ answer }) => answer.whole ?? answer));
  task.results.replaceChildren(...results.map(({ card }) => card));
  if (task.results.getBoundingClientRect().top > 0.7 * innerHeight) task.results.scrollIntoView();
  return results.map((result) => fill(result, signal));
}

/** Send a message in the conversation with each model; turns that failed are left out of what follows. */
function talk(task, chosen, given, signal) {
  for (const [model, pane] of task.panes) pane.log.hidden = !chosen.includes(model);
  task.controls.message.value = "";
  task.controls.message.focus({ preventScroll: true });
  return chosen.map(async (model) => {
    const pane = task.panes.get(model) ?? { messages: [], log: element("div", { className: "log" }, element("h3", {}, model)) };
    task.panes.set(model, pane);
    if (!pane.log.isConnected) task.results.append(pane.log);
    const whole = () => ({ model, messages: pane.messages });
    const result = new Result(task, makeRequest(task, model, given, pane.messages), whole);
    result.title.remove();
    const said = element("p", { className: "text", dir: "auto" }, given.message);
    const turn = element("div", { className: "turn" }, element("h4", { className: "unseen", t: "you" }), said);
    pane.log.append(turn, result.card);
    turn.scrollIntoView();
    await fill(result, signal);
    if (!result.answer.finish_reason || !result.answer.text) return;
    pane.messages = [...pane.messages, { role: "user", content: given.message }, { role: "assistant", content: result.answer.text }];
  });
}

function forget(task) {
  task.running?.abort();
  task.panes.clear();
  task.results.replaceChildren();
  task.controls.message.focus();
}

// The page.

const tasks = Object.fromEntries(Object.keys(TASKS).map((name) => [name, makeTask(name)]));
const HOME = { causal: "chat", seq2seq: "summarize", span: "answer" };

let current = null;

const taskInAddress = () => tasks[location.hash.slice(1)];

function showTask(task = tasks.chat) {
  current = task;
  nameDocument();
  for (const each of Object.values(tasks)) {
    each.section.hidden = each !== task;
    if (each === task) each.link.setAttribute("aria-current", "page");
    else each.link.removeAttribute("aria-current");
  }
  offerModels(task);
}

function nameDocument() {
  document.title = current ? `${words(current.name)} – llmkit` : "llmkit";
}

function toggleTheme() {
  const root = document.documentElement;
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
  localStorage.setItem("llmkit-theme", root.dataset.theme);
}

const theme = localStorage.getItem("llmkit-theme");
if (theme) document.documentElement.dataset.theme = theme;
$("theme").onclick = toggleTheme;
$("language").value = language;
$("language").onchange = () => {
  language = $("language").value;
  localStorage.setItem("llmkit-language", language);
  translate();
  nameDocument();
};
$("model").onchange = $("other").onchange = () => offerModels(current);
addEventListener("hashchange", () => taskInAddress() && showTask(taskInAddress()));
addEventListener("keydown", (event) => {
  if (event.key === "Escape" && !$("ask-key").open) for (const task of Object.values(tasks)) task.running?.abort();
});
prepareKeyDialog();
translate();
loadModels();
