// The scenes of tests/dashboard.sh, which starts this and says what it needs in the environment.

import { spawn } from "node:child_process";
import fs from "node:fs";
import { createRequire } from "node:module";
import net from "node:net";
import path from "node:path";

const { PLACE, PROGRAM, BROWSER, PICTURES, PICTURE, PG_BIN_DIR, AS_POSTGRES } = process.env;
const require = createRequire(path.join(PLACE, "package.json"));
const puppeteer = require("puppeteer-core");
const axe = fs.readFileSync(require.resolve("axe-core/axe.min.js"), "utf8");

const HOSTILE = "<img src=x onerror=alert(1)>";
const TOKEN = "open-sesame-4711";
const VARIANTS = [
  ["light", { width: 1280, height: 800 }], ["dark", { width: 1280, height: 800 }],
  ["light", { width: 390, height: 844 }], ["dark", { width: 390, height: 844 }],
];
// Time to add to a bound, in ms, on a machine that does other things too.
const SLACK = process.env.MILLPOND_TEST_FIGURES === undefined ? 2000 : 0;
// What Chromium says itself of a request that fails, and no page can avoid.
const OF_THE_NETWORK = /^Failed to load resource/;

const step = (what) => console.log(`- ${what}`);
const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

function check(condition, what) {
  if (!condition) throw new Error(what);
}

async function eventually(what, condition, limit = 30_000) {
  const end = performance.now() + limit;
  while (performance.now() < end) {
    if (await Promise.resolve(condition()).catch(() => false)) return;
    await sleep(50);
  }
  throw new Error(`never: ${what}`);
}

async function freePort() {
  const server = net.createServer().listen(0, "127.0.0.1");
  await new Promise((resolve) => server.once("listening", resolve));
  const { port } = server.address();
  await new Promise((resolve) => server.close(resolve));
  return port;
}

// ---- The database

const database = { port: await freePort() };

function asPostgres(program, ...parameters) {
  const [first, ...rest] = [...AS_POSTGRES.split(" ").filter(Boolean), path.join(PG_BIN_DIR, program), ...parameters];
  return [first, rest, { cwd: PLACE, stdio: "ignore" }];
}

function control(...what) {
  const options = `-c port=${database.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories= -c fsync=off`;
  const log = path.join(PLACE, "data", "server.log");
  return start(spawn(...asPostgres("pg_ctl", "--pgdata", "data", "--wait", "--log", log, "--options", options, ...what))).ended;
}

const databaseUrl = () => `postgresql://postgres@127.0.0.1:${database.port}/postgres`;

function psql(sql) {
  return start(spawn(path.join(PG_BIN_DIR, "psql"), ["--dbname", databaseUrl(), "--command", sql], { stdio: "ignore" }));
}

/** The postmaster and its processes. */
function databaseProcesses() {
  const postmaster = fs.readFileSync(path.join(PLACE, "data", "postmaster.pid"), "utf8").split("\n")[0];
  const children = fs.readFileSync(`/proc/${postmaster}/task/${postmaster}/children`, "utf8").split(" ").filter(Boolean);
  return [postmaster, ...children].map(Number);
}

function signalDatabase(signal) {
  for (const id of databaseProcesses()) {
    try {
      process.kill(id, signal);
    } catch (error) {
      if (error.code !== "ESRCH") throw error;
    }
  }
}

// ---- The programs

const started = new Set();

function start(child) {
  started.add(child);
  child.ended = new Promise((resolve) => child.once("exit", (code) => {
    started.delete(child);
    resolve(code);
  }));
  return child;
}

async function end(child, signal = "SIGTERM") {
  child.kill(signal);
  return child.ended;
}

async function serve(port, settings = {}) {
  const log = fs.openSync(path.join(PLACE, "server.log"), "a");
  const env = {
    PATH: process.env.PATH, HOME: PLACE, DATABASE_URL: databaseUrl(), HTTP_ADDR: `127.0.0.1:${port}`, DB_APPLICATION_NAME: HOSTILE,
    DB_POOL_MAX: 10, DB_STATEMENT_TIMEOUT_MS: 60_000, DB_QUERY_TIMEOUT_MS: 60_000, HTTP_REQUEST_TIMEOUT_MS: 60_000,
    DB_LEAK_THRESHOLD_MS: 1000, DB_FAIL_FAST_AFTER_MS: 3000, SHUTDOWN_DELAY_MS: 15_000, SHUTDOWN_TIMEOUT_MS: 20_000, ...settings,
  };
  const server = start(spawn(PROGRAM, { cwd: PLACE, env, stdio: ["ignore", log, log] }));
  server.url = `http://127.0.0.1:${port}`;
  await eventually("ready", async () => (await fetch(`${server.url}/health/ready`)).ok);
  return server;
}

