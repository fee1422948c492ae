// The page /dashboard: asks for the live figures once a second and shows them.
//
// Statements, names of threads and the like are untrusted: they become text or attributes, and are
// never parsed as HTML.

const EVERY_MS = 1000;
const PATIENCE_MS = 2000;
const KEPT_SAMPLES = 900;
const KEPT_EVENTS = 300;
const SUMMARY_EVERY_MS = 10_000;
const RELOAD_AT_MOST_EVERY_MS = 5000;

// ---- Words and numbers

const NOT_KNOWN = "–";
const isKnown = (value) => value !== null && value !== undefined;

const numbers = new Intl.NumberFormat("en", { maximumFractionDigits: 1 });
const count = (n) => (isKnown(n) ? numbers.format(n) : NOT_KNOWN);
const some = (n, one) => `${count(n)} ${one}${n === 1 ? "" : "s"}`;
const percent = (n) => `${n.toFixed(1)} %`;

function duration(ms) {
  if (!isKnown(ms)) return NOT_KNOWN;
  if (ms < 10) return `${ms.toFixed(ms < 0.1 ? 2 : 1)} ms`;
  if (ms < 1000) return `${Math.round(ms)} ms`;
  const seconds = ms / 1000;
  if (seconds < 60) return `${seconds.toFixed(1)} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ${Math.floor(seconds % 60)} s`;
  const hours = Math.floor(seconds / 3600);
  return hours < 48 ? `${hours} h ${Math.floor((seconds % 3600) / 60)} min` : `${Math.floor(hours / 24)} days`;
}

const format = (options) => {
  const { format } = new Intl.DateTimeFormat("en-GB", options);
  return format;
};
const toMinute = format({ hour: "2-digit", minute: "2-digit" });
const toSecond = format({ hour: "2-digit", minute: "2-digit", second: "2-digit" });
const toDay = format({ day: "numeric", month: "short" });
const inUtc = (at) => at.toISOString().replace("T", " ").replace("Z", " UTC");

function clock(at) {
  const isToday = at.toDateString() === new Date().toDateString();
  return (isToday ? "" : `${toDay(at)} `) + toSecond(at);
}

const inWords = (name) => name.replace(/_/g, " ");

const SQLSTATES = {
  "": "connection failed", 23505: "unique violation", 25006: "read-only", "28P01": "wrong password",
  40001: "serialization failure", "40P01": "deadlock", 53300: "too many connections", "55P03": "lock timeout",
  57014: "cancelled or timed out", "57P01": "server stopped it", "57P03": "server starting up",
};
const sqlstate = (code) => `${code} ${SQLSTATES[code] ?? ""}`.trim();

// ---- The document

const byId = (id) => document.getElementById(id);
const find = (selector) => document.querySelector(selector);

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) mark(node, name, value);
  node.append(...children);
  return node;
}

const el = (tag, attributes = {}, ...children) => fill(document.createElement(tag), attributes, children);
const svg = (tag, attributes = {}, ...children) =>
  fill(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);

