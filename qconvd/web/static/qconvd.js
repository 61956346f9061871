// Keeps a page up to date and answers its forms in place. Everything here works without it, with a reload.
"use strict";

const $ = (selector, within = document) => within.querySelector(selector);
const all = (selector, within = document) => [...within.querySelectorAll(selector)];

// Light or dark: as the system says, until somebody chooses.

const theme = $("#theme");
const isDark = () => (document.documentElement.dataset.theme || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
const stored = { get: () => { try { return localStorage.getItem("theme"); } catch { return null; } },
                 set: (value) => { try { localStorage.setItem("theme", value); } catch { /* it lasts as long as the page */ } } };
if (stored.get()) document.documentElement.dataset.theme = stored.get();
const nameTheme = () => { theme.textContent = isDark() ? "Light" : "Dark"; theme.hidden = false; };
theme.addEventListener("click", () => {
  document.documentElement.dataset.theme = isDark() ? "light" : "dark";
  stored.set(document.documentElement.dataset.theme);
  nameTheme();
});
nameTheme();

// Times: how long ago, with the whole time as a title.

const units = [["day", 86400], ["hour", 3600], ["minute", 60]];
const ago = new Intl.RelativeTimeFormat("en", { numeric: "auto" });
function tellTimes(within = document) {
  for (const time of all("time", within)) {
    const at = new Date(time.dateTime), seconds = (Date.now() - at) / 1000;
    time.title = at.toLocaleString();
    const unit = units.find(([, length]) => seconds >= length);
    time.textContent = unit ? ago.format(-Math.floor(seconds / unit[1]), unit[0]) : "just now";
  }
}
tellTimes();
setInterval(tellTimes, 15000);

// What changes on the server.

const moving = {};

function showProgress(known, rate) {
  if (rate && $("#rate")) $("#rate").textContent = rate;
  for (const [id, now] of Object.entries(known)) moving[id] = now;
  for (const bar of all("[data-progress]")) {
    const now = moving[bar.dataset.progress], element = $("progress", bar), told = $(".told", bar);
    if (!now) continue;
    element.max = now.total || 1;
    if (now.total) element.value = now.done; else element.removeAttribute("value");
    told.textContent = now.text;
  }
}

function showSection({ id, html }) {
  const place = document.getElementById(id);
  if (!place) return;
  if (place.contains(document.activeElement) && document.activeElement.matches("input")) {
    // Nobody's typing is taken away: it is shown when they are done.
    document.activeElement.addEventListener("blur", () => setTimeout(() => showSection({ id, html })), { once: true });
    return;
  }
  const focused = place.contains(document.activeElement) ? document.activeElement.id : "";
  const open = all("details[open]", place).map((details) => details.id);
  const log = $("pre", place), atEnd = log && log.scrollTop + log.clientHeight >= log.scrollHeight - 4;
  place.innerHTML = html;
  for (const details of open) if (document.getElementById(details)) document.getElementById(details).open = true;
  if (focused) (document.getElementById(focused) || $("#main")).focus({ preventScroll: true });
  const newLog = $("pre", place);
  if (newLog && (atEnd || !log)) newLog.scrollTop = newLog.scrollHeight;
  tellTimes(place);
  showProgress({});
}

const live = $("#live");
if (document.body.dataset.stream && live) {
  const say = (state, words) => { if (live.dataset.live !== state) { live.dataset.live = state; live.textContent = words; } };
  const source = new EventSource(document.body.dataset.stream);
  source.addEventListener("open", () => say("on", "live"));
  source.addEventListener("error", () => say("off", source.readyState === EventSource.CLOSED ? "not live: load the page again" : "not live: trying again"));
  source.addEventListener("section", (event) => showSection(JSON.parse(event.data)));
  source.addEventListener("progress", (event) => { const told = JSON.parse(event.data); showProgress(told.targets, told.rate); });
  addEventListener("pagehide", () => source.close());
}
for (const log of all("pre")) log.scrollTop = log.scrollHeight;

// Forms that ask something of the daemon: the answer is told here.

function toast(text, ok) {
  const one = document.createElement("p");
  one.className = ok ? "toast" : "toast bad";
  one.textContent = text;
  $("#toasts").append(one);
  setTimeout(() => one.remove(), ok ? 6000 : 15000);
}

document.addEventListener("submit", async (event) => {
  const form = event.target;
  if (form.matches("[data-plan], .queue")) {
    const button = $("button", form);
    button.setAttribute("aria-busy", "true");
    addEventListener("pageshow", () => button.removeAttribute("aria-busy"), { once: true });
    return;
  }
  if (!form.matches("[data-ask]")) return;
  event.preventDefault();
  const button = $("button", form);
  if (button.getAttribute("aria-busy")) return;
  button.setAttribute("aria-busy", "true");
  try {
    const reply = await fetch(form.action, { method: "POST", body: new URLSearchParams(new FormData(form)), headers: { Accept: "application/json" } });
    const said = await reply.json();
    toast(said.answer || said.message || "Written down; the daemon has not answered yet.", reply.ok);
  } catch {
    toast("The daemon does not answer. Is it running?", false);
  }
  button.removeAttribute("aria-busy");
});

// A name or an address from the Hub, dropped anywhere.

const field = $("#model");
if (field) {
  addEventListener("dragover", (event) => { event.preventDefault(); document.body.classList.add("dropping"); });
  addEventListener("dragleave", (event) => { if (!event.relatedTarget) document.body.classList.remove("dropping"); });
  addEventListener("drop", (event) => {
    event.preventDefault();
    document.body.classList.remove("dropping");
    const text = (event.dataTransfer.getData("text/uri-list") || event.dataTransfer.getData("text/plain")).split("\n")[0].trim();
    if (text) { field.value = text; field.form.requestSubmit(); }
    else toast("Files cannot be dropped here: copy the model into a watched folder instead.", false);
  });
  addEventListener("keydown", (event) => {
    if (event.key === "/" && !event.ctrlKey && !event.metaKey && !event.altKey && !/^(input|select|textarea)$/i.test(event.target.tagName)) {
      event.preventDefault();
      field.focus();
    }
  });
}