/** Keeps `clients` busy with the server's API until it is stopped. */
function load(url, clients) {
  let isOver = false;
  const client = async (n) => {
    for (let i = 0; !isOver; i++) {
      const path = ["/api/studios", "/api/reservations?limit=200", "/api/quotes", "/api/invoices"][(n + i) % 4];
      const body = JSON.stringify({ studioId: 1 + (i % 3), customer: "Ada", startsAt: "2030-01-02T10:00:00Z", endsAt: "2030-01-02T12:00:00Z" });
      const request = i % 5 === 0 ? fetch(`${url}/api/quotes`, { method: "POST", headers: { "Content-Type": "application/json" }, body }) : fetch(url + path);
      await request.then((answer) => answer.arrayBuffer()).catch(() => sleep(100));
    }
  };
  const all = Array.from({ length: clients }, (_, n) => client(n));
  return () => {
    isOver = true;
    return Promise.all(all);
  };
}

// ---- The page

const faults = [];

async function open(browser, url) {
  const page = await browser.newPage();
  page.on("console", (message) => {
    if (["error", "warn"].includes(message.type()) && !OF_THE_NETWORK.test(message.text())) faults.push(`console: ${message.text()}`);
  });
  page.on("pageerror", (error) => faults.push(`error: ${error.stack}`));
  page.on("dialog", (dialog) => {
    faults.push(`dialog: ${dialog.message()}`);
    dialog.dismiss();
  });
  await page.evaluateOnNewDocument(() => {
    document.addEventListener("securitypolicyviolation", (event) => console.error(`violates ${event.violatedDirective}: ${event.blockedURI}`));
  });
  await look(page, ...VARIANTS[0]);
  await page.goto(url);
  return page;
}

async function look(page, scheme, viewport) {
  await page.setViewport(viewport);
  await page.emulateMediaFeatures([{ name: "prefers-color-scheme", value: scheme }]);
}

const textOf = (page, selector) => page.$eval(selector, (node) => node.textContent);
const stateOf = (page) => page.$eval("#state", (state) => state.dataset.name);
const warnings = (page) => page.$$eval("#events li:not([data-level=info])", (all) => all.map((item) => item.textContent));

async function state(page, wanted, limit) {
  await eventually(`the state ${wanted}`, async () => wanted.split("|").includes((await stateOf(page)).split(" ")[0]), limit);
}

/** Looks at the page in all variants. */
async function scene(page, name) {
  for (const [scheme, viewport] of VARIANTS) {
    await look(page, scheme, viewport);
    await sleep(200);
    const file = `${name}-${scheme}-${viewport.width}.png`;
    await page.screenshot({ path: path.join(PICTURES, file), fullPage: true });
    const width = await page.evaluate(() => document.documentElement.scrollWidth);
    check(width <= viewport.width, `${file}: it is ${width} px wide`);
    const { violations } = await page.evaluate(`${axe}; axe.run(document, { resultTypes: ["violations"] })`);
    const grave = violations.filter(({ impact }) => ["serious", "critical"].includes(impact));
    check(grave.length === 0, `${file}: ${JSON.stringify(grave.map(({ id, nodes }) => [id, nodes.map((node) => node.html)]))}`);
  }
  await look(page, ...VARIANTS[0]);
  check(faults.length === 0, `${name}: ${faults.join("\n")}`);
}

// ---- The scenes

async function underLoad(page, url) {
  step("under load, it shows what the pool does");
  const stop = load(url, 30);
  const env = { PATH: process.env.PATH, HOME: PLACE, DATABASE_URL: databaseUrl() };
  const tester = start(spawn(PROGRAM, ["load-test", "--workers", "8", "--queries", "100000"], { cwd: PLACE, env, stdio: "ignore" }));
  await eventually("statements", async () => (await page.$$("#statements tbody tr")).length > 3);
  await eventually("holders", async () => (await page.$$("#holders tbody tr")).length > 0);
  await eventually("requests", async () => parseInt(await textOf(page, "#requests b"), 10) > 10);
  await eventually("connections by application", async () => (await page.$$("#applications tbody tr")).length > 0);
  await sleep(8000);
  check((await textOf(page, "#about")).startsWith(HOSTILE), "a hostile name is not shown as it is");
  check(await page.$("img") === null, "a hostile name became an element");
  await scene(page, "load");
  await stop();
  await end(tester);
}