/** Sets a text, and leaves the document alone where it stands already. */
function say(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

function mark(node, name, value) {
  if (!isKnown(value) || value === false) node.removeAttribute(name);
  else if (node.getAttribute(name) !== String(value)) node.setAttribute(name, value);
}

function sayTime(node, at, text) {
  say(node, text);
  mark(node, "title", inUtc(at));
}

// ---- What is known of this run of the server

class History {
  forget(startedAt) {
    this.startedAt = startedAt;
    this.sequence = null;
    this.samples = new Map();
    this.last = 0;
  }

  take({ sequence, history: { fields, first, samples, stepMs } }) {
    this.sequence = sequence;
    this.stepMs = stepMs;
    samples.forEach((values, i) =>
      this.samples.set(first + i, Object.fromEntries(fields.map((field, f) => [field, values[f]]))));
    if (samples.length > 0) this.last = first + samples.length - 1;
    for (const sequence of this.samples.keys()) {
      if (sequence <= this.last - KEPT_SAMPLES) this.samples.delete(sequence);
    }
  }

  timeOf(sequence) {
    return new Date(Date.parse(this.startedAt) + sequence * this.stepMs);
  }

  /** How many samples the charts span: the few of a young server fill their width too. */
  get span() {
    return [120, 300].find((span) => this.last <= span) ?? KEPT_SAMPLES;
  }

  get first() {
    return this.last - this.span + 1;
  }

  /** The known values of a field in the samples from `from` to `to`. */
  values(field, from = this.first, to = this.last) {
    const values = [];
    for (let sequence = from; sequence <= to; sequence++) {
      const value = this.samples.get(sequence)?.[field];
      if (isKnown(value)) values.push(value);
    }
    return values;
  }

  lately(field, seconds) {
    return this.values(field, this.last - seconds + 1);
  }

  newest(field) {
    return this.lately(field, 10).pop();
  }
}

const history = new History();
history.forget(null);

const sum = (values) => values.reduce((total, value) => total + value, 0);
const average = (values) => sum(values) / values.length;

// ---- The state

const ICONS = {
  good: ["1a9550", "M12 1a11 11 0 1 0 0 22 11 11 0 0 0 0-22Zm-1.6 16.2-4.6-4.6 1.8-1.8 2.8 2.8 6-6 1.8 1.8Z"],
  warning: ["d98a00", "M12 1.5 23.5 22H.5ZM10.8 9v6.5h2.4V9Zm0 8v2.4h2.4V17Z"],
  bad: ["d32f2f", "M7.4 1h9.2L23 7.4v9.2L16.6 23H7.4L1 16.6V7.4ZM7 8.8 10.2 12 7 15.2 8.8 17l3.2-3.2 3.2 3.2 1.8-1.8-3.2-3.2L17 8.8 15.2 7 12 10.2 8.8 7Z"],
  waiting: ["708599", "M12 1a11 11 0 1 0 0 22 11 11 0 0 0 0-22ZM11 6h2v5.4l3.6 3.6-1.4 1.4L11 12.2Z"],
};
const STATES = {
  ready: ["Ready", "good"], starting: ["Starting", "waiting"], saturated: ["Saturated", "warning"], paused: ["Paused", "waiting"],
  draining: ["Draining", "warning"], "failing-fast": ["Failing fast", "bad"], "database-away": ["Database away", "bad"],
};

/** Only another `name` is announced, since the figures in `sentence` change all the time. */
function showState(name, [word, tone], sentence) {
  const text = sentence.replace(`${word}: `, "");
  say(find("#sentence strong"), word);
  say(find("#sentence span"), text[0].toUpperCase() + text.slice(1));
  const state = byId("state");
  if (state.dataset.name === name) return;
  state.dataset.name = name;
  state.dataset.tone = tone;
  const [colour, shape] = ICONS[tone];
  mark(find("#state path"), "d", shape);
  byId("icon").href = `data:image/svg+xml,<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 24 24'><path fill='%23${colour}' d='${shape}'/></svg>`;
  document.title = `${word} – millpond`;
  say(byId("announcement"), `${word}: ${text}`);
}

function showHeader(answer) {
  const started = new Date(answer.startedAt);
  const now = new Date();
  say(byId("release"), answer.release);
  sayTime(byId("about"), started, `${answer.application}, started ${duration(Date.parse(answer.timestamp) - started)} ago`);
  sayTime(byId("updated"), now, `Updated ${toSecond(now)}`);
  sayTime(byId("since"), started, clock(started));
}

function showAdvice(advice) {
  const list = find("#advice ul");
  byId("advice").hidden = advice.length === 0;
  const key = JSON.stringify(advice);
  if (list.dataset.key === key) return;
  list.dataset.key = key;
  list.replaceChildren(...advice.map(({ text, reason, setting }) =>
    el("li", {}, el("strong", {}, text), el("p", {}, reason), setting ? el("code", {}, setting) : "")));
}

// ---- Tiles: each has a figure, its unit, a note, and a tone where it deserves a look

const TILES = {
  connections: ({ pool }) => [count(pool.active), `active of ${count(pool.max)}`,
    `${count(pool.idle)} idle, ${count(pool.opening)} opening`, pool.active >= pool.max && "warning"],
  line: ({ pool }) => [count(pool.waiting), pool.waiting === 1 ? "thread" : "threads",
    `wait p99 ${duration(history.newest("waitP99Ms"))}`, pool.waiting > 0 && "warning"],
  operations: () => [duration(history.newest("operationP99Ms")), "p99", `p50 ${duration(history.newest("operationP50Ms"))}`],
  requests: () => [count(history.newest("requests")), "per s",
    `${some(history.newest("errors"), "error")} per s`, history.newest("errors") > 0 && "bad"],
  retries: ({ totals }) => [count(sum(history.lately("retries", 60))), "in a minute",
    `${count(sum(totals.retries.map((r) => r.count)))} since the start`],
  room: ({ server }) => (server === null ? [NOT_KNOWN, "", "not known"] : [count(server.availableConnections), "free",
    `${count(server.usedConnections)} of ${count(server.maxConnections)} used`, server.availableConnections <= 0 && "bad"]),
};

function showTiles(answer) {
  for (const [id, figures] of Object.entries(TILES)) {
    const [figure, unit, note, tone] = figures(answer);
    const tile = byId(id);
    say(tile.querySelector("b"), figure);
    say(tile.querySelector("small"), unit);
    say(tile.querySelector(".note"), note);
    mark(tile, "data-tone", tone);
  }
  const { pool } = answer;
  for (const part of find(".bar").children) part.style.width = `${(100 * pool[part.className]) / Math.max(pool.max, pool.total)}%`;
}

// ---- Charts

/** `look`: part of a stack ("area"), a line, bars or the limit; `mean`: see `stretches`. */
const CHARTS = [
  { title: "Connections", height: 190, series: [
    { name: "active", field: "active", look: "area", mean: true },
    { name: "opening", field: "opening", look: "area", mean: true },
    { name: "idle", field: "idle", look: "area", mean: true },
    { name: "most allowed", field: "max", look: "limit", colour: "max" },
  ] },
  { title: "Threads in line", series: [
    { name: "in line", field: "waiting", look: "line", colour: "wait", filled: true },
  ] },
  { title: "Durations", isDuration: true, series: [
    { name: "wait p99", field: "waitP99Ms", look: "line", colour: "wait" },
    { name: "wait p50", field: "waitP50Ms", look: "line", colour: "wait dashed", mean: true },
    { name: "statement p99", field: "operationP99Ms", look: "line", colour: "operation" },
    { name: "statement p50", field: "operationP50Ms", look: "line", colour: "operation dashed", mean: true },
  ] },
  { title: "Requests per second", series: [
    { name: "requests", field: "requests", look: "line", colour: "active", filled: true, mean: true },
    { name: "errors", field: "errors", look: "bars", colour: "error" },
  ] },
  { title: "Retries per second", series: [
    { name: "retries", field: "retries", look: "bars", colour: "retry" },
  ] },
];

const LEFT = 56;
const RIGHT = 12;
const TOP = 10;
const BOTTOM = 22;

/** The sample that the reader points at, in all charts; null: the newest. */
let pointedAt = null;

function pointAt(sequence) {
  pointedAt = sequence === null ? null : Math.min(Math.max(sequence, history.first), history.last);
  for (const chart of charts) chart.draw();
}

/** From 0 to the smallest of 2, 4, 6, 8, 10, 20, 40, .. that is not below any value: half of it is whole too. */
function linearScale(values) {
  const most = Math.max(1, ...values);
  let power = 1;
  while (10 * power < most) power *= 10;
  const top = [2, 4, 6, 8, 10].find((step) => step * power >= most) * power;
  return { ticks: [0, top / 2, top], write: count, part: (value) => value / top };
}

/** By powers of ten, from 0.1 ms or 1 ms. */
function durationScale(values) {
  const low = Math.min(...values) < 1 ? -1 : 0;
  const high = Math.ceil(Math.log10(Math.max(10, ...values)));
  const ticks = Array.from({ length: high - low + 1 }, (_, i) => 10 ** (low + i));
  const write = (ms) => (ms < 1000 ? `${ms} ms` : `${count(ms / 1000)} s`);
  return { ticks, write, part: (ms) => Math.max(0, (Math.log10(ms) - low) / (high - low)) };
}

const path = (className, d, attributes) => svg("path", { class: className, d, ...attributes });

class Chart {
  constructor({ title, height = 150, series, isDuration }) {
    Object.assign(this, { title, height, series });
    this.chooseScale = isDuration ? durationScale : linearScale;
    this.write = isDuration ? duration : count;
    this.summarizedAt = -Infinity;
    this.picture = svg("svg", { role: "img", height, "aria-label": title });
    this.pointer = this.makePointer();
    this.figures = series.map(() => el("b"));
    const legend = series.map(({ name, look, colour }, i) =>
      el("li", { class: colour ?? name }, el("i", { class: look, "aria-hidden": "true" }), name, " ", this.figures[i]));
    this.plot = el("div", { class: "plot" }, this.picture, this.pointer);
    this.figure = el("figure", { class: "chart" },
      el("figcaption", {}, el("h3", {}, title), el("ul", { class: "legend" }, ...legend)), this.plot);
  }

  makePointer() {
    const pointer = el("div", { class: "pointer", role: "slider", tabindex: 0, "aria-label": `${this.title}, point in time`, "aria-valuenow": 0 });
    pointer.style.inset = `${TOP}px ${RIGHT}px ${BOTTOM}px ${LEFT}px`;
    pointer.onpointermove = pointer.onpointerdown = ({ clientX }) => {
      const { left, width } = pointer.getBoundingClientRect();
      pointAt(history.first + Math.round(((clientX - left) / width) * (history.span - 1)));
    };
    pointer.onpointerleave = () => document.activeElement === pointer || pointAt(null);
    pointer.onblur = () => pointAt(null);
    pointer.onkeydown = (event) => this.onKey(event);
    return pointer;
  }

  onKey(event) {
    const from = pointedAt ?? history.last;
    const to = {
      ArrowLeft: from - 1, ArrowDown: from - 1, ArrowRight: from + 1, ArrowUp: from + 1,
      PageDown: from - 60, PageUp: from + 60, Home: history.first, End: history.last, Escape: null,
    }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    pointAt(to);
  }

  draw() {
    const width = this.plot.clientWidth;
    if (width === 0 || history.startedAt === null) return;
    this.width = width - LEFT - RIGHT;
    this.floor = this.height - BOTTOM;
    this.step = Math.ceil((2.5 * history.span) / this.width);
    this.scale = this.chooseScale(this.series.flatMap(({ field }) => history.values(field)));
    mark(this.picture, "viewBox", `0 0 ${width} ${this.height}`);
    this.picture.replaceChildren(...this.rows(), ...this.times(), ...this.shapes(), ...this.cursor());
    this.tell();
  }

  x(sequence) {
    return Math.round(10 * (LEFT + ((sequence - history.first) / (history.span - 1)) * this.width)) / 10;
  }

  y(value) {
    return Math.round(10 * (this.floor - this.scale.part(value) * (this.floor - TOP))) / 10;
  }

  rows() {
    return this.scale.ticks.flatMap((tick) => [
      path("grid", `M${LEFT} ${this.y(tick)}h${this.width}`),
      svg("text", { x: LEFT - 8, y: this.y(tick) + 4, "text-anchor": "end" }, this.scale.write(tick)),
    ]);
  }

  timeLabel(sequence, write, className) {
    const x = Math.min(Math.max(this.x(sequence), LEFT + 24), LEFT + this.width - 24);
    return svg("text", { class: className, x, y: this.height - 4, "text-anchor": "middle" }, write(history.timeOf(sequence)));
  }

  times() {
    const step = [15, 30, 60, 120, 300].find((step) => (history.span / step) * 90 <= this.width) ?? 600;
    const offset = Math.floor(history.timeOf(0) / history.stepMs) % step;
    const labels = [];
    for (let sequence = history.first; sequence <= history.last; sequence++) {
      const isInside = this.x(sequence) >= LEFT + 24 && this.x(sequence) <= LEFT + this.width - 24;
      if (isInside && (offset + sequence) % step === 0) labels.push(this.timeLabel(sequence, step < 60 ? toSecond : toMinute));
    }
    return labels;
  }

  /**
   * The points of a series, in stretches in which it is known. Where samples lie too close together,
   * a point stands for `step` of them: for their mean, or for the most if peaks matter.
   */
  stretches({ field, mean }) {
    const found = [[]];
    const { first, last } = history;
    for (let from = first - (((first % this.step) + this.step) % this.step); from <= last; from += this.step) {
      const values = history.values(field, Math.max(from, first), from + this.step - 1);
      const middle = Math.min(Math.max(from + (this.step - 1) / 2, first), last);
      if (values.length > 0) found[found.length - 1].push([middle, mean ? average(values) : Math.max(...values)]);
      else found.push([]);
    }
    return found.filter((stretch) => stretch.length > 0);
  }

  shapes() {
    const areas = this.series.filter(({ look }) => look === "area");
    const others = this.series.filter(({ look }) => look !== "area");
    return [...this.stack(areas), ...others.flatMap((series) => this[series.look](series))];
  }

  points(stretch) {
    return stretch.map(([sequence, value]) => `${this.x(sequence)} ${this.y(value)}`).join("L");
  }

  /** What lies below the points, down to the floor. */
  surface(stretches) {
    return stretches.map((stretch) =>
      `M${this.x(stretch[0][0])} ${this.floor}L${this.points(stretch)}V${this.floor}Z`).join("");
  }

  /** Each area reaches to the floor, and those that lie below it are drawn over it. */
  stack(areas) {
    const all = areas.map((series) => this.stretches(series));
    return areas.map(({ name }, top) => {
      const height = (s, i) => sum(all.slice(0, top + 1).map((stretches) => stretches[s][i][1]));
      return path(`area ${name}`, this.surface(all[top].map((stretch, s) => stretch.map(([x], i) => [x, height(s, i)]))));
    }).reverse();
  }

  /** A stretch of one point is a line without length, which its round ends make a dot. */
  line({ colour, filled, ...series }) {
    const stretches = this.stretches(series);
    const line = path(`line ${colour}`, stretches.map((stretch) => `M${this.points(stretch)}h0`).join(""));
    return filled ? [path(`area faint ${colour}`, this.surface(stretches)), line] : [line];
  }

  limit(series) {
    return this.line({ ...series, colour: "limit" });
  }

  bars({ colour, ...series }) {
    const bars = this.stretches(series).flat().filter(([, value]) => value > 0);
    const d = bars.map(([sequence, value]) => `M${this.x(sequence)} ${this.floor}V${Math.min(this.y(value), this.floor - 3)}`);
    return [path(`bars ${colour}`, d.join(""), { "stroke-width": Math.max(1.5, (0.8 * this.step * this.width) / history.span) })];
  }

  cursor() {
    if (pointedAt === null) return [];
    return [path("at", `M${this.x(pointedAt)} ${TOP}V${this.floor}`), this.timeLabel(pointedAt, toSecond, "at-text")];
  }

  tell() {
    const sample = history.samples.get(pointedAt ?? history.last);
    const texts = this.series.map(({ field }) => this.write(sample?.[field]));
    texts.forEach((text, i) => say(this.figures[i], text));
    const isDue = performance.now() - this.summarizedAt > SUMMARY_EVERY_MS;
    if (isDue) this.summarize();
    if (isDue || pointedAt !== null) this.tellPointer(texts);
  }

  tellPointer(texts) {
    const time = pointedAt === null ? "now" : toSecond(history.timeOf(pointedAt));
    const values = this.series.map(({ name }, i) => `${name} ${texts[i].replace(NOT_KNOWN, "not known")}`);
    mark(this.pointer, "aria-valuemax", history.span - 1);
    mark(this.pointer, "aria-valuenow", (pointedAt ?? history.last) - history.first);
    mark(this.pointer, "aria-valuetext", `${time}: ${values.join(", ")}`);
  }

  summarize() {
    this.summarizedAt = performance.now();
    const parts = this.series.map(({ name, field }) => {
      const values = history.values(field);
      return `${name} ${values.length === 0 ? "not known" : `up to ${this.write(Math.max(...values))}, at the end ${this.write(values.pop())}`}`;
    });
    mark(this.picture, "aria-label", `${this.title} in the last ${byId("span").textContent}: ${parts.join("; ")}`);
  }
}

const charts = CHARTS.map((spec) => new Chart(spec));

// ---- Tables

/**
 * Fills a table of the page. Rows stay where they are while their texts change, so that what the
 * reader has opened or focused is not lost. Each of `columns` writes an item into a cell.
 */
class Table {
  constructor(id, key, columns) {
    Object.assign(this, { place: byId(id), key, columns });
    this.body = this.place.querySelector("tbody");
    this.heads = [...this.place.querySelectorAll("thead th")];
    this.rows = new Map();
  }

  show(items) {
    this.rows = new Map(items.map((item) => {
      const row = this.rows.get(this.key(item)) ?? this.makeRow();
      this.columns.forEach((write, i) => write(item, row.cells[i]));
      return [this.key(item), row];
    }));
    const rows = [...this.rows.values()];
    const { children } = this.body;
    if (rows.length !== children.length || rows.some((row, i) => row !== children[i])) this.body.replaceChildren(...rows);
    this.place.querySelector("table").hidden = rows.length === 0;
    this.place.querySelector(".empty").hidden = rows.length > 0;
    mark(this.place, "tabindex", this.place.scrollWidth > this.place.clientWidth && 0);
  }

  makeRow() {
    return el("tr", { role: "row" }, ...this.heads.map((head, i) => (i === 0
      ? el("th", { scope: "row", role: "rowheader", class: head.className })
      : el("td", { role: "cell", class: head.className, "data-label": head.textContent }))));
  }
}

const text = (of) => (item, cell) => say(cell, of(item));

/** A statement in one line, which opens to its full text. */
const sql = (of) => (item, cell) => {
  if (!cell.firstChild) cell.append(el("details", { class: "sql" }, el("summary")));
  const summary = cell.querySelector("summary");
  say(summary, of(item));
  mark(summary, "title", of(item));
};

function writeHeld(holder, cell) {
  if (!cell.firstChild) cell.append(el("span"), " ", el("span", { class: "tag", "data-tone": "bad" }, "Perhaps leaked: held too long"));
  say(cell.firstChild, duration(holder.heldMs));
  cell.lastChild.hidden = !holder.leaked;
}

function doing({ running, statementMs }) {
  if (!isKnown(statementMs)) return "No statement yet";
  return running ? `Running for ${duration(statementMs)}` : `Idle for ${duration(statementMs)}, after:`;
}

function writeStatement(holder, cell) {
  if (!cell.firstChild) cell.append(el("span"), el("div"));
  say(cell.firstChild, doing(holder));
  cell.lastChild.hidden = holder.statement === null;
  sql(() => holder.statement ?? "")(holder, cell.lastChild);
}

const holders = new Table("holders", (h) => `${h.connection} ${h.place} ${h.thread}`,
  [text((h) => h.place), text((h) => h.thread), writeHeld, writeStatement]);

const statements = new Table("statements", (s) => s.sql, [
  sql((s) => s.sql), text((s) => percent(s.sharePercent)), text((s) => count(s.count)), text((s) => count(s.failures)),
  text((s) => duration(s.meanMs)), text((s) => duration(s.p99Ms)), text((s) => duration(s.maxMs)),
]);

const standbys = new Table("standbys", (s) => s.host, [
  text((s) => s.host), text((s) => s.state), text((s) => duration(s.lagMs)), text((s) => `${count(s.pool.active)} of ${count(s.pool.max)}`),
  text((s) => count(s.pool.idle)), text((s) => count(s.pool.waiting)), text((s) => s.error ?? "none"),
]);

const most = (field, write) => text((m) => write(m.samples.reduce((top, s) => (isKnown(s[field]) ? Math.max(top ?? 0, s[field]) : top), null)));
const all = (field) => text((m) => count(sum(m.samples.map((s) => s[field]))));

const minutes = new Table("minutes", (m) => m.minute, [
  text((m) => m.minute), most("active", count), most("waiting", count), most("waitP99Ms", duration), most("operationP99Ms", duration),
  all("requests"), all("errors"), all("retries"),
]);

function showMinutes() {
  if (!byId("as-table").open) return;
  const found = new Map();
  for (const [sequence, sample] of history.samples) {
    const minute = toMinute(history.timeOf(sequence));
    found.set(minute, [...(found.get(minute) ?? []), sample]);
  }
  minutes.show([...found].map(([minute, samples]) => ({ minute, samples })).reverse());
}

// ---- Totals

const TOTALS = {
  "by-status": ({ totals }) => totals.requests.map((r) => [r.status || "not answered", r.count]),
  "statement-totals": ({ totals }) => [["run", totals.statements],
    ...totals.statementFailures.map((f) => [`failed: ${sqlstate(f.sqlstate)}`, f.count])],
  "retry-totals": ({ totals }) => [...totals.retries.map((r) => [`${sqlstate(r.sqlstate)}, ${inWords(r.verdict)}`, r.count]),
    ["not made: the retry budget was empty", totals.retryBudgetEmpty]],
  commits: ({ totals }) => totals.commitOutcomes.map((c) => [inWords(c.outcome), c.count]),
  "check-outs": ({ totals }) => [["failed: no connection in time", totals.checkoutTimeouts], ["leaks", totals.leaks]],
  "connect-failures": ({ totals }) => totals.connectFailures.map((f) => [sqlstate(f.sqlstate), f.count]),
  closed: ({ totals }) => totals.closed.map((c) => [inWords(c.reason), c.count]),
  applications: ({ server }) => (server?.byApplication ?? []).map((a) => [a.applicationName || "(without a name)", a.connections]),
};

const totals = Object.entries(TOTALS).map(([id, entries]) =>
  [entries, new Table(id, ([name]) => name, [text(([name]) => name), text(([, n]) => count(n))])]);

// ---- Events

const LEVELS = { info: ["Info", "waiting"], warning: ["Warning", "warning"], error: ["Error", "bad"] };

function eventItem({ sequence, at, level, text }) {
  const [word, tone] = LEVELS[level] ?? [level, "waiting"];
  const time = new Date(at);
  return el("li", { "data-level": level, "data-sequence": sequence }, el("time", { datetime: at, title: inUtc(time) }, clock(time)),
    el("span", { class: "tag", "data-tone": tone }, word), el("span", {}, text));
}

/** Those of the newest second are told again, since there may be more of them by now. */
function addEvents(events, after) {
  const list = byId("events");
  while (list.firstChild?.dataset.sequence > after) list.firstChild.remove();
  list.prepend(...events.map(eventItem).reverse());
  while (list.children.length > KEPT_EVENTS) list.lastChild.remove();
  tellWhetherEvents();
}

function tellWhetherEvents() {
  const list = byId("events");
  const shown = list.dataset.show === "all" ? "li" : "li:not([data-level=info])";
  byId("no-events").hidden = list.querySelector(shown) !== null;
}

// ---- All of it

function show(answer, after) {
  document.body.classList.remove("stale");
  const { name, sentence } = answer.state;
  showState(name, STATES[name] ?? [name, "waiting"], sentence);
  showHeader(answer);
  showAdvice(answer.advice);
  showTiles(answer);
  say(byId("span"), some((history.span * history.stepMs) / 60_000, "minute"));
  for (const chart of charts) chart.draw();
  showMinutes();
  holders.show(answer.holders);
  say(byId("statements-minutes"), `in the last ${some(answer.statements.minutes, "minute")}`);
  statements.show(answer.statements.list);
  if (answer.textsHidden) say(find("#statements .empty"), "Texts of statements are shown to those who have signed in: set METRICS_TOKEN.");
  addEvents(answer.events, after);
  byId("standbys-section").hidden = answer.standbys.length === 0;
  standbys.show(answer.standbys);
  for (const [entries, table] of totals) table.show(entries(answer));
}

// ---- Asking

let answeredAt = new Date();
let release = null;

async function ask() {
  const after = history.sequence === null ? "" : `?after=${history.sequence}`;
  const asked = fetch(`/api/metrics/live${after}`, { cache: "no-store", signal: AbortSignal.timeout(PATIENCE_MS) });
  const response = await asked.catch(({ name }) => {
    throw new Error(name === "TimeoutError" ? "the server takes too long" : "the server cannot be reached");
  });
  if (response.status === 401) reload();
  if (!response.ok) throw new Error(`the server answered ${response.status}`);
  return response.json();
}

/** What is kept of another run is forgotten, and all of this run is asked for. */
async function askAll() {
  const answer = await ask();
  if (answer.startedAt === history.startedAt) return answer;
  const isAll = history.sequence === null;
  history.forget(answer.startedAt);
  byId("events").replaceChildren();
  return isAll ? answer : ask();
}

function showSilence({ message }) {
  const since = toSecond(answeredAt);
  document.body.classList.add("stale");
  showState(`silent since ${since}`, [`No answer since ${since}`, "bad"], `${message}. The figures below are of that time.`);
  say(byId("updated"), `No answer since ${since}`);
}

function reload() {
  if (performance.now() > RELOAD_AT_MOST_EVERY_MS) location.reload();
}

async function refresh() {
  let answer;
  try {
    answer = await askAll();
  } catch (error) {
    return showSilence(error);
  }
  if (release !== null && release !== answer.release) reload();
  release = answer.release;
  answeredAt = new Date();
  const after = history.sequence ?? 0;
  history.take(answer);
  show(answer, after);
}

let timer = null;
let isAsking = false;

/** A page that nobody sees asks for nothing; once it is seen, it asks for what it has missed. */
async function turn() {
  if (isAsking || document.hidden) return;
  clearTimeout(timer);
  isAsking = true;
  const begun = performance.now();
  try {
    await refresh();
  } finally {
    isAsking = false;
    timer = setTimeout(turn, Math.max(0, begun + EVERY_MS - performance.now()));
  }
}

find(".charts").append(...charts.map(({ figure }) => figure));
byId("as-table").ontoggle = showMinutes;
for (const choice of document.getElementsByName("show")) {
  choice.onchange = () => {
    byId("events").dataset.show = choice.value;
    tellWhetherEvents();
  };
}
new ResizeObserver(() => charts.forEach((chart) => chart.draw())).observe(find(".charts"));
document.addEventListener("visibilitychange", turn);
turn();