async function takePicture(browser) {
  step("README's picture");
  const server = await serve(await freePort(), { DB_APPLICATION_NAME: "studio-revenue-manager", DB_LEAK_THRESHOLD_MS: 0 });
  const page = await open(browser, `${server.url}/dashboard`);
  await page.setViewport({ width: 1200, height: 1400 });
  for (const clients of [4, 24, 8]) {
    const stop = load(server.url, clients);
    await sleep(30_000);
    await stop();
  }
  const stop = load(server.url, 30);
  await sleep(15_000);
  psql("BEGIN; LOCK TABLE studio.quotes IN ACCESS EXCLUSIVE MODE; SELECT pg_sleep(6)");
  await state(page, "saturated");
  await sleep(3000);
  await page.screenshot({ path: PICTURE });
  await stop();
  check(fs.statSync(PICTURE).size <= 250 * 1024, "the picture is larger than 250 KB");
  await page.close();
  await end(server, "SIGKILL");
}

async function byKeyboard(page) {
  step("with the keyboard, the way leads past the head, into the charts and back");
  await page.evaluate(() => document.activeElement.blur());
  await page.keyboard.press("Tab");
  check(await page.evaluate(() => document.activeElement.className) === "skip", "the first stop is not the skip link");
  await page.keyboard.press("Enter");
  await page.focus(".pointer");
  await page.keyboard.press("ArrowLeft");
  await page.keyboard.press("ArrowLeft");
  const told = await page.$eval(".pointer", (pointer) => pointer.getAttribute("aria-valuetext"));
  check(/^\d\d:\d\d:\d\d: active \d+, opening \d+, idle \d+, most allowed 10$/.test(told), `it says: ${told}`);
  check((await page.$$(".plot .at")).length === 5, "not all charts show the point in time");
  await page.keyboard.press("Escape");
  check((await page.$$(".plot .at")).length === 0, "Escape leaves the point in time");
  await page.click("#as-table summary");
  await eventually("rows of the table", async () => (await page.$$("#minutes tbody tr")).length > 0);
  await page.click("#as-table summary");
}

async function hidden(page) {
  step("hidden, it asks for nothing, and catches up once it is seen");
  let asked = 0;
  const count = (request) => (asked += request.url().includes("/live") ? 1 : 0);
  const hide = (value) => page.evaluate((value) => {
    Object.defineProperty(document, "hidden", { value, configurable: true });
    document.dispatchEvent(new Event("visibilitychange"));
  }, value);
  await hide(true);
  await sleep(1500);
  page.on("request", count);
  await sleep(3000);
  check(asked === 0, `it asked ${asked} times`);
  await hide(false);
  await eventually("it asks again", () => asked > 0);
  page.off("request", count);
}

async function leak(page, url) {
  step("a connection that is held too long is named");
  psql("BEGIN; LOCK TABLE studio.reservations IN ACCESS EXCLUSIVE MODE; SELECT pg_sleep(120)");
  await sleep(500);
  const asked = fetch(`${url}/api/reservations`);
  await eventually("the leak", async () => (await textOf(page, "#holders")).includes("studio.reservations") &&
    await page.$eval("#holders .tag", (tag) => !tag.hidden));
  await eventually("its event", async () => (await warnings(page)).length > 0);
  await scene(page, "leak");
  await psql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE '%pg_sleep(120)'").ended;
  // Served or, if the pictures took long, given up.
  await asked;
}

async function restart(page, url) {
  step("a restart of the database is shown within two seconds");
  const stop = load(url, 10);
  await sleep(1000);
  const before = await warnings(page);
  const at = performance.now();
  const restarted = control("--mode", "immediate", "restart");
  await eventually("the restart", async () => await stateOf(page) !== "ready" || (await warnings(page))[0] !== before[0]);
  const took = Math.round(performance.now() - at);
  console.log(`  after ${took} ms`);
  check(took < 2000 + SLACK, "that is too late");
  check(await restarted === 0, "the database is not there again");
  await state(page, "ready");
  await scene(page, "restart");
  await stop();
}

async function freeze(page, url) {
  step("a frozen database is shown, and its recovery");
  const stop = load(url, 10);
  await sleep(500);
  const at = performance.now();
  signalDatabase("SIGSTOP");
  try {
    await state(page, "database-away|failing-fast|saturated", 10_000);
    console.log(`  after ${Math.round(performance.now() - at)} ms`);
    await scene(page, "freeze");
  } finally {
    signalDatabase("SIGCONT");
  }
  await stop();
  await state(page, "ready");
}

async function drain(page, server, port) {
  step("a drain is shown, then the silence, then the next program");
  server.kill("SIGTERM");
  await state(page, "draining", 2000 + SLACK);
  check((await page.title()).startsWith("Draining"), "the title does not say it");
  await scene(page, "draining");
  check(await server.ended === 0, "the drain failed");
  await state(page, "silent");
  check(/^No answer since \d\d:\d\d:\d\d/.test(await page.title()), "the title does not say it");
  await scene(page, "silent");
  const next = await serve(port);
  await state(page, "ready");
  check(!await page.$eval("body", (body) => body.classList.contains("stale")), "it is still grey");
  check(await textOf(page, "#span") === "2 minutes", "it has not forgotten the other program");
  await scene(page, "started");
  return next;
}

async function signIn(browser) {
  step("with METRICS_TOKEN, one signs in and out");
  const server = await serve(await freePort(), { METRICS_TOKEN: TOKEN });
  const page = await open(browser, `${server.url}/dashboard`);
  const submit = async (token) => {
    await page.type("#token", token);
    await Promise.all([page.waitForNavigation(), page.click("button")]);
  };
  check(await textOf(page, "#message") === "", "a message before a token was given");
  await scene(page, "sign-in");
  await submit("wrong");
  check(await textOf(page, "#message") !== "", "a wrong token is not named");
  await scene(page, "wrong-token");
  await submit(TOKEN);
  await state(page, "ready");
  check(page.url() === `${server.url}/dashboard`, page.url());
  check(!(await page.content()).includes(TOKEN), "the token is in the page");
  check(await page.evaluate(() => document.cookie) === "", "the page can read the cookie");
  check((await page.cookies()).every(({ value, httpOnly, sameSite }) => httpOnly && sameSite === "Strict" && !value.includes(TOKEN)), "the cookie is careless");
  await scene(page, "signed-in");
  const other = await open(browser, `${server.url}/dashboard`);
  await state(other, "ready");
  await sleep(5000);
  await page.bringToFront();
  await Promise.all([page.waitForNavigation(), page.click(".sign-out button")]);
  check(await page.$("#token") !== null, "one is not signed out");
  await other.bringToFront();
  await eventually("the other page asks to sign in", async () => await other.$("#token") !== null, 8000);
  await end(server, "SIGKILL");
}

async function run() {
  check(await control("start") === 0, "the database does not start");
  const port = await freePort();
  let server = await serve(port);
  const browser = await puppeteer.launch({ executablePath: BROWSER, args: ["--no-sandbox", "--disable-gpu"] });
  try {
    const page = await open(browser, `${server.url}/dashboard`);
    await state(page, "ready");
    check(!await page.$eval(".sign-out", (form) => form.checkVisibility()), "Sign out is shown to those who never signed in");
    await scene(page, "empty");
    await underLoad(page, server.url);
    await byKeyboard(page);
    await hidden(page);
    await leak(page, server.url);
    await restart(page, server.url);
    await freeze(page, server.url);
    server = await drain(page, server, port);
    await signIn(browser);
    if (PICTURE) await takePicture(browser);
    check(faults.length === 0, faults.join("\n"));
  } finally {
    await browser.close();
  }
}

function endAll() {
  return Promise.all([...started].map((child) => end(child, "SIGKILL")));
}

for (const signal of ["SIGINT", "SIGTERM"]) process.once(signal, () => endAll().then(() => process.exit(1)));
try {
  await run();
  console.log(`ok; pictures in ${PICTURES}`);
} catch (error) {
  console.error(`FAILED: ${error.message}`);
  console.error(fs.readFileSync(path.join(PLACE, "server.log"), "utf8").split("\n").slice(-30).join("\n"));
  process.exitCode = 1;
} finally {
  await endAll();
}
process.exit();
